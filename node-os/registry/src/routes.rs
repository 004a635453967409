//! Requests of the OCI distribution specification, and their answers.

use crate::names::{Digest, Reference, is_repository};
use crate::store::{Fault, Store};
use anyhow::Context;
use bytes::Bytes;
use futures::TryStreamExt;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Registries need not take larger manifests.
const MANIFEST_LIMIT: usize = 4 << 20;
/// What is read of a blob at once.
const PIECE: usize = 64 << 10;
const DIGEST: &str = "docker-content-digest";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Reads.
    Node,
    /// Reads and writes.
    Operator,
}

/// What requests are answered from.
#[derive(Debug)]
pub(crate) struct Serving {
    store: Arc<Store>,
}

impl Serving {
    pub(crate) fn new(store: Store) -> Rc<Serving> {
        Rc::new(Serving { store: Arc::new(store) })
    }

    /// Does what waits for the disk beside the other requests.
    async fn at_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.context("waiting for the disk")?
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Base,
    Catalog,
    Tags(String),
    Manifest(String, Reference),
    Blob(String, Digest),
    Uploads(String),
    Upload(String, String),
}

impl Route {
    /// Of a path; none where nothing can be of that name.
    pub fn parse(path: &str) -> Option<Route> {
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Route::Base);
        }
        let parts: Vec<&str> = rest.strip_prefix('/')?.split('/').collect();
        let repository = |parts: &[&str]| Some(parts.join("/")).filter(|name| is_repository(name));
        match parts.as_slice() {
            ["_catalog"] => Some(Route::Catalog),
            [name @ .., "tags", "list"] => Some(Route::Tags(repository(name)?)),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Some(Route::Uploads(repository(name)?))
            }
            [name @ .., "blobs", "uploads", id] => Some(Route::Upload(repository(name)?, (*id).to_owned())),
            [name @ .., "manifests", which] => Some(Route::Manifest(repository(name)?, Reference::parse(which)?)),
            [name @ .., "blobs", which] => Some(Route::Blob(repository(name)?, Digest::parse(which)?)),
            _ => None,
        }
    }
}

/// The answer to a request.
pub(crate) async fn answer(serving: &Serving, caller: Caller, request: Request<Incoming>) -> Response<Body> {
    let asked = format!("{} {}", request.method(), request.uri().path());
    match route(serving, caller, request).await {
        Ok(response) => response,
        Err(fault) => {
            let (status, code) = match &fault {
                Fault::NotFound(code, _) => (StatusCode::NOT_FOUND, *code),
                Fault::Wrong(code, _) => (StatusCode::BAD_REQUEST, *code),
                // No status that clients take for a passing failure.
                Fault::Full(_) => (StatusCode::PAYLOAD_TOO_LARGE, "DENIED"),
                Fault::OutOfStep(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
                Fault::Broken(error) => {
                    tracing::error!("{asked}: {error:#}");
                    (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN")
                }
            };
            let mut response = refusal(status, code, &fault.to_string());
            if let Fault::OutOfStep(have) = fault {
                put(response.headers_mut(), "range", &range_of(have));
            }
            response
        }
    }
}

async fn route(serving: &Serving, caller: Caller, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let Some(route) = Route::parse(request.uri().path()) else {
        let why = "there is nothing of this name here: neither a repository nor a tag nor a digest has this form";
        return Ok(refusal(StatusCode::NOT_FOUND, "NAME_INVALID", why));
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if caller == Caller::Node && (!reads || matches!(route, Route::Upload(..))) {
        let why = "nodes only read; the operator writes, by `kimg push`";
        return Ok(refusal(StatusCode::FORBIDDEN, "DENIED", why));
    }
    let method = request.method().clone();
    match (method, route) {
        (Method::GET | Method::HEAD, Route::Base) => Ok(of_json(&json!({}))),
        (Method::GET, Route::Catalog) => {
            let names = serving.at_disk(|store| Ok(store.names()?)).await?;
            let repositories: BTreeSet<String> = names.into_iter().map(|(repository, _)| repository).collect();
            Ok(of_json(&json!({ "repositories": repositories })))
        }
        (Method::GET, Route::Tags(repository)) => tags(serving, repository).await,
        (Method::GET | Method::HEAD, Route::Manifest(repository, reference)) => {
            let found = serving.at_disk(move |store| store.manifest(&repository, &reference)).await?;
            let mut response = Response::new(whole(found.bytes));
            put(response.headers_mut(), CONTENT_TYPE.as_str(), &found.media_type);
            put(response.headers_mut(), DIGEST, &found.digest.to_string());
            Ok(response)
        }
        (Method::PUT, Route::Manifest(repository, reference)) => {
            put_manifest(serving, repository, reference, request).await
        }
        (Method::DELETE, Route::Manifest(repository, reference)) => {
            serving.at_disk(move |store| store.remove(&repository, &reference)).await?;
            serving.tell();
            Ok(empty(StatusCode::ACCEPTED))
        }
        (Method::HEAD, Route::Blob(_, digest)) => {
            let wanted = digest.clone();
            let pushes = caller == Caller::Operator;
            let found = move |store: &Store| {
                if pushes { store.blob_for_push(&wanted) } else { store.blob(&wanted) }
            };
            let (_, size) = serving.at_disk(found).await?;
            Ok(of_blob(&digest, size, StatusCode::OK, whole(Vec::new())))
        }
        (Method::GET, Route::Blob(_, digest)) => get_blob(serving, digest, request.headers()).await,
        (Method::POST, Route::Uploads(repository)) => begin(serving, &repository, request.uri().query()).await,
        (Method::GET, Route::Upload(repository, id)) => {
            let wanted = id.clone();
            let (_, have) = serving.at_disk(move |store| store.upload(&wanted)).await?;
            Ok(goes_on(StatusCode::NO_CONTENT, &repository, &id, have))
        }
        (Method::PATCH, Route::Upload(repository, id)) => {
            let have = append(serving, &id, request).await?;
            Ok(goes_on(StatusCode::ACCEPTED, &repository, &id, have))
        }
        (Method::PUT, Route::Upload(repository, id)) => finish(serving, &repository, id, request).await,
        (Method::DELETE, Route::Upload(_, id)) => {
            serving.at_disk(move |store| store.cancel(&id)).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (method, _) => {
            let why = format!("{method} is not done here");
            Ok(refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", &why))
        }
    }
}

impl Serving {
    /// The status line of the service follows what is held.
    fn tell(&self) {
        match self.store.summary() {
            Ok(summary) => node_sys::notify::status(&summary),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
}

async fn tags(serving: &Serving, repository: String) -> Result<Response<Body>, Fault> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, tag) in serving.at_disk(|store| Ok(store.names()?)).await? {
        all.entry(name).or_default().push(tag);
    }
    match all.remove(&repository) {
        Some(tags) => Ok(of_json(&json!({ "name": repository, "tags": tags }))),
        None => Err(Fault::NotFound("NAME_UNKNOWN", format!("the registry has no {repository}"))),
    }
}

async fn put_manifest(
    serving: &Serving,
    repository: String,
    reference: Reference,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let body = Limited::new(request.into_body(), MANIFEST_LIMIT).collect().await;
    let bytes =
        body.map_err(|error| Fault::Wrong("MANIFEST_INVALID", format!("the manifest did not come: {error}")))?;
    let place = format!("/v2/{repository}/manifests/");
    let bytes = bytes.to_bytes();
    let digest = serving.at_disk(move |store| store.put_manifest(&repository, &reference, &kind, &bytes)).await?;
    serving.tell();
    Ok(made(&format!("{place}{digest}"), &digest))
}

async fn get_blob(serving: &Serving, digest: Digest, headers: &HeaderMap) -> Result<Response<Body>, Fault> {
    let wanted = digest.clone();
    let (path, size) = serving.at_disk(move |store| store.blob(&wanted)).await?;
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok()).and_then(|range| byte_range(range, size));
    let (from, to) = match range {
        None => (0, size),
        Some(Some(range)) => range,
        Some(None) => {
            let mut response = refusal(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", "the blob ends before");
            put(response.headers_mut(), CONTENT_RANGE.as_str(), &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let opening = || format!("opening {}", path.display());
    let mut file = tokio::fs::File::open(&path).await.with_context(opening)?;
    file.seek(SeekFrom::Start(from)).await.with_context(opening)?;
    let pieces = ReaderStream::with_capacity(file.take(to - from), PIECE);
    let body = StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync();
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = of_blob(&digest, to - from, status, body);
    if range.is_some() {
        put(response.headers_mut(), CONTENT_RANGE.as_str(), &format!("bytes {from}-{}/{size}", to - 1));
    }
    Ok(response)
}

/// From where to before where `bytes=FROM-TO` or `bytes=FROM-` reaches; `Some(None)` where that is outside. Other forms
/// may be ignored, and the whole is the answer.
pub fn byte_range(text: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let from: u64 = from.parse().ok()?;
    let to = if to.is_empty() { size } else { to.parse::<u64>().ok()?.saturating_add(1).min(size) };
    Some((from < to).then_some((from, to)))
}

async fn begin(serving: &Serving, repository: &str, query: Option<&str>) -> Result<Response<Body>, Fault> {
    if let Some(digest) = digest_in(query, "mount") {
        let wanted = digest.clone();
        // Blobs belong to no repository.
        if serving.at_disk(move |store| store.blob_for_push(&wanted)).await.is_ok() {
            return Ok(made(&format!("/v2/{repository}/blobs/{digest}"), &digest));
        }
    }
    let id = serving.at_disk(|store| Ok(store.begin()?)).await?;
    Ok(goes_on(StatusCode::ACCEPTED, repository, &id, 0))
}

/// Writes what comes behind what has come; how much there is then.
async fn append(serving: &Serving, id: &str, request: Request<Incoming>) -> Result<u64, Fault> {
    let (head, mut body) = request.into_parts();
    let have = take(serving, id, &head.headers, &mut body).await;
    // Clients that send before they listen would find a closed connection, and not hear why.
    while have.is_err() && matches!(body.frame().await, Some(Ok(_))) {}
    have
}

/// An upload writes so much at most before its room is looked at again.
const STEP: u64 = 1 << 20;

async fn take(serving: &Serving, id: &str, headers: &HeaderMap, body: &mut Incoming) -> Result<u64, Fault> {
    let wanted = id.to_owned();
    let (path, mut have) = serving.at_disk(move |store| store.upload(&wanted)).await?;
    let said = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let begins =
        said(CONTENT_RANGE).and_then(|range| range.trim_start_matches("bytes ").split('-').next()?.parse().ok());
    if begins.is_some_and(|begins: u64| begins != have) {
        return Err(Fault::OutOfStep(have));
    }
    // Refused before anything is written where that much can never be; and asked again as it comes, since others write
    // meanwhile: other pushes, and the cluster's store.
    let announced: u64 = said(CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap_or(0);
    serving.at_disk(move |store| store.make_room(announced)).await?;
    let mut room = announced.min(STEP);
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.append(true).open(&path).await.with_context(|| format!("opening {}", path.display()))?;
    let cut = |error| Fault::Wrong("BLOB_UPLOAD_INVALID", format!("the upload was cut off: {error}"));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(cut)?.into_data() else { continue };
        let length = data.len() as u64;
        if length > room {
            room = length.max(STEP);
            serving.at_disk(move |store| store.make_room(room)).await?;
        }
        room -= length;
        file.write_all(&data).await.with_context(|| format!("writing {}", path.display()))?;
        have += length;
    }
    file.flush().await.with_context(|| format!("writing {}", path.display()))?;
    Ok(have)
}

async fn finish(
    serving: &Serving,
    repository: &str,
    id: String,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let Some(digest) = digest_in(request.uri().query(), "digest") else {
        return Err(Fault::Wrong("DIGEST_INVALID", "say ?digest=sha256:… and 64 hex digits".into()));
    };
    append(serving, &id, request).await?;
    let wanted = digest.clone();
    serving.at_disk(move |store| store.finish(&id, &wanted)).await?;
    Ok(made(&format!("/v2/{repository}/blobs/{digest}"), &digest))
}

/// The digest that a query names.
pub fn digest_in(query: Option<&str>, key: &str) -> Option<Digest> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == key)?;
    Digest::parse(&value.replace("%3A", ":").replace("%3a", ":"))
}

/// An upload that waits for more. An empty one is said to have its first byte: there is no other word for it.
fn goes_on(status: StatusCode, repository: &str, id: &str, have: u64) -> Response<Body> {
    let mut response = empty(status);
    put(response.headers_mut(), LOCATION.as_str(), &format!("/v2/{repository}/blobs/uploads/{id}"));
    put(response.headers_mut(), "range", &range_of(have));
    put(response.headers_mut(), "docker-upload-uuid", id);
    response
}

fn range_of(have: u64) -> String {
    format!("0-{}", have.saturating_sub(1))
}

fn made(place: &str, digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    put(response.headers_mut(), LOCATION.as_str(), place);
    put(response.headers_mut(), DIGEST, &digest.to_string());
    response
}

fn of_blob(digest: &Digest, length: u64, status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    put(headers, CONTENT_TYPE.as_str(), "application/octet-stream");
    put(headers, CONTENT_LENGTH.as_str(), &length.to_string());
    put(headers, ACCEPT_RANGES.as_str(), "bytes");
    put(headers, DIGEST, &digest.to_string());
    response
}

fn of_json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(whole(value.to_string().into_bytes()));
    put(response.headers_mut(), CONTENT_TYPE.as_str(), "application/json");
    response
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let mut response = of_json(&json!({ "errors": [{ "code": code, "message": message }] }));
    *response.status_mut() = status;
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(whole(Vec::new()));
    *response.status_mut() = status;
    response
}

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// All values are made here, or were names by the specification; one that is no header is left out.
fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = http::HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_from_their_ends() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let parsed = |path: &str| Route::parse(path);
        assert_eq!(parsed("/v2"), Some(Route::Base));
        assert_eq!(parsed("/v2/"), Some(Route::Base));
        assert_eq!(parsed("/v2/_catalog"), Some(Route::Catalog));
        assert_eq!(parsed("/v2/a/b/tags/list"), Some(Route::Tags("a/b".into())));
        assert_eq!(parsed("/v2/a/blobs/uploads/"), Some(Route::Uploads("a".into())));
        assert_eq!(parsed("/v2/a/blobs/uploads/77"), Some(Route::Upload("a".into(), "77".into())));
        let (tag, blob) = (Reference::Tag("1".into()), Digest::parse(&digest).unwrap());
        assert_eq!(parsed("/v2/manifests/blobs/manifests/1"), Some(Route::Manifest("manifests/blobs".into(), tag)));
        assert_eq!(parsed(&format!("/v2/a/blobs/{digest}")), Some(Route::Blob("a".into(), blob)));
        for bad in [
            "/",
            "/v1/",
            "/v2x",
            "/v2//manifests/1",
            "/v2/manifests/1",
            "/v2/../a/manifests/1",
            "/v2/a/manifests/..",
            "/v2/a/blobs/../../tags",
            "/v2/A/manifests/1",
            "/v2/a%2fb/manifests/1",
            "/v2/a/blobs/sha256:0",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_are_cut_to_what_there_is() {
        assert_eq!(byte_range("bytes=0-", 10), Some(Some((0, 10))));
        assert_eq!(byte_range("bytes=3-5", 10), Some(Some((3, 6))));
        assert_eq!(byte_range("bytes=3-500", 10), Some(Some((3, 10))));
        assert_eq!(byte_range("bytes=10-", 10), Some(None));
        assert_eq!(byte_range("bytes=5-3", 10), Some(None));
        assert_eq!(byte_range("bytes=0-18446744073709551615", 10), Some(Some((0, 10))));
        assert_eq!(byte_range("bytes=-3", 10), None);
        assert_eq!(byte_range("lines=1-", 10), None);
    }
}
