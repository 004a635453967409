//! How a value lies in etcd.
//!
//! etcd tells a write's revision only afterwards, so the hole of a [`Stamped`] stays open in
//! etcd and is filled on reading, with the key's own `mod_revision`:
//!
//! ```text
//! 0x01 own     │ u64le expires │ u32le place of the hole (all ones: none) │ value
//! 0x02 carried │ u64le expires │ u64le revision │ u64le created │ value
//! ```
//!
//! A carried value came from another store (restore, migration), with the revision that it
//! had there, which clients know it by and which is part of it: it keeps that until it is
//! written again.  When a key goes stands beside its value, as etcd's leases tell only on asking.

use bytes::Bytes;

use crate::{Entry, Result, Stamped, StoreError};

const OWN: u8 = 1;
const CARRIED: u8 = 2;
const NO_HOLE: u32 = u32::MAX;

/// What a value in etcd stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) value: Bytes,
    /// Unix second at which it goes; 0: never.
    pub(crate) expires: u64,
    /// Revisions of last write and creation, where they are not etcd's.
    pub(crate) carried: Option<(u64, u64)>,
}

/// The bytes to put.
pub(crate) fn encode(value: &Stamped, expires: u64) -> Bytes {
    let hole = if value.stamp_at > value.bytes.len() { NO_HOLE } else { value.stamp_at as u32 };
    [&[OWN], &expires.to_le_bytes()[..], &hole.to_le_bytes(), &value.bytes].concat().into()
}

/// The bytes of an entry that keeps its revisions.
pub(crate) fn encode_carried(entry: &Entry) -> Bytes {
    let numbers = [entry.expires, entry.revision, entry.created].map(u64::to_le_bytes);
    [&[CARRIED], numbers.as_flattened(), &entry.value].concat().into()
}

/// What `raw` at `key` stands for, when its last write was at `revision`.
pub(crate) fn decode(key: &str, raw: &[u8], revision: u64) -> Result<Read> {
    read(raw, revision).ok_or_else(|| StoreError::Foreign { key: key.to_string() })
}

fn read(raw: &[u8], revision: u64) -> Option<Read> {
    let (kind, rest) = raw.split_first()?;
    let (expires, rest) = number(rest)?;
    match *kind {
        OWN => {
            let (hole, value) = rest.split_first_chunk::<4>()?;
            let value = match u32::from_le_bytes(*hole) {
                NO_HOLE => Bytes::copy_from_slice(value),
                hole => crate::fill(value, hole as usize, revision),
            };
            Some(Read { value, expires, carried: None })
        }
        CARRIED => {
            let (revision, rest) = number(rest)?;
            let (created, value) = number(rest)?;
            Some(Read { value: Bytes::copy_from_slice(value), expires, carried: Some((revision, created)) })
        }
        _ => None,
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_with_the_revision() {
        for (value, expected) in [
            (Stamped::plain("x"), "x"),
            (Stamped::plain(""), ""),
            (Stamped { bytes: b"<>".to_vec(), stamp_at: 1 }, "<77>"),
            (Stamped { bytes: b"<".to_vec(), stamp_at: 1 }, "<77"),
        ] {
            let read = decode("/a", &encode(&value, 9), 77).unwrap();
            assert_eq!(read, Read { value: expected.into(), expires: 9, carried: None });
        }
    }

    #[test]
    fn a_carried_value_keeps_its_revisions() {
        let entry = Entry { key: "/a".into(), value: "<5>".into(), revision: 5, created: 3, expires: 9 };
        let read = decode("/a", &encode_carried(&entry), 77).unwrap();
        assert_eq!(read, Read { value: entry.value, expires: 9, carried: Some((5, 3)) });
    }

    #[test]
    fn what_others_wrote_is_refused() {
        for raw in [&b""[..], b"{}", b"k8s\0", b"\x01abc", b"\x02abc", b"\x0212345678901234567890123"] {
            assert!(matches!(decode("/a", raw, 1), Err(StoreError::Foreign { .. })), "{raw:?}");
        }
        // A hole beyond the end comes from damage; it must not panic.
        assert_eq!(decode("/a", b"\x01\0\0\0\0\0\0\0\0\x09\0\0\0x", 1).unwrap().value, "x");
    }
}
