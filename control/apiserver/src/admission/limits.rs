//! LimitRanger: defaults and bounds of a namespace's containers, pods and claims.

use api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::{Attributes, Operation};
use crate::authn::view::{LIMIT_RANGES, items_at, name_of, str_at};
use crate::error::Result;
use crate::strategy::fields;

/// Gives a new pod's containers the namespace's default requests and limits.
pub fn set_defaults(at: &Attributes<'_>, pod: &mut Value) {
    for range in at.view().list(LIMIT_RANGES, at.namespace) {
        apply_defaults(&range, pod);
    }
}

fn apply_defaults(range: &Value, pod: &mut Value) {
    let mut limits = Map::new();
    let mut requests = Map::new();
    for item in items_at(range, "/spec/limits").iter().filter(|i| str_at(i, "/type") == "Container") {
        limits.extend(item["default"].as_object().cloned().unwrap_or_default());
        requests.extend(item["defaultRequest"].as_object().cloned().unwrap_or_default());
    }
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for list in ["initContainers", "containers"] {
        let what = if list == "containers" { "container" } else { "init container" };
        for container in fields::items_mut(pod, &["spec", list]) {
            let name = str_at(container, "/name").to_string();
            for (kind, defaults) in [("limits", &limits), ("requests", &requests)] {
                let set = fill(container, kind, defaults);
                if !set.is_empty() {
                    let kind = kind.trim_end_matches('s');
                    notes.push(format!("{} {kind} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        fields::set_meta(pod, "annotations", "kubernetes.io/limit-ranger", &text);
    }
}

fn fill(container: &mut Value, kind: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    for (name, value) in defaults {
        if container["resources"][kind].get(name).is_some() {
            continue;
        }
        // A default request may not exceed a limit that the author set himself.
        container["resources"][kind][name] = value.clone();
        set.push(name.clone());
    }
    set
}

/// Checks a new pod or claim against the namespace's bounds.
pub fn validate(at: &Attributes<'_>, new: &Value) -> Result<()> {
    let pods = at.is("", "pods") && at.operation == Operation::Create;
    let claims = at.is("", "persistentvolumeclaims");
    if !pods && !claims {
        return Ok(());
    }
    for range in at.view().list(LIMIT_RANGES, at.namespace) {
        let mut errors = Vec::new();
        for item in items_at(&range, "/spec/limits") {
            match (str_at(item, "/type"), pods) {
                ("Container", true) => {
                    for c in items_at(new, "/spec/containers").iter().chain(items_at(new, "/spec/initContainers")) {
                        bounds(item, "Container", &c["resources"]["requests"], &c["resources"]["limits"], &mut errors);
                    }
                }
                ("Pod", true) => bounds(item, "Pod", &total(new, "requests"), &total(new, "limits"), &mut errors),
                ("PersistentVolumeClaim", false) => {
                    let requests = &new["spec"]["resources"]["requests"];
                    bounds(item, "PersistentVolumeClaim", requests, requests, &mut errors);
                }
                _ => {}
            }
        }
        if !errors.is_empty() {
            tracing::debug!(range = name_of(&range), "limit range refused {}", at.name);
            let text = if errors.len() == 1 { errors[0].clone() } else { format!("[{}]", errors.join(", ")) };
            return Err(at.forbidden(&text));
        }
    }
    Ok(())
}

/// Sum over the containers of a pod; an init container counts where it needs more.
pub fn total(pod: &Value, kind: &str) -> Value {
    let mut sum: std::collections::BTreeMap<String, Quantity> = Default::default();
    let amounts = |c: &Value| -> Vec<(String, Quantity)> {
        let map = c["resources"][kind].as_object().cloned().unwrap_or_default();
        map.iter().filter_map(|(k, v)| Some((k.clone(), fields::quantity(v)?))).collect()
    };
    let sidecar = |c: &&Value| str_at(c, "/restartPolicy") == "Always";
    let inits = items_at(pod, "/spec/initContainers");
    for container in items_at(pod, "/spec/containers").iter().chain(inits.iter().filter(sidecar)) {
        for (name, q) in amounts(container) {
            sum.entry(name).and_modify(|s| *s = s.plus(&q)).or_insert(q);
        }
    }
    for container in inits.iter().filter(|c| !sidecar(c)) {
        for (name, q) in amounts(container) {
            sum.entry(name).and_modify(|s| *s = (*s).max(q)).or_insert(q);
        }
    }
    if let Some(overhead) = pod.pointer("/spec/overhead").and_then(Value::as_object) {
        for (name, q) in overhead.iter().filter_map(|(k, v)| Some((k, fields::quantity(v)?))) {
            if let Some(s) = sum.get_mut(name) {
                *s = s.plus(&q);
            } else if kind == "requests" {
                sum.insert(name.clone(), q);
            }
        }
    }
    sum.into_iter().map(|(k, q)| (k, json!(q.to_string()))).collect::<Map<_, _>>().into()
}

fn bounds(item: &Value, kind: &str, requests: &Value, limits: &Value, errors: &mut Vec<String>) {
    let amount = |map: &Value, name: &str| map.get(name).and_then(fields::quantity);
    for (name, bound) in item["min"].as_object().into_iter().flatten() {
        let Some(min) = fields::quantity(bound) else { continue };
        match amount(requests, name) {
            None => errors.push(format!("minimum {name} usage per {kind} is {min}.  No request is specified")),
            Some(q) if q < min => errors.push(format!("minimum {name} usage per {kind} is {min}, but request is {q}")),
            Some(_) => {}
        }
    }
    for (name, bound) in item["max"].as_object().into_iter().flatten() {
        let Some(max) = fields::quantity(bound) else { continue };
        match amount(limits, name) {
            None => errors.push(format!("maximum {name} usage per {kind} is {max}.  No limit is specified")),
            Some(q) if q > max => errors.push(format!("maximum {name} usage per {kind} is {max}, but limit is {q}")),
            Some(_) => {}
        }
    }
    for (name, bound) in item["maxLimitRequestRatio"].as_object().into_iter().flatten() {
        let Some(ratio) = fields::quantity(bound) else { continue };
        let (request, limit) = (amount(requests, name), amount(limits, name));
        if let (Some(request), Some(limit)) = (request, limit)
            && request.sign() > 0
        {
            let provided = limit.milli() as f64 / request.milli().max(1) as f64;
            if provided > ratio.milli() as f64 / 1000.0 {
                errors.push(format!(
                    "{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {provided:.6}"
                ));
            }
        } else {
            errors.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but no request or limit is specified"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_only_gaps() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}]}});
        let mut pod =
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "2"}}}]}});
        apply_defaults(&range, &mut pod);
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(*resources, json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m"}}));
        assert!(pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"].is_string());
    }

    #[test]
    fn bounds_are_kept() {
        let item = json!({"min": {"cpu": "100m"}, "max": {"cpu": "1"}});
        for (request, limit, want) in [("200m", "500m", 0), ("50m", "500m", 1), ("50m", "2", 2)] {
            let mut errors = Vec::new();
            bounds(&item, "Container", &json!({"cpu": request}), &json!({"cpu": limit}), &mut errors);
            assert_eq!(errors.len(), want, "{errors:?}");
        }
    }

    #[test]
    fn totals() {
        let pod = json!({"spec": {"initContainers": [{"resources": {"requests": {"cpu": "3"}}}],
            "containers": [{"resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]}});
        assert_eq!(total(&pod, "requests"), json!({"cpu": "3", "memory": "1Gi"}));
    }
}
