//! Whether a file is a whole snapshot of a store (docs/store.md), before machines are made for it. What its objects say
//! is looked at by the API server that takes it.

use flate2::Crc;
use node_api::Release;

/// Every snapshot begins so, whatever its version.
pub const MAGIC: &[u8] = b"KIMG-STORE-LOG-";
const FRAME: &[u8] = b"KFRM";

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }
}

/// Reads a snapshot through.
///
/// # Errors
/// It is of another version, damaged, or ends too early; the error says which, and where.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let body = bytes.strip_prefix(MAGIC).ok_or("it is no snapshot of a store")?;
    let (version, body) = body.split_first().ok_or("it is cut off")?;
    let (oldest, newest) = Release::this().store.reads;
    if !char::from(*version).to_digit(10).is_some_and(|version| (oldest..=newest).contains(&version)) {
        return Err("it is of a version that this kimg does not know".into());
    }
    let mut rest = Rest(body);
    let (mut keys, mut whole) = (0, false);
    while !rest.0.is_empty() {
        let at = bytes.len() - rest.0.len();
        let records = frame(&mut rest).ok_or_else(|| format!("it is damaged, or cut off, at byte {at}"))?;
        let mut records = Rest(records);
        while !records.0.is_empty() {
            record(&mut records, &mut keys, &mut whole)
                .ok_or_else(|| format!("the records at byte {at} do not fit"))?;
        }
    }
    if whole { Ok(()) } else { Err("its end is missing".into()) }
}

/// The records of the next frame.
fn frame<'a>(rest: &mut Rest<'a>) -> Option<&'a [u8]> {
    rest.take(FRAME.len()).filter(|magic| *magic == FRAME)?;
    let (length, sum) = (rest.length()?, rest.u32()?);
    let records = rest.take(length)?;
    let mut crc = Crc::new();
    crc.update(records);
    (crc.sum() == sum).then_some(records)
}

/// Steps over a record. The one that closes the snapshot says how many keys stand before it.
fn record(records: &mut Rest<'_>, keys: &mut u64, whole: &mut bool) -> Option<()> {
    match records.take(1)? {
        [1] => {
            records.take(24)?;
            let (key, value) = (records.length()?, records.length()?);
            records.take(key.checked_add(value)?)?;
            *keys += 1;
        }
        [2] => {
            records.take(8)?;
            let key = records.length()?;
            records.take(key)?;
        }
        [3] => {
            records.take(8)?;
            let said = u64::from_le_bytes(records.take(8)?.try_into().ok()?);
            (!*whole && said == *keys).then_some(())?;
            *whole = true;
        }
        [4] => {}
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn framed(records: &[u8]) -> Vec<u8> {
        let mut crc = Crc::new();
        crc.update(records);
        [FRAME, &u32::try_from(records.len()).unwrap().to_le_bytes(), &crc.sum().to_le_bytes(), records].concat()
    }

    fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[1][..], &[0; 24], &length(key), &length(value), key, value].concat()
    }

    fn end(keys: u64) -> Vec<u8> {
        [&[3][..], &7u64.to_le_bytes(), &keys.to_le_bytes()].concat()
    }

    fn begin() -> Vec<u8> {
        [MAGIC, Release::this().store.writes.to_string().as_bytes()].concat()
    }

    /// A snapshot with one object.
    pub(crate) fn whole() -> Vec<u8> {
        [begin(), framed(&put(b"/pods/a", b"x")), framed(&end(1))].concat()
    }

    #[test]
    fn only_what_is_whole_is_a_snapshot() {
        assert_eq!(check(&whole()), Ok(()));
        // A log will do, too: marks and later writes stand behind it.
        let removal = [&[2][..], &8u64.to_le_bytes(), &1u32.to_le_bytes(), b"a"].concat();
        assert_eq!(check(&[whole(), framed(&[4]), framed(&removal), framed(&put(b"b", b""))].concat()), Ok(()));
        let said = |bytes: &[u8]| check(bytes).unwrap_err();
        let (oldest, newest) = Release::this().store.reads;
        for unknown in [oldest - 1, newest + 1] {
            let other = [MAGIC, unknown.to_string().as_bytes(), &whole()[16..]].concat();
            assert!(said(&other).contains("of a version"), "{unknown}");
        }
        assert!(said(MAGIC).contains("cut off") && said(b"KIMG-STORE-LOG-x").contains("of a version"));
        assert!(said(&begin()).contains("its end is missing"));
        assert!(said(&[begin(), framed(&put(b"a", b""))].concat()).contains("its end is missing"));
        assert!(said(&[begin(), b"junk".to_vec()].concat()).contains("at byte 16"));
        // A frame is missing.
        assert!(said(&[begin(), framed(&end(1))].concat()).contains("do not fit"));
        assert!(said(&[begin(), framed(&[9])].concat()).contains("do not fit"));
        for at in 16..whole().len() {
            let mut bytes = whole();
            bytes[at] ^= 1;
            assert!(check(&bytes).is_err(), "byte {at}");
            assert!(check(&whole()[..at]).is_err(), "up to byte {at}");
        }
    }
}
