//! Server-side apply.

use http::Response;

use super::Scope;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;

/// PATCH with the apply content type.
pub(super) async fn apply(_scope: &Scope<'_>, _body: &[u8]) -> Result<Response<Body>> {
    Err(ApiError::unsupported_media_type("server-side apply is not served yet"))
}
