//! `pods/log`: the kubelet's `/containerLogs`, passed on as it comes.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Empty;

use super::backend::{self, escape};
use super::target;
use crate::authn::view::str_at;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::RequestInfo;
use crate::state::AppState;

/// Query parameters that go to the kubelet.
const PASSED: [&str; 8] =
    ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];

/// Answers a request for logs.
pub async fn handle(state: &AppState, info: &RequestInfo) -> Result<Response<Body>> {
    let pod = target::pod(state, info, &info.name)?;
    let container = target::container(&pod, info.query.get("container"))?;
    check(info)?;
    if str_at(&pod, "/spec/nodeName").is_empty() {
        // No node, no logs: an empty answer, as upstream's.
        let empty = Response::builder().status(204).body(crate::pipeline::full(Vec::new()));
        return empty.map_err(ApiError::internal);
    }
    let mut target = target::kubelet_of(state, &pod)?;
    if info.query.flag("insecureSkipTLSVerifyBackend") {
        target.tls = Some(state.streaming.any_tls.clone());
    }
    let query: Vec<String> =
        PASSED.iter().filter_map(|name| info.query.get(name).map(|v| format!("{name}={}", escape(v)))).collect();
    let path = format!("/containerLogs/{}/{}/{container}?{}", info.namespace, info.name, query.join("&"));
    let request = Request::get(path).body(Empty::<Bytes>::new()).map_err(ApiError::internal)?;
    let response = backend::send(&target, request).await?;
    if !response.status().is_success() {
        return Err(backend::refusal(response).await);
    }
    let mut response = backend::body_of(response);
    backend::strip(response.headers_mut());
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn check(info: &RequestInfo) -> Result<()> {
    for name in ["tailLines", "limitBytes", "sinceSeconds"] {
        let Some(text) = info.query.get(name) else { continue };
        let least = if name == "tailLines" { 0 } else { 1 };
        if text.parse::<i64>().map_or(true, |n| n < least) {
            return Err(ApiError::bad_request(format!("{name} must be a number of at least {least}, not {text:?}")));
        }
    }
    if info.query.get("sinceSeconds").is_some() && info.query.get("sinceTime").is_some() {
        return Err(ApiError::bad_request("at most one of sinceTime or sinceSeconds may be specified"));
    }
    Ok(())
}
