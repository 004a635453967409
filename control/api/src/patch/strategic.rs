//! Strategic merge patch: lists are merged by key or as sets where the schema
//! says so, and directives (`$patch`, `$retainKeys`, `$setElementOrder/x`,
//! `$deleteFromPrimitiveList/x`) say what a plain merge cannot.

use crate::schema::{Field, Schema, Ty};
use crate::status::Status;
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

/// The patched object.
pub fn apply(object: &Value, patch: &Value, schema: &Schema) -> Result<Value, Status> {
    let (Some(object), Some(patch)) = (object.as_object(), patch.as_object()) else {
        return Err(Status::bad_request("error decoding patch: the patch must be an object"));
    };
    merge_map(object.clone(), patch, Some(schema)).map(Value::Object).map_err(Status::bad_request)
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN || key.starts_with(ORDER) || key.starts_with(DELETE)
}

fn merge_map(
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<Map<String, Value>, String> {
    match patch.get(PATCH).map(|v| v.as_str().unwrap_or("")) {
        Some("replace") => {
            return Ok(patch.iter().filter(|(k, _)| *k != PATCH).map(|(k, v)| (k.clone(), v.clone())).collect());
        }
        Some("delete") => return Ok(Map::new()),
        None | Some("merge") => {}
        Some(other) => {
            return Err(format!("unknown patch type found in {{\"$patch\":{other:?}}}"));
        }
    }
    if let Some(keys) = patch.get(RETAIN).and_then(Value::as_array) {
        original.retain(|k, _| keys.iter().any(|x| x == k));
    }
    for (key, value) in patch.iter().filter(|(k, _)| k.starts_with(DELETE)) {
        let name = &key[DELETE.len()..];
        if let (Some(Value::Array(list)), Some(gone)) = (original.get_mut(name), value.as_array()) {
            list.retain(|v| !gone.contains(v));
        }
    }
    for (key, value) in patch.iter().filter(|(k, _)| !is_directive(k)) {
        let field = schema.and_then(|s| s.field(key));
        let child = schema.and_then(|s| s.child(key));
        let order = patch.get(&format!("{ORDER}{key}")).and_then(Value::as_array);
        merge_value(&mut original, key, value, field, child, order)?;
    }
    // An order for a list that the patch itself does not change.
    for (key, value) in patch.iter().filter(|(k, _)| k.starts_with(ORDER)) {
        let name = &key[ORDER.len()..];
        if patch.contains_key(name) {
            continue;
        }
        let merge_key = schema.and_then(|s| s.field(name)).and_then(|f| f.merge_key);
        if let (Some(Value::Array(list)), Some(order)) = (original.get_mut(name), value.as_array()) {
            *list = reorder(std::mem::take(list), order, merge_key, None);
        }
    }
    Ok(original)
}

fn merge_value(
    original: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    field: Option<&Field>,
    child: Option<&Schema>,
    order: Option<&Vec<Value>>,
) -> Result<(), String> {
    let free = matches!(child.map(|c| c.ty), Some(Ty::FieldsV1 | Ty::Json | Ty::RawExtension));
    let merged = match (original.remove(key), value) {
        (_, Value::Null) => return Ok(()),
        (_, v) if free && child.is_some_and(|c| c.ty == Ty::FieldsV1) => v.clone(),
        (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_map(old, new, child)?),
        (_, Value::Object(new)) => Value::Object(merge_map(Map::new(), new, child)?),
        (old, Value::Array(new)) => {
            let old = match old {
                Some(Value::Array(a)) => a,
                _ => Vec::new(),
            };
            Value::Array(merge_list(old, new, field, child, order)?)
        }
        (_, v) => v.clone(),
    };
    original.insert(key.into(), merged);
    Ok(())
}

fn merge_list(
    old: Vec<Value>,
    new: &[Value],
    field: Option<&Field>,
    child: Option<&Schema>,
    order: Option<&Vec<Value>>,
) -> Result<Vec<Value>, String> {
    let item = child.and_then(Schema::item);
    let Some(f) = field.filter(|f| f.patch_merge) else {
        return Ok(new.to_vec());
    };
    if new.iter().any(|v| v[PATCH] == "replace") {
        return Ok(new
            .iter()
            .filter(|v| v[PATCH] != "replace" || v.as_object().is_some_and(|m| m.len() > 1))
            .map(strip)
            .collect());
    }
    let before = old.clone();
    let merged = match f.merge_key {
        Some(key) => merge_keyed(old, new, key, item)?,
        None => {
            let mut out = old;
            for v in new {
                if !out.contains(v) {
                    out.push(v.clone());
                }
            }
            out
        }
    };
    // Without an order the patch's own items are one: what is new comes first.
    let order = order.map_or(new, Vec::as_slice);
    Ok(reorder(merged, order, f.merge_key, Some(&before)))
}

fn strip(v: &Value) -> Value {
    let mut v = v.clone();
    if let Value::Object(m) = &mut v {
        m.remove(PATCH);
    }
    v
}

fn merge_keyed(mut list: Vec<Value>, new: &[Value], key: &str, item: Option<&Schema>) -> Result<Vec<Value>, String> {
    for v in new.iter().filter(|v| v[PATCH] == "delete") {
        let k = v.get(key).ok_or_else(|| format!("map: {v} does not contain declared merge key: {key}"))?;
        list.retain(|o| o.get(key) != Some(k));
    }
    for v in new.iter().filter(|v| v[PATCH] != "delete") {
        let Value::Object(patch) = v else {
            return Err(format!("map: {v} does not contain declared merge key: {key}"));
        };
        let k = patch.get(key).ok_or_else(|| format!("map: {v} does not contain declared merge key: {key}"))?;
        match list.iter_mut().find(|o| o.get(key) == Some(k)) {
            Some(slot) => {
                let old = std::mem::take(slot);
                let old = if let Value::Object(m) = old { m } else { Map::new() };
                *slot = Value::Object(merge_map(old, patch, item)?);
            }
            None => list.push(Value::Object(merge_map(Map::new(), patch, item)?)),
        }
    }
    Ok(list)
}

/// Puts the items that `order` names in its order; the others stay where they
/// were relative to them (by the order of `before`).
fn reorder(list: Vec<Value>, order: &[Value], merge_key: Option<&str>, before: Option<&[Value]>) -> Vec<Value> {
    let id = |v: &Value| match merge_key {
        Some(k) => v.get(k).cloned().unwrap_or(Value::Null),
        None => v.clone(),
    };
    let rank: Vec<Value> = order.iter().map(id).collect();
    let original: Vec<Value> = before.unwrap_or(&list).iter().map(id).collect();
    let at = |ids: &[Value], v: &Value| ids.iter().position(|x| *x == id(v));
    let (mut named, rest): (Vec<Value>, Vec<Value>) = list.into_iter().partition(|v| at(&rank, v).is_some());
    named.sort_by_key(|v| at(&rank, v));
    let mut out = Vec::new();
    let (mut left, mut right) = (rest.into_iter().peekable(), named.into_iter().peekable());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        let first = matches!((at(&original, l), at(&original, r)), (Some(a), Some(b)) if a < b);
        out.extend(if first { left.next() } else { right.next() });
    }
    out.extend(left);
    out.extend(right);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(object: Value, patch: Value) -> Value {
        apply(&object, &patch, crate::schema::by_name("io.k8s.api.core.v1.Pod").unwrap()).unwrap()
    }

    #[test]
    fn merges_by_key() {
        let pod = json!({"metadata": {"finalizers": ["a"], "labels": {"x": "y"}}, "spec": {"containers": [
            {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}], "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"k": "v"}}});
        for (patch, pointer, want) in [
            (
                json!({"spec": {"containers": [{"name": "a", "image": "9", "args": ["z"]}]}}),
                "/spec/containers",
                json!([{"name": "a", "image": "9", "args": ["z"]}, {"name": "b", "image": "2"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                "/spec/containers",
                json!([{"name": "b", "image": "2"}]),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
                "/spec/containers",
                json!([{"name": "c"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
                "/spec/containers",
                json!([{"name": "c"}, {"name": "b", "image": "2"}, {"name": "a", "image": "1", "args": ["x"]}]),
            ),
            (json!({"metadata": {"finalizers": ["b", "a"]}}), "/metadata/finalizers", json!(["b", "a"])),
            (
                json!({"spec": {"containers": [{"name": "n"}]}}),
                "/spec/containers",
                json!([{"name": "n"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]),
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
                "/metadata/finalizers",
                json!(["c"]),
            ),
            (json!({"metadata": {"labels": {"x": null, "z": "1"}}}), "/metadata/labels", json!({"z": "1"})),
            (
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
                "/spec/volumes",
                json!([{"name": "v", "hostPath": {"path": "/"}}]),
            ),
            (
                json!({"spec": {"nodeSelector": {"$patch": "replace", "n": "w"}}}),
                "/spec/nodeSelector",
                json!({"n": "w"}),
            ),
            (json!({"spec": {"tolerations": [{"key": "a"}]}}), "/spec/tolerations", json!([{"key": "a"}])),
        ] {
            assert_eq!(run(pod.clone(), patch.clone()).pointer(pointer), Some(&want), "{patch}");
        }
    }

    #[test]
    fn refuses_items_without_key() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        let e = apply(
            &pod,
            &json!({"spec": {"containers": [{"image": "x"}]}}),
            crate::schema::by_name("io.k8s.api.core.v1.Pod").unwrap(),
        );
        assert!(e.unwrap_err().message.contains("does not contain declared merge key: name"));
    }
}
