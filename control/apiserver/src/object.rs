//! An object as the watch cache holds it: encoded once, with what selectors and keys need.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

/// Labels, sorted by key.
pub type Labels = Box<[(Box<str>, Box<str>)]>;

/// Which fields of a resource field selectors may name, beyond `metadata.name` and
/// `metadata.namespace`: names as selectors spell them.
pub type Shape = &'static [&'static str];

/// One version of one object, never changed after it is made.
#[derive(Debug)]
pub struct Object {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// The store's revision of this version: the object's `metadata.resourceVersion`.
    pub revision: u64,
    pub labels: Labels,
    /// Values of the resource's selectable fields, in the order of its [`Shape`].
    pub fields: Box<[Box<str>]>,
    /// Whole object in storage version, `resourceVersion` included; shared with the store.
    pub json: Bytes,
    /// Where in `json` the revision stands, as `(start, length)`.
    stamp: (u32, u32),
    /// Bytes of the object's protobuf message, once known: lists tell their size first.
    message_size: AtomicU32,
}

#[derive(Deserialize)]
struct Light<'a> {
    #[serde(borrow)]
    metadata: LightMeta<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LightMeta<'a> {
    #[serde(default, borrow)]
    name: Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: Cow<'a, str>,
    #[serde(default, borrow)]
    uid: Cow<'a, str>,
    #[serde(default)]
    resource_version: &'a str,
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

impl Object {
    /// Reads the light part of an encoded object.
    pub fn decode(json: Bytes, revision: u64, shape: Shape) -> Result<Arc<Object>, serde_json::Error> {
        let light: Light<'_> = serde_json::from_slice(&json)?;
        let meta = light.metadata;
        let start = (meta.resource_version.as_ptr() as usize).wrapping_sub(json.as_ptr() as usize);
        let stamp = if start < json.len() { (start as u32, meta.resource_version.len() as u32) } else { (0, 0) };
        let labels = meta.labels.unwrap_or_default().into_iter().collect();
        let (name, namespace, uid) =
            (meta.name.as_ref().into(), meta.namespace.as_ref().into(), meta.uid.as_ref().into());
        let fields = if shape.is_empty() {
            Box::default()
        } else {
            let whole: Value = serde_json::from_slice(&json)?;
            shape.iter().map(|field| api::selector::field_value(&whole, field).into()).collect()
        };
        Ok(Arc::new(Object {
            name,
            namespace,
            uid,
            revision,
            labels,
            fields,
            json,
            stamp,
            message_size: AtomicU32::new(0),
        }))
    }

    /// The same object with another revision.
    pub fn restamped(&self, revision: u64) -> Arc<Object> {
        let (start, len) = (self.stamp.0 as usize, self.stamp.1 as usize);
        let digits = revision.to_string();
        let mut json = Vec::with_capacity(self.json.len() + digits.len());
        json.extend_from_slice(&self.json[..start]);
        if start > 0 {
            json.extend_from_slice(digits.as_bytes());
        }
        json.extend_from_slice(&self.json[start + len..]);
        Arc::new(Object {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            revision,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            json: Bytes::from(json),
            stamp: (self.stamp.0, digits.len() as u32),
            message_size: AtomicU32::new(0),
        })
    }

    /// The key in its resource: `name`, or `namespace/name`.
    pub fn key(&self) -> String {
        if self.namespace.is_empty() { self.name.to_string() } else { format!("{}/{}", self.namespace, self.name) }
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

    /// The size of the object's protobuf message, if somebody has measured it.
    pub fn message_size(&self) -> Option<usize> {
        Some(self.message_size.load(Ordering::Relaxed) as usize).filter(|size| *size > 0)
    }

    /// Remembers the size of the object's protobuf message.
    pub fn set_message_size(&self, size: usize) {
        self.message_size.store(u32::try_from(size).unwrap_or(0), Ordering::Relaxed);
    }

    /// The value of label `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_restamps() {
        let json = r#"{"data":{"resourceVersion":"1"},"metadata":{"labels":{"a":"b"},"name":"n","namespace":"s","resourceVersion":"7","uid":"u"}}"#;
        let object = Object::decode(Bytes::from_static(json.as_bytes()), 7, &[]).unwrap();
        assert_eq!((object.key().as_str(), object.label("a")), ("s/n", Some("b")));
        let later = object.restamped(12345);
        assert_eq!(later.value()["metadata"]["resourceVersion"], "12345");
        assert_eq!(later.value()["data"]["resourceVersion"], "1");
        assert_eq!(later.restamped(1).value()["metadata"]["resourceVersion"], "1");
    }
}
