//! The log's format.
//!
//! A file is a header and frames.  A frame is one batch, written and synced as a whole:
//! `KFRM`, length u32, CRC-32 u32, records.  Numbers are little endian.  A frame that is not
//! whole can only be the last one, as the next is written after its sync: a whole frame
//! after a broken one means damage, not a lost tail.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;

use crate::crc::crc32;
use crate::{Cipher, Entry, Result, StoreError};

/// First bytes of every file.
pub(crate) const HEADER: &[u8; 16] = b"KIMG-STORE-LOG-1";
const MAGIC: &[u8; 4] = b"KFRM";
const FRAME_HEAD: usize = 12;
/// Larger frames than this are damage.
const MAX_FRAME: usize = 64 << 20;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const REVISION: u8 = 3;
const SEALED: u8 = 1;

/// One record of a frame.
#[derive(Debug)]
pub(crate) enum Record {
    /// A key as it is from this revision on.
    Put(Entry),
    /// A key is gone.
    Delete { key: Arc<str>, revision: u64 },
    /// The store is at this revision (end of a checkpoint, restore).
    Revision(u64),
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

    pub(crate) fn put(&mut self, entry: &Entry, cipher: Option<&Cipher>) -> Result<()> {
        match cipher.filter(|c| c.covers(&entry.key)) {
            None => self.put_raw(entry, 0, &entry.value),
            Some(cipher) => {
                let sealed = cipher
                    .seal(&entry.key, &entry.value)
                    .map_err(|what| StoreError::Sealed { key: entry.key.to_string(), what })?;
                self.put_raw(entry, SEALED, &sealed);
            }
        }
        Ok(())
    }

    fn put_raw(&mut self, entry: &Entry, flags: u8, value: &[u8]) {
        self.out.extend_from_slice(&[PUT, flags]);
        for number in [entry.revision, entry.created, entry.expires] {
            self.out.extend_from_slice(&number.to_le_bytes());
        }
        self.out.extend_from_slice(&(entry.key.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.out.extend_from_slice(entry.key.as_bytes());
        self.out.extend_from_slice(value);
    }

    pub(crate) fn delete(&mut self, key: &str, revision: u64) {
        self.out.push(DELETE);
        self.out.extend_from_slice(&revision.to_le_bytes());
        self.out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.out.extend_from_slice(key.as_bytes());
    }

    pub(crate) fn revision(&mut self, revision: u64) {
        self.out.push(REVISION);
        self.out.extend_from_slice(&revision.to_le_bytes());
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

/// Reads a log from its beginning; gives the length up to which it is whole.
/// A torn tail ends the reading; damage before the tail is an error.
pub(crate) fn read_log(
    file: &str,
    reader: &mut dyn Read,
    cipher: Option<&Cipher>,
    mut each: impl FnMut(Record),
) -> Result<u64> {
    let damaged = |offset: u64, what: &str| StoreError::Damaged { file: file.into(), offset, what: what.into() };
    let io = |source| StoreError::Io { what: format!("reading {file}"), source };
    let mut header = [0u8; HEADER.len()];
    if fill(reader, &mut header).map_err(io)? < HEADER.len() || &header != HEADER {
        return Err(damaged(0, "it does not begin as a store log of this version"));
    }
    let mut at = HEADER.len() as u64;
    let mut payload = Vec::new();
    loop {
        let mut head = [0u8; FRAME_HEAD];
        let got = fill(reader, &mut head).map_err(io)?;
        if got == 0 {
            return Ok(at);
        }
        let number = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let len = number(4) as usize;
        let mut seen = head[..got].to_vec();
        if got == FRAME_HEAD && &head[..4] == MAGIC && len <= MAX_FRAME {
            payload.resize(len, 0);
            let got = fill(reader, &mut payload).map_err(io)?;
            if got == len && crc32(&payload) == number(8) {
                decode(&payload, cipher, &mut each).map_err(|e| match e {
                    Decode::Shape => damaged(at, "a record makes no sense though its checksum is right"),
                    Decode::Sealed(key, what) => StoreError::Sealed { key, what },
                })?;
                at += (FRAME_HEAD + len) as u64;
                continue;
            }
            seen.extend_from_slice(&payload[..got]);
        }
        reader.read_to_end(&mut seen).map_err(io)?;
        return match whole_frame_in(&seen) {
            Some(_) => Err(damaged(at, "a record's checksum is wrong, and whole records follow it")),
            None => Ok(at),
        };
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

enum Decode {
    Shape,
    Sealed(String, String),
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Decode> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Decode::Shape)?;
        self.0 = tail;
        Ok(head)
    }
    fn u32(&mut self) -> Result<u32, Decode> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| Decode::Shape)
    }
    fn u64(&mut self) -> Result<u64, Decode> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| Decode::Shape)
    }
    fn key(&mut self, len: u32) -> Result<Arc<str>, Decode> {
        std::str::from_utf8(self.take(len as usize)?).map(Arc::from).map_err(|_| Decode::Shape)
    }
}

fn decode(payload: &[u8], cipher: Option<&Cipher>, each: &mut impl FnMut(Record)) -> Result<(), Decode> {
    let mut cursor = Cursor(payload);
    while !cursor.0.is_empty() {
        match cursor.take(1)?[0] {
            PUT => {
                let flags = cursor.take(1)?[0];
                let (revision, created, expires) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
                let (key_len, value_len) = (cursor.u32()?, cursor.u32()?);
                let key = cursor.key(key_len)?;
                let raw = cursor.take(value_len as usize)?;
                let value = match (flags & SEALED != 0, cipher) {
                    (false, _) => Bytes::copy_from_slice(raw),
                    (true, Some(cipher)) => {
                        Bytes::from(cipher.open(&key, raw).map_err(|what| Decode::Sealed(key.to_string(), what))?)
                    }
                    (true, None) => {
                        return Err(Decode::Sealed(key.to_string(), "no encryption key is given".into()));
                    }
                };
                each(Record::Put(Entry { key, value, revision, created, expires }));
            }
            DELETE => {
                let revision = cursor.u64()?;
                let len = cursor.u32()?;
                each(Record::Delete { key: cursor.key(len)?, revision });
            }
            REVISION => each(Record::Revision(cursor.u64()?)),
            _ => return Err(Decode::Shape),
        }
    }
    Ok(())
}
