//! Around the cycle: follows the watches, takes pods from the queue, says what came of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use control_client::events::{Kind, reference};
use control_client::{Change, Client, Object, Recorder, Store, pods};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::cycle::{self, Unfit, View};
use crate::pod_affinity::Namespaces;
use crate::preempt::{self, Preemption};
use crate::queue::{Event, SchedulingQueue};
use crate::snapshot::{PodInfo, Snapshot};
use crate::volumes::{Needs, Storage};

const OWN_NAME: &str = "default-scheduler";
/// Bindings under way at a time.
const BINDINGS: usize = 64;
/// Pods scheduled in a row before the watches get their turn.
const BATCH: usize = 16;

pub struct Scheduler {
    pub client: Client,
    pub events: Recorder,
    pub pods: Arc<Store<Pod>>,
    nodes: Arc<Store<Node>>,
    namespaces: Arc<Store<Namespace>>,
    pub claims: Arc<Store<PersistentVolumeClaim>>,
    pub volumes: Arc<Store<PersistentVolume>>,
    classes: Arc<Store<StorageClass>>,
    budgets: Arc<Store<PodDisruptionBudget>>,
    state: Mutex<State>,
    wake: Notify,
    pub bindings: Arc<Semaphore>,
    begin: Instant,
}

/// What changes from cycle to cycle.
#[derive(Default)]
struct State {
    snapshot: Snapshot,
    queue: SchedulingQueue,
    namespaces: Namespaces,
    /// Pods that have a node here, but not yet on the server.
    assumed: HashSet<String>,
    /// Nodes promised by preemption, by pod uid.
    nominated: HashMap<String, (String, Arc<PodInfo>)>,
    start: usize,
    scheduled: u64,
    unschedulable: u64,
}

fn whole<K: Object>(_: &mut K) {}

/// The cycle reads no states of containers either.
fn trim_pod(pod: &mut Pod) {
    pods::trim(pod);
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.init_container_statuses = None;
    }
}

impl Scheduler {
    /// Starts the watches.
    pub fn start(client: &Client, events: Recorder) -> Arc<Self> {
        let scheduler = Arc::new(Self {
            client: client.clone(),
            events,
            pods: Store::new(client.clone(), trim_pod),
            nodes: Store::new(client.clone(), whole),
            namespaces: Store::new(client.clone(), whole),
            claims: Store::new(client.clone(), whole),
            volumes: Store::new(client.clone(), whole),
            classes: Store::new(client.clone(), whole),
            budgets: Store::new(client.clone(), whole),
            state: Mutex::new(State::default()),
            wake: Notify::new(),
            bindings: Arc::new(Semaphore::new(BINDINGS)),
            begin: Instant::now(),
        });
        scheduler.subscribe();
        scheduler.pods.start(None, None);
        scheduler.nodes.start(None, None);
        scheduler.namespaces.start(None, None);
        scheduler.claims.start(None, None);
        scheduler.volumes.start(None, None);
        scheduler.classes.start(None, None);
        scheduler.budgets.start(None, None);
        scheduler
    }

    pub async fn synced(&self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.budgets.synced().await;
    }

    fn subscribe(self: &Arc<Self>) {
        let at = self.clone();
        self.pods.subscribe(move |change| at.pod_changed(change));
        let at = self.clone();
        self.nodes.subscribe(move |change| at.node_changed(change));
        let at = self.clone();
        self.namespaces.subscribe(move |change| {
            let meta = &change.object().metadata;
            let name = meta.name.clone().unwrap_or_default();
            let mut state = at.state();
            match change {
                Change::Deleted(_) => drop(state.namespaces.remove(&name)),
                _ => drop(state.namespaces.insert(name, meta.labels.clone().unwrap_or_default())),
            }
        });
        let at = self.clone();
        self.claims.subscribe(move |_| at.happened(Event::Storage));
        let at = self.clone();
        self.volumes.subscribe(move |_| at.happened(Event::Storage));
        let at = self.clone();
        self.classes.subscribe(move |_| at.happened(Event::Storage));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    fn happened(&self, event: Event) {
        let now = self.now();
        self.state().queue.happened(event, now);
        self.wake.notify_one();
    }

    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let event = match change {
            Change::Added(_) => Some(Event::NodeAdded),
            Change::Updated(old, new) => matters(old, new).then_some(Event::NodeChanged),
            Change::Deleted(_) => None,
        };
        {
            let mut state = self.state();
            match change {
                Change::Deleted(_) => {
                    state.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default());
                }
                // Heartbeats change nothing that the cycle reads.
                Change::Updated(..) if event.is_none() && same_images(change) => {}
                _ => state.snapshot.set_node(node.clone()),
            }
        }
        if let Some(event) = event {
            self.happened(event);
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let node = pods::node_name(pod).to_owned();
        let gone = matches!(change, Change::Deleted(_)) || pods::is_terminal(pod);
        let same = matches!(change, Change::Updated(old, new) if old.spec == new.spec
            && old.metadata.labels == new.metadata.labels
            && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp);
        let event = {
            let mut state = self.state();
            if gone {
                let had_node = state.snapshot.place_of(&uid).is_some();
                state.snapshot.remove_pod(&uid);
                state.queue.remove(&uid);
                state.nominated.remove(&uid);
                state.assumed.remove(&uid);
                had_node.then_some(Event::PodRemoved)
            } else if !node.is_empty() {
                state.queue.remove(&uid);
                state.nominated.remove(&uid);
                state.assumed.remove(&uid);
                if same && state.snapshot.place_of(&uid) == Some(&node) {
                    None
                } else {
                    state.snapshot.set_pod(&node, PodInfo::new(pod.clone()));
                    Some(Event::PodPlaced)
                }
            } else {
                self.waiting_pod(&mut state, pod, &uid, same);
                None
            }
        };
        match event {
            Some(event) => self.happened(event),
            None => self.wake.notify_one(),
        }
    }

    fn waiting_pod(&self, state: &mut State, pod: &Arc<Pod>, uid: &str, same: bool) {
        let spec = pods::spec(pod);
        let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
        let ours = spec.scheduler_name.as_deref().unwrap_or(OWN_NAME) == OWN_NAME;
        if !ours || gated || pods::is_terminating(pod) {
            state.queue.remove(uid);
            state.nominated.remove(uid);
            return;
        }
        if state.assumed.contains(uid) {
            return;
        }
        let info = PodInfo::new(pod.clone());
        // A promise outlives a restart of this process in the pod's status.
        let promised = pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()).filter(|n| !n.is_empty());
        if let Some(node) = promised {
            state.nominated.insert(uid.to_owned(), (node, info.clone()));
        }
        state.queue.upsert(info, !same);
    }

    /// Schedules for ever.
    pub async fn run(self: &Arc<Self>) {
        let mut in_a_row = 0;
        loop {
            let popped = {
                let now = self.now();
                self.state().queue.pop(now)
            };
            let Some(pod) = popped else {
                in_a_row = 0;
                let due = self.state().queue.next_due();
                let pause = due.map(|due| Duration::from_millis(due.saturating_sub(self.now()).max(1)));
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(3600))) => {}
                }
                continue;
            };
            self.schedule(pod);
            in_a_row += 1;
            if in_a_row >= BATCH {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn schedule(self: &Arc<Self>, pod: Arc<PodInfo>) {
        let needs = Needs::of(&pod.pod, &**self);
        let mut guard = self.state();
        let state = &mut *guard;
        let nominated: Vec<_> = state.nominated.values().cloned().collect();
        let view = View { snapshot: &state.snapshot, namespaces: &state.namespaces, nominated: &nominated };
        match cycle::choose(&pod, &view, &needs, &mut state.start) {
            Ok(at) => {
                let node = state.snapshot.nodes[at].name.clone();
                let volumes: Vec<_> = needs
                    .pending
                    .iter()
                    .map(|p| (p.claim.clone(), p.volume_on(&state.snapshot.nodes[at]).cloned()))
                    .collect();
                state.snapshot.set_pod(&node, pod.clone());
                state.assumed.insert(pod.uid().to_owned());
                state.nominated.remove(pod.uid());
                drop(guard);
                tokio::spawn(self.clone().bind(pod, node, volumes));
            }
            Err(unfit) => {
                state.unschedulable += 1;
                let budgets = self.budgets.list();
                let preemption = preempt::plan(&pod, &view, &needs, &unfit, &budgets);
                if let Ok(found) = &preemption {
                    state.nominated.insert(pod.uid().to_owned(), (found.node.clone(), pod.clone()));
                }
                let now = self.begin.elapsed().as_millis() as u64;
                state.queue.park(pod.uid(), unfit.plugins(), now);
                drop(guard);
                tokio::spawn(self.clone().refuse(pod, unfit, preemption));
            }
        }
    }

    /// The pod has its node on the server too.
    pub fn bound(&self, pod: &PodInfo) {
        let mut state = self.state();
        state.scheduled += 1;
        state.queue.remove(pod.uid());
    }

    /// The pod did not get its node after all.
    pub fn unbound(&self, pod: &PodInfo, try_again: bool) {
        let now = self.now();
        {
            let mut state = self.state();
            if !state.assumed.remove(pod.uid()) {
                // The watch has shown meanwhile how it ended.
                return;
            }
            state.snapshot.remove_pod(pod.uid());
            if try_again {
                state.queue.retry(pod.uid(), now);
            } else {
                state.queue.remove(pod.uid());
            }
        }
        self.happened(Event::PodRemoved);
    }

    /// Says why there is no node, and makes room where that helps.
    async fn refuse(self: Arc<Self>, pod: Arc<PodInfo>, unfit: Unfit, preemption: Result<Preemption, String>) {
        let mut message = unfit.message();
        let nominated = match &preemption {
            Ok(found) => Some(found.node.clone()),
            Err(why) => {
                if unfit.nodes > 0 {
                    message = format!("{message} preemption: {why}");
                }
                pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.clone())
            }
        };
        self.events.send(reference(&*pod.pod), Kind::Warning, "FailedScheduling", Some("Scheduling"), message.clone());
        if let Err(failure) = self.write_refusal(&pod.pod, &message, nominated).await
            && !failure.is_not_found()
        {
            tracing::warn!("{failure}");
        }
        if let Ok(found) = preemption {
            for victim in &found.victims {
                self.remove_victim(&pod, victim, &found.node).await;
            }
        }
    }

    async fn write_refusal(
        &self,
        pod: &Pod,
        message: &str,
        nominated: Option<String>,
    ) -> Result<(), control_client::Failure> {
        let before = pods::condition(pod, "PodScheduled");
        let same = before.is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(message)
        });
        let known = pod.status.as_ref().and_then(|s| s.nominated_node_name.clone());
        if same && known == nominated {
            return Ok(());
        }
        let since = before.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("Unschedulable".to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(since.unwrap_or(Time(Timestamp::now()))),
            ..PodCondition::default()
        };
        let mut status = serde_json::json!({"conditions": [condition]});
        if known != nominated {
            status["nominatedNodeName"] = nominated.into();
        }
        self.pods.strategic(Some("status"), pod, &serde_json::json!({ "status": status })).await.map(drop)
    }

    async fn remove_victim(&self, pod: &PodInfo, victim: &PodInfo, node: &str) {
        let by = pod.uid();
        let patch = serde_json::json!({"status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{OWN_NAME}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": Time(Timestamp::now()),
        }]}});
        let marked = self.pods.strategic(Some("status"), &victim.pod, &patch).await;
        let result = match marked {
            Ok(_) => self.pods.delete(&victim.pod).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => {
                self.events.send(
                    reference(&*victim.pod),
                    Kind::Normal,
                    "Preempted",
                    Some("Preempting"),
                    format!("Preempted by pod {by} on node {node}"),
                );
            }
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => tracing::warn!("{failure}"),
        }
    }

    pub fn metrics(&self) -> String {
        let state = self.state();
        let depths = state.queue.depths();
        format!(
            "scheduler_pending_pods{{queue=\"active\"}} {}\nscheduler_pending_pods{{queue=\"backoff\"}} {}\nscheduler_pending_pods{{queue=\"unschedulable\"}} {}\nscheduler_schedule_attempts_total{{result=\"scheduled\"}} {}\nscheduler_schedule_attempts_total{{result=\"unschedulable\"}} {}\n",
            depths.active, depths.backing_off, depths.parked, state.scheduled, state.unschedulable
        )
    }
}

/// Whether the change of a node may make a pod fit.
fn matters(old: &Node, new: &Node) -> bool {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    old.spec != new.spec || old.metadata.labels != new.metadata.labels || allocatable(old) != allocatable(new)
}

fn same_images(change: &Change<Node>) -> bool {
    let Change::Updated(old, new) = change else { return false };
    let images = |n: &Node| n.status.as_ref().and_then(|s| s.images.clone());
    images(old) == images(new)
}

impl Storage for Scheduler {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.named(namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.named("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.named("", name)
    }
}
