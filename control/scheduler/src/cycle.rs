//! The scheduling cycle: filter all nodes, score those that remain, choose one. No I/O, no clock.

use std::collections::BTreeSet;

use control_client::{pods, taints};
use k8s_openapi::api::core::v1::{PodSpec, Taint};

use crate::node_affinity;
use crate::pod_affinity::{self, Namespaces, Required};
use crate::reason::{Plugin, Rejection, summary};
use crate::resources::Resources;
use crate::score;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::spread::Spread;
use crate::volumes::Needs;

/// With fewer nodes than this all are looked at.
const MIN_FEASIBLE: usize = 100;

/// Why no node was chosen.
#[derive(Debug)]
pub struct Unfit {
    pub nodes: usize,
    /// Each node's answer, by its place in the snapshot.
    pub rejections: Vec<(usize, Rejection)>,
    /// Something about the pod itself, whatever the nodes.
    pub whole: Option<Rejection>,
}

impl Unfit {
    pub fn message(&self) -> String {
        match &self.whole {
            Some(whole) => {
                format!("0/{} nodes are available: {}.", self.nodes, whole.reasons.join(", "))
            }
            None => summary(self.nodes, self.rejections.iter().flat_map(|(_, r)| r.reasons.iter().map(String::as_str))),
        }
    }

    pub fn plugins(&self) -> BTreeSet<Plugin> {
        self.whole.iter().map(|r| r.plugin).chain(self.rejections.iter().map(|(_, r)| r.plugin)).collect()
    }
}

/// What of the cluster one cycle looks at.
pub struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub namespaces: &'a Namespaces,
    /// Pods that were promised a node by preemption, with the node's name.
    pub nominated: &'a [(String, std::sync::Arc<PodInfo>)],
}

/// Everything about the pod that is the same for all nodes.
pub struct Prepared<'a> {
    pub pod: &'a PodInfo,
    pub spec: PodSpec,
    pub required: Required,
    pub spread: Spread,
    pub needs: &'a Needs,
}

impl<'a> Prepared<'a> {
    pub fn new(pod: &'a PodInfo, view: &View<'_>, needs: &'a Needs) -> Self {
        Self {
            spec: pods::spec(&pod.pod).into_owned(),
            required: Required::new(pod, view.snapshot, view.namespaces),
            spread: Spread::required(pod, view.snapshot),
            pod,
            needs,
        }
    }
}

/// How many nodes that fit are enough to choose from: all of few, a part of many.
fn enough(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE {
        return nodes;
    }
    let percent = (50 - nodes as i64 / 125).max(5) as usize;
    (nodes * percent / 100).max(MIN_FEASIBLE)
}

/// Chooses a node for the pod; `start` moves on from cycle to cycle, so that all nodes get their turn.
pub fn choose(pod: &PodInfo, view: &View<'_>, needs: &Needs, start: &mut usize) -> Result<usize, Unfit> {
    let snapshot = view.snapshot;
    let nodes = snapshot.node_count();
    let mut unfit = Unfit { nodes, rejections: Vec::new(), whole: needs.refusal.clone() };
    if unfit.whole.is_some() || nodes == 0 {
        return Err(unfit);
    }
    let prepared = Prepared::new(pod, view, needs);
    let mut feasible = Vec::new();
    let wanted = enough(nodes);
    let total = snapshot.nodes.len();
    let mut looked = 0;
    for step in 0..total {
        let at = (*start + step) % total;
        let node = &snapshot.nodes[at];
        if node.node.is_none() {
            continue;
        }
        looked = step + 1;
        match filter_with_nominated(&prepared, node, view) {
            None => feasible.push(at),
            Some(rejection) => unfit.rejections.push((at, rejection)),
        }
        if feasible.len() >= wanted {
            break;
        }
    }
    *start = (*start + looked) % total.max(1);
    match feasible.len() {
        0 => Err(unfit),
        1 => Ok(feasible[0]),
        _ => Ok(score::best(&prepared, view, &feasible)),
    }
}

/// A node must do with and without the pods that were promised room on it.
fn filter_with_nominated(prepared: &Prepared<'_>, node: &NodeInfo, view: &View<'_>) -> Option<Rejection> {
    let promised: Vec<_> = view
        .nominated
        .iter()
        .filter(|(name, other)| {
            *name == node.name && other.priority >= prepared.pod.priority && other.uid() != prepared.pod.uid()
        })
        .collect();
    if promised.is_empty() {
        return filter(prepared, node);
    }
    let mut full = node.clone();
    for (_, other) in promised {
        full.add(other.clone());
    }
    fit(prepared.pod, &full).or_else(|| filter(prepared, node))
}

/// Whether the pod may be on the node as it is.
pub fn filter(prepared: &Prepared<'_>, node: &NodeInfo) -> Option<Rejection> {
    let (pod, spec) = (prepared.pod, &prepared.spec);
    unschedulable(spec, node)
        .or_else(|| node_name(spec, node))
        .or_else(|| tainted(spec, node))
        .or_else(|| {
            (!node_affinity::allows(spec, node))
                .then(|| Rejection::lasting(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"))
        })
        .or_else(|| ports(pod, node))
        .or_else(|| fit(pod, node))
        .or_else(|| prepared.needs.filter(node))
        .or_else(|| prepared.spread.filter(pod, node))
        .or_else(|| prepared.required.filter(pod, node))
}

fn unschedulable(spec: &PodSpec, node: &NodeInfo) -> Option<Rejection> {
    let marked = node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.unschedulable) == Some(true);
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    (marked && !taints::is_tolerated(&taint, spec.tolerations.as_deref().unwrap_or_default()))
        .then(|| Rejection::lasting(Plugin::NodeUnschedulable, "node(s) were unschedulable"))
}

fn node_name(spec: &PodSpec, node: &NodeInfo) -> Option<Rejection> {
    let wanted = spec.node_name.as_deref().unwrap_or_default();
    (!wanted.is_empty() && wanted != node.name)
        .then(|| Rejection::lasting(Plugin::NodeName, "node(s) didn't match the requested node name"))
}

fn tainted(spec: &PodSpec, node: &NodeInfo) -> Option<Rejection> {
    let all = node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taint = taints::untolerated(all, tolerations, &["NoSchedule", "NoExecute"])?;
    Some(Rejection::lasting(
        Plugin::TaintToleration,
        format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value.as_deref().unwrap_or_default()),
    ))
}

fn ports(pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
    if pod.host_ports.is_empty() {
        return None;
    }
    let clash = |a: &crate::snapshot::HostPort, b: &crate::snapshot::HostPort| {
        let any = |x: &str| x == "0.0.0.0" || x == "::";
        a.2 == b.2 && a.1 == b.1 && (a.0 == b.0 || any(&a.0) || any(&b.0))
    };
    let taken = node.pods.iter().flat_map(|p| &p.host_ports).any(|used| pod.host_ports.iter().any(|w| clash(w, used)));
    taken.then(|| Rejection::new(Plugin::NodePorts, "node(s) didn't have free ports for the requested pod ports"))
}

/// Whether the node has room.
pub fn fit(pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
    let (wanted, has, used): (&Resources, &Resources, &Resources) = (&pod.requests, &node.allocatable, &node.requested);
    let mut reasons = Vec::new();
    // What the whole empty node would not have, no removal of pods brings.
    let mut resolvable = true;
    if node.pods.len() as i64 + 1 > has.pods {
        reasons.push("Too many pods".to_owned());
        resolvable &= has.pods > 0;
    }
    let mut check = |name: &str, wanted: i64, has: i64, used: i64| {
        if wanted > 0 && wanted > has - used {
            reasons.push(format!("Insufficient {name}"));
            resolvable &= wanted <= has;
        }
    };
    check("cpu", wanted.cpu_milli, has.cpu_milli, used.cpu_milli);
    check("memory", wanted.memory, has.memory, used.memory);
    check("ephemeral-storage", wanted.ephemeral, has.ephemeral, used.ephemeral);
    for (name, amount) in &wanted.others {
        let of = |list: &Resources| list.others.get(name).copied().unwrap_or(0);
        check(name, *amount, of(has), of(used));
    }
    (!reasons.is_empty()).then_some(Rejection { plugin: Plugin::NodeResourcesFit, reasons, resolvable })
}

/// Scores by preferred rules about other pods, for the scorer.
pub fn pod_affinity_scores(prepared: &Prepared<'_>, view: &View<'_>, nodes: &[usize]) -> Option<Vec<i64>> {
    pod_affinity::scores(prepared.pod, view.snapshot, view.namespaces, nodes)
}
