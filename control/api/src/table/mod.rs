//! Printed tables (`kubectl get`): columns by kind, cells as upstream prints them.

mod core;
mod jsonpath;
mod others;
mod pod;

pub use jsonpath::{find as json_path, parse as parse_json_path};

use crate::kinds::{Column, Kind};
use crate::meta;
use serde_json::{Value, json};

/// What a row carries of its object (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// Parses the query parameter.
    pub fn parse(s: &str) -> Option<Include> {
        match s {
            "" | "Metadata" => Some(Include::Metadata),
            "None" => Some(Include::None),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

/// `columnDefinitions` of a kind.
pub fn columns(kind: &Kind) -> Value {
    let definition = |c: &Column| json!({"name": c.name, "type": c.ty, "format": c.format, "description": describe(c), "priority": c.priority});
    if kind.is_custom() {
        let name = json!({"name": "Name", "type": "string", "format": "name", "description": NAME_HELP, "priority": 0});
        return std::iter::once(name).chain(kind.columns.iter().map(definition)).collect();
    }
    if kind.columns.is_empty() {
        return json!([
            {"name": "Name", "type": "string", "format": "name", "description": NAME_HELP, "priority": 0},
            {"name": "Created At", "type": "date", "format": "", "description": AGE_HELP, "priority": 0}
        ]);
    }
    kind.columns.iter().map(definition).collect()
}

const NAME_HELP: &str = "The name of the object, unique among objects of its kind in its namespace.";
const AGE_HELP: &str = "When the server created the object.";

fn describe(c: &Column) -> &str {
    match c.name.as_ref() {
        _ if !c.description.is_empty() => &c.description,
        "Name" => NAME_HELP,
        "Age" => AGE_HELP,
        name => name,
    }
}

/// The cells of one object at `now` (seconds since 1970).
pub fn cells(kind: &Kind, o: &Value, now: i64) -> Vec<Value> {
    if kind.group == crate::usage::GROUP {
        return crate::usage::cells(o);
    }
    if kind.is_custom() {
        let name = std::iter::once(Value::from(meta::name(o)));
        return name.chain(kind.columns.iter().map(|c| custom_cell(c, o, now))).collect();
    }
    if kind.columns.is_empty() {
        return vec![meta::name(o).into(), o["metadata"]["creationTimestamp"].clone()];
    }
    let mut cells =
        core::cells(kind, o, now).or_else(|| others::cells(kind, o, now)).unwrap_or_else(|| vec![meta::name(o).into()]);
    cells.resize(kind.columns.len(), Value::from(""));
    cells
}

/// One row.
pub fn row(kind: &Kind, o: &Value, include: Include, version: &str, now: i64) -> Value {
    let mut row = row_of(cells(kind, o, now), o, include, version);
    if kind.plural == "pods" && kind.group.is_empty() {
        let message = match o["status"]["phase"].as_str() {
            Some("Failed") => "The pod failed.",
            Some("Succeeded") => "The pod has completed successfully.",
            _ => return row,
        };
        let phase = &o["status"]["phase"];
        row["conditions"] = json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]);
    }
    row
}

fn row_of(cells: Vec<Value>, o: &Value, include: Include, version: &str) -> Value {
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": o["metadata"]})
        }
        Include::Object => o.clone(),
    };
    json!({"cells": cells, "object": object})
}

/// The table of a Scale, which is no resource of its own.
pub fn of_scale(o: &Value, metadata: Value, include: Include, version: &str, now: i64) -> Value {
    let column = |name: &str, ty: &str, format: &str, description: &str| json!({"name": name, "type": ty, "format": format, "description": description, "priority": 0});
    let columns = json!([
        column("Name", "string", "name", NAME_HELP),
        column("Desired", "integer", "", "How many replicas are wanted."),
        column("Available", "integer", "", "How many replicas there are."),
        column("Age", "string", "", AGE_HELP),
    ]);
    let cells = vec![
        meta::name(o).into(),
        int_at(&o["spec"], "replicas").into(),
        int_at(&o["status"], "replicas").into(),
        age(o, now),
    ];
    let rows = [row_of(cells, o, include, version)];
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

/// A table of these objects. `list_meta` is the list's metadata; watches leave
/// the columns out after the first event.
pub fn table<'a>(
    kind: &Kind,
    items: impl IntoIterator<Item = &'a Value>,
    list_meta: Value,
    include: Include,
    version: &str,
    with_columns: bool,
    now: i64,
) -> Value {
    let rows: Vec<Value> = items.into_iter().map(|o| row(kind, o, include, version, now)).collect();
    let columns = if with_columns { columns(kind) } else { json!([]) };
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": list_meta, "columnDefinitions": columns, "rows": rows})
}

fn custom_cell(c: &Column, o: &Value, now: i64) -> Value {
    let found = match parse_json_path(&c.path) {
        Ok(steps) => json_path(o, &steps),
        Err(_) => return Value::Null,
    };
    let Some(v) = found.first().copied().filter(|v| !v.is_null()) else {
        return Value::Null;
    };
    match (c.ty.as_ref(), v) {
        ("date", Value::String(s)) if crate::time::parse(s).is_none() => "<invalid>".into(),
        ("date", Value::String(s)) => crate::time::age(s, now).into(),
        ("date", _) => Value::Null,
        ("integer", v) => v.as_i64().or(v.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from),
        ("number", v) => v.as_f64().map_or(Value::Null, Value::from),
        ("boolean", v) => v.as_bool().map_or(Value::Null, Value::from),
        (_, _) if found.len() > 1 => {
            let all: Vec<String> = found.iter().map(|v| text(v)).collect();
            all.join(",").into()
        }
        (_, v) => text(v).into(),
    }
}

/// A value as text: strings bare, the rest as JSON.
fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        v => v.to_string(),
    }
}

/// The age cell.
fn age(o: &Value, now: i64) -> Value {
    since(&o["metadata"]["creationTimestamp"], now)
}

fn since(t: &Value, now: i64) -> Value {
    t.as_str().map_or_else(|| "<unknown>".to_string(), |t| crate::time::age(t, now)).into()
}

fn or<'a>(s: &'a str, other: &'a str) -> &'a str {
    if s.is_empty() { other } else { s }
}

fn str_at<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or("")
}

fn int_at(v: &Value, key: &str) -> i64 {
    v[key].as_i64().unwrap_or(0)
}

fn list_at<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

/// `k=v,k2=v2`, or `<none>`.
fn map_text(v: &Value) -> String {
    let list: Vec<String> = v.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", text(v))).collect();
    or(&list.join(","), "<none>").to_string()
}

/// A label selector's text, or `<none>`.
fn selector_text(v: &Value) -> String {
    match crate::selector::Labels::from_value(v) {
        Ok(Some(s)) => or(&s.to_string(), "<none>").to_string(),
        Ok(None) => "<none>".into(),
        Err(_) => "<error>".into(),
    }
}

/// `list` joined, but no more than three of `total`.
fn first_three(list: &[String], total: usize) -> String {
    if total > 3 && list.len() > 2 {
        format!("{} + {} more...", list[..3].join(","), total - 3)
    } else {
        list.join(",")
    }
}

/// Addresses of a load balancer, each once, in order.
fn balancer_addresses(status: &Value) -> String {
    let ingress = list_at(&status["loadBalancer"], "ingress").iter();
    let addresses: std::collections::BTreeSet<&str> =
        ingress.map(|i| or(str_at(i, "ip"), str_at(i, "hostname"))).filter(|a| !a.is_empty()).collect();
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

/// `kind.group` or `resource.group`, in lower case.
fn with_group(name: &str, group: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{name}{dot}{group}").to_lowercase()
}

/// Names and images of a pod template's containers.
fn containers(template: &Value) -> (String, String) {
    let list = list_at(&template["spec"], "containers");
    let join = |k: &str| list.iter().map(|c| str_at(c, k)).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}

#[cfg(test)]
mod tests;
