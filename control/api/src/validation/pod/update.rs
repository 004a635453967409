//! What may change in a pod that is there.

use super::{MIRROR, pod, pod_annotations, scheduling};
use crate::validation::at::{At, Errors, same};
use serde_json::{Map, Value};
use std::collections::HashSet;

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A changed pod.
pub(crate) fn update(e: &mut Errors, new: &At, old: &At) {
    pod(e, new);
    annotation_changes(e, new, old);
    let (spec, was) = (new.get("spec"), old.get("spec"));
    for list in ["containers", "initContainers"] {
        let at = spec.get(list);
        if at.len() != was.get(list).len() {
            return e.forbidden(&at, "pod updates may not add or remove containers");
        }
        for c in at.items() {
            e.need(&c.get("image"));
            super::containers::image_of_pod(e, &c);
        }
    }
    let (deadline, before) = (spec.get("activeDeadlineSeconds"), was.get("activeDeadlineSeconds"));
    if let Some(seconds) = deadline.int() {
        if !(0..=i64::from(i32::MAX)).contains(&seconds) {
            return e.invalid(&deadline, "must be between 0 and 2147483647, inclusive");
        }
        if before.int().is_some_and(|b| b < seconds) {
            return e.invalid(&deadline, "must be less than or equal to previous value");
        }
    } else if before.is_set() {
        e.invalid(&deadline, "must not update from a positive integer to nil value");
    }
    only_more_tolerations(e, &spec.get("tolerations"), &was.get("tolerations"));
    only_fewer_gates(e, &spec.get("schedulingGates"), &was.get("schedulingGates"));
    if same(spec.value, was.value) {
        return;
    }
    let mut masked = spec.value.clone();
    mask(e, &spec, &was, &mut masked);
    if !same(&masked, was.value) {
        e.forbidden(&spec, format!("{UPDATABLE}\n{}", difference(was.value, &masked)));
    }
}

pub(super) fn annotation_changes(e: &mut Errors, new: &At, old: &At) {
    let (at, was) = (new.get("metadata.annotations"), old.get("metadata.annotations"));
    let mut say = |key: &str, verb: &str| {
        if key.starts_with(APPARMOR) {
            e.forbidden(&at.key(key), format!("may not {verb} AppArmor annotations"));
        }
        if key == MIRROR {
            e.forbidden(&at.key(key), format!("may not {verb} mirror pod annotation"));
        }
    };
    for (key, value) in was.entries() {
        if at.key(key).value != value.value {
            say(key, "remove or update");
        }
    }
    for (key, _) in at.entries() {
        if !was.key(key).is_set() {
            say(key, "add");
        }
    }
    pod_annotations(e, &at, &new.get("spec"));
}

fn only_more_tolerations(e: &mut Errors, new: &At, old: &At) {
    // What is empty is as if it were not there (`same`).
    let strip = |t: &At| {
        let mut t = t.value.clone();
        if let Some(map) = t.as_object_mut() {
            map.retain(|k, v| k != "tolerationSeconds" && !same(v, &Value::Null));
        }
        t
    };
    let now: HashSet<Value> = new.items().map(|t| strip(&t)).collect();
    if old.items().any(|t| !now.contains(&strip(&t))) {
        return e.forbidden(new, "existing toleration can not be modified except its tolerationSeconds");
    }
    scheduling::tolerations(e, new);
}

fn only_fewer_gates(e: &mut Errors, new: &At, old: &At) {
    let known: HashSet<&str> = old.items().map(|g| g.get("name").text()).collect();
    for gate in new.items() {
        let name = gate.get("name");
        if !known.contains(name.text()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", name.text());
            e.forbidden(&name, detail);
        }
    }
}

/// Puts what may change into the form it had.
fn mask(e: &mut Errors, spec: &At, was: &At, masked: &mut Value) {
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = was.get(list).items().map(|c| c.get("image").value.clone()).collect();
        for (c, image) in masked[list].as_array_mut().into_iter().flatten().zip(images) {
            c["image"] = image;
        }
    }
    put(masked, was.value, "activeDeadlineSeconds");
    put(masked, was.value, "schedulingGates");
    put(masked, was.value, "tolerations");
    let grace = |s: &At| s.get("terminationGracePeriodSeconds").int();
    if grace(was).is_some_and(|g| g < 0) && grace(spec) == Some(1) {
        put(masked, was.value, "terminationGracePeriodSeconds");
    }
    if was.get("schedulingGates").is_empty() {
        return;
    }
    // The nodes of a gated pod may be narrowed.
    let (selector, old) = (spec.get("nodeSelector"), was.get("nodeSelector"));
    if old.entries().any(|(k, v)| selector.key(k).value != v.value) {
        e.invalid(&selector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)");
    }
    put(masked, was.value, "nodeSelector");
    node_affinity(e, spec, was);
    let own = was.get("affinity.nodeAffinity").value.clone();
    let only_node = |s: &Value| s["affinity"].as_object().is_none_or(|m| m.keys().all(|k| k == "nodeAffinity"));
    if own.is_null() && only_node(masked) && was.get("affinity").is_empty() {
        put(masked, was.value, "affinity");
    } else {
        if !masked["affinity"].is_object() {
            masked["affinity"] = Value::Object(Map::new());
        }
        masked["affinity"]["nodeAffinity"] = own;
    }
}

fn node_affinity(e: &mut Errors, spec: &At, was: &At) {
    const TERMS: &str = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let (new, old) = (spec.get(TERMS), was.get(TERMS));
    if old.is_empty() {
        return;
    }
    if new.len() != old.len() {
        return e.invalid(&new, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
    }
    for (n, o) in new.items().zip(old.items()) {
        let bare = ["matchExpressions", "matchFields"].iter().all(|f| o.get(f).is_empty());
        let grew = ["matchExpressions", "matchFields"].iter().all(|f| {
            let (n, o) = (n.get(f), o.get(f));
            let kept = n.len() >= o.len() && o.items().zip(n.items()).all(|(a, b)| same(a.value, b.value));
            kept && (!bare || n.is_empty())
        });
        if !grew {
            e.invalid(&n, "only additions are allowed (no mutations or deletions)");
        }
    }
}

fn put(to: &mut Value, from: &Value, field: &str) {
    let Some(map) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(v) => drop(map.insert(field.into(), v.clone())),
        None => drop(map.remove(field)),
    }
}

/// The fields that differ, a line each.
fn difference(old: &Value, new: &Value) -> String {
    let mut lines = Vec::new();
    walk("", old, new, &mut lines);
    lines.join("\n")
}

fn walk(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    if same(old, new) {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).collect();
            keys.sort();
            for k in keys {
                let at = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
                walk(&at, &old[k.as_str()], &new[k.as_str()], lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                walk(&format!("{path}[{i}]"), x, y, lines);
            }
        }
        _ => lines.extend([format!("- {path}: {old}"), format!("+ {path}: {new}")]),
    }
}

/// A pod through `ephemeralcontainers`.
pub(crate) fn ephemeral_containers(e: &mut Errors, new: &At, old: &At) {
    pod(e, new);
    annotation_changes(e, new, old);
    if old.get("metadata.annotations").key(MIRROR).is_set() {
        e.0.clear();
        return e.forbidden(&new.get("[]"), "static pods do not support ephemeral containers");
    }
    let list = new.get("spec.ephemeralContainers");
    for was in old.get("spec.ephemeralContainers").items() {
        let name = was.get("name").text();
        let found = list.items().find(|c| c.get("name").text() == name).map(|c| c.value);
        match found {
            None => e.forbidden(&list, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(is) if !same(is, was.value) => {
                let detail = difference(was.value, is);
                e.forbidden(&list, format!("existing ephemeral containers {name:?} may not be changed\n{detail}"));
            }
            Some(_) => {}
        }
    }
}

/// A pod through `resize`.
pub(crate) fn resize(e: &mut Errors, new: &At, old: &At) {
    pod(e, new);
    let refuse = |e: &mut Errors, text: &str| {
        e.0.clear();
        e.forbidden(&new.get("[]"), text);
    };
    if old.get("metadata.annotations").key(MIRROR).is_set() {
        return refuse(e, "static pods cannot be resized");
    }
    if old.get("spec.os.name").text() == "windows" {
        return refuse(e, "windows pods cannot be resized");
    }
    let (spec, was) = (new.get("spec"), old.get("spec"));
    let class = old.get("status.qosClass").text();
    let class = if class.is_empty() { crate::qos::class(old.value) } else { class };
    if class != crate::qos::class(new.value) {
        e.invalid_as(&spec, new.get("status.qosClass").text(), "Pod QOS Class may not change as a result of resizing");
    }
    let statuses = old.get("status.containerStatuses");
    if statuses.items().find(|c| c.get("state.running").is_set()).is_some_and(|c| !c.get("resources").is_set()) {
        e.forbidden(&spec, "Pod running on node without support for resize");
    }
    let mut masked = spec.value.clone();
    pod_level_resize(e, &spec, &was, &mut masked);
    let before = e.0.len();
    same_order(e, &spec, &was);
    if e.0.len() > before {
        return;
    }
    for list in ["initContainers", "containers"] {
        let olds = was.get(list);
        for (c, o) in spec.get(list).items().zip(olds.items()) {
            let at = c.get("resources");
            kept(e, &at.get("requests"), &o.get("resources.requests"), "resource requests cannot be removed");
            kept(e, &at.get("limits"), &o.get("resources.limits"), "resource limits cannot be removed");
        }
    }
    for list in ["containers", "initContainers"] {
        let olds = was.get(list);
        for (i, (c, o)) in spec.get(list).items().zip(olds.items()).enumerate() {
            let slot = &mut masked[list][i];
            mask_resources(slot, o.value);
            let other = !same(slot, o.value);
            if list == "containers" {
                if other {
                    e.forbidden(&spec, "only cpu and memory resources are mutable");
                }
                continue;
            }
            if other {
                e.forbidden(&c, "only cpu and memory resources for init or sidecar containers are mutable");
            }
            let sidecar = c.get("restartPolicy").text() == "Always";
            if !sidecar && !same(c.value, o.value) {
                let policies = c.get("resizePolicy");
                for _ in policies.items().filter(|p| p.get("restartPolicy").text() == "RestartContainer") {
                    let detail =
                        "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                    e.forbidden(&c, detail);
                }
            }
        }
    }
    if e.0.is_empty() && !same(&masked, was.value) {
        e.forbidden(&spec, "only cpu and memory resources are mutable");
    }
}

/// The resources of the pod as a whole; leaves them as they were in `masked`.
fn pod_level_resize(e: &mut Errors, spec: &At, was: &At, masked: &mut Value) {
    let (at, old) = (spec.get("resources"), was.get("resources"));
    let set = |r: &At| !r.get("requests").is_empty() || !r.get("limits").is_empty();
    if !set(&at) && !set(&old) {
        return;
    }
    if old.is_set() && !at.is_set() {
        return e.forbidden(&at, "pod-level resources cannot be removed");
    }
    kept(e, &at.get("requests"), &old.get("requests"), "pod-level resource requests cannot be removed");
    kept(e, &at.get("limits"), &old.get("limits"), "pod-level resource limits cannot be removed");
    mask_resources(masked, was.value);
    if !same(&masked["resources"], old.value) {
        e.forbidden(spec, "only cpu and memory resources are mutable at pod-level");
    }
}

fn same_order(e: &mut Errors, spec: &At, was: &At) {
    for list in ["containers", "initContainers"] {
        let (at, olds) = (spec.get(list), was.get(list));
        if at.len() != olds.len() {
            e.forbidden(&at, format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (c, _) in at.items().zip(olds.items()).filter(|(c, o)| c.get("name").text() != o.get("name").text()) {
            e.forbidden(&c.get("name"), format!("{list} may not be renamed or reordered on resize"));
        }
    }
}

fn kept(e: &mut Errors, now: &At, was: &At, detail: &str) {
    if was.entries().any(|(k, _)| !now.key(k).is_set()) {
        e.forbidden(now, detail);
    }
}

/// Gives `of` the processor and memory that `old` has.
fn mask_resources(of: &mut Value, old: &Value) {
    let mut resources = of["resources"].as_object().cloned().unwrap_or_default();
    for side in ["limits", "requests"] {
        let mut amounts = resources.get(side).and_then(Value::as_object).cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match old.pointer(&format!("/resources/{side}/{name}")) {
                Some(q) => amounts.insert(name.into(), q.clone()),
                None => amounts.remove(name),
            };
        }
        // A map that had nothing else is as if it were not there.
        if amounts.is_empty() && old.pointer(&format!("/resources/{side}")).is_none() {
            resources.remove(side);
        } else {
            resources.insert(side.into(), Value::Object(amounts));
        }
    }
    let Some(of) = of.as_object_mut() else { return };
    if resources.is_empty() && old.get("resources").is_none() {
        of.remove("resources");
    } else {
        of.insert("resources".into(), Value::Object(resources));
    }
}
