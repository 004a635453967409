//! The scale sub-resource: a Scale object over an object's replica count.

use serde_json::{Map, Value, json};

use super::fields::{self, items_at, str_at};
use crate::error::{ApiError, Cause, Result};

/// Where a kind keeps what scale needs, as JSON pointers.
#[derive(Debug, Clone)]
pub struct Paths {
    pub spec: String,
    pub status: String,
    /// A label selector object, a plain map, or (custom resources) a selector string.
    pub selector: Option<String>,
}

impl Paths {
    /// Of the built-in kinds.
    pub fn builtin() -> Paths {
        Paths {
            spec: "/spec/replicas".into(),
            status: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        }
    }

    /// Of a custom resource, whose paths are written `.spec.replicas`.
    pub fn custom(paths: &api::kinds::ScalePaths) -> Paths {
        let pointer = |p: &str| p.replace('.', "/");
        Paths {
            spec: pointer(&paths.spec_replicas),
            status: pointer(&paths.status_replicas),
            selector: paths.label_selector.as_deref().map(pointer),
        }
    }
}

impl Paths {
    /// The way to the replica count.
    pub fn keys(&self) -> Vec<&str> {
        self.spec.split('/').filter(|key| !key.is_empty()).collect()
    }
}

/// The Scale of an object.
pub fn read(object: &Value, paths: &Paths) -> Value {
    let mut metadata = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata.insert(key.into(), value.clone());
        }
    }
    let number = |p: &str| object.pointer(p).and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({"replicas": number(&paths.status)});
    if let Some(selector) = paths.selector.as_deref().and_then(|p| object.pointer(p)) {
        let text = selector_text(selector);
        if !text.is_empty() {
            status["selector"] = json!(text);
        }
    }
    let mut spec = json!({});
    if number(&paths.spec) != 0 {
        spec["replicas"] = json!(number(&paths.spec));
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// The object with the Scale's replica count. A resourceVersion in the Scale is the caller's to check.
pub fn write(object: &Value, scale: &Value, paths: &Paths) -> Result<Value> {
    let replicas = match scale.pointer("/spec/replicas") {
        None | Some(Value::Null) => 0,
        Some(v) => v.as_i64().unwrap_or(-1),
    };
    let name = fields::name(object);
    if replicas < 0 {
        let cause = Cause::invalid("spec.replicas", &scale["spec"]["replicas"], "must be greater than or equal to 0");
        return Err(ApiError::invalid("autoscaling", "Scale", name, vec![cause]));
    }
    let uid = str_at(scale, "/metadata/uid");
    if !uid.is_empty() && uid != str_at(object, "/metadata/uid") {
        return Err(ApiError::conflict("autoscaling", "scales", name, "the UID in the Scale is not the object's"));
    }
    let mut out = object.clone();
    let path = paths.keys();
    let mut source = json!(replicas);
    for key in path.iter().rev() {
        source = json!({*key: source});
    }
    fields::copy(&mut out, &source, &path);
    Ok(out)
}

/// A selector in its text form.
pub fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_string();
    }
    let labels = if selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() {
        &selector["matchLabels"]
    } else {
        selector
    };
    let mut terms: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    for e in items_at(selector, "/matchExpressions") {
        let key = str_at(e, "/key");
        let values = items_at(e, "/values").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
        terms.push(match str_at(e, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_string(),
            _ => format!("!{key}"),
        });
    }
    terms.sort();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let object = json!({"metadata": {"name": "d", "namespace": "a", "uid": "u"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"x": "y"}}}, "status": {"replicas": 1}});
        let scale = read(&object, &Paths::builtin());
        assert_eq!(scale["spec"]["replicas"], 2);
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "x=y"}));
        let out = write(&object, &json!({"spec": {"replicas": 5}}), &Paths::builtin()).expect("ok");
        assert_eq!(out["spec"]["replicas"], 5);
        assert!(write(&object, &json!({"spec": {"replicas": -1}}), &Paths::builtin()).is_err());
        assert_eq!(write(&object, &json!({"spec": {}}), &Paths::builtin()).expect("ok")["spec"]["replicas"], 0);
    }
}
