//! Bodies to values and back: JSON, YAML and protobuf, and the negotiation of
//! which of them a client gets.
//!
//! [`decode`] reads a body; [`encode`] writes an object; [`negotiate`] reads an
//! Accept header.

mod accept;
mod json;
mod typed;
mod yaml;

pub use accept::{Accept, Format, Offer, Transform, choose, negotiate, negotiate_watch};
pub(crate) use json::{ENTRY_MEMORY, MAP_MEMORY, MAX_MEMORY, parse_json_within};
pub use json::{Parsed, looks_like_json, parse_json, parse_yaml, parse_yaml_documents};
pub use typed::{Strictness, check_types, normalize};

use crate::schema::Schema;
use crate::status::Status;
use serde_json::Value;

/// The content types of bodies.
pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Unknown and duplicate fields of a body that are told; more say nothing more. Upstream's JSON reader
/// (`sigs.k8s.io/json`) stops there too.
pub const MAX_STRICT: usize = 100;

/// A decoded body.
#[derive(Debug, Default)]
pub struct Decoded {
    pub object: Value,
    /// `unknown field "spec.x"` and `duplicate field "spec.y"`, in the form
    /// that warnings and strict errors have.
    pub strict: Vec<String>,
}

/// What a Content-Type header names; an empty one means JSON.
pub fn body_format(content_type: &str) -> Option<Format> {
    let main = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match main.as_str() {
        "" | JSON | "*/*" => Some(Format::Json),
        YAML | "application/x-yaml" | "text/yaml" | "application/apply-patch+yaml" => Some(Format::Yaml),
        PROTOBUF => Some(Format::Protobuf),
        _ => None,
    }
}

/// Decodes a body by schema: unknown and duplicate fields are listed, unknown
/// fields of built-in types are dropped, wrong types are a 400. `group_kind`
/// and `version` only go into messages; `protobuf` says whether the kind has it.
pub fn decode(body: &[u8], content_type: &str, schema: &Schema, protobuf: bool) -> Result<Decoded, Status> {
    let supported: &[&str] = if protobuf { &[JSON, YAML, PROTOBUF] } else { &[JSON, YAML] };
    match body_format(content_type) {
        Some(Format::Json) => {
            let unreadable = |e| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"));
            finish(parse_json(body).map_err(unreadable)?, schema)
        }
        Some(Format::Yaml) => {
            let mut parsed = parse_yaml(body).map_err(Status::bad_request)?;
            typed::read_octals(&mut parsed.value, schema);
            finish(parsed, schema)
        }
        Some(Format::Protobuf) if protobuf => {
            let object =
                crate::protobuf::decode_object(body, Some(schema)).map_err(|e| Status::bad_request(e.to_string()))?;
            Ok(Decoded { object, strict: Vec::new() })
        }
        _ => Err(Status::unsupported_media_type(content_type, supported)),
    }
}

/// Brings a parsed value into the schema's shape.
fn finish(parsed: Parsed, schema: &Schema) -> Result<Decoded, Status> {
    let mut object = parsed.value;
    let mut strict: Vec<String> = parsed.duplicates.into_iter().map(|d| format!("duplicate field \"{d}\"")).collect();
    if !object.is_object() {
        return Err(Status::bad_request("couldn't get version/kind; json parse error: the body must be an object"));
    }
    let mut unknown = Vec::new();
    normalize(&mut object, schema, &mut unknown).map_err(|e| {
        let version = crate::kinds::split_api_version(crate::meta::api_version(&object)).1;
        // A body without a kind is read as the one that is asked for.
        let asked = schema.name.rsplit('.').next().filter(|name| !name.is_empty()).unwrap_or("object");
        let kind = Some(crate::meta::kind(&object)).filter(|kind| !kind.is_empty()).unwrap_or(asked);
        Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {e}"))
    })?;
    strict.extend(unknown.into_iter().map(|u| format!("unknown field \"{u}\"")));
    strict.truncate(MAX_STRICT);
    Ok(Decoded { object, strict })
}

/// Encodes an object; `schema` is needed for protobuf only.
pub fn encode(object: &Value, format: Format, schema: Option<&Schema>) -> Result<Vec<u8>, Status> {
    match format {
        Format::Json => serde_json::to_vec(object).map_err(Status::internal),
        Format::Yaml => Ok(yaml::write(object)),
        Format::Protobuf => Ok(crate::protobuf::encode_object(object, schema)),
    }
}

/// Indented JSON, for `?pretty=true` and browsers.
pub fn pretty(object: &Value) -> Vec<u8> {
    let mut v = serde_json::to_vec_pretty(object).unwrap_or_default();
    v.push(b'\n');
    v
}

/// Whether the text is standard base64.
pub(crate) fn base64_ok(s: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(s.as_bytes()).is_ok()
        || s.bytes().any(|b| b == b'\n' || b == b'\r')
}
