//! The watch cache of one resource: the newest version of each object, and the changes of
//! the last minutes.
//!
//! Watchers have no queue of their own: each remembers a revision and reads on from there,
//! so that a slow one costs nothing and never holds up a writer.  Who falls behind the kept
//! changes is told to list anew.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use store::{Change, Entry, Observer, Store};
use tokio::sync::watch;

use crate::error::{ApiError, Result};
use crate::object::{Object, Shape};

/// How long changes are kept: pages of one list and resumed watches live as long.
const KEEP: Duration = Duration::from_secs(300);
/// Changes younger than this may take more memory: clients count on them.
const FRESH: Duration = Duration::from_secs(75);
/// Changes kept however old they are.
const KEEP_AT_LEAST: usize = 16;
/// Bytes of fresh changes kept at most, if the objects themselves are not more.
const FRESH_BYTES: usize = 32 << 20;
/// Bytes of older changes kept at most, if a quarter of the objects is not more.
const KEPT_BYTES: usize = 4 << 20;
/// What a change takes beside the bytes of its object.
const CHANGE_BYTES: usize = 512;
/// Changes handed to a watcher at once, and bytes of their objects, about.
const BURST: usize = 256;
const BURST_BYTES: usize = 64 << 10;
/// The field by whose value objects are kept in lanes too: each kubelet lists and watches the pods of its node alone,
/// and what happens on another node is not to wake it.
const INDEXED: &str = "spec.nodeName";
/// How long a read waits for a revision that the cache has not seen.
const WAIT: Duration = Duration::from_secs(3);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub revision: u64,
    /// The new state; on deletion the last one, still at its own revision.
    pub object: Arc<Object>,
    /// The state before, if there was one.
    pub previous: Option<Arc<Object>>,
    at: Instant,
}

impl Event {
    /// The bytes that are kept for this change alone.
    fn bytes(&self) -> usize {
        CHANGE_BYTES + self.previous.as_ref().map_or(0, |p| p.json.len())
    }

    /// The values of the indexed field that it is about: the new one and, if another, the one before.
    fn values(&self, index: Option<usize>) -> impl Iterator<Item = &str> {
        let new = value(&self.object, index);
        let old = self.previous.as_ref().and_then(|previous| value(previous, index));
        new.into_iter().chain(old.filter(|old| Some(*old) != new))
    }
}

/// The objects of one value of the indexed field, and their changes.
#[derive(Default)]
struct Lane {
    objects: Objects,
    /// Those in the history that have the value, or had it before.
    revisions: VecDeque<u64>,
    /// The newest of its changes that is no longer in the history.
    lost: u64,
    /// As the cache's own, for those who watch this value.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    objects: Objects,
    lanes: HashMap<Box<str>, Lane>,
    /// Bytes of `objects`.
    live: usize,
    history: VecDeque<Event>,
    /// Bytes of `history`.
    kept: usize,
    /// All changes after this revision are in `history`.
    oldest: u64,
    /// Pictures of the time before this revision are no longer given, though there may have
    /// been no change since.
    compacted: u64,
    /// Which revision was the newest when.
    marks: VecDeque<(Instant, u64)>,
}

/// The cache; filled by the store, read by all.
pub struct Cache {
    prefix: String,
    shape: Shape,
    inner: RwLock<Inner>,
    /// The store's revision that the cache reflects.
    revision: AtomicU64,
    /// Revision of the last change of this resource; wakes watchers.
    changed: watch::Sender<u64>,
    /// Changes when all watches are to end, as what they watch is no longer served so.
    ended: watch::Sender<()>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Observer for Cache {
    fn load(&self, entries: Vec<Entry>, revision: u64) {
        let mut inner = self.inner.write().unwrap_or_else(|e| e.into_inner());
        // On a later load changes were missed: who is behind must list anew.
        let watched = std::mem::take(&mut *inner).lanes.into_iter();
        let watched = watched.filter(|(_, lane)| lane.changed.receiver_count() > 0);
        let anew = |changed| Lane { lost: revision, changed, ..Lane::default() };
        inner.lanes = watched.map(|(value, lane)| (value, anew(lane.changed))).collect();
        for entry in entries {
            match Object::decode(entry.value, entry.revision, self.shape) {
                Ok(object) => inner.put(&entry.key[self.prefix.len()..], &object, self.index()),
                Err(error) => {
                    tracing::error!("{} is left out, as it cannot be read: {error}", entry.key)
                }
            }
        }
        inner.oldest = revision;
        self.revision.store(revision, Ordering::Release);
        for lane in inner.lanes.values() {
            lane.changed.send_replace(revision);
        }
        drop(inner);
        self.changed.send_replace(revision);
    }

    fn apply(&self, changes: &[Change], revision: u64) {
        if !changes.is_empty() {
            let mut inner = self.inner.write().unwrap_or_else(|e| e.into_inner());
            for change in changes {
                self.take(&mut inner, change);
            }
            inner.trim(Instant::now(), self.index());
            // Under the lock, so that a picture and its revision always belong together.
            self.revision.store(revision, Ordering::Release);
            drop(inner);
            self.changed.send_replace(revision);
        } else {
            self.revision.store(revision, Ordering::Release);
        }
    }
}

/// The object's value of the field that is the `index`th of its shape.
fn value(object: &Object, index: Option<usize>) -> Option<&str> {
    object.fields.get(index?).map(|value| &**value)
}

impl Inner {
    fn put(&mut self, key: &str, object: &Arc<Object>, index: Option<usize>) {
        self.remove(key, index);
        self.live += object.json.len();
        self.objects.insert(key.into(), object.clone());
        if let Some(value) = value(object, index) {
            self.lane(value).objects.insert(key.into(), object.clone());
        }
    }

    fn remove(&mut self, key: &str, index: Option<usize>) {
        let Some(old) = self.objects.remove(key) else { return };
        self.live -= old.json.len();
        if let Some(lane) = value(&old, index).and_then(|value| self.lanes.get_mut(value)) {
            lane.objects.remove(key);
        }
    }

    fn lane(&mut self, value: &str) -> &mut Lane {
        self.lanes.entry(value.into()).or_default()
    }

    /// Writes a change down, also for the lanes that it is about, and wakes who watches those.
    fn record(&mut self, event: Event, index: Option<usize>) {
        for value in event.values(index) {
            let lane = self.lane(value);
            lane.revisions.push_back(event.revision);
            lane.changed.send_replace(event.revision);
        }
        self.kept += event.bytes();
        self.history.push_back(event);
    }

    /// Forgets the oldest change.
    fn forget(&mut self, index: Option<usize>) {
        let Some(event) = self.history.pop_front() else { return };
        self.oldest = event.revision;
        self.kept -= event.bytes();
        for value in event.values(index) {
            let Some(lane) = self.lanes.get_mut(value) else { continue };
            lane.revisions.pop_front_if(|revision| *revision <= event.revision);
            lane.lost = event.revision;
        }
    }

    fn trim(&mut self, now: Instant, index: Option<usize>) {
        while self.history.len() > KEEP_AT_LEAST
            && let Some(front) = self.history.front()
        {
            let age = now.saturating_duration_since(front.at);
            let most = if age <= FRESH { FRESH_BYTES.max(self.live) } else { KEPT_BYTES.max(self.live / 4) };
            if age <= KEEP && self.kept <= most {
                return;
            }
            self.forget(index);
        }
    }

    /// Lets pictures of the past go when their time is over.
    fn age(&mut self, now: Instant, revision: u64) {
        while let Some((at, was)) = self.marks.front()
            && now.saturating_duration_since(*at) > KEEP
        {
            self.compacted = *was;
            self.marks.pop_front();
        }
        self.marks.push_back((now, revision));
        let used = |lane: &Lane| lane.changed.receiver_count() > 0 || !lane.objects.is_empty();
        self.lanes.retain(|_, lane| used(lane) || !lane.revisions.is_empty());
    }
}

impl Cache {
    pub(super) fn attach(store: &Arc<dyn Store>, prefix: &str, shape: Shape) -> Arc<Cache> {
        let cache = Arc::new(Cache {
            prefix: prefix.to_string(),
            shape,
            inner: RwLock::default(),
            revision: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            ended: watch::Sender::new(()),
        });
        store.attach(prefix, cache.clone());
        cache
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(|e| e.into_inner())
    }

    fn take(&self, inner: &mut Inner, change: &Change) {
        let key = &change.key[self.prefix.len()..];
        let previous = inner.objects.get(key).cloned();
        let (kind, object) = match &change.value {
            Some(value) => match Object::decode(value.clone(), change.revision, self.shape) {
                Ok(object) => {
                    inner.put(key, &object, self.index());
                    let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                    (kind, object)
                }
                Err(error) => {
                    tracing::error!("{} is left out, as it cannot be read: {error}", change.key);
                    return;
                }
            },
            None => {
                inner.remove(key, self.index());
                let Some(last) = &previous else { return };
                (EventKind::Deleted, last.clone())
            }
        };
        let event = Event { kind, revision: change.revision, object, previous, at: Instant::now() };
        inner.record(event, self.index());
    }

    /// The field by whose value objects are found quickly, if the resource has it.
    pub fn indexed(&self) -> Option<&'static str> {
        self.index().map(|_| INDEXED)
    }

    fn index(&self) -> Option<usize> {
        self.shape.iter().position(|field| *field == INDEXED)
    }

    /// Forgets what is too old; to be called from time to time.
    pub fn age(&self, now: Instant) {
        let mut inner = self.inner.write().unwrap_or_else(|e| e.into_inner());
        inner.trim(now, self.index());
        let revision = self.revision();
        inner.age(now, revision);
    }

    /// The store's revision that this reflects.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Revision of the last change.
    pub fn last_change(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let inner = self.read();
        if namespace.is_empty() {
            return inner.objects.get(name).cloned();
        }
        inner.objects.get(format!("{namespace}/{name}").as_str()).cloned()
    }

    /// All objects, in one namespace or in all, in key order.
    pub fn list(&self, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.list_after(namespace, "").0
    }

    /// Objects after `key`, with the revision of the picture.
    pub fn list_after(&self, namespace: Option<&str>, after: &str) -> (Vec<Arc<Object>>, u64) {
        let inner = self.read();
        let objects = select(&inner.objects, namespace, after).map(|(_, o)| o.clone()).collect();
        (objects, self.revision())
    }

    /// Objects whose indexed field has this value, in key order, with the revision of the picture.
    pub fn list_of(&self, namespace: Option<&str>, value: &str) -> (Vec<Arc<Object>>, u64) {
        let inner = self.read();
        let objects = inner.lanes.get(value).into_iter().flat_map(|lane| select(&lane.objects, namespace, ""));
        (objects.map(|(_, o)| o.clone()).collect(), self.revision())
    }

    /// The objects as they were at `revision`, after `key`.
    pub fn list_at(&self, namespace: Option<&str>, after: &str, revision: u64) -> Result<Vec<Arc<Object>>> {
        let inner = self.read();
        let oldest = inner.oldest.max(inner.compacted);
        if revision < oldest {
            return Err(ApiError::expired(format!("The provided resource version is too old: {revision} ({oldest})")));
        }
        let newer = inner.history.partition_point(|e| e.revision <= revision);
        if newer == inner.history.len() {
            return Ok(select(&inner.objects, namespace, after).map(|(_, o)| o.clone()).collect());
        }
        // Undo what came later, newest first.
        let mut undone: BTreeMap<Box<str>, Arc<Object>> =
            select(&inner.objects, namespace, after).map(|(k, o)| (k.clone(), o.clone())).collect();
        for event in inner.history.range(newer..).rev() {
            let key = event.object.key();
            match &event.previous {
                Some(previous) => drop(undone.insert(key.into(), previous.clone())),
                None => drop(undone.remove(key.as_str())),
            }
        }
        Ok(select(&undone, namespace, after).map(|(_, o)| o.clone()).collect())
    }

    /// Waits until the cache reflects `revision`; 504 when it does not come.
    pub async fn wait(&self, revision: u64) -> Result<()> {
        let deadline = Instant::now() + WAIT;
        while self.revision() < revision {
            if Instant::now() > deadline {
                let now = self.revision();
                let mut error =
                    ApiError::timeout(format!("Timeout: Too large resource version: {revision}, current: {now}"));
                error.retry_after = Some(1);
                return Err(error.with_cause("ResourceVersionTooLarge", "Too large resource version", ""));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The object that a write at `revision` made; a later version if it was overtaken.
    pub(super) async fn written(&self, namespace: &str, name: &str, revision: u64) -> Result<Arc<Object>> {
        self.wait(revision).await?;
        let inner = self.read();
        let at = inner.history.partition_point(|e| e.revision < revision);
        if let Some(event) = inner.history.get(at).filter(|e| e.revision == revision) {
            return Ok(event.object.clone());
        }
        drop(inner);
        self.get(namespace, name).ok_or_else(|| ApiError::internal("an object was removed as it was written"))
    }

    /// Changes after `revision`; with `only`, those of objects whose indexed field has, or had, this value.
    pub fn watch(self: &Arc<Self>, revision: u64, only: Option<&str>) -> Result<Watch> {
        let changed = self.wake(only);
        let inner = self.read();
        if revision < inner.oldest {
            return Err(too_old(revision, inner.oldest));
        }
        Ok(self.from(changed, revision, only))
    }

    /// Everything there is, and what follows, without a gap; with `only` as [`Cache::watch`] has it.
    pub fn list_and_watch(self: &Arc<Self>, namespace: Option<&str>, only: Option<&str>) -> (Vec<Arc<Object>>, Watch) {
        let changed = self.wake(only);
        let inner = self.read();
        let all = match only {
            Some(value) => inner.lanes.get(value).map(|lane| &lane.objects),
            None => Some(&inner.objects),
        };
        let objects = all.into_iter().flat_map(|all| select(all, namespace, "")).map(|(_, o)| o.clone()).collect();
        (objects, self.from(changed, self.revision(), only))
    }

    /// What wakes who watches. A lane stays for as long as somebody has this of it.
    fn wake(&self, only: Option<&str>) -> watch::Receiver<u64> {
        match only {
            Some(value) => self.inner.write().unwrap_or_else(|e| e.into_inner()).lane(value).changed.subscribe(),
            None => self.changed.subscribe(),
        }
    }

    fn from(self: &Arc<Self>, changed: watch::Receiver<u64>, position: u64, only: Option<&str>) -> Watch {
        Watch { changed, ended: self.ended.subscribe(), cache: self.clone(), position, only: only.map(Box::from) }
    }

    /// Ends all watches of today; for a resource that is no longer served as it was.
    pub fn end_watches(&self) {
        self.ended.send_replace(());
    }
}

fn too_old(revision: u64, oldest: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {revision} ({oldest})"))
}

type Objects = BTreeMap<Box<str>, Arc<Object>>;

fn select<'a>(
    objects: &'a Objects,
    namespace: Option<&str>,
    after: &str,
) -> impl Iterator<Item = (&'a Box<str>, &'a Arc<Object>)> {
    let prefix = namespace.filter(|n| !n.is_empty()).map(|n| format!("{n}/")).unwrap_or_default();
    let from: Bound<&str> = if after.is_empty() { Bound::Included(&prefix) } else { Bound::Excluded(after) };
    let found = objects.range::<str, _>((from, Bound::Unbounded));
    found.take_while(move |(k, _)| k.starts_with(&prefix))
}

/// A place in a resource's changes.
pub struct Watch {
    cache: Arc<Cache>,
    changed: watch::Receiver<u64>,
    ended: watch::Receiver<()>,
    position: u64,
    only: Option<Box<str>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cache", &self.cache).field("position", &self.position).finish()
    }
}

impl Watch {
    /// The revision up to which everything was handed out.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The changes that are there now, if any; an error when some are no longer kept.
    pub fn ready(&mut self) -> Result<Vec<Event>> {
        self.changed.borrow_and_update();
        let inner = self.cache.read();
        let mut bytes = 0;
        let small = |event: &&Event| {
            bytes += event.object.json.len();
            bytes <= BURST_BYTES || bytes == event.object.json.len()
        };
        let after = |revision: u64| inner.history.partition_point(|e| e.revision <= revision);
        // A lane may have lost nothing though the history has.
        let lane = self.only.as_ref().and_then(|value| inner.lanes.get(value));
        let lost = lane.map_or(inner.oldest, |lane| lane.lost);
        if self.position < lost {
            return Err(too_old(self.position, lost));
        }
        let (events, all): (Vec<Event>, bool) = match lane {
            Some(lane) => {
                let from = lane.revisions.partition_point(|r| *r <= self.position);
                let found = lane.revisions.range(from..).filter_map(|r| inner.history.get(after(r - 1)));
                let events: Vec<Event> = found.take(BURST).take_while(small).cloned().collect();
                let all = from + events.len() == lane.revisions.len();
                (events, all)
            }
            None => {
                let from = after(self.position);
                let events: Vec<Event> = inner.history.range(from..).take(BURST).take_while(small).cloned().collect();
                let all = from + events.len() == inner.history.len();
                (events, all)
            }
        };
        // Read under the lock: the store shows changes under it before the revision goes on.
        let newest = if all { self.cache.revision() } else { 0 };
        self.position = events.last().map_or(self.position, |e| e.revision).max(newest);
        Ok(events)
    }

    /// Waits for changes; an empty answer means that the resource is no longer served.
    pub async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            let events = self.ready()?;
            if !events.is_empty() {
                return Ok(events);
            }
            tokio::select! {
                // Both senders live in the cache, which this holds.
                changed = self.changed.changed() => if changed.is_err() { return Ok(Vec::new()) },
                _ = self.ended.changed() => return Ok(Vec::new()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        cache_of(&[])
    }

    fn cache_of(shape: Shape) -> Cache {
        Cache {
            prefix: "/core/pods/".into(),
            shape,
            inner: RwLock::default(),
            revision: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            ended: watch::Sender::new(()),
        }
    }

    fn change(revision: u64, name: &str, value: Option<usize>) -> Change {
        let object = |size| {
            let pad = "x".repeat(size);
            format!(r#"{{"metadata":{{"name":"{name}","resourceVersion":"{revision}"}},"pad":"{pad}"}}"#)
        };
        Change { key: format!("/core/pods/{name}").into(), revision, value: value.map(|size| object(size).into()) }
    }

    fn names(objects: Vec<Arc<Object>>) -> Vec<String> {
        objects.iter().map(|o| format!("{}@{}", o.name, o.revision)).collect()
    }

    #[test]
    fn pictures_of_the_past() {
        let cache = cache();
        cache.load(Vec::new(), 10);
        for (i, (name, value)) in
            [("a", Some(1)), ("b", Some(1)), ("a", Some(2)), ("b", None), ("c", Some(1))].into_iter().enumerate()
        {
            let revision = 11 + i as u64;
            cache.apply(&[change(revision, name, value)], revision);
        }
        for (revision, wanted) in
            [(11, vec!["a@11"]), (12, vec!["a@11", "b@12"]), (13, vec!["a@13", "b@12"]), (15, vec!["a@13", "c@15"])]
        {
            assert_eq!(names(cache.list_at(None, "", revision).unwrap()), wanted, "{revision}");
        }
        assert_eq!(names(cache.list_at(None, "a", 12).unwrap()), ["b@12"]);
        assert_eq!(cache.list_at(None, "", 9).unwrap_err().code, 410);
    }

    #[test]
    fn the_past_ends_in_time_though_nothing_changes() {
        let cache = Arc::new(cache());
        cache.load(Vec::new(), 10);
        cache.apply(&[change(11, "a", Some(1))], 11);
        let start = Instant::now();
        cache.age(start);
        // Another resource's changes.
        cache.apply(&[], 40);
        cache.age(start + KEEP);
        assert!(cache.list_at(None, "", 11).is_ok());
        cache.age(start + KEEP + KEEP + Duration::from_secs(1));
        assert_eq!(cache.list_at(None, "", 11).unwrap_err().code, 410, "a picture of more than five minutes ago");
        assert!(cache.watch(11, None).is_ok(), "no change is missing");
        assert!(cache.list_at(None, "", 40).is_ok());
    }

    #[test]
    fn history_is_bounded_by_bytes_and_age() {
        let cache = cache();
        cache.load(Vec::new(), 0);
        for revision in 1..=400 {
            cache.apply(&[change(revision, "a", Some(200 << 10))], revision);
        }
        let kept = |cache: &Cache| (cache.read().kept, cache.read().history.len());
        assert!(kept(&cache).0 <= FRESH_BYTES && kept(&cache).1 > KEEP_AT_LEAST, "{:?}", kept(&cache));
        let start = Instant::now();
        cache.age(start + FRESH + Duration::from_secs(1));
        assert!(kept(&cache).0 <= KEPT_BYTES && kept(&cache).1 >= KEEP_AT_LEAST, "{:?}", kept(&cache));
        assert_eq!(cache.read().live, cache.get("", "a").unwrap().json.len());
    }

    #[tokio::test]
    async fn watchers_get_pieces_and_are_told_what_is_gone() {
        let cache = Arc::new(cache());
        cache.load(Vec::new(), 0);
        let mut slow = cache.watch(0, None).unwrap();
        for revision in 1..=10 {
            cache.apply(&[change(revision, "a", Some(40 << 10))], revision);
        }
        let mut seen = 0;
        while seen < 10 {
            let events = slow.next().await.unwrap();
            assert!(events.len() <= 2, "a piece is small");
            seen += events.len() as u64;
            assert_eq!(slow.position(), seen);
        }
        cache.apply(&[], 20);
        assert!(slow.ready().unwrap().is_empty());
        assert_eq!(slow.position(), 20, "an idle watch learns the newest revision");
        let mut left_behind = cache.watch(10, None).unwrap();
        for revision in 21..=1000 {
            cache.apply(&[change(revision, "a", Some(200 << 10))], revision);
        }
        assert_eq!(left_behind.next().await.unwrap_err().code, 410);
    }

    #[tokio::test]
    async fn a_watch_of_one_node_hears_of_it_alone() {
        let cache = Arc::new(cache_of(&["status.phase", INDEXED]));
        let bound = |revision, name: &str, node: Option<&str>| {
            let json = |node| format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"nodeName":"{node}"}}}}"#);
            Change { key: format!("/core/pods/{name}").into(), revision, value: node.map(|node| json(node).into()) }
        };
        let seen = |watch: &mut Watch| {
            watch.ready().map(|events| events.iter().map(|e| (e.kind, e.revision)).collect::<Vec<_>>())
        };
        cache.load(Vec::new(), 1);
        let (none, mut one) = cache.list_and_watch(None, Some("one"));
        assert!(none.is_empty());
        let mut pending = cache.watch(1, Some("")).unwrap();
        cache.apply(&[bound(2, "a", Some(""))], 2);
        assert!(!one.changed.has_changed().unwrap(), "nobody is woken for a pod without a node");
        assert_eq!(seen(&mut pending).unwrap(), [(EventKind::Added, 2)]);
        cache.apply(&[bound(3, "a", Some("one")), bound(4, "b", Some("two"))], 4);
        assert_eq!(seen(&mut pending).unwrap(), [(EventKind::Modified, 3)], "it has left");
        assert_eq!(seen(&mut one).unwrap(), [(EventKind::Modified, 3)]);
        assert_eq!(one.position(), 4);
        assert_eq!(names(cache.list_of(None, "one").0), ["a@3"]);
        assert_eq!(names(cache.list_of(None, "two").0), ["b@4"]);
        // The history forgets what was on the other node, and nothing that the first has not seen.
        for revision in 5..=200 {
            cache.apply(&[bound(revision, "b", Some("two"))], revision);
        }
        cache.age(Instant::now() + KEEP + Duration::from_secs(1));
        assert!(cache.watch(4, None).is_err(), "the history has forgotten");
        assert_eq!(seen(&mut one).unwrap(), []);
        assert_eq!(one.position(), 200);
        cache.apply(&[bound(201, "a", None)], 201);
        for revision in 202..=400 {
            cache.apply(&[bound(revision, "b", Some("two"))], revision);
        }
        assert_eq!(seen(&mut one).unwrap(), [(EventKind::Deleted, 201)]);
        assert!(cache.list_of(None, "one").0.is_empty());
        cache.apply(&[bound(401, "a", Some("one")), bound(402, "a", None), bound(403, "b", Some("two"))], 403);
        for revision in 404..=600 {
            cache.apply(&[bound(revision, "b", Some("two"))], revision);
        }
        cache.age(Instant::now() + KEEP + Duration::from_secs(1));
        assert_eq!(seen(&mut one).unwrap_err().code, 410, "what it missed is forgotten");
        // A lane goes when nobody watches it and nothing is in it; a new picture of the store keeps who watches.
        drop(one);
        cache.age(Instant::now() + KEEP + Duration::from_secs(1));
        assert!(!cache.read().lanes.contains_key("one"));
        cache.load(Vec::new(), 700);
        assert!(cache.read().lanes.contains_key(""));
        assert_eq!(seen(&mut pending).unwrap_err().code, 410);
    }
}
