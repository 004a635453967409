//! Custom resources: from a CustomResourceDefinition to kinds with schemas, and
//! what their objects need: defaults, pruning, validation.

use crate::schema::Schema;
use serde_json::Value;

/// Applies the defaults of a structural schema.
pub fn default_object(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for f in &schema.fields {
                let s = f.schema();
                let default = s.extra.as_ref().and_then(|e| e.default.as_ref());
                let nullable = s.extra.as_ref().is_some_and(|e| e.nullable);
                match (map.get(f.name.as_ref()), default) {
                    (None, Some(d)) => {
                        map.insert(f.name.to_string(), d.clone());
                    }
                    (Some(Value::Null), Some(d)) if !nullable => {
                        map.insert(f.name.to_string(), d.clone());
                    }
                    _ => {}
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
