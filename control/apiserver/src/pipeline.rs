//! The way of every request: authentication, audit, authorisation, handler.  Each is called
//! here and nowhere else, so that no handler can forget them.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use rustls_pki_types::CertificateDer;

use crate::authz::Decision;
use crate::error::{ApiError, Result};
use crate::handlers;
use crate::request::RequestInfo;
use crate::state::AppState;

/// Longest time of a request that is not long-running.
const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Body of every answer.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The connection that a request came on.
#[derive(Clone, Debug)]
pub struct Connection {
    pub remote: SocketAddr,
    /// What the client showed, leaf first; it proved that it has the leaf's key, but the
    /// chain has been checked against no CA.
    pub peer_certificates: Arc<[CertificateDer<'static>]>,
}

/// Answers one request; never fails, as every failure is an answer.
pub async fn serve(state: Arc<AppState>, connection: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query().unwrap_or(""));
    let user = match state.authn.authenticate(&state, &connection, &parts).await {
        Ok(user) => user,
        Err(error) => return failure(&error),
    };
    let head = parts.method == http::Method::HEAD;
    let begun = std::time::Instant::now();
    let record = state.audit.begin(&state, &info, &user, connection.remote);
    let id = record.id.clone();
    let answer = match authorized(&state, &user, &info).await {
        Ok(()) => {
            limited(&state, &info, handlers::handle(&state, &info, &user, Request::from_parts(parts, body))).await
        }
        Err(error) => Err(error),
    };
    let mut response = answer.unwrap_or_else(|error| failure(&error));
    let code = response.status().as_u16();
    state.audit.finish(record, code);
    state.metrics.count(&info, code, begun.elapsed());
    if head {
        response = without_body(response);
    }
    if let Ok(value) = id.parse() {
        response.headers_mut().insert("audit-id", value);
    }
    response
}

/// Bounds how many requests run at one time, and how long; long-running ones are free.
async fn limited(
    state: &AppState,
    info: &RequestInfo,
    work: impl Future<Output = Result<Response<Body>>>,
) -> Result<Response<Body>> {
    if info.is_long_running() || !info.is_resource {
        return work.await;
    }
    let places = if info.verb.is_read() { &state.places.0 } else { &state.places.1 };
    let Ok(_place) = places.try_acquire() else {
        return Err(ApiError::too_many_requests(
            "The server has received too many requests and has asked us to try again later",
            1,
        ));
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
        Ok(answer) => answer,
        Err(_) => Err(ApiError::timeout("the server was unable to return a response in the time allotted")),
    }
}

async fn authorized(state: &Arc<AppState>, user: &crate::UserInfo, info: &RequestInfo) -> Result<()> {
    match state.authz.authorize(state, user, info).await {
        Decision::Allow { .. } => Ok(()),
        Decision::Deny { reason } if info.is_resource => {
            Err(ApiError::forbidden(&info.group, &info.resource, &info.name, &reason))
        }
        Decision::Deny { reason } => Err(ApiError::forbidden("", "", "", &reason)),
    }
}

/// The answer to HEAD: what GET would give, but for the body.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(size) = http_body::Body::size_hint(response.body()).exact() {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, size.into());
    }
    *response.body_mut() = full("");
    response
}

/// The answer that tells a failure.
pub fn failure(error: &ApiError) -> Response<Body> {
    let mut response = Response::new(full(error.to_bytes()));
    *response.status_mut() = http::StatusCode::from_u16(error.code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    if let Some(seconds) = error.retry_after {
        headers.insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}
