//! Events on objects, as `kubectl describe` shows them.
//!
//! Writing them never holds up the caller: they go through a bounded channel, and are
//! dropped where the server cannot keep up. The same event again only raises the count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use tokio::sync::mpsc;

use crate::call::{Client, Object};

const CHANNEL: usize = 256;
/// Events remembered for counting; the oldest half goes when it is full.
const REMEMBERED: usize = 512;
/// An event that comes again after this long is a new one.
const SERIES: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Normal,
    Warning,
}

struct Pending {
    about: ObjectReference,
    kind: Kind,
    reason: &'static str,
    action: Option<&'static str>,
    message: String,
}

/// Hands events to the background writer.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Pending>,
}

impl Recorder {
    /// Starts the writer; `component` says which source an event names, by the kind that it is about.
    pub fn start(client: Client, component: fn(&str) -> &'static str, host: String) -> Self {
        let (sender, receiver) = mpsc::channel(CHANNEL);
        tokio::spawn(write_all(client, component, host, receiver));
        Self { sender }
    }

    /// Records events nowhere, for tests.
    pub fn none() -> Self {
        Self { sender: mpsc::channel(1).0 }
    }

    pub fn normal<K: Object>(&self, object: &K, reason: &'static str, message: impl Into<String>) {
        self.send(reference(object), Kind::Normal, reason, None, message.into());
    }

    pub fn warning<K: Object>(&self, object: &K, reason: &'static str, message: impl Into<String>) {
        self.send(reference(object), Kind::Warning, reason, None, message.into());
    }

    pub fn send(
        &self,
        about: ObjectReference,
        kind: Kind,
        reason: &'static str,
        action: Option<&'static str>,
        message: String,
    ) {
        let pending = Pending { about, kind, reason, action, message };
        if self.sender.try_send(pending).is_err() {
            tracing::debug!("event {reason} dropped: the writer is behind");
        }
    }
}

/// How an event names the object that it is about.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct Identity {
    uid: String,
    name: String,
    kind: Kind,
    reason: &'static str,
    message: Arc<str>,
}

struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

async fn write_all(
    client: Client,
    component: fn(&str) -> &'static str,
    host: String,
    mut receiver: mpsc::Receiver<Pending>,
) {
    let mut known: HashMap<Identity, Known> = HashMap::new();
    while let Some(pending) = receiver.recv().await {
        let now = Timestamp::now();
        let identity = Identity {
            uid: pending.about.uid.clone().unwrap_or_default(),
            name: pending.about.name.clone().unwrap_or_default(),
            kind: pending.kind,
            reason: pending.reason,
            message: pending.message.as_str().into(),
        };
        let namespace = pending.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or("default".into());
        if let Some(seen) = known.get_mut(&identity)
            && now.duration_since(seen.last).unsigned_abs() < SERIES
        {
            seen.count += 1;
            seen.last = now;
            let patch = serde_json::json!({"count": seen.count, "lastTimestamp": Time(now)});
            match client.merge::<Event>(None, Some(&namespace), &seen.name, &patch).await {
                Ok(_) => continue,
                Err(failure) if failure.is_not_found() => {}
                Err(failure) => {
                    tracing::debug!("{failure}");
                    continue;
                }
            }
        }
        let component = component(pending.about.kind.as_deref().unwrap_or_default());
        let event = build(&pending, &namespace, component, &host, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        match client.create(&event).await {
            Ok(_) => {
                make_room(&mut known);
                known.insert(identity, Known { name, count: 1, last: now });
            }
            Err(failure) => tracing::debug!("{failure}"),
        }
    }
}

fn make_room(known: &mut HashMap<Identity, Known>) {
    if known.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Timestamp> = known.values().map(|k| k.last).collect();
    times.sort();
    let middle = times[times.len() / 2];
    known.retain(|_, k| k.last > middle);
}

fn build(pending: &Pending, namespace: &str, component: &str, host: &str, now: Timestamp) -> Event {
    let about = pending.about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: pending.about.clone(),
        reason: Some(pending.reason.to_owned()),
        action: pending.action.map(str::to_owned),
        message: Some(pending.message.clone()),
        type_: Some(match pending.kind {
            Kind::Normal => "Normal".to_owned(),
            Kind::Warning => "Warning".to_owned(),
        }),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        event_time: pending.action.map(|_| MicroTime(now)),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        reporting_instance: Some(if pending.action.is_some() { format!("{component}-{host}") } else { String::new() }),
        ..Event::default()
    }
}
