//! From the status that the API has to the one that it shall have: a strategic merge patch. Pure.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Top-level fields that others write.
const FOREIGN: [&str; 6] = [
    "nominatedNodeName",
    "resourceClaimStatuses",
    "resize",
    "extendedResourceClaimStatus",
    "nodeAllocatableResourceClaimStatuses",
    "allocatedResources",
];

/// Lists that merge by key: to shrink or change them they are replaced as a whole.
const REPLACED: [&str; 2] = ["podIPs", "hostIPs"];

/// The patch, or none if nothing is to change.
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let old = object(old);
    let new = object(new);
    let mut status = Map::new();
    for (key, value) in &new {
        if old.get(key) == Some(value) || FOREIGN.contains(&key.as_str()) {
            continue;
        }
        let value = match key.as_str() {
            "conditions" => conditions(old.get(key), value),
            list if REPLACED.contains(&list) && old.contains_key(list) => replaced(value),
            _ => value.clone(),
        };
        status.insert(key.clone(), value);
    }
    for key in old.keys().filter(|k| !new.contains_key(*k) && !FOREIGN.contains(&k.as_str())) {
        status.insert(key.clone(), Value::Null);
    }
    (!status.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": status }))
}

fn object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn replaced(list: &Value) -> Value {
    let mut items = vec![json!({ "$patch": "replace" })];
    items.extend(list.as_array().into_iter().flatten().cloned());
    Value::Array(items)
}

/// The conditions that differ; fields that go are named as null.
fn conditions(old: Option<&Value>, new: &Value) -> Value {
    let old: Vec<&Value> = old.and_then(Value::as_array).into_iter().flatten().collect();
    let changed = new.as_array().into_iter().flatten().filter_map(|condition| {
        let before = old.iter().find(|c| c.get("type") == condition.get("type"));
        if before == Some(&condition) {
            return None;
        }
        let mut condition = condition.as_object().cloned().unwrap_or_default();
        for key in before.and_then(|b| b.as_object()).into_iter().flat_map(|b| b.keys()) {
            if !condition.contains_key(key) {
                condition.insert(key.clone(), Value::Null);
            }
        }
        Some(Value::Object(condition))
    });
    Value::Array(changed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_differences_are_sent() {
        let old = status(json!({
            "phase": "Pending", "podIPs": [{"ip": "1"}], "podIP": "1", "reason": "x",
            "conditions": [{"type": "Ready", "status": "False", "reason": "R"}, {"type": "PodScheduled", "status": "True"}],
        }));
        let new = status(json!({
            "phase": "Running", "podIPs": [{"ip": "2"}], "podIP": "2",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        }));
        assert_eq!(
            patch("u", &old, &new),
            Some(json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "podIP": "2", "podIPs": [{"$patch": "replace"}, {"ip": "2"}], "reason": null,
                "conditions": [{"type": "Ready", "status": "True", "reason": null}],
            }}))
        );
        assert_eq!(patch("u", &new, &new), None);
    }
}
