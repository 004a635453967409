//! The log's format.
//!
//! A file is a header, which states its format, and frames.  A frame is one batch, written and synced as a whole:
//! `KFRM`, length u32, CRC-32 u32, records.  Numbers are little endian.  First comes a picture
//! (all keys in order, then a revision record with their number), then the writes since, each
//! with the next revision.
//!
//! A frame that is not whole can only be the last one, as the next is written after its sync.
//! So a whole frame after a broken one means damage; so does a broken last frame that no lost
//! power could have left behind.

use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::hash as crc32;

use crate::{Entry, Result, StoreError};

/// First bytes of every file, before the digit of its format.
const NAME: &[u8; 15] = b"KIMG-STORE-LOG-";
const HEADER: usize = NAME.len() + 1;
/// The formats that are read. What is in one of them is written on in it until it is raised to the last one, which a new
/// store has. For the tests of this crate there is one more, in which nothing but the header is another.
pub(crate) const FORMATS: RangeInclusive<u32> = OLDEST..=if cfg!(test) { NEWEST + 1 } else { NEWEST };
const OLDEST: u32 = 2;
const NEWEST: u32 = 2;
const MAGIC: &[u8; 4] = b"KFRM";
const FRAME_HEAD: usize = 12;
/// Larger frames than this are damage.
const MAX_FRAME: usize = 64 << 20;
/// Smallest piece that a disk writes or loses as a whole.
const SECTOR: u64 = 512;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const REVISION: u8 = 3;
const MARK: u8 = 4;

/// One record of a frame.
#[derive(Debug)]
pub(crate) enum Record {
    /// A key as it is from this revision on.
    Put(Entry),
    /// A key is gone.
    Delete { key: Arc<str>, revision: u64 },
    /// End of the picture: it has so many keys, and the store is at this revision.
    Revision { revision: u64, keys: u64 },
    /// All before it is durable.
    Mark,
}

/// Builds one frame.
pub(crate) struct FrameWriter {
    out: Vec<u8>,
}

impl FrameWriter {
    pub(crate) fn new() -> FrameWriter {
        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(MAGIC);
        out.resize(FRAME_HEAD, 0);
        FrameWriter { out }
    }

    pub(crate) fn put(&mut self, entry: &Entry) {
        self.out.push(PUT);
        for number in [entry.revision, entry.created, entry.expires] {
            self.out.extend_from_slice(&number.to_le_bytes());
        }
        self.out.extend_from_slice(&(entry.key.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&(entry.value.len() as u32).to_le_bytes());
        self.out.extend_from_slice(entry.key.as_bytes());
        self.out.extend_from_slice(&entry.value);
    }

    pub(crate) fn delete(&mut self, key: &str, revision: u64) {
        self.out.push(DELETE);
        self.out.extend_from_slice(&revision.to_le_bytes());
        self.out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.out.extend_from_slice(key.as_bytes());
    }

    pub(crate) fn revision(&mut self, revision: u64, keys: u64) {
        self.out.push(REVISION);
        self.out.extend_from_slice(&revision.to_le_bytes());
        self.out.extend_from_slice(&keys.to_le_bytes());
    }

    pub(crate) fn mark(&mut self) {
        self.out.push(MARK);
    }

    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = (self.out.len() - FRAME_HEAD) as u32;
        let crc = crc32(&self.out[FRAME_HEAD..]);
        self.out[4..8].copy_from_slice(&len.to_le_bytes());
        self.out[8..12].copy_from_slice(&crc.to_le_bytes());
        self.out
    }
}

/// A file's format, how far it is whole, and what follows that a lost power left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) format: u32,
    pub(crate) whole: u64,
    pub(crate) torn: u64,
}

/// The header of a file in this format.
pub(crate) fn header(format: u32) -> Vec<u8> {
    let digit = char::from_digit(format, 10).unwrap_or_default();
    [NAME.as_slice(), digit.to_string().as_bytes()].concat()
}

/// The format that a header states.
fn format_in(header: &[u8]) -> Option<u32> {
    char::from(*header.strip_prefix(NAME)?.first()?).to_digit(10)
}

/// Reads a file's header; gives its format.
pub(crate) fn read_header(file: &str, reader: &mut dyn Read) -> Result<u32> {
    let mut header = [0u8; HEADER];
    fill(reader, &mut header).map_err(|why| StoreError::Io { what: format!("reading {file}"), why })?;
    match format_in(&header) {
        Some(format) if FORMATS.contains(&format) => Ok(format),
        // Not damage: a copy of before, which helps there, would lose what was written since.
        Some(format) if format > *FORMATS.end() => {
            Err(StoreError::Newer { what: file.into(), format, reads: *FORMATS.end() })
        }
        _ => {
            let what = "it does not begin as a store log of this version".into();
            Err(StoreError::Damaged { file: file.into(), offset: 0, what })
        }
    }
}

/// Reads a file from its beginning.  A torn tail ends the reading; any other damage is an
/// error, and so is a record that `each` refuses.
pub(crate) fn read_log(
    file: &str,
    reader: &mut dyn Read,
    mut each: impl FnMut(Record) -> Result<(), String>,
) -> Result<Extent> {
    let damaged = |offset: u64, what: &str| StoreError::Damaged { file: file.into(), offset, what: what.into() };
    let io = |why| StoreError::Io { what: format!("reading {file}"), why };
    let format = read_header(file, reader)?;
    let mut at = HEADER as u64;
    let mut payload = Vec::new();
    loop {
        let mut head = [0u8; FRAME_HEAD];
        let got = fill(reader, &mut head).map_err(io)?;
        if got == 0 {
            return Ok(Extent { format, whole: at, torn: 0 });
        }
        let number = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let len = number(4) as usize;
        let mut seen = head[..got].to_vec();
        let mut short = got < FRAME_HEAD;
        if !short && &head[..4] == MAGIC && len <= MAX_FRAME {
            payload.resize(len, 0);
            let got = fill(reader, &mut payload).map_err(io)?;
            short = got < len;
            if !short && crc32(&payload) == number(8) {
                decode(&payload, &mut each).map_err(|what| damaged(at, &what))?;
                at += (FRAME_HEAD + len) as u64;
                continue;
            }
            seen.extend_from_slice(&payload[..got]);
        }
        reader.read_to_end(&mut seen).map_err(io)?;
        if let Some(next) = whole_frame_in(&seen) {
            let what = format!("the checksum up to byte {} is wrong, and whole records follow", at + next as u64);
            return Err(damaged(at, &what));
        }
        if !short && !has_lost_sector(at, &seen) {
            return Err(damaged(at, "the last record's checksum is wrong, and no lost power leaves it like that"));
        }
        return Ok(Extent { format, whole: at, torn: seen.len() as u64 });
    }
}

/// Where in `tail`, after its first byte, a whole frame begins.
fn whole_frame_in(tail: &[u8]) -> Option<usize> {
    (1..tail.len().saturating_sub(FRAME_HEAD)).find(|&i| {
        tail[i..].starts_with(MAGIC) && {
            let number =
                |j: usize| u32::from_le_bytes([tail[i + j], tail[i + j + 1], tail[i + j + 2], tail[i + j + 3]]);
            let body = tail.get(i + FRAME_HEAD..i + FRAME_HEAD + number(4) as usize);
            body.is_some_and(|body| !body.is_empty() && crc32(body) == number(8))
        }
    })
}

/// Whether a sector's share of `tail`, which begins at `at` in its file, is all zero: never written.
fn has_lost_sector(at: u64, tail: &[u8]) -> bool {
    let mut rest = tail;
    let mut room = (SECTOR - at % SECTOR) as usize;
    while !rest.is_empty() {
        let (sector, more) = rest.split_at(room.min(rest.len()));
        if sector.iter().all(|b| *b == 0) {
            return true;
        }
        rest = more;
        room = SECTOR as usize;
    }
    false
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.0.split_at_checked(n).ok_or("a record ends early though its checksum is right")?;
        self.0 = tail;
        Ok(head)
    }
    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }
    fn key(&mut self, len: u32) -> Result<Arc<str>, String> {
        std::str::from_utf8(self.take(len as usize)?).map(Arc::from).map_err(|_| "a key is not text".to_string())
    }
}

fn decode(payload: &[u8], each: &mut impl FnMut(Record) -> Result<(), String>) -> Result<(), String> {
    let mut cursor = Cursor(payload);
    while !cursor.0.is_empty() {
        let record = match cursor.take(1)?[0] {
            PUT => {
                let (revision, created, expires) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
                let (key_len, value_len) = (cursor.u32()?, cursor.u32()?);
                let key = cursor.key(key_len)?;
                let value = Bytes::copy_from_slice(cursor.take(value_len as usize)?);
                Record::Put(Entry { key, value, revision, created, expires })
            }
            DELETE => {
                let revision = cursor.u64()?;
                let len = cursor.u32()?;
                Record::Delete { key: cursor.key(len)?, revision }
            }
            REVISION => Record::Revision { revision: cursor.u64()?, keys: cursor.u64()? },
            MARK => Record::Mark,
            kind => return Err(format!("there is no record of kind {kind}")),
        };
        each(record)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_releases_log_is_no_damage() {
        let read = |log: &[u8]| read_log("store.log", &mut &log[..], |_| Ok(())).unwrap_err();
        let newer = read(b"KIMG-STORE-LOG-4whatever");
        assert!(matches!(newer, StoreError::Newer { format: 4, reads: 3, .. }), "{newer}");
        assert!(newer.to_string().starts_with("store.log has the store format 4, and this release reads up to 3"));
        for damaged in [&b"KIMG-STORE-LOG-1"[..], b"KIMG-STORE-LOG-x", b"KIMG-STORE-LOG-", b"KIMG-STORE-LOX-3"] {
            assert!(matches!(read(damaged), StoreError::Damaged { offset: 0, .. }));
        }
    }
}
