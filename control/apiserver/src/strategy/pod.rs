//! Pods: status at birth, quality of service, what may change later, how long they take to go.

use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use super::{Context, DeleteOptions, Strategy};
use crate::error::Result;

/// Strategy of pods.
#[derive(Debug)]
pub struct Pod;

impl Strategy for Pod {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        complete_resources(new);
        complete_host_ports(new);
        complete_label_keys(new);
        let mut status = json!({"phase": "Pending", "qosClass": api::qos::class(new)});
        if !items_at(new, "/spec/schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": fields::now(),
            }]);
        }
        new["status"] = status;
        Ok(())
    }

    fn prepare_for_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        // Ephemeral containers have a subresource of their own.
        fields::copy(new, old, &["spec", "ephemeralContainers"]);
        fields::copy(new, old, &["status"]);
        Ok(())
    }

    fn prepare_for_status_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        let class = str_at(old, "/status/qosClass");
        if !class.is_empty() && new["status"].is_object() {
            new["status"]["qosClass"] = json!(class);
        }
        Ok(())
    }

    fn grace_period(&self, old: &Value, options: &DeleteOptions) -> Option<i64> {
        let unscheduled = str_at(old, "/spec/nodeName").is_empty();
        let finished = matches!(str_at(old, "/status/phase"), "Succeeded" | "Failed");
        if unscheduled || finished {
            return Some(0);
        }
        let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
        let grace = options.grace_period_seconds.unwrap_or(own);
        Some(if grace < 0 { 1 } else { grace })
    }
}

/// Requests that were not given are the limits.
pub fn complete_resources(pod: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in fields::items_mut(pod, &["spec", list]) {
            let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
                continue;
            };
            let resources = &mut container["resources"];
            for (name, quantity) in limits {
                if resources.pointer("/requests").and_then(|r| r.get(&name)).is_none() {
                    resources["requests"][name] = quantity;
                }
            }
        }
    }
}

fn complete_host_ports(pod: &mut Value) {
    if pod.pointer("/spec/hostNetwork") != Some(&json!(true)) {
        return;
    }
    for list in ["containers", "initContainers"] {
        for container in fields::items_mut(pod, &["spec", list]) {
            for port in fields::items_mut(container, &["ports"]) {
                if port["hostPort"].as_i64().unwrap_or(0) == 0 {
                    port["hostPort"] = port["containerPort"].clone();
                }
            }
        }
    }
}

/// Selectors with label keys get the pod's own values of them.
fn complete_label_keys(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let add = |term: &mut Value, keys: &str, operator: &str| {
        let keys = term[keys].as_array().cloned().unwrap_or_default();
        let Some(selector) = term.get_mut("labelSelector").and_then(Value::as_object_mut) else { return };
        // Nothing is validated yet: no more is added than can be right, and one more, which validation refuses.
        let most = labels.as_object().map_or(0, |labels| labels.len()) + 1;
        let own = keys.iter().filter_map(Value::as_str).filter_map(|key| Some((key, labels.get(key)?)));
        let short = |value: &Value| value.as_str().is_some_and(|text| text.len() <= 63);
        for (key, value) in own.filter(|(_, value)| short(value)).take(most) {
            if let Some(terms) = selector.entry("matchExpressions").or_insert_with(|| json!([])).as_array_mut() {
                terms.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    };
    for constraint in fields::items_mut(pod, &["spec", "topologySpreadConstraints"]) {
        add(constraint, "matchLabelKeys", "In");
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let place = |list| ["spec", "affinity", kind, list];
        for term in fields::items_mut(pod, &place("requiredDuringSchedulingIgnoredDuringExecution")) {
            add(term, "matchLabelKeys", "In");
            add(term, "mismatchLabelKeys", "NotIn");
        }
        for weighted in fields::items_mut(pod, &place("preferredDuringSchedulingIgnoredDuringExecution")) {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                add(term, "matchLabelKeys", "In");
                add(term, "mismatchLabelKeys", "NotIn");
            }
        }
    }
}

/// `pods/ephemeralcontainers`: the old pod with the new one's ephemeral containers.
pub fn with_ephemeral_containers(new: &Value, old: &Value) -> Result<Value> {
    let mut out = old.clone();
    fields::copy(&mut out, new, &["spec", "ephemeralContainers"]);
    Ok(out)
}

/// `pods/resize`: the old pod with the new one's resources.
pub fn with_resources(new: &Value, old: &Value) -> Result<Value> {
    let mut out = old.clone();
    fields::copy(&mut out, new, &["spec", "resources"]);
    for list in ["containers", "initContainers"] {
        let after = items_at(new, &format!("/spec/{list}")).to_vec();
        for (i, container) in fields::items_mut(&mut out, &["spec", list]).iter_mut().enumerate() {
            let same_place = after.get(i).filter(|c| c["name"] == container["name"]);
            if let Some(is) = same_place.or_else(|| after.iter().find(|c| c["name"] == container["name"])) {
                container["resources"] = is["resources"].clone();
                container["resizePolicy"] = is["resizePolicy"].clone();
            }
        }
    }
    fields::drop_nulls_in_containers(&mut out);
    complete_resources(&mut out);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_become_requirements() {
        let term = || {
            json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "a"}},
                "matchLabelKeys": ["hash", "none"], "mismatchLabelKeys": ["tenant"]})
        };
        let mut pod = json!({"metadata": {"labels": {"app": "a", "hash": "1", "tenant": "t"}}, "spec": {
            "topologySpreadConstraints": [{"matchLabelKeys": ["hash"], "labelSelector": {}}, {"matchLabelKeys": ["hash"]}],
            "affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term()],
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term()}],
            }},
        }});
        complete_label_keys(&mut pod);
        let own = json!({"key": "hash", "operator": "In", "values": ["1"]});
        let both = json!([own, {"key": "tenant", "operator": "NotIn", "values": ["t"]}]);
        let anti = &pod["spec"]["affinity"]["podAntiAffinity"];
        let required = &anti["requiredDuringSchedulingIgnoredDuringExecution"][0];
        let preferred = &anti["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
        assert_eq!(required["labelSelector"]["matchExpressions"], both);
        assert_eq!(preferred["labelSelector"]["matchExpressions"], both);
        let spread = &pod["spec"]["topologySpreadConstraints"];
        assert_eq!(spread[0]["labelSelector"]["matchExpressions"], json!([own]));
        assert!(spread[1].get("labelSelector").is_none());
    }

    #[test]
    fn label_keys_do_not_multiply_what_was_sent() {
        let keys = vec!["a"; 10_000];
        for (value, want) in [("x".repeat(100_000), 0), ("x".into(), 2)] {
            let constraint = json!({"matchLabelKeys": keys, "labelSelector": {}});
            let mut pod =
                json!({"metadata": {"labels": {"a": value}}, "spec": {"topologySpreadConstraints": [constraint]}});
            complete_label_keys(&mut pod);
            let added = pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"]
                .as_array()
                .map_or(0, Vec::len);
            assert_eq!(added, want);
        }
    }

    #[test]
    fn grace() {
        let running =
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 10}, "status": {"phase": "Running"}});
        let with = |g| DeleteOptions { grace_period_seconds: g, ..DeleteOptions::default() };
        assert_eq!(Pod.grace_period(&running, &with(None)), Some(10));
        assert_eq!(Pod.grace_period(&running, &with(Some(0))), Some(0));
        assert_eq!(Pod.grace_period(&running, &with(Some(-1))), Some(1));
        assert_eq!(Pod.grace_period(&json!({"spec": {}}), &with(None)), Some(0));
        assert_eq!(
            Pod.grace_period(&json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), &with(Some(30))),
            Some(0)
        );
    }
}
