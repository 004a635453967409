//! Which nodes get a pod, which pods go, and how an update rolls. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use control_client::{pods, quantity, selector, taints};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::history::HASH;
use super::{by_node, tolerate};

#[derive(Debug, Default)]
pub struct Step {
    /// Names of nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of the deleted that had failed.
    pub failed: Vec<Arc<Pod>>,
    pub look_again_secs: Option<i64>,
}

/// What every daemon pod tolerates: a node's own troubles are no reason to leave it.
pub fn tolerations(host_network: bool) -> Vec<Toleration> {
    let mut all = vec![
        tolerate("node.kubernetes.io/not-ready", "NoExecute"),
        tolerate("node.kubernetes.io/unreachable", "NoExecute"),
        tolerate("node.kubernetes.io/disk-pressure", "NoSchedule"),
        tolerate("node.kubernetes.io/memory-pressure", "NoSchedule"),
        tolerate("node.kubernetes.io/pid-pressure", "NoSchedule"),
        tolerate("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if host_network {
        all.push(tolerate("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    all
}

/// A node that can hold no pod at all, such as one without a runtime.
pub fn has_room_for_pods(node: &Node) -> bool {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let listed = allocatable.and_then(|a| a.get("pods")).and_then(quantity::units);
    // A node that has not reported yet may have room.
    listed.is_none_or(|count| count > 0)
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.metadata.name.clone().unwrap_or_default();
    let by_field = |values: &[String], operator: &str| match operator {
        "In" => values.contains(&name),
        "NotIn" => !values.contains(&name),
        _ => false,
    };
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| {
            selector::requirement(
                &r.key,
                &r.operator,
                r.values.as_deref().unwrap_or_default(),
                node.metadata.labels.as_ref(),
            )
        })
        && fields.iter().all(|r| by_field(r.values.as_deref().unwrap_or_default(), &r.operator))
}

/// Whether a pod should start on the node, and whether one that runs may go on.
pub fn judge(spec: &PodSpec, node: &Node) -> (bool, bool) {
    if !has_room_for_pods(node) {
        return (false, false);
    }
    let name = spec.node_name.as_deref().unwrap_or_default();
    let named = name.is_empty() || Some(name) == node.metadata.name.as_deref();
    let by_labels = spec.node_selector.as_ref().is_none_or(|s| selector::contains(s, node.metadata.labels.as_ref()));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let by_affinity = required.is_none_or(|s| s.node_selector_terms.iter().any(|t| term_matches(t, node)));
    if !(named && by_labels && by_affinity) {
        return (false, false);
    }
    let mut tolerated = spec.tolerations.clone().unwrap_or_default();
    tolerated.extend(tolerations(spec.host_network == Some(true)));
    let all = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let starts = taints::untolerated(all, &tolerated, &["NoSchedule", "NoExecute"]).is_none();
    let stays = taints::untolerated(all, &tolerated, &["NoExecute"]).is_none();
    (starts, stays)
}

fn hash_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(HASH)).map(String::as_str).unwrap_or_default()
}

fn resolve(value: Option<&IntOrString>, of: usize, default: i64) -> usize {
    let number = match value {
        None => default,
        Some(IntOrString::Int(number)) => i64::from(*number),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            (of as i64 * percent + 99).div_euclid(100)
        }
    };
    usize::try_from(number).unwrap_or(0)
}

pub fn plan(set: &DaemonSet, nodes: &[Arc<Node>], all: &[Arc<Pod>], hash: &str, now: Timestamp) -> Step {
    let mut step = Step::default();
    let Some(spec) = &set.spec else { return step };
    let pod_spec = spec.template.spec.clone().unwrap_or_default();
    let mut on_nodes = by_node(all);
    let mut eligible: Vec<(String, Vec<Arc<Pod>>)> = Vec::new();
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let here = on_nodes.remove(&name).unwrap_or_default();
        let (starts, stays) = judge(&pod_spec, node);
        let mut live = Vec::new();
        for pod in here {
            if pods::is_terminating(&pod) {
                // Its place is free once it is gone.
                live.push(pod);
            } else if pods::is_terminal(&pod) {
                if stays && pods::phase(&pod) == "Failed" {
                    step.failed.push(pod.clone());
                }
                step.delete.push(pod);
            } else if stays {
                live.push(pod);
            } else {
                step.delete.push(pod);
            }
        }
        let failed_here = step.failed.iter().any(|p| super::node_of(p) == name);
        if starts && live.is_empty() && !failed_here {
            step.create.push(name.clone());
        }
        if stays || starts {
            eligible.push((name, live));
        }
    }
    // Pods for nodes that are gone.
    for orphan in on_nodes.into_values().flatten() {
        if !pods::is_terminating(&orphan) {
            step.delete.push(orphan);
        }
    }
    if !step.failed.is_empty() {
        // A pod that fails at once must not be made at once again.
        step.look_again_secs = Some(1);
    }
    roll(set, &mut step, &eligible, hash, now);
    step
}

fn roll(set: &DaemonSet, step: &mut Step, eligible: &[(String, Vec<Arc<Pod>>)], hash: &str, now: Timestamp) {
    let Some(spec) = &set.spec else { return };
    let strategy = spec.update_strategy.as_ref();
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), eligible.len(), 0);
    let mut unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), eligible.len(), 1);
    if surge == 0 {
        unavailable = unavailable.max(1);
    }
    let wait = i64::from(spec.min_ready_seconds.unwrap_or(0));
    let available = |p: &Arc<Pod>| pods::is_available(p, wait, now) && !pods::is_terminating(p);
    let mut missing = 0;
    let mut surging = 0;
    let mut candidates: HashMap<bool, Vec<&Arc<Pod>>> = HashMap::new();
    let mut wants_surge = Vec::new();
    for (name, here) in eligible {
        let going =
            |p: &&Arc<Pod>| pods::is_terminating(p) || step.delete.iter().any(|d| d.metadata.uid == p.metadata.uid);
        let (new, old): (Vec<_>, Vec<_>) = here.iter().filter(|p| !going(p)).partition(|p| hash_of(p) == hash);
        // Two of one kind on a node: the older stays.
        for kind in [&new, &old] {
            let mut extra: Vec<_> = kind.to_vec();
            extra.sort_by_key(|p| (!available(p), p.metadata.creation_timestamp.clone()));
            step.delete.extend(extra.into_iter().skip(1).cloned());
        }
        let (new, old) = (new.first(), old.first());
        match (new, old) {
            (Some(new), Some(old)) => {
                surging += usize::from(!available(new));
                if available(new) || !available(old) {
                    step.delete.push((*old).clone());
                }
            }
            (None, Some(old)) if !on_delete => {
                missing += usize::from(!available(old));
                candidates.entry(available(old)).or_default().push(old);
                wants_surge.push(name.clone());
            }
            (None, Some(_)) => {}
            (Some(new), None) => missing += usize::from(!available(new)),
            (None, None) => missing += 1,
        }
        if wait > 0
            && let Some(left) = new.and_then(|p| pods::ready_for_secs(p, now)).map(|s| wait - s).filter(|l| *l > 0)
        {
            step.look_again_secs = Some(step.look_again_secs.map_or(left, |l| l.min(left)));
        }
    }
    if on_delete {
        return;
    }
    if surge > 0 {
        let free = surge.saturating_sub(surging);
        step.create.extend(wants_surge.into_iter().take(free));
        return;
    }
    // Those that serve nobody can go at any time.
    step.delete.extend(candidates.remove(&false).unwrap_or_default().into_iter().cloned());
    let free = unavailable.saturating_sub(missing);
    step.delete.extend(candidates.remove(&true).unwrap_or_default().into_iter().take(free).cloned());
}

pub fn status(set: &DaemonSet, nodes: &[Arc<Node>], all: &[Arc<Pod>], hash: &str, now: Timestamp) -> DaemonSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let pod_spec = spec.template.spec.unwrap_or_default();
    let wait = i64::from(spec.min_ready_seconds.unwrap_or(0));
    let on_nodes = by_node(all);
    let before = set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for node in nodes {
        let mut here = on_nodes.get(node.metadata.name.as_deref().unwrap_or_default()).cloned().unwrap_or_default();
        here.retain(|p| !pods::is_terminating(p));
        let (starts, _) = judge(&pod_spec, node);
        if !starts {
            status.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        here.sort_by_key(|p| p.metadata.creation_timestamp.clone());
        let Some(oldest) = here.first() else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(here.iter().any(|p| pods::is_ready(p)));
        available += i32::from(here.iter().any(|p| pods::is_available(p, wait, now)));
        updated += i32::from(hash_of(oldest) == hash);
    }
    status.number_available = Some(available).filter(|n| *n > 0);
    status.updated_number_scheduled = Some(updated).filter(|n| *n > 0);
    status.number_unavailable = Some(status.desired_number_scheduled - available).filter(|n| *n > 0);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::DaemonSetSpec;
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus, PodCondition, PodStatus, Taint};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn node(name: &str, slots: &str, taint: Option<&str>) -> Arc<Node> {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.status = Some(NodeStatus {
            allocatable: Some([("pods".to_owned(), Quantity(slots.into()))].into()),
            ..NodeStatus::default()
        });
        node.spec = Some(NodeSpec {
            taints: taint.map(|key| vec![Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() }]),
            ..NodeSpec::default()
        });
        Arc::new(node)
    }

    fn pod(node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("{node}-{hash}"));
        pod.metadata.uid = pod.metadata.name.clone();
        pod.metadata.labels = Some([(HASH.to_owned(), hash.to_owned())].into());
        pod.spec = Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() });
        pod.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: if ready { "True" } else { "False" }.into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        });
        Arc::new(pod)
    }

    fn set() -> DaemonSet {
        DaemonSet { spec: Some(DaemonSetSpec::default()), ..DaemonSet::default() }
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|p| p.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn one_pod_on_each_node_that_can_hold_it() {
        let nodes = [
            node("a", "110", None),
            node("b", "110", Some("dedicated")),
            node("master", "0", None),
            node("cordoned", "110", Some("node.kubernetes.io/unschedulable")),
        ];
        let step = plan(&set(), &nodes, &[pod("gone", "h", true)], "h", Timestamp::UNIX_EPOCH);
        assert_eq!(step.create, ["a", "cordoned"]);
        assert_eq!(names(&step.delete), ["gone-h"]);
        let status = status(&set(), &nodes, &[pod("a", "h", true)], "h", Timestamp::UNIX_EPOCH);
        assert_eq!((status.desired_number_scheduled, status.number_ready, status.number_unavailable), (2, 1, Some(1)));
    }

    #[test]
    fn an_update_takes_one_at_a_time_and_the_sick_at_once() {
        let nodes = [node("a", "9", None), node("b", "9", None), node("c", "9", None)];
        let now = Timestamp::UNIX_EPOCH;
        let all = [pod("a", "old", true), pod("b", "old", true), pod("c", "old", true)];
        assert_eq!(plan(&set(), &nodes, &all, "new", now).delete.len(), 1);
        let all = [pod("a", "new", false), pod("b", "old", true), pod("c", "old", true)];
        assert!(plan(&set(), &nodes, &all, "new", now).delete.is_empty());
        let all = [pod("a", "new", true), pod("b", "old", false), pod("c", "old", true)];
        assert_eq!(names(&plan(&set(), &nodes, &all, "new", now).delete), ["b-old"]);
    }
}
