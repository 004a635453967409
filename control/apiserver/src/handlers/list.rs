//! Lists: filtered and paged from memory, encoded item by item as they go out.

use std::sync::Arc;

use api::codec::Transform;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Scope, respond};
use crate::error::{ApiError, Cause, Result};
use crate::fields;
use crate::object::Object;
use crate::pipeline::Body;
use crate::request::Query;
use crate::selector::{FieldSelector, Filter, LabelSelector};

/// Bytes that go out in one piece.
const PIECE: usize = 64 << 10;

/// What a continue token says.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// Revision of the picture; -1: the newest, whatever it is.
    rv: i64,
    /// The last key of the page before.
    start: String,
}

fn encode_token(rv: i64, start: &str) -> String {
    let token = Token { v: "meta.k8s.io/v1".into(), rv, start: start.into() };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn decode_token(text: &str) -> Result<Token> {
    let bad = |why: String| ApiError::bad_request(format!("continue key is not valid: {why}"));
    let raw = URL_SAFE_NO_PAD.decode(text).map_err(|e| bad(e.to_string()))?;
    serde_json::from_slice(&raw).map_err(|e| bad(e.to_string()))
}

/// The selectors of a request.
pub(super) fn filter(scope: &Scope<'_>) -> Result<Filter> {
    let query = &scope.info.query;
    let shape = fields::shape(&scope.stored.group, &scope.stored.plural);
    let custom = scope.kind.custom.as_ref().map(|c| c.selectable.clone()).unwrap_or_default();
    let mut text = query.get("fieldSelector").unwrap_or("").to_string();
    // events.k8s.io calls the object that an event is about otherwise.
    if scope.kind.group == "events.k8s.io" {
        text = text.replace("regarding.", "involvedObject.").replace("reportingController", "reportingComponent");
    }
    let mut fields = FieldSelector::parse(&text, shape, &custom)?;
    // A watch or list of one name, as some clients write it.
    if !scope.info.name.is_empty() {
        fields.0.push(("metadata.name".into(), scope.info.name.clone(), true));
    }
    Ok(Filter { labels: LabelSelector::parse(query.get("labelSelector").unwrap_or(""))?, fields, shape, custom })
}

/// One page.
pub(super) struct Page {
    pub(super) objects: Vec<Arc<Object>>,
    pub(super) revision: u64,
    next: String,
    remaining: Option<usize>,
}

fn check_versions(query: &Query) -> Result<()> {
    let get = |name| query.get(name).filter(|v| !v.is_empty());
    let (version, matching) = (get("resourceVersion"), get("resourceVersionMatch"));
    let mut causes = Vec::new();
    if query.get("sendInitialEvents").is_some() {
        causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if let Some(matching) = matching {
        if get("continue").is_some() {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        } else if version.is_none() {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        match matching {
            "Exact" if version == Some("0") => {
                causes.push(Cause::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            "Exact" | "NotOlderThan" => {}
            other => {
                causes.push(Cause::not_supported("resourceVersionMatch", &other.into(), &["Exact", "NotOlderThan"]))
            }
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", causes)) }
}

/// Reads one page, as the query wants it.
pub(super) async fn page(scope: &Scope<'_>, filter: &Filter) -> Result<Page> {
    let query = &scope.info.query;
    check_versions(query)?;
    let number = |name: &str| match query.get(name).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(v) => v
            .parse::<u64>()
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("{name}: Invalid value: {v:?}: must be a number"))),
    };
    let limit = number("limit")?.unwrap_or(0) as usize;
    let cache = scope.store().cache();
    let namespace = scope.collection();
    let (candidates, revision) = match query.get("continue").filter(|c| !c.is_empty()) {
        Some(text) => {
            let token = decode_token(text)?;
            if token.rv < 0 {
                cache.list_after(namespace, &token.start)
            } else {
                let revision = token.rv as u64;
                let objects =
                    cache.list_at(namespace, &token.start, revision).map_err(|_| expired_page(&token.start))?;
                (objects, revision)
            }
        }
        None => {
            let wanted = number("resourceVersion")?.unwrap_or(0);
            cache.wait(wanted).await?;
            let exact = match query.get("resourceVersionMatch") {
                Some("Exact") => true,
                // Before there was a way to say it, a version with a limit meant exactly it.
                None | Some("") => limit > 0 && wanted > 0,
                _ => false,
            };
            if exact { (cache.list_at(namespace, "", wanted)?, wanted) } else { cache.list_after(namespace, "") }
        }
    };
    Ok(cut(candidates, revision, limit, filter))
}

fn expired_page(start: &str) -> ApiError {
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue \
         parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided \
         token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was \
         returned and now may show up in the list.",
    );
    error.continue_token = encode_token(-1, start);
    error
}

fn cut(candidates: Vec<Arc<Object>>, revision: u64, limit: usize, filter: &Filter) -> Page {
    let total = candidates.len();
    let mut objects =
        if filter.is_empty() { candidates } else { candidates.into_iter().filter(|o| filter.matches(o)).collect() };
    if limit == 0 || objects.len() <= limit {
        return Page { objects, revision, next: String::new(), remaining: None };
    }
    objects.truncate(limit);
    let next = objects.last().map(|last| encode_token(revision as i64, &last.key())).unwrap_or_default();
    let remaining = filter.is_empty().then_some(total - limit);
    Page { objects, revision, next, remaining }
}

impl Page {
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if !self.next.is_empty() {
            metadata["continue"] = self.next.clone().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

/// GET of a collection.
pub(super) async fn list(scope: &Scope<'_>) -> Result<Response<Body>> {
    let filter = filter(scope)?;
    let page = page(scope, &filter).await?;
    answer(scope, page)
}

/// Answers with a page, as negotiated.
pub(super) fn answer(scope: &Scope<'_>, page: Page) -> Result<Response<Body>> {
    if respond::as_stored(scope) {
        return Ok(respond::answer(200, "application/json", stream_json(scope, page)));
    }
    let values = page.objects.iter().map(|o| respond::served(scope, o)).collect();
    answer_values(scope, page.metadata(), values)
}

/// Answers with objects that are in no store.
pub(super) fn made(scope: &Scope<'_>, values: Vec<Value>) -> Result<Response<Body>> {
    answer_values(scope, json!({"resourceVersion": ""}), values)
}

fn answer_values(scope: &Scope<'_>, metadata: Value, values: Vec<Value>) -> Result<Response<Body>> {
    let (list, content_type) = match &scope.accept.transform {
        Transform::Table(version) => (crate::table::of(scope, &values, version, metadata), scope.accept.content_type()),
        Transform::Partial(version) | Transform::PartialList(version) => {
            let items: Vec<Value> = values.iter().map(|v| respond::partial(v, version)).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata, "items": items});
            (list, scope.accept.content_type())
        }
        _ => {
            let list = json!({"kind": scope.kind.list_kind, "apiVersion": scope.kind.api_version(), "metadata": metadata, "items": values});
            (list, scope.accept.format.media_type().to_string())
        }
    };
    let bytes = respond::encode(scope, &list)?;
    Ok(respond::answer(200, &content_type, crate::pipeline::full(bytes)))
}

/// The envelope, and between its halves the stored bytes; at no time is more than a piece
/// in memory twice.
fn stream_json(scope: &Scope<'_>, page: Page) -> Body {
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
        Value::from(scope.kind.list_kind.as_ref()),
        Value::from(scope.kind.api_version()),
        page.metadata()
    );
    let total: usize = page.objects.iter().map(|o| o.json.len() + 1).sum();
    let objects = page.objects;
    if total <= PIECE {
        let mut out = BytesMut::with_capacity(head.len() + total + 4);
        out.extend_from_slice(head.as_bytes());
        fill(&mut out, &objects, 0, usize::MAX);
        out.extend_from_slice(b"]}\n");
        return crate::pipeline::full(out.freeze());
    }
    // (next object, first piece?)
    let start = (0usize, Some(head), objects, false);
    let pieces = stream::unfold(start, |(at, head, objects, ended)| async move {
        if ended {
            return None;
        }
        let mut out = BytesMut::with_capacity(PIECE + PIECE / 4);
        if let Some(head) = head {
            out.extend_from_slice(head.as_bytes());
        }
        let at = fill(&mut out, &objects, at, PIECE);
        let ended = at == objects.len();
        if ended {
            out.extend_from_slice(b"]}\n");
        }
        let piece: Result<Frame<Bytes>, std::io::Error> = Ok(Frame::data(out.freeze()));
        Some((piece, (at, None, objects, ended)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn fill(out: &mut BytesMut, objects: &[Arc<Object>], mut at: usize, most: usize) -> usize {
    while at < objects.len() && out.len() < most {
        if at > 0 {
            out.extend_from_slice(b",");
        }
        out.extend_from_slice(&objects[at].json);
        at += 1;
    }
    at
}
