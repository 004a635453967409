//! An object as the watch cache holds it: encoded once, with what selectors and keys need.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

/// Labels, sorted by key as they stand in the JSON.
pub type Labels = Box<[(Box<str>, Box<str>)]>;

/// One version of one object, never changed after it is made.
#[derive(Debug)]
pub struct Object {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// The store's revision of this version: the object's `metadata.resourceVersion`.
    pub revision: u64,
    pub labels: Labels,
    /// Whole object in storage version, `resourceVersion` included; shared with the store.
    pub json: Bytes,
}

#[derive(Deserialize)]
struct Light<'a> {
    #[serde(borrow)]
    metadata: LightMeta<'a>,
}

#[derive(Deserialize)]
struct LightMeta<'a> {
    #[serde(default, borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    uid: std::borrow::Cow<'a, str>,
    #[serde(default)]
    labels: Option<std::collections::BTreeMap<Box<str>, Box<str>>>,
}

impl Object {
    /// Reads the light part of an encoded object.
    pub fn decode(json: Bytes, revision: u64) -> Result<Arc<Object>, serde_json::Error> {
        let light: Light<'_> = serde_json::from_slice(&json)?;
        let meta = light.metadata;
        let labels = meta.labels.unwrap_or_default().into_iter().collect();
        let (name, namespace, uid) = (meta.name.as_ref().into(), meta.namespace.as_ref().into(), meta.uid.as_ref().into());
        Ok(Arc::new(Object { name, namespace, uid, revision, labels, json }))
    }

    /// The whole object, parsed anew: keep what you need rather than asking twice.
    pub fn value(&self) -> Value {
        // The bytes were written by this server, and were parsed when they entered the cache.
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }

    /// A typed view of the parts that `T` names.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.json)
    }

    /// The value of label `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}
