//! The three patches that change a document: JSON patch, merge patch, strategic
//! merge patch. (Server-side apply is in [`crate::apply`].)

pub mod json;
pub mod merge;
pub mod strategic;

use crate::schema::Schema;
use crate::status::Status;
use serde_json::Value;

/// The content types.
pub const JSON_PATCH: &str = "application/json-patch+json";
pub const MERGE_PATCH: &str = "application/merge-patch+json";
pub const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Applies a patch body of one of the first three types. `schema` is that of the
/// object; strategic patches need one of a built-in kind.
pub fn apply(content_type: &str, object: &Value, body: &[u8], schema: Option<&Schema>) -> Result<Value, Status> {
    let main = content_type.split(';').next().unwrap_or("").trim();
    let bad = |e: serde_json::Error| Status::bad_request(format!("error decoding patch: {e}"));
    let patch = crate::codec::parse_json(body).map_err(bad)?.value;
    match (main, schema) {
        (JSON_PATCH, _) => json::apply(object, &patch),
        (MERGE_PATCH, _) => {
            if !patch.is_object() {
                return Err(Status::bad_request(
                    "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
                ));
            }
            let mut out = object.clone();
            merge::apply(&mut out, &patch);
            Ok(out)
        }
        (STRATEGIC_PATCH, Some(schema)) => strategic::apply(object, &patch, schema),
        _ => Err(Status::unsupported_media_type(content_type, &[JSON_PATCH, MERGE_PATCH, APPLY_PATCH])),
    }
}

/// Fields that a patch's body names twice.
pub fn duplicates(body: &[u8]) -> Vec<String> {
    let parsed = crate::codec::parse_json(body);
    parsed.map(|p| p.duplicates).unwrap_or_default().into_iter().map(|d| format!("duplicate field \"{d}\"")).collect()
}
