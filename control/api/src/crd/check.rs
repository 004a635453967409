//! Checks a CustomResourceDefinition itself.

use super::{default_object, schema_of, values};
use crate::names;
use crate::status::FieldError;
use serde_json::Value;

/// All errors of a CRD, and sentences about rules that are taken but not enforced.
pub fn check(crd: &Value) -> (Vec<FieldError>, Vec<String>) {
    let (mut out, mut unenforced) = (Vec::new(), Vec::new());
    let (spec, n) = (&crd["spec"], &crd["spec"]["names"]);
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let (group, plural) = (text(&spec["group"]), text(&n["plural"]));
    let want = format!("{plural}.{group}");
    if crate::meta::name(crd) != want {
        out.push(FieldError::invalid(
            "metadata.name",
            crate::meta::name(crd),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if group.is_empty() {
        out.push(FieldError::required("spec.group", ""));
    } else if let Some(e) = names::dns1123_subdomain(&group).first() {
        out.push(FieldError::invalid("spec.group", group.as_str(), e.clone()));
    } else if !group.contains('.') {
        out.push(FieldError::invalid("spec.group", group.as_str(), "should be a domain with at least one dot"));
    }
    match spec["scope"].as_str() {
        None | Some("") => out.push(FieldError::required("spec.scope", "")),
        Some("Namespaced" | "Cluster") => {}
        Some(s) => out.push(FieldError::not_supported("spec.scope", s, &["Cluster", "Namespaced"])),
    }
    for (field, value) in [
        ("plural", &plural),
        ("singular", &text(&n["singular"])),
        ("kind", &text(&n["kind"])),
        ("listKind", &text(&n["listKind"])),
    ] {
        if value.is_empty() {
            out.push(FieldError::required(format!("spec.names.{field}"), ""));
        } else if let Some(e) = names::dns1035_label(&value.to_lowercase()).first() {
            out.push(FieldError::invalid(format!("spec.names.{field}"), value.as_str(), e.clone()));
        }
    }
    if spec["preserveUnknownFields"] == true {
        out.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
    versions(spec, &mut out, &mut unenforced);
    protected_group(crd, &group, &mut out);
    (out, unenforced)
}

fn versions(spec: &Value, out: &mut Vec<FieldError>, unenforced: &mut Vec<String>) {
    let list = spec["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let mut seen: Vec<&str> = Vec::new();
    for (i, v) in list.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let name = v["name"].as_str().unwrap_or("");
        for e in names::dns1035_label(name) {
            out.push(FieldError::invalid(format!("{at}.name"), name, e));
        }
        if seen.contains(&name) {
            out.push(FieldError::invalid("spec.versions", name, "must contain unique version names"));
        }
        seen.push(name);
        let schema = &v["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            let at = format!("{at}.schema.openAPIV3Schema");
            if schema["type"] != "object" {
                if schema["type"].is_string() {
                    out.push(FieldError::invalid(
                        format!("{at}.type"),
                        schema["type"].clone(),
                        "must be object at the root",
                    ));
                } else {
                    out.push(FieldError::required(format!("{at}.type"), "must not be empty at the root"));
                }
            }
            let before = out.len();
            structural(schema, &at, out);
            patterns(schema, &at, out);
            if out.len() == before {
                defaults(schema, &at, true, out);
            }
            // Rules are looked at when the schema itself is sound, as upstream does.
            if out.len() == before {
                let (errors, idle) = super::cel::check(schema, &at);
                out.extend(errors);
                unenforced.extend(idle);
            }
        } else {
            out.push(FieldError::required(format!("{at}.schema.openAPIV3Schema"), "schemas are required"));
        }
        for (i, c) in v["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
            if let Err(e) = crate::table::parse_json_path(c["jsonPath"].as_str().unwrap_or("")) {
                out.push(FieldError::invalid(
                    format!("{at}.additionalPrinterColumns[{i}].jsonPath"),
                    c["jsonPath"].clone(),
                    e,
                ));
            }
        }
    }
    let storage = list.iter().filter(|v| v["storage"] == true).count();
    if storage != 1 {
        out.push(FieldError::invalid(
            "spec.versions",
            spec["versions"].clone(),
            "must have exactly one version marked as storage version",
        ));
    }
}

/// The rules that make a schema structural.
fn structural(v: &Value, at: &str, out: &mut Vec<FieldError>) {
    let free = v["x-kubernetes-int-or-string"] == true || v["x-kubernetes-preserve-unknown-fields"] == true;
    if v["type"].as_str().unwrap_or("").is_empty() && !free {
        out.push(FieldError::required(format!("{at}.type"), "must not be empty for specified object fields"));
    }
    for k in ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id", "$schema"] {
        if v.get(k).is_some_and(|x| !x.is_null()) {
            out.push(FieldError::forbidden(format!("{at}.{k}"), format!("{k} is not supported")));
        }
    }
    if v["uniqueItems"] == true {
        out.push(FieldError::forbidden(
            format!("{at}.uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let properties = v["properties"].as_object();
    if properties.is_some_and(|p| !p.is_empty())
        && v.get("additionalProperties").is_some_and(|a| a.is_object() || a == true)
    {
        out.push(FieldError::forbidden(
            format!("{at}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    for (k, p) in properties.into_iter().flatten() {
        structural(p, &format!("{at}.properties[{k}]"), out);
    }
    if v["additionalProperties"].is_object() {
        structural(&v["additionalProperties"], &format!("{at}.additionalProperties"), out);
    }
    if v["type"] == "array" {
        if v["items"].is_object() {
            structural(&v["items"], &format!("{at}.items"), out);
        } else if v["items"].is_array() {
            out.push(FieldError::forbidden(format!("{at}.items"), "items must be a schema object and not an array"));
        } else {
            out.push(FieldError::required(format!("{at}.items"), "must be specified"));
        }
    }
    let keys = v["x-kubernetes-list-map-keys"].as_array().is_some_and(|k| !k.is_empty());
    if v["x-kubernetes-list-type"] == "map" && !keys {
        out.push(FieldError::required(
            format!("{at}.x-kubernetes-list-map-keys"),
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
}

/// Patterns that no engine knows, also those of branches.
fn patterns(v: &Value, at: &str, out: &mut Vec<FieldError>) {
    if let Some(pattern) = v["pattern"].as_str()
        && let Some(why) = values::fault(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        out.push(FieldError::invalid(format!("{at}.pattern"), pattern, detail));
    }
    for (k, p) in v["properties"].as_object().into_iter().flatten() {
        patterns(p, &format!("{at}.properties[{k}]"), out);
    }
    for k in ["additionalProperties", "items", "not"] {
        if v[k].is_object() {
            patterns(&v[k], &format!("{at}.{k}"), out);
        }
    }
    for k in ["allOf", "anyOf", "oneOf"] {
        for (i, branch) in v[k].as_array().into_iter().flatten().enumerate() {
            patterns(branch, &format!("{at}.{k}[{i}]"), out);
        }
    }
}

/// Defaults that do not fit their schema: every object without the field would be refused for it.
fn defaults(v: &Value, at: &str, root: bool, out: &mut Vec<FieldError>) {
    if v.get("default").is_some_and(|d| !d.is_null()) {
        let (at, given, schema) = (format!("{at}.default"), &v["default"], schema_of(v));
        let (mut value, mut unknown) = (given.clone(), Vec::new());
        // What does not fit at all is what the check of values says.
        if crate::codec::normalize(&mut value, &schema, &mut unknown).is_ok() && !unknown.is_empty() {
            out.push(FieldError::invalid(&at, given.clone(), "must not have unknown fields"));
        }
        let mut value = given.clone();
        default_object(&mut value, &schema);
        out.extend(values::validate(&value, &schema, &at));
    }
    if v["items"].is_object() {
        defaults(&v["items"], &format!("{at}.items"), false, out);
    }
    // Parts of metadata are fit only within it.
    let whole = root || v["x-kubernetes-embedded-resource"] == true;
    let own = |k: &str| !(whole && matches!(k, "metadata" | "apiVersion" | "kind"));
    for (k, p) in v["properties"].as_object().into_iter().flatten().filter(|(k, _)| own(k)) {
        defaults(p, &format!("{at}.properties[{k}]"), false, out);
    }
}

fn protected_group(crd: &Value, group: &str, out: &mut Vec<FieldError>) {
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|p| group == *p || group.ends_with(&format!(".{p}")));
    if !protected {
        return;
    }
    let at = "metadata.annotations[api-approved.kubernetes.io]";
    match crate::meta::annotation(crd, "api-approved.kubernetes.io") {
        None | Some("") => {
            out.push(FieldError::required(at, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"));
        }
        Some(v) if v.starts_with("unapproved") || v.contains("://") => {}
        Some(v) => out.push(FieldError::invalid(at, v, "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\"")),
    }
}
