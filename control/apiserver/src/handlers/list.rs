//! Lists: filtered and paged from memory.

use std::sync::Arc;

use api::codec::Transform;
use api::continuation::Continuation;
use http::Response;
use serde_json::{Value, json};

use super::{Scope, items, respond};
use crate::compress;
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::request::Query;
use crate::selector::Filter;

fn encode_token(revision: i64, start: &str) -> String {
    Continuation { revision, start: start.into() }.write()
}

fn decode_token(text: &str) -> Result<Continuation> {
    Continuation::read(text).map_err(|why| ApiError::bad_request(format!("continue key is not valid: {why}")))
}

/// The selectors of a request.
pub(super) fn filter(scope: &Scope<'_>) -> Result<Filter> {
    let text = |name| scope.info.query.get(name).unwrap_or("");
    let filter = Filter::parse(&scope.kind, &scope.stored, text("labelSelector"), text("fieldSelector"))?;
    // A watch or list of one name, as some clients write it.
    Ok(if scope.info.name.is_empty() { filter } else { filter.named(&scope.info.name) })
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
    if let Some(matching) = matching {
        if version.is_none() {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if get("continue").is_some() {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        match matching {
            "Exact" if version == Some("0") => {
                causes.push(Cause::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            "Exact" | "NotOlderThan" => {}
            other => {
                causes.push(Cause::not_supported("resourceVersionMatch", &other.into(), &["Exact", "NotOlderThan", ""]))
            }
        }
    }
    if query.get("sendInitialEvents").is_some() {
        causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", causes)) }
}

/// A parameter that is a whole number; absent and empty are the same.
pub(super) fn number(query: &Query, name: &str) -> Result<Option<u64>> {
    match query.get(name).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(v) => v
            .parse::<u64>()
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("{name}: Invalid value: {v:?}: must be a number"))),
    }
}

/// The most items of a page; 0 for all, which a negative number means too.
pub(super) fn limit(query: &Query) -> Result<usize> {
    let Some(text) = query.get("limit").filter(|v| !v.is_empty()) else { return Ok(0) };
    match text.parse::<i64>() {
        Ok(limit) => Ok(usize::try_from(limit).unwrap_or(0)),
        Err(error) => {
            use std::num::IntErrorKind::{NegOverflow, PosOverflow};
            let why =
                if matches!(error.kind(), NegOverflow | PosOverflow) { "value out of range" } else { "invalid syntax" };
            Err(ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}")))
        }
    }
}

/// Reads one page, as the query wants it.
pub(super) async fn page(scope: &Scope<'_>, filter: &Filter) -> Result<Page> {
    let query = &scope.info.query;
    check_versions(query)?;
    let limit = limit(query)?;
    let cache = scope.store().cache();
    let namespace = scope.collection();
    let (candidates, revision) = match query.get("continue").filter(|c| !c.is_empty()) {
        Some(text) => {
            if query.get("resourceVersion").is_some_and(|v| !matches!(v, "" | "0")) {
                return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
            }
            let token = decode_token(text)?;
            if token.revision < 0 {
                cache.list_after(namespace, &token.start)
            } else if token.revision == 0 || token.revision as u64 > cache.revision() {
                return Err(ApiError::bad_request("continue key is not valid: no list had this resource version"));
            } else {
                let revision = token.revision as u64;
                let objects =
                    cache.list_at(namespace, &token.start, revision).map_err(|_| expired_page(&token.start))?;
                (objects, revision)
            }
        }
        None => {
            let wanted = number(query, "resourceVersion")?.unwrap_or(0);
            cache.wait(wanted).await?;
            let exact = match query.get("resourceVersionMatch") {
                Some("Exact") => true,
                // Before there was a way to say it, a version with a limit meant exactly it.
                None | Some("") => limit > 0 && wanted > 0,
                _ => false,
            };
            match cache.indexed().and_then(|field| filter.exact(field)) {
                _ if exact => (cache.list_at(namespace, "", wanted)?, wanted),
                Some(value) => cache.list_of(namespace, value),
                None => cache.list_after(namespace, ""),
            }
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
    items::check_shape(&scope.accept, true)?;
    let filter = filter(scope)?;
    let page = page(scope, &filter).await?;
    answer(scope, page).await
}

/// Answers with a page, as negotiated.
pub(super) async fn answer(scope: &Scope<'_>, mut page: Page) -> Result<Response<Body>> {
    let form = items::Form::of(scope)?;
    if matches!(scope.accept.transform, Transform::Table(_)) && scope.kind.plural == "flowschemas" {
        // Printed in the order in which they are matched.
        page.objects.sort_by_cached_key(|o| o.value()["spec"]["matchingPrecedence"].as_i64());
    }
    let metadata = page.metadata();
    let size: usize = page.objects.iter().map(|o| o.json.len()).sum();
    let body = items::list(form, &metadata, page.objects).await;
    let mut response = respond::answer(200, &scope.accept.content_type(), body);
    if size >= compress::WORTH {
        response.extensions_mut().insert(compress::Large);
    }
    Ok(response)
}

/// Answers with objects that are in no store.
pub(super) fn made(scope: &Scope<'_>, values: Vec<Value>) -> Result<Response<Body>> {
    items::check_shape(&scope.accept, true)?;
    let metadata = json!({"resourceVersion": ""});
    let list = match &scope.accept.transform {
        Transform::Table(version) => crate::table::of(scope, &values, version, metadata)?,
        Transform::Partial(version) | Transform::PartialList(version) => {
            let items: Vec<Value> = values.iter().map(|v| respond::partial(v, version)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata, "items": items})
        }
        _ => {
            json!({"kind": scope.kind.list_kind, "apiVersion": scope.kind.api_version(), "metadata": metadata, "items": values})
        }
    };
    let bytes = respond::encode(scope, &list)?;
    Ok(respond::answer(200, &scope.accept.content_type(), crate::pipeline::full(bytes)))
}
