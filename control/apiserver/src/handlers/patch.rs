//! PATCH: the three patches of a document, and server-side apply.

use api::patch::{APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH};
use bytes::Bytes;
use http::Response;
use serde_json::Value;

use super::change::{self, Track};
use super::{Scope, respond, write};
use crate::error::{ApiError, Result};
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
    if scope.info.query.get("force").is_some_and(|v| !v.is_empty()) {
        let cause = crate::error::Cause::forbidden("force", "may not be specified for non-apply patch");
        return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
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
    let mut new = checked(scope, patched)?;
    write::to_storage(scope, &mut new);
    Ok(new)
}

/// A patch can write anything anywhere: the result is read again as a body would be.
pub(super) fn checked(scope: &Scope<'_>, object: Value) -> Result<Value> {
    let text = serde_json::to_vec(&object).map_err(ApiError::internal)?;
    let mut new = write::decode(scope, "application/json", &text, scope.kind.schema()).map_err(|mut error| {
        // What a patch makes of an object is not a malformed request.
        if error.code == 400 && !error.message.starts_with("strict") {
            error.code = 422;
            error.reason = "Invalid".into();
        }
        error
    })?;
    write::check_body(scope, &mut new)?;
    if api::meta::name(&new) != scope.info.name {
        return Err(ApiError::bad_request("the name of the object may not be changed by a patch"));
    }
    Ok(new)
}
