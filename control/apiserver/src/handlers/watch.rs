//! Watches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::items::Form;
use super::{Scope, list, respond};
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::registry::{Event, EventKind, Watch};
use crate::request::Query;
use crate::selector::Filter;
use crate::state::AppState;

/// Shortest life of a watch that names none; the longest is twice as long.
const LIFE: u64 = 1800;
/// Longest life that a client can ask for.
const LONGEST: u64 = 24 * 3600;
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

/// What is wrong with the version parameters of a watch.
fn check_versions(query: &Query) -> Result<()> {
    let get = |name| query.get(name).filter(|v| !v.is_empty());
    let mut causes = Vec::new();
    let mut forbid = |field, detail| causes.push(Cause::forbidden(field, detail));
    let (initial, matching) = (get("sendInitialEvents").is_some(), get("resourceVersionMatch"));
    if initial && matching != Some("NotOlderThan") {
        forbid("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if let Some(matching) = matching {
        if !initial {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if get("continue").is_some() {
            forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
        }
        if matching != "NotOlderThan" {
            causes.push(Cause::not_supported("resourceVersionMatch", &matching.into(), &["NotOlderThan"]));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", causes)) }
}

fn start(scope: &Scope<'_>) -> Result<Start> {
    let query = &scope.info.query;
    check_versions(query)?;
    let version = list::number(query, "resourceVersion")?.unwrap_or(0);
    let initial = query.get("sendInitialEvents").filter(|v| !v.is_empty()).map(|_| query.flag("sendInitialEvents"));
    Ok(match initial {
        Some(true) => Start::State(version, query.flag("allowWatchBookmarks")),
        Some(false) if version == 0 => Start::After(scope.store().cache().revision()),
        None if version == 0 => Start::State(0, false),
        _ => Start::After(version),
    })
}

/// GET with `watch=true`.
pub(super) async fn watch(scope: &Scope<'_>) -> Result<Response<Body>> {
    let filter = list::filter(scope)?;
    let query = &scope.info.query;
    let seconds = match list::number(query, "timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds.min(LONGEST),
        _ => rand::rng().random_range(LIFE..2 * LIFE),
    };
    let cache = scope.store().cache();
    let only = cache.indexed().and_then(|field| filter.exact(field));
    let mut encoder = Encoder { form: Form::of(scope)?, first: true };
    let mut ready = VecDeque::new();
    let watch = match start(scope)? {
        Start::After(revision) => {
            cache.wait(revision).await?;
            match cache.watch(revision, only) {
                Ok(watch) => watch,
                // Both spellings exist; a stream's is the one that every client reads.
                Err(error) => return Ok(stream_of_error(&mut encoder, &error)),
            }
        }
        Start::State(revision, bookmark) => {
            cache.wait(revision).await?;
            let (objects, watch) = cache.list_and_watch(scope.collection(), only);
            ready.extend(objects.into_iter().filter(|o| filter.matches(o)).map(Item::Added));
            if bookmark {
                ready.push_back(Item::Bookmark(watch.position().max(revision), true));
            }
            watch
        }
    };
    let now = Instant::now();
    let end = now + Duration::from_secs(seconds);
    let content_type = encoder.form.watch_content_type();
    let follower = Follower {
        namespace: scope.collection().map(Box::from),
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
    let mut out = Vec::new();
    encoder.error(&mut out, error);
    respond::answer(200, &encoder.form.watch_content_type(), crate::pipeline::full(out))
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
    namespace: Option<Box<str>>,
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
        let mut out = Vec::new();
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
        Some(out.into())
    }

    async fn wait(&mut self, out: &mut Vec<u8>) {
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

    fn mark(&mut self, out: &mut Vec<u8>) {
        let now = Instant::now();
        self.last_sent = now + LAST_BOOKMARK >= self.end;
        self.bookmarks = Some(now + BOOKMARK);
        // What is there comes before, and a look for it brings the position up to the store's,
        // so that a watch of what never changes learns the newest revision, too.
        match self.watch.ready() {
            Ok(events) => {
                events.iter().for_each(|event| self.send(out, event));
                self.encoder.bookmark(out, self.watch.position(), false);
            }
            Err(error) => {
                self.encoder.error(out, &error);
                self.over = true;
            }
        }
    }

    fn in_namespace(&self, event: &Event) -> bool {
        self.namespace.as_ref().is_none_or(|n| event.object.namespace == *n)
    }

    /// With a selector, what enters it is new and what leaves it is gone.
    fn send(&mut self, out: &mut Vec<u8>, event: &Event) {
        if !self.in_namespace(event) {
            return;
        }
        let was = event.previous.as_ref().is_some_and(|p| self.filter.matches(p));
        let is = event.kind != EventKind::Deleted && self.filter.matches(&event.object);
        match (was, is) {
            (false, true) => self.encoder.event(out, "ADDED", &event.object),
            (true, true) => self.encoder.event(out, "MODIFIED", &event.object),
            (true, false) => {
                // The last state that was wanted, at the revision of its leaving.
                let last = event.previous.as_ref().unwrap_or(&event.object);
                self.encoder.event(out, "DELETED", &last.restamped(event.revision));
            }
            (false, false) => {}
        }
    }
}

/// Writes events in the form that was negotiated.
struct Encoder {
    form: Form,
    /// Whether the next event is the first: tables name their columns there only.
    first: bool,
}

impl Encoder {
    fn event(&mut self, out: &mut Vec<u8>, kind: &str, object: &Object) {
        if self.form.is_stored_json() {
            out.reserve(object.json.len() + 40);
            json_event(out, kind, &object.json);
        } else if let Some(object) = self.form.enveloped(object) {
            out.extend_from_slice(&api::protobuf::watch_frame(kind, &object));
        } else {
            let value = self.form.whole(object, std::mem::take(&mut self.first));
            self.put(out, kind, &value);
        }
    }

    fn put(&self, out: &mut Vec<u8>, kind: &str, value: &Value) {
        if self.form.is_protobuf() {
            let object = api::protobuf::encode_object(value, None);
            out.extend_from_slice(&api::protobuf::watch_frame(kind, &object));
        } else {
            json_event(out, kind, value.to_string().as_bytes());
        }
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, revision: u64, initial: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({
                "k8s.io/initial-events-end": "true",
                "kubernetes.io/initial-events-list-blueprint": self.form.blueprint(),
            });
        }
        let value = self.form.bookmark(metadata, std::mem::take(&mut self.first));
        self.put(out, "BOOKMARK", &value);
    }

    fn error(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        self.put(out, "ERROR", &error.to_value());
    }
}

/// One event: a line without an end of line in it.
fn json_event(out: &mut Vec<u8>, kind: &str, object: &[u8]) {
    for part in [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", object, b"}\n"] {
        out.extend_from_slice(part);
    }
}
