//! The embedded engine: the live set in memory, and one append-only log on disk.
//!
//! A writer thread takes what writes have come in, checks each against the newest state,
//! writes them as one frame, syncs once, shows them to readers and observers, and only then
//! answers.  When the log is much larger than the live set, a fresh log is written beside
//! it (by a thread of its own) and takes its place before it is twice as large.

mod counting;
mod open;
mod rewrite;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

pub use open::{Report, format_of, oldest_format, read_picture, restore, verify, write_picture_file, write_store};
pub(crate) use open::{beyond, load_picture};

use crate::frame::FORMATS;
use crate::io::Disk;
use crate::state::{Keep, Shared};
use crate::{Changes, Counters, Entry, Expect, Format, Observer, Result, Stamped, Store, StoreError};
use counting::{Counting, Counts};
use writer::{Op, Request};

/// Name of the log in its directory.
pub(crate) const LOG: &str = "store.log";
/// Name of the log that is being written to take its place.
pub(crate) const LOG_NEW: &str = "store.log.new";

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes kept for watches, and the bytes of their keys and values; one is kept in any case.
    pub history: usize,
    pub history_bytes: u64,
    /// Changes older than this are forgotten, as upstream's compaction every five minutes does.
    pub history_age: Duration,
    /// The log is written anew before it is larger than this and than twice the live set.
    pub min_log_bytes: u64,
    /// A log with things in it that are no longer live is written anew after this time.
    pub log_age: Duration,
    /// Seconds since 1970; for expiry.
    pub clock: fn() -> u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            history: 4096,
            history_bytes: 4 << 20,
            history_age: Duration::from_secs(300),
            min_log_bytes: 8 << 20,
            log_age: Duration::from_secs(24 * 3600),
            clock: crate::unix_now,
        }
    }
}

impl Options {
    fn keep(&self) -> Keep {
        Keep { changes: self.history, bytes: self.history_bytes }
    }
}

/// The engine; dropping it ends the writer after what was accepted is written.
pub struct Embedded {
    shared: Arc<Shared>,
    counts: Arc<Counts>,
    clock: fn() -> u64,
    requests: Mutex<Option<Sender<Request>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Embedded")
    }
}

impl Embedded {
    /// Opens the store on `disk`; makes it if there is none.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Embedded> {
        let counts = Arc::new(Counts::default());
        let disk: Arc<dyn Disk> = Arc::new(Counting { disk, counts: counts.clone() });
        let opened = open::open(disk.as_ref(), &options)?;
        let shared = Arc::new(Shared::new(opened.state, options.keep()));
        let (requests, inbox) = channel();
        let clock = options.clock;
        let log = writer::Log { file: opened.file, bytes: opened.log_bytes, format: opened.format };
        let writer = writer::Writer::new(disk, options, shared.clone(), counts.clone(), log, requests.clone());
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|why| StoreError::Io { what: "starting the store's writer thread".into(), why })?;
        Ok(Embedded { shared, counts, clock, requests: Mutex::new(Some(requests)), writer: Mutex::new(Some(thread)) })
    }

    async fn ask(&self, op: Op) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        let sent = {
            let requests = self.requests.lock().unwrap_or_else(|e| e.into_inner());
            requests.as_ref().is_some_and(|r| r.send(Request { op, reply: Some(reply) }).is_ok())
        };
        let gone = || StoreError::Failed("the writer has ended".into());
        if !sent {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Embedded {
    fn revision(&self) -> u64 {
        self.shared.read().revision
    }

    fn compacted(&self) -> u64 {
        self.shared.read().compacted
    }

    fn fresh(&self) -> BoxFuture<'_, Result<u64>> {
        // No other process writes, and a write is shown before it is answered.
        let revision = self.revision();
        async move { Ok(revision) }.boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>> {
        let found = self.shared.read().live.get(key).cloned();
        async move { Ok(found) }.boxed()
    }

    fn range<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<(Vec<Entry>, u64)>> {
        let answer = self.shared.read().range(prefix, after, limit);
        async move { Ok(answer) }.boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Stamped,
        expect: Expect,
        ttl_seconds: Option<u64>,
    ) -> BoxFuture<'a, Result<u64>> {
        let size = value.bytes.len();
        if size > crate::MAX_VALUE {
            return async move { Err(StoreError::TooLarge { size }) }.boxed();
        }
        let expires = ttl_seconds.map_or(0, |ttl| (self.clock)() + ttl);
        self.ask(Op::Put { key: key.into(), value, expect, expires }).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64>> {
        self.ask(Op::Delete { key: key.into(), expect }).boxed()
    }

    fn watch(&self, prefix: &str, after: u64) -> Result<Changes> {
        self.shared.watch(prefix, after)
    }

    fn attach(&self, prefix: &str, observer: Arc<dyn Observer>) {
        self.shared.attach(prefix, observer);
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        self.shared.compact(revision);
        async { Ok(()) }.boxed()
    }

    fn scrub<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        async move { self.ask(Op::Scrub).await.map(drop) }.boxed()
    }

    fn snapshot<'a>(&'a self, to: PathBuf) -> BoxFuture<'a, Result<u64>> {
        self.ask(Op::Snapshot { to }).boxed()
    }

    fn format(&self) -> Format {
        Format { has: self.counts.format.load(Ordering::Relaxed), newest: *FORMATS.end() }
    }

    fn raise<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        async move { self.ask(Op::Raise).await.map(drop) }.boxed()
    }

    fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    fn live_bytes(&self) -> u64 {
        self.shared.read().live_bytes
    }

    fn counters(&self) -> Option<Counters> {
        let state = self.shared.read();
        let (history, history_bytes) = (state.history.len() as u64, state.history_bytes);
        Some(Counters { history, history_bytes, ..self.counts.read() })
    }

    fn close(&self) {
        if let Some(requests) = self.requests.lock().unwrap_or_else(|e| e.into_inner()).take() {
            // A failing send means that the writer has ended already.
            let _ended = requests.send(Request { op: Op::End, reply: None });
        }
        if let Some(thread) = self.writer.lock().unwrap_or_else(|e| e.into_inner()).take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread ended in a panic");
        }
    }
}

#[cfg(test)]
mod mix_tests;
#[cfg(test)]
mod tests;
