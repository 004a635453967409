//! The protobuf form of OpenAPI v2 that clients before OpenAPI v3 read.

use crate::protobuf::wire::{bytes_field, key, string_field, varint_field};
use serde_json::Value;

/// A name and a message.
pub fn named(name: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + name.len() + 8);
    string_field(&mut out, 1, name);
    bytes_field(&mut out, 2, message);
    out
}

/// `x-...` members as named YAML texts (JSON is YAML).
fn extensions(out: &mut Vec<u8>, number: u32, v: &Value) {
    for (k, x) in v.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-")) {
        let mut any = Vec::new();
        string_field(&mut any, 2, &format!("{x}\n"));
        bytes_field(out, number, &named(k, &any));
    }
}

fn text(out: &mut Vec<u8>, number: u32, v: &Value) {
    if let Some(s) = v.as_str() {
        string_field(out, number, s);
    }
}

fn texts(out: &mut Vec<u8>, number: u32, v: &Value) {
    v.as_array().into_iter().flatten().for_each(|s| text(out, number, s));
}

fn flag(out: &mut Vec<u8>, number: u32, v: &Value) {
    if v == true {
        varint_field(out, number, 1);
    }
}

fn integer(out: &mut Vec<u8>, number: u32, v: &Value) {
    if let Some(n) = v.as_i64() {
        varint_field(out, number, n as u64);
    }
}

fn double(out: &mut Vec<u8>, number: u32, v: &Value) {
    if let Some(n) = v.as_f64() {
        key(out, number, 1);
        out.extend_from_slice(&n.to_le_bytes());
    }
}

fn any(v: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    string_field(&mut out, 2, &format!("{v}\n"));
    out
}

/// A schema.
pub fn schema(v: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, &v["$ref"]);
    text(&mut out, 2, &v["format"]);
    text(&mut out, 3, &v["title"]);
    text(&mut out, 4, &v["description"]);
    double(&mut out, 7, &v["maximum"]);
    flag(&mut out, 8, &v["exclusiveMaximum"]);
    double(&mut out, 9, &v["minimum"]);
    flag(&mut out, 10, &v["exclusiveMinimum"]);
    integer(&mut out, 11, &v["maxLength"]);
    integer(&mut out, 12, &v["minLength"]);
    text(&mut out, 13, &v["pattern"]);
    integer(&mut out, 14, &v["maxItems"]);
    integer(&mut out, 15, &v["minItems"]);
    texts(&mut out, 19, &v["required"]);
    v["enum"].as_array().into_iter().flatten().for_each(|e| bytes_field(&mut out, 20, &any(e)));
    match &v["additionalProperties"] {
        Value::Object(_) => {
            let mut item = Vec::new();
            bytes_field(&mut item, 1, &schema(&v["additionalProperties"]));
            bytes_field(&mut out, 21, &item);
        }
        Value::Bool(b) => {
            let mut item = Vec::new();
            varint_field(&mut item, 2, u64::from(*b));
            bytes_field(&mut out, 21, &item);
        }
        _ => {}
    }
    if let Some(t) = v["type"].as_str() {
        let mut item = Vec::new();
        string_field(&mut item, 1, t);
        bytes_field(&mut out, 22, &item);
    }
    if v["items"].is_object() {
        let mut item = Vec::new();
        bytes_field(&mut item, 1, &schema(&v["items"]));
        bytes_field(&mut out, 23, &item);
    }
    if let Some(p) = v["properties"].as_object() {
        let mut list = Vec::new();
        p.iter().for_each(|(k, s)| bytes_field(&mut list, 1, &named(k, &schema(s))));
        bytes_field(&mut out, 25, &list);
    }
    extensions(&mut out, 31, v);
    out
}

/// A parameter, as an item of a list of them.
fn parameter(p: &Value) -> Vec<u8> {
    let mut inner = Vec::new();
    let mut wrapped = Vec::new();
    match p["in"].as_str() {
        Some("body") => {
            text(&mut inner, 2, &p["name"]);
            text(&mut inner, 3, &p["in"]);
            flag(&mut inner, 4, &p["required"]);
            bytes_field(&mut inner, 5, &schema(&p["schema"]));
            bytes_field(&mut wrapped, 1, &inner);
        }
        place => {
            let query = place == Some("query");
            flag(&mut inner, 1, &p["required"]);
            text(&mut inner, 2, &p["in"]);
            text(&mut inner, 4, &p["name"]);
            text(&mut inner, if query { 6 } else { 5 }, &p["type"]);
            flag(&mut inner, if query { 20 } else { 19 }, &p["uniqueItems"]);
            let mut non_body = Vec::new();
            bytes_field(&mut non_body, if query { 3 } else { 4 }, &inner);
            bytes_field(&mut wrapped, 2, &non_body);
        }
    }
    let mut out = Vec::new();
    bytes_field(&mut out, 1, &wrapped);
    out
}

fn response(r: &Value) -> Vec<u8> {
    let mut inner = Vec::new();
    text(&mut inner, 1, &r["description"]);
    if r["schema"].is_object() {
        let mut item = Vec::new();
        bytes_field(&mut item, 1, &schema(&r["schema"]));
        bytes_field(&mut inner, 2, &item);
    }
    let mut out = Vec::new();
    bytes_field(&mut out, 1, &inner);
    out
}

fn operation(op: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    texts(&mut out, 1, &op["tags"]);
    text(&mut out, 5, &op["operationId"]);
    texts(&mut out, 6, &op["produces"]);
    texts(&mut out, 7, &op["consumes"]);
    op["parameters"].as_array().into_iter().flatten().for_each(|p| bytes_field(&mut out, 8, &parameter(p)));
    let mut responses = Vec::new();
    for (code, r) in op["responses"].as_object().into_iter().flatten() {
        bytes_field(&mut responses, 1, &named(code, &response(r)));
    }
    bytes_field(&mut out, 9, &responses);
    texts(&mut out, 10, &op["schemes"]);
    extensions(&mut out, 13, op);
    out
}

/// A path item.
pub fn path_item(item: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if item[name].is_object() {
            bytes_field(&mut out, number, &operation(&item[name]));
        }
    }
    item["parameters"].as_array().into_iter().flatten().for_each(|p| bytes_field(&mut out, 9, &parameter(p)));
    out
}
