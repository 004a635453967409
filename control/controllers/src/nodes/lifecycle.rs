//! Says which nodes are sick: conditions Unknown after silence, and the taints that follow from conditions.
//!
//! A node lives as long as its Lease or its Ready condition moves. How long it has been
//! silent is measured by this process's own clock from the last move it saw, so that a node
//! with a wrong clock is not thought dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control_client::{Queue, pods};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tokio::time::Instant;

use crate::context::Context;
use crate::load_balancers::CONTROL_PLANE;
use crate::runner::{self, Outcome, Worked};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// A node that never reported has this long from its creation.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const PERIOD: Duration = Duration::from_secs(5);
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Condition, the status that taints, the taint.
const CONDITION_TAINTS: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// The last sign of life seen from a node, and when.
struct Beat {
    sign: (Option<MicroTime>, Option<Time>),
    seen: Instant,
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The conditions of a node that has been silent too long; none where nothing changes.
fn plan_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut all = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut changed = false;
    for kind in CONDITIONS {
        match all.iter_mut().find(|c| c.type_ == kind) {
            None => {
                changed = true;
                all.push(NodeCondition {
                    type_: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
            }
            Some(condition) if condition.status != "Unknown" => {
                changed = true;
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
    changed.then_some(all)
}

/// Whether pods may be driven from sick nodes. Where no worker at all is ready, it is this master that is cut off: it hears
/// of itself always.
fn may_evict<N: std::borrow::Borrow<Node>>(nodes: &[N]) -> bool {
    let is_master =
        |node: &Node| node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(CONTROL_PLANE));
    nodes.iter().map(std::borrow::Borrow::borrow).any(|node| !is_master(node) && readiness(node) == "True")
}

/// All taints that the node should have; `evict` says whether pods may be driven from sick nodes.
fn plan_taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("True") => {}
        // It never reported: what admission gave it at its creation stays, until its time to report is over.
        None => wanted.push((NOT_READY, "NoSchedule")),
        Some("False") => {
            wanted.push((NOT_READY, "NoSchedule"));
            if evict {
                wanted.push((NOT_READY, "NoExecute"));
            }
        }
        Some(_) => {
            wanted.push((UNREACHABLE, "NoSchedule"));
            if evict {
                wanted.push((UNREACHABLE, "NoExecute"));
            }
        }
    }
    for (kind, key) in CONDITION_TAINTS {
        if condition(node, kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| {
        t.key == NOT_READY
            || t.key == UNREACHABLE
            || t.key == UNSCHEDULABLE
            || CONDITION_TAINTS.iter().any(|(_, key)| *key == t.key)
    };
    let mut taints: Vec<Taint> =
        present.iter().filter(|t| !ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str()))).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != present).then_some(taints)
}

struct Monitor {
    context: Arc<Context>,
    beats: Mutex<HashMap<String, Beat>>,
}

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<String>::default());
    let caches = &context.caches;
    caches.nodes.subscribe({
        let (queue, events) = (queue.clone(), context.events.clone());
        move |change| {
            if let control_client::Change::Added(node) = change
                && node
                    .metadata
                    .creation_timestamp
                    .as_ref()
                    .is_some_and(|t| Timestamp::now().duration_since(t.0).as_secs() < 30)
            {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                events.normal(
                    &**node,
                    "RegisteredNode",
                    format!("Node {name} event: Registered Node {name} in Controller"),
                );
            }
            queue.add(change.object().metadata.name.clone().unwrap_or_default());
        }
    });
    runner::every(PERIOD, {
        let (queue, context) = (queue.clone(), context.clone());
        move || context.caches.nodes.keys().into_iter().for_each(|key| queue.add(key.name))
    });
    let monitor = Arc::new(Monitor { context: context.clone(), beats: Mutex::new(HashMap::new()) });
    runner::run("nodelifecycle", &queue, 1, move |name| {
        let monitor = monitor.clone();
        async move { monitor.work(&name).await }
    });
}

impl Monitor {
    /// How long the node has shown no sign of life.
    fn silence(&self, node: &Node) -> Duration {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let lease = self.context.caches.node_leases.named("kube-node-lease", name);
        let renewed = lease.and_then(|l| l.spec.as_ref().and_then(|s| s.renew_time.clone()));
        let heartbeat = condition(node, "Ready")
            // The transition to Unknown is ours, not the node's.
            .and_then(|c| c.last_heartbeat_time.clone());
        let sign = (renewed, heartbeat);
        let now = Instant::now();
        let mut beats = self.beats.lock().unwrap_or_else(|e| e.into_inner());
        let beat = beats.entry(name.to_owned()).or_insert_with(|| Beat { sign: sign.clone(), seen: now });
        if beat.sign != sign {
            *beat = Beat { sign, seen: now };
        }
        now - beat.seen
    }

    async fn work(&self, name: &str) -> Worked {
        let context = &self.context;
        let Some(mut node) = context.caches.nodes.named("", name) else {
            self.beats.lock().unwrap_or_else(|e| e.into_inner()).remove(name);
            return Ok(Outcome::Done);
        };
        let grace = match condition(&node, "Ready") {
            Some(_) => Duration::from_secs(context.settings.node_monitor_grace_period),
            None => STARTUP_GRACE,
        };
        if self.silence(&node) > grace
            && let Some(conditions) = plan_conditions(&node, Timestamp::now())
        {
            tracing::warn!("node {name} has been silent for more than {} s", grace.as_secs());
            context.events.normal(&*node, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
            let patch =
                serde_json::json!({"status": NodeStatus { conditions: Some(conditions), ..NodeStatus::default() }});
            node = context.caches.nodes.strategic(Some("status"), &node, &patch).await?;
        }
        let evict = may_evict(&context.caches.nodes.list());
        if let Some(taints) = plan_taints(&node, evict, Timestamp::now()) {
            let patch = serde_json::json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": Some(taints).filter(|t| !t.is_empty())},
            });
            context.caches.nodes.merge(None, &node, &patch).await?;
        }
        if readiness(&node) != "True" {
            self.mark_pods(name).await?;
        }
        Ok(Outcome::Done)
    }

    /// Pods on a node that is not ready are not ready either, so that services leave them out.
    async fn mark_pods(&self, node: &str) -> anyhow::Result<()> {
        for pod in self.context.caches.pods.list() {
            if pods::node_name(&pod) != node || !pods::is_ready(&pod) {
                continue;
            }
            let now = Time(Timestamp::now());
            let patch = serde_json::json!({"status": {"conditions": [
                {"type": "Ready", "status": "False", "reason": "NodeNotReady", "lastTransitionTime": now},
            ]}});
            match self.context.caches.pods.strategic(Some("status"), &pod as &Pod, &patch).await {
                Ok(_) => self.context.events.warning(&*pod, "NodeNotReady", "Node is not ready"),
                Err(failure) if failure.is_not_found() => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: &[(&str, &str)]) -> Node {
        let ready = NodeCondition { type_: "Ready".into(), status: ready.into(), ..NodeCondition::default() };
        let status = NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() };
        let mut node = Node { status: Some(status), ..Node::default() };
        node.spec.get_or_insert_default().taints = Some(
            taints
                .iter()
                .map(|(key, effect)| Taint { key: (*key).into(), effect: (*effect).into(), ..Taint::default() })
                .collect(),
        );
        node
    }

    #[test]
    fn taints_follow_readiness_and_foreign_ones_stay() {
        // Readiness, the taints there, whether pods are evicted, the taints wanted.
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool, Option<&'a [(&'a str, &'a str)]>);
        let cases: [Case<'_>; 5] = [
            ("True", &[("a", "NoSchedule")], true, None),
            ("True", &[("a", "NoSchedule"), (NOT_READY, "NoExecute")], true, Some(&[("a", "NoSchedule")])),
            ("False", &[], true, Some(&[(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")])),
            (
                "Unknown",
                &[(NOT_READY, "NoSchedule")],
                true,
                Some(&[(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
            ),
            ("Unknown", &[], false, Some(&[(UNREACHABLE, "NoSchedule")])),
        ];
        for (ready, present, evict, wanted) in cases {
            let got = plan_taints(&node(ready, present), evict, Timestamp::UNIX_EPOCH);
            let got = got.map(|all| all.into_iter().map(|t| (t.key, t.effect)).collect::<Vec<_>>());
            let wanted =
                wanted.map(|all| all.iter().map(|(k, e)| ((*k).to_owned(), (*e).to_owned())).collect::<Vec<_>>());
            assert_eq!(got, wanted, "{ready} {present:?}");
        }
    }

    #[test]
    fn a_master_that_hears_of_no_worker_is_cut_off() {
        let mut master = node("True", &[]);
        master.metadata.labels = Some([(CONTROL_PLANE.to_owned(), String::new())].into());
        let cases = [(vec!["Unknown", "False"], false), (vec!["Unknown", "True"], true), (vec![], false)];
        for (workers, evict) in cases {
            let nodes: Vec<Node> =
                std::iter::once(master.clone()).chain(workers.iter().map(|ready| node(ready, &[]))).collect();
            assert_eq!(may_evict(&nodes), evict, "{workers:?}");
        }
    }

    #[test]
    fn a_node_that_never_reported_is_not_ready_first_and_unreachable_after_its_time() {
        let keys = |node: &Node| {
            plan_taints(node, true, Timestamp::UNIX_EPOCH)
                .map(|all| all.into_iter().map(|t| (t.key, t.effect)).collect::<Vec<_>>())
        };
        let taint = |key: &str, effect: &str| (key.to_owned(), effect.to_owned());
        let mut new = node("True", &[(NOT_READY, "NoSchedule")]);
        new.status = None;
        assert_eq!(keys(&new), None, "admission's taint is all that it has");
        let conditions = plan_conditions(&new, Timestamp::UNIX_EPOCH).unwrap();
        assert!(conditions.iter().all(|c| c.reason.as_deref() == Some("NodeStatusNeverUpdated")));
        new.status.get_or_insert_default().conditions = Some(conditions);
        assert_eq!(keys(&new), Some(vec![taint(UNREACHABLE, "NoSchedule"), taint(UNREACHABLE, "NoExecute")]));
    }

    #[test]
    fn silence_makes_all_conditions_unknown_once() {
        let mut silent = node("True", &[]);
        let conditions = plan_conditions(&silent, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(conditions.len(), CONDITIONS.len());
        assert!(conditions.iter().all(|c| c.status == "Unknown"));
        silent.status.as_mut().unwrap().conditions = Some(conditions);
        assert!(plan_conditions(&silent, Timestamp::UNIX_EPOCH).is_none());
    }
}
