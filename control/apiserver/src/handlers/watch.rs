//! Watches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::codec::{Accept, Format, Transform};
use api::kinds::Kind;
use api::table::Include;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Scope, list, respond};
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::registry::{Event, EventKind, Watch};
use crate::selector::Filter;
use crate::state::AppState;

/// Shortest life of a watch that names none; the longest is twice as long.
const LIFE: u64 = 1800;
/// How often a bookmark is sent.
const BOOKMARK: Duration = Duration::from_secs(60);
/// A last bookmark is sent this long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// What kind of start a watch wants.
enum Start {
    /// Only what comes after this revision.
    After(u64),
    /// The current state as ADDED, from a picture not older than this, then the rest;
    /// with a bookmark in between when true.
    State(u64, bool),
}

fn start(scope: &Scope<'_>) -> Result<Start> {
    let query = &scope.info.query;
    let get = |name| query.get(name).filter(|v| !v.is_empty());
    let version =
        match get("resourceVersion") {
            None => None,
            Some(v) => Some(v.parse::<u64>().map_err(|_| {
                ApiError::bad_request(format!("resourceVersion: Invalid value: {v:?}: must be a number"))
            })?),
        };
    let matching = get("resourceVersionMatch");
    let mut causes = Vec::new();
    let initial = get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    match (initial, matching) {
        (Some(_), Some("NotOlderThan")) => {}
        (Some(_), _) => causes.push(Cause::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (None, Some(_)) => causes.push(Cause::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (None, None) => {}
    }
    if initial == Some(true) && !query.flag("allowWatchBookmarks") {
        causes.push(Cause::forbidden("allowWatchBookmarks", "sendInitialEvents requires allowWatchBookmarks"));
    }
    if !causes.is_empty() {
        return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", causes));
    }
    Ok(match (initial, version) {
        (Some(true), version) => Start::State(version.unwrap_or(0), true),
        (Some(false), None | Some(0)) => Start::After(scope.store().cache().revision()),
        (_, Some(version)) if version > 0 => Start::After(version),
        _ => Start::State(0, false),
    })
}

/// GET with `watch=true`.
pub(super) async fn watch(scope: &Scope<'_>) -> Result<Response<Body>> {
    let filter = list::filter(scope)?;
    let query = &scope.info.query;
    let seconds = match query.get("timeoutSeconds").and_then(|s| s.parse::<u64>().ok()).filter(|s| *s > 0) {
        Some(seconds) => seconds,
        None => rand::rng().random_range(LIFE..2 * LIFE),
    };
    let cache = scope.store().cache();
    let mut encoder = Encoder {
        kind: scope.kind.clone(),
        as_stored: respond::served_as_stored(scope),
        accept: scope.accept.clone(),
        include: Include::parse(query.get("includeObject").unwrap_or("")).unwrap_or_default(),
        first: true,
    };
    let mut ready = VecDeque::new();
    let watch = match start(scope)? {
        Start::After(revision) => {
            cache.wait(revision).await?;
            match cache.watch(revision) {
                Ok(watch) => watch,
                // Both spellings exist; a stream's is the one that every client reads.
                Err(error) => return Ok(stream_of_error(&mut encoder, &error)),
            }
        }
        Start::State(revision, bookmark) => {
            cache.wait(revision).await?;
            let (objects, watch) = cache.list_and_watch(scope.collection());
            ready.extend(objects.into_iter().filter(|o| filter.matches(o)).map(Item::Added));
            if bookmark {
                ready.push_back(Item::Bookmark(watch.position().max(revision), true));
            }
            watch
        }
    };
    let now = Instant::now();
    let end = now + Duration::from_secs(seconds);
    let content_type = encoder.content_type();
    let follower = Follower {
        namespace: scope.collection().map(|n| format!("{n}/")),
        bookmarks: query.flag("allowWatchBookmarks").then_some(now + BOOKMARK),
        stop: scope.state.stopping(),
        _counted: Counted::new(scope.state),
        watch,
        filter,
        encoder,
        ready,
        end,
        last_sent: false,
        over: false,
    };
    let body = StreamBody::new(stream::unfold(follower, |mut f| async move {
        f.next().await.map(|piece| (Ok(Frame::data(piece)), f))
    }))
    .boxed_unsync();
    Ok(respond::answer(200, &content_type, body))
}

fn stream_of_error(encoder: &mut Encoder, error: &ApiError) -> Response<Body> {
    let mut out = BytesMut::new();
    encoder.error(&mut out, error);
    respond::answer(200, &encoder.content_type(), crate::pipeline::full(out.freeze()))
}

enum Item {
    Added(Arc<Object>),
    /// Revision; whether it ends the initial state.
    Bookmark(u64, bool),
}

/// What a watch woke up for.
enum Happened {
    Events(Result<Vec<Event>>),
    Mark,
    End,
}

/// A watch's place, and what it sends.
struct Follower {
    watch: Watch,
    filter: Filter,
    namespace: Option<String>,
    encoder: Encoder,
    ready: VecDeque<Item>,
    /// When the next bookmark is due, for those who want some.
    bookmarks: Option<Instant>,
    end: Instant,
    last_sent: bool,
    over: bool,
    stop: tokio::sync::watch::Receiver<bool>,
    _counted: Counted,
}

/// Counts an open watch for as long as it lives.
struct Counted(Arc<AppState>);

impl Counted {
    fn new(state: &Arc<AppState>) -> Counted {
        state.metrics.watches.fetch_add(1, Ordering::Relaxed);
        Counted(state.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that go out in one piece, about.
const PIECE: usize = 32 << 10;

impl Follower {
    /// The next piece of the stream; None: the end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.len() < PIECE {
            match self.ready.pop_front() {
                Some(Item::Added(object)) => self.encoder.event(&mut out, "ADDED", &object),
                Some(Item::Bookmark(revision, initial)) => self.encoder.bookmark(&mut out, revision, initial),
                None => break,
            }
        }
        while out.is_empty() {
            if self.over {
                return None;
            }
            self.wait(&mut out).await;
        }
        Some(out.freeze())
    }

    async fn wait(&mut self, out: &mut BytesMut) {
        let last = self.end - LAST_BOOKMARK.min(self.end.saturating_duration_since(Instant::now()));
        let mark = self.bookmarks.filter(|_| !self.last_sent).map(|due| due.min(last));
        let happened = tokio::select! {
            events = self.watch.next() => Happened::Events(events),
            () = tokio::time::sleep_until(self.end) => Happened::End,
            () = tokio::time::sleep_until(mark.unwrap_or(self.end)), if mark.is_some() => Happened::Mark,
            _ = self.stop.wait_for(|stop| *stop) => Happened::End,
        };
        match happened {
            Happened::Events(Ok(events)) if events.is_empty() => self.over = true,
            Happened::Events(Ok(events)) => {
                for event in &events {
                    self.send(out, event);
                }
            }
            Happened::Events(Err(error)) => {
                self.encoder.error(out, &error);
                self.over = true;
            }
            Happened::Mark => self.mark(out),
            Happened::End => self.over = true,
        }
    }

    fn mark(&mut self, out: &mut BytesMut) {
        let now = Instant::now();
        self.last_sent = now + LAST_BOOKMARK >= self.end;
        self.bookmarks = Some(now + BOOKMARK);
        // Everything up to here was sent: `next` hands out what is there before it waits.
        self.encoder.bookmark(out, self.watch.position(), false);
    }

    fn in_namespace(&self, event: &Event) -> bool {
        self.namespace.as_ref().is_none_or(|n| *event.object.namespace == n[..n.len() - 1])
    }

    /// With a selector, what enters it is new and what leaves it is gone.
    fn send(&mut self, out: &mut BytesMut, event: &Event) {
        if !self.in_namespace(event) {
            return;
        }
        let was = event.previous.as_ref().is_some_and(|p| self.filter.matches(p));
        let is = event.kind != EventKind::Deleted && self.filter.matches(&event.object);
        match (was, is) {
            (false, true) => self.encoder.event(out, "ADDED", &event.object),
            (true, true) => self.encoder.event(out, "MODIFIED", &event.object),
            (true, false) if event.kind == EventKind::Deleted => self.encoder.event(out, "DELETED", &event.object),
            (true, false) => {
                // The last state that was wanted, at the revision of its leaving.
                if let Some(previous) = &event.previous {
                    self.encoder.event(out, "DELETED", &previous.restamped(event.revision));
                }
            }
            (false, false) => {}
        }
    }
}

/// Writes events in the form that was negotiated.
struct Encoder {
    kind: Arc<Kind>,
    /// Whether stored bytes can go out as they are.
    as_stored: bool,
    accept: Accept,
    include: Include,
    /// Whether the next event is the first: tables name their columns there only.
    first: bool,
}

impl Encoder {
    fn content_type(&self) -> String {
        self.accept.watch_content_type()
    }

    fn event(&mut self, out: &mut BytesMut, kind: &str, object: &Object) {
        if respond::plain_json(&self.accept) && self.as_stored {
            out.reserve(object.json.len() + 40);
            out.put_slice(b"{\"type\":\"");
            out.put_slice(kind.as_bytes());
            out.put_slice(b"\",\"object\":");
            out.put_slice(&object.json);
            out.put_slice(b"}\n");
            return;
        }
        let mut value = object.value();
        if !self.as_stored {
            crate::versions::serve(&mut value, &self.kind);
        }
        self.write(out, kind, value);
    }

    /// Transforms, then writes.
    fn write(&mut self, out: &mut BytesMut, kind: &str, value: Value) {
        let value = match &self.accept.transform {
            Transform::Table(version) => crate::table::of_event(&self.kind, &value, version, self.include, self.first),
            Transform::Partial(version) | Transform::PartialList(version) => respond::partial(&value, version),
            _ => value,
        };
        self.first = false;
        self.put(out, kind, &value);
    }

    fn put(&self, out: &mut BytesMut, kind: &str, value: &Value) {
        if self.accept.format == Format::Protobuf {
            let object = api::protobuf::encode_object(value, None);
            out.put_slice(&api::protobuf::watch_frame(kind, &object));
            return;
        }
        out.put_slice(b"{\"type\":\"");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\",\"object\":");
        out.put_slice(value.to_string().as_bytes());
        out.put_slice(b"}\n");
    }

    fn bookmark(&mut self, out: &mut BytesMut, revision: u64, initial: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let value = json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata});
        match &self.accept.transform {
            Transform::Table(version) => {
                self.put(out, "BOOKMARK", &crate::table::of_bookmark(&self.kind, &value, version))
            }
            _ => self.write(out, "BOOKMARK", value),
        }
    }

    fn error(&mut self, out: &mut BytesMut, error: &ApiError) {
        self.put(out, "ERROR", &error.to_value());
    }
}
