//! Values to messages.

use super::wire::{bytes_field, key, string_field, varint_field};
use crate::schema::{Field, Schema, Ty};
use base64::Engine;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The message of an object.
pub fn encode_message(object: &Value, schema: &Schema) -> Vec<u8> {
    let mut out = Vec::new();
    if let Value::Object(map) = object {
        message(&mut out, map, schema);
    }
    out
}

fn message(out: &mut Vec<u8>, map: &Map<String, Value>, schema: &Schema) {
    let mut embedded: BTreeMap<&[u32], Vec<u8>> = BTreeMap::new();
    for (name, value) in map {
        let Some(f) = schema.field(name).filter(|f| f.number > 0) else {
            continue;
        };
        if value.is_null() {
            continue;
        }
        if f.path.is_empty() {
            field(out, f, value);
        } else {
            field(embedded.entry(f.path.as_slice()).or_default(), f, value);
        }
    }
    // Deepest first, so that a message is complete before it goes into its parent.
    while let Some(path) = embedded.keys().max_by_key(|p| p.len()).copied() {
        let body = embedded.remove(path).unwrap_or_default();
        let (last, parent) = path.split_last().unwrap_or((&0, &[]));
        if parent.is_empty() {
            bytes_field(out, *last, &body);
        } else {
            bytes_field(embedded.entry(parent).or_default(), *last, &body);
        }
    }
}

fn field(out: &mut Vec<u8>, f: &Field, value: &Value) {
    let schema = f.schema();
    match (schema.ty, value) {
        (Ty::Array, Value::Array(items)) => {
            if let Some(item) = schema.item() {
                items.iter().for_each(|v| single(out, f.number, v, item));
            }
        }
        (Ty::Object, Value::Object(map)) if schema.is_map() => {
            let Some(item) = schema.items.as_ref() else {
                return;
            };
            for (k, v) in map {
                let mut entry = Vec::new();
                string_field(&mut entry, 1, k);
                single(&mut entry, 2, v, item.get());
                bytes_field(out, f.number, &entry);
            }
        }
        _ => single(out, f.number, value, schema),
    }
}

/// One value of any type under `number`.
pub(super) fn single(out: &mut Vec<u8>, number: u32, value: &Value, schema: &Schema) {
    match schema.ty {
        Ty::Boolean => varint_field(out, number, u64::from(value.as_bool().unwrap_or(false))),
        Ty::Int32 | Ty::Int64 => varint_field(out, number, value.as_i64().unwrap_or(0) as u64),
        Ty::Number => {
            key(out, number, 1);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_le_bytes());
        }
        Ty::String => string_field(out, number, value.as_str().unwrap_or("")),
        Ty::Bytes => bytes_field(out, number, &unbase64(value.as_str().unwrap_or(""))),
        _ => {
            let mut body = Vec::new();
            special(&mut body, value, schema);
            bytes_field(out, number, &body);
        }
    }
}

fn unbase64(s: &str) -> Vec<u8> {
    let clean: Vec<u8> = s.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(clean).unwrap_or_default()
}

/// The body of a value that is a message.
fn special(out: &mut Vec<u8>, value: &Value, schema: &Schema) {
    let props = |v: &Value| encode_message(v, crate::schema::schema_props());
    match (schema.ty, value) {
        (Ty::Quantity, v) => string_field(out, 1, v.as_str().unwrap_or("0")),
        (Ty::Time | Ty::MicroTime, v) => {
            if let Some(t) = v.as_str().and_then(crate::time::parse) {
                varint_field(out, 1, t.seconds as u64);
                varint_field(out, 2, if schema.ty == Ty::MicroTime { u64::from(t.nanos) } else { 0 });
            }
        }
        (Ty::IntOrString, Value::String(s)) => {
            varint_field(out, 1, 1);
            varint_field(out, 2, 0);
            string_field(out, 3, s);
        }
        (Ty::IntOrString, v) => {
            varint_field(out, 1, 0);
            varint_field(out, 2, v.as_i64().unwrap_or(0) as u64);
            string_field(out, 3, "");
        }
        (Ty::RawExtension | Ty::FieldsV1 | Ty::Json | Ty::Any, v) => bytes_field(out, 1, v.to_string().as_bytes()),
        (Ty::PropsOrArray | Ty::PropsOrStrings, Value::Array(items)) => {
            for i in items {
                match i {
                    Value::String(s) => string_field(out, 2, s),
                    v => bytes_field(out, 2, &props(v)),
                }
            }
        }
        (Ty::PropsOrArray | Ty::PropsOrStrings, v) => bytes_field(out, 1, &props(v)),
        (Ty::PropsOrBool, Value::Bool(b)) => varint_field(out, 1, u64::from(*b)),
        (Ty::PropsOrBool, v) => {
            varint_field(out, 1, 1);
            bytes_field(out, 2, &props(v));
        }
        // A list inside a map is a message of its own with the items under 1.
        (Ty::Array, Value::Array(items)) => {
            if let Some(item) = schema.item() {
                items.iter().for_each(|v| single(out, 1, v, item));
            }
        }
        (Ty::Object, Value::Object(map)) => message(out, map, schema),
        _ => {}
    }
}
