//! Persistent volumes and claims.

use crate::validation::at::{At, Errors, IMMUTABLE, same};
use crate::validation::{pod, resources, selectors};
use serde_json::Value;

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

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
            e.0.push(crate::status::FieldError::not_supported(at.path(), mode.text(), MODES));
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
    volume_spec(e, &o.get("spec"), false);
}

/// A volume's spec; `inline` inside an attachment.
pub(crate) fn volume_spec(e: &mut Errors, s: &At, inline: bool) {
    if inline {
        for field in ["claimRef", "capacity", "nodeAffinity", "storageClassName"] {
            if !s.get(field).is_empty() {
                e.forbidden(&s.get(field), "may not be specified in the context of inline volumes");
            }
        }
        if !s.get("csi").is_set() {
            e.required(&s.get("csi"), "has to be specified in the context of inline volumes");
        }
    }
    access_modes(e, &s.get("accessModes"), "");
    if !inline {
        capacity(e, &s.get("capacity"));
        e.one_of(&s.get("persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"]);
        let affinity = s.get("nodeAffinity");
        if affinity.is_set() {
            if affinity.get("required").is_set() {
                selectors::node_selector(e, &affinity.get("required"));
            } else {
                e.required(&affinity.get("required"), "must specify required node constraints");
            }
        }
    }
    pod::persistent_source(e, s);
    let (path, policy) = (s.get("hostPath.path"), s.get("persistentVolumeReclaimPolicy"));
    let is_root = !path.is_empty() && path.text().split('/').all(|p| p.is_empty() || p == ".");
    if is_root && path.text().starts_with('/') && policy.text() == "Recycle" {
        e.forbidden(&policy, "may not be 'recycle' for a hostPath mount of '/'");
    }
    if !inline && !s.get("storageClassName").is_empty() {
        e.dns_subdomain(&s.get("storageClassName"));
    }
    volume_mode(e, &s.get("volumeMode"));
    let class = s.get("volumeAttributesClassName");
    if class.is_set() {
        if class.is_empty() {
            e.required(&class, "an empty string is disallowed");
        } else {
            e.dns_subdomain(&class);
        }
        if !s.get("csi").is_set() {
            e.required(&s.get("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(e: &mut Errors, at: &At) {
    if at.is_empty() {
        e.required(at, "");
    }
    if !at.key("storage").is_set() || at.len() > 1 {
        let shown = if at.is_set() { at.value.clone() } else { Value::Null };
        e.0.push(crate::status::FieldError::not_supported(at.path(), shown, &["storage"]));
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
    if was.is_set() && !same(affinity.value, was.value) {
        e.invalid(&affinity, format!("{IMMUTABLE}, except for updating from beta label to GA"));
    }
    let class = new.get("spec.volumeAttributesClassName");
    if old.get("spec.volumeAttributesClassName").is_set() && !class.is_set() {
        e.forbidden(&class, "update from non-nil value to nil is forbidden");
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
        e.0.push(crate::status::FieldError::invalid(shown, annotation(new).as_str().unwrap_or(""), IMMUTABLE));
    }
    let bound = new.get("status.phase").text() == "Bound";
    if bound {
        keep("/resources/requests/storage");
        keep("/volumeAttributesClassName");
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
    if was.get("volumeAttributesClassName").is_set() {
        if !attributes.is_set() {
            e.forbidden(&attributes, "update from non-nil value to nil is forbidden");
        } else if attributes.is_empty() {
            e.forbidden(&attributes, "update from non-nil value to an empty string is forbidden");
        }
    }
}

/// A claim's changed status.
pub(crate) fn claim_status(e: &mut Errors, o: &At) {
    for (_, q) in o.get("status.capacity").entries() {
        if let Some(n) = q.quantity().map(|q| q.value()).filter(|n| *n < 0) {
            e.invalid_as(&q, n, "must be a valid resource quantity");
        }
    }
}
