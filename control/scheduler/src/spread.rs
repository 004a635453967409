//! Topology spread: how evenly pods of a group stand over zones, hosts, or any other label.

use std::collections::HashMap;

use control_client::{owner, pods, selector, taints};
use k8s_openapi::api::core::v1::{Pod, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::node_affinity;
use crate::reason::{Plugin, Rejection};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot, add_label_keys};

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Who counts as one of the group.
#[derive(Debug)]
enum Group {
    Labels(LabelSelector),
    /// Pods of the same controller, where the pod says nothing itself.
    Controller(String),
}

#[derive(Debug)]
struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: i64,
    group: Group,
    honor_affinity: bool,
    honor_taints: bool,
    /// Matching pods by topology value.
    counts: HashMap<String, i64>,
}

impl Constraint {
    fn new(of: &TopologySpreadConstraint, pod: &Pod) -> Self {
        let mut labels = of.label_selector.clone();
        if let Some(labels) = &mut labels {
            add_label_keys(labels, of.match_label_keys.as_deref(), "In", pod);
        }
        Self {
            key: of.topology_key.clone(),
            max_skew: i64::from(of.max_skew),
            min_domains: i64::from(of.min_domains.unwrap_or(1)),
            group: match labels {
                Some(labels) => Group::Labels(labels),
                // No selector selects nothing.
                None => Group::Controller(String::new()),
            },
            honor_affinity: of.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: of.node_taints_policy.as_deref() == Some("Honor"),
            counts: HashMap::new(),
        }
    }

    fn default_for(key: &str, max_skew: i64, controller: &str) -> Self {
        Self {
            key: key.to_owned(),
            max_skew,
            min_domains: 1,
            group: Group::Controller(controller.to_owned()),
            honor_affinity: true,
            honor_taints: false,
            counts: HashMap::new(),
        }
    }

    fn has_member(&self, pod: &Pod) -> bool {
        match &self.group {
            Group::Labels(labels) => selector::matches(labels, pod.metadata.labels.as_ref()),
            Group::Controller(uid) => !uid.is_empty() && owner::is_controlled_by(&pod.metadata, uid),
        }
    }

    /// Whether pods on the node are part of the picture.
    fn sees(&self, spec: &PodSpec, node: &NodeInfo) -> bool {
        let affine = !self.honor_affinity || node_affinity::allows(spec, node);
        let taints_of = node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.as_deref());
        let tolerated = !self.honor_taints
            || taints::untolerated(
                taints_of.unwrap_or_default(),
                spec.tolerations.as_deref().unwrap_or_default(),
                &["NoSchedule", "NoExecute"],
            )
            .is_none();
        affine && tolerated
    }

    fn members_on(&self, namespace: &str, node: &NodeInfo) -> i64 {
        // A controller's pods are all in its namespace, and this looks at every pod there is.
        let anywhere = matches!(self.group, Group::Controller(_));
        let counted = |p: &&std::sync::Arc<PodInfo>| {
            (anywhere || p.namespace() == namespace) && self.has_member(&p.pod) && !pods::is_terminating(&p.pod)
        };
        node.pods.iter().filter(counted).count() as i64
    }

    fn smallest(&self) -> i64 {
        if (self.counts.len() as i64) < self.min_domains {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }
}

/// The constraints of one pod, counted over all nodes.
#[derive(Debug, Default)]
pub struct Spread {
    constraints: Vec<Constraint>,
}

impl Spread {
    /// Those that must hold.
    pub fn required(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let spec = pods::spec(&pod.pod);
        let constraints = spec
            .topology_spread_constraints
            .iter()
            .flatten()
            .filter(|c| c.when_unsatisfiable == "DoNotSchedule")
            .map(|c| Constraint::new(c, &pod.pod))
            .collect();
        Self::count(constraints, pod, &spec, snapshot)
    }

    /// Those that would be nice to hold; pods that say nothing spread over hosts and zones.
    pub fn preferred(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let spec = pods::spec(&pod.pod);
        let stated = spec.topology_spread_constraints.as_deref().unwrap_or_default();
        let constraints = if stated.is_empty() {
            match owner::controller_of(&pod.pod.metadata) {
                Some(controller) => vec![
                    Constraint::default_for(HOST, 3, &controller.uid),
                    Constraint::default_for(ZONE, 5, &controller.uid),
                ],
                None => Vec::new(),
            }
        } else {
            stated
                .iter()
                .filter(|c| c.when_unsatisfiable != "DoNotSchedule")
                .map(|c| Constraint::new(c, &pod.pod))
                .collect()
        };
        Self::count(constraints, pod, &spec, snapshot)
    }

    fn count(mut constraints: Vec<Constraint>, pod: &PodInfo, spec: &PodSpec, snapshot: &Snapshot) -> Self {
        for constraint in &mut constraints {
            for node in snapshot.nodes.iter().filter(|n| n.node.is_some()) {
                let Some(value) = node.label(&constraint.key) else { continue };
                if constraint.sees(spec, node) {
                    let members = constraint.members_on(pod.namespace(), node);
                    *constraint.counts.entry(value.to_owned()).or_insert(0) += members;
                }
            }
        }
        Self { constraints }
    }

    pub fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
        for constraint in &self.constraints {
            let Some(value) = node.label(&constraint.key) else {
                return Some(Rejection::lasting(
                    Plugin::PodTopologySpread,
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let own = i64::from(constraint.has_member(&pod.pod));
            let there = constraint.counts.get(value).copied().unwrap_or(0);
            if there + own - constraint.smallest() > constraint.max_skew {
                return Some(Rejection::new(
                    Plugin::PodTopologySpread,
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        None
    }

    /// Counts one pod on the node in (1) or out (-1).
    pub fn shift(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        for constraint in &mut self.constraints {
            let counted = other.namespace() == pod.namespace()
                && !pods::is_terminating(&other.pod)
                && constraint.has_member(&other.pod);
            let value = node.label(&constraint.key).map(str::to_owned);
            if let Some(count) = value.filter(|_| counted).and_then(|v| constraint.counts.get_mut(&v)) {
                *count += by;
            }
        }
    }

    /// Fewer members are better: the scores are turned round when they are normalised.
    pub fn scores(&self, snapshot: &Snapshot, nodes: &[usize]) -> Option<Vec<i64>> {
        if self.constraints.is_empty() {
            return None;
        }
        let score = |node: &NodeInfo| -> i64 {
            let mut sum = 0.0;
            for constraint in &self.constraints {
                let Some(value) = node.label(&constraint.key) else { continue };
                let members = constraint.counts.get(value).copied().unwrap_or(0);
                // Keys with many values weigh a little more, as upstream has it.
                let weight = (constraint.counts.len() as f64 + 2.0).ln();
                sum += members as f64 * weight + (constraint.max_skew - 1) as f64;
            }
            sum.round() as i64
        };
        Some(nodes.iter().map(|at| score(&snapshot.nodes[*at])).collect())
    }
}
