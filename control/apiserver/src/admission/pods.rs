//! Priority, DefaultTolerationSeconds, RuntimeClass, and the first taint of a node.

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::authn::view::{PRIORITY_CLASSES, RUNTIME_CLASSES, items_at, name_of, str_at};
use crate::error::Result;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Resolves a new pod's priority class.
pub fn priority(at: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    let named = str_at(pod, "/spec/priorityClassName").to_string();
    let (name, value, preemption) = match named.as_str() {
        "" => default_priority(at),
        name => {
            let class = at.view().get(PRIORITY_CLASSES, "", name);
            let class = class.ok_or_else(|| at.forbidden(&format!("no PriorityClass with name {name} was found")))?;
            let policy = str_at(&class, "/preemptionPolicy").to_string();
            (name.to_string(), class["value"].as_i64().unwrap_or(0), policy)
        }
    };
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|p| *p != value) {
        return Err(at.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    if !name.is_empty() {
        pod["spec"]["priorityClassName"] = json!(name);
    }
    pod["spec"]["priority"] = json!(value);
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] =
            json!(if preemption.is_empty() { "PreemptLowerPriority" } else { &preemption });
    }
    Ok(())
}

fn default_priority(at: &Attributes<'_>) -> (String, i64, String) {
    let classes = at.view().list(PRIORITY_CLASSES, "");
    let default =
        classes.iter().filter(|c| c["globalDefault"] == json!(true)).min_by_key(|c| c["value"].as_i64().unwrap_or(0));
    match default {
        Some(c) => {
            (name_of(c).to_string(), c["value"].as_i64().unwrap_or(0), str_at(c, "/preemptionPolicy").to_string())
        }
        None => (String::new(), 0, String::new()),
    }
}

/// Checks a priority class itself.
pub fn priority_class(at: &Attributes<'_>, class: &Value) -> Result<()> {
    if !at.is("scheduling.k8s.io", "priorityclasses") {
        return Ok(());
    }
    if at.operation == Operation::Create && at.name.starts_with("system-") {
        return Err(at.forbidden("priority class names with 'system-' prefix are reserved for system use only"));
    }
    if class["globalDefault"] == json!(true) {
        let others = at.view().list(PRIORITY_CLASSES, "");
        if let Some(other) = others.iter().find(|c| c["globalDefault"] == json!(true) && name_of(c) != at.name) {
            let detail =
                format!("PriorityClass {} is already marked as default. Only one default can exist", name_of(other));
            return Err(at.forbidden(&detail));
        }
    }
    Ok(())
}

/// A pod stays five minutes on a node that does not answer.
pub fn default_tolerations(pod: &mut Value) {
    for key in [NOT_READY, UNREACHABLE] {
        let tolerated = items_at(pod, "/spec/tolerations").iter().any(|t| {
            let effect = str_at(t, "/effect");
            let of_key = str_at(t, "/key") == key || str_at(t, "/key").is_empty();
            of_key && matches!(effect, "" | "NoExecute")
        });
        if tolerated {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        match pod["spec"]["tolerations"].as_array_mut() {
            Some(list) => list.push(toleration),
            None => pod["spec"]["tolerations"] = json!([toleration]),
        }
    }
}

/// Overhead and node choice of the pod's runtime class.
pub fn runtime_class(at: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    let name = str_at(pod, "/spec/runtimeClassName").to_string();
    if name.is_empty() {
        return Ok(());
    }
    let class = at.view().get(RUNTIME_CLASSES, "", &name);
    let class = class.ok_or_else(|| at.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")))?;
    let overhead = &class["overhead"]["podFixed"];
    if overhead.is_object() {
        if pod["spec"]["overhead"].is_object() && pod["spec"]["overhead"] != *overhead {
            return Err(at.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let set = pod["spec"]["nodeSelector"].get(key).cloned();
        if set.is_some_and(|v| v != *value) {
            return Err(at.forbidden("conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector differ"));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    for toleration in items_at(&class, "/scheduling/tolerations") {
        if !items_at(pod, "/spec/tolerations").contains(toleration) {
            match pod["spec"]["tolerations"].as_array_mut() {
                Some(list) => list.push(toleration.clone()),
                None => pod["spec"]["tolerations"] = json!([toleration]),
            }
        }
    }
    Ok(())
}

/// TaintNodesByCondition: a new node takes no pods until it is ready.
pub fn taint_new_node(at: &Attributes<'_>, node: &mut Value) {
    if !at.is("", "nodes") || items_at(node, "/spec/taints").iter().any(|t| str_at(t, "/key") == NOT_READY) {
        return;
    }
    let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
    match node["spec"]["taints"].as_array_mut() {
        Some(list) => list.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let mut pod = json!({"spec": {"tolerations": [{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}});
        default_tolerations(&mut pod);
        default_tolerations(&mut pod);
        let list = items_at(&pod, "/spec/tolerations");
        assert_eq!(list.len(), 2);
        assert_eq!(list[0]["tolerationSeconds"], 5);
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        default_tolerations(&mut all);
        assert_eq!(items_at(&all, "/spec/tolerations").len(), 1);
    }
}
