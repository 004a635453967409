//! Roles and bindings.

use super::at::{At, Errors, same};
use super::selectors::label_selector;
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

/// A role, of a namespace or of the cluster.
pub(crate) fn role(e: &mut Errors, o: &At, namespaced: bool) {
    for r in o.get("rules").items() {
        rule(e, &r, namespaced);
    }
    let aggregation = o.get("aggregationRule");
    if namespaced || !aggregation.is_set() {
        return;
    }
    let selectors = aggregation.get("clusterRoleSelectors");
    if selectors.is_empty() {
        e.required(&selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
    }
    selectors.items().for_each(|s| label_selector(e, &s));
}

fn rule(e: &mut Errors, r: &At, namespaced: bool) {
    if r.get("verbs").is_empty() {
        e.required(&r.get("verbs"), "verbs must contain at least one value");
    }
    let urls = r.get("nonResourceURLs");
    if !urls.is_empty() {
        if namespaced {
            e.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|f| !r.get(f).is_empty()) {
            e.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    for (field, what) in [("apiGroups", "api group"), ("resources", "resource")] {
        if r.get(field).is_empty() {
            e.required(&r.get(field), &format!("resource rules must supply at least one {what}"));
        }
    }
}

/// A binding, in a namespace or of the cluster.
pub(crate) fn binding(e: &mut Errors, o: &At, namespaced: bool) {
    let reference = o.get("roleRef");
    if reference.get("apiGroup").text() != GROUP {
        e.not_supported(&reference.get("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&reference.get("kind").text()) {
        e.not_supported(&reference.get("kind"), kinds);
    }
    if e.need(&reference.get("name")) {
        e.all(&reference.get("name"), names::path_segment(reference.get("name").text()));
    }
    for s in o.get("subjects").items() {
        subject(e, &s, namespaced);
    }
}

fn subject(e: &mut Errors, s: &At, namespaced: bool) {
    let (name, group) = (s.get("name"), s.get("apiGroup"));
    e.need(&name);
    match s.get("kind").text() {
        "ServiceAccount" => {
            if !name.is_empty() {
                e.dns_subdomain(&name);
            }
            if !group.is_empty() {
                e.not_supported(&group, &[""]);
            }
            if !namespaced {
                e.need(&s.get("namespace"));
            }
        }
        "User" | "Group" => {
            if group.text() != GROUP {
                e.not_supported(&group, &[GROUP]);
            }
        }
        _ => e.not_supported(&s.get("kind"), &["ServiceAccount", "User", "Group"]),
    }
}

/// A changed binding.
pub(crate) fn binding_update(e: &mut Errors, new: &At, old: &At, namespaced: bool) {
    binding(e, new, namespaced);
    if !same(new.get("roleRef").value, old.get("roleRef").value) {
        e.invalid(&new.get("roleRef"), "cannot change roleRef");
    }
}
