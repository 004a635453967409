//! What answers requests, by verb and generic over kind.

mod apply;
mod change;
mod delete;
mod discovery;
mod items;
mod list;
mod options;
mod patch;
mod plain;
mod read;
mod respond;
mod scope;
mod subresource;
mod watch;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::codec::Format;
use api::continuation::Continuation;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::{ApiError, Result};
use crate::offload::{LARGE, Room, Weight};
use crate::pipeline::Body;
use crate::request::{RequestInfo, UserInfo, Verb};
use crate::state::AppState;
use crate::{authn, authz, backup, strategy, streaming, usage};

pub(crate) use respond::include;
pub(crate) use scope::Scope;
pub(crate) use write::now;

/// Largest body of a request.
pub(crate) const BODY_LIMIT: usize = 3 << 20;
/// As long as this a body is waited for, in all.
const BODY_TIME: Duration = Duration::from_secs(20);
/// A body that is too large is read, and thrown away, up to this, so that its client gets
/// the answer and not a broken connection.
const DISCARD_LIMIT: usize = 16 << 20;

/// Answers an authorised request.
pub async fn handle(
    state: &Arc<AppState>,
    info: &RequestInfo,
    user: &UserInfo,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    if let Some(service) = streaming::aggregated::service(state, info) {
        return streaming::aggregated::pass(state, &service, user, request).await;
    }
    if !info.is_resource {
        if ["/apis", "/openapi"].iter().any(|of_kinds| info.path.starts_with(of_kinds)) {
            // A kind that another server says is established is to be found here, too; where etcd does not answer, what is
            // known is told.
            state.learns(0).await;
            crate::customs::catch_up(state);
        }
        return match &state.backup {
            Some(backup) if info.path == backup::PATH && info.verb == Verb::Get => {
                backup.answer(state.registry.store().clone()).await
            }
            _ => plain::handle(state, info, request.headers()),
        };
    }
    if streaming::serves(info) {
        // As for other requests: authorisation was asked in the namespace that the path names.
        if (info.resource == "nodes") != info.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        return streaming::handle(state, info, user, request).await;
    }
    let (parts, body) = request.into_parts();
    // The room is given back when the request is answered.
    let (body, _room) =
        if info.verb.is_read() { (Bytes::new(), Room::default()) } else { collect(state, body).await? };
    if wants_newest(info, state.registry.revision()) {
        state.registry.fresh().await?;
    }
    crate::customs::catch_up(state);
    let scope = Scope::new(state, info, user, &parts.headers)?;
    let weight = weight(&scope, &parts.headers, &body);
    let mut response = state.offload.run(weight, dispatch(&scope, &parts.headers, body)).await?;
    scope.add_warnings(&mut response);
    Ok(response)
}

/// Whether the answer must reflect all writes before the request, also those of other servers
/// on the same etcd: not where the client says how old it may be, and memory, which is at `seen`,
/// is that far. One that is behind what another server told the client asks etcd, as where nothing
/// of ours changes its watch says nothing.
fn wants_newest(info: &RequestInfo, seen: u64) -> bool {
    let said = |name: &str| info.query.get(name).filter(|v| !v.is_empty());
    let (version, page) = (said("resourceVersion"), said("continue"));
    let is_ahead = || {
        let page = page.and_then(|text| u64::try_from(Continuation::read(text).ok()?.revision).ok());
        version.and_then(|text| text.parse::<u64>().ok()).max(page).is_some_and(|told| told > seen)
    };
    !info.verb.is_read() || version.is_none() && page.is_none() || is_ahead()
}

/// What it will cost to answer.
fn weight(scope: &Scope<'_>, headers: &http::HeaderMap, body: &Bytes) -> Weight {
    let (info, kind) = (scope.info, &scope.stored);
    let about_large = !info.verb.is_read()
        && (scope.store().get(scope.namespace(), &info.name)).is_some_and(|object| object.json.len() > LARGE);
    if body.len() > LARGE || about_large {
        return Weight::Large;
    }
    let yaml = api::codec::body_format(content_type(headers)) == Some(Format::Yaml);
    // Rules of custom resources may be slow, and so may be definitions with many of them.
    let rules = !info.verb.is_read() && (kind.has_rules() || kind.group == "apiextensions.k8s.io");
    if rules || yaml && !body.is_empty() && !api::codec::looks_like_json(body) { Weight::Slow } else { Weight::Light }
}

fn content_type(headers: &http::HeaderMap) -> &str {
    headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("")
}

async fn collect(state: &AppState, mut body: Incoming) -> Result<(Bytes, Room)> {
    let (mut whole, mut room) = (BytesMut::new(), Room::default());
    let (mut seen, mut left) = (0, BODY_TIME);
    loop {
        let begun = Instant::now();
        let Ok(frame) = tokio::time::timeout(left, body.frame()).await else {
            let time = BODY_TIME.as_secs();
            return Err(ApiError::timeout(format!("the request's body did not arrive within {time} s")));
        };
        // Waiting for room is not the client's fault.
        left = left.saturating_sub(begun.elapsed());
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| ApiError::bad_request(format!("the request's body was cut off: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        seen += data.len();
        if seen > DISCARD_LIMIT {
            break;
        }
        if seen <= BODY_LIMIT {
            if seen > LARGE {
                state.offload.grow(&mut room, seen).await?;
            }
            whole.extend_from_slice(&data);
        } else {
            (whole, room) = (BytesMut::new(), Room::default());
        }
    }
    if seen > BODY_LIMIT {
        return Err(ApiError::too_large(format!("Request entity too large: limit is {BODY_LIMIT}")));
    }
    Ok((whole.freeze(), room))
}

async fn dispatch(scope: &Scope<'_>, headers: &http::HeaderMap, body: Bytes) -> Result<Response<Body>> {
    let content_type = content_type(headers);
    options::check(scope, content_type)?;
    if !scope.info.subresource.is_empty() && scope.info.subresource != "status" {
        return subresource::handle(scope, content_type, body).await;
    }
    scope.check_verb()?;
    match (scope.info.group.as_str(), scope.info.verb) {
        ("authentication.k8s.io" | "authorization.k8s.io", _) if !scope.kind.is_custom() => {
            review(scope, content_type, body).await
        }
        ("", Verb::Get | Verb::List) if scope.info.resource == "componentstatuses" => component_statuses(scope).await,
        (api::usage::GROUP, Verb::Get | Verb::List) if api::usage::is_measured(&scope.kind) => usages(scope).await,
        (_, Verb::Get) => read::get(scope).await,
        (_, Verb::List) => list::list(scope).await,
        (_, Verb::Watch) => watch::watch(scope).await,
        (_, Verb::Create) if scope.info.group.is_empty() && scope.info.resource == "bindings" => {
            subresource::bindings(scope, content_type, body).await
        }
        (_, Verb::Create) => write::create(scope, content_type, body).await,
        (_, Verb::Update) => change::update(scope, content_type, body).await,
        (_, Verb::Patch) => patch::patch(scope, content_type, body).await,
        (_, Verb::Delete) => delete::delete(scope, content_type, body).await,
        (_, Verb::DeleteCollection) => delete::delete_collection(scope, content_type, body).await,
        _ => Err(ApiError::method_not_allowed(&scope.info.group, &scope.info.resource, scope.info.verb.as_str())),
    }
}

/// Reviews are answered, never stored.
async fn review(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let object = write::decode(scope, content_type, &body, scope.kind.schema())?;
    let done = if scope.info.group == "authentication.k8s.io" {
        authn::review(scope.state, scope.user, scope.info, object).await?
    } else {
        authz::review(scope.state, scope.user, scope.info, object).await?
    };
    respond::value(scope, 201, done)
}

/// What nodes and pods use is measured, never stored.
async fn usages(scope: &Scope<'_>) -> Result<Response<Body>> {
    let items = usage::items(scope, &list::filter(scope)?).await?;
    if scope.info.verb == Verb::List {
        return list::made(scope, items);
    }
    // Of a pod that does not run, or of a kubelet that did not answer, nothing is known.
    let one = items.into_iter().next().ok_or_else(|| scope.not_found())?;
    respond::value(scope, 200, one)
}

/// Component statuses are looked up, never stored.
async fn component_statuses(scope: &Scope<'_>) -> Result<Response<Body>> {
    let all = strategy::components::list(scope.state).await;
    if scope.info.verb == Verb::List {
        return list::made(scope, all);
    }
    let one = all.into_iter().find(|c| api::meta::name(c) == scope.info.name).ok_or_else(|| scope.not_found())?;
    respond::value(scope, 200, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_behind_what_the_client_was_told_asks_etcd() {
        let token = |revision| Continuation { revision, start: "a".into() }.write();
        let (old, new, any) = (token(100), token(101), token(-1));
        for (query, wanted) in [
            ("", true),
            ("resourceVersion=", true),
            ("resourceVersion=0", false),
            ("resourceVersion=100", false),
            ("resourceVersion=101", true),
            ("resourceVersion=x", false),
            (&format!("limit=1&continue={old}"), false),
            (&format!("limit=1&continue={new}"), true),
            (&format!("limit=1&continue={any}"), false),
        ] {
            let info = RequestInfo::parse(&http::Method::GET, "/api/v1/pods", query);
            assert_eq!(wants_newest(&info, 100), wanted, "{query}");
        }
        let info = RequestInfo::parse(&http::Method::POST, "/api/v1/namespaces/a/pods", "");
        assert!(wants_newest(&info, 100));
    }
}
