//! Discovery, legacy and aggregated, and OpenAPI.

use std::sync::Arc;

use api::codec::{Format, Transform};
use api::kinds::Kind;
use http::{HeaderMap, HeaderValue, Response};

use super::plain::{accept, known, tagged};
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::RequestInfo;
use crate::state::AppState;

const FORMATS: &[Format] = &[Format::Json, Format::Yaml, Format::Protobuf];

/// `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
pub(super) fn handle(state: &Arc<AppState>, parts: &[&str], headers: &HeaderMap) -> Result<Response<Body>> {
    let chosen = api::codec::negotiate(&accept(headers), FORMATS, false).ok_or_else(|| {
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

/// `/openapi/v2`, `/openapi/v3` and below.  Documents are written when they are asked for and
/// not kept: clients keep them by their hash.
pub(super) fn openapi(
    state: &Arc<AppState>,
    info: &RequestInfo,
    parts: &[&str],
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let kinds = state.kinds();
    let all = kinds.kinds();
    match parts {
        ["openapi", "v2"] => Ok(v2(all, headers)),
        ["openapi", "v3"] => {
            let index = api::openapi::v3_index(all, crate::GIT_VERSION).to_string();
            Ok(tagged(headers, "application/json", &etag(index.as_bytes()), index))
        }
        ["openapi", "v3", "api", version] => v3(all, "", version, info, headers),
        ["openapi", "v3", "apis", group, version] => v3(all, group, version, info, headers),
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
    let hash = api::openapi::hash(all, group, version, crate::GIT_VERSION);
    match info.query.get("hash") {
        Some(asked) if asked != hash => {
            let mut redirect = super::respond::answer(301, "text/plain", crate::pipeline::full(""));
            if let Ok(value) = HeaderValue::from_str(&format!("{}?hash={hash}", info.path)) {
                redirect.headers_mut().insert(http::header::LOCATION, value);
            }
            return Ok(redirect);
        }
        _ => {}
    }
    if known(headers, &hash) {
        return Ok(tagged(headers, "application/json", &hash, ""));
    }
    let document = api::openapi::v3(all, group, version, crate::GIT_VERSION).ok_or_else(ApiError::no_such_path)?;
    let mut answer = tagged(headers, "application/json", &hash, document);
    if info.query.get("hash").is_some() {
        answer
            .headers_mut()
            .insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
    }
    Ok(answer)
}

/// JSON for people; the protobuf form is the only one that client libraries ask for, under
/// two spellings.
fn v2(all: &[Arc<Kind>], headers: &HeaderMap) -> Response<Body> {
    const TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let wanted = accept(headers);
    let protobuf = wanted.contains("application/com.github.proto-openapi.spec.v2");
    let hashes: String = api::discovery::groups(all)
        .iter()
        .flat_map(|(group, versions)| {
            versions.iter().map(move |version| api::openapi::hash(all, group, version, crate::GIT_VERSION))
        })
        .collect();
    let tag = etag(format!("{protobuf}{hashes}").as_bytes());
    let content_type = if protobuf { TYPE } else { "application/json" };
    if known(headers, &tag) {
        return tagged(headers, content_type, &tag, "");
    }
    let document = if protobuf {
        api::openapi::v2_protobuf(all, crate::GIT_VERSION)
    } else {
        api::openapi::v2_json(all, crate::GIT_VERSION)
    };
    tagged(headers, content_type, &tag, document)
}

/// The ETag of a document, without quotes.
fn etag(document: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode_upper(sha2::Sha256::digest(document))
}
