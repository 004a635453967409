//! Conversion between served versions of one stored resource: events of the core
//! and events groups, autoscaling v1 and v2. (Custom resources convert by their
//! CRD's strategy, which needs I/O where it is a webhook.)

use crate::kinds::Kind;
use crate::meta;
use serde_json::{Map, Value, json};

/// Changes an object into another version of the same resource. Kinds that have
/// one version only are returned as they are.
pub fn convert(mut o: Value, to: &Kind) -> Value {
    let api_version = to.api_version();
    if meta::api_version(&o) == api_version {
        return o;
    }
    match (to.group.as_ref(), to.plural.as_ref()) {
        ("events.k8s.io", "events") => rename(&mut o, CORE_TO_EVENTS),
        ("", "events") => rename(&mut o, &CORE_TO_EVENTS.map(|(a, b)| (b, a))),
        ("autoscaling", "horizontalpodautoscalers") if to.version == "v1" => autoscaler_to_v1(&mut o),
        ("autoscaling", "horizontalpodautoscalers") => autoscaler_to_v2(&mut o),
        _ => {}
    }
    meta::set_type(&mut o, &api_version, &to.kind);
    o
}

const CORE_TO_EVENTS: &[(&str, &str); 7] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(o: &mut Value, names: &[(&str, &str)]) {
    let Some(m) = o.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(v) = m.remove(*from) {
            m.insert((*to).into(), v);
        }
    }
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn is_cpu(m: &Value) -> bool {
    m["type"] == "Resource" && m["resource"]["name"] == "cpu"
}

/// What v1 cannot say goes into annotations.
fn autoscaler_to_v1(o: &mut Value) {
    let (mut rest, mut notes) = (Vec::new(), Map::new());
    let spec = meta::child_mut(meta::object_mut(o), "spec");
    if let Some(Value::Array(metrics)) = spec.remove("metrics") {
        for m in metrics {
            match m["resource"]["target"]["averageUtilization"].as_i64() {
                Some(u) if is_cpu(&m) && !spec.contains_key("targetCPUUtilizationPercentage") => {
                    spec.insert("targetCPUUtilizationPercentage".into(), u.into());
                }
                _ => rest.push(m),
            }
        }
    }
    if !rest.is_empty() {
        notes.insert(METRICS.into(), Value::Array(rest).to_string().into());
    }
    if let Some(b) = spec.remove("behavior") {
        notes.insert(BEHAVIOR.into(), b.to_string().into());
    }
    let status = meta::child_mut(meta::object_mut(o), "status");
    // Optional in v2 and not in v1, whose clients miss it.
    status.entry("currentReplicas").or_insert_with(|| 0.into());
    if let Some(Value::Array(current)) = status.remove("currentMetrics") {
        if let Some(u) =
            current.iter().find(|m| is_cpu(m)).and_then(|m| m["resource"]["current"]["averageUtilization"].as_i64())
        {
            status.insert("currentCPUUtilizationPercentage".into(), u.into());
        }
        notes.insert(CURRENT.into(), Value::Array(current).to_string().into());
    }
    if let Some(c) = status.remove("conditions") {
        notes.insert(CONDITIONS.into(), c.to_string().into());
    }
    if !notes.is_empty() {
        meta::child_mut(meta::metadata_mut(o), "annotations").append(&mut notes);
    }
}

fn autoscaler_to_v2(o: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let notes = o.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
        let text = notes.remove(key)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let (metrics, behavior, current, conditions) = (take(METRICS), take(BEHAVIOR), take(CURRENT), take(CONDITIONS));
    if o["metadata"]["annotations"].as_object().is_some_and(Map::is_empty) {
        meta::remove(o, "annotations");
    }
    let spec = meta::child_mut(meta::object_mut(o), "spec");
    let mut list = Vec::new();
    if let Some(u) = spec.remove("targetCPUUtilizationPercentage") {
        list.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": u}}}));
    }
    if let Some(Value::Array(more)) = metrics {
        list.extend(more);
    }
    if !list.is_empty() {
        spec.insert("metrics".into(), Value::Array(list));
    }
    if let Some(b) = behavior {
        spec.insert("behavior".into(), b);
    }
    let status = meta::child_mut(meta::object_mut(o), "status");
    let cpu = status.remove("currentCPUUtilizationPercentage");
    if status.get("currentReplicas").is_some_and(|n| *n == 0) {
        status.remove("currentReplicas");
    }
    match (current, cpu) {
        (Some(c), _) => {
            status.insert("currentMetrics".into(), c);
        }
        (None, Some(u)) => {
            let m = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": u, "averageValue": "0"}}}]);
            status.insert("currentMetrics".into(), m);
        }
        _ => {}
    }
    if let Some(c) = conditions {
        status.insert("conditions".into(), c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    #[test]
    fn autoscalers_come_back() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 70}}}]}, "status": {"currentReplicas": 1}});
        let v1 = convert(v2.clone(), find("autoscaling", "v1", "horizontalpodautoscalers").unwrap());
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
        let back = |v1: Value| convert(v1, find("autoscaling", "v2", "horizontalpodautoscalers").unwrap());
        assert_eq!(back(v1), v2);
        let mut fresh = v2;
        fresh["status"] = json!({"desiredReplicas": 0});
        let v1 = convert(fresh.clone(), find("autoscaling", "v1", "horizontalpodautoscalers").unwrap());
        assert_eq!(v1["status"], json!({"currentReplicas": 0, "desiredReplicas": 0}));
        assert_eq!(back(v1), fresh);
    }

    #[test]
    fn events_come_back() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {}, "involvedObject": {"name": "a"}, "message": "m", "count": 2});
        let e = convert(core.clone(), find("events.k8s.io", "v1", "events").unwrap());
        assert_eq!((&e["regarding"]["name"], &e["note"], &e["deprecatedCount"]), (&json!("a"), &json!("m"), &json!(2)));
        assert_eq!(convert(e, find("", "v1", "events").unwrap()), core);
    }
}
