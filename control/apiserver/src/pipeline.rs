//! The way of every request: authentication, audit, authorisation, handler.  Each is called
//! here and nowhere else, so that no handler can forget them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::codec::{Format, Offer};
use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use rustls_pki_types::CertificateDer;

use crate::authz::Decision;
use crate::error::{ApiError, Result};
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;
use crate::{audit, compress, handlers, metrics};

/// Longest time of a request that is not long-running.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

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
    let wants = Wants::of(&parts.headers);
    let content_type = parts.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let verb = metrics::verb(&info, content_type);
    let head = parts.method == http::Method::HEAD;
    let begun = std::time::Instant::now();
    let who = || match state.authn.authenticate(&state, &connection, &parts) {
        Ok(user) => {
            let acting = state.authn.acting(&state, &user, &parts.headers);
            (user, acting)
        }
        Err(error) => (UserInfo::default(), Err(error)),
    };
    let seen = state.registry.revision();
    let (mut user, mut acting) = who();
    if acting.is_err() && state.learns(seen).await {
        (user, acting) = who();
    }
    let record = state.audit.begin(&info, &user, acting.as_ref().ok().and_then(Option::as_ref), connection.remote);
    let id = record.id.clone();
    let answer = match acting {
        Ok(acting) => answer(&state, &info, &acting.unwrap_or(user), Request::from_parts(parts, body)).await,
        Err(error) => {
            drain(body).await;
            Err(error)
        }
    };
    let made = audit::Made::of(&answer);
    let mut response = answer.unwrap_or_else(|error| wants.failure(&error));
    let code = response.status().as_u16();
    state.audit.finish(record, code, made);
    state.metrics.count(&info, verb, code, begun.elapsed());
    if head {
        response = without_body(response);
    } else if wants.gzip && !info.is_long_running() {
        response = compress::compress(response);
    }
    if let Ok(value) = id.parse() {
        response.headers_mut().insert("audit-id", value);
    }
    response
}

/// As much of what was refused is read as upstream's server reads (256 KiB), for a moment: closing a connection on which
/// something is unread cuts off the answer.
async fn drain(mut body: Incoming) {
    let read = async {
        let mut left = 256_usize << 10;
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // Whoever takes longer may lose its answer.
    drop(tokio::time::timeout(Duration::from_secs(2), read).await);
}

/// What comes of a request whose user is known.
async fn answer(
    state: &Arc<AppState>,
    info: &RequestInfo,
    user: &UserInfo,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let seen = state.registry.revision();
    let mut may = authorized(state, user, info).await;
    if may.is_err() && state.learns(seen).await {
        may = authorized(state, user, info).await;
    }
    if let Err(error) = may {
        drain(request.into_body()).await;
        return Err(error);
    }
    if !is_served(request.method()) {
        return Err(ApiError::method_not_served());
    }
    limited(state, info, user, handlers::handle(state, info, user, request)).await
}

/// Whether anything is served by this method; HTTP has more, and clients may make up their own.
fn is_served(method: &http::Method) -> bool {
    use http::Method;
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
        .contains(method)
}

/// How a client wants its answers.
struct Wants {
    /// The form of failures.
    format: Format,
    gzip: bool,
}

impl Wants {
    fn of(headers: &http::HeaderMap) -> Wants {
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let format = api::codec::negotiate(&accept.join(","), &Offer::PLAIN).map_or(Format::Json, |a| a.format);
        Wants { format, gzip: compress::is_asked(headers) }
    }

    fn failure(&self, error: &ApiError) -> Response<Body> {
        let mut response = failure(error);
        if self.format != Format::Json
            && let Ok(bytes) = api::codec::encode(&error.to_value(), self.format, None)
        {
            *response.body_mut() = full(bytes);
            let media_type = http::HeaderValue::from_static(self.format.media_type());
            response.headers_mut().insert(http::header::CONTENT_TYPE, media_type);
        }
        response
    }
}

/// How long a request may take: what it asks for, but not longer than others.
fn time_limit(info: &RequestInfo) -> Result<Duration> {
    let Some(asked) = info.query.get("timeout").filter(|v| !v.is_empty()) else {
        return Ok(REQUEST_TIMEOUT);
    };
    let nanos = api::time::parse_duration(asked).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| {
        ApiError::bad_request(format!("invalid timeout specified in the request URL: {asked:?} is no duration"))
    })?;
    // Zero asks for no limit, and gets that of all.
    Ok(Some(Duration::from_nanos(nanos)).filter(|d| !d.is_zero()).map_or(REQUEST_TIMEOUT, |d| d.min(REQUEST_TIMEOUT)))
}

/// Bounds how many requests run at one time, and how long; long-running ones are free, and
/// those who repair the cluster always get a place.
async fn limited(
    state: &AppState,
    info: &RequestInfo,
    user: &UserInfo,
    work: impl Future<Output = Result<Response<Body>>>,
) -> Result<Response<Body>> {
    if info.is_long_running() {
        return work.await;
    }
    let limit = time_limit(info)?;
    let places = if info.verb.is_read() { &state.places.0 } else { &state.places.1 };
    // Health and discovery are there however much there is to do.
    let place = info.is_resource.then(|| places.try_acquire());
    if matches!(place, Some(Err(_))) && !user.in_group("system:masters") {
        return Err(ApiError::too_many_requests(
            "The server has received too many requests and has asked us to try again later",
            1,
        ));
    }
    match tokio::time::timeout(limit, work).await {
        Ok(answer) => answer,
        Err(_) => Err(ApiError::timeout("Timeout: request did not complete within the allotted timeout")),
    }
}

async fn authorized(state: &Arc<AppState>, user: &UserInfo, info: &RequestInfo) -> Result<()> {
    match state.authz.authorize(state, user, info).await {
        Decision::Allow { .. } => Ok(()),
        Decision::Deny { reason } if info.is_resource => {
            Err(ApiError::forbidden(&info.group, &info.resource, info.named(), &reason))
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
