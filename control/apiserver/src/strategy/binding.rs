//! Binding a pod to its node.

use std::sync::Arc;

use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use crate::error::{ApiError, Cause, Result};
use crate::registry::Change;
use crate::state::AppState;

/// Puts the pod on the node that the Binding names; `dry_run` only checks.
pub async fn bind(state: &Arc<AppState>, namespace: &str, name: &str, binding: &Value, dry_run: bool) -> Result<()> {
    let node = str_at(binding, "/target/name").to_string();
    let faults = api::validation::binding(binding);
    if !faults.is_empty() {
        return Err(ApiError::invalid("", "Binding", name, faults.into_iter().map(Cause::from).collect()));
    }
    let uid = str_at(binding, "/metadata/uid").to_string();
    let annotations = binding["metadata"]["annotations"].clone();
    let change = |pod: Value| {
        let bound = bound(pod, &node, &uid, &annotations)?;
        Ok(if dry_run { Change::Keep } else { Change::Write(bound) })
    };
    state.registry.guaranteed_update("", "pods", namespace, name, change).await.map(drop)
}

fn bound(mut pod: Value, node: &str, uid: &str, annotations: &Value) -> Result<Value> {
    let name = fields::name(&pod).to_string();
    let conflict = |detail: String| ApiError::conflict("", "pods/binding", &name, &detail);
    if !uid.is_empty() && uid != str_at(&pod, "/metadata/uid") {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            str_at(&pod, "/metadata/uid")
        )));
    }
    if !str_at(&pod, "/metadata/deletionTimestamp").is_empty() {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let current = str_at(&pod, "/spec/nodeName");
    if !current.is_empty() {
        return Err(conflict(format!("pod {name} is already assigned to node {current:?}")));
    }
    if !items_at(&pod, "/spec/schedulingGates").is_empty() {
        return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    pod["spec"]["nodeName"] = json!(node);
    for (key, value) in annotations.as_object().into_iter().flatten() {
        fields::set_meta(&mut pod, "annotations", key, value.as_str().unwrap_or_default());
    }
    set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}));
    if let Some(generation) = pod["metadata"]["generation"].as_i64() {
        pod["metadata"]["generation"] = json!(generation + 1);
    }
    Ok(pod)
}

/// Sets a pod condition, with its times.
pub fn set_condition(pod: &mut Value, mut condition: Value) {
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = json!(fields::now());
    let mut list = items_at(pod, "/status/conditions").to_vec();
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => {
            if old["status"] == condition["status"] {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => list.push(condition),
    }
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    pod["status"]["conditions"] = json!(list);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}});
        let out = bound(pod.clone(), "n", "u", &json!({"a": "b"})).expect("bound");
        assert_eq!(out["spec"]["nodeName"], "n");
        assert_eq!(out["metadata"]["annotations"]["a"], "b");
        assert_eq!(out["status"]["conditions"][0]["type"], "PodScheduled");
        assert_eq!(bound(out, "m", "", &Value::Null).expect_err("again").code, 409);
        assert!(bound(pod.clone(), "n", "other", &Value::Null).is_err());
        let mut gated = pod;
        gated["spec"]["schedulingGates"] = json!([{"name": "g"}]);
        assert!(bound(gated, "n", "", &Value::Null).is_err());
    }
}
