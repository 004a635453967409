//! A store for tests that does not answer some writes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use store::{
    Changes, Counters, Embedded, Entry, Expect, Format, Observer, Options, Result, Stamped, Store, StoreError,
};

/// The embedded store in a folder of its own.
pub(crate) struct Flaky {
    store: Embedded,
    /// How many writes it does not answer from now on, and whether it does them.
    lost: AtomicUsize,
    done: AtomicBool,
    _folder: tempfile::TempDir,
}

impl Flaky {
    pub(crate) fn new() -> Flaky {
        let folder = tempfile::tempdir().expect("folder");
        let disk = store::DirDisk::open(folder.path()).expect("disk");
        let store = Embedded::open(Arc::new(disk), Options::default()).expect("store");
        Flaky { store, lost: AtomicUsize::new(0), done: AtomicBool::new(false), _folder: folder }
    }

    /// Does not answer this many writes.
    pub(crate) fn lose(&self, writes: usize, done: bool) {
        self.done.store(done, Ordering::SeqCst);
        self.lost.store(writes, Ordering::SeqCst);
    }

    async fn answer(&self, write: BoxFuture<'_, Result<u64>>) -> Result<u64> {
        if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return write.await;
        }
        if self.done.load(Ordering::SeqCst) {
            write.await?;
        }
        Err(StoreError::Unavailable("no answer".into()))
    }
}

impl Store for Flaky {
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Stamped,
        expect: Expect,
        ttl_seconds: Option<u64>,
    ) -> BoxFuture<'a, Result<u64>> {
        self.answer(self.store.put(key, value, expect, ttl_seconds)).boxed()
    }
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64>> {
        self.answer(self.store.delete(key, expect)).boxed()
    }
    fn revision(&self) -> u64 {
        self.store.revision()
    }
    fn fresh(&self) -> BoxFuture<'_, Result<u64>> {
        self.store.fresh()
    }
    fn compacted(&self) -> u64 {
        self.store.compacted()
    }
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>> {
        self.store.get(key)
    }
    fn range<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<(Vec<Entry>, u64)>> {
        self.store.range(prefix, after, limit)
    }
    fn watch(&self, prefix: &str, after: u64) -> Result<Changes> {
        self.store.watch(prefix, after)
    }
    fn attach(&self, prefix: &str, observer: Arc<dyn Observer>) {
        self.store.attach(prefix, observer);
    }
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        self.store.compact(revision)
    }
    fn scrub<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        self.store.scrub()
    }
    fn snapshot<'a>(&'a self, to: PathBuf) -> BoxFuture<'a, Result<u64>> {
        self.store.snapshot(to)
    }
    fn format(&self) -> Format {
        self.store.format()
    }
    fn raise<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        self.store.raise()
    }
    fn failure(&self) -> Option<String> {
        self.store.failure()
    }
    fn live_bytes(&self) -> u64 {
        self.store.live_bytes()
    }
    fn counters(&self) -> Option<Counters> {
        self.store.counters()
    }
    fn close(&self) {
        self.store.close();
    }
}
