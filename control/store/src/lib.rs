//! The store of the control plane: one [`Store`] trait, its engines, and the suite that
//! every engine must pass.
//!
//! Revisions count over the whole store: every write gets the next one.  A write that was
//! answered is durable.  Values may carry a hole that the store fills with the write's
//! revision, so that an object is encoded once and the bytes are shared by readers.

#[cfg(test)]
mod conformance;
mod embedded;
mod etcd;
mod fault;
mod frame;
mod io;
mod point;
mod seal;
mod state;
pub mod torture;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc::UnboundedReceiver;

pub use embedded::{
    Embedded, Options, Report, format_of, oldest_format, read_picture, restore, verify, write_picture_file, write_store,
};
pub use etcd::{
    Etcd, EtcdData, EtcdHolds, EtcdOptions, EtcdReport, Member, MemberStatus, Members, Membership, Sight, check_etcd,
    data_of, etcd_holds, look, read_etcd, retire_etcd, write_etcd,
};
pub use fault::{FaultDisk, Pull};
pub use io::{DirDisk, Disk, DiskFile};
pub use point::Point;
pub use seal::{Key, Keyring, Rule, Sealed, Usage, usage_of};

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
    /// The value is larger than this etcd takes.
    #[error("{key} has {size} bytes, more than etcd takes in one request; raise etcd's --max-request-bytes")]
    TooLargeForEtcd { key: String, size: usize },
    /// There was no room for the write, and nothing of it is left; reads go on, and writes once there is room.
    #[error("the store's disk is full, so nothing was written: {0}; make room on it")]
    Full(String),
    /// A write failed earlier, so nothing more can be promised; restart the server.
    #[error("the store takes no more writes after an error: {0}")]
    Failed(String),
    /// A file is not what it should be.
    #[error("{file} is damaged at byte {offset}: {what}; {}", way_out(file))]
    Damaged { file: String, offset: u64, what: String },
    /// The store cannot be reached now.  Whether a write was done is not known.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// Another process has the store.
    #[error("{0} is in use by another process; stop it first")]
    Locked(PathBuf),
    /// The encryption keys do not fit.
    #[error("{key} cannot be decrypted: {what}; check the encryption keys that the server is given")]
    Sealed { key: String, what: String },
    /// What was configured cannot be.
    #[error("{0}")]
    Settings(String),
    /// The store was migrated.
    #[error(
        "this store was moved to {to}; start the server with that one; if the migration was interrupted, do it again"
    )]
    Moved { to: String },
    /// Two copies that should be equal are not.
    #[error("{0}")]
    Differs(String),
    /// Somebody else's value.
    #[error("{key} in etcd was not written by this API server; choose another --etcd-prefix")]
    Foreign { key: String },
    /// A later release wrote it.
    #[error(
        "{what} has the store format {format}, and this release reads up to {reads}: a later release wrote it; \
         run that one, or a later one still. Nothing was changed"
    )]
    Newer { what: String, format: u32, reads: u32 },
    /// The disk said no.
    #[error("{what}: {why}")]
    Io { what: String, why: std::io::Error },
}

/// What helps where `file` is damaged.
fn way_out(file: &str) -> &'static str {
    if file.ends_with(embedded::LOG) { "restore a snapshot, or replace the disk" } else { "take another snapshot" }
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
        fill(&self.bytes, self.stamp_at, revision)
    }
}

/// `bytes` with `revision` in decimal at `at`; without it when `at` is beyond the end.
fn fill(bytes: &[u8], at: usize, revision: u64) -> Bytes {
    let Some((head, tail)) = bytes.split_at_checked(at) else { return Bytes::copy_from_slice(bytes) };
    let digits = revision.to_string();
    let mut out = Vec::with_capacity(bytes.len() + digits.len());
    out.extend_from_slice(head);
    out.extend_from_slice(digits.as_bytes());
    out.extend_from_slice(tail);
    Bytes::from(out)
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
    /// Called first, with everything there is, in key order.  Called again when the engine lost
    /// sight of some changes (etcd away for longer than it keeps them): then this takes the
    /// place of the old picture, and whoever needs each change must begin anew.
    fn load(&self, entries: Vec<Entry>, revision: u64);

    /// Called for each batch of writes in the store below the prefix, in order, before they
    /// are answered; `revision` is the store's after it.  `changes` may be empty: then only
    /// the revision went on.  Must be quick, and must not call the store.
    fn apply(&self, changes: &[Change], revision: u64);
}

/// Stream of changes, in order.
pub struct Changes {
    from: UnboundedReceiver<Change>,
    map: Option<Box<dyn Fn(Change) -> Option<Change> + Send + Sync>>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl From<UnboundedReceiver<Change>> for Changes {
    fn from(from: UnboundedReceiver<Change>) -> Changes {
        Changes { from, map: None }
    }
}

impl Changes {
    /// The next change; None: no more will come.
    pub async fn recv(&mut self) -> Option<Change> {
        let change = self.from.recv().await?;
        match &self.map {
            Some(map) => map(change),
            None => Some(change),
        }
    }

    /// The next change if it is there already.
    pub fn try_recv(&mut self) -> Option<Change> {
        let change = self.from.try_recv().ok()?;
        match &self.map {
            Some(map) => map(change),
            None => Some(change),
        }
    }

    /// The same stream with each change made another; it ends where `map` gives None.
    pub(crate) fn map(mut self, map: impl Fn(Change) -> Option<Change> + Send + Sync + 'static) -> Changes {
        self.map = Some(match self.map.take() {
            Some(inner) => Box::new(move |change| inner(change).and_then(&map)),
            None => Box::new(map),
        });
        self
    }
}

/// What an engine has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Groups of writes that were made durable together.
    pub batches: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of their keys and values.
    pub acknowledged_bytes: u64,
    /// Bytes written to files, for whatever reason.
    pub written_bytes: u64,
    /// Times that a file or a directory was made durable.
    pub syncs: u64,
    /// Times that the log was written anew.
    pub rewrites: u64,
    /// Size of the log now.
    pub log_bytes: u64,
    /// Changes kept for watches, and the bytes that their values take.
    pub history: u64,
    pub history_bytes: u64,
}

/// The number of a store's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// What it is written in.
    pub has: u32,
    /// The newest that this release writes.
    pub newest: u32,
}

/// What every engine does.
pub trait Store: Send + Sync {
    /// The newest revision.
    fn revision(&self) -> u64;

    /// A revision no older than any write that was answered, to whichever process, before
    /// this call; reads, watches and observers have reached it.
    fn fresh(&self) -> BoxFuture<'_, Result<u64>>;

    /// The oldest revision that [`Store::watch`] can start after.
    fn compacted(&self) -> u64;

    /// One key, as of now.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>>;

    /// Keys below `prefix` and after `after`, as of now, in order, at most `limit` (0: all), with the
    /// revision of the picture.
    fn range<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<(Vec<Entry>, u64)>>;

    /// Writes; gives the revision once it is durable and observers have seen it.  With
    /// `ttl_seconds` the key goes by itself after that time, or up to a minute later.  A
    /// mismatch, too, is answered when observers have seen what made it one.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Stamped,
        expect: Expect,
        ttl_seconds: Option<u64>,
    ) -> BoxFuture<'a, Result<u64>>;

    /// Removes; gives the revision once it is durable.  A key that is not there is a mismatch.
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64>>;

    /// Changes below `prefix` after `after`; the stream ends when the engine lost sight of
    /// some, and the watch must begin anew.
    fn watch(&self, prefix: &str, after: u64) -> Result<Changes>;

    /// Keeps an observer informed, from its load on.
    fn attach(&self, prefix: &str, observer: Arc<dyn Observer>);

    /// Forgets changes up to `revision`.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>>;

    /// Clears the engine's files of values that are no longer live, as far as it can.
    fn scrub<'a>(&'a self) -> BoxFuture<'a, Result<()>>;

    /// Writes a consistent copy of everything to a new file, while running.
    fn snapshot<'a>(&'a self, to: PathBuf) -> BoxFuture<'a, Result<u64>>;

    /// What the store is written in.
    fn format(&self) -> Format;

    /// Brings it to the newest format, which older releases do not read. The engine may fail
    /// after that, to be opened anew.
    fn raise<'a>(&'a self) -> BoxFuture<'a, Result<()>>;

    /// Why the store takes no more writes, if so.
    fn failure(&self) -> Option<String>;

    /// Why the store does not answer just now, if so; this may pass.
    fn trouble(&self) -> Option<String> {
        self.failure()
    }

    /// Bytes of live values and keys.
    fn live_bytes(&self) -> u64;

    /// What the engine counts; None: it writes no files of its own.
    fn counters(&self) -> Option<Counters>;

    /// Writes what was accepted, and lets the store go for another process; blocks until
    /// that is done.  Later writes fail, reads go on.
    fn close(&self);
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
