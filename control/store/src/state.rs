//! The live set as readers and observers see it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::{Change, Changes, Entry, Observer, Result, StoreError};

/// Bounds of the history; one change is kept in any case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) changes: usize,
    pub(crate) bytes: u64,
}

/// Everything that is durable.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) live: BTreeMap<Arc<str>, Entry>,
    pub(crate) revision: u64,
    /// Changes up to this revision are no longer kept.
    pub(crate) compacted: u64,
    pub(crate) history: VecDeque<Change>,
    pub(crate) history_bytes: u64,
    /// The newest change that the history had and has no longer.
    pub(crate) forgotten: u64,
    pub(crate) live_bytes: u64,
}

/// Bytes of a live key in a picture.
fn weight(entry: &Entry) -> u64 {
    (entry.key.len() + entry.value.len() + 33) as u64
}

fn change_bytes(change: &Change) -> u64 {
    (change.key.len() + change.value.as_ref().map_or(0, Bytes::len)) as u64
}

impl State {
    /// Takes a write in; `keep` bounds the history.
    pub(crate) fn apply(&mut self, key: &Arc<str>, entry: Option<Entry>, revision: u64, keep: Keep) -> Change {
        let value = entry.as_ref().map(|e| e.value.clone());
        match entry {
            Some(entry) => self.set(entry),
            None => {
                let old = self.live.remove(key);
                self.live_bytes = self.live_bytes.saturating_sub(old.as_ref().map_or(0, weight));
            }
        }
        self.revision = self.revision.max(revision);
        let change = Change { key: key.clone(), revision, value };
        self.history_bytes += change_bytes(&change);
        self.history.push_back(change.clone());
        while self.history.len() > 1 && (self.history.len() > keep.changes || self.history_bytes > keep.bytes) {
            self.forget_one();
        }
        change
    }

    /// Makes a key live.
    pub(crate) fn set(&mut self, entry: Entry) {
        self.live_bytes += weight(&entry);
        if let Some(old) = self.live.insert(entry.key.clone(), entry) {
            self.live_bytes = self.live_bytes.saturating_sub(weight(&old));
        }
    }

    fn forget_one(&mut self) {
        if let Some(gone) = self.history.pop_front() {
            self.history_bytes = self.history_bytes.saturating_sub(change_bytes(&gone));
            self.forgotten = self.forgotten.max(gone.revision);
            self.compacted = self.compacted.max(gone.revision);
        }
    }

    pub(crate) fn range(&self, prefix: &str, after: &str, limit: usize) -> (Vec<Entry>, u64) {
        let from: Bound<&str> = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let limit = if limit == 0 { usize::MAX } else { limit };
        let found = self.live.range::<str, _>((from, Bound::Unbounded)).map(|(_, e)| e);
        (found.take_while(|e| e.key.starts_with(prefix)).take(limit).cloned().collect(), self.revision)
    }
}

struct Watcher {
    prefix: String,
    out: UnboundedSender<Change>,
}

/// State with those who follow it.
pub(crate) struct Shared {
    state: RwLock<State>,
    observers: Mutex<Vec<(String, Arc<dyn Observer>)>>,
    watchers: Mutex<Vec<Watcher>>,
    failure: Mutex<Option<String>>,
    keep: Keep,
}

impl Shared {
    pub(crate) fn new(state: State, keep: Keep) -> Shared {
        Shared {
            state: RwLock::new(state),
            observers: Mutex::new(Vec::new()),
            watchers: Mutex::new(Vec::new()),
            failure: Mutex::new(None),
            keep,
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub(crate) fn fail(&self, what: &str) {
        self.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert_with(|| what.to_string());
    }

    /// Shows a durable batch to everybody.
    pub(crate) fn commit(&self, batch: Vec<(Arc<str>, Option<Entry>, u64)>) {
        let mut state = self.write();
        let changes: Vec<Change> =
            batch.into_iter().map(|(key, entry, revision)| state.apply(&key, entry, revision, self.keep)).collect();
        let revision = state.revision;
        for (prefix, observer) in self.observers.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            if changes.iter().all(|c| c.key.starts_with(prefix.as_str())) {
                observer.apply(&changes, revision);
            } else {
                let own: Vec<Change> = changes.iter().filter(|c| c.key.starts_with(prefix.as_str())).cloned().collect();
                observer.apply(&own, revision);
            }
        }
        self.watchers.lock().unwrap_or_else(|e| e.into_inner()).retain(|watcher| {
            changes.iter().filter(|c| c.key.starts_with(&watcher.prefix)).all(|c| watcher.out.send(c.clone()).is_ok())
                && !watcher.out.is_closed()
        });
    }

    /// The store's revision went on, and nothing here changed.
    pub(crate) fn advance(&self, revision: u64) {
        let mut state = self.write();
        if revision > state.revision {
            state.revision = revision;
            for (_, observer) in self.observers.lock().unwrap_or_else(|e| e.into_inner()).iter() {
                observer.apply(&[], revision);
            }
        }
    }

    /// Adds a change that the picture has already to the end of the history.
    pub(crate) fn remember(&self, change: Change) {
        let mut state = self.write();
        state.history_bytes += change_bytes(&change);
        state.history.push_back(change);
    }

    /// Empties the history.
    pub(crate) fn forget(&self) {
        let mut state = self.write();
        state.history.clear();
        state.history_bytes = 0;
    }

    /// The history has all changes after `revision`, but for those that were too many.
    pub(crate) fn kept_from(&self, revision: u64) {
        let mut state = self.write();
        while state.history.len() > self.keep.changes || state.history_bytes > self.keep.bytes {
            state.forget_one();
        }
        state.compacted = revision.max(state.forgotten);
    }

    /// Puts a new picture in the place of the old one, as changes between them were missed.
    pub(crate) fn reload(&self, new: State) {
        let mut state = self.write();
        *state = new;
        for (prefix, observer) in self.observers.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let (entries, revision) = state.range(prefix, "", 0);
            observer.load(entries, revision);
        }
        self.watchers.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }

    pub(crate) fn watch(&self, prefix: &str, after: u64) -> Result<Changes> {
        // The lock keeps commits out between the replay and the registration.
        let state = self.read();
        if after < state.compacted {
            return Err(StoreError::Compacted { asked: after, kept: state.compacted });
        }
        let (out, changes) = unbounded_channel();
        for change in state.history.iter().filter(|c| c.revision > after && c.key.starts_with(prefix)) {
            // The receiver is still in our hands.
            let _sent = out.send(change.clone());
        }
        self.watchers.lock().unwrap_or_else(|e| e.into_inner()).push(Watcher { prefix: prefix.to_string(), out });
        Ok(changes.into())
    }

    pub(crate) fn attach(&self, prefix: &str, observer: Arc<dyn Observer>) {
        let state = self.read();
        let (entries, revision) = state.range(prefix, "", 0);
        observer.load(entries, revision);
        self.observers.lock().unwrap_or_else(|e| e.into_inner()).push((prefix.to_string(), observer));
    }

    pub(crate) fn compact(&self, revision: u64) {
        let mut state = self.write();
        let revision = revision.min(state.revision);
        while state.history.front().is_some_and(|c| c.revision <= revision) {
            state.forget_one();
        }
        state.compacted = state.compacted.max(revision);
    }
}
