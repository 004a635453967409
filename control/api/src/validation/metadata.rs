//! The rules of metadata.

use crate::kinds::Kind;
use crate::meta;
use crate::names;
use crate::status::FieldError;
use serde_json::Value;

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
    owners(o, &mut out);
    for f in meta::finalizers(o) {
        for e in names::qualified_name(f) {
            out.push(FieldError::invalid("metadata.finalizers", f, e));
        }
    }
    out
}

fn owners(o: &Value, out: &mut Vec<FieldError>) {
    let mut controller: Option<&Value> = None;
    for (i, r) in meta::owners(o).iter().enumerate() {
        let at = format!("metadata.ownerReferences[{i}]");
        let (group, version) = crate::kinds::split_api_version(r["apiVersion"].as_str().unwrap_or(""));
        if version.is_empty() {
            out.push(FieldError::invalid(
                format!("{at}.apiVersion"),
                r["apiVersion"].clone(),
                "version must not be empty",
            ));
        }
        for k in ["kind", "name", "uid"] {
            if r[k].as_str().unwrap_or("").is_empty() {
                out.push(FieldError::invalid(format!("{at}.{k}"), r[k].clone(), "must not be empty"));
            }
        }
        if group.is_empty() && r["kind"] == "Event" {
            out.push(FieldError::invalid(at.clone(), r.clone(), "Event is disallowed from being an owner"));
        }
        if r["controller"] == true {
            if let Some(first) = controller {
                let name = |v: &Value| v["name"].as_str().unwrap_or("").to_string();
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                    name(first),
                    name(r)
                );
                out.push(FieldError::invalid(
                    "metadata.ownerReferences",
                    o["metadata"]["ownerReferences"].clone(),
                    detail,
                ));
            }
            controller = Some(r);
        }
    }
}

/// Everything wrong with a change of metadata.
pub fn metadata_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = metadata(kind, new);
    for f in ["name", "namespace", "uid", "creationTimestamp"] {
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
