//! Events: what happens to pods and this node, told to the API. An event that comes again
//! raises the count of the first; a pod that makes too many is cut short.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events that wait to be sent; more are dropped rather than kept in memory.
const QUEUE: usize = 256;
/// Events that are remembered for counting.
const REMEMBERED: usize = 512;
/// Events of one object that are sent at once, and how fast the allowance grows back.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

struct Message {
    reference: ObjectReference,
    kind: &'static str,
    reason: String,
    text: String,
}

/// Takes events from anywhere and sends them in order.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Message>,
}

/// Refers to a pod, or to one of its containers.
pub fn pod_reference(pod: &Pod, field: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: field,
    }
}

/// Refers to this node as upstream's kubelet does: its uid is its name.
pub fn node_reference(name: &str, node: Option<&Node>) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: node.and_then(|n| n.metadata.uid.clone()).or_else(|| Some(name.into())),
        ..Default::default()
    }
}

impl Recorder {
    /// Starts sending.
    pub fn start(api: kube::Client, node_name: String) -> Recorder {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(Sender { api, node_name, known: HashMap::new(), allowance: HashMap::new() }.run(receiver));
        Recorder { sender }
    }

    fn send(&self, reference: ObjectReference, kind: &'static str, reason: &str, text: String) {
        tracing::info!(
            "{} {}/{}: {reason}: {text}",
            reference.kind.as_deref().unwrap_or_default(),
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let message = Message { reference, kind, reason: reason.into(), text };
        if self.sender.try_send(message).is_err() {
            tracing::debug!("too many events wait, one is dropped");
        }
    }

    /// Something that is as it should be.
    pub fn normal(&self, reference: ObjectReference, reason: &str, text: impl Into<String>) {
        self.send(reference, "Normal", reason, text.into());
    }

    /// Something that somebody should look at.
    pub fn warning(&self, reference: ObjectReference, reason: &str, text: impl Into<String>) {
        self.send(reference, "Warning", reason, text.into());
    }
}

struct Sender {
    api: kube::Client,
    node_name: String,
    /// What was sent: (object, field, reason, text) to name and count.
    known: HashMap<(String, String, String, String), (String, i32)>,
    allowance: HashMap<String, (f64, Instant)>,
}

impl Sender {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        while let Some(message) = receiver.recv().await {
            if !self.allowed(message.reference.uid.as_deref().unwrap_or_default()) {
                continue;
            }
            if let Err(error) = self.deliver(&message).await {
                tracing::debug!("event {} was not taken: {}", message.reason, crate::client::explain(&error));
            }
        }
    }

    fn allowed(&mut self, uid: &str) -> bool {
        if self.allowance.len() > REMEMBERED {
            self.allowance.clear();
        }
        let now = Instant::now();
        let (tokens, last) = self.allowance.entry(uid.to_string()).or_insert((BURST, now));
        *tokens = (*tokens + last.elapsed().as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *last = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }

    async fn deliver(&mut self, message: &Message) -> Result<(), kube::Error> {
        let reference = &message.reference;
        let namespace = reference.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.api.clone(), &namespace);
        let now = Time::from(Timestamp::now());
        let key = (
            reference.uid.clone().unwrap_or_default(),
            reference.field_path.clone().unwrap_or_default(),
            message.reason.clone(),
            message.text.clone(),
        );
        if let Some((name, count)) = self.known.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({ "count": *count, "lastTimestamp": now });
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => return Ok(()),
                Err(error) if crate::client::code(&error) == Some(404) => {}
                Err(error) => return Err(error),
            }
        }
        let subject = reference.name.clone().unwrap_or_default();
        let stamp = Timestamp::now().as_nanosecond();
        let name = format!("{subject}.{stamp:x}");
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..Default::default() },
            involved_object: reference.clone(),
            reason: Some(message.reason.clone()),
            message: Some(message.text.clone()),
            type_: Some(message.kind.into()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(self.node_name.clone()) }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node_name.clone()),
            ..Default::default()
        };
        api.create(&PostParams::default(), &event).await?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(key, (name, 1));
        Ok(())
    }
}
