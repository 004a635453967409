//! Pods: one worker a pod, fed by the API's watch and the static pods' directory, woken by
//! the runtime, probes and timers.

pub mod admit;
pub mod backoff;
pub mod housekeeping;
pub mod kill;
pub mod observed;
pub mod plan;
pub mod pleg;
pub mod qos;
pub mod source;
pub mod spec;
pub mod start;
pub mod static_pods;
pub mod status;
pub mod status_patch;
pub mod status_sender;
pub mod worker;

use crate::kubelet::Kubelet;
use k8s_openapi::api::core::v1::Pod;
use spec::Kind;
use status::Verdict;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{Notify, watch};

/// What a pod's worker shall bring about.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The pod as it was last seen.
    pub pod: Arc<Pod>,
    /// The API (or the directory) no longer has it.
    pub removed: bool,
    /// The kubelet itself wants it to end.
    pub verdict: Option<Verdict>,
}

impl Desired {
    /// The pod is to end.
    pub fn ends(&self) -> bool {
        self.removed || self.verdict.is_some() || self.pod.metadata.deletion_timestamp.is_some()
    }
}

struct Handle {
    desired: watch::Sender<Desired>,
    wake: Arc<Notify>,
}

/// All pods of this node by uid.
#[derive(Default)]
pub struct Pods {
    workers: Mutex<HashMap<String, Handle>>,
    /// Static pods by `namespace/name`: uid.
    statics: Mutex<HashMap<String, String>>,
    synced: Mutex<Option<Instant>>,
}

impl Pods {
    /// A pod is new or has changed.
    pub fn apply(&self, kubelet: &Arc<Kubelet>, pod: Pod) {
        let uid = spec::uid(&pod).to_string();
        let pod = Arc::new(pod);
        let mut workers = crate::lock(&self.workers);
        if let Some(handle) = workers.get(&uid) {
            handle.desired.send_if_modified(|desired| {
                let news = tells_something(&desired.pod, &pod);
                desired.pod = pod;
                news
            });
            return;
        }
        let wake = Arc::new(Notify::new());
        let (sender, receiver) = watch::channel(Desired { pod, removed: false, verdict: None });
        workers.insert(uid.clone(), Handle { desired: sender, wake: wake.clone() });
        drop(workers);
        let kubelet = kubelet.clone();
        tokio::spawn(async move {
            worker::Worker::new(kubelet.clone(), receiver, wake).run().await;
            kubelet.pods.ended(&uid);
        });
    }

    /// A pod is gone from where it came.
    pub fn remove(&self, uid: &str) {
        if let Some(handle) = crate::lock(&self.workers).get(uid) {
            handle.desired.send_modify(|desired| desired.removed = true);
        }
    }

    /// The kubelet ends a pod for a reason of its own.
    pub fn end(&self, uid: &str, verdict: Verdict) {
        if let Some(handle) = crate::lock(&self.workers).get(uid) {
            handle.desired.send_modify(|desired| {
                desired.verdict.get_or_insert(verdict);
            });
        }
    }

    /// The API's pods that are not static are exactly these: all others are gone.
    pub fn retain(&self, uids: &HashSet<String>) {
        for (uid, handle) in crate::lock(&self.workers).iter() {
            let desired = handle.desired.borrow().clone();
            if !uids.contains(uid) && !desired.removed && !spec::is_static(&desired.pod) {
                handle.desired.send_modify(|desired| desired.removed = true);
            }
        }
        crate::lock(&self.synced).get_or_insert_with(Instant::now);
    }

    /// When the API's pods were first known.
    pub fn synced_at(&self) -> Option<Instant> {
        *crate::lock(&self.synced)
    }

    /// Something happened to a pod's containers.
    pub fn wake(&self, uid: &str) {
        if let Some(handle) = crate::lock(&self.workers).get(uid) {
            handle.wake.notify_one();
        }
    }

    fn ended(&self, uid: &str) {
        crate::lock(&self.workers).remove(uid);
        crate::lock(&self.statics).retain(|_, known| known != uid);
    }

    /// Whether a worker has that pod.
    pub fn has(&self, uid: &str) -> bool {
        crate::lock(&self.workers).contains_key(uid)
    }

    /// All pods that are not gone.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        crate::lock(&self.workers).values().map(|h| h.desired.borrow().pod.clone()).collect()
    }

    /// A pod by namespace and name; the one that is not on its way out, if there are two.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let mut found: Vec<Arc<Pod>> =
            self.list().into_iter().filter(|p| spec::namespace(p) == namespace && spec::name(p) == name).collect();
        found.sort_by_key(|p| p.metadata.deletion_timestamp.is_some());
        found.into_iter().next()
    }

    /// Remembers static pods, so that status and mirror find each other.
    pub fn note_static(&self, pod: &Pod) {
        crate::lock(&self.statics).insert(spec::full_name(pod), spec::uid(pod).to_string());
    }
}

/// Whether a change is more than our own status coming back.
fn tells_something(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    old.spec != new.spec
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
        || a.labels != b.labels
        || a.annotations != b.annotations
        || spec::of(new).readiness_gates.is_some()
}

/// Where a container stands in the spec, as events name it.
pub fn field_path(kind: Kind, name: &str) -> String {
    let list = match kind {
        Kind::Init => "initContainers",
        Kind::Main => "containers",
        Kind::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{name}}}")
}
