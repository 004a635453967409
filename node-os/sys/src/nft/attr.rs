//! Netlink attributes as nftables uses them: nested, big-endian.

/// A growing list of attributes.
#[derive(Debug, Default)]
pub(super) struct Attrs(Vec<u8>);

const NESTED: u16 = 0x8000;

impl Attrs {
    pub(super) fn new() -> Self {
        Attrs(Vec::with_capacity(64))
    }
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }
    fn pad(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }
    pub(super) fn str(&mut self, kind: u16, value: &str) {
        let mut v = value.as_bytes().to_vec();
        v.push(0);
        self.bytes(kind, &v);
    }
    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }
    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }
    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs)) {
        let mut inner = Attrs::new();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }
}
