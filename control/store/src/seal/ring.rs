//! Which values are sealed, and with which keys.

use std::sync::Arc;

use bytes::Bytes;

use super::key::{self, Key};
use crate::{Entry, Result, Stamped, StoreError};

/// The key that writes, and whether plain values are still read.
#[derive(Debug)]
pub struct Rule {
    /// What keys below one of these prefixes hold follows this rule.
    pub prefixes: Vec<String>,
    /// None: values are written plain.
    pub write: Option<Arc<Key>>,
    /// Whether plain values are accepted.
    pub plain: bool,
}

/// All keys, and the rules; of several that fit the first one counts.
#[derive(Debug, Default)]
pub struct Keyring {
    rules: Vec<Rule>,
    keys: Vec<Arc<Key>>,
}

/// Plaintext of a sealed value: where the hole for the revision is, u32 little endian, and the
/// value with the hole.
const HOLE: usize = 4;
const NO_HOLE: u32 = u32::MAX;

impl Keyring {
    /// `keys` are all that open values, those that write among them.
    pub fn new(rules: Vec<Rule>, keys: Vec<Arc<Key>>) -> Keyring {
        Keyring { rules, keys }
    }

    /// Everything below `prefix` sealed by one key.
    pub fn single(key: Key, prefix: &str) -> Keyring {
        let key = Arc::new(key);
        let rule = Rule { prefixes: vec![prefix.to_string()], write: Some(key.clone()), plain: true };
        Keyring { rules: vec![rule], keys: vec![key] }
    }

    fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|r| r.prefixes.iter().any(|p| name.starts_with(p.as_str())))
    }

    fn writer(&self, name: &str) -> Option<&Key> {
        self.rule(name).and_then(|r| r.write.as_deref())
    }

    /// Whether the engine has an entry as it would be written now.
    pub(super) fn is_current(&self, entry: &Entry) -> bool {
        value_id(&entry.value) == self.writer(&entry.key).map(Key::id)
    }

    /// Ids of all keys, each once, in their order.
    pub(super) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for key in &self.keys {
            if !ids.iter().any(|id| id == key.id()) {
                ids.push(key.id().to_owned());
            }
        }
        ids
    }

    /// Whether what is written to `name` is sealed.
    pub fn seals(&self, name: &str) -> bool {
        self.writer(name).is_some()
    }

    /// Whether a plain value is accepted there.
    pub(super) fn takes_plain(&self, name: &str) -> bool {
        self.rule(name).is_none_or(|r| r.plain)
    }

    /// A value as the engine is to have it.
    pub(super) fn seal(&self, name: &str, value: Stamped) -> Result<Stamped> {
        let Some(key) = self.writer(name) else { return Ok(value) };
        let hole = u32::try_from(value.stamp_at).ok().filter(|at| *at as usize <= value.bytes.len());
        let mut plain = Vec::with_capacity(HOLE + value.bytes.len());
        plain.extend_from_slice(&hole.unwrap_or(NO_HOLE).to_le_bytes());
        plain.extend_from_slice(&value.bytes);
        let failed = |what| StoreError::Sealed { key: name.to_string(), what };
        key.seal(name, &plain).map(Stamped::plain).map_err(failed)
    }

    /// The value with its hole, of what the engine has.
    pub(super) fn unseal(&self, name: &str, value: &[u8]) -> Result<Stamped> {
        let failed = |what: String| StoreError::Sealed { key: name.to_string(), what };
        let (id, body) = key::parse(value).ok_or_else(|| failed("it names no key".into()))?;
        let mut tried = Err(format!("the key {id} is not given"));
        // Two rules may have different keys of one name.
        for key in self.keys.iter().filter(|k| k.id() == id) {
            tried = key.open(name, body);
            if tried.is_ok() {
                break;
            }
        }
        let mut plain = tried.map_err(failed)?;
        let hole = plain.first_chunk::<HOLE>().copied().map(u32::from_le_bytes);
        let hole = hole.ok_or_else(|| failed("the sealed value is too short".into()))?;
        let stamp_at = if hole == NO_HOLE { usize::MAX } else { hole as usize };
        Ok(Stamped { bytes: plain.split_off(HOLE), stamp_at })
    }

    /// A value as readers are to have it.
    pub(super) fn open(&self, name: &str, value: &Bytes, revision: u64) -> Result<Bytes> {
        if key::is_sealed(value) {
            return self.unseal(name, value).map(|v| v.fill(revision));
        }
        if !self.takes_plain(name) {
            let what = "it is stored plain, and its providers do not include identity; \
                        add `- identity: {}` as the last one until everything is rewritten";
            return Err(StoreError::Sealed { key: name.to_string(), what: what.into() });
        }
        Ok(value.clone())
    }

    /// Opens an entry in place.
    pub(super) fn open_entry(&self, mut entry: Entry) -> Result<Entry> {
        entry.value = self.open(&entry.key, &entry.value, entry.revision)?;
        Ok(entry)
    }
}

/// Id of the key that a value of the engine was sealed with; None: it is plain.
pub(super) fn value_id(value: &[u8]) -> Option<&str> {
    key::parse(value).map(|(id, _)| id)
}
