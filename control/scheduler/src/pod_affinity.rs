//! Rules about other pods: near these, away from those.
//!
//! Before the nodes are looked at one by one, the pods on all nodes are counted by topology
//! value, so that each node then costs a few look-ups.

use std::collections::HashMap;

use control_client::selector::{self, Labels};
use k8s_openapi::api::core::v1::Pod;

use crate::reason::{Plugin, Rejection};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot, Term};

/// Labels of namespaces by name, for terms that select namespaces by label.
pub type Namespaces = HashMap<String, Labels>;

type Counts = HashMap<(String, String), i64>;

fn matches(term: &Term, pod: &Pod, namespaces: &Namespaces) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let in_namespace = term.namespaces.contains(namespace)
        || term.namespace_selector.as_ref().is_some_and(|s| selector::matches(s, namespaces.get(namespace)));
    // Without a selector a term matches no pod.
    in_namespace && term.selector.as_ref().is_some_and(|s| selector::matches(s, pod.metadata.labels.as_ref()))
}

/// What the required rules come to over all nodes.
#[derive(Debug, Default)]
pub struct Required {
    /// Topology pairs that pods already there keep this pod away from.
    kept_away: Counts,
    /// Pods that match all of the pod's affinity terms, by pair.
    near: Counts,
    /// Pods that match one of its anti-affinity terms, by pair.
    apart: Counts,
    /// The pod matches its own terms, so that it may be the first of its group.
    matches_itself: bool,
}

fn count(counts: &mut Counts, node: &NodeInfo, term: &Term, by: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *counts.entry((term.topology_key.clone(), value.to_owned())).or_insert(0) += by;
    }
}

impl Required {
    pub fn new(pod: &PodInfo, snapshot: &Snapshot, namespaces: &Namespaces) -> Self {
        let mut all =
            Self { matches_itself: pod.affinity.iter().all(|t| matches(t, &pod.pod, namespaces)), ..Self::default() };
        let has_terms = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        if !has_terms && snapshot.with_anti_affinity == 0 {
            return all;
        }
        for node in &snapshot.nodes {
            for other in &node.pods {
                all.add(pod, other, node, namespaces, 1);
            }
        }
        all
    }

    /// Counts one pod in (1) or out (-1).
    pub fn add(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, namespaces: &Namespaces, by: i64) {
        for term in &other.anti_affinity {
            if matches(term, &pod.pod, namespaces) {
                count(&mut self.kept_away, node, term, by);
            }
        }
        if !pod.affinity.is_empty() && pod.affinity.iter().all(|t| matches(t, &other.pod, namespaces)) {
            for term in &pod.affinity {
                count(&mut self.near, node, term, by);
            }
        }
        for term in &pod.anti_affinity {
            if matches(term, &other.pod, namespaces) {
                count(&mut self.apart, node, term, by);
            }
        }
    }

    pub fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
        let has = |counts: &Counts, key: &str| {
            node.label(key).is_some_and(|v| counts.get(&(key.to_owned(), v.to_owned())).is_some_and(|c| *c > 0))
        };
        if !self.near_enough(pod, node, has) {
            return Some(Rejection::lasting(Plugin::InterPodAffinity, "node(s) didn't match pod affinity rules"));
        }
        if pod.anti_affinity.iter().any(|t| has(&self.apart, &t.topology_key)) {
            return Some(Rejection::new(Plugin::InterPodAffinity, "node(s) didn't match pod anti-affinity rules"));
        }
        let kept = self.kept_away.iter().any(|((key, value), n)| *n > 0 && node.label(key) == Some(value));
        kept.then(|| {
            Rejection::new(Plugin::InterPodAffinity, "node(s) didn't satisfy existing pods anti-affinity rules")
        })
    }

    fn near_enough(&self, pod: &PodInfo, node: &NodeInfo, has: impl Fn(&Counts, &str) -> bool) -> bool {
        if pod.affinity.is_empty() {
            return true;
        }
        if pod.affinity.iter().any(|t| node.label(&t.topology_key).is_none()) {
            return false;
        }
        if pod.affinity.iter().all(|t| has(&self.near, &t.topology_key)) {
            return true;
        }
        // The first pod of a group that wants to be together has nobody to be near to.
        self.near.values().all(|n| *n == 0) && self.matches_itself
    }
}

/// The score of each node by preferred rules, of the pod and of those already there.
pub fn scores(pod: &PodInfo, snapshot: &Snapshot, namespaces: &Namespaces, nodes: &[usize]) -> Option<Vec<i64>> {
    let prefers = !pod.preferred_affinity.is_empty() || !pod.preferred_anti_affinity.is_empty();
    if !prefers && snapshot.with_affinity == 0 {
        return None;
    }
    /// Weight of a required affinity of a pod that is already there.
    const REQUIRED_WEIGHT: i64 = 1;
    let mut counts = Counts::new();
    for node in &snapshot.nodes {
        for other in &node.pods {
            for (weight, term) in &pod.preferred_affinity {
                if matches(term, &other.pod, namespaces) {
                    count(&mut counts, node, term, *weight);
                }
            }
            for (weight, term) in &pod.preferred_anti_affinity {
                if matches(term, &other.pod, namespaces) {
                    count(&mut counts, node, term, -weight);
                }
            }
            for term in other.affinity.iter().filter(|t| matches(t, &pod.pod, namespaces)) {
                count(&mut counts, node, term, REQUIRED_WEIGHT);
            }
            for (weight, term) in other.preferred_affinity.iter().filter(|(_, t)| matches(t, &pod.pod, namespaces)) {
                count(&mut counts, node, term, *weight);
            }
            for (weight, term) in other.preferred_anti_affinity.iter().filter(|(_, t)| matches(t, &pod.pod, namespaces))
            {
                count(&mut counts, node, term, -weight);
            }
        }
    }
    let score = |node: &NodeInfo| {
        counts.iter().filter(|((key, value), _)| node.label(key) == Some(value)).map(|(_, n)| n).sum::<i64>()
    };
    Some(nodes.iter().map(|at| score(&snapshot.nodes[*at])).collect())
}
