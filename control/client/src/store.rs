//! A cache of all objects of one kind, shared by everyone in the process.
//!
//! It is filled by one watch, and it reads its own writes: what a write of this process
//! answered is in the cache when the call returns. So a controller that runs again at once
//! sees the pods it has just created, and needs no book of expectations.
//! Resource versions of one kind grow; that is what decides which of two states is newer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use kube::core::params::DeleteParams;
use kube::core::params::Preconditions;
use tokio::sync::watch;

pub use crate::call::Object;
use crate::call::{Client, Failure};
use crate::owner;
use crate::watch::{Scope, Sink, follow};

/// Namespace (empty for cluster-wide kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn of<K: Object>(object: &K) -> Self {
        let meta = object.meta();
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated(Arc<K>, Arc<K>),
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The state after the change, or the last one before the deletion.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(new) | Self::Updated(_, new) | Self::Deleted(new) => new,
        }
    }

    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Self::Added(_) => None,
            Self::Updated(old, _) | Self::Deleted(old) => Some(old),
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The cache of one kind.
pub struct Store<K: Object> {
    client: Client,
    inner: Mutex<Inner<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    /// Drops what nobody in the process reads.
    trim: fn(&mut K),
}

/// Objects by name, and by the uid of their controller (empty for orphans): a controller looks at its own, however many
/// others there are.
struct Objects<K> {
    all: BTreeMap<Key, Arc<K>>,
    of: HashMap<String, BTreeMap<Key, Arc<K>>>,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), of: HashMap::new() }
    }
}

fn controller<K: Object>(object: &K) -> &str {
    owner::controller_of(object.meta()).map(|r| r.uid.as_str()).unwrap_or_default()
}

impl<K: Object> Objects<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.remove(&key);
        self.of.entry(controller(&*object).to_owned()).or_default().insert(key.clone(), object.clone());
        self.all.insert(key, object);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.all.remove(key)?;
        let uid = controller(&*old);
        if let Some(siblings) = self.of.get_mut(uid) {
            siblings.remove(key);
            if siblings.is_empty() {
                self.of.remove(uid);
            }
        }
        Some(old)
    }
}

fn in_namespace<K>(objects: &BTreeMap<Key, Arc<K>>, namespace: &str) -> impl Iterator<Item = Arc<K>> {
    let found = objects.range(Key::new(namespace, "")..).take_while(move |(key, _)| key.namespace == namespace);
    found.map(|(_, object)| object.clone())
}

struct Inner<K> {
    objects: Objects<K>,
    /// The newest version that the watch has shown.
    seen: u64,
    /// Objects whose deletion was answered before the watch told of it.
    gone: HashSet<String>,
}

fn version<K: Object>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn uid<K: Object>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

impl<K: Object> Store<K> {
    /// An empty cache that nothing fills yet.
    pub fn new(client: Client, trim: fn(&mut K)) -> Arc<Self> {
        Arc::new(Self {
            client,
            inner: Mutex::new(Inner { objects: Objects::default(), seen: 0, gone: HashSet::new() }),
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
            trim,
        })
    }

    /// Fills the cache from all objects of the kind that match the field selector.
    pub fn start(self: &Arc<Self>, namespace: Option<&str>, fields: Option<&str>) {
        let scope = Scope { path: K::url_path(&(), namespace), fields: fields.map(str::to_owned), ..Scope::default() };
        tokio::spawn(follow(self.client.raw().clone(), scope, self.clone() as Arc<dyn Sink<K>>));
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) {
        let mut receiver = self.synced.subscribe();
        // The sender lives as long as self.
        let _ = receiver.wait_for(|synced| *synced).await;
    }

    /// Calls the handler for every change from now on, and as added for all there is.
    pub fn subscribe(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let present: Vec<_> = self.list();
        for object in present {
            handler(&Change::Added(object));
        }
        self.handlers.write().unwrap_or_else(|e| e.into_inner()).push(Box::new(handler));
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner().objects.all.get(key).cloned()
    }

    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&Key::new(namespace, name))
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner().objects.all.values().cloned().collect()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.inner().objects.all.keys().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.inner().objects.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        in_namespace(&self.inner().objects.all, namespace).collect()
    }

    /// What the controller with this uid controls.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        if uid.is_empty() {
            return Vec::new();
        }
        self.inner().objects.of.get(uid).into_iter().flat_map(|objects| objects.values().cloned()).collect()
    }

    /// The objects in a namespace that nobody controls.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.inner().objects.of.get("").into_iter().flat_map(|objects| in_namespace(objects, namespace)).collect()
    }

    fn emit(&self, changes: &[Change<K>]) {
        let handlers = self.handlers.read().unwrap_or_else(|e| e.into_inner());
        for change in changes {
            for handler in handlers.iter() {
                handler(change);
            }
        }
    }

    fn put(&self, mut object: K, from_watch: bool) -> Arc<K> {
        object.meta_mut().managed_fields = None;
        (self.trim)(&mut object);
        let new = Arc::new(object);
        let change = self.inner().put(new.clone(), from_watch);
        if let Some(change) = change {
            self.emit(&[change]);
        }
        new
    }

    /// Takes in what a write of this process answered.
    pub fn absorb(&self, object: K) -> Arc<K> {
        self.put(object, false)
    }

    fn absorb_deleted(&self, key: &Key, uid: &str) {
        let removed = self.inner().remove(key, uid, true);
        if let Some(old) = removed {
            self.emit(&[Change::Deleted(old)]);
        }
    }

    pub async fn create(&self, object: &K) -> Result<Arc<K>, Failure> {
        Ok(self.absorb(self.client.create(object).await?))
    }

    pub async fn replace(&self, object: &K) -> Result<Arc<K>, Failure> {
        Ok(self.absorb(self.client.replace(object).await?))
    }

    pub async fn replace_status(&self, object: &K) -> Result<Arc<K>, Failure> {
        Ok(self.absorb(self.client.replace_part("status", object).await?))
    }

    pub async fn merge(&self, part: Option<&str>, object: &K, patch: &serde_json::Value) -> Result<Arc<K>, Failure> {
        let meta = object.meta();
        let name = meta.name.as_deref().unwrap_or_default();
        Ok(self.absorb(self.client.merge(part, meta.namespace.as_deref(), name, patch).await?))
    }

    pub async fn strategic(
        &self,
        part: Option<&str>,
        object: &K,
        patch: &serde_json::Value,
    ) -> Result<Arc<K>, Failure> {
        let meta = object.meta();
        let name = meta.name.as_deref().unwrap_or_default();
        Ok(self.absorb(self.client.strategic(part, meta.namespace.as_deref(), name, patch).await?))
    }

    /// Deletes this very object: another one of the same name is left alone.
    pub async fn delete(&self, object: &K) -> Result<(), Failure> {
        self.delete_with(object, DeleteParams::default()).await
    }

    pub async fn delete_with(&self, object: &K, mut params: DeleteParams) -> Result<(), Failure> {
        let meta = object.meta();
        params.preconditions = Some(Preconditions { uid: meta.uid.clone(), resource_version: None });
        let name = meta.name.as_deref().unwrap_or_default();
        match self.client.delete::<K>(meta.namespace.as_deref(), name, &params).await {
            Ok(Some(remains)) => {
                self.absorb(remains);
                Ok(())
            }
            Ok(None) => {
                self.absorb_deleted(&Key::of(object), uid(object));
                Ok(())
            }
            Err(failure) if failure.is_not_found() => {
                self.absorb_deleted(&Key::of(object), uid(object));
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

impl<K: Object> Inner<K> {
    fn put(&mut self, new: Arc<K>, from_watch: bool) -> Option<Change<K>> {
        let at = version(&*new);
        if from_watch {
            self.seen = self.seen.max(at);
            if self.gone.contains(uid(&*new)) {
                return None;
            }
        } else if at != 0 && at <= self.seen {
            // The watch is past this state, and knows of a deletion that we may have missed.
            return None;
        }
        let key = Key::of(&*new);
        match self.objects.all.get(&key) {
            Some(old) if at != 0 && version(&**old) >= at => None,
            Some(_) => self.objects.insert(key, new.clone()).map(|old| Change::Updated(old, new)),
            None => {
                self.objects.insert(key, new.clone());
                Some(Change::Added(new))
            }
        }
    }

    fn remove(&mut self, key: &Key, id: &str, before_watch: bool) -> Option<Arc<K>> {
        let held = self.objects.all.get(key)?;
        if uid(&**held) != id {
            return None;
        }
        if before_watch {
            self.gone.insert(id.to_owned());
        }
        self.objects.remove(key)
    }
}

impl<K: Object> Sink<K> for Store<K> {
    fn reset(&self, items: Vec<K>, at: u64) {
        let mut changes = Vec::new();
        {
            let mut inner = self.inner();
            let mut before = std::mem::take(&mut inner.objects);
            inner.seen = at;
            inner.gone.clear();
            for mut item in items {
                item.meta_mut().managed_fields = None;
                (self.trim)(&mut item);
                let (key, new) = (Key::of(&item), Arc::new(item));
                let old = before.remove(&key);
                inner.objects.insert(key, new.clone());
                match old {
                    None => changes.push(Change::Added(new)),
                    Some(old) if old.meta().resource_version == new.meta().resource_version => {}
                    Some(old) => changes.push(Change::Updated(old, new)),
                }
            }
            for (key, old) in before.all {
                if at != 0 && version(&*old) > at {
                    // Our own write, newer than the list.
                    inner.objects.insert(key, old);
                } else {
                    changes.push(Change::Deleted(old));
                }
            }
        }
        self.emit(&changes);
        self.synced.send_replace(true);
    }

    fn apply(&self, item: K) {
        self.put(item, true);
    }

    fn delete(&self, item: K) {
        let removed = {
            let mut inner = self.inner();
            inner.seen = inner.seen.max(version(&item));
            inner.gone.remove(uid(&item));
            inner.remove(&Key::of(&item), uid(&item), false)
        };
        if let Some(old) = removed {
            self.emit(&[Change::Deleted(old)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("n".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn empty() -> Inner<ConfigMap> {
        Inner { objects: Objects::default(), seen: 0, gone: HashSet::new() }
    }

    #[test]
    fn own_write_shows_before_the_watch_and_only_once() {
        let mut inner = empty();
        assert!(matches!(inner.put(Arc::new(object("a", "1", 5)), false), Some(Change::Added(_))));
        assert!(inner.put(Arc::new(object("a", "1", 5)), true).is_none());
        assert!(matches!(inner.put(Arc::new(object("a", "1", 6)), true), Some(Change::Updated(..))));
    }

    #[test]
    fn what_is_controlled_is_found_by_its_controller() {
        let of = |uid: Option<&str>, version| {
            let mut object = object("a", "1", version);
            object.metadata.owner_references = uid.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
            });
            Arc::new(object)
        };
        let mut inner = empty();
        let places = |inner: &Inner<ConfigMap>| inner.objects.of.keys().cloned().collect::<Vec<_>>();
        inner.put(of(None, 1), true);
        assert_eq!(places(&inner), [""]);
        inner.put(of(Some("x"), 2), true);
        assert_eq!(places(&inner), ["x"], "adopted");
        inner.put(of(Some("y"), 3), true);
        assert_eq!(places(&inner), ["y"]);
        assert_eq!(version(&*inner.objects.of["y"][&Key::new("n", "a")]), 3);
        inner.remove(&Key::new("n", "a"), "1", false);
        assert!(places(&inner).is_empty() && inner.objects.all.is_empty());
    }

    #[test]
    fn own_write_that_the_watch_has_passed_is_ignored() {
        let mut inner = empty();
        // Another object's event moved the watch beyond our write, which was deleted meanwhile.
        inner.put(Arc::new(object("b", "2", 9)), true);
        assert!(inner.put(Arc::new(object("a", "1", 5)), false).is_none());
        assert_eq!(inner.objects.all.len(), 1);
    }

    #[test]
    fn own_deletion_hides_late_events_of_that_object() {
        let mut inner = empty();
        inner.put(Arc::new(object("a", "1", 5)), true);
        let key = Key::new("n", "a");
        assert!(inner.remove(&key, "1", true).is_some());
        assert!(inner.put(Arc::new(object("a", "1", 6)), true).is_none());
        // A successor of the same name is another object.
        assert!(inner.put(Arc::new(object("a", "3", 8)), true).is_some());
        assert!(inner.remove(&key, "1", false).is_none());
    }
}
