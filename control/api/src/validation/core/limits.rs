//! Quotas and limit ranges.

use crate::quantity::Quantity;
use crate::status::FieldError;
use crate::validation::at::{At, Errors, IMMUTABLE};
use crate::validation::resources;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
const POD_RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];

fn amounts(e: &mut Errors, at: &At) {
    for (resource, value) in at.entries() {
        resources::quota_name(e, &value, resource);
        resources::amount(e, &value, resource);
    }
}

fn fits(scope: &str, resource: &str) -> bool {
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            POD_RESOURCES.contains(&resource) || resource.contains("hugepages-")
        }
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

/// A quota.
pub(crate) fn quota(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    amounts(e, &spec.get("hard"));
    let hard: Vec<&str> = spec.get("hard").value.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
    let scopes = spec.get("scopes");
    let mut all: Vec<&str> = Vec::new();
    for scope in scopes.items() {
        if !SCOPES.contains(&scope.text()) {
            e.invalid(&scopes, "unsupported scope");
        }
        for r in hard.iter().filter(|r| resources::is_quota_resource(r)) {
            if !fits(scope.text(), r) {
                e.invalid(&scopes, "unsupported scope applied to resource");
            }
        }
        all.push(scope.text());
    }
    conflicting(e, &all, &scopes);
    let selector = spec.get("scopeSelector");
    if selector.is_set() {
        scope_selector(e, &selector, &hard);
    }
}

fn conflicting(e: &mut Errors, all: &[&str], shown: &At) {
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if all.contains(&a) && all.contains(&b) {
            e.invalid(shown, "conflicting scopes");
        }
    }
}

fn scope_selector(e: &mut Errors, selector: &At, hard: &[&str]) {
    let list = selector.get("matchExpressions");
    let mut all: Vec<&str> = Vec::new();
    for term in list.items() {
        let (scope, operator, values) = (term.get("scopeName"), term.get("operator"), term.get("values"));
        // Errors are about the list, not its items.
        let shown = |name: &'static str, v: &At<'_, '_>| (name, v.value.clone());
        let mut say = |(name, value): (&str, Value), detail: &str| {
            let value = if value.is_null() { "".into() } else { value };
            e.0.push(FieldError::invalid(format!("{}.{name}", list.path()), value, detail));
        };
        if !SCOPES.contains(&scope.text()) {
            say(shown("scopeName", &scope), "unsupported scope");
        }
        let valueless = ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity"];
        if valueless.contains(&scope.text()) && operator.text() != "Exists" {
            say(
                shown("operator", &operator),
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator.text() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                    e.required(&list.get("values"), detail);
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    say(
                        shown("values", &values),
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    );
                }
            }
            _ => say(shown("operator", &operator), "not a valid selector operator"),
        }
        for r in hard.iter().filter(|r| resources::is_quota_resource(r)) {
            if !fits(scope.text(), r) {
                e.invalid_as(&list, selector.value.clone(), "unsupported scope applied to resource");
            }
        }
        all.push(scope.text());
    }
    conflicting(e, &all, &list);
}

/// A quota's status.
pub(crate) fn quota_status(e: &mut Errors, o: &At) {
    amounts(e, &o.get("status.hard"));
    amounts(e, &o.get("status.used"));
}

/// A changed quota keeps its scopes.
pub(crate) fn quota_update(e: &mut Errors, new: &At, old: &At) {
    quota(e, new);
    let set = |o: &At| {
        let mut all: Vec<String> = o.get("spec.scopes").items().map(|s| s.text().to_string()).collect();
        all.sort();
        all.dedup();
        all
    };
    if set(new) != set(old) {
        e.invalid(&new.get("spec.scopes"), IMMUTABLE);
    }
}

/// A limit range.
pub(crate) fn limit_range(e: &mut Errors, o: &At) {
    let mut kinds = HashSet::new();
    for l in o.get("spec.limits").items() {
        let kind = l.get("type");
        let texts = crate::names::qualified_name(kind.text());
        if !texts.is_empty() {
            e.all(&kind, texts);
        } else if !kind.text().contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind.text()) {
            e.invalid(&kind, "must be a standard limit type or fully qualified");
        }
        if !kinds.insert(kind.text()) {
            e.duplicate(&kind);
        }
        limit(e, &l, kind.text());
    }
}

fn limit(e: &mut Errors, l: &At, kind: &str) {
    let mut keys = BTreeSet::new();
    for side in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let map = l.get(side);
        if kind == "Pod" && matches!(side, "default" | "defaultRequest") {
            if !map.is_empty() {
                e.forbidden(&map, "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (resource, value) in map.entries() {
            if matches!(kind, "Pod" | "Container") {
                resources::container_name(e, &value, resource);
            } else {
                resources::name(e, &value, resource);
            }
        }
        keys.extend(map.value.as_object().into_iter().flatten().map(|(k, _)| k.as_str()));
        if side == "default" || side == "defaultRequest" {
            continue;
        }
    }
    let storage = |side: &str| l.get(side).value.get("storage").is_some();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        e.required(&l.get("limits"), detail);
    }
    for k in keys {
        relations(e, l, k);
    }
}

/// How the amounts of one resource stand to each other.
fn relations(e: &mut Errors, l: &At, resource: &str) {
    let get = |side: &str| l.get(side).key(resource).quantity();
    let (min, max, default, request) = (get("min"), get("max"), get("default"), get("defaultRequest"));
    let mut over =
        |low: Option<Quantity>, high: Option<Quantity>, side: &str, shown: Option<Quantity>, words: [&str; 2]| {
            if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
                && low > high
            {
                let detail = format!("{} value {low} is greater than {} value {high}", words[0], words[1]);
                let map = l.get(side);
                e.invalid_as(&map.key(resource), shown.to_string(), detail);
            }
        };
    over(min, max, "min", min, ["min", "max"]);
    over(min, request, "defaultRequest", request, ["min", "default request"]);
    over(request, max, "defaultRequest", request, ["default request", "max"]);
    over(request, default, "defaultRequest", request, ["default request", "default limit"]);
    over(min, default, "default", min, ["min", "default"]);
    over(default, max, "default", max, ["default", "max"]);
    let map = l.get("maxLimitRequestRatio");
    let at = map.key(resource);
    let Some(ratio) = at.quantity() else { return };
    if ratio.milli() < 1000 {
        e.invalid_as(&at, ratio.to_string(), format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (min, max)
        && min.milli() > 0
    {
        let most = max.milli() as f64 / min.milli() as f64;
        if ratio.milli() as f64 / 1000.0 > most {
            e.invalid_as(&at, ratio.to_string(), format!("ratio {ratio} is greater than max/min = {most:.6}"));
        }
    }
}
