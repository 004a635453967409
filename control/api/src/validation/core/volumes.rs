//! Persistent volumes and claims.

use crate::names;
use crate::status::FieldError;
use crate::validation::at::{At, Errors, IMMUTABLE, same, text_at};
use crate::validation::{pod, resources, selectors};
use serde_json::Value;

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

const RECLAIM: &[&str] = &["Delete", "Recycle", "Retain"];

/// Labels of nodes that took the place of others.
const RENAMED: [(&str, &str); 5] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

/// Fields of a volume's spec that are not its source.
const NOT_SOURCE: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn access_modes(e: &mut Errors, at: &At, missing: &str) {
    if at.is_empty() {
        e.required(at, missing);
    }
    let (mut alone, mut other) = (false, false);
    for mode in at.items() {
        if !MODES.contains(&mode.text()) {
            e.0.push(FieldError::not_supported(at.path(), mode.text(), MODES));
        } else if mode.text() == "ReadWriteOncePod" {
            alone = true;
        } else {
            other = true;
        }
    }
    if alone && other {
        e.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn volume_mode(e: &mut Errors, at: &At) {
    if at.is_set() && !["Block", "Filesystem"].contains(&at.text()) {
        e.not_supported(at, &["Block", "Filesystem"]);
    }
}

/// A persistent volume.
pub(crate) fn volume(e: &mut Errors, o: &At) {
    volume_spec(e, &o.get("spec"), text_at(o.value, "/metadata/name"));
}

/// The spec of the volume called `name`.
fn volume_spec(e: &mut Errors, s: &At, name: &str) {
    access_modes(e, &s.get("accessModes"), "");
    capacity(e, &s.get("capacity"));
    e.one_of(&s.get("persistentVolumeReclaimPolicy"), RECLAIM);
    let affinity = s.get("nodeAffinity");
    if affinity.is_set() {
        if affinity.get("required").is_set() {
            selectors::node_selector(e, &affinity.get("required"));
        } else {
            e.required(&affinity.get("required"), "must specify required node constraints");
        }
    }
    pod::persistent_source(e, s, name);
    not_the_root(e, s);
    if !s.get("storageClassName").is_empty() {
        e.dns_subdomain(&s.get("storageClassName"));
    }
    volume_mode(e, &s.get("volumeMode"));
    attributes_class(e, s);
}

/// The spec of a volume that an attachment holds itself.
pub(crate) fn inline_volume_spec(e: &mut Errors, s: &At) {
    let not_inline = |e: &mut Errors, field: &str| {
        let at = s.get(field);
        let set = if field == "nodeAffinity" { at.is_set() } else { !at.is_empty() };
        if set {
            e.forbidden(&at, "may not be specified in the context of inline volumes");
        }
    };
    not_inline(e, "claimRef");
    not_inline(e, "capacity");
    if !s.get("csi").is_set() {
        e.required(&s.get("csi"), "has to be specified in the context of inline volumes");
    }
    access_modes(e, &s.get("accessModes"), "");
    let policy = s.get("persistentVolumeReclaimPolicy");
    if !policy.is_empty() && policy.text() != "Retain" {
        e.forbidden(&policy, "may only be Retain in the context of inline volumes");
    }
    not_inline(e, "nodeAffinity");
    pod::persistent_source(e, s, "");
    not_the_root(e, s);
    not_inline(e, "storageClassName");
    let mode = s.get("volumeMode");
    if mode.is_set() && mode.text() != "Filesystem" {
        e.forbidden(&mode, "may not specify volumeMode other than Filesystem in the context of inline volumes");
    }
    attributes_class(e, s);
}

/// What empties a volume must not get the node's whole tree.
fn not_the_root(e: &mut Errors, s: &At) {
    let (path, policy) = (s.get("hostPath.path"), s.get("persistentVolumeReclaimPolicy"));
    let mut depth = 0_usize;
    for part in path.text().split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    if path.text().starts_with('/') && depth == 0 && policy.text() == "Recycle" {
        e.forbidden(&policy, "may not be 'recycle' for a hostPath mount of '/'");
    }
}

fn attributes_class(e: &mut Errors, s: &At) {
    let class = s.get("volumeAttributesClassName");
    if !class.is_set() {
        return;
    }
    if class.is_empty() {
        e.required(&class, "an empty string is disallowed");
    } else {
        e.dns_subdomain(&class);
    }
    if !s.get("csi").is_set() {
        e.required(&s.get("csi"), "has to be specified when using volumeAttributesClassName");
    }
}

fn capacity(e: &mut Errors, at: &At) {
    if at.is_empty() {
        e.required(at, "");
    }
    if !at.key("storage").is_set() || at.len() > 1 {
        let shown = if at.is_set() { at.value.clone() } else { Value::Null };
        e.0.push(FieldError::not_supported(at.path(), shown, &["storage"]));
    }
    for (_, value) in at.entries() {
        let Some(q) = value.quantity() else { continue };
        if q.value() < 0 {
            e.invalid_as(&value, q.value(), "must be a valid resource quantity");
        }
        if q.sign() <= 0 {
            e.invalid_as(&value, q.to_string(), "must be greater than zero");
        }
    }
}

/// A changed volume.
pub(crate) fn volume_update(e: &mut Errors, new: &At, old: &At) {
    volume(e, new);
    let source = |o: &At| {
        let mut spec = o.get("spec").value.as_object().cloned().unwrap_or_default();
        spec.retain(|k, v| !NOT_SOURCE.contains(&k.as_str()) && !v.is_null());
        Value::Object(spec)
    };
    let (mut is, was) = (source(new), source(old));
    // The secret for growing may come later.
    if was["csi"].is_object()
        && was["csi"]["controllerExpandSecretRef"].is_null()
        && let Some(csi) = is.get_mut("csi").and_then(Value::as_object_mut)
    {
        csi.remove("controllerExpandSecretRef");
    }
    if !same(&is, &was) {
        e.forbidden(&new.get("spec.persistentvolumesource"), "spec.persistentvolumesource is immutable after creation");
    }
    let mode = new.named("volumeMode", new.get("spec.volumeMode").value);
    e.fixed(&mode, old.get("spec.volumeMode").value);
    let was = old.get("spec.nodeAffinity");
    let affinity = new.named("nodeAffinity", new.get("spec.nodeAffinity").value);
    if was.is_set() && !same(affinity.value, &renamed(was.value, affinity.value)) {
        e.invalid(&affinity, format!("{IMMUTABLE}, except for updating from beta label to GA"));
    }
    let class = new.get("spec.volumeAttributesClassName");
    if old.get("spec.volumeAttributesClassName").is_set() && !class.is_set() {
        e.forbidden(&class, "update from non-nil value to nil is forbidden");
    }
}

/// The affinity that was, with the new names of labels where the new affinity has them.
fn renamed(was: &Value, is: &Value) -> Value {
    match (was, is) {
        (Value::Object(a), Value::Object(b)) => {
            let value = |k: &str, v: &Value| renamed(v, b.get(k).unwrap_or(&Value::Null));
            let mut out: serde_json::Map<String, Value> = a.iter().map(|(k, v)| (k.clone(), value(k, v))).collect();
            let key =
                |m: &serde_json::Map<String, Value>| m.get("key").and_then(Value::as_str).unwrap_or("").to_string();
            if RENAMED.iter().any(|(old, new)| *old == key(a) && *new == key(b)) {
                out.insert("key".into(), key(b).into());
            }
            Value::Object(out)
        }
        (Value::Array(a), Value::Array(b)) => {
            Value::Array(a.iter().enumerate().map(|(i, v)| renamed(v, b.get(i).unwrap_or(&Value::Null))).collect())
        }
        _ => was.clone(),
    }
}

/// A claim.
pub(crate) fn claim(e: &mut Errors, o: &At) {
    claim_spec(e, &o.get("spec"));
}

/// A claim's spec.
pub(crate) fn claim_spec(e: &mut Errors, s: &At) {
    let modes = s.get("accessModes");
    if modes.is_empty() {
        e.required(&modes, "at least 1 access mode is required");
    }
    selectors::label_selector(e, &s.get("selector"));
    if !modes.is_empty() {
        access_modes(e, &modes, "");
    }
    let shown = s.named("resources", s.get("resources.requests").value);
    let storage = shown.key("storage");
    match storage.quantity() {
        None => e.required(&storage, ""),
        Some(q) if q.sign() <= 0 => e.invalid_as(&storage, q.to_string(), "must be greater than zero"),
        Some(_) => resources::amount(e, &storage, "storage"),
    }
    if !s.get("storageClassName").is_empty() {
        e.dns_subdomain(&s.get("storageClassName"));
    }
    volume_mode(e, &s.get("volumeMode"));
    let (source, reference) = (s.get("dataSource"), s.get("dataSourceRef"));
    data_source(e, &source);
    data_source(e, &reference);
    let elsewhere = !reference.get("namespace").is_empty();
    if elsewhere && source.is_set() {
        e.invalid_as(s, source.path(), "may not be specified when dataSourceRef.namespace is specified");
    } else if !elsewhere && source.is_set() && reference.is_set() {
        let differ = ["apiGroup", "kind", "name"].iter().any(|f| !same(source.get(f).value, reference.get(f).value));
        if differ {
            e.invalid_as(s, source.path(), "must match dataSourceRef");
        }
    }
    if !s.get("volumeAttributesClassName").is_empty() {
        e.dns_subdomain(&s.get("volumeAttributesClassName"));
    }
}

fn data_source(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    e.need(&at.get("name"));
    e.need(&at.get("kind"));
    if at.get("apiGroup").is_empty() {
        if at.get("kind").text() != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            e.invalid_as(at, at.get("kind").text(), detail);
        }
    } else {
        e.dns_subdomain(&at.get("apiGroup"));
    }
    if !at.get("namespace").is_empty() {
        e.dns_label(&at.get("namespace"));
    }
}

/// A changed claim.
pub(crate) fn claim_update(e: &mut Errors, new: &At, old: &At) {
    claim(e, new);
    let (spec, was) = (new.get("spec"), old.get("spec"));
    let mut masked = spec.value.clone();
    let mut keep = |pointer: &str| {
        let old = was.value.pointer(pointer).cloned().unwrap_or(Value::Null);
        if let Some(slot) = masked.pointer_mut(pointer) {
            *slot = old;
        }
    };
    if was.get("volumeName").is_empty() {
        keep("/volumeName");
    }
    let annotation = |o: &At| o.get("metadata.annotations").key(BETA_CLASS).value.clone();
    let class = spec.get("storageClassName");
    let note = annotation(old);
    if class.is_set() && !was.get("storageClassName").is_set() && (note.is_null() || note == *class.value) {
        keep("/storageClassName");
    }
    if annotation(new) != note && !(class.is_set() && note == *class.value) {
        let shown = format!("metadata.annotations.{BETA_CLASS}");
        e.0.push(FieldError::invalid(shown, annotation(new).as_str().unwrap_or(""), IMMUTABLE));
    }
    let bound = new.get("status.phase").text() == "Bound";
    if bound {
        keep("/resources/requests/storage");
        if let Some(map) = masked.as_object_mut() {
            map.insert("volumeAttributesClassName".into(), was.get("volumeAttributesClassName").value.clone());
        }
    }
    if !same(&masked, was.value) {
        e.forbidden(
            &spec,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |o: &At, p: &str| o.get(p).quantity();
    let at = spec.get("resources.requests.storage");
    if let (Some(is), Some(before)) = (at.quantity(), size(old, "spec.resources.requests.storage"))
        && is < before
        && size(old, "status.capacity.storage").is_some_and(|c| is <= c)
    {
        e.forbidden(&at, "field can not be less than status.capacity");
    }
    let mode = new.named("volumeMode", spec.get("volumeMode").value);
    e.fixed(&mode, was.get("volumeMode").value);
    let attributes = spec.get("volumeAttributesClassName");
    let applied = old.get("status.currentVolumeAttributesClassName").is_set();
    if applied && !same(attributes.value, was.get("volumeAttributesClassName").value) && attributes.is_empty() {
        let to = if attributes.is_set() { "empty string" } else { "nil" };
        let detail = format!("update to {to} is forbidden when status.currentVolumeAttributesClassName is not nil");
        e.forbidden(&attributes, detail);
    }
}

/// A claim's changed status.
pub(crate) fn claim_status(e: &mut Errors, o: &At) {
    const STATES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    if o.get("spec.accessModes").is_empty() {
        // The path is what clients know.
        e.required(&o.named("Spec.accessModes", o.value), "");
    }
    for (_, q) in o.get("status.capacity").entries() {
        not_negative(e, &q);
    }
    let states = o.get("status.allocatedResourceStatuses");
    for (resource, state) in states.entries() {
        claim_resource(e, &states, resource);
        if !STATES.contains(&state.text()) {
            e.0.push(FieldError::not_supported(states.path(), resource, STATES));
        }
    }
    let allocated = o.get("status.allocatedResources");
    for (resource, q) in allocated.entries() {
        if claim_resource(e, &allocated, resource) && not_negative(e, &q) {
            resources::amount(e, &q, "storage");
        }
    }
}

fn not_negative(e: &mut Errors, at: &At) -> bool {
    let below = at.quantity().map(|q| q.value()).filter(|n| *n < 0);
    if let Some(n) = below {
        e.invalid_as(at, n, "must be a valid resource quantity");
    }
    below.is_none()
}

/// Storage, or something that is not Kubernetes' own.
fn claim_resource(e: &mut Errors, at: &At, resource: &str) -> bool {
    let before = e.0.len();
    names::qualified_name(resource).into_iter().for_each(|t| e.invalid_as(at, resource, t));
    if e.0.len() == before && resources::is_native(resource) && resource != "storage" {
        e.0.push(FieldError::not_supported(at.path(), resource, &["storage"]));
    }
    e.0.len() == before
}
