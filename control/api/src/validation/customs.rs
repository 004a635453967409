//! Custom resources, and the kinds whose rules are their schema's.

use super::at::{At, Errors};
use crate::kinds::Kind;
use crate::schema::{Schema, Ty};
use crate::status::{ErrorKind, FieldError};
use serde_json::Value;

/// Everything wrong with a custom resource.
pub(super) fn faults(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut out = crate::crd::validate(new, kind.schema(), "");
    if let (Some(old), false) = (old, out.is_empty()) {
        // What was wrong before and did not change is let through.
        let before = crate::crd::validate(old, kind.schema(), "");
        out.retain(|e| !before.contains(e) || !unchanged(new, old, &e.field));
    }
    if kind.has_rules() {
        use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
        let blocks = |e: &FieldError| matches!(e.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid);
        if out.iter().any(blocks) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            out.push(FieldError::invalid("<nil>", Value::Null, detail));
        } else {
            out.extend(crate::crd::validate_rules(new, old, kind.schema()));
        }
    }
    out
}

/// Whether the value at a field's path is the same in both.
fn unchanged(a: &Value, b: &Value, path: &str) -> bool {
    let pointer: String = path.replace('[', ".").replace(']', "").split('.').map(|p| format!("/{p}")).collect();
    a.pointer(&pointer) == b.pointer(&pointer)
}

/// Texts that the schema requires must be there and not be empty.
pub(super) fn required_texts(e: &mut Errors, kind: &Kind, o: &At) {
    for f in &kind.schema().fields {
        if !matches!(f.name.as_ref(), "metadata" | "status" | "apiVersion" | "kind") {
            field(&o.value[f.name.as_ref()], f.schema(), f.required, &f.name, &mut e.0);
        }
    }
}

fn field(v: &Value, schema: &Schema, required: bool, path: &str, out: &mut Vec<FieldError>) {
    match (schema.ty, v) {
        (Ty::String, v) if required && v.as_str().unwrap_or("").is_empty() => out.push(FieldError::required(path, "")),
        (Ty::Object, Value::Object(m)) if !schema.is_map() => {
            for f in &schema.fields {
                let value = m.get(f.name.as_ref()).unwrap_or(&Value::Null);
                field(value, f.schema(), f.required, &format!("{path}.{}", f.name), out);
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
