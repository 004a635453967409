//! Brings free JSON into the shape of a schema, as a typed decoder would: unknown
//! fields out, nulls out, wrong types refused.

use crate::schema::{Schema, Ty};
use serde_json::{Map, Value};

/// What to do with unknown and duplicate fields (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl Strictness {
    /// Parses the query parameter.
    pub fn parse(s: &str) -> Option<Strictness> {
        match s {
            "" | "Warn" => Some(Strictness::Warn),
            "Ignore" => Some(Strictness::Ignore),
            "Strict" => Some(Strictness::Strict),
            _ => None,
        }
    }
}

/// Drops what the schema does not know (listing the paths) and checks types.
/// Nodes of custom resources are pruned only; their values are validated by
/// `crd::validate`, with causes.
pub fn normalize(value: &mut Value, schema: &Schema, unknown: &mut Vec<String>) -> Result<(), String> {
    Walk { unknown, path: String::new(), prune: true }.node(value, schema)
}

/// Checks types only.
pub fn check_types(value: &mut Value, schema: &Schema) -> Result<(), String> {
    let mut unknown = Vec::new();
    Walk { unknown: &mut unknown, path: String::new(), prune: false }.node(value, schema)
}

/// Numbers like `0644`, as file modes stand in manifests: an older YAML's octal numbers, which
/// the reader leaves as texts.
pub fn read_octals(value: &mut Value, schema: &Schema) {
    match value {
        Value::String(s) if matches!(schema.ty, Ty::Int32 | Ty::Int64) && s.len() > 1 && s.starts_with('0') => {
            if let Ok(number) = i64::from_str_radix(s, 8) {
                *value = number.into();
            }
        }
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if let Some(child) = schema.child(key) {
                    read_octals(value, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = schema.item() {
                items.iter_mut().for_each(|v| read_octals(v, item));
            }
        }
        _ => {}
    }
}

struct Walk<'a> {
    unknown: &'a mut Vec<String>,
    path: String,
    prune: bool,
}

impl Walk<'_> {
    fn wrong(&self, value: &Value, schema: &Schema) -> String {
        let got = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let want = match schema.ty {
            Ty::Boolean => "bool".to_string(),
            Ty::String => "string".into(),
            Ty::Int32 => "int32".into(),
            Ty::Int64 => "int64".into(),
            Ty::Number => "float64".into(),
            Ty::Array => format!("[]{}", schema.item().map_or("", |i| i.name.rsplit('.').next().unwrap_or(""))),
            Ty::Object if schema.is_map() => "map[string]string".into(),
            _ => schema.name.rsplit('.').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("."),
        };
        format!("json: cannot unmarshal {got} into Go struct field {} of type {want}", self.path)
    }

    fn node(&mut self, value: &mut Value, schema: &Schema) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        match schema.ty {
            Ty::Any | Ty::Json | Ty::FieldsV1 => Ok(()),
            Ty::PropsOrArray | Ty::PropsOrBool | Ty::PropsOrStrings => self.props(value),
            // An array where a schema of a custom resource says otherwise is found by its validation.
            _ if schema.extra.is_some() && !matches!(value, Value::Object(_) | Value::Array(_)) => Ok(()),
            Ty::Object => self.object(value, schema),
            Ty::RawExtension => {
                if value.is_object() {
                    Ok(())
                } else {
                    Err(self.wrong(value, schema))
                }
            }
            Ty::Array => self.array(value, schema),
            _ if schema.extra.is_some() => Ok(()),
            _ => self.scalar(value, schema),
        }
    }

    fn object(&mut self, value: &mut Value, schema: &Schema) -> Result<(), String> {
        let Value::Object(map) = value else {
            return if schema.extra.is_some() { Ok(()) } else { Err(self.wrong(value, schema)) };
        };
        let typed = schema.extra.is_none();
        let len = self.path.len();
        let embedded = schema.extra.as_ref().is_some_and(|e| e.embedded);
        let mut gone = Vec::new();
        for (k, v) in map.iter_mut() {
            let meta_of_embedded = embedded && matches!(k.as_str(), "apiVersion" | "kind" | "metadata");
            let Some(child) = schema.child(k) else {
                if !meta_of_embedded && !schema.keeps_unknown() {
                    gone.push(k.clone());
                }
                continue;
            };
            self.push(k);
            if v.is_null() && typed && !schema.is_map() {
                gone.push(k.clone());
            } else if v.is_null() && typed {
                *v = zero(child);
            } else {
                self.node(v, child)?;
            }
            self.path.truncate(len);
        }
        self.drop_fields(map, schema, gone);
        Ok(())
    }

    fn drop_fields(&mut self, map: &mut Map<String, Value>, schema: &Schema, gone: Vec<String>) {
        let len = self.path.len();
        for k in gone {
            if schema.child(&k).is_none() {
                self.push(&k);
                self.unknown.push(self.path.clone());
                self.path.truncate(len);
                if !self.prune {
                    continue;
                }
            }
            map.remove(&k);
        }
    }

    fn array(&mut self, value: &mut Value, schema: &Schema) -> Result<(), String> {
        let Value::Array(items) = value else {
            return if schema.extra.is_some() { Ok(()) } else { Err(self.wrong(value, schema)) };
        };
        let Some(item) = schema.item() else {
            return Ok(());
        };
        let len = self.path.len();
        for (i, v) in items.iter_mut().enumerate() {
            if v.is_null() && schema.extra.is_none() {
                *v = zero(item);
                continue;
            }
            self.path.push_str(&format!("[{i}]"));
            self.node(v, item)?;
            self.path.truncate(len);
        }
        Ok(())
    }

    fn scalar(&mut self, value: &mut Value, schema: &Schema) -> Result<(), String> {
        let ok = match schema.ty {
            Ty::Boolean => value.is_boolean(),
            Ty::String => value.is_string(),
            Ty::Int32 => value.as_i64().is_some_and(|i| i32::try_from(i).is_ok()),
            Ty::Int64 => value.as_i64().is_some(),
            Ty::Number => value.is_number(),
            Ty::IntOrString => value.is_string() || value.as_i64().is_some(),
            Ty::Quantity => return self.quantity(value, schema),
            Ty::Time | Ty::MicroTime => {
                return match value.as_str() {
                    Some(s) if crate::time::parse(s).is_some() => Ok(()),
                    Some(s) => Err(format!("parsing time {s:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {s:?}")),
                    None => Err(self.wrong(value, schema)),
                };
            }
            Ty::Bytes => {
                return match value.as_str() {
                    Some(s) if crate::codec::base64_ok(s) => Ok(()),
                    Some(_) => Err(format!("illegal base64 data at input byte 0 ({})", self.path)),
                    None => Err(self.wrong(value, schema)),
                };
            }
            _ => true,
        };
        if ok { Ok(()) } else { Err(self.wrong(value, schema)) }
    }

    /// Quantities may be numbers in JSON; they are kept as canonical text.
    fn quantity(&mut self, value: &mut Value, schema: &Schema) -> Result<(), String> {
        let text = match &*value {
            Value::String(s) => s.clone(),
            Value::Number(n) => n.to_string(),
            _ => return Err(self.wrong(value, schema)),
        };
        match crate::quantity::Quantity::parse(&text) {
            Some(q) => {
                *value = q.to_string().into();
                Ok(())
            }
            None => {
                Err("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                    .into())
            }
        }
    }

    /// A JSONSchemaProps that may also be a list or a boolean.
    fn props(&mut self, value: &mut Value) -> Result<(), String> {
        match value {
            Value::Object(_) => self.node(value, crate::schema::schema_props()),
            Value::Array(items) => {
                items.iter_mut().filter(|i| i.is_object()).try_for_each(|i| self.node(i, crate::schema::schema_props()))
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, key: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(key);
    }
}

/// What a null becomes inside a typed list or map.
fn zero(schema: &Schema) -> Value {
    match schema.ty {
        Ty::String | Ty::Bytes => "".into(),
        Ty::Quantity => "0".into(),
        Ty::Int32 | Ty::Int64 | Ty::Number | Ty::IntOrString => 0.into(),
        Ty::Boolean => false.into(),
        Ty::Object => Value::Object(Map::new()),
        Ty::Array => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prunes_and_lists() {
        let pod = crate::schema::by_name("io.k8s.api.core.v1.Pod").unwrap();
        let mut v = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null, "foo": 1},
            "spec": {"containers": [{"name": "c", "bar": {"x": 1}, "resources": {"limits": {"cpu": 1, "memory": "1024Ki"}}}], "nodeSelector": {"a": null}}});
        let mut unknown = Vec::new();
        normalize(&mut v, pod, &mut unknown).unwrap();
        assert_eq!(unknown, ["metadata.foo", "spec.containers[0].bar"]);
        assert_eq!(
            v,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}], "nodeSelector": {"a": ""}}})
        );
    }

    #[test]
    fn refuses_wrong_types() {
        let d = crate::schema::by_name("io.k8s.api.apps.v1.Deployment").unwrap();
        for (v, want) in [
            (
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field spec.replicas of type int32",
            ),
            (json!({"spec": []}), "json: cannot unmarshal array into Go struct field spec of type v1.DeploymentSpec"),
            (
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "json: cannot unmarshal object into Go struct field spec.template.spec.containers of type []Container",
            ),
        ] {
            let mut v = v;
            assert_eq!(normalize(&mut v, d, &mut Vec::new()).unwrap_err(), want);
        }
    }
}
