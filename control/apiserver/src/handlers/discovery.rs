//! Discovery, legacy and aggregated, and OpenAPI.

use std::sync::Arc;

use api::codec::{Format, Transform};
use http::{HeaderMap, Response};

use super::plain::{accept, tagged};
use crate::error::{ApiError, Result};
use crate::openapi::etag;
use crate::pipeline::Body;
use crate::request::RequestInfo;
use crate::state::AppState;

const FORMATS: &[Format] = &[Format::Json, Format::Yaml, Format::Protobuf];

/// `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
pub(super) fn handle(state: &Arc<AppState>, parts: &[&str], headers: &HeaderMap) -> Result<Response<Body>> {
    let chosen = api::codec::negotiate(&accept(headers), FORMATS, false).ok_or_else(|| ApiError::not_acceptable("only application/json, application/yaml and application/vnd.kubernetes.protobuf are served"))?;
    let kinds = state.kinds();
    let all = kinds.kinds();
    let document = match (parts, &chosen.transform) {
        ([root @ ("api" | "apis")], Transform::Discovery(version)) => Some(api::discovery::aggregated(all, *root == "api", version)),
        (["api"], _) => Some(api::discovery::api_versions(&address(state))),
        (["apis"], _) => Some(api::discovery::group_list(all)),
        (["apis", group], _) => api::discovery::group(all, group),
        (["api", version], _) => api::discovery::resource_list(all, "", version),
        (["apis", group, version], _) => api::discovery::resource_list(all, group, version),
        _ => None,
    };
    let document = document.ok_or_else(ApiError::no_such_path)?;
    let bytes = api::codec::encode(&document, chosen.format, None)?;
    Ok(tagged(headers, &chosen.content_type(), &etag(&bytes), bytes))
}

fn address(state: &AppState) -> String {
    let ip = state.config.advertise_address.unwrap_or(state.config.bind_address);
    std::net::SocketAddr::new(ip, state.config.secure_port).to_string()
}

/// `/openapi/v2`, `/openapi/v3` and below.
pub(super) fn openapi(_state: &Arc<AppState>, _info: &RequestInfo, _parts: &[&str], _headers: &HeaderMap) -> Result<Response<Body>> {
    Err(ApiError::no_such_path())
}
