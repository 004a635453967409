//! PATCH: the three patches of a document, and server-side apply.

use api::patch::{APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH};
use bytes::Bytes;
use http::Response;
use serde_json::Value;

use super::change::{self, Track};
use super::{Scope, respond, write};
use crate::error::{ApiError, Cause, Result};
use crate::pipeline::Body;

/// Answers a PATCH.
pub(super) async fn patch(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let main = content_type.split(';').next().unwrap_or("").trim();
    match main {
        APPLY_PATCH => return super::apply::apply(scope, content_type, &body).await,
        JSON_PATCH | MERGE_PATCH => {}
        STRATEGIC_PATCH if !scope.kind.is_custom() => {}
        other => {
            let supported = if scope.kind.is_custom() {
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            } else {
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
            };
            return Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {supported} (got {other:?})"
            )));
        }
    }
    let manager = scope.manager()?;
    let written =
        change::change(scope, &scope.info.name, &manager, Track::Update, |old| patched(scope, main, old, &body))
            .await?;
    write::finish(scope, 200, written)
}

/// The stored object with the patch applied in the request's version.
fn patched(scope: &Scope<'_>, content_type: &str, old: &Value, body: &[u8]) -> Result<Value> {
    let mut current = old.clone();
    if !respond::served_as_stored(scope) {
        crate::versions::serve(&mut current, &scope.kind);
    }
    let schema = (!scope.kind.is_custom()).then(|| scope.kind.schema());
    let patched = api::patch::apply(content_type, &current, body, schema)?;
    let mut new = checked(scope, patched, api::patch::duplicates(body))?;
    write::to_storage(scope, &mut new);
    Ok(new)
}

/// A patch can write anything anywhere: the result is read again as a body would be.
/// `duplicates` is what the patch itself named twice.
pub(super) fn checked(scope: &Scope<'_>, object: Value, duplicates: Vec<String>) -> Result<Value> {
    let text = serde_json::to_vec(&object).map_err(ApiError::internal)?;
    // What a patch makes of an object is not a malformed request.
    let refuse = |detail: &str| {
        let value = String::from_utf8_lossy(&text).into_owned().into();
        ApiError::invalid("", "", "", vec![Cause::invalid("patch", &value, detail)])
    };
    let decoded = api::codec::decode(&text, "application/json", scope.kind.schema(), false)
        .map_err(|status| refuse(&status.message))?;
    let strict: Vec<String> = duplicates.into_iter().chain(decoded.strict).collect();
    write::field_validation(scope, &strict).map_err(|error| refuse(&error.message))?;
    let mut new = decoded.object;
    write::check_body(scope, &mut new)?;
    if api::meta::name(&new) != scope.info.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            api::meta::name(&new),
            scope.info.name
        )));
    }
    Ok(new)
}
