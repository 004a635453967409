//! Why a pod does not fit a node, in the words that `kubectl describe` shows.

use std::collections::BTreeMap;

/// The part of the scheduler that said no; decides which events may change its mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plugin {
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    PodTopologySpread,
    InterPodAffinity,
    VolumeBinding,
    VolumeRestrictions,
}

/// One node's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub plugin: Plugin,
    pub reasons: Vec<String>,
    /// Whether the node could do if other pods went away.
    pub resolvable: bool,
}

impl Rejection {
    pub fn new(plugin: Plugin, reason: impl Into<String>) -> Self {
        Self { plugin, reasons: vec![reason.into()], resolvable: true }
    }

    /// One that no removal of pods changes.
    pub fn lasting(plugin: Plugin, reason: impl Into<String>) -> Self {
        Self { plugin, reasons: vec![reason.into()], resolvable: false }
    }
}

/// The sentence for all nodes: `0/3 nodes are available: 1 …, 2 ….`
pub fn summary<'a>(nodes: usize, reasons: impl Iterator<Item = &'a str>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_insert(0) += 1;
    }
    let mut texts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    if texts.is_empty() {
        return format!("0/{nodes} nodes are available");
    }
    format!("0/{nodes} nodes are available: {}.", texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_sorted() {
        let reasons = ["Insufficient cpu", "node(s) were unschedulable", "Insufficient cpu"];
        assert_eq!(
            summary(3, reasons.into_iter()),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
    }
}
