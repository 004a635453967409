//! What is wrong with an object: its metadata, and the rules of kinds. Kinds that
//! have a strategy of their own in the API server (pods, services, workloads,
//! claims, roles) keep their rules there.

mod metadata;
mod others;

pub use metadata::{metadata, metadata_update};

use crate::kinds::Kind;
use crate::schema::{Schema, Ty};
use crate::status::FieldError;
use serde_json::Value;

/// Everything wrong with a new object (also run on the new state of an update).
pub fn create(kind: &Kind, o: &Value) -> Vec<FieldError> {
    let mut out = metadata(kind, o);
    out.extend(rules(kind, o));
    out
}

/// Everything wrong with a change; the new state's own errors included.
pub fn update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = metadata_update(kind, new, old);
    let mut own = rules(kind, new);
    if kind.is_custom() && !own.is_empty() {
        // What was wrong before and did not change is let through.
        let before = crate::crd::validate(old, kind.schema(), "");
        own.retain(|e| !before.contains(e) || !unchanged(new, old, &e.field));
    }
    out.extend(own);
    out.extend(others::update(kind, new, old));
    out
}

fn rules(kind: &Kind, o: &Value) -> Vec<FieldError> {
    if kind.is_custom() {
        return crate::crd::validate(o, kind.schema(), "");
    }
    let mut out = Vec::new();
    if others::wants_required(kind) {
        for f in &kind.schema().fields {
            if !matches!(f.name.as_ref(), "metadata" | "status" | "apiVersion" | "kind") {
                field(&o[f.name.as_ref()], f.schema(), f.required, &f.name, &mut out);
            }
        }
    }
    out.extend(others::create(kind, o));
    out
}

/// Texts that the schema requires must be there and not be empty.
fn field(v: &Value, schema: &Schema, required: bool, path: &str, out: &mut Vec<FieldError>) {
    match (schema.ty, v) {
        (Ty::String, v) if required && v.as_str().unwrap_or("").is_empty() => out.push(FieldError::required(path, "")),
        (Ty::Object, Value::Object(m)) if !schema.is_map() => {
            for f in &schema.fields {
                field(
                    m.get(f.name.as_ref()).unwrap_or(&Value::Null),
                    f.schema(),
                    f.required,
                    &format!("{path}.{}", f.name),
                    out,
                );
            }
        }
        (Ty::Array, Value::Array(items)) => {
            if let Some(item) = schema.item() {
                items.iter().enumerate().for_each(|(i, x)| field(x, item, false, &format!("{path}[{i}]"), out));
            }
        }
        _ => {}
    }
}

/// Whether the value at a field's path is the same in both.
fn unchanged(a: &Value, b: &Value, path: &str) -> bool {
    let pointer: String = path.replace('[', ".").replace(']', "").split('.').map(|p| format!("/{p}")).collect();
    a.pointer(&pointer) == b.pointer(&pointer)
}

#[cfg(test)]
mod tests;
