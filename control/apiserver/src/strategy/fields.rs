//! Small helpers on JSON objects that the strategies share.

use api::quantity::Quantity;
use serde_json::{Map, Value, json};

pub use crate::authn::view::{items_at, name_of as name, namespace_of as namespace, str_at};

/// The present second, as objects write it.
pub fn now() -> String {
    jiff::Timestamp::from_second(crate::authn::now()).map(|t| t.to_string()).unwrap_or_default()
}

/// Puts the field at `path` in `to` as it is in `from` (absent included).
pub fn copy(to: &mut Value, from: &Value, path: &[&str]) {
    let Some((last, parents)) = path.split_last() else { return };
    let source = path.iter().try_fold(from, |v, key| v.get(key)).filter(|v| !v.is_null());
    let mut target = to;
    for key in parents {
        if source.is_none() && target.get(key).is_none() {
            return;
        }
        let Some(map) = target.as_object_mut() else { return };
        target = map.entry(*key).or_insert_with(|| json!({}));
    }
    let Some(map) = target.as_object_mut() else { return };
    match source {
        Some(value) => map.insert((*last).to_string(), value.clone()),
        None => map.remove(*last),
    };
}

/// Puts the metadata that clients write as it is in `from`.
pub fn copy_metadata(to: &mut Value, from: &Value) {
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "managedFields"] {
        copy(to, from, &["metadata", field]);
    }
}

/// The list at `path` to be changed, empty when there is none.
pub fn items_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut [Value] {
    let mut at = value;
    for key in path {
        match at.get_mut(*key) {
            Some(next) => at = next,
            None => return &mut [],
        }
    }
    at.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default()
}

/// The map at `key`, made if it is missing.
pub fn map_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let map = value.as_object_mut()?;
    let entry = map.entry(key).or_insert_with(|| json!({}));
    if entry.is_null() {
        *entry = json!({});
    }
    entry.as_object_mut()
}

/// Sets a label or an annotation (`field` says which).
pub fn set_meta(object: &mut Value, field: &str, key: &str, value: &str) {
    if let Some(meta) = object.get_mut("metadata")
        && let Some(map) = map_mut(meta, field)
    {
        map.insert(key.into(), json!(value));
    }
}

/// A quantity, written as a string or a number.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => Quantity::parse(s),
        Value::Number(n) => Quantity::parse(&n.to_string()),
        _ => None,
    }
}

/// Removes `resources: null` and its like that copying left behind.
pub fn drop_nulls_in_containers(pod: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in items_mut(pod, &["spec", list]) {
            if let Some(map) = container.as_object_mut() {
                map.retain(|_, v| !v.is_null());
            }
        }
    }
}

/// Whether two fields are the same, absent and null being one.
pub fn same(a: &Value, b: &Value, pointer: &str) -> bool {
    let at = |v: &Value| v.pointer(pointer).filter(|v| !v.is_null()).cloned();
    at(a) == at(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_presence_and_absence() {
        let mut to = json!({"a": {"b": 1, "c": 2}});
        copy(&mut to, &json!({"a": {"c": 3}}), &["a", "c"]);
        copy(&mut to, &json!({}), &["a", "b"]);
        copy(&mut to, &json!({}), &["x", "y"]);
        assert_eq!(to, json!({"a": {"c": 3}}));
        copy(&mut to, &json!({"x": {"y": 1}}), &["x", "y"]);
        assert_eq!(to["x"]["y"], 1);
    }
}
