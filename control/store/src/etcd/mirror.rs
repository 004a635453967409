//! The live set in memory, kept as etcd has it by one watch.
//!
//! ```text
//! load: a picture at revision R, page by page
//!   └─► watch from before R: what is older than R fills the history only
//!         ├─ events ──► shown to readers and observers, in order, each once
//!         ├─ progress ► nothing else happened up to this revision
//!         ├─ lost ────► again, at another member, after the last revision shown
//!         ├─ compacted► a new picture takes the old one's place
//!         └─ root key ► the store was restored or moved: fail, to be started anew
//! ```
//!
//! Revisions here are etcd's own (`i64`); those of the store are told to [`Shared`] only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::client::{Again, CallError, Client};
use super::root::{Found, Layout, after_prefix};
use super::value;
use super::wire::{
    self, Event, Headed, KeyValue, RangeRequest, RangeResponse, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse, WatchWish,
};
use crate::state::{Keep, Shared, State};
use crate::{Entry, Result, StoreError};

/// Keys in one page of a picture.
const PAGE: i64 = 500;
/// A reader that waits this long has us ask for progress.
const PATIENCE: Duration = Duration::from_millis(20);
/// A member that does not say how far it is in this time is given up.
const SILENCE: Duration = Duration::from_secs(3);
/// A reader waits for a revision at most this long.
const REACH: Duration = Duration::from_secs(10);
/// Between tries to watch.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Mirror {
    pub(crate) client: Arc<Client>,
    pub(crate) layout: Layout,
    pub(crate) found: Found,
    pub(crate) shared: Arc<Shared>,
    /// The history is whole after this revision of etcd.
    kept: AtomicI64,
    /// What stands before our keys in etcd.
    objects: String,
    /// etcd's own revision of the keys that carry another one.
    carried: Mutex<HashMap<Arc<str>, i64>>,
    /// Everything up to here was shown.
    seen: watch::Sender<i64>,
    /// Somebody waits for a later revision.
    wanted: Notify,
    trouble: Mutex<Option<String>>,
}

/// Why a watch ended.
enum End {
    /// The connection, or the member's leader.
    Lost(String),
    /// What comes next is gone; kept is what comes after this revision.
    Compacted(i64),
    /// Nothing more can be shown.
    Failed(String),
}

impl Mirror {
    /// Loads a picture; gives its revision.  [`Mirror::follow`] then brings the history before
    /// it, as far as etcd has it, and what comes after it.
    pub(crate) async fn load(client: Arc<Client>, layout: Layout, found: Found, keep: Keep) -> Result<(Mirror, i64)> {
        let objects = layout.objects(found.root.generation);
        let mut mirror = Mirror {
            client,
            layout,
            found,
            shared: Arc::new(Shared::new(State::default(), keep)),
            kept: AtomicI64::new(0),
            objects,
            carried: Mutex::default(),
            seen: watch::Sender::new(0),
            wanted: Notify::new(),
            trouble: Mutex::new(None),
        };
        let (state, revision) = mirror.picture().await?;
        mirror.shared = Arc::new(Shared::new(state, keep));
        // Before the root key's last write this store was not.
        let from = revision.saturating_sub(keep.changes as i64).max(mirror.found.written);
        mirror.seen.send_replace(from);
        mirror.kept.store(from, Ordering::Relaxed);
        Ok((mirror, revision))
    }

    /// The store's revision for one of etcd's.
    pub(crate) fn outer(&self, revision: i64) -> u64 {
        self.found.root.base.saturating_add(revision.max(0) as u64)
    }

    /// etcd's revision for the last write of a key that clients know by one of the store's.
    pub(crate) fn written(&self, key: &str, revision: u64) -> Option<i64> {
        let carried = self.carried.lock().unwrap_or_else(|e| e.into_inner()).get(key).copied();
        if carried.is_some() && self.shared.read().live.get(key).is_some_and(|e| e.revision == revision) {
            return carried;
        }
        self.inner(revision).filter(|r| *r > 0)
    }

    /// etcd's revision for one of the store's; None: it is of another time.
    pub(crate) fn inner(&self, revision: u64) -> Option<i64> {
        revision.checked_sub(self.found.root.base).and_then(|r| i64::try_from(r).ok())
    }

    /// etcd's name of a key.
    pub(crate) fn key(&self, key: &str) -> bytes::Bytes {
        format!("{}{key}", self.objects).into()
    }

    /// Waits until everything up to etcd's `revision` was shown.
    pub(crate) async fn reach(&self, revision: i64) -> Result<()> {
        let mut seen = self.seen.subscribe();
        let deadline = Instant::now() + REACH;
        while *seen.borrow_and_update() < revision {
            if let Some(what) = self.shared.failure() {
                return Err(StoreError::Failed(what));
            }
            if Instant::now() > deadline {
                let why = self.trouble().unwrap_or_else(|| "the watch is behind".into());
                return Err(StoreError::Unavailable(format!(
                    "its changes up to revision {} did not come within {} seconds: {why}",
                    self.outer(revision),
                    REACH.as_secs()
                )));
            }
            match tokio::time::timeout(PATIENCE, seen.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(StoreError::Failed("the store was closed".into())),
                Err(_) => self.wanted.notify_one(),
            }
        }
        Ok(())
    }

    /// Says that the history is in: watches may begin in it.
    pub(crate) fn history_is_whole(&self) {
        self.shared.kept_from(self.outer(self.kept.load(Ordering::Relaxed)));
    }

    fn forget(&self, revision: i64) {
        self.shared.forget();
        self.kept.store(revision, Ordering::Relaxed);
    }

    /// etcd's revision up to which everything was shown.
    pub(crate) fn seen(&self) -> i64 {
        *self.seen.borrow()
    }

    /// Why changes do not come now, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn set_trouble(&self, what: Option<String>) {
        *self.trouble.lock().unwrap_or_else(|e| e.into_inner()) = what;
    }

    /// Follows etcd until the store fails.
    pub(crate) async fn follow(&self) {
        while self.shared.failure().is_none() {
            match self.watch().await {
                End::Lost(why) => {
                    tracing::warn!("the watch on etcd was lost, and begins again: {why}");
                    self.set_trouble(Some(why));
                    tokio::time::sleep(PAUSE).await;
                }
                End::Compacted(kept) if self.outer(kept) <= self.shared.read().revision => {
                    // Only history is missing that we did not have yet.
                    self.forget(kept);
                    self.seen.send_replace(kept);
                }
                End::Compacted(_) => self.reload().await,
                End::Failed(what) => {
                    tracing::error!("{what}");
                    self.shared.fail(&what);
                }
            }
        }
    }

    async fn reload(&self) {
        match self.picture().await {
            Ok((state, revision)) => {
                tracing::warn!("etcd compacted changes that were not seen yet: watches begin anew");
                self.shared.reload(state);
                self.seen.send_replace(revision);
            }
            Err(error @ StoreError::Foreign { .. }) => {
                self.shared.fail(&error.to_string());
            }
            Err(error) => {
                self.set_trouble(Some(error.to_string()));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Everything there is, at one revision of etcd.
    async fn picture(&self) -> Result<(State, i64)> {
        let mut state = State::default();
        let mut carried = HashMap::new();
        let revision = pages(&self.client, &format!("{}/", self.objects), |kv| {
            let entry = self.entry(kv)?;
            if entry.revision != self.outer(kv.mod_revision) {
                carried.insert(entry.key.clone(), kv.mod_revision);
            }
            state.set(entry);
            Ok(())
        })
        .await?;
        *self.carried.lock().unwrap_or_else(|e| e.into_inner()) = carried;
        state.revision = self.outer(revision);
        // Nothing is kept yet; the watch brings what is.
        state.compacted = state.revision;
        Ok((state, revision))
    }

    fn entry(&self, kv: &KeyValue) -> Result<Entry> {
        super::picture::entry(kv, &self.objects, self.found.root.base)
    }

    /// Our name of etcd's key; None: it is none of our objects.
    fn name<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.objects).filter(|k| k.starts_with('/'))
    }

    async fn watch(&self) -> End {
        let (wishes, requests) = mpsc::unbounded_channel();
        let (key, range_end) = self.layout.all();
        let start_revision = self.seen() + 1;
        let create = WatchCreateRequest { key, range_end, start_revision, progress_notify: true };
        let wish = |wish| WatchRequest { wish: Some(wish) };
        // The receiver is still in our hands.
        drop(wishes.send(wish(WatchWish::Create(create))));
        let opened = self.client.stream(wire::WATCH, UnboundedReceiverStream::new(requests)).await;
        let (connection, mut answers) = match opened {
            Ok(opened) => opened,
            Err(error) => return End::Lost(error.to_string()),
        };
        // Since when we wait for an answer about progress.
        let mut asked: Option<Instant> = None;
        let lost = |why: String| {
            self.client.give_up(&connection);
            End::Lost(why)
        };
        loop {
            let silence = tokio::time::sleep_until((asked.unwrap_or_else(Instant::now) + SILENCE).into());
            let answer: WatchResponse = tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return lost("the member ended it".into()),
                    Err(status) => return lost(format!("etcd says: {}", status.message())),
                },
                () = self.wanted.notified(), if asked.is_none() => {
                    asked = Some(Instant::now());
                    if wishes.send(wish(WatchWish::Progress(WatchProgressRequest {}))).is_err() {
                        return lost("the connection was closed".into());
                    }
                    continue;
                }
                () = silence, if asked.is_some() => {
                    return lost(format!("the member was silent for {} seconds", SILENCE.as_secs()));
                }
            };
            if let Some(end) = self.take(&answer) {
                if matches!(end, End::Lost(_)) {
                    self.client.give_up(&connection);
                }
                return end;
            }
            // Whatever comes shows that the member is alive; who still waits asks again.
            asked = None;
        }
    }

    /// Takes one message in.
    fn take(&self, answer: &WatchResponse) -> Option<End> {
        if answer.header().is_some_and(|h| h.cluster_id != self.found.cluster) {
            return Some(End::Failed("etcd is another cluster than before: its endpoints lead elsewhere now".into()));
        }
        if answer.canceled {
            return Some(match answer.compact_revision {
                0 => End::Lost(format!("etcd says: {}", answer.cancel_reason)),
                kept => End::Compacted(kept),
            });
        }
        self.set_trouble(None);
        if answer.created {
            return None;
        }
        if answer.events.is_empty() {
            let revision = answer.revision();
            if revision > self.seen() {
                self.shared.advance(self.outer(revision));
                self.seen.send_replace(revision);
            }
            return None;
        }
        match self.show(&answer.events) {
            Ok(()) => None,
            Err(error) => Some(End::Failed(error.to_string())),
        }
    }

    /// Shows events, which are in order and complete for each revision.
    fn show(&self, events: &[Event]) -> Result<()> {
        let shown = self.shared.read().revision;
        let mut batch = Vec::with_capacity(events.len());
        let mut last = self.seen();
        for (event, kv) in events.iter().filter_map(|e| Some((e, e.kv.as_ref()?))) {
            last = last.max(kv.mod_revision);
            let revision = self.outer(kv.mod_revision);
            let Some(name) = self.name(&kv.key) else {
                if kv.key == self.layout.root() && kv.mod_revision > self.found.written {
                    return Err(replaced());
                }
                continue;
            };
            if revision > shown {
                let entry = if event.kind == 0 { Some(self.entry(kv)?) } else { None };
                batch.push((Arc::from(name), entry, revision));
            } else {
                self.remember(name, event.kind == 0, kv);
            }
        }
        if !batch.is_empty() {
            let mut carried = self.carried.lock().unwrap_or_else(|e| e.into_inner());
            if !carried.is_empty() {
                batch.iter().for_each(|(key, ..)| {
                    carried.remove(key);
                });
            }
            drop(carried);
            self.shared.commit(batch);
        }
        self.shared.advance(self.outer(last));
        self.seen.send_replace(last);
        Ok(())
    }

    /// A change that the picture has already: only watches that begin before it want it.
    fn remember(&self, name: &str, put: bool, kv: &KeyValue) {
        let revision = self.outer(kv.mod_revision);
        let read = if put { value::decode(name, &kv.value, revision).map(Some) } else { Ok(None) };
        match read.map(|r| r.map(|r| r.value)) {
            Ok(value) => self.shared.remember(crate::Change { key: name.into(), revision, value }),
            // Not ours: history begins after it.
            Err(_) => self.forget(kv.mod_revision),
        }
    }
}

/// The sentence for a store whose root key has changed.
pub(crate) fn replaced() -> StoreError {
    StoreError::Failed(
        "the store in etcd was restored, moved or brought to a newer format; start the server anew".into(),
    )
}

/// Reads all keys that begin with `prefix` in a picture of one revision; gives it.
pub(crate) async fn pages(client: &Client, prefix: &str, mut each: impl FnMut(&KeyValue) -> Result<()>) -> Result<i64> {
    let (mut key, range_end) = (bytes::Bytes::copy_from_slice(prefix.as_bytes()), after_prefix(prefix));
    let mut revision = 0;
    loop {
        let request =
            RangeRequest { key, range_end: range_end.clone(), limit: PAGE, revision, ..RangeRequest::default() };
        let answer: RangeResponse =
            client.call(wire::RANGE, request, Again::Yes).await.map_err(|e: CallError| StoreError::from(e))?;
        if revision == 0 {
            revision = answer.revision();
        }
        for kv in &answer.kvs {
            each(kv)?;
        }
        match answer.kvs.last() {
            Some(last) if answer.more => {
                let mut next = last.key.to_vec();
                next.push(0);
                key = next.into();
            }
            _ => return Ok(revision),
        }
    }
}
