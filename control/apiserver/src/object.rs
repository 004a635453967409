//! An object as the watch cache holds it: encoded once, with what selectors and keys need.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::pick::{Key, Pick};

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

/// An object's metadata, and those of its fields that selectors may name.
struct Light<'de> {
    metadata: LightMeta<'de>,
    picked: Map<String, Value>,
}

struct LightVisitor<'a>(Pick<'a>);

impl<'de> Visitor<'de> for LightVisitor<'_> {
    type Value = Light<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with metadata")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Light<'de>, A::Error> {
        let (mut metadata, mut picked) = (None, Map::new());
        while let Some(Key(key)) = map.next_key()? {
            if key == "metadata" {
                metadata = Some(map.next_value()?);
            } else {
                self.0.take(&key, &mut map, &mut picked)?;
            }
        }
        let metadata = metadata.ok_or_else(|| <A::Error as serde::de::Error>::missing_field("metadata"))?;
        Ok(Light { metadata, picked })
    }
}

/// Reads what the cache needs, in one pass, and makes nothing else.
fn light<'de>(json: &'de [u8], shape: Shape) -> Result<Light<'de>, serde_json::Error> {
    let paths: Vec<&str> = shape.iter().flat_map(|field| api::selector::field_paths(field)).collect();
    let mut from = serde_json::Deserializer::from_slice(json);
    let mut light = from.deserialize_map(LightVisitor(Pick(&paths)))?;
    from.end()?;
    if paths.contains(&"metadata.name") {
        light.picked.insert("metadata".into(), serde_json::json!({"name": light.metadata.name}));
    }
    Ok(light)
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
        let Light { metadata: meta, picked } = light(&json, shape)?;
        let start = (meta.resource_version.as_ptr() as usize).wrapping_sub(json.as_ptr() as usize);
        let stamp = if start < json.len() { (start as u32, meta.resource_version.len() as u32) } else { (0, 0) };
        let labels = meta.labels.unwrap_or_default().into_iter().collect();
        let (name, namespace, uid) =
            (meta.name.as_ref().into(), meta.namespace.as_ref().into(), meta.uid.as_ref().into());
        let picked = Value::Object(picked);
        let fields = shape.iter().map(|field| api::selector::field_value(&picked, field).into()).collect();
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

    /// The value of a field that selectors may name; `shape` is that of the object's resource.
    pub fn field(&self, shape: Shape, name: &str) -> Option<&str> {
        shape.iter().position(|field| *field == name).and_then(|at| self.fields.get(at)).map(|value| &**value)
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
        assert!(Object::decode(Bytes::from_static(b"{}"), 1, &[]).is_err(), "no metadata");
        assert!(Object::decode(Bytes::from_static(b"{\"metadata\":{}}x"), 1, &[]).is_err(), "something follows");
    }

    #[test]
    fn fields_are_those_of_the_whole_object() {
        let whole = serde_json::json!({
            "metadata": {"name": "n"}, "type": "T", "reason": null, "source": {"component": "c"},
            "involvedObject": {"kind": "Pod", "name": "p", "uid": "u"},
            "spec": {"nodeName": "n1", "hostNetwork": true, "unschedulable": true, "clusterIP": "10.0.0.1", "type": "X",
                "containers": [{"spec": {"nodeName": "n2"}}], "signerName": "s", "driver": "d"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "::1"}], "replicas": 3, "succeeded": 2},
        });
        for (group, resource) in [
            ("", "pods"),
            ("", "events"),
            ("", "nodes"),
            ("", "secrets"),
            ("", "namespaces"),
            ("", "services"),
            ("apps", "replicasets"),
            ("batch", "jobs"),
            ("certificates.k8s.io", "certificatesigningrequests"),
            ("resource.k8s.io", "resourceslices"),
        ] {
            let shape = api::selector::offered(group, resource);
            let object = Object::decode(whole.to_string().into(), 1, shape).unwrap();
            let of_whole: Vec<String> = shape.iter().map(|f| api::selector::field_value(&whole, f)).collect();
            assert!(!shape.is_empty() && of_whole.iter().any(|v| !v.is_empty()));
            assert_eq!(object.fields.iter().map(|f| f.to_string()).collect::<Vec<_>>(), of_whole, "{resource}");
        }
    }
}
