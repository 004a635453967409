//! What is no resource: discovery, OpenAPI, health, version, metrics.

use std::sync::Arc;

use http::header::{ACCEPT, CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response};
use serde_json::{Value, json};

use super::{discovery, respond};
use crate::error::{ApiError, Result};
use crate::pipeline::{Body, full};
use crate::request::{RequestInfo, Verb};
use crate::state::AppState;

/// Answers a request outside the resources.
pub(super) fn handle(state: &Arc<AppState>, info: &RequestInfo, headers: &HeaderMap) -> Result<Response<Body>> {
    if !matches!(info.verb, Verb::Get | Verb::Head) {
        return Err(ApiError::no_such_path());
    }
    let path = info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [] => Ok(json_answer(&json!({"paths": paths(state)}))),
        ["healthz" | "livez" | "readyz", rest @ ..] => health(state, info, parts[0], rest),
        ["version"] => Ok(json_answer(&version())),
        ["metrics"] => {
            Ok(respond::answer(200, "text/plain; version=0.0.4; charset=utf-8", full(state.metrics.render(state))))
        }
        ["api" | "apis", ..] => discovery::handle(state, &parts, headers),
        ["openapi", "v2"] | ["openapi", "v3", ..] => discovery::openapi(state, info, &parts, headers),
        [".well-known", "openid-configuration"] => Ok(json_answer(&state.authn.openid_configuration())),
        ["openid", "v1", "jwks"] => {
            let mut answer = json_answer(&state.authn.jwks());
            answer
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
            Ok(answer)
        }
        _ => Err(ApiError::no_such_path()),
    }
}

fn json_answer(value: &Value) -> Response<Body> {
    respond::answer(200, "application/json", full(value.to_string()))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": crate::GIT_VERSION,
        "gitCommit": option_env!("KIMG_COMMIT").unwrap_or("unknown"), "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
        "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
    })
}

fn paths(state: &AppState) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(String::from).to_vec();
    for (group, versions) in api::discovery::groups(state.kinds().kinds()) {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
        }
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
            .map(String::from),
    );
    paths.sort();
    paths
}

/// The checks behind the health endpoints: name, and why it is not well.
fn checks(state: &AppState, endpoint: &str) -> Vec<(&'static str, Option<String>)> {
    let store = state.registry.store();
    // Starting anew helps against a failure; trouble with etcd passes.
    let why = if endpoint == "readyz" { store.trouble() } else { store.failure() };
    // The second name is what clients of upstream's server know.
    let mut checks = vec![("ping", None), ("log", None), ("store", why.clone()), ("etcd", why)];
    if endpoint == "readyz" {
        let waiting = (!state.is_ready()).then(|| "the server is starting or stopping".to_string());
        checks.push(("poststarthook/bootstrap", waiting));
        checks.push(("shutdown", None));
    }
    checks
}

fn health(state: &AppState, info: &RequestInfo, endpoint: &str, rest: &[&str]) -> Result<Response<Body>> {
    let excluded: Vec<&str> = info.query.all("exclude").collect();
    let wanted = rest.join("/");
    let checks: Vec<_> =
        checks(state, endpoint).into_iter().filter(|(name, _)| wanted.is_empty() || *name == wanted).collect();
    if checks.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let mut text = String::new();
    let mut bad = false;
    for (name, why) in &checks {
        match why {
            _ if excluded.contains(name) => text.push_str(&format!("[+]{name} excluded: ok\n")),
            None => text.push_str(&format!("[+]{name} ok\n")),
            Some(why) => {
                bad = true;
                text.push_str(&format!("[-]{name} failed: {why}\n"));
            }
        }
    }
    let verbose = info.query.get("verbose").is_some();
    let code = if bad { 500 } else { 200 };
    let body = match (bad, verbose) {
        (true, _) => format!("{text}{endpoint} check failed\n"),
        (false, true) => format!("{text}{endpoint} check passed\n"),
        (false, false) => "ok".to_string(),
    };
    Ok(respond::answer(code, "text/plain; charset=utf-8", full(body)))
}

/// Whether the client has the document with this ETag.
fn known(headers: &HeaderMap, etag: &str) -> bool {
    let quoted = format!("\"{etag}\"");
    headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v.split(',').any(|t| t.trim() == quoted))
}

/// An answer with an ETag; 304 when the client has it.
pub(super) fn tagged(
    headers: &HeaderMap,
    content_type: &str,
    etag: &str,
    body: impl Into<bytes::Bytes>,
) -> Response<Body> {
    tagged_body(headers, content_type, etag, || full(body))
}

/// [`tagged`] of a body that is made only when it is wanted.
pub(super) fn tagged_body(
    headers: &HeaderMap,
    content_type: &str,
    etag: &str,
    body: impl FnOnce() -> Body,
) -> Response<Body> {
    let mut response = if known(headers, etag) {
        respond::answer(304, content_type, full(""))
    } else {
        respond::answer(200, content_type, body())
    };
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(ETAG, value);
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// The Accept headers as one list.
pub(super) fn accept(headers: &HeaderMap) -> String {
    let given: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    given.join(",")
}
