//! Paths and operations of a kind, in the form of v2, and their change into v3.

use super::definitions::{Style, custom_name};
use super::prefix;
use crate::codec::{JSON, PROTOBUF, YAML};
use crate::kinds::{Kind, Subresource, type_schema};
use crate::patch::{APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH};
use serde_json::{Value, json};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// One operation in the making.
struct Op<'a> {
    kind: &'a Kind,
    action: &'static str,
    id: String,
    /// Definition of the body and of the answer.
    body: Option<String>,
    answer: String,
    gvk: Value,
}

fn query(name: &str, ty: &str) -> Value {
    json!({"name": name, "in": "query", "type": ty, "uniqueItems": true})
}

fn path_parameter(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true})
}

fn queries(action: &str) -> Vec<Value> {
    let s = |n| query(n, "string");
    let i = |n| query(n, "integer");
    let b = |n| query(n, "boolean");
    let mut out = match action {
        "list" => vec![
            b("allowWatchBookmarks"),
            s("continue"),
            s("fieldSelector"),
            s("labelSelector"),
            i("limit"),
            s("resourceVersion"),
            s("resourceVersionMatch"),
            b("sendInitialEvents"),
            i("timeoutSeconds"),
            b("watch"),
        ],
        "post" | "put" => vec![s("dryRun"), s("fieldManager"), s("fieldValidation")],
        "patch" => vec![s("dryRun"), s("fieldManager"), s("fieldValidation"), b("force")],
        "delete" => vec![
            s("dryRun"),
            i("gracePeriodSeconds"),
            b("ignoreStoreReadErrorWithClusterBreakingPotential"),
            b("orphanDependents"),
            s("propagationPolicy"),
        ],
        "deletecollection" => vec![
            s("continue"),
            s("dryRun"),
            s("fieldSelector"),
            i("gracePeriodSeconds"),
            s("labelSelector"),
            i("limit"),
            b("orphanDependents"),
            s("propagationPolicy"),
            s("resourceVersion"),
            s("resourceVersionMatch"),
            b("sendInitialEvents"),
            i("timeoutSeconds"),
        ],
        _ => Vec::new(),
    };
    out.push(s("pretty"));
    out
}

fn media(kind: &Kind) -> Vec<&'static str> {
    if kind.has_protobuf() { vec![JSON, YAML, PROTOBUF] } else { vec![JSON, YAML] }
}

fn operation(op: Op) -> Value {
    let mut parameters = queries(op.action);
    if let Some(body) = &op.body {
        let required = op.action != "delete" && op.action != "deletecollection";
        let mut p = json!({"name": "body", "in": "body", "schema": Style::V2.reference(body)});
        if required {
            p["required"] = true.into();
        }
        parameters.insert(0, p);
    }
    let consumes = match (op.action, op.kind.is_custom()) {
        ("patch", true) => vec![JSON_PATCH, MERGE_PATCH, APPLY_PATCH],
        ("patch", false) => vec![JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH],
        (_, true) => vec![JSON, YAML],
        _ => vec!["*/*"],
    };
    let mut produces = media(op.kind);
    if op.action == "list" {
        produces.push("application/json;stream=watch");
        if op.kind.has_protobuf() {
            produces.push("application/vnd.kubernetes.protobuf;stream=watch");
        }
    }
    let ok = json!({"description": "OK", "schema": Style::V2.reference(&op.answer)});
    let mut responses = json!({"200": ok, "401": {"description": "Unauthorized"}});
    match op.action {
        "post" => {
            responses["201"] = json!({"description": "Created", "schema": Style::V2.reference(&op.answer)});
            responses["202"] = json!({"description": "Accepted", "schema": Style::V2.reference(&op.answer)});
        }
        "put" | "patch" => {
            responses["201"] = json!({"description": "Created", "schema": Style::V2.reference(&op.answer)})
        }
        "delete" => responses["202"] = json!({"description": "Accepted", "schema": Style::V2.reference(&op.answer)}),
        _ => {}
    }
    let tag = format!("{}_{}", camel(&op.kind.group, false), op.kind.version);
    json!({
        "operationId": op.id, "tags": [tag], "consumes": consumes, "produces": produces, "schemes": ["https"], "parameters": parameters,
        "responses": responses, "x-kubernetes-action": op.action, "x-kubernetes-group-version-kind": op.gvk,
    })
}

/// `rbac.authorization.k8s.io` to `RbacAuthorization`; the core group is `Core`.
fn camel(group: &str, upper: bool) -> String {
    let base = group.strip_suffix(".k8s.io").unwrap_or(group);
    let base = if base.is_empty() { "core" } else { base };
    let mut out = String::new();
    for (i, part) in base.split(['.', '-']).enumerate() {
        if i == 0 && !upper {
            out.push_str(part);
        } else {
            out.push_str(&capital(part));
        }
    }
    out
}

fn capital(s: &str) -> String {
    let mut c = s.chars();
    c.next().map_or(String::new(), |f| f.to_uppercase().chain(c).collect())
}

fn names(k: &Kind) -> (String, String) {
    if k.is_custom() {
        return (custom_name(k, &k.kind), custom_name(k, &k.list_kind));
    }
    let one = k.schema().name.to_string();
    let list = type_schema(&k.group, &k.version, &k.list_kind).map_or(one.clone(), |s| s.name.to_string());
    (one, list)
}

/// All paths of a kind with their items.
pub fn of_kind(k: &Kind) -> Vec<(String, Value)> {
    let base = format!("/{}", prefix(&k.group, &k.version));
    let scope = if k.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
    let (one, list) = names(k);
    let gvk = json!({"group": k.group, "version": k.version, "kind": k.kind});
    let suffix = format!("{}{}", camel(&k.group, true), capital(&k.version));
    let make = |action, verb: &str, namespaced: bool, tail: &str, body: Option<String>, answer: String| {
        let id = format!("{verb}{suffix}{}{}{tail}", if namespaced { "Namespaced" } else { "" }, k.kind);
        operation(Op { kind: k, action, id, body, answer, gvk: gvk.clone() })
    };
    let mut out = Vec::new();
    if k.namespaced && k.has_verb("list") {
        let item = json!({"get": make("list", "list", false, "ForAllNamespaces", None, list.clone())});
        out.push((format!("{base}/{}", k.plural), item));
    }
    let mut collection = json!({});
    if k.has_verb("list") {
        collection["get"] = make("list", "list", k.namespaced, "", None, list.clone());
    }
    if k.has_verb("create") {
        collection["post"] = make("post", "create", k.namespaced, "", Some(one.clone()), one.clone());
    }
    if k.has_verb("deletecollection") {
        collection["delete"] = make(
            "deletecollection",
            "deleteCollection",
            k.namespaced,
            "",
            Some(format!("{META}DeleteOptions")),
            format!("{META}Status"),
        );
    }
    add_parameters(&mut collection, k.namespaced, false);
    out.push((format!("{scope}/{}", k.plural), collection));
    let mut item = json!({});
    for (verb, method, action, id) in [
        ("get", "get", "get", "read"),
        ("update", "put", "put", "replace"),
        ("patch", "patch", "patch", "patch"),
        ("delete", "delete", "delete", "delete"),
    ] {
        if !k.has_verb(verb) {
            continue;
        }
        let body = match verb {
            "update" => Some(one.clone()),
            "patch" => Some(format!("{META}Patch")),
            "delete" => Some(format!("{META}DeleteOptions")),
            _ => None,
        };
        let is_status = verb == "delete" && !k.is_shown_when_deleted();
        let answer = if is_status { format!("{META}Status") } else { one.clone() };
        item[method] = make(action, id, k.namespaced, "", body, answer);
    }
    if item.as_object().is_some_and(|m| !m.is_empty()) {
        add_parameters(&mut item, k.namespaced, true);
        out.push((format!("{scope}/{}/{{name}}", k.plural), item));
    }
    for s in &k.subresources {
        out.push((format!("{scope}/{}/{{name}}/{}", k.plural, s.name), subresource(k, s, &suffix, &one)));
    }
    out
}

fn add_parameters(item: &mut Value, namespaced: bool, name: bool) {
    let mut list = Vec::new();
    if name {
        list.push(path_parameter("name"));
    }
    if namespaced {
        list.push(path_parameter("namespace"));
    }
    if !list.is_empty() {
        item["parameters"] = Value::Array(list);
    }
}

fn subresource(k: &Kind, s: &Subresource, suffix: &str, parent: &str) -> Value {
    let (g, v) = if s.version.is_empty() { (&k.group, &k.version) } else { (&s.group, &s.version) };
    let gvk = json!({"group": g, "version": v, "kind": s.kind});
    let body = if s.kind == k.kind {
        parent.to_string()
    } else {
        type_schema(g, v, &s.kind).map_or(format!("{META}Status"), |t| t.name.to_string())
    };
    let mut item = json!({});
    for (verb, method, action, id) in [
        ("get", "get", "get", "read"),
        ("update", "put", "put", "replace"),
        ("patch", "patch", "patch", "patch"),
        ("create", "post", "post", "create"),
        ("delete", "delete", "delete", "delete"),
    ] {
        if !s.verbs.iter().any(|x| x == verb) {
            continue;
        }
        let tail: String = s.name.split('/').map(capital).collect();
        let id = format!("{id}{suffix}{}{}{tail}", if k.namespaced { "Namespaced" } else { "" }, k.kind);
        let with_body = match verb {
            "update" | "create" => Some(body.clone()),
            "patch" => Some(format!("{META}Patch")),
            _ => None,
        };
        item[method] = operation(Op { kind: k, action, id, body: with_body, answer: body.clone(), gvk: gvk.clone() });
    }
    add_parameters(&mut item, k.namespaced, true);
    item
}

fn v3_refs(v: &Value) -> Value {
    match v.get("$ref").and_then(Value::as_str) {
        Some(r) => json!({"$ref": r.replace("#/definitions/", "#/components/schemas/")}),
        None => v.clone(),
    }
}

fn v3_parameter(p: &Value) -> Value {
    let mut out = json!({"name": p["name"], "in": p["in"], "schema": {"type": p["type"], "uniqueItems": true}});
    if p["required"] == true {
        out["required"] = true.into();
    }
    out
}

fn v3_operation(op: &Value) -> Value {
    let parameters = op["parameters"].as_array().cloned().unwrap_or_default();
    let (bodies, rest): (Vec<Value>, Vec<Value>) = parameters.into_iter().partition(|p| p["in"] == "body");
    let mut out = op.clone();
    if let Some(m) = out.as_object_mut() {
        for k in ["consumes", "produces", "schemes", "parameters"] {
            m.remove(k);
        }
    }
    out["parameters"] = rest.iter().map(v3_parameter).collect();
    if let Some(b) = bodies.first() {
        let content: serde_json::Map<String, Value> = op["consumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| Some((c.as_str()?.to_string(), json!({"schema": v3_refs(&b["schema"])}))))
            .collect();
        out["requestBody"] = json!({"content": content});
        if b["required"] == true {
            out["requestBody"]["required"] = true.into();
        }
    }
    if let Some(responses) = out["responses"].as_object_mut() {
        for r in responses.values_mut() {
            let Some(schema) = r.as_object_mut().and_then(|m| m.remove("schema")) else {
                continue;
            };
            let content: serde_json::Map<String, Value> = op["produces"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|c| Some((c.as_str()?.to_string(), json!({"schema": v3_refs(&schema)}))))
                .collect();
            r["content"] = Value::Object(content);
        }
    }
    out
}

/// A path item in the form of v3.
pub fn to_v3(item: &Value) -> Value {
    let of = |(k, v): (&String, &Value)| match k.as_str() {
        "parameters" => (k.clone(), v.as_array().into_iter().flatten().map(v3_parameter).collect()),
        _ => (k.clone(), v3_operation(v)),
    };
    Value::Object(item.as_object().into_iter().flatten().map(of).collect())
}
