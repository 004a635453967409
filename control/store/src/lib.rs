//! The store of the control plane: one [`Store`] trait, its engines, and the suite that
//! every engine must pass.
//!
//! Revisions count over the whole store: every write gets the next one.  A write that was
//! answered is durable.  Values may carry a hole that the store fills with the write's
//! revision, so that an object is encoded once and the bytes are shared by readers.

pub mod conformance;
mod crc;
mod embedded;
mod fault;
mod frame;
mod io;
mod seal;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use embedded::{Embedded, Options, Report, restore, verify};
pub use fault::FaultDisk;
pub use io::{DirDisk, Disk, DiskFile};
pub use seal::Cipher;

/// Values larger than this are refused.
pub const MAX_VALUE: usize = 3 << 20;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not in the state that the write expects.
    #[error("the key is not in the expected state")]
    Mismatch,
    /// The changes asked for are no longer kept.
    #[error("revision {asked} is gone: changes are kept from revision {kept} on")]
    Compacted { asked: u64, kept: u64 },
    /// The value is too large.
    #[error("the value has {size} bytes; at most {MAX_VALUE} fit")]
    TooLarge { size: usize },
    /// A write failed earlier, so nothing more can be promised; restart the server.
    #[error("the store takes no more writes after an error: {0}")]
    Failed(String),
    /// A file is not what it should be.
    #[error("{file} is damaged at byte {offset}: {what}; restore a snapshot, or replace the disk")]
    Damaged { file: String, offset: u64, what: String },
    /// Another process has the store.
    #[error("{0} is in use by another process; stop it first")]
    Locked(PathBuf),
    /// The encryption key does not fit.
    #[error("{key} cannot be decrypted: {what}; check the encryption key file")]
    Sealed { key: String, what: String },
    /// The disk said no.
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

/// The usual result.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A value with a hole at `stamp_at` for the revision in decimal; `usize::MAX`: no hole.
#[derive(Clone, Debug)]
pub struct Stamped {
    pub bytes: Vec<u8>,
    pub stamp_at: usize,
}

impl Stamped {
    /// A value without a hole.
    pub fn plain(bytes: impl Into<Vec<u8>>) -> Stamped {
        Stamped { bytes: bytes.into(), stamp_at: usize::MAX }
    }

    fn fill(&self, revision: u64) -> Bytes {
        if self.stamp_at > self.bytes.len() {
            return Bytes::copy_from_slice(&self.bytes);
        }
        let digits = revision.to_string();
        let mut out = Vec::with_capacity(self.bytes.len() + digits.len());
        out.extend_from_slice(&self.bytes[..self.stamp_at]);
        out.extend_from_slice(digits.as_bytes());
        out.extend_from_slice(&self.bytes[self.stamp_at..]);
        Bytes::from(out)
    }
}

/// What a write expects of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// No such key.
    Absent,
    /// The key's last write was at this revision.
    At(u64),
}

/// A live key.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// Revision of its last write.
    pub revision: u64,
    /// Revision of its creation.
    pub created: u64,
    /// Unix second at which it goes by itself; 0: never.
    pub expires: u64,
}

/// One write, as watchers see it.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Arc<str>,
    pub revision: u64,
    /// None: the key was removed.
    pub value: Option<Bytes>,
}

/// Who keeps a picture of the keys below a prefix.
pub trait Observer: Send + Sync {
    /// Called once, first, with everything there is, in key order.
    fn load(&self, entries: Vec<Entry>, revision: u64);

    /// Called for each batch of writes in the store below the prefix, in order, before they
    /// are answered; `revision` is the store's after it.  `changes` may be empty: then only
    /// the revision went on.  Must be quick, and must not call the store.
    fn apply(&self, changes: &[Change], revision: u64);
}

/// Stream of changes, in order.
pub type Changes = tokio::sync::mpsc::UnboundedReceiver<Change>;

/// What every engine does.
pub trait Store: Send + Sync {
    /// The newest revision.
    fn revision(&self) -> u64;

    /// The oldest revision that [`Store::watch`] can start after.
    fn compacted(&self) -> u64;

    /// One key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>>;

    /// Keys below `prefix` and after `after`, in order, at most `limit` (0: all), with the
    /// revision of the picture.
    fn range<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<(Vec<Entry>, u64)>>;

    /// Writes; gives the revision once it is durable.  With `ttl_seconds` the key goes by
    /// itself after that time.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Stamped,
        expect: Expect,
        ttl_seconds: Option<u64>,
    ) -> BoxFuture<'a, Result<u64>>;

    /// Removes; gives the revision once it is durable.  A key that is not there is a mismatch.
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64>>;

    /// Changes below `prefix` after `after`.
    fn watch(&self, prefix: &str, after: u64) -> Result<Changes>;

    /// Keeps an observer informed, from its load on.
    fn attach(&self, prefix: &str, observer: Arc<dyn Observer>);

    /// Forgets changes up to `revision`.
    fn compact(&self, revision: u64);

    /// Writes a consistent copy of everything to a new file, while running.
    fn snapshot<'a>(&'a self, to: PathBuf) -> BoxFuture<'a, Result<u64>>;

    /// Why the store takes no more writes, if so.
    fn failure(&self) -> Option<String>;

    /// Bytes of live values and keys.
    fn live_bytes(&self) -> u64;

    /// Writes what was accepted, and lets the store go for another process; blocks until
    /// that is done.  Later writes fail, reads go on.
    fn close(&self);
}
