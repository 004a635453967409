//! How a value lies in etcd.
//!
//! etcd tells a write's revision only afterwards, so the hole of a [`Stamped`] stays open in
//! etcd and is filled on reading, with the key's own `mod_revision`:
//!
//! ```text
//! 0x01 plain   │ u32le place of the hole (all ones: none) │ value
//! 0x02 carried │ u64le revision │ u64le created │ value
//! ```
//!
//! A carried value came from another store (restore, migration), with the revision that it
//! had there, which clients know it by and which is part of it: it keeps that until it is
//! written again.

use bytes::Bytes;

use crate::{Entry, Result, Stamped, StoreError};

const PLAIN: u8 = 1;
const CARRIED: u8 = 2;
const NO_HOLE: u32 = u32::MAX;

/// What a value in etcd stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) value: Bytes,
    /// Revisions of last write and creation, where they are not etcd's.
    pub(crate) carried: Option<(u64, u64)>,
}

/// The bytes to put.
pub(crate) fn encode(value: &Stamped) -> Bytes {
    let hole = if value.stamp_at > value.bytes.len() { NO_HOLE } else { value.stamp_at as u32 };
    [&[PLAIN], &hole.to_le_bytes()[..], &value.bytes].concat().into()
}

/// The bytes of an entry that keeps its revisions.
pub(crate) fn encode_carried(entry: &Entry) -> Bytes {
    [&[CARRIED], &entry.revision.to_le_bytes()[..], &entry.created.to_le_bytes(), &entry.value].concat().into()
}

/// What `raw` at `key` stands for, when its last write was at `revision`.
pub(crate) fn decode(key: &str, raw: &[u8], revision: u64) -> Result<Read> {
    read(raw, revision).ok_or_else(|| StoreError::Foreign { key: key.to_string() })
}

fn read(raw: &[u8], revision: u64) -> Option<Read> {
    match raw.split_first()? {
        (&PLAIN, rest) => {
            let (hole, value) = rest.split_first_chunk::<4>()?;
            let value = match u32::from_le_bytes(*hole) {
                NO_HOLE => Bytes::copy_from_slice(value),
                hole => crate::fill(value, hole as usize, revision),
            };
            Some(Read { value, carried: None })
        }
        (&CARRIED, rest) => {
            let (revision, rest) = rest.split_first_chunk::<8>()?;
            let (created, value) = rest.split_first_chunk::<8>()?;
            let carried = Some((u64::from_le_bytes(*revision), u64::from_le_bytes(*created)));
            Some(Read { value: Bytes::copy_from_slice(value), carried })
        }
        _ => None,
    }
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
            let read = decode("/a", &encode(&value), 77).unwrap();
            assert_eq!(read, Read { value: expected.into(), carried: None });
        }
    }

    #[test]
    fn a_carried_value_keeps_its_revisions() {
        let entry = Entry { key: "/a".into(), value: "<5>".into(), revision: 5, created: 3, expires: 0 };
        let read = decode("/a", &encode_carried(&entry), 77).unwrap();
        assert_eq!(read, Read { value: entry.value, carried: Some((5, 3)) });
    }

    #[test]
    fn what_others_wrote_is_refused() {
        for raw in [&b""[..], b"{}", b"k8s\0", b"\x01abc", b"\x02abc", b"\x02123456789012345"] {
            assert!(matches!(decode("/a", raw, 1), Err(StoreError::Foreign { .. })), "{raw:?}");
        }
        // A hole beyond the end comes from damage; it must not panic.
        assert_eq!(decode("/a", b"\x01\x09\0\0\0x", 1).unwrap().value, "x");
    }
}
