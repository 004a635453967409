//! Custom resources: from a CustomResourceDefinition to kinds with schemas, and
//! what their objects need: defaults, pruning (by `codec::normalize`), validation.

mod cel;
mod check;
mod structural;
mod values;

pub(crate) use cel::RESERVED;
pub use cel::Rule;
pub use check::check;
pub use structural::schema_of;
pub use values::validate;

/// What the CEL rules of a custom resource's schema find wrong with an object that is valid but for them.
pub fn validate_rules(new: &Value, old: Option<&Value>, schema: &Schema) -> Vec<crate::status::FieldError> {
    let some = schema.extra.as_ref().is_some_and(|extra| extra.rules_below);
    if some { cel::validate(new, old, schema) } else { Vec::new() }
}

use crate::kinds::{Column, Custom, Kind, ScalePaths, Subresource};
use crate::meta;
use crate::schema::{Ref, Schema, Str};
use serde_json::Value;
use std::sync::Arc;

const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

fn text(v: &Value) -> Str {
    Str::Owned(v.as_str().unwrap_or("").to_string())
}

fn texts(v: &Value) -> Vec<Str> {
    v.as_array().into_iter().flatten().map(text).collect()
}

/// The kinds of all served versions of a CRD. Names are taken from the spec;
/// whether they are accepted is for the caller to decide.
pub fn kinds(crd: &Value) -> Vec<Arc<Kind>> {
    let versions = crd["spec"]["versions"].as_array().map_or(&[][..], Vec::as_slice);
    versions.iter().filter(|v| v["served"] == true).map(|v| Arc::new(kind_of_version(crd, v))).collect()
}

/// The kind of one version, served or not (the storage version may not be).
pub fn kind_of(crd: &Value, version: &str) -> Option<Arc<Kind>> {
    let versions = crd["spec"]["versions"].as_array()?;
    versions.iter().find(|v| v["name"] == version).map(|v| Arc::new(kind_of_version(crd, v)))
}

/// The version in which objects are stored.
pub fn storage_version(crd: &Value) -> &str {
    let versions = crd["spec"]["versions"].as_array().map_or(&[][..], Vec::as_slice);
    versions.iter().find(|v| v["storage"] == true).and_then(|v| v["name"].as_str()).unwrap_or("")
}

fn kind_of_version(crd: &Value, v: &Value) -> Kind {
    let (spec, names) = (&crd["spec"], &crd["spec"]["names"]);
    let raw = &v["schema"]["openAPIV3Schema"];
    let preserve_unknown = spec["preserveUnknownFields"] == true || raw["x-kubernetes-preserve-unknown-fields"] == true;
    let kind = text(&names["kind"]);
    let subs = &v["subresources"];
    let verbs = |list: &[&'static str]| list.iter().map(|v| Str::Borrowed(*v)).collect::<Vec<_>>();
    let sub = |name, group, version, kind| Subresource {
        name,
        group,
        version,
        kind,
        verbs: verbs(&["get", "patch", "update"]),
    };
    let mut subresources = Vec::new();
    if subs["scale"].is_object() {
        subresources.push(sub("scale".into(), "autoscaling".into(), "v1".into(), "Scale".into()));
    }
    if subs["status"].is_object() {
        subresources.push(sub("status".into(), "".into(), "".into(), kind.clone()));
    }
    let scale = subs["scale"].is_object().then(|| ScalePaths {
        spec_replicas: text(&subs["scale"]["specReplicasPath"]).into_owned(),
        status_replicas: text(&subs["scale"]["statusReplicasPath"]).into_owned(),
        label_selector: subs["scale"]["labelSelectorPath"].as_str().filter(|s| !s.is_empty()).map(String::from),
    });
    let or = |v: Str, other: String| if v.is_empty() { Str::Owned(other) } else { v };
    Kind {
        group: text(&spec["group"]),
        version: text(&v["name"]),
        list_kind: or(text(&names["listKind"]), format!("{kind}List")),
        plural: text(&names["plural"]),
        singular: or(text(&names["singular"]), kind.to_lowercase()),
        namespaced: spec["scope"] == "Namespaced",
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        verbs: verbs(VERBS),
        subresources,
        columns: columns(v),
        custom: Some(Box::new(Custom {
            crd: meta::name(crd).into(),
            uid: meta::uid(crd).into(),
            storage_version: storage_version(crd).into(),
            preserve_unknown,
            has_rules: has_rules(raw),
            was_changed: meta::generation(crd) > 1,
            scale,
            selectable: v["selectableFields"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|f| f["jsonPath"].as_str().map(String::from))
                .collect(),
            deprecated: (v["deprecated"] == true).then(|| match v["deprecationWarning"].as_str() {
                Some(w) => w.to_string(),
                None => format!("{}/{} {kind} is deprecated", text(&spec["group"]), text(&v["name"])),
            }),
            conversion: spec["conversion"].clone(),
            openapi: raw.clone(),
        })),
        schema: Ref::Own(Arc::new(structural::root(raw, preserve_unknown))),
        kind,
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => {
            map.iter().any(|(k, v)| k == "x-kubernetes-validations" && v.is_array() || (k != "default" && has_rules(v)))
        }
        Value::Array(list) => list.iter().any(has_rules),
        _ => false,
    }
}

fn columns(v: &Value) -> Vec<Column> {
    let list: Vec<Column> = v["additionalPrinterColumns"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| Column {
            name: text(&c["name"]),
            ty: text(&c["type"]),
            format: text(&c["format"]),
            priority: c["priority"].as_u64().and_then(|p| u8::try_from(p).ok()).unwrap_or(0),
            description: text(&c["description"]),
            path: text(&c["jsonPath"]),
        })
        .collect();
    if !list.is_empty() {
        return list;
    }
    vec![Column {
        name: "Age".into(),
        ty: "date".into(),
        format: "".into(),
        priority: 0,
        description: "".into(),
        path: ".metadata.creationTimestamp".into(),
    }]
}

/// Numbers without a fraction become integers, however they were written: clients in Go read them so from what
/// upstream's encoder writes.
pub fn whole_numbers(value: &mut Value) {
    /// Above it not every integer is a number of this kind.
    const EXACT: f64 = (1i64 << 53) as f64;
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT);
            if let Some(whole) = whole {
                *value = (whole as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Applies the defaults of a structural schema.
pub fn default_object(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for f in &schema.fields {
                let Some(extra) = &f.schema().extra else {
                    continue;
                };
                let Some(default) = &extra.default else {
                    continue;
                };
                let open = match map.get(f.name.as_ref()) {
                    None => true,
                    Some(v) => v.is_null() && !extra.nullable,
                };
                if open {
                    map.insert(f.name.to_string(), default.clone());
                }
            }
            for (k, v) in map.iter_mut() {
                if let Some(child) = schema.child(k) {
                    default_object(v, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = schema.item() {
                items.iter_mut().for_each(|v| default_object(v, item));
            }
        }
        _ => {}
    }
}

/// What is wrong with the syntax of a CEL expression, as admission policies have them.
pub(crate) fn syntax_fault(text: &str) -> Option<String> {
    cel::syntax_fault(text)
}

#[cfg(test)]
mod tests;
