//! Strategic merge patch: lists are merged by key or as sets where the schema
//! says so, and directives (`$patch`, `$retainKeys`, `$setElementOrder/x`,
//! `$deleteFromPrimitiveList/x`) say what a plain merge cannot.

use crate::schema::{Field, Schema, Ty};
use crate::status::Status;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

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
        let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
        original.retain(|k, _| keys.contains(k.as_str()));
    }
    for (key, value) in patch.iter().filter(|(k, _)| k.starts_with(DELETE)) {
        let name = &key[DELETE.len()..];
        if let (Some(Value::Array(list)), Some(gone)) = (original.get_mut(name), value.as_array()) {
            let gone: HashSet<&Value> = gone.iter().collect();
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
            let mut known: HashSet<&Value> = before.iter().collect();
            let mut out = old;
            out.extend(new.iter().filter(|v| known.insert(*v)).cloned());
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
    let mut gone = HashSet::new();
    for v in new.iter().filter(|v| v[PATCH] == "delete") {
        gone.insert(v.get(key).ok_or_else(|| format!("map: {v} does not contain declared merge key: {key}"))?);
    }
    list.retain(|o| o.get(key).is_none_or(|k| !gone.contains(k)));
    let mut places: HashMap<Value, usize> = HashMap::with_capacity(list.len());
    for (i, o) in list.iter().enumerate() {
        if let Some(k) = o.get(key) {
            places.entry(k.clone()).or_insert(i);
        }
    }
    for v in new.iter().filter(|v| v[PATCH] != "delete") {
        let Value::Object(patch) = v else {
            return Err(format!("map: {v} does not contain declared merge key: {key}"));
        };
        let k = patch.get(key).ok_or_else(|| format!("map: {v} does not contain declared merge key: {key}"))?;
        match places.get(k).and_then(|i| list.get_mut(*i)) {
            Some(slot) => {
                let old = std::mem::take(slot);
                let old = if let Value::Object(m) = old { m } else { Map::new() };
                *slot = Value::Object(merge_map(old, patch, item)?);
            }
            None => {
                let made = merge_map(Map::new(), patch, item)?;
                if let Some(k) = made.get(key) {
                    places.entry(k.clone()).or_insert(list.len());
                }
                list.push(Value::Object(made));
            }
        }
    }
    Ok(list)
}

/// Puts the items that `order` names in its order; the others stay where they
/// were relative to them (by the order of `before`).
fn reorder(list: Vec<Value>, order: &[Value], merge_key: Option<&str>, before: Option<&[Value]>) -> Vec<Value> {
    let (rank, original) = (places(order, merge_key), places(before.unwrap_or(&list), merge_key));
    let at: Vec<_> =
        list.iter().map(|v| id(v, merge_key)).map(|id| (rank.get(id).copied(), original.get(id).copied())).collect();
    let (mut named, rest): (Vec<_>, Vec<_>) = at.into_iter().zip(list).partition(|((rank, _), _)| rank.is_some());
    named.sort_by_key(|((rank, _), _)| *rank);
    let mut out = Vec::new();
    let (mut left, mut right) = (rest.into_iter().peekable(), named.into_iter().peekable());
    while let (Some(((_, l), _)), Some(((_, r), _))) = (left.peek(), right.peek()) {
        let first = matches!((l, r), (Some(a), Some(b)) if a < b);
        out.extend(if first { left.next() } else { right.next() });
    }
    out.extend(left);
    out.extend(right);
    out.into_iter().map(|(_, v)| v).collect()
}

/// What an item is known by.
fn id<'v>(v: &'v Value, merge_key: Option<&str>) -> &'v Value {
    match merge_key {
        Some(k) => v.get(k).unwrap_or(&Value::Null),
        None => v,
    }
}

/// Where each is first.
fn places<'v>(items: &'v [Value], merge_key: Option<&str>) -> HashMap<&'v Value, usize> {
    let mut out = HashMap::with_capacity(items.len());
    for (i, v) in items.iter().enumerate() {
        out.entry(id(v, merge_key)).or_insert(i);
    }
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
    fn long_lists_are_merged_in_linear_time() {
        // By comparing each with each, this would take minutes.
        let names = |from: usize, to: usize| (from..to).map(|i| json!({"name": format!("c{i}")})).collect::<Vec<_>>();
        let texts = |from: usize, to: usize| (from..to).map(|i| json!(format!("f{i}"))).collect::<Vec<_>>();
        let pod = json!({"metadata": {"finalizers": texts(0, 40_000)}, "spec": {"containers": names(0, 40_000)}});
        let patch = json!({"metadata": {"finalizers": texts(20_000, 60_000), "$deleteFromPrimitiveList/finalizers": texts(0, 10_000)},
            "spec": {"containers": names(20_000, 60_000), "$setElementOrder/containers": names(0, 60_000)}});
        let done = run(pod, patch);
        assert_eq!(done["spec"]["containers"], json!(names(0, 60_000)));
        assert_eq!(done["metadata"]["finalizers"].as_array().unwrap().len(), 50_000);
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
