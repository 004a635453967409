//! The rules of metadata.

use crate::kinds::Kind;
use crate::meta;
use crate::names;
use crate::status::FieldError;
use serde_json::Value;

/// Finalizers that need no domain.
pub(super) const PLAIN_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];
pub(super) const NOT_A_FINALIZER: &str = "name is neither a standard finalizer name nor is it fully qualified";

/// Everything wrong with an object's metadata.
pub fn metadata(kind: &Kind, o: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let m = &o["metadata"];
    let check = |name: &str, field: &str, prefix: bool, out: &mut Vec<FieldError>| {
        out.extend(
            names::object_name(&kind.group, &kind.plural, name, prefix)
                .into_iter()
                .map(|e| FieldError::invalid(field, name, e)),
        );
    };
    let generate = meta::field(o, "generateName");
    if !generate.is_empty() {
        check(generate, "metadata.generateName", true, &mut out);
    }
    if meta::name(o).is_empty() {
        out.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        check(meta::name(o), "metadata.name", false, &mut out);
    }
    if kind.namespaced {
        let ns = meta::namespace(o);
        if ns.is_empty() {
            out.push(FieldError::required("metadata.namespace", ""));
        }
        out.extend(
            names::dns1123_label(ns)
                .into_iter()
                .filter(|_| !ns.is_empty())
                .map(|e| FieldError::invalid("metadata.namespace", ns, e)),
        );
    } else if !meta::namespace(o).is_empty() {
        out.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    if let Some(l) = m["labels"].as_object() {
        out.extend(names::labels(l, "metadata.labels"));
    }
    if let Some(a) = m["annotations"].as_object() {
        out.extend(names::annotations(a, "metadata.annotations"));
    }
    if m["generation"].as_i64().is_some_and(|n| n < 0) {
        let detail = "must be greater than or equal to 0";
        out.push(FieldError::invalid("metadata.generation", m["generation"].clone(), detail));
    }
    owners(o, &mut out);
    finalizers(kind, o, &mut out);
    out
}

fn finalizers(kind: &Kind, o: &Value, out: &mut Vec<FieldError>) {
    const AT: &str = "metadata.finalizers";
    let all = meta::finalizers(o);
    for f in &all {
        out.extend(names::qualified_name(f).into_iter().map(|e| FieldError::invalid(AT, *f, e)));
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        out.push(FieldError::invalid(AT, all.clone(), detail));
    }
    // Upstream validates these groups by the generic rules above alone.
    let generic =
        ["apiextensions.k8s.io", "apiregistration.k8s.io", "admissionregistration.k8s.io", "coordination.k8s.io"];
    let has_own_rule = !kind.is_custom() && !generic.contains(&&*kind.group);
    let loose = |f: &str| !f.contains('/') && !PLAIN_FINALIZERS.contains(&f);
    for (i, f) in all.iter().enumerate().filter(|(_, f)| has_own_rule && loose(f)) {
        out.push(FieldError::invalid(format!("{AT}[{i}]"), *f, NOT_A_FINALIZER));
    }
}

/// What is wrong with the name of a field manager.
pub fn manager(at: &str, name: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    if name.len() > 128 {
        out.push(FieldError::too_long(at, 128));
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace() && c != ' ') {
        out.push(FieldError::invalid(at, name, "should only contain printable characters"));
    }
    out
}

/// The paths name no index: so clients know them.
fn owners(o: &Value, out: &mut Vec<FieldError>) {
    const AT: &str = "metadata.ownerReferences";
    let mut first: Option<String> = None;
    for r in meta::owners(o) {
        let text = |field: &str| r[field].as_str().unwrap_or("");
        let (group, version) = crate::kinds::split_api_version(text("apiVersion"));
        if version.is_empty() {
            let at = format!("{AT}.apiVersion");
            out.push(FieldError::invalid(at, text("apiVersion"), "version must not be empty"));
        }
        for k in ["kind", "name", "uid"] {
            if text(k).is_empty() {
                out.push(FieldError::invalid(format!("{AT}.{k}"), "", "must not be empty"));
            }
        }
        if group.is_empty() && version == "v1" && text("kind") == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            out.push(FieldError::invalid(AT, r.clone(), detail));
        }
        if r["controller"] != true {
            continue;
        }
        let name = format!("{}/{}", text("kind"), text("name"));
        match &first {
            None => first = Some(name),
            Some(first) => {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                );
                out.push(FieldError::invalid(AT, o["metadata"]["ownerReferences"].clone(), detail));
            }
        }
    }
}

/// Everything wrong with a change of metadata.
pub fn metadata_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = metadata(kind, new);
    for f in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if new["metadata"][f] != old["metadata"][f] {
            out.push(FieldError::invalid(format!("metadata.{f}"), new["metadata"][f].clone(), "field is immutable"));
        }
    }
    if meta::deletion_timestamp(old).is_some() {
        let before = meta::finalizers(old);
        let added: Vec<String> =
            meta::finalizers(new).into_iter().filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            out.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    out
}
