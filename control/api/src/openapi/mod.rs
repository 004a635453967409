//! OpenAPI documents, written straight from the tables: v3 per group and version,
//! v2 for everything as JSON and in the protobuf form that older clients insist
//! on. They come as a frame and two parts, so that the parts of the built-in kinds
//! can be made when the server is built, and those of custom kinds put in later.

mod definitions;
mod gnostic;
mod paths;

use crate::kinds::Kind;
use definitions::{Style, closure, definition};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Goes up when documents change in form though the tables do not.
const FORM: u8 = 1;

/// Where a group and version stands in paths: `api/v1`, `apis/apps/v1`.
pub fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The parts of a document that depend on kinds: members of its `paths` and of its schemas, in
/// JSON without the braces around them, or as fields of the two protobuf messages.
#[derive(Debug, Default)]
pub struct Parts {
    pub paths: Vec<u8>,
    pub schemas: Vec<u8>,
}

/// What stands before, between and after the two parts.
pub type Frame = [Vec<u8>; 3];

/// A text that names one state of a custom kind's part of the documents.
pub fn custom_state(kind: &Kind) -> String {
    let openapi = kind.custom.as_ref().map(|c| c.openapi.to_string()).unwrap_or_default();
    format!(
        "{FORM} {} {} {} {} {} {:?} {:?} {openapi}",
        kind.group, kind.version, kind.plural, kind.kind, kind.namespaced, kind.verbs, kind.subresources
    )
}

/// An upper-case SHA-256, as clients find it in URLs and ETags.
pub fn hash(parts: &[&[u8]]) -> String {
    let mut h = Sha256::new();
    parts.iter().for_each(|p| h.update(p));
    h.finalize().iter().map(|b| format!("{b:02X}")).collect()
}

fn info(server_version: &str) -> Value {
    json!({"title": "Kubernetes", "version": server_version})
}

/// The part of one group and version in its v3 document, which stands for itself.  None: no
/// kind is there.
pub fn v3_parts(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Parts> {
    let of: Vec<&Arc<Kind>> = kinds.iter().filter(|k| k.group == group && k.version == version).collect();
    if of.is_empty() {
        return None;
    }
    let mut parts = Parts::default();
    for (path, item) in of.iter().flat_map(|k| paths::of_kind(k)) {
        member(&mut parts.paths, &path, &paths::to_v3(&item));
    }
    for (name, schema) in all_schemas(&of, Style::V3) {
        member(&mut parts.schemas, &name, &schema);
    }
    Some(parts)
}

/// The frame of a v3 document.
pub fn v3_frame(server_version: &str) -> Frame {
    [
        format!(r#"{{"openapi":"3.0.0","info":{},"paths":{{"#, info(server_version)).into_bytes(),
        br#"},"components":{"schemas":{"#.to_vec(),
        br#"},"securitySchemes":{"BearerToken":{"type":"apiKey","name":"authorization","in":"header"}}}}"#.to_vec(),
    ]
}

/// The part that built-in kinds have in the v2 document.
pub fn v2_parts(kinds: &[Arc<Kind>]) -> Parts {
    v2_of(kinds, all_schemas(&kinds.iter().collect::<Vec<_>>(), Style::V2))
}

/// What custom kinds add to it.
pub fn v2_custom_parts(kinds: &[Arc<Kind>]) -> Parts {
    v2_of(kinds, kinds.iter().flat_map(|k| definitions::custom(k, Style::V2)))
}

fn v2_of(kinds: &[Arc<Kind>], schemas: impl Iterator<Item = (String, Value)>) -> Parts {
    let mut parts = Parts::default();
    for (path, item) in kinds.iter().flat_map(|k| paths::of_kind(k)) {
        member(&mut parts.paths, &path, &item);
    }
    schemas.for_each(|(name, schema)| member(&mut parts.schemas, &name, &schema));
    parts
}

/// The frame of the v2 document in JSON.
pub fn v2_frame(server_version: &str) -> Frame {
    [
        format!(r#"{{"swagger":"2.0","info":{},"paths":{{"#, info(server_version)).into_bytes(),
        br#"},"definitions":{"#.to_vec(),
        br#"},"securityDefinitions":{"BearerToken":{"type":"apiKey","name":"authorization","in":"header"}},"security":[{"BearerToken":[]}]}"#.to_vec(),
    ]
}

/// [`v2_parts`] in protobuf.
pub fn v2_protobuf_parts(kinds: &[Arc<Kind>]) -> Parts {
    protobuf_of(kinds, all_schemas(&kinds.iter().collect::<Vec<_>>(), Style::V2))
}

/// [`v2_custom_parts`] in protobuf.
pub fn v2_protobuf_custom_parts(kinds: &[Arc<Kind>]) -> Parts {
    protobuf_of(kinds, kinds.iter().flat_map(|k| definitions::custom(k, Style::V2)))
}

fn protobuf_of(kinds: &[Arc<Kind>], schemas: impl Iterator<Item = (String, Value)>) -> Parts {
    use crate::protobuf::wire::bytes_field;
    let mut parts = Parts::default();
    for (path, item) in kinds.iter().flat_map(|k| paths::of_kind(k)) {
        bytes_field(&mut parts.paths, 2, &gnostic::named(&path, &gnostic::path_item(&item)));
    }
    for (name, schema) in schemas {
        bytes_field(&mut parts.schemas, 1, &gnostic::named(&name, &gnostic::schema(&schema)));
    }
    parts
}

/// The frame of the v2 document in protobuf around parts of these sizes.
pub fn v2_protobuf_frame(server_version: &str, paths: usize, schemas: usize) -> Frame {
    use crate::protobuf::wire::{bytes_field, key, string_field, varint};
    let mut info = Vec::new();
    string_field(&mut info, 1, "Kubernetes");
    string_field(&mut info, 2, server_version);
    let (mut head, mut middle) = (Vec::new(), Vec::new());
    string_field(&mut head, 1, "2.0");
    bytes_field(&mut head, 2, &info);
    key(&mut head, 8, 2);
    varint(&mut head, paths as u64);
    key(&mut middle, 9, 2);
    varint(&mut middle, schemas as u64);
    [head, middle, Vec::new()]
}

/// Groups and versions that have documents, with the paths of these.
pub fn group_versions(kinds: &[Arc<Kind>]) -> Vec<(String, String, String)> {
    crate::discovery::groups(kinds)
        .into_iter()
        .flat_map(|(g, vs)| vs.into_iter().map(move |v| (prefix(&g, &v), g.clone(), v)))
        .collect()
}

fn member(out: &mut Vec<u8>, name: &str, value: &Value) {
    if !out.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(Value::from(name).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value.to_string().as_bytes());
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
