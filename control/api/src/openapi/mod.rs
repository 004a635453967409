//! OpenAPI documents, written straight from the tables: v3 per group and version,
//! v2 for everything as JSON and in the protobuf form that older clients insist
//! on. No document is kept as a tree; callers keep the bytes if they want to.

mod definitions;
mod gnostic;
mod paths;

use crate::kinds::Kind;
use definitions::{Style, closure, definition};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// Goes up when documents change in form though the tables do not.
const FORM: u8 = 1;

/// Where a group and version stands in paths: `api/v1`, `apis/apps/v1`.
pub fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A group and version that has a document.
type GroupVersion = (String, String);

fn group_versions(kinds: &[Arc<Kind>]) -> Vec<GroupVersion> {
    crate::discovery::groups(kinds)
        .into_iter()
        .flat_map(|(g, vs)| vs.into_iter().map(move |v| (g.clone(), v)))
        .collect()
}

/// The hash that names one state of a group and version's document.
pub fn hash(kinds: &[Arc<Kind>], group: &str, version: &str, server_version: &str) -> String {
    // Clients keep documents by this hash, so the tables and the form are in it.
    static TABLES: LazyLock<Vec<u8>> = LazyLock::new(|| Sha256::digest(crate::blob::bytes()).to_vec());
    let mut h = Sha256::new();
    h.update([FORM]);
    h.update(TABLES.as_slice());
    h.update(server_version);
    for k in kinds.iter().filter(|k| k.group == group && k.version == version) {
        h.update(k.plural.as_bytes());
        if let Some(c) = &k.custom {
            h.update(c.openapi.to_string());
            h.update(format!("{:?}{:?}{}{}", k.verbs, k.subresources, k.kind, k.namespaced));
        }
    }
    h.finalize().iter().map(|b| format!("{b:02X}")).collect()
}

/// `GET /openapi/v3`.
pub fn v3_index(kinds: &[Arc<Kind>], server_version: &str) -> Value {
    let mut paths = serde_json::Map::new();
    for (g, v) in group_versions(kinds) {
        let p = prefix(&g, &v);
        let url = format!("/openapi/v3/{p}?hash={}", hash(kinds, &g, &v, server_version));
        paths.insert(p, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `GET /openapi/v3/...` of one group and version, as JSON text.
pub fn v3(kinds: &[Arc<Kind>], group: &str, version: &str, server_version: &str) -> Option<Vec<u8>> {
    let of: Vec<&Arc<Kind>> = kinds.iter().filter(|k| k.group == group && k.version == version).collect();
    if of.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(256 << 10);
    out.extend_from_slice(br#"{"openapi":"3.0.0","info":"#);
    out.extend_from_slice(json!({"title": "Kubernetes", "version": server_version}).to_string().as_bytes());
    out.extend_from_slice(br#","paths":{"#);
    let mut first = true;
    for k in &of {
        for (path, item) in paths::of_kind(k) {
            member(&mut out, &mut first, &path, &paths::to_v3(&item));
        }
    }
    out.extend_from_slice(br#"},"components":{"schemas":{"#);
    schemas(&mut out, &of, Style::V3);
    out.extend_from_slice(
        br#"},"securitySchemes":{"BearerToken":{"type":"apiKey","name":"authorization","in":"header"}}}}"#,
    );
    Some(out)
}

/// `GET /openapi/v2` as JSON text.
pub fn v2_json(kinds: &[Arc<Kind>], server_version: &str) -> Vec<u8> {
    let of: Vec<&Arc<Kind>> = kinds.iter().collect();
    let mut out = Vec::with_capacity(4 << 20);
    out.extend_from_slice(br#"{"swagger":"2.0","info":"#);
    out.extend_from_slice(json!({"title": "Kubernetes", "version": server_version}).to_string().as_bytes());
    out.extend_from_slice(br#","paths":{"#);
    let mut first = true;
    for k in &of {
        for (path, item) in paths::of_kind(k) {
            member(&mut out, &mut first, &path, &item);
        }
    }
    out.extend_from_slice(br#"},"definitions":{"#);
    schemas(&mut out, &of, Style::V2);
    out.extend_from_slice(br#"},"securityDefinitions":{"BearerToken":{"type":"apiKey","name":"authorization","in":"header"}},"security":[{"BearerToken":[]}]}"#);
    out
}

/// `GET /openapi/v2` as protobuf.
pub fn v2_protobuf(kinds: &[Arc<Kind>], server_version: &str) -> Vec<u8> {
    use crate::protobuf::wire::{bytes_field, string_field};
    let of: Vec<&Arc<Kind>> = kinds.iter().collect();
    let mut info = Vec::new();
    string_field(&mut info, 1, "Kubernetes");
    string_field(&mut info, 2, server_version);
    let mut paths_message = Vec::with_capacity(2 << 20);
    for k in &of {
        for (path, item) in paths::of_kind(k) {
            bytes_field(&mut paths_message, 2, &gnostic::named(&path, &gnostic::path_item(&item)));
        }
    }
    let mut definitions_message = Vec::with_capacity(1 << 20);
    for (name, schema) in all_schemas(&of, Style::V2) {
        bytes_field(&mut definitions_message, 1, &gnostic::named(&name, &gnostic::schema(&schema)));
    }
    let mut out = Vec::with_capacity(paths_message.len() + definitions_message.len() + 64);
    string_field(&mut out, 1, "2.0");
    bytes_field(&mut out, 2, &info);
    bytes_field(&mut out, 8, &paths_message);
    bytes_field(&mut out, 9, &definitions_message);
    out
}

fn member(out: &mut Vec<u8>, first: &mut bool, name: &str, value: &Value) {
    if !*first {
        out.push(b',');
    }
    *first = false;
    out.extend_from_slice(Value::from(name).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value.to_string().as_bytes());
}

fn schemas(out: &mut Vec<u8>, kinds: &[&Arc<Kind>], style: Style) {
    let mut first = true;
    for (name, schema) in all_schemas(kinds, style) {
        member(out, &mut first, &name, &schema);
    }
}

/// Definitions of the kinds, one after the other (each is made when asked for).
fn all_schemas(kinds: &[&Arc<Kind>], style: Style) -> impl Iterator<Item = (String, Value)> {
    let gvks = definitions::gvks(kinds);
    let custom: BTreeMap<String, Value> =
        kinds.iter().filter(|k| k.is_custom()).flat_map(|k| definitions::custom(k, style)).collect();
    closure(kinds)
        .into_iter()
        .map(move |name| {
            let mut v = definition(&name, style);
            if let Some(g) = gvks.get(&name) {
                v["x-kubernetes-group-version-kind"] = Value::Array(g.clone());
            }
            (name, v)
        })
        .chain(custom)
}

#[cfg(test)]
mod tests;
