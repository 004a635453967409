//! What field selectors may name.

use serde_json::Value;

use crate::object::{Object, Shape};

/// The selectable fields of a resource beyond name and namespace.
pub fn shape(group: &str, resource: &str) -> Shape {
    match (group, resource) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase", "name"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        _ => &[],
    }
}

/// The values of a shape's fields.
pub fn values(shape: Shape, object: &Value) -> Box<[Box<str>]> {
    shape.iter().map(|field| value(field, object).into()).collect()
}

fn value(field: &str, object: &Value) -> String {
    let found = match field {
        "name" => &object["metadata"]["name"],
        "status.successful" => &object["status"]["succeeded"],
        "status.podIPs" => &object["status"]["podIP"],
        "source" => &object["source"]["component"],
        _ => field.split('.').fold(object, |v, part| &v[part]),
    };
    match (field, found) {
        ("reportingComponent", Value::Null) => text(&object["source"]["component"]),
        ("spec.hostNetwork" | "spec.unschedulable", Value::Null) => "false".into(),
        ("status.replicas" | "status.successful", Value::Null) => "0".into(),
        (_, found) => text(found),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// One field of a cached object; `custom` are the paths that a CRD makes selectable.
/// None: the field is not selectable.
pub fn field_of(object: &Object, shape: Shape, custom: &[String], field: &str) -> Option<String> {
    match field {
        "metadata.name" => return Some(object.name.to_string()),
        "metadata.namespace" => return Some(object.namespace.to_string()),
        _ => {}
    }
    if let Some(at) = shape.iter().position(|f| *f == field) {
        return object.fields.get(at).map(|v| v.to_string());
    }
    // Selectable fields of custom resources are rare, so that they are parsed when asked for.
    custom.iter().any(|c| c.trim_start_matches('.') == field).then(|| value(field, &object.value()))
}

/// Whether a selector may name the field.
pub fn selectable(shape: Shape, custom: &[String], field: &str) -> bool {
    matches!(field, "metadata.name" | "metadata.namespace")
        || shape.contains(&field)
        || custom.iter().any(|c| c.trim_start_matches('.') == field)
}
