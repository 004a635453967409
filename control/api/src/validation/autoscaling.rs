//! Horizontal pod autoscalers and scales.

use super::at::{At, Errors};
use super::resources;
use crate::names;

const SOURCES: [(&str, &str); 5] = [
    ("object", "Object"),
    ("external", "External"),
    ("pods", "Pods"),
    ("resource", "Resource"),
    ("containerResource", "ContainerResource"),
];
const SOURCE_TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

/// An autoscaler; one that was at zero may stay there.
pub(crate) fn autoscaler(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let (min, max) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    let least = i64::from(old.and_then(|o| o.get("spec.minReplicas").int()) != Some(0));
    if min.int().is_some_and(|n| n < least) {
        e.invalid(&min, format!("must be greater than or equal to {least}"));
    }
    let most = max.int().unwrap_or(0);
    if most < 1 {
        e.invalid_as(&max, most, "must be greater than 0");
    }
    if min.int().is_some_and(|n| most < n) {
        e.invalid_as(&max, most, "must be greater than or equal to `minReplicas`");
    }
    let target = spec.get("scaleTargetRef");
    reference(e, &target);
    // A target that stays is not asked for its group again.
    let stays = old.is_some_and(|o| {
        let was = o.get("spec.scaleTargetRef");
        ["apiVersion", "kind"].iter().all(|f| was.get(f).text() == target.get(f).text())
    });
    if !stays {
        group_of(e, &target, target.get("kind").text() == "ReplicationController");
    }
    let metrics = spec.get("metrics");
    let described = |o: &At| {
        let mut faults = Errors::default();
        let list = o.get("spec.metrics");
        let objects = list.items().filter(|m| m.get("type").text() == "Object");
        objects.for_each(|m| group_of(&mut faults, &m.get("object.describedObject"), true));
        !faults.0.is_empty()
    };
    let loose = old.is_some_and(described);
    metrics.items().for_each(|m| metric(e, &m, loose));
    let outside = metrics.items().any(|m| ["Object", "External"].contains(&m.get("type").text()));
    if min.int() == Some(0) && !outside {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        e.forbidden(&metrics, detail);
    }
    for way in ["scaleUp", "scaleDown"] {
        rules(e, &spec.get("behavior").get(way));
    }
}

fn reference(e: &mut Errors, at: &At) {
    for field in ["kind", "name"] {
        if e.need(&at.get(field)) {
            e.all(&at.get(field), names::path_segment(at.get(field).text()));
        }
    }
}

/// The group that a reference names; the core group is named by none.
fn group_of(e: &mut Errors, at: &At, core: bool) {
    let version = at.get("apiVersion");
    let text = version.text();
    match text.matches('/').count() {
        0 | 1 if text.starts_with('/') || !text.contains('/') => {
            if !core {
                e.invalid_as(&version, text, "apiVersion must specify API group");
            }
        }
        1 => {}
        _ => e.invalid(&version, format!("unexpected GroupVersion string: {text}")),
    }
}

fn rules(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    let window = at.get("stabilizationWindowSeconds");
    if window.int().is_some_and(|n| n < 0) {
        e.invalid(&window, "must be greater than or equal to zero");
    }
    if window.int().is_some_and(|n| n > 3600) {
        e.invalid(&window, "must be less than or equal to 3600");
    }
    let select = at.get("selectPolicy");
    if select.is_set() && !["Disabled", "Max", "Min"].contains(&select.text()) {
        e.not_supported(&select, &["Disabled", "Max", "Min"]);
    }
    let policies = at.get("policies");
    if policies.is_empty() {
        e.required(&policies, "must specify at least one Policy");
    }
    for p in policies.items() {
        if !["Percent", "Pods"].contains(&p.get("type").text()) {
            e.not_supported(&p.get("type"), &["Percent", "Pods"]);
        }
        for field in ["value", "periodSeconds"] {
            let n = p.get(field).int().unwrap_or(0);
            if n <= 0 {
                e.invalid_as(&p.get(field), n, "must be greater than zero");
            }
        }
        if p.get("periodSeconds").int().is_some_and(|n| n > 1800) {
            e.invalid(&p.get("periodSeconds"), "must be less than or equal to 1800");
        }
    }
    if let Some(q) = at.get("tolerance").quantity().filter(|q| q.sign() < 0) {
        e.invalid_as(&at.get("tolerance"), q.to_string(), "must be greater than or equal to 0");
    }
}

/// One metric; `loose` when the versions of described objects are taken as they are.
fn metric(e: &mut Errors, m: &At, loose: bool) {
    let kind = m.get("type");
    if kind.is_empty() {
        e.required(&kind, "must specify a metric source type");
    }
    if !SOURCE_TYPES.contains(&kind.text()) {
        e.not_supported(&kind, SOURCE_TYPES);
    }
    let present: Vec<&str> = SOURCES.iter().map(|s| s.0).filter(|s| m.get(s).is_set()).collect();
    if let Some(first) = present.first() {
        source(e, first, &m.get(first), loose);
    }
    let expected = SOURCES.iter().find(|s| s.1 == kind.text()).map(|s| s.0);
    match expected {
        Some(field) => {
            if !m.get(field).is_set() {
                e.required(&m.get(field), "must populate information for the given metric source");
            }
        }
        None => e.not_supported(&kind, SOURCE_TYPES),
    }
    if present.len() != 1 {
        for other in present.iter().filter(|p| Some(**p) != expected) {
            e.forbidden(&m.get(other), "must populate the given metric source only");
        }
    }
}

fn source(e: &mut Errors, kind: &str, at: &At, loose: bool) {
    let target = at.get("target");
    let has = |f: &str| target.get(f).is_set();
    if kind == "object" {
        reference(e, &at.get("describedObject"));
        if !loose {
            group_of(e, &at.get("describedObject"), true);
        }
    }
    match kind {
        "object" | "external" | "pods" => identifier(e, &at.get("metric")),
        _ => {
            let name = at.get("name");
            if name.is_empty() {
                e.required(&name, "must specify a resource name");
            } else if kind == "containerResource" {
                resources::container_name(e, &name, name.text());
            }
        }
    }
    if kind == "containerResource" {
        let container = at.get("container");
        if container.is_empty() {
            e.required(&container, "must specify a container");
        } else {
            e.dns_label(&container);
        }
    }
    self::target(e, &target);
    let average = target.get("averageValue");
    match kind {
        "object" => {
            if !has("value") && !has("averageValue") {
                e.required(&average, "must set either a target value or averageValue");
            }
        }
        "external" => {
            if !has("value") && !has("averageValue") {
                e.required(&average, "must set either a target value for metric or a per-pod target");
            }
            if has("value") && has("averageValue") {
                let detail = "may not set both a target value for metric and a per-pod target";
                e.forbidden(&target.get("value"), detail);
            }
        }
        "pods" => {
            if !has("averageValue") {
                e.required(&average, "must specify a positive target averageValue");
            }
        }
        _ => {
            if !has("averageUtilization") && !has("averageValue") {
                let detail = "must set either a target raw value or a target utilization";
                e.required(&target.get("averageUtilization"), detail);
            }
            if has("averageUtilization") && has("averageValue") {
                e.forbidden(&average, "may not set both a target raw value and a target utilization");
            }
        }
    }
}

fn identifier(e: &mut Errors, at: &At) {
    let name = at.get("name");
    if name.is_empty() {
        e.required(&name, "must specify a metric name");
    } else {
        e.all(&name, names::path_segment(name.text()));
    }
}

fn target(e: &mut Errors, at: &At) {
    let kind = at.get("type");
    if kind.is_empty() {
        e.required(&kind, "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind.text()) {
        e.invalid_as(&kind, kind.text(), "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"] {
        if let Some(q) = at.get(field).quantity().filter(|q| q.sign() != 1) {
            e.invalid_as(&at.get(field), q.to_string(), "must be positive");
        }
    }
    let percent = at.get("averageUtilization");
    if percent.int().is_some_and(|n| n < 1) {
        e.invalid(&percent, "must be greater than 0");
    }
}

/// An autoscaler's changed status.
pub(crate) fn autoscaler_status(e: &mut Errors, o: &At) {
    for field in ["currentReplicas", "desiredReplicas"] {
        e.non_negative(&o.get("status").get(field));
    }
}
