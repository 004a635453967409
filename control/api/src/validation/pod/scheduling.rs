//! Where a pod may run.

use std::collections::{HashMap, HashSet};

use super::selectors::{label_name, label_selector, node_selector, node_term};
use crate::names;
use crate::status::FieldError;
use crate::validation::at::{At, Errors};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Tolerations of a list.
pub(crate) fn tolerations(e: &mut Errors, at: &At) {
    for t in at.items() {
        let (key, operator, value, effect) = (t.get("key"), t.get("operator"), t.get("value"), t.get("effect"));
        if !key.is_empty() {
            label_name(e, &key);
        }
        if key.is_empty() && operator.text() != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.invalid_as(&operator, operator.text(), detail);
        }
        if t.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            e.invalid_as(&effect, effect.text(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.text() {
            "" | "Equal" => {
                let texts = names::label_value(value.text());
                if !texts.is_empty() {
                    e.invalid_as(&operator, value.text(), texts.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    e.invalid_as(&operator, value.text(), "value must be empty when `operator` is 'Exists'");
                }
            }
            "Lt" | "Gt" => e.not_supported(&operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => e.not_supported(&operator, &["Equal", "Exists"]),
        }
        e.one_of(&effect, EFFECTS);
    }
}

/// Taints of a list.
pub(crate) fn taints(e: &mut Errors, at: &At) {
    let mut seen = HashSet::new();
    for t in at.items() {
        label_name(e, &t.get("key"));
        let texts = names::label_value(t.get("value").text());
        if !texts.is_empty() {
            e.invalid(&t.get("value"), texts.join(";"));
        }
        e.need_one_of(&t.get("effect"), EFFECTS);
        let pair = (t.get("effect").text(), t.get("key").text());
        if !seen.insert(pair) {
            let mut error = FieldError::duplicate(t.path(), t.value.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            e.0.push(error);
        }
    }
}

/// `affinity`.
pub(super) fn affinity(e: &mut Errors, at: &At) {
    let node = at.get("nodeAffinity");
    let required = node.get("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        node_selector(e, &required);
    }
    for term in node.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(e, &term.get("weight"));
        node_term(e, &term.get("preference"), false);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at.get(kind);
        for term in pods.get("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_term(e, &term);
        }
        for term in pods.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(e, &term.get("weight"));
            pod_term(e, &term.get("podAffinityTerm"));
        }
    }
}

fn weight(e: &mut Errors, at: &At) {
    let n = at.int().unwrap_or(0);
    if !(1..=100).contains(&n) {
        e.invalid_as(at, n, "must be in the range 1-100");
    }
}

fn pod_term(e: &mut Errors, term: &At) {
    label_selector(e, &term.get("labelSelector"));
    label_selector(e, &term.get("namespaceSelector"));
    for name in term.get("namespaces").items() {
        let shown = term.named("namespace", name.value);
        e.dns_label(&shown);
    }
    label_keys(e, term);
    let topology = term.get("topologyKey");
    if topology.is_empty() {
        e.required(&topology, "can not be empty");
    }
    label_name(e, &topology);
}

/// `matchLabelKeys` and `mismatchLabelKeys` of a term (or of a constraint, which has the first only).
fn label_keys(e: &mut Errors, term: &At) {
    let selector = term.get("labelSelector");
    let (keys, mismatch) = (term.get("matchLabelKeys"), term.get("mismatchLabelKeys"));
    for list in [&keys, &mismatch] {
        if !list.is_empty() && !selector.is_set() {
            e.forbidden(list, "must not be specified when labelSelector is not set");
        } else {
            list.items().for_each(|k| label_name(e, &k));
        }
    }
    // What the server adds for a key is in the expressions once; a second mention is the writer's.
    let last: HashMap<&str, usize> = keys.items().enumerate().map(|(i, k)| (k.text(), i)).collect();
    let labels = selector.get("matchLabels").value.as_object();
    let mut seen: HashSet<&str> = labels.into_iter().flat_map(|labels| labels.keys().map(String::as_str)).collect();
    for x in selector.get("matchExpressions").items() {
        let key = x.get("key").text();
        if let (Some(&i), true) = (last.get(key), seen.contains(key)) {
            // The path is what clients know.
            e.invalid_as(&term.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.insert(key);
    }
    let unlike: HashSet<&str> = mismatch.items().map(|m| m.text()).collect();
    for key in keys.items() {
        if unlike.contains(key.text()) {
            e.invalid(&key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// `schedulingGates`.
pub(super) fn gates(e: &mut Errors, at: &At) {
    let mut seen = HashSet::new();
    for gate in at.items() {
        let name = gate.get("name").text();
        names::qualified_name(name).into_iter().for_each(|t| e.invalid_as(&gate, name, t));
        if !seen.insert(name) {
            e.duplicate_as(&gate, name);
        }
    }
}

/// `topologySpreadConstraints`.
pub(super) fn spread(e: &mut Errors, at: &At) {
    fn pair<'v>(c: &At<'_, 'v>) -> (&'v str, &'v str) {
        (c.get("topologyKey").text(), c.get("whenUnsatisfiable").text())
    }
    let mut later: HashMap<_, usize> = HashMap::new();
    at.items().for_each(|c| *later.entry(pair(&c)).or_default() += 1);
    for c in at.items() {
        let (skew, key, action) = (c.get("maxSkew"), c.get("topologyKey"), c.get("whenUnsatisfiable"));
        if skew.int().unwrap_or(0) <= 0 {
            e.invalid_as(&skew, skew.int().unwrap_or(0), "must be greater than zero");
        }
        if key.is_empty() {
            e.required(&key, "can not be empty");
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action.text()) {
            e.not_supported(&action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        // The error is at each but the last of its pair.
        let again = later.get_mut(&pair(&c)).is_some_and(|n| {
            *n -= 1;
            *n > 0
        });
        if again {
            let pair = format!("{{{}, {}}}", key.text(), action.text());
            e.duplicate_as(&c.named("{topologyKey, whenUnsatisfiable}", c.value), pair);
        }
        let domains = c.get("minDomains");
        if domains.int().is_some_and(|n| n <= 0) {
            e.invalid(&domains, "must be greater than zero");
        }
        if domains.is_set() && action.text() != "DoNotSchedule" {
            let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.text());
            e.invalid(&domains, detail);
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if c.get(field).is_set() && !["Honor", "Ignore"].contains(&c.get(field).text()) {
                e.not_supported(&c.get(field), &["Honor", "Ignore"]);
            }
        }
        label_keys(e, &c);
        label_selector(e, &c.get("labelSelector"));
    }
}

/// `resourceClaims`.
pub(super) fn resource_claims(e: &mut Errors, at: &At) {
    let mut seen = HashSet::new();
    for c in at.items() {
        let name = c.get("name");
        if name.is_empty() {
            e.required(&name, "");
        } else if seen.insert(name.text()) {
            e.dns_label(&name);
        } else {
            e.duplicate(&name);
        }
        let (claim, template) = (c.get("resourceClaimName"), c.get("resourceClaimTemplateName"));
        match (claim.is_set(), template.is_set()) {
            (true, true) => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                e.invalid(&c, detail);
            }
            (false, false) => {
                e.invalid(&c, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`");
            }
            _ => {}
        }
        for at in [claim, template] {
            if at.is_set() {
                e.dns_subdomain(&at);
            }
        }
    }
}
