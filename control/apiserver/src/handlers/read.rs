//! Reading one object.

use http::Response;

use super::{Scope, respond};
use crate::error::{ApiError, Result};
use crate::pipeline::Body;

/// GET of a named object.  Memory reflects every answered write, so that it is as good as
/// the store, whatever `resourceVersion` asks for.
pub(super) fn get(scope: &Scope<'_>) -> Result<Response<Body>> {
    if let Some(version) = scope.info.query.get("resourceVersion").filter(|v| !v.is_empty()) {
        version.parse::<u64>().map_err(|_| {
            ApiError::bad_request(format!("resourceVersion: Invalid value: {version:?}: must be a number"))
        })?;
    }
    let object = scope.store().get(scope.namespace(), &scope.info.name).ok_or_else(|| scope.not_found())?;
    respond::object(scope, 200, &object)
}
