//! Accessors for the metadata of objects held as JSON values.

use serde_json::{Map, Value};

/// `apiVersion` of an object.
pub fn api_version(o: &Value) -> &str {
    o["apiVersion"].as_str().unwrap_or("")
}

/// `kind` of an object.
pub fn kind(o: &Value) -> &str {
    o["kind"].as_str().unwrap_or("")
}

/// A string below `metadata`.
pub fn field<'a>(o: &'a Value, name: &str) -> &'a str {
    o["metadata"][name].as_str().unwrap_or("")
}

/// `metadata.name`.
pub fn name(o: &Value) -> &str {
    field(o, "name")
}

/// `metadata.namespace`.
pub fn namespace(o: &Value) -> &str {
    field(o, "namespace")
}

/// `metadata.uid`.
pub fn uid(o: &Value) -> &str {
    field(o, "uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(o: &Value) -> &str {
    field(o, "resourceVersion")
}

/// `metadata.generation`.
pub fn generation(o: &Value) -> i64 {
    o["metadata"]["generation"].as_i64().unwrap_or(0)
}

/// `metadata.deletionTimestamp`.
pub fn deletion_timestamp(o: &Value) -> Option<&str> {
    o["metadata"]["deletionTimestamp"].as_str()
}

/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace(o: &Value) -> Option<i64> {
    o["metadata"]["deletionGracePeriodSeconds"].as_i64()
}

/// A label's value.
pub fn label<'a>(o: &'a Value, key: &str) -> Option<&'a str> {
    o["metadata"]["labels"][key].as_str()
}

/// An annotation's value.
pub fn annotation<'a>(o: &'a Value, key: &str) -> Option<&'a str> {
    o["metadata"]["annotations"][key].as_str()
}

/// The labels.
pub fn labels(o: &Value) -> Option<&Map<String, Value>> {
    o["metadata"]["labels"].as_object()
}

/// The finalizers.
pub fn finalizers(o: &Value) -> Vec<&str> {
    o["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The owner references.
pub fn owners(o: &Value) -> &[Value] {
    o["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
}

/// `metadata`, made when it is missing. A value that is no object becomes one.
pub fn metadata_mut(o: &mut Value) -> &mut Map<String, Value> {
    child_mut(object_mut(o), "metadata")
}

/// The value as an object; anything else is replaced by an empty one.
pub fn object_mut(v: &mut Value) -> &mut Map<String, Value> {
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    match v {
        Value::Object(m) => m,
        _ => unreachable!("made an object above"),
    }
}

/// The object below `key`, made when it is missing.
pub fn child_mut<'a>(m: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    object_mut(m.entry(key).or_insert(Value::Null))
}

/// Sets a string below `metadata`; an empty one removes it.
pub fn set(o: &mut Value, name: &str, value: &str) {
    let m = metadata_mut(o);
    if value.is_empty() {
        m.remove(name);
    } else {
        m.insert(name.into(), value.into());
    }
}

/// Sets any value below `metadata`.
pub fn set_value(o: &mut Value, name: &str, value: Value) {
    metadata_mut(o).insert(name.into(), value);
}

/// Removes a field below `metadata`, if there is metadata.
pub fn remove(o: &mut Value, name: &str) -> Option<Value> {
    o.get_mut("metadata")?.as_object_mut()?.remove(name)
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(o: &mut Value, revision: u64) {
    set_value(o, "resourceVersion", revision.to_string().into());
}

/// Sets apiVersion and kind.
pub fn set_type(o: &mut Value, api_version: &str, kind: &str) {
    let m = object_mut(o);
    m.insert("apiVersion".into(), api_version.into());
    m.insert("kind".into(), kind.into());
}

/// PartialObjectMetadata of an object.
pub fn partial(o: &Value) -> Value {
    serde_json::json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]})
}

/// A value by path of field names.
pub fn at<'a>(o: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(o, |v, p| &v[*p])
}

/// Whether everything but metadata and status is equal: when it is not, the
/// generation goes up. Kinds without a status sub-resource compare everything but metadata.
pub fn spec_equal(a: &Value, b: &Value, has_status: bool) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let keep = |k: &str| k != "metadata" && !(has_status && k == "status");
    a.iter().filter(|(k, _)| keep(k)).eq(b.iter().filter(|(k, _)| keep(k)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_and_writes() {
        let mut o = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"a": 1}});
        assert_eq!((name(&o), label(&o, "x"), namespace(&o)), ("a", Some("y"), ""));
        set(&mut o, "namespace", "n");
        set_resource_version(&mut o, 7);
        assert_eq!((namespace(&o), resource_version(&o)), ("n", "7"));
        let b = json!({"metadata": {}, "spec": {"a": 1}, "status": {}});
        assert!(spec_equal(&o, &b, true) && !spec_equal(&o, &b, false));
    }
}
