//! Reading one object.

use http::Response;

use super::{Scope, list, respond};
use crate::error::Result;
use crate::pipeline::Body;

/// GET of a named object.  Memory reflects every answered write, so that it is as good as
/// the store; what is newer than it is waited for.
pub(super) async fn get(scope: &Scope<'_>) -> Result<Response<Body>> {
    if let Some(version) = list::number(&scope.info.query, "resourceVersion")? {
        scope.store().cache().wait(version).await?;
    }
    let object = scope.store().get(scope.namespace(), &scope.info.name).ok_or_else(|| scope.not_found())?;
    respond::object(scope, 200, &object)
}
