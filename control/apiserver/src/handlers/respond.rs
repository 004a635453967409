//! Objects on their way out: version, transformation, encoding.

use std::sync::Arc;

use api::codec::{Accept, Format, Transform};
use api::table::Include;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::{Scope, items};
use crate::error::{ApiError, Result};
use crate::object::Object;
use crate::pipeline::{Body, full};

/// Whether stored bytes can go out as they are.
fn as_stored(scope: &Scope<'_>) -> bool {
    plain_json(&scope.accept) && !scope.accept.pretty && served_as_stored(scope)
}

pub(super) fn plain_json(accept: &Accept) -> bool {
    accept.format == Format::Json && accept.transform == Transform::None
}

pub(super) fn same_version(scope: &Scope<'_>) -> bool {
    (&scope.kind.group, &scope.kind.version) == (&scope.stored.group, &scope.stored.version)
}

/// Whether stored objects are what clients of this version get: custom resources get defaults, and lose what their
/// definition has no more, when they are read, too.
pub(super) fn served_as_stored(scope: &Scope<'_>) -> bool {
    let changes = |custom: &api::kinds::Custom| custom.was_changed || has_defaults(scope.kind.schema());
    same_version(scope) && !scope.kind.custom.as_deref().is_some_and(changes)
}

/// Whether a schema has defaults anywhere.
pub(super) fn has_defaults(schema: &api::schema::Schema) -> bool {
    let own = schema.extra.as_ref().is_some_and(|e| e.default.is_some());
    // Of a built-in type (metadata) there are none.
    own || schema.extra.is_some()
        && (schema.fields.iter().any(|f| has_defaults(f.schema()))
            || schema.items.as_ref().is_some_and(|i| has_defaults(i.get())))
}

/// A stored object in the request's version.
fn served(scope: &Scope<'_>, object: &Object) -> Value {
    let mut value = object.value();
    if !served_as_stored(scope) {
        crate::versions::serve(&mut value, &scope.kind);
    }
    value
}

/// Answers with a stored object.
pub(super) fn object(scope: &Scope<'_>, code: u16, object: &Arc<Object>) -> Result<Response<Body>> {
    if as_stored(scope) {
        return Ok(answer(code, "application/json", full(object.json.clone())));
    }
    value(scope, code, served(scope, object))
}

/// Answers with an object in the request's version.
pub(super) fn value(scope: &Scope<'_>, code: u16, value: Value) -> Result<Response<Body>> {
    items::check_shape(&scope.accept, false)?;
    let value = match &scope.accept.transform {
        Transform::Table(version) => {
            let metadata = serde_json::json!({"resourceVersion": value["metadata"]["resourceVersion"]});
            crate::table::of(scope, std::slice::from_ref(&value), version, metadata)?
        }
        Transform::Partial(version) => partial(&value, version),
        _ => value,
    };
    let bytes = encode(scope, &value)?;
    Ok(answer(code, &scope.accept.content_type(), full(bytes)))
}

/// How much of its object a row of a table is to carry.
pub(crate) fn include(scope: &Scope<'_>) -> Result<Include> {
    let asked = scope.info.query.get("includeObject").unwrap_or("");
    Include::parse(asked).ok_or_else(|| {
        let known = "supported values: \"\", \"Metadata\", \"None\", \"Object\"";
        ApiError::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Unsupported value: {asked:?}: {known}"
        ))
    })
}

/// PartialObjectMetadata of an object.
pub(super) fn partial(value: &Value, version: &str) -> Value {
    let mut partial = api::meta::partial(value);
    partial["apiVersion"] = format!("meta.k8s.io/{version}").into();
    partial
}

/// Encodes as negotiated.
pub(super) fn encode(scope: &Scope<'_>, value: &Value) -> Result<Bytes> {
    if scope.accept.pretty && scope.accept.format == Format::Json {
        return Ok(api::codec::pretty(value).into());
    }
    Ok(Bytes::from(api::codec::encode(value, scope.accept.format, None)?))
}

/// A whole answer.
pub(super) fn answer(code: u16, content_type: &str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let value = HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_TYPE, value);
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
