//! Makes room for a more important pod: which node, and which pods there have to go.

use std::sync::Arc;

use control_client::{pods, selector};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cycle::{Prepared, Unfit, View, filter};
use crate::reason::summary;
use crate::snapshot::{NodeInfo, PodInfo};
use crate::volumes::Needs;

/// Of many nodes only so many are examined.
const MOST_CANDIDATES: usize = 100;
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// A node, and the pods to delete from it.
#[derive(Debug)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// The best way to make room, or the sentence why there is none.
pub fn plan(
    pod: &PodInfo,
    view: &View<'_>,
    needs: &Needs,
    unfit: &Unfit,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Preemption, String> {
    let spec = pods::spec(&pod.pod);
    if spec.preemption_policy.as_deref() == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if victims_are_leaving(pod, view) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    if unfit.whole.is_some() {
        return Err(summary(unfit.nodes, std::iter::repeat_n(NOT_HELPFUL, unfit.nodes)));
    }
    let mut candidates: Vec<Preemption> = Vec::new();
    let mut reasons = Vec::new();
    for (at, rejection) in &unfit.rejections {
        if !rejection.resolvable {
            reasons.push(NOT_HELPFUL);
            continue;
        }
        if candidates.len() >= MOST_CANDIDATES {
            break;
        }
        match on_node(pod, view, needs, &view.snapshot.nodes[*at], budgets) {
            Some(candidate) => candidates.push(candidate),
            None => reasons.push(NO_VICTIMS),
        }
    }
    candidates.into_iter().min_by_key(cost).ok_or_else(|| summary(unfit.nodes, reasons.into_iter()))
}

/// Room was made before, and the pods that stood there are still going.
fn victims_are_leaving(pod: &PodInfo, view: &View<'_>) -> bool {
    let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).unwrap_or_default();
    view.snapshot
        .get(nominated)
        .is_some_and(|node| node.pods.iter().any(|p| p.priority < pod.priority && pods::is_terminating(&p.pod)))
}

/// Fewest broken budgets, then the least important victims, then the fewest, then the youngest.
fn cost(candidate: &Preemption) -> (usize, i32, i64, usize, std::cmp::Reverse<i64>) {
    let highest = candidate.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = candidate.victims.iter().map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1).sum();
    let oldest = candidate.victims.iter().filter(|v| v.priority == highest).map(|v| started(v)).min().unwrap_or(0);
    (candidate.violations, highest, sum, candidate.victims.len(), std::cmp::Reverse(oldest))
}

fn started(pod: &PodInfo) -> i64 {
    pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(i64::MAX, |t| t.0.as_second())
}

fn on_node(
    pod: &PodInfo,
    view: &View<'_>,
    needs: &Needs,
    node: &NodeInfo,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<Preemption> {
    let mut prepared = Prepared::new(pod, view, needs);
    let mut empty = node.clone();
    let mut lower: Vec<Arc<PodInfo>> = node.pods.iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    for victim in &lower {
        take_out(&mut prepared, pod, view, &mut empty, victim);
    }
    if filter(&prepared, &empty).is_some() {
        return None;
    }
    // Put back as many as possible: those of broken budgets first, then the more important.
    let broken = broken_budgets(&lower, budgets);
    lower.sort_by_key(|p| (!broken.contains(&p.uid().to_owned()), std::cmp::Reverse(p.priority), started(p)));
    let mut victims = Vec::new();
    let mut violations = 0;
    for candidate in lower {
        put_back(&mut prepared, pod, view, &mut empty, &candidate);
        if filter(&prepared, &empty).is_some() {
            take_out(&mut prepared, pod, view, &mut empty, &candidate);
            violations += usize::from(broken.contains(&candidate.uid().to_owned()));
            victims.push(candidate);
        }
    }
    (!victims.is_empty()).then(|| Preemption { node: node.name.clone(), victims, violations })
}

fn take_out(prepared: &mut Prepared<'_>, pod: &PodInfo, view: &View<'_>, node: &mut NodeInfo, victim: &PodInfo) {
    prepared.required.add(pod, victim, node, view.namespaces, -1);
    prepared.spread.shift(pod, victim, node, -1);
    node.remove(victim.uid());
}

fn put_back(prepared: &mut Prepared<'_>, pod: &PodInfo, view: &View<'_>, node: &mut NodeInfo, other: &Arc<PodInfo>) {
    prepared.required.add(pod, other, node, view.namespaces, 1);
    prepared.spread.shift(pod, other, node, 1);
    node.add(other.clone());
}

/// Uids of the pods whose removal no budget allows.
fn broken_budgets(lower: &[Arc<PodInfo>], budgets: &[Arc<PodDisruptionBudget>]) -> Vec<String> {
    let mut allowed: Vec<i32> =
        budgets.iter().map(|b| b.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0)).collect();
    let mut broken = Vec::new();
    for pod in lower {
        for (budget, left) in budgets.iter().zip(&mut allowed) {
            let covers = budget.metadata.namespace == pod.pod.metadata.namespace
                && budget
                    .spec
                    .as_ref()
                    .and_then(|s| s.selector.as_ref())
                    .is_some_and(|s| selector::matches(s, pod.pod.metadata.labels.as_ref()));
            if !covers {
                continue;
            }
            *left -= 1;
            if *left < 0 {
                broken.push(pod.uid().to_owned());
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cycle;
    use crate::fake;
    use crate::pod_affinity::Namespaces;
    use crate::snapshot::Snapshot;

    fn pod(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = (*fake::pod(name, cpu)).clone();
        pod.spec.get_or_insert_default().priority = Some(priority);
        PodInfo::new(Arc::new(pod))
    }

    fn preempt(snapshot: &Snapshot, incoming: &PodInfo) -> Result<Preemption, String> {
        let namespaces = Namespaces::new();
        let view = View { snapshot, namespaces: &namespaces, nominated: &[] };
        let needs = Needs::default();
        let unfit = cycle::choose(incoming, &view, &needs, &mut 0).unwrap_err();
        plan(incoming, &view, &needs, &unfit, &[])
    }

    #[test]
    fn least_important_pods_go_and_no_more_than_needed() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(fake::node("a", "2", "4Gi"));
        snapshot.set_node(fake::node("b", "2", "4Gi"));
        snapshot.set_pod("a", pod("a1", "1", 5));
        snapshot.set_pod("a", pod("a2", "1", 6));
        snapshot.set_pod("b", pod("b1", "1", 1));
        snapshot.set_pod("b", pod("b2", "1", 100));
        let found = preempt(&snapshot, &pod("new", "1", 10)).unwrap();
        let victims: Vec<_> = found.victims.iter().map(|v| v.uid()).collect();
        assert_eq!((found.node.as_str(), victims), ("b", vec!["b1"]));
    }

    #[test]
    fn nobody_goes_for_a_pod_of_no_more_importance_or_of_no_use() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(fake::node("a", "2", "4Gi"));
        snapshot.set_pod("a", pod("a1", "2", 5));
        assert_eq!(
            preempt(&snapshot, &pod("new", "1", 5)).unwrap_err(),
            "0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        assert_eq!(
            preempt(&snapshot, &pod("huge", "9", 50)).unwrap_err(),
            "0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
    }
}
