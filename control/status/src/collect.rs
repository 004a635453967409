//! What the page shows, asked of the API server and the kubelets when somebody looks; nothing is followed in between, so
//! that a page that nobody looks at costs nothing.
//!
//! Read only, as the user `kimg:status`, whose rights `images/manifests/15-status.yaml` gives. Of what comes, the few
//! fields that are shown are kept, and no more of anything than a page holds.

use crate::kubelet::Kubelets;
use http::Request;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Objects that are asked for at a time.
const PAGE: usize = 250;
/// So many objects of a kind are looked at.
const MOST_OBJECTS: usize = 10_000;
/// Rows of pods and of events on the page.
const MOST_PODS: usize = 300;
const MOST_EVENTS: usize = 60;

/// The whole picture.
#[derive(Debug, Default)]
pub struct Picture {
    /// When it was taken.
    pub at: Timestamp,
    /// The API server's version.
    pub version: String,
    /// The nodes by name.
    pub nodes: Vec<Node>,
    /// The roll under way, or the last one.
    pub roll: Option<Roll>,
    /// All pods that were counted.
    pub pods_in_all: usize,
    /// How many of them are as they should be.
    pub pods_well: usize,
    /// Those that are shown: what is not as it should be first.
    pub pods: Vec<Pod>,
    /// Certificates of all nodes, what ends first at the top.
    pub certificates: Vec<Certificate>,
    /// The newest events.
    pub events: Vec<Event>,
    /// What could not be read, and why.
    pub faults: Vec<String>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// It runs the control plane.
    pub master: bool,
    /// Condition Ready is True.
    pub ready: bool,
    /// It takes no new pods.
    pub cordoned: bool,
    /// What is wrong, in one line.
    pub why: String,
    /// InternalIP.
    pub address: String,
    /// Image.
    pub image: String,
    /// Kubelet and kernel.
    pub versions: String,
    /// The boot that it reports from.
    pub boot: String,
    /// Since when it is there.
    pub since: Option<Timestamp>,
}

/// A roll, as its journal has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Roll {
    /// When it began.
    pub started: Option<Timestamp>,
    /// It goes back to the images of before.
    pub back: bool,
    /// How it stands.
    pub outcome: String,
    /// Its nodes.
    pub nodes: Vec<RollNode>,
}

/// A node of a roll.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollNode {
    /// Its name.
    pub node: String,
    /// The image that it had.
    pub from: String,
    /// The one that it gets; empty: it leaves.
    pub to: String,
    /// How far it is.
    pub step: String,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Why it was skipped or failed.
    pub why: Option<String>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// As kubectl shows it.
    pub state: String,
    /// Containers that are ready, and all.
    pub ready: (usize, usize),
    /// Restarts of its containers.
    pub restarts: u64,
    /// It is as it should be.
    pub well: bool,
    /// Since when it is there.
    pub since: Option<Timestamp>,
}

/// A certificate of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose.
    pub node: String,
    /// Which.
    pub name: String,
    /// When it ends.
    pub until: Timestamp,
}

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// When it was seen last.
    pub at: Option<Timestamp>,
    /// It is a warning.
    pub warning: bool,
    /// Why, in a word.
    pub reason: String,
    /// About what.
    pub object: String,
    /// What happened.
    pub message: String,
    /// How often.
    pub count: u64,
}

/// Looks. What cannot be read is a fault in the picture, and the rest of it is there.
pub async fn picture(client: &kube::Client, kubelets: &Kubelets) -> Picture {
    let mut picture = Picture { at: Timestamp::now(), ..Picture::default() };
    match get::<Version>(client, "/version").await {
        Ok(version) => picture.version = version.git_version,
        Err(why) => {
            // Nothing else will answer.
            picture.faults.push(format!("The API server does not answer: {why}"));
            return picture;
        }
    }
    let faults = &mut picture.faults;
    let mut nodes = Vec::new();
    note(faults, "the nodes", each(client, "/api/v1/nodes", |node: NodeObject| nodes.push(node.row())).await);
    nodes.sort_by(|a, b| b.master.cmp(&a.master).then_with(|| a.name.cmp(&b.name)));
    match get::<ConfigMap>(client, "/api/v1/namespaces/kube-system/configmaps/kimg-roll").await {
        Ok(map) => match serde_json::from_str(map.data.get("journal").map_or("", String::as_str)) {
            Ok(roll) => picture.roll = Some(roll),
            Err(error) => faults.push(format!("The roll's journal is not as kimg writes it: {error}")),
        },
        Err(why) if why.not_found => {}
        Err(why) => faults.push(format!("The roll's journal could not be read: {why}")),
    }
    let (mut pods, mut well) = (Vec::new(), 0);
    let keep = |pod: PodObject| {
        let row = pod.row();
        well += usize::from(row.well);
        pods.push(row);
    };
    note(faults, "the pods", each(client, "/api/v1/pods", keep).await);
    (picture.pods_in_all, picture.pods_well) = (pods.len(), well);
    pods.sort_by(|a: &Pod, b: &Pod| a.well.cmp(&b.well).then_with(|| a.name.cmp(&b.name)));
    pods.truncate(MOST_PODS);
    picture.pods = pods;
    let mut events = Vec::new();
    let keep = |event: EventObject| {
        events.push(event.row());
        // No more than are shown are kept for longer than this.
        if events.len() > 10 * MOST_EVENTS {
            newest(&mut events);
        }
    };
    note(faults, "the events", each(client, "/api/v1/events", keep).await);
    newest(&mut events);
    picture.events = events;
    let (certificates, silent) = kubelets.certificates(&nodes).await;
    picture.certificates = certificates;
    faults.extend(silent);
    picture.nodes = nodes;
    picture
}

fn newest(events: &mut Vec<Event>) {
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    events.truncate(MOST_EVENTS);
}

fn note(faults: &mut Vec<String>, what: &str, read: Result<(), Failure>) {
    if let Err(why) = read {
        faults.push(format!("Not all of {what} could be read: {why}"));
    }
}

/// Why something could not be read.
#[derive(Debug)]
struct Failure {
    not_found: bool,
    why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

async fn get<T: DeserializeOwned>(client: &kube::Client, path: &str) -> Result<T, Failure> {
    let failed = |why: String| Failure { not_found: false, why };
    let request = Request::get(path).body(Vec::new()).map_err(|error| failed(error.to_string()))?;
    client.request(request).await.map_err(|error| match error {
        kube::Error::Api(status) => Failure { not_found: status.code == 404, why: status.message },
        other => failed(other.to_string()),
    })
}

async fn each<T: DeserializeOwned>(client: &kube::Client, path: &str, mut keep: impl FnMut(T)) -> Result<(), Failure> {
    let mut next = String::new();
    for _ in 0..MOST_OBJECTS / PAGE {
        // The API server's own word for where it goes on is base64 for URLs.
        let list: List<T> = get(client, &format!("{path}?limit={PAGE}&continue={next}")).await?;
        list.items.into_iter().flatten().for_each(&mut keep);
        next = list.metadata.next;
        if next.is_empty() {
            return Ok(());
        }
    }
    Err(Failure { not_found: false, why: format!("there are more than {MOST_OBJECTS}") })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeObject {
    metadata: Meta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    unschedulable: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    conditions: Vec<Condition>,
    addresses: Vec<Address>,
    node_info: NodeInfo,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    r#type: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeInfo {
    os_image: String,
    kubelet_version: String,
    kernel_version: String,
    #[serde(rename = "bootID")]
    boot_id: String,
}

impl NodeObject {
    fn row(self) -> Node {
        let is_true = |name: &str| self.status.conditions.iter().any(|c| c.r#type == name && c.status == "True");
        let ready = is_true("Ready");
        // Of the other conditions, it is good when they do not hold.
        let wrong = self.status.conditions.iter().filter(|c| match c.r#type.as_str() {
            "Ready" => !ready,
            _ => c.status == "True",
        });
        let wrong: Vec<String> = wrong.map(|c| format!("{}: {}", c.r#type, c.message)).collect();
        let info = self.status.node_info;
        let internal = self.status.addresses.into_iter().find(|address| address.r#type == "InternalIP");
        Node {
            master: self.metadata.labels.contains_key("node-role.kubernetes.io/control-plane"),
            name: self.metadata.name,
            ready,
            cordoned: self.spec.unschedulable,
            why: wrong.join("; "),
            address: internal.map(|address| address.address).unwrap_or_default(),
            image: info.os_image,
            versions: format!("{}, Linux {}", info.kubelet_version, info.kernel_version),
            boot: info.boot_id,
            since: self.metadata.creation_timestamp,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodObject {
    metadata: Meta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    containers: Vec<Ignored>,
}

/// Counted, and not looked at.
#[derive(Default, Deserialize)]
struct Ignored {}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    reason: String,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    ready: bool,
    restart_count: u64,
    state: ContainerState,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Reason>,
    terminated: Option<Reason>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reason {
    reason: String,
}

impl PodObject {
    fn row(self) -> Pod {
        let status = self.status;
        let ready = status.container_statuses.iter().filter(|c| c.ready).count();
        let all = self.spec.containers.len();
        let stuck = status.container_statuses.iter().find_map(|c| {
            let reason = c.state.waiting.as_ref().or(c.state.terminated.as_ref())?;
            (!reason.reason.is_empty()).then(|| reason.reason.clone())
        });
        let ended = status.phase == "Succeeded";
        let well = ended || (status.phase == "Running" && ready == all && self.metadata.deletion_timestamp.is_none());
        let state = if self.metadata.deletion_timestamp.is_some() {
            "Terminating".to_owned()
        } else if !status.reason.is_empty() {
            status.reason
        } else if ended {
            "Completed".to_owned()
        } else {
            stuck.unwrap_or(status.phase)
        };
        Pod {
            name: format!("{}/{}", self.metadata.namespace, self.metadata.name),
            node: self.spec.node_name,
            state,
            ready: (ready, all),
            restarts: status.container_statuses.iter().map(|c| c.restart_count).fold(0, u64::saturating_add),
            well,
            since: self.metadata.creation_timestamp,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventObject {
    metadata: Meta,
    r#type: String,
    reason: String,
    message: String,
    count: Option<u64>,
    last_timestamp: Option<Timestamp>,
    event_time: Option<Timestamp>,
    series: Option<Series>,
    involved_object: Involved,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Series {
    count: u64,
    last_observed_time: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Involved {
    kind: String,
    namespace: String,
    name: String,
}

impl EventObject {
    fn row(self) -> Event {
        let of = self.involved_object;
        let place = if of.namespace.is_empty() { String::new() } else { format!("{}/", of.namespace) };
        let series = self.series.unwrap_or_default();
        let times = [series.last_observed_time, self.last_timestamp, self.event_time, self.metadata.creation_timestamp];
        Event {
            at: times.into_iter().flatten().next(),
            warning: self.r#type == "Warning",
            reason: self.reason,
            object: format!("{} {place}{}", of.kind, of.name),
            // As much as one line holds; a picture is kept for a while.
            message: self.message.chars().take(300).collect(),
            count: self.count.unwrap_or(1).max(series.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read<T: DeserializeOwned>(object: Value) -> T {
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn pods_are_called_as_kubectl_calls_them() {
        let pod = |metadata: Value, status: Value| {
            read::<PodObject>(json!({"metadata": metadata, "spec": {"containers": [{"name": "c"}]}, "status": status}))
                .row()
        };
        let waiting = json!({"phase": "Running", "containerStatuses": [
            {"ready": false, "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        let running = json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]});
        let ends = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (metadata, status, state, well) in [
            (json!({}), waiting, "CrashLoopBackOff", false),
            (json!({}), running.clone(), "Running", true),
            (ends, running, "Terminating", false),
            (json!({}), json!({"phase": "Pending"}), "Pending", false),
            (json!({}), json!({"phase": "Failed", "reason": "Evicted"}), "Evicted", false),
            (json!({}), json!({"phase": "Succeeded"}), "Completed", true),
        ] {
            let row = pod(metadata, status);
            assert_eq!((row.state.as_str(), row.well), (state, well));
        }
    }

    #[test]
    fn a_node_says_what_is_wrong_with_it() {
        let node = |conditions: Value| {
            read::<NodeObject>(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}})).row()
        };
        let full = json!([{"type": "Ready", "status": "True", "message": "fine"},
            {"type": "DiskPressure", "status": "True", "message": "the disk is full"}, {"type": "PIDPressure", "status": "False"}]);
        assert_eq!(node(full).why, "DiskPressure: the disk is full");
        let away = node(json!([{"type": "Ready", "status": "Unknown", "message": "stopped posting"}]));
        assert_eq!((away.ready, away.why.as_str()), (false, "Ready: stopped posting"));
        assert!(!node(json!([])).ready);
    }

    #[test]
    fn the_newest_events_are_kept() {
        let event = |n: i64| {
            read::<EventObject>(json!({"lastTimestamp": Timestamp::from_second(n).unwrap().to_string(), "count": null,
                "eventTime": null, "involvedObject": {"kind": "Pod", "namespace": "a", "name": "b"}}))
            .row()
        };
        let mut events: Vec<Event> = (0..500).map(event).collect();
        newest(&mut events);
        assert_eq!((events.len(), events[0].at), (MOST_EVENTS, Timestamp::from_second(499).ok()));
        assert_eq!((events[0].object.as_str(), events[0].count), ("Pod a/b", 1));
    }
}
