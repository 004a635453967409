//! Which of the nodes that fit is the best: each plugin gives 0 to 100, weighted as upstream does.

use control_client::taints;
use k8s_openapi::api::core::v1::PodSpec;

use crate::cycle::{self, Prepared, View};
use crate::node_affinity;
use crate::snapshot::{NodeInfo, PodInfo};
use crate::spread::Spread;

const MOST: i64 = 100;
const TAINTS: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const POD_AFFINITY: i64 = 2;
const FIT: i64 = 1;
const BALANCE: i64 = 1;
const IMAGES: i64 = 1;

/// Sizes between which an image's presence counts.
const SMALL_IMAGE: i64 = 23 << 20;
const LARGE_IMAGE: i64 = 1000 << 20;

/// The place in the snapshot of the best node.
pub fn best(prepared: &Prepared<'_>, view: &View<'_>, nodes: &[usize]) -> usize {
    let node = |at: &usize| &view.snapshot.nodes[*at];
    let mut totals: Vec<i64> = nodes
        .iter()
        .map(|at| {
            FIT * least_allocated(prepared.pod, node(at))
                + BALANCE * balanced(prepared.pod, node(at))
                + IMAGES * images(&prepared.spec, node(at), view)
        })
        .collect();
    let mut add = |scores: Vec<i64>, weight: i64, reverse: bool| {
        for (total, score) in totals.iter_mut().zip(normalise(&scores, reverse)) {
            *total += weight * score;
        }
    };
    add(nodes.iter().map(|at| soft_taints(&prepared.spec, node(at))).collect(), TAINTS, true);
    add(nodes.iter().map(|at| node_affinity::preference(&prepared.spec, node(at))).collect(), NODE_AFFINITY, false);
    if let Some(scores) = Spread::preferred(prepared.pod, view.snapshot).scores(view.snapshot, nodes) {
        add(between(&scores, true), SPREAD, false);
    }
    if let Some(scores) = cycle::pod_affinity_scores(prepared, view, nodes) {
        add(between(&scores, false), POD_AFFINITY, false);
    }
    // Of equals the first: the search starts at another node each time.
    let mut chosen = 0;
    for at in 1..totals.len() {
        if totals[at] > totals[chosen] {
            chosen = at;
        }
    }
    nodes[chosen]
}

/// To 0..100 by the largest; reversed where less is better.
fn normalise(scores: &[i64], reverse: bool) -> Vec<i64> {
    let largest = scores.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        return vec![if reverse { MOST } else { 0 }; scores.len()];
    }
    scores
        .iter()
        .map(|score| {
            let score = MOST * score / largest;
            if reverse { MOST - score } else { score }
        })
        .collect()
}

/// To 0..100 between smallest and largest.
fn between(scores: &[i64], reverse: bool) -> Vec<i64> {
    let smallest = scores.iter().copied().min().unwrap_or(0);
    let largest = scores.iter().copied().max().unwrap_or(0);
    if smallest == largest {
        return vec![if reverse { MOST } else { 0 }; scores.len()];
    }
    scores
        .iter()
        .map(|score| {
            let score = MOST * (score - smallest) / (largest - smallest);
            if reverse { MOST - score } else { score }
        })
        .collect()
}

fn soft_taints(spec: &PodSpec, node: &NodeInfo) -> i64 {
    let all = node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    all.iter().filter(|t| t.effect == "PreferNoSchedule" && !taints::is_tolerated(t, tolerations)).count() as i64
}

/// Used share of CPU and memory with the pod on the node, from 0 to 1.
fn shares(pod: &PodInfo, node: &NodeInfo) -> (f64, f64) {
    let share = |used: i64, has: i64| if has <= 0 { 1.0 } else { (used as f64 / has as f64).min(1.0) };
    (
        share(node.score_requested.0 + pod.score_requests.0, node.allocatable.cpu_milli),
        share(node.score_requested.1 + pod.score_requests.1, node.allocatable.memory),
    )
}

fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (cpu, memory) = shares(pod, node);
    ((2.0 - cpu - memory) / 2.0 * MOST as f64) as i64
}

fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (cpu, memory) = shares(pod, node);
    ((1.0 - (cpu - memory).abs() / 2.0) * MOST as f64) as i64
}

fn images(spec: &PodSpec, node: &NodeInfo, view: &View<'_>) -> i64 {
    if view.snapshot.images.is_empty() {
        return 0;
    }
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let count = all().count() as i64;
    let nodes = view.snapshot.nodes.len().max(1) as f64;
    let held = node.node.as_ref().and_then(|n| n.status.as_ref()).and_then(|s| s.images.as_deref()).unwrap_or_default();
    let mut sum = 0.0;
    for image in all().filter_map(|c| c.image.as_deref()) {
        let name = full_name(image);
        let found = held.iter().find(|i| i.names.iter().flatten().any(|n| *n == name));
        if let Some(found) = found {
            let spread = view.snapshot.images.get(&name).copied().unwrap_or(0) as f64 / nodes;
            sum += found.size_bytes.unwrap_or(0) as f64 * spread;
        }
    }
    let largest = LARGE_IMAGE * count.max(1);
    let sum = (sum as i64).clamp(SMALL_IMAGE, largest);
    MOST * (sum - SMALL_IMAGE) / (largest - SMALL_IMAGE)
}

/// An image without tag or digest means `latest`.
fn full_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_brought_to_one_scale() {
        assert_eq!(normalise(&[0, 5, 10], false), [0, 50, 100]);
        assert_eq!(normalise(&[0, 5, 10], true), [100, 50, 0]);
        assert_eq!(normalise(&[0, 0], true), [100, 100]);
        assert_eq!(between(&[-10, 0, 10], false), [0, 50, 100]);
        assert_eq!(full_name("a/b"), "a/b:latest");
        assert_eq!(full_name("r:5000/b"), "r:5000/b:latest");
    }
}
