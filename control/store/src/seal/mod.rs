//! Encryption at rest: a layer between the server and any engine.
//!
//! [`Sealed`] is a [`Store`] over another one.  What its [`Keyring`] covers is sealed before the
//! engine gets it, so that neither the engine's files nor its snapshots nor its memory have it
//! plain.  Keys change while the server runs: [`Sealed::reload`] takes new ones, and
//! [`Sealed::rewrite`] seals anew what the old ones sealed.

mod key;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use futures::FutureExt;
use futures::future::BoxFuture;

pub use key::Key;
pub use ring::{Keyring, Rule};

use crate::{Change, Changes, Counters, Entry, Expect, Format, Observer, Result, Stamped, Store, StoreError, unix_now};

/// Entries looked at in one go.
const PAGE: usize = 500;

/// How many values each key has sealed, by the key's id; `identity` counts those that are plain
/// though a rule covers them.
pub type Usage = BTreeMap<String, usize>;

/// Counts values by key, as an engine has them; no key is needed for it.  `covered` says which names a rule covers.
pub fn usage_of<'a>(entries: impl IntoIterator<Item = &'a Entry>, covered: impl Fn(&str) -> bool) -> Usage {
    let mut usage = Usage::new();
    for entry in entries {
        match ring::value_id(&entry.value) {
            Some(id) => *usage.entry(id.to_string()).or_default() += 1,
            None if covered(&entry.key) => *usage.entry("identity".into()).or_default() += 1,
            None => {}
        }
    }
    usage
}

/// The layer.
pub struct Sealed {
    inner: Arc<dyn Store>,
    lock: Arc<Lock>,
    /// Held shared by writes and alone by a change of keys, so that no write with old keys ends
    /// after it.
    gate: tokio::sync::RwLock<()>,
    seen: Mutex<Seen>,
}

/// What was found when all values were last looked through.
struct Seen {
    usage: Usage,
    /// How many are not sealed as the rules of now say.
    others: usize,
}

/// What readers and observers need.
struct Lock {
    ring: RwLock<Arc<Keyring>>,
    failure: Mutex<Option<String>>,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealed")
    }
}

impl Lock {
    fn ring(&self) -> Arc<Keyring> {
        self.ring.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Something arrived that cannot be opened: what is served would no longer be the truth.
    fn fail(&self, error: &StoreError) {
        tracing::error!("{error}");
        self.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert_with(|| error.to_string());
    }

    fn open_change(&self, ring: &Keyring, change: &Change) -> Option<Change> {
        let Some(value) = &change.value else { return Some(change.clone()) };
        match ring.open(&change.key, value, change.revision) {
            Ok(value) => Some(Change { value: Some(value), ..change.clone() }),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }
}

impl Sealed {
    /// Puts the layer over an engine, once every value in it can be opened.
    pub async fn open(inner: Arc<dyn Store>, ring: Keyring) -> Result<Sealed> {
        let seen = census(inner.as_ref(), &ring).await?;
        let lock = Lock { ring: RwLock::new(Arc::new(ring)), failure: Mutex::new(None) };
        Ok(Sealed { inner, lock: Arc::new(lock), gate: tokio::sync::RwLock::new(()), seen: Mutex::new(seen) })
    }

    /// Takes new keys and rules; refuses them when they do not open everything that is stored.
    pub async fn reload(&self, ring: Keyring) -> Result<()> {
        let _alone = self.gate.write().await;
        *self.seen() = census(self.inner.as_ref(), &ring).await?;
        *self.lock.ring.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(ring);
        Ok(())
    }

    /// Values by key, as they were when last looked through: at the start, after each change of
    /// keys and each rewriting, and whenever they are counted.
    pub fn usage(&self) -> Usage {
        self.seen().usage.clone()
    }

    /// Whether another server has sealed something by a key that does not write here, as of the
    /// last look.
    pub fn has_others(&self) -> bool {
        self.seen().others > 0
    }

    /// Looks all values through, and writes none.
    pub async fn count(&self) -> Result<()> {
        let ring = self.lock.ring();
        let seen = census(self.inner.as_ref(), &ring).await?;
        *self.seen() = seen;
        Ok(())
    }

    /// Ids of the keys at hand, in their order.
    pub fn keys(&self) -> Vec<String> {
        self.lock.ring().ids()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Seals anew whatever is not sealed by the key that writes it, while everything goes on,
    /// and lets the engine clear its files of what was.  `encode` makes the hole for the revision
    /// again in a value that is stored plain.  Gives how many values it wrote.
    pub async fn rewrite(&self, encode: impl Fn(&Entry) -> Result<Stamped>) -> Result<usize> {
        let mut written = 0;
        let mut after = String::new();
        loop {
            let (page, _) = self.inner.range("", &after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.key.to_string();
            for entry in page {
                written += usize::from(self.rewrite_one(entry, &encode).await?);
            }
        }
        if written > 0 {
            self.inner.scrub().await?;
        }
        self.count().await?;
        Ok(written)
    }

    async fn rewrite_one(&self, entry: Entry, encode: impl Fn(&Entry) -> Result<Stamped>) -> Result<bool> {
        let _shared = self.gate.read().await;
        let ring = self.lock.ring();
        if ring.is_current(&entry) {
            return Ok(false);
        }
        let value = if key::is_sealed(&entry.value) { ring.unseal(&entry.key, &entry.value)? } else { encode(&entry)? };
        let value = ring.seal(&entry.key, value)?;
        let ttl = (entry.expires > 0).then(|| entry.expires.saturating_sub(unix_now()).max(1));
        match self.inner.put(&entry.key, value, Expect::At(entry.revision), ttl).await {
            Ok(_) => Ok(true),
            // Somebody wrote it in the meantime, with the new key, or removed it.
            Err(StoreError::Mismatch) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Counts values by key, and makes sure that each can be opened.
async fn census(store: &dyn Store, ring: &Keyring) -> Result<Seen> {
    let mut seen = Seen { usage: Usage::new(), others: 0 };
    let mut after = String::new();
    loop {
        let (page, _) = store.range("", &after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(seen) };
        after = last.key.to_string();
        for entry in &page {
            ring.open(&entry.key, &entry.value, entry.revision)?;
            seen.others += usize::from(!ring.is_current(entry));
        }
        for (id, count) in usage_of(&page, |name| ring.seals(name)) {
            *seen.usage.entry(id).or_default() += count;
        }
    }
}

/// Opens what an observer gets.
struct Opening {
    to: Arc<dyn Observer>,
    lock: Arc<Lock>,
}

impl Observer for Opening {
    fn load(&self, entries: Vec<Entry>, revision: u64) {
        let ring = self.lock.ring();
        let open = |entry| ring.open_entry(entry).map_err(|error| self.lock.fail(&error)).ok();
        self.to.load(entries.into_iter().filter_map(open).collect(), revision);
    }

    fn apply(&self, changes: &[Change], revision: u64) {
        let ring = self.lock.ring();
        let as_it_is = |c: &Change| c.value.as_deref().is_none_or(|v| !key::is_sealed(v) && ring.takes_plain(&c.key));
        if changes.iter().all(as_it_is) {
            return self.to.apply(changes, revision);
        }
        let opened: Vec<Change> = changes.iter().filter_map(|c| self.lock.open_change(&ring, c)).collect();
        self.to.apply(&opened, revision);
    }
}

impl Store for Sealed {
    fn revision(&self) -> u64 {
        self.inner.revision()
    }

    fn compacted(&self) -> u64 {
        self.inner.compacted()
    }

    fn fresh(&self) -> BoxFuture<'_, Result<u64>> {
        self.inner.fresh()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>> {
        async move { self.inner.get(key).await?.map(|e| self.lock.ring().open_entry(e)).transpose() }.boxed()
    }

    fn range<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<(Vec<Entry>, u64)>> {
        async move {
            let (entries, revision) = self.inner.range(prefix, after, limit).await?;
            let ring = self.lock.ring();
            let opened: Result<Vec<Entry>> = entries.into_iter().map(|e| ring.open_entry(e)).collect();
            Ok((opened?, revision))
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Stamped,
        expect: Expect,
        ttl_seconds: Option<u64>,
    ) -> BoxFuture<'a, Result<u64>> {
        async move {
            let _shared = self.gate.read().await;
            if let Some(what) = self.failure() {
                return Err(StoreError::Failed(what));
            }
            let value = self.lock.ring().seal(key, value)?;
            self.inner.put(key, value, expect, ttl_seconds).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64>> {
        self.inner.delete(key, expect)
    }

    fn watch(&self, prefix: &str, after: u64) -> Result<Changes> {
        let lock = self.lock.clone();
        Ok(self.inner.watch(prefix, after)?.map(move |change| lock.open_change(&lock.ring(), &change)))
    }

    fn attach(&self, prefix: &str, observer: Arc<dyn Observer>) {
        self.inner.attach(prefix, Arc::new(Opening { to: observer, lock: self.lock.clone() }));
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        self.inner.compact(revision)
    }

    fn scrub<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        self.inner.scrub()
    }

    fn snapshot<'a>(&'a self, to: PathBuf) -> BoxFuture<'a, Result<u64>> {
        self.inner.snapshot(to)
    }

    fn format(&self) -> Format {
        self.inner.format()
    }

    fn raise<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        self.inner.raise()
    }

    fn failure(&self) -> Option<String> {
        self.lock.failure.lock().unwrap_or_else(|e| e.into_inner()).clone().or_else(|| self.inner.failure())
    }

    fn trouble(&self) -> Option<String> {
        self.failure().or_else(|| self.inner.trouble())
    }

    fn live_bytes(&self) -> u64 {
        self.inner.live_bytes()
    }

    fn counters(&self) -> Option<Counters> {
        self.inner.counters()
    }

    fn close(&self) {
        self.inner.close();
    }
}
