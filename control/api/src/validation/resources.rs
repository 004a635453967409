//! Names and amounts of resources.

use super::at::{At, Errors};
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Resources that a quota counts.
const QUOTA: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn overcommits(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

pub(crate) fn is_quota_resource(name: &str) -> bool {
    QUOTA.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

fn is_standard(name: &str) -> bool {
    QUOTA.contains(&name) || name == "storage" || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// A resource's name; errors are about `at`, whatever its value.
pub(crate) fn name(e: &mut Errors, at: &At, name: &str) -> bool {
    let texts = names::qualified_name(name);
    if texts.is_empty() {
        if !name.contains('/') && !is_standard(name) {
            e.invalid_as(at, name, "must be a standard resource type or fully qualified");
            return false;
        }
        return true;
    }
    texts.into_iter().for_each(|t| e.invalid_as(at, name, t));
    false
}

/// A name of something that containers ask for.
pub(crate) fn container_name(e: &mut Errors, at: &At, resource: &str) {
    name(e, at, resource);
    if !resource.contains('/') {
        if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(resource) {
            e.invalid_as(at, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        e.invalid_as(at, resource, "doesn't follow extended resource name standard");
    }
}

/// A name that a quota may hold.
pub(crate) fn quota_name(e: &mut Errors, at: &At, resource: &str) {
    name(e, at, resource);
    if !resource.contains('/') && !is_quota_resource(resource) {
        e.invalid_as(at, resource, "must be a standard resource for quota");
    }
}

/// An amount of a resource.
pub(crate) fn amount(e: &mut Errors, at: &At, resource: &str) {
    let Some(q) = at.quantity() else { return };
    if q.sign() < 0 {
        e.invalid_as(at, q.to_string(), "must be greater than or equal to 0");
    }
    if (COUNTED.contains(&resource) || is_extended(resource)) && q.milli() % 1000 != 0 {
        e.invalid_as(at, q.to_string(), "must be an integer");
    }
}

fn huge_page_amount(e: &mut Errors, at: &At, resource: &str) {
    let size = resource.strip_prefix("hugepages-").and_then(Quantity::parse).map_or(0, |q| q.value());
    let Some(q) = at.quantity() else { return };
    if size <= 0 || q.value() <= 0 || q.value() % size != 0 {
        e.invalid_as(at, q.to_string(), format!("{q} is not positive integer multiple of {resource}"));
    }
}

/// Amounts as a container's limits may hold them.
pub(crate) fn limits(e: &mut Errors, at: &At) {
    let (mut huge, mut plain) = (false, false);
    for (resource, value) in at.entries() {
        container_name(e, &value, resource);
        amount(e, &value, resource);
        if is_huge_page(resource) {
            huge_page_amount(e, &value, resource);
        }
        huge |= is_huge_page(resource);
        plain |= matches!(resource, "cpu" | "memory");
    }
    if huge && !plain {
        e.0.push(FieldError::forbidden(at.path().trim_end_matches(".limits"), "HugePages require cpu or memory"));
    }
}

/// Resource requirements of a container (or, with `pod_level`, of a pod).
pub(crate) fn requirements(e: &mut Errors, at: &At, claims: &[&str], pod_level: bool) {
    let (limits, requests) = (at.get("limits"), at.get("requests"));
    let named = |e: &mut Errors, at: &At, resource: &str| {
        if !pod_level {
            return container_name(e, at, resource);
        }
        if name(e, at, resource) && !matches!(resource, "cpu" | "memory") && !is_huge_page(resource) {
            e.0.push(crate::status::FieldError::not_supported(at.path(), resource, &["cpu", "memory"]));
        }
    };
    let (mut huge, mut plain) = (false, false);
    for list in [&limits, &requests] {
        for (resource, value) in list.entries() {
            named(e, &value, resource);
            amount(e, &value, resource);
            huge |= is_huge_page(resource);
            plain |= matches!(resource, "cpu" | "memory");
            if std::ptr::eq(list, &requests) {
                within_limit(e, &value, resource, &limits, &requests);
            }
            if is_huge_page(resource) {
                huge_page_amount(e, &value, resource);
            }
        }
    }
    if huge && !plain {
        e.forbidden(at, "HugePages require cpu or memory");
    }
    claim_names(e, &at.get("claims"), claims);
}

fn within_limit(e: &mut Errors, request: &At, resource: &str, limits: &At, requests: &At) {
    let limit = limits.key(resource);
    let (Some(q), limit) = (request.quantity(), limit.quantity()) else { return };
    match limit {
        Some(limit) if q != limit && !overcommits(resource) => {
            e.invalid_as(requests, q.to_string(), format!("must be equal to {resource} limit of {limit}"));
        }
        Some(limit) if q > limit => {
            e.invalid_as(requests, q.to_string(), format!("must be less than or equal to {resource} limit of {limit}"));
        }
        None if !overcommits(resource) => e.required(limits, "Limit must be set for non overcommitable resources"),
        _ => {}
    }
}

fn claim_names(e: &mut Errors, at: &At, known: &[&str]) {
    let mut seen: HashMap<&str, HashSet<&str>> = HashMap::new();
    let known: BTreeSet<&str> = known.iter().copied().collect();
    // Every claim may say it again, so that it is kept short.
    const SHOWN: usize = 10;
    let names: Vec<&str> = known.iter().copied().take(SHOWN).collect();
    let shown = match known.len() {
        0 => " which is empty".into(),
        n => format!(": {}{}", names.join(", "), if n > SHOWN { ", ..." } else { "" }),
    };
    for claim in at.items() {
        let (name, request) = (claim.get("name").text(), claim.get("request"));
        if name.is_empty() {
            e.required(&claim, "");
            continue;
        }
        if !request.is_empty() {
            e.dns_label(&request);
        }
        // Without a request it is all of them.
        let before = seen.entry(name).or_default();
        let all = before.contains("") || request.is_empty() && !before.is_empty();
        if !before.insert(request.text()) || all {
            let text = if request.is_empty() { name.to_string() } else { format!("{name}/{}", request.text()) };
            e.duplicate_as(&claim, text);
        }
        if !known.contains(name) {
            let mut error = crate::status::FieldError::not_found(claim.path(), name);
            error.detail = "must be one of the names in pod.spec.resourceClaims".into();
            error.detail.push_str(&shown);
            e.0.push(error);
        }
    }
}
