//! Discovery, legacy and aggregated, and OpenAPI.

use std::sync::Arc;

use api::codec::{Offer, Transform};
use api::kinds::Kind;
use http::{HeaderMap, HeaderValue, Response};

use super::plain::{accept, tagged, tagged_body};
use crate::compress;
use crate::error::{ApiError, Result};
use crate::openapi;
use crate::pipeline::Body;
use crate::request::RequestInfo;
use crate::state::AppState;

/// `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
pub(super) fn handle(state: &Arc<AppState>, parts: &[&str], headers: &HeaderMap) -> Result<Response<Body>> {
    let offer = Offer { discovery: matches!(parts, ["api" | "apis"]), ..Offer::PLAIN };
    let chosen = api::codec::negotiate(&accept(headers), &offer).ok_or_else(|| {
        ApiError::not_acceptable(
            "only application/json, application/yaml and application/vnd.kubernetes.protobuf are served",
        )
    })?;
    let kinds = state.kinds();
    let all = kinds.kinds();
    let document = match (parts, &chosen.transform) {
        ([root @ ("api" | "apis")], Transform::Discovery(version)) => {
            Some(api::discovery::aggregated(all, *root == "api", version))
        }
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

/// The media type of the v2 document in protobuf; clients also spell it with an `@`.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const V2_PROTOBUF_AT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `/openapi/v2`, `/openapi/v3` and below.
pub(super) fn openapi(
    state: &Arc<AppState>,
    info: &RequestInfo,
    parts: &[&str],
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let kinds = state.kinds();
    let all = kinds.kinds();
    let chosen = |offered: &[&'static str]| {
        api::codec::choose(&accept(headers), offered).ok_or_else(|| {
            ApiError::not_acceptable(format!("only the following media types are accepted: {}", offered.join(", ")))
        })
    };
    match parts {
        ["openapi", "v2"] => {
            let protobuf = chosen(&["application/json", V2_PROTOBUF_AT, V2_PROTOBUF])? != "application/json";
            let content_type = if protobuf { V2_PROTOBUF } else { "application/json" };
            let document = openapi::v2(all, protobuf);
            Ok(large(tagged_body(headers, content_type, &document.hash.clone(), || document.into_body())))
        }
        ["openapi", "v3"] => {
            chosen(&["application/json"])?;
            let index = openapi::v3_index(all).to_string();
            Ok(tagged(headers, "application/json", &etag(index.as_bytes()), index))
        }
        ["openapi", "v3", "api", version] => {
            chosen(&["application/json"])?;
            v3(all, "", version, info, headers)
        }
        ["openapi", "v3", "apis", group, version] => {
            chosen(&["application/json"])?;
            v3(all, group, version, info, headers)
        }
        _ => Err(ApiError::no_such_path()),
    }
}

fn v3(
    all: &[Arc<Kind>],
    group: &str,
    version: &str,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let hash = openapi::v3_hash(all, group, version).ok_or_else(ApiError::no_such_path)?;
    let asked = info.query.get("hash");
    if asked.is_some_and(|asked| asked != hash) {
        let mut redirect = super::respond::answer(301, "text/plain", crate::pipeline::full(""));
        if let Ok(value) = HeaderValue::from_str(&format!("{}?hash={hash}", info.path)) {
            redirect.headers_mut().insert(http::header::LOCATION, value);
        }
        return Ok(redirect);
    }
    let document = openapi::v3(all, group, version).ok_or_else(ApiError::no_such_path)?;
    let mut answer = tagged_body(headers, "application/json", &hash, || document.into_body());
    if asked.is_some() {
        answer
            .headers_mut()
            .insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
    }
    Ok(large(answer))
}

fn large(mut answer: Response<Body>) -> Response<Body> {
    if answer.status() == http::StatusCode::OK {
        answer.extensions_mut().insert(compress::Large);
    }
    answer
}

/// The ETag of a document, without quotes.
fn etag(document: &[u8]) -> String {
    api::openapi::hash(&[document])
}
