//! The server's own view of its objects: reads from the watch caches, writes through the store.
//!
//! Everything here is below authorisation and admission: what authorisers, admission plugins,
//! strategies and the in-server controllers use.  Names are those of the *storage* resource:
//! group and plural (`"rbac.authorization.k8s.io", "clusterroles"`), no version.

mod cache;
mod encode;
#[cfg(test)]
pub(crate) mod flaky;

pub use cache::{Cache, Event, EventKind, Watch};

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use api::meta;
use serde_json::Value;
use store::{Expect, StoreError};

use crate::error::{ApiError, Result};
use crate::object::Object;
pub(crate) use encode::encode;

/// Between tries to take an object back, at first and at most.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// Handle to all resources; cheap to use from many tasks.
pub struct Registry {
    store: Arc<dyn store::Store>,
    caches: RwLock<HashMap<(String, String), Arc<Cache>>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// What a mutation of [`Registry::guaranteed_update`] decides.
#[derive(Debug)]
pub enum Change {
    /// Store this.
    Write(Value),
    /// Leave the object as it is.
    Keep,
    /// Remove the object.
    Remove,
}

impl Registry {
    /// A registry on a store whose commits are delivered to the caches.
    pub fn new(store: Arc<dyn store::Store>) -> Registry {
        Registry { store, caches: RwLock::new(HashMap::new()) }
    }

    /// How many objects each resource in use has.
    pub fn counts(&self) -> Vec<(String, usize)> {
        let caches = self.caches.read().unwrap_or_else(|e| e.into_inner());
        let name = |group: &str, resource: &str| {
            if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") }
        };
        let mut counts: Vec<_> =
            caches.iter().map(|((group, resource), cache)| (name(group, resource), cache.len())).collect();
        counts.sort();
        counts
    }

    /// Lets all caches forget what is too old; to be called from time to time.
    pub fn age(&self) {
        let caches: Vec<Arc<Cache>> = self.caches.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect();
        let now = std::time::Instant::now();
        caches.iter().for_each(|cache| cache.age(now));
    }

    /// The store's newest revision.
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// Waits until memory has every write that any server answered before this call.
    pub async fn fresh(&self) -> Result<()> {
        self.store.fresh().await.map(drop).map_err(store_error)
    }

    /// The store itself.
    pub fn store(&self) -> &Arc<dyn store::Store> {
        &self.store
    }

    /// The cache of a resource; it is made and filled when first asked for.
    pub fn cache(&self, group: &str, resource: &str) -> Arc<Cache> {
        let key = (group.to_string(), resource.to_string());
        if let Some(cache) = self.caches.read().unwrap_or_else(|e| e.into_inner()).get(&key) {
            return cache.clone();
        }
        let mut caches = self.caches.write().unwrap_or_else(|e| e.into_inner());
        caches
            .entry(key)
            .or_insert_with(|| {
                Cache::attach(&self.store, &prefix(group, resource), api::selector::offered(group, resource))
            })
            .clone()
    }

    /// The part of one resource.
    pub fn of<'a>(&'a self, group: &'a str, resource: &'a str) -> Store<'a> {
        Store { registry: self, group, resource }
    }

    /// One object from memory; `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache(group, resource).get(namespace, name)
    }

    /// All objects of a resource from memory, in one namespace or (`None`) in all, by key.
    pub fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.cache(group, resource).list(namespace)
    }

    /// Revision of the last change of a resource: what is derived from it can be kept while
    /// this stays the same.
    pub fn resource_revision(&self, group: &str, resource: &str) -> u64 {
        self.cache(group, resource).last_change()
    }

    /// Changes of a resource after `revision`; an error says that they are no longer known.
    pub fn watch(&self, group: &str, resource: &str, revision: u64) -> Result<Watch> {
        self.cache(group, resource).watch(revision, None)
    }

    /// Stores a new object as it is (with metadata.name, uid and so on already set).
    /// 409 AlreadyExists when the name is taken.
    pub async fn create(
        &self,
        group: &str,
        resource: &str,
        object: &Value,
        ttl_seconds: Option<u64>,
    ) -> Result<Arc<Object>> {
        let (namespace, name) = names(object);
        let cache = self.cache(group, resource);
        let encoded = encode(object)?;
        match self.store.put(&key(group, resource, namespace, name), encoded, Expect::Absent, ttl_seconds).await {
            Ok(revision) => cache.written(namespace, name, revision).await,
            Err(StoreError::Mismatch) => Err(ApiError::already_exists(group, resource, name)),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Replaces an object that is at `revision`; 409 Conflict when it is not.
    pub async fn update(&self, group: &str, resource: &str, object: &Value, revision: u64) -> Result<Arc<Object>> {
        self.update_ttl(group, resource, object, revision, None).await
    }

    /// [`Registry::update`] of an object that goes by itself after a time.
    pub async fn update_ttl(
        &self,
        group: &str,
        resource: &str,
        object: &Value,
        revision: u64,
        ttl_seconds: Option<u64>,
    ) -> Result<Arc<Object>> {
        let (namespace, name) = names(object);
        let cache = self.cache(group, resource);
        let encoded = encode(object)?;
        match self.store.put(&key(group, resource, namespace, name), encoded, Expect::At(revision), ttl_seconds).await {
            Ok(revision) => cache.written(namespace, name, revision).await,
            Err(StoreError::Mismatch) => Err(ApiError::stale(group, resource, name)),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Reads, changes, writes; again when somebody else was faster.  Gives the object as it is
    /// afterwards, or None when it was removed.
    pub async fn guaranteed_update(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        mut change: impl FnMut(Value) -> Result<Change> + Send,
    ) -> Result<Option<Arc<Object>>> {
        for _ in 0..16 {
            let current =
                self.get(group, resource, namespace, name).ok_or_else(|| ApiError::not_found(group, resource, name))?;
            let done = match change(current.value())? {
                Change::Keep => return Ok(Some(current)),
                Change::Write(new) => self.update(group, resource, &new, current.revision).await.map(Some),
                Change::Remove => self.delete(group, resource, namespace, name, current.revision).await.map(|_| None),
            };
            match done {
                Err(error) if error.reason == "Conflict" => continue,
                other => return other,
            }
        }
        Err(ApiError::stale(group, resource, name))
    }

    /// Removes an object that should never have been made: nobody else will, so that it is tried until it is done.
    pub async fn take_back(&self, group: &str, resource: &str, made: &Object) {
        let (namespace, name, uid) = (&made.namespace, &made.name, meta::field(&made.value(), "uid").to_string());
        let mut pause = AGAIN;
        loop {
            let change = |now: Value| Ok(if meta::field(&now, "uid") == uid { Change::Remove } else { Change::Keep });
            match self.guaranteed_update(group, resource, namespace, name, change).await {
                Ok(_) => return,
                Err(error) if error.reason == "NotFound" => return,
                Err(error) => {
                    tracing::warn!("{} is not taken back yet: {error}", key(group, resource, namespace, name))
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AT_MOST);
        }
    }

    /// Removes an object that is at `revision`; gives the revision of the removal.
    pub async fn delete(&self, group: &str, resource: &str, namespace: &str, name: &str, revision: u64) -> Result<u64> {
        let cache = self.cache(group, resource);
        match self.store.delete(&key(group, resource, namespace, name), Expect::At(revision)).await {
            Ok(revision) => {
                cache.wait(revision).await?;
                Ok(revision)
            }
            Err(StoreError::Mismatch) => Err(ApiError::stale(group, resource, name)),
            Err(error) => Err(store_error(error)),
        }
    }
}

/// A registry narrowed to one resource.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    registry: &'a Registry,
    group: &'a str,
    resource: &'a str,
}

impl Store<'_> {
    /// The resource's cache.
    pub fn cache(&self) -> Arc<Cache> {
        self.registry.cache(self.group, self.resource)
    }
    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.registry.get(self.group, self.resource, namespace, name)
    }
    /// See [`Registry::create`].
    pub async fn create(&self, object: &Value, ttl_seconds: Option<u64>) -> Result<Arc<Object>> {
        self.registry.create(self.group, self.resource, object, ttl_seconds).await
    }
    /// See [`Registry::update_ttl`].
    pub async fn update(&self, object: &Value, revision: u64, ttl_seconds: Option<u64>) -> Result<Arc<Object>> {
        self.registry.update_ttl(self.group, self.resource, object, revision, ttl_seconds).await
    }
    /// See [`Registry::delete`].
    pub async fn delete(&self, namespace: &str, name: &str, revision: u64) -> Result<u64> {
        self.registry.delete(self.group, self.resource, namespace, name, revision).await
    }
}

/// Keys of a resource begin with this.
pub fn prefix(group: &str, resource: &str) -> String {
    format!("/{}/{resource}/", if group.is_empty() { "core" } else { group })
}

/// The key of one object.
pub fn key(group: &str, resource: &str, namespace: &str, name: &str) -> String {
    let prefix = prefix(group, resource);
    if namespace.is_empty() { format!("{prefix}{name}") } else { format!("{prefix}{namespace}/{name}") }
}

fn names(object: &Value) -> (&str, &str) {
    let at = |field: &str| object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("");
    (at("namespace"), at("name"))
}

/// A failure of the store as clients see it.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { .. } | StoreError::TooLargeForEtcd { .. } => ApiError::too_large(error.to_string()),
        // The write may have been done, which is what this reason says.
        StoreError::Unavailable(_) => ApiError::timeout(error.to_string()),
        other => ApiError::internal(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::flaky::Flaky;
    use super::*;

    /// Whether the store does what it does not answer, or not.
    #[tokio::test]
    async fn what_is_taken_back_is_gone_when_the_store_answers_again() {
        for done in [false, true] {
            let store = Arc::new(Flaky::new());
            let registry = Registry::new(store.clone());
            let make = async |uid: &str| {
                let object = json!({"metadata": {"namespace": "n", "name": "a", "uid": uid}});
                registry.create("", "configmaps", &object, None).await.unwrap()
            };
            let made = make("1").await;
            store.lose(1, done);
            registry.take_back("", "configmaps", &made).await;
            assert!(registry.get("", "configmaps", "n", "a").is_none());
            // Another one of that name stays.
            make("2").await;
            registry.take_back("", "configmaps", &made).await;
            assert!(registry.get("", "configmaps", "n", "a").is_some());
        }
    }
}
