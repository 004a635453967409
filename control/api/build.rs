//! Compacts the tables of facts (`facts/*.json`) into one blob that the crate
//! embeds: interned strings, types with their fields, kinds, printed columns.
//! `src/blob.rs` reads it; the two must agree on every byte.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::{env, fs, path::Path};

/// Interns strings in order of first use.
#[derive(Default)]
struct Strings {
    ids: HashMap<String, u32>,
    list: Vec<String>,
}

impl Strings {
    fn id(&mut self, s: &str) -> u32 {
        if let Some(id) = self.ids.get(s) {
            return *id;
        }
        let id = self.list.len() as u32;
        self.list.push(s.to_string());
        self.ids.insert(s.to_string(), id);
        id
    }
}

fn varint(out: &mut Vec<u8>, mut v: u32) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

struct Facts {
    schemas: Map<String, Value>,
    protos: Map<String, Value>,
    order: BTreeMap<String, u32>,
    strings: Strings,
    /// Fields that tell "not set" from zero, by type.
    optional: Map<String, Value>,
    descriptions: Map<String, Value>,
}

fn load(name: &str) -> Value {
    let path = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("facts").join(name);
    println!("cargo:rerun-if-changed={}", path.display());
    let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn object(v: Value) -> Map<String, Value> {
    match v {
        Value::Object(m) => m,
        _ => panic!("a table of facts must be an object"),
    }
}

/// Leaf types; the numbers are `schema::Ty`.
fn leaf(name: &str, schema: &Value) -> u8 {
    match name.rsplit('.').next().unwrap_or("") {
        "Quantity" => return 8,
        "Time" => return 9,
        "MicroTime" => return 10,
        "IntOrString" => return 7,
        "RawExtension" => return 12,
        "FieldsV1" => return 13,
        "JSON" if name.contains("apiextensions") => return 14,
        "JSONSchemaPropsOrArray" => return 16,
        "JSONSchemaPropsOrBool" => return 17,
        "JSONSchemaPropsOrStringArray" => return 18,
        _ => {}
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some("byte")) => 11,
        (Some("string"), _) => 3,
        (Some("integer"), Some("int64")) => 5,
        (Some("integer"), _) => 4,
        (Some("number"), _) => 6,
        (Some("boolean"), _) => 2,
        (Some("object"), _) => 1,
        _ => 0,
    }
}

fn ref_name(v: &Value) -> Option<&str> {
    v["$ref"].as_str().map(|r| r.trim_start_matches("#/definitions/"))
}

fn proto_name(schema_name: &str) -> String {
    schema_name.replacen("io.k8s.", "k8s.io.", 1).replace('-', "_")
}

/// Field numbers of a message by JSON name: the number, and the numbers of the
/// embedded messages on the way to it (Go's inlined structs).
fn proto_fields(
    protos: &Map<String, Value>,
    message: &str,
    props: &Map<String, Value>,
) -> BTreeMap<String, (u32, Vec<u32>)> {
    let mut out = BTreeMap::new();
    walk_proto(protos, message, props, &mut Vec::new(), &mut out);
    out
}

fn walk_proto(
    protos: &Map<String, Value>,
    message: &str,
    props: &Map<String, Value>,
    path: &mut Vec<u32>,
    out: &mut BTreeMap<String, (u32, Vec<u32>)>,
) {
    let Some(fields) = protos.get(message).and_then(Value::as_array) else {
        return;
    };
    for f in fields {
        let number = f[0].as_u64().expect("field number") as u32;
        let name = f[1].as_str().expect("field name");
        let ty = f[2].as_str().expect("field type");
        let mut json = json_name(message, name);
        if !props.contains_key(&json)
            && let Some(same) = props.keys().find(|k| k.eq_ignore_ascii_case(&json))
        {
            json = same.clone();
        }
        if props.contains_key(&json) {
            out.entry(json).or_insert((number, path.clone()));
            continue;
        }
        if path.len() >= 3 {
            continue;
        }
        let package = message.rsplit_once('.').map_or("", |p| p.0);
        let local = format!("{package}.{ty}");
        let target = if protos.contains_key(&local) { local } else { ty.to_string() };
        if target != message && protos.contains_key(&target) {
            path.push(number);
            walk_proto(protos, &target, props, path, out);
            path.pop();
        }
    }
}

/// JSON names that Go tags spell differently from the protobuf field.
fn json_name(message: &str, field: &str) -> String {
    if message.ends_with(".JSONSchemaProps") {
        match field {
            "schema" => return "$schema".into(),
            "ref" => return "$ref".into(),
            _ => {}
        }
        if let Some(rest) = field.strip_prefix("xKubernetes") {
            let mut s = String::from("x-kubernetes");
            for c in rest.chars() {
                if c.is_ascii_uppercase() {
                    s.push('-');
                }
                s.push(c.to_ascii_lowercase());
            }
            return s;
        }
    }
    field.to_string()
}

impl Facts {
    /// A schema node: tag, then what the tag needs.
    fn node(&mut self, out: &mut Vec<u8>, v: &Value) {
        if let Some(name) = ref_name(v) {
            let name = name.to_string();
            let target = self.schemas.get(&name).cloned().unwrap_or(Value::Null);
            let l = leaf(&name, &target);
            if target["properties"].is_object() && l < 14 {
                out.push(0);
                let i = self.order[&name];
                varint(out, i);
            } else {
                out.push(3);
                out.push(l);
            }
            return;
        }
        if v["type"] == "array" {
            out.push(1);
            out.push(match v["x-kubernetes-list-type"].as_str() {
                Some("atomic") => 1,
                Some("set") => 2,
                Some("map") => 3,
                _ => 0,
            });
            let keys = v["x-kubernetes-list-map-keys"].as_array().cloned().unwrap_or_default();
            varint(out, keys.len() as u32);
            for k in &keys {
                let id = self.strings.id(k.as_str().expect("list key"));
                varint(out, id);
            }
            let items = v["items"].clone();
            self.node(out, &items);
            return;
        }
        if v["additionalProperties"].is_object() {
            out.push(2);
            out.push((v["x-kubernetes-map-type"] == "atomic") as u8);
            let items = v["additionalProperties"].clone();
            self.node(out, &items);
            return;
        }
        out.push(3);
        out.push(leaf("", v));
    }

    fn field(
        &mut self,
        out: &mut Vec<u8>,
        name: &str,
        help: &str,
        v: &Value,
        marks: u8,
        proto: Option<&(u32, Vec<u32>)>,
    ) {
        let id = self.strings.id(name);
        varint(out, id);
        let id = self.strings.id(help);
        varint(out, id);
        let strategy = v["x-kubernetes-patch-strategy"].as_str().unwrap_or("");
        let merge_key = v["x-kubernetes-patch-merge-key"].as_str();
        let mut flags = marks;
        flags |= (strategy.contains("merge") as u8) << 1;
        flags |= (strategy.contains("retainKeys") as u8) << 2;
        flags |= (merge_key.is_some() as u8) << 3;
        flags |= ((ref_name(v).is_some() && v["x-kubernetes-map-type"] == "atomic") as u8) << 4;
        out.push(flags);
        if let Some(k) = merge_key {
            let id = self.strings.id(k);
            varint(out, id);
        }
        let (number, path) = proto.cloned().unwrap_or_default();
        varint(out, number);
        varint(out, path.len() as u32);
        for p in path {
            varint(out, p);
        }
        self.node(out, v);
    }

    fn ty(&mut self, name: &str) -> Vec<u8> {
        let v = self.schemas[name].clone();
        let mut out = Vec::new();
        let id = self.strings.id(name);
        varint(&mut out, id);
        let help = self.descriptions.get(name).cloned().unwrap_or(Value::Null);
        let id = self.strings.id(help[""].as_str().unwrap_or(""));
        varint(&mut out, id);
        out.push((v["x-kubernetes-map-type"] == "atomic") as u8);
        let empty = Map::new();
        let props = v["properties"].as_object().unwrap_or(&empty).clone();
        let required: Vec<&str> =
            v["required"].as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
        let numbers = proto_fields(&self.protos, &proto_name(name), &props);
        if env::var_os("API_BUILD_REPORT").is_some() {
            for p in props.keys() {
                if !numbers.contains_key(p) && p != "apiVersion" && p != "kind" {
                    println!("cargo:warning=no protobuf number: {name} {p}");
                }
            }
        }
        varint(&mut out, props.len() as u32);
        for (k, p) in &props {
            let optional = self.optional.get(name).and_then(Value::as_array).is_some_and(|l| l.iter().any(|o| o == k));
            let marks = required.contains(&k.as_str()) as u8 | (optional as u8) << 5;
            self.field(&mut out, k, help[k.as_str()].as_str().unwrap_or(""), p, marks, numbers.get(k));
        }
        out
    }

    fn str_list(&mut self, out: &mut Vec<u8>, v: &Value) {
        let list = v.as_array().cloned().unwrap_or_default();
        varint(out, list.len() as u32);
        for s in list {
            let id = self.strings.id(s.as_str().unwrap_or(""));
            varint(out, id);
        }
    }

    fn s(&mut self, out: &mut Vec<u8>, v: &str) {
        let id = self.strings.id(v);
        varint(out, id);
    }

    fn gvk_type(&self, group: &str, version: &str, kind: &str) -> u32 {
        for (name, v) in &self.schemas {
            for g in v["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                // Options and Status are registered in every group; those are not kinds.
                if g["group"] == group && g["version"] == version && g["kind"] == kind {
                    return self.order[name] + 1;
                }
            }
        }
        0
    }

    /// Kinds that are served by default: the stable versions.
    fn kinds(&mut self, discovery: &Value, columns: &Value) -> (u32, Vec<u8>) {
        let mut out = Vec::new();
        let mut count = 0;
        for g in discovery["items"].as_array().expect("items") {
            let group = g["metadata"]["name"].as_str().expect("group name").to_string();
            for v in g["versions"].as_array().expect("versions") {
                let version = v["version"].as_str().expect("version").to_string();
                if version[1..].parse::<u32>().is_err() {
                    continue;
                }
                for r in v["resources"].as_array().expect("resources") {
                    self.kind(&mut out, &group, &version, r, columns);
                    count += 1;
                }
            }
        }
        (count, out)
    }

    fn kind(&mut self, out: &mut Vec<u8>, group: &str, version: &str, r: &Value, columns: &Value) {
        let kind = r["responseKind"]["kind"].as_str().expect("kind").to_string();
        let ty = self.gvk_type(group, version, &kind);
        assert!(ty > 0, "no schema for {group}/{version} {kind}");
        for s in [
            group,
            version,
            &kind,
            r["resource"].as_str().expect("resource"),
            r["singularResource"].as_str().unwrap_or(""),
        ] {
            self.s(out, s);
        }
        out.push((r["scope"] == "Namespaced") as u8);
        self.str_list(out, &r["shortNames"]);
        self.str_list(out, &r["categories"]);
        self.str_list(out, &r["verbs"]);
        varint(out, ty - 1);
        let subs = r["subresources"].as_array().cloned().unwrap_or_default();
        varint(out, subs.len() as u32);
        for s in subs {
            for f in [
                s["subresource"].as_str().unwrap_or(""),
                s["responseKind"]["group"].as_str().unwrap_or(""),
                s["responseKind"]["version"].as_str().unwrap_or(""),
                s["responseKind"]["kind"].as_str().unwrap_or(""),
            ] {
                self.s(out, f);
            }
            self.str_list(out, &s["verbs"]);
        }
        self.columns(out, group, &kind, columns);
    }

    fn columns(&mut self, out: &mut Vec<u8>, group: &str, kind: &str, columns: &Value) {
        let package = match group {
            "" | "events.k8s.io" => "api",
            "node.k8s.io" => "nodeapi",
            "rbac.authorization.k8s.io" => "rbac",
            "flowcontrol.apiserver.k8s.io" => "flowcontrol",
            g => g.split('.').next().unwrap_or(g),
        };
        let list = columns[format!("{package}.{kind}")].as_array().cloned().unwrap_or_default();
        varint(out, list.len() as u32);
        for c in list {
            for i in 0..3 {
                self.s(out, c[i].as_str().unwrap_or(""));
            }
            out.push(c[3].as_u64().unwrap_or(0) as u8);
        }
    }
}

fn main() {
    println!("cargo:rerun-if-env-changed=API_BUILD_REPORT");
    let schemas = object(load("schemas.json"));
    let protos = object(load("protobuf.json"));
    let order: BTreeMap<String, u32> = schemas.keys().enumerate().map(|(i, k)| (k.clone(), i as u32)).collect();
    let mut facts = Facts {
        schemas,
        protos,
        order,
        strings: Strings::default(),
        optional: object(load("optional.json")),
        descriptions: object(load("descriptions.json")),
    };
    // Number 0 is the empty text.
    facts.strings.id("");
    let names: Vec<String> = facts.order.keys().cloned().collect();
    let types: Vec<Vec<u8>> = names.iter().map(|n| facts.ty(n)).collect();
    let (kind_count, kinds) = facts.kinds(&load("discovery.json"), &load("columns.json"));

    let mut out = Vec::new();
    let strings = &facts.strings.list;
    out.extend((strings.len() as u32).to_le_bytes());
    out.extend((types.len() as u32).to_le_bytes());
    out.extend(kind_count.to_le_bytes());
    let mut at = 0u32;
    for s in strings {
        out.extend(at.to_le_bytes());
        at += s.len() as u32;
    }
    out.extend(at.to_le_bytes());
    let mut at = 0u32;
    for t in &types {
        out.extend(at.to_le_bytes());
        at += t.len() as u32;
    }
    out.extend(at.to_le_bytes());
    for s in strings {
        out.extend(s.as_bytes());
    }
    for t in &types {
        out.extend(t);
    }
    out.extend(kinds);
    let dir = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&dir).join("tables.bin"), out).expect("OUT_DIR is writable");
}
