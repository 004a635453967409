//! Schemas as OpenAPI spells them.

use crate::kinds::{Kind, api_version, type_schema};
use crate::schema::{self, Field, ListType, Ref, Schema, Ty};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which version of OpenAPI.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    V2,
    V3,
}

impl Style {
    fn prefix(self) -> &'static str {
        match self {
            Style::V2 => "#/definitions/",
            Style::V3 => "#/components/schemas/",
        }
    }

    /// A reference to a definition.
    pub fn reference(self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.prefix())})
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// The definition that a scalar with a name of its own has.
fn leaf_name(ty: Ty) -> Option<String> {
    Some(match ty {
        Ty::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
        Ty::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity".into(),
        Ty::RawExtension => "io.k8s.apimachinery.pkg.runtime.RawExtension".into(),
        Ty::Time => format!("{META}Time"),
        Ty::MicroTime => format!("{META}MicroTime"),
        Ty::FieldsV1 => format!("{META}FieldsV1"),
        Ty::Json => format!("{EXTENSIONS}JSON"),
        Ty::PropsOrArray => format!("{EXTENSIONS}JSONSchemaPropsOrArray"),
        Ty::PropsOrBool => format!("{EXTENSIONS}JSONSchemaPropsOrBool"),
        Ty::PropsOrStrings => format!("{EXTENSIONS}JSONSchemaPropsOrStringArray"),
        _ => return None,
    })
}

/// A definition by name.
pub fn definition(name: &str, style: Style) -> Value {
    match name.rsplit('.').next().unwrap_or("") {
        "IntOrString" if style == Style::V3 => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        "Quantity" if style == Style::V3 => {
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
        }
        "IntOrString" => json!({"type": "string", "format": "int-or-string"}),
        "Quantity" => json!({"type": "string"}),
        "Time" | "MicroTime" if name.starts_with(META) => {
            json!({"type": "string", "format": "date-time"})
        }
        "RawExtension" | "FieldsV1" | "Patch" => json!({"type": "object"}),
        "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => json!({}),
        _ => schema::by_name(name).map_or_else(|| json!({"type": "object"}), |s| object(s, style)),
    }
}

fn object(s: &Schema, style: Style) -> Value {
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    if !s.description().is_empty() {
        out.insert("description".into(), s.description().into());
    }
    if !s.fields.is_empty() {
        let properties: Map<String, Value> =
            s.fields.iter().map(|f| (f.name.to_string(), property(f, style))).collect();
        out.insert("properties".into(), Value::Object(properties));
    }
    let required: Vec<&str> = s.fields.iter().filter(|f| f.required).map(|f| f.name.as_ref()).collect();
    if !required.is_empty() {
        out.insert("required".into(), json!(required));
    }
    if let Some(items) = &s.items {
        out.insert("additionalProperties".into(), node(items, style));
    }
    if s.atomic {
        out.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    Value::Object(out)
}

fn property(f: &Field, style: Style) -> Value {
    let mut v = node(f.reference(), style);
    let mut extras: Vec<(&str, Value)> = Vec::new();
    if !f.description().is_empty() {
        extras.push(("description", f.description().into()));
    }
    let strategy = match (f.patch_merge, f.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        _ => "",
    };
    if !strategy.is_empty() {
        extras.push(("x-kubernetes-patch-strategy", strategy.into()));
    }
    if let Some(k) = f.merge_key {
        extras.push(("x-kubernetes-patch-merge-key", k.into()));
    }
    if f.atomic {
        extras.push(("x-kubernetes-map-type", "atomic".into()));
    }
    if extras.is_empty() {
        return v;
    }
    // v3 has no siblings of a reference.
    if style == Style::V3 && v.get("$ref").is_some() {
        v = json!({"allOf": [v]});
    }
    for (k, x) in extras {
        v[k] = x;
    }
    v
}

fn node(r: &Ref, style: Style) -> Value {
    let s = r.get();
    if let Ref::Type(_) = r {
        return style.reference(&s.name);
    }
    if let Some(name) = leaf_name(s.ty) {
        return style.reference(&name);
    }
    match s.ty {
        Ty::Boolean => json!({"type": "boolean"}),
        Ty::String => json!({"type": "string"}),
        Ty::Int32 => json!({"type": "integer", "format": "int32"}),
        Ty::Int64 => json!({"type": "integer", "format": "int64"}),
        Ty::Number => json!({"type": "number", "format": "double"}),
        Ty::Bytes => json!({"type": "string", "format": "byte"}),
        Ty::Array => {
            let mut v = json!({"type": "array", "items": s.items.as_ref().map(|i| node(i, style))});
            let ty = match s.list {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
                ListType::Unset => return v,
            };
            v["x-kubernetes-list-type"] = ty.into();
            if !s.keys.is_empty() {
                v["x-kubernetes-list-map-keys"] = json!(s.keys);
            }
            v
        }
        Ty::Object => object(s, style),
        _ => json!({}),
    }
}

/// Names of all definitions that the kinds need.
pub fn closure(kinds: &[&Arc<Kind>]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut roots: Vec<&Schema> = Vec::new();
    for k in kinds.iter().filter(|k| !k.is_custom()) {
        roots.push(k.schema());
        roots.extend(list_schema(k));
        for s in &k.subresources {
            let (g, v) = if s.version.is_empty() { (&k.group, &k.version) } else { (&s.group, &s.version) };
            roots.extend(type_schema(g, v, &s.kind));
        }
    }
    for name in ["DeleteOptions", "Status", "ObjectMeta", "ListMeta", "WatchEvent"] {
        roots.extend(schema::by_name(&format!("{META}{name}")));
    }
    roots.into_iter().for_each(|s| walk(s, &mut out));
    out.insert(format!("{META}Patch"));
    out
}

fn walk(s: &Schema, out: &mut BTreeSet<String>) {
    if let Some(name) = leaf_name(s.ty) {
        out.insert(name);
        return;
    }
    if !s.name.is_empty() && !out.insert(s.name.to_string()) {
        return;
    }
    s.fields.iter().for_each(|f| walk(f.schema(), out));
    if let Some(i) = &s.items {
        walk(i.get(), out);
    }
}

fn list_schema(k: &Kind) -> Option<&'static Schema> {
    type_schema(&k.group, &k.version, &k.list_kind)
}

/// Which kinds a definition stands for.
pub fn gvks(kinds: &[&Arc<Kind>]) -> BTreeMap<String, Vec<Value>> {
    let mut out: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut add = |name: &str, g: &str, v: &str, k: &str| {
        let gvk = json!({"group": g, "version": v, "kind": k});
        let list = out.entry(name.to_string()).or_default();
        if !list.contains(&gvk) {
            list.push(gvk);
        }
    };
    for k in kinds.iter().filter(|k| !k.is_custom()) {
        add(&k.schema().name, &k.group, &k.version, &k.kind);
        if let Some(s) = list_schema(k) {
            add(&s.name, &k.group, &k.version, &k.list_kind);
        }
        for s in k.subresources.iter().filter(|s| !s.version.is_empty()) {
            if let Some(t) = type_schema(&s.group, &s.version, &s.kind) {
                add(&t.name, &s.group, &s.version, &s.kind);
            }
        }
        add(&format!("{META}DeleteOptions"), &k.group, &k.version, "DeleteOptions");
        add(&format!("{META}WatchEvent"), &k.group, &k.version, "WatchEvent");
    }
    add(&format!("{META}Status"), "", "v1", "Status");
    out
}

/// The definition's name of a custom kind: `com.example.v1.Foo`.
pub fn custom_name(k: &Kind, kind: &str) -> String {
    let group: Vec<&str> = k.group.split('.').rev().collect();
    format!("{}.{}.{kind}", group.join("."), k.version)
}

/// The definitions of a custom kind and its list.
pub fn custom(k: &Kind, style: Style) -> Vec<(String, Value)> {
    let Some(c) = &k.custom else {
        return Vec::new();
    };
    let mut v = if c.openapi.is_object() { c.openapi.clone() } else { json!({"type": "object"}) };
    if style == Style::V2 {
        downgrade(&mut v);
    }
    // Clients must not prune what the server keeps.
    let opaque = c.preserve_unknown || (style == Style::V2 && v["x-kubernetes-preserve-unknown-fields"] == true);
    if opaque {
        v = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    embedded(&mut v, style);
    let text = |d: &str| json!({"type": "string", "description": d});
    add_type(&mut v, style);
    v["type"] = "object".into();
    let gvk = |kind: &str| json!([{"group": k.group, "version": k.version, "kind": kind}]);
    v["x-kubernetes-group-version-kind"] = gvk(&k.kind);
    if !c.selectable.is_empty() {
        let path = |s: &String| json!({"fieldPath": s.trim_start_matches('.')});
        v["x-kubernetes-selectable-fields"] = c.selectable.iter().map(path).collect();
    }
    let list = json!({
        "type": "object", "required": ["items"], "x-kubernetes-group-version-kind": gvk(&k.list_kind),
        "description": format!("A list of {} ({}).", k.kind, api_version(&k.group, &k.version)),
        "properties": {
            "apiVersion": text("The group and version of this object's schema."), "kind": text("The kind of this object."),
            "items": {"type": "array", "items": style.reference(&custom_name(k, &k.kind))},
            "metadata": style.reference(&format!("{META}ListMeta")),
        }
    });
    vec![(custom_name(k, &k.kind), v), (custom_name(k, &k.list_kind), list)]
}

/// The fields that every object has.
fn add_type(v: &mut Value, style: Style) {
    if !v["properties"].is_object() {
        v["properties"] = json!({});
    }
    for (field, what) in
        [("apiVersion", "The group and version of this object's schema."), ("kind", "The kind of this object.")]
    {
        v["properties"][field] = json!({"type": "string", "description": what});
    }
    let meta = style.reference(&format!("{META}ObjectMeta"));
    v["properties"]["metadata"] = if style == Style::V3 { json!({"allOf": [meta]}) } else { meta };
}

/// Gives them to the objects inside of an object.
fn embedded(v: &mut Value, style: Style) {
    for field in v.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(|p| p.values_mut()) {
        embedded(field, style);
        let open = style == Style::V2 && field["x-kubernetes-preserve-unknown-fields"] == true;
        if field["x-kubernetes-embedded-resource"] == true && !open {
            add_type(field, style);
            let mut required = field["required"].as_array().cloned().unwrap_or_default();
            for name in ["kind", "apiVersion"] {
                if !required.contains(&name.into()) {
                    required.push(name.into());
                }
            }
            field["required"] = required.into();
        }
    }
    for below in ["items", "additionalProperties"] {
        if v[below].is_object() {
            embedded(&mut v[below], style);
        }
    }
}

/// Takes out what v2 cannot say.
fn downgrade(v: &mut Value) {
    let Some(m) = v.as_object_mut() else { return };
    for k in ["oneOf", "anyOf", "allOf", "not", "nullable", "default", "x-kubernetes-validations"] {
        m.remove(k);
    }
    if m.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        m.insert("x-kubernetes-int-or-string".into(), true.into());
        m.remove("type");
    }
    if m.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        m.remove("items");
        m.remove("properties");
        m.remove("type");
    }
    if let Some(Value::Object(p)) = m.get_mut("properties") {
        p.values_mut().for_each(downgrade);
    }
    for k in ["items", "additionalProperties"] {
        if let Some(c) = m.get_mut(k) {
            downgrade(c);
        }
    }
}
