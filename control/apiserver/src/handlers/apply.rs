//! Server-side apply.

use api::meta;
use http::Response;
use serde_json::Value;

use super::change::{self, Track};
use super::write::{self, Written};
use super::{Scope, respond};
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::shape;

/// PATCH with the apply content type: merges what the manager wants into the object, and
/// makes the object when there is none.
pub(super) async fn apply(scope: &Scope<'_>, content_type: &str, body: &[u8]) -> Result<Response<Body>> {
    let manager = scope.manager()?;
    let config = config(scope, content_type, body)?;
    let force = scope.info.query.flag("force");
    let name = scope.info.name.as_str();
    // Between the look and the write somebody may create or delete it.
    for _ in 0..3 {
        if scope.store().get(scope.namespace(), name).is_none() {
            if scope.on_status() {
                return Err(scope.not_found());
            }
            if !meta::uid(&config).is_empty() {
                let detail = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta::uid(&config)
                );
                return Err(ApiError::conflict(&scope.kind.group, &scope.kind.plural, name, &detail));
            }
            match write::create_object(scope, applied(scope, None, &config, &manager, force)?, &manager, false).await {
                Err(error) if error.reason == "AlreadyExists" => continue,
                created => return write::finish(scope, 201, created?),
            }
        }
        let changed = change::change(scope, name, &manager, Track::Done, |old| {
            applied(scope, Some(old), &config, &manager, force)
        })
        .await;
        match changed {
            Err(error) if error.reason == "NotFound" && !scope.on_status() => continue,
            changed => return finish(scope, changed?),
        }
    }
    Err(ApiError::stale(&scope.kind.group, &scope.kind.plural, name))
}

fn finish(scope: &Scope<'_>, written: Written) -> Result<Response<Body>> {
    write::finish(scope, 200, written)
}

/// The configuration, in the storage version, with nothing added to it: what is in it is
/// what the manager owns afterwards.
pub(super) fn config(scope: &Scope<'_>, content_type: &str, body: &[u8]) -> Result<Value> {
    let decoded = api::codec::decode(body, content_type, scope.kind.schema(), false)?;
    let mut config = decoded.object;
    let (unknown, twice): (Vec<_>, Vec<_>) = decoded.strict.into_iter().partition(|s| s.starts_with("unknown"));
    write::field_validation(scope, &twice)?;
    if meta::api_version(&config).is_empty() || meta::kind(&config).is_empty() {
        return Err(ApiError::bad_request("apply configuration must have apiVersion and kind"));
    }
    let unnamed = meta::namespace(&config).is_empty();
    write::check_body(scope, &mut config)?;
    if unnamed && scope.kind.namespaced {
        meta::set(&mut config, "namespace", scope.namespace());
    }
    match meta::name(&config) {
        "" => meta::set(&mut config, "name", &scope.info.name),
        name if name != scope.info.name => {
            return Err(ApiError::bad_request(format!(
                "metadata.name: Invalid value: {name:?}: must match the name on the URL ({})",
                scope.info.name
            )));
        }
        _ => {}
    }
    if let Some(field) = unknown.first().and_then(|s| s.split('"').nth(1)) {
        // Nobody can own what the schema does not know.
        return Err(ApiError::new(
            500,
            "InternalError",
            format!(
                "failed to create typed patch object ({}): .{field}: field not declared in schema",
                api::apply::describe(&config)
            ),
        ));
    }
    if !respond::same_version(scope) {
        crate::versions::convert(&mut config, &scope.stored);
    }
    Ok(config)
}

pub(super) fn applied(
    scope: &Scope<'_>,
    old: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
) -> Result<Value> {
    let now = write::now();
    let write = shape::writer(scope, manager, &now);
    let mut new = api::apply::apply(old, config, scope.stored.schema(), write, force)?;
    // A version in the configuration is a demand; the stored one's comes with the object.
    meta::set(&mut new, "resourceVersion", meta::resource_version(config));
    meta::set(&mut new, "uid", meta::uid(config));
    Ok(new)
}
