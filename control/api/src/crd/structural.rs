//! JSONSchemaProps to `Schema`.

use super::cel::Rule;
use crate::schema::{Extra, Field, ListType, Ref, Schema, Str, Ty, index_of};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The keywords that check values and that `values::validate` knows.
const RULES: &[&str] = &[
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "required",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

/// The schema of a whole object: as the author wrote it, with type and metadata.
pub fn root(raw: &Value, preserve_unknown: bool) -> Schema {
    let mut s = schema_of(raw);
    s.ty = Ty::Object;
    if preserve_unknown {
        s.extra.get_or_insert_default().preserve_unknown = true;
    }
    add_type_and_metadata(&mut s);
    s
}

fn add_type_and_metadata(s: &mut Schema) {
    let meta = index_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").map_or(Ref::Leaf(Ty::Any), Ref::Type);
    for (name, r) in [("apiVersion", Ref::Leaf(Ty::String)), ("kind", Ref::Leaf(Ty::String)), ("metadata", meta)] {
        s.fields.retain(|f| f.name != name);
        s.fields.push(Field::custom(name.into(), r, false));
    }
    s.fields.sort_by(|a, b| a.name.cmp(&b.name));
}

/// The schema of any node.
pub fn schema_of(v: &Value) -> Schema {
    let mut s = Schema::of(ty(v));
    let mut extra = Extra {
        nullable: v["nullable"] == true,
        preserve_unknown: v["x-kubernetes-preserve-unknown-fields"] == true,
        embedded: v["x-kubernetes-embedded-resource"] == true,
        default: v.get("default").cloned(),
        rules: rules(v),
        validations: validations(v),
        rules_below: false,
    };
    let required: Vec<&str> = v["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, p) in v["properties"].as_object().into_iter().flatten() {
        let r = Ref::Own(Arc::new(schema_of(p)));
        s.fields.push(Field::custom(Str::Owned(name.clone()), r, required.contains(&name.as_str())));
    }
    s.fields.sort_by(|a, b| a.name.cmp(&b.name));
    match &v["additionalProperties"] {
        Value::Bool(true) => s.items = Some(any()),
        p @ Value::Object(_) => s.items = Some(Ref::Own(Arc::new(schema_of(p)))),
        _ => {}
    }
    if s.ty == Ty::Array {
        s.items = Some(if v["items"].is_object() { Ref::Own(Arc::new(schema_of(&v["items"]))) } else { any() });
        s.list = match v["x-kubernetes-list-type"].as_str() {
            Some("map") => ListType::Map,
            Some("set") => ListType::Set,
            Some("atomic") => ListType::Atomic,
            _ => ListType::Unset,
        };
        s.keys = v["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|k| k.as_str().map(|k| Str::Owned(k.into())))
            .collect();
    }
    let below = |r: &Ref| r.get().extra.as_ref().is_some_and(|e| e.rules_below);
    extra.rules_below = !extra.validations.is_empty()
        || s.items.as_ref().is_some_and(below)
        || s.fields.iter().any(|f| below(f.reference()));
    if s.ty == Ty::Any {
        extra.preserve_unknown = true;
    }
    s.atomic = v["x-kubernetes-map-type"] == "atomic";
    let embedded = extra.embedded;
    s.extra = Some(Box::new(extra));
    if embedded {
        add_type_and_metadata(&mut s);
    }
    s
}

/// The rules of a node, and those that its `allOf` adds to it.
fn validations(v: &Value) -> Vec<Rule> {
    let all = v["allOf"].as_array().into_iter().flatten();
    let nodes = std::iter::once(v).chain(all);
    nodes.filter_map(|v| v["x-kubernetes-validations"].as_array()).flatten().map(Rule::read).collect()
}

fn any() -> Ref {
    let mut s = Schema::of(Ty::Any);
    s.extra = Some(Box::new(Extra { preserve_unknown: true, nullable: true, ..Extra::default() }));
    Ref::Own(Arc::new(s))
}

fn ty(v: &Value) -> Ty {
    if v["x-kubernetes-int-or-string"] == true {
        return Ty::IntOrString;
    }
    match (v["type"].as_str(), v["format"].as_str()) {
        (Some("object"), _) => Ty::Object,
        (Some("array"), _) => Ty::Array,
        (Some("boolean"), _) => Ty::Boolean,
        (Some("string"), _) => Ty::String,
        (Some("integer"), Some("int32")) => Ty::Int32,
        (Some("integer"), _) => Ty::Int64,
        (Some("number"), _) => Ty::Number,
        _ if v["properties"].is_object() || v["additionalProperties"].is_object() => Ty::Object,
        _ => Ty::Any,
    }
}

fn rules(v: &Value) -> Option<Value> {
    let m: Map<String, Value> = v
        .as_object()?
        .iter()
        .filter(|(k, _)| RULES.contains(&k.as_str()))
        .map(|(k, x)| (k.clone(), x.clone()))
        .collect();
    (!m.is_empty()).then_some(Value::Object(m))
}
