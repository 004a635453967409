//! The next steps of a stateful set, and its status. Pure.
//!
//! In order: a pod is made when all before it are available, the last goes first, and one at a
//! time. Parallel: no waiting, except in updates.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_client::pods;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{first_ordinal, ordinal, replicas};
use crate::workloads::history::HASH;

#[derive(Debug, PartialEq)]
pub enum Action {
    Create {
        ordinal: i32,
        revision: String,
    },
    Delete(Arc<Pod>),
    /// One that has ended and is made anew.
    Recreate(Arc<Pod>),
}

/// Names of the revisions that pods are of.
#[derive(Debug, Clone)]
pub struct Revisions {
    pub current: String,
    pub update: String,
}

pub fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(HASH)).map(String::as_str).unwrap_or_default()
}

fn by_ordinal(set: &StatefulSet, all: &[Arc<Pod>]) -> BTreeMap<i32, Arc<Pod>> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    all.iter().filter_map(|p| Some((ordinal(name, p)?, p.clone()))).collect()
}

fn partition(set: &StatefulSet) -> i32 {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0)
}

fn max_unavailable(set: &StatefulSet) -> usize {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let value = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.clone());
    let number = match value {
        None => 1,
        Some(IntOrString::Int(number)) => number,
        Some(IntOrString::String(text)) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            (replicas(set) * percent + 99).div_euclid(100)
        }
    };
    usize::try_from(number).unwrap_or(1).max(1)
}

fn on_delete(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
}

/// The revision that a new pod of the ordinal gets.
fn revision_for(set: &StatefulSet, at: i32, names: &Revisions, current_left: bool) -> String {
    let below = at < first_ordinal(set) + partition(set);
    let keeps = !on_delete(set) && (below || current_left);
    if keeps { names.current.clone() } else { names.update.clone() }
}

/// Whether a pod has no container yet.
pub fn waits(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Pending") && pod.metadata.deletion_timestamp.is_none()
}

pub fn plan(set: &StatefulSet, all: &[Arc<Pod>], names: &Revisions, now: Timestamp) -> Vec<Action> {
    let spec = set.spec.clone().unwrap_or_default();
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let wait = i64::from(spec.min_ready_seconds.unwrap_or(0));
    let (first, end) = (first_ordinal(set), first_ordinal(set) + replicas(set));
    let present = by_ordinal(set, all);
    let available = |p: &Arc<Pod>| pods::is_available(p, wait, now) && !pods::is_terminating(p);
    // A pod that was never updated and is missing comes back as it was.
    let current_count = set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0);
    let mut actions = Vec::new();
    for at in first..end {
        match present.get(&at) {
            None => {
                let keeps_current = at < first + current_count && names.current != names.update;
                actions.push(Action::Create { ordinal: at, revision: revision_for(set, at, names, keeps_current) });
            }
            Some(pod) if pods::is_terminating(pod) => {
                if !parallel {
                    return actions;
                }
                continue;
            }
            Some(pod) if pods::is_terminal(pod) => actions.push(Action::Recreate(pod.clone())),
            Some(pod) if available(pod) => continue,
            Some(_) => {}
        }
        if !parallel {
            // One step at a time; a pod that is not available holds up those after it.
            return actions;
        }
    }
    let surplus: Vec<_> = present.range(..first).chain(present.range(end..)).map(|(_, p)| p.clone()).collect();
    for pod in surplus.iter().rev() {
        if !pods::is_terminating(pod) {
            actions.push(Action::Delete(pod.clone()));
        }
        if !parallel {
            return actions;
        }
    }
    if actions.is_empty() && !on_delete(set) {
        actions = update(set, &present, names, available);
    }
    actions
}

/// From the last to the first: pods of another revision are replaced, so many at a time.
fn update(
    set: &StatefulSet,
    present: &BTreeMap<i32, Arc<Pod>>,
    names: &Revisions,
    available: impl Fn(&Arc<Pod>) -> bool,
) -> Vec<Action> {
    let (first, end) = (first_ordinal(set), first_ordinal(set) + replicas(set));
    let mut left = max_unavailable(set);
    let sick = present.range(first..end).filter(|(_, p)| !available(p)).count();
    let mut actions = Vec::new();
    for (_, pod) in present.range((first + partition(set)).min(end)..end).rev() {
        if revision_of(pod) != names.update && !pods::is_terminating(pod) {
            // One that is sick anyway makes nothing worse.
            if available(pod) && sick + actions.len() >= max_unavailable(set) {
                return actions;
            }
            actions.push(Action::Delete(pod.clone()));
            left = left.saturating_sub(1);
        } else if !available(pod) {
            left = left.saturating_sub(1);
        }
        if left == 0 {
            return actions;
        }
    }
    actions
}

pub fn status(set: &StatefulSet, all: &[Arc<Pod>], names: &Revisions, now: Timestamp) -> StatefulSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let wait = i64::from(set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0));
    let present = by_ordinal(set, all);
    let live: Vec<_> = present.values().filter(|p| !pods::is_terminal(p)).collect();
    let count = |of: &dyn Fn(&Pod) -> bool| live.iter().filter(|p| of(p)).count() as i32;
    let stays = |p: &Pod| !pods::is_terminating(p);
    let ready = count(&|p| pods::is_ready(p));
    let updated = count(&|p| stays(p) && revision_of(p) == names.update);
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: live.len() as i32,
        ready_replicas: Some(ready),
        available_replicas: Some(count(&|p| pods::is_available(p, wait, now))),
        updated_replicas: Some(updated),
        current_replicas: Some(count(&|p| stays(p) && revision_of(p) == names.current)),
        current_revision: Some(names.current.clone()),
        update_revision: Some(names.update.clone()),
        collision_count: before.collision_count.or(Some(0)),
        conditions: before.conditions,
    };
    let wanted = replicas(set);
    let complete = names.current != names.update && updated == wanted && ready == wanted && status.replicas == wanted;
    if complete {
        status.current_revision = Some(names.update.clone());
        status.current_replicas = status.updated_replicas;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::StatefulSetSpec;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

    fn set(replicas: i32, policy: &str) -> StatefulSet {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("db".into());
        set.spec = Some(StatefulSetSpec {
            replicas: Some(replicas),
            pod_management_policy: Some(policy.into()),
            ..StatefulSetSpec::default()
        });
        set
    }

    fn pod(at: i32, revision: &str, ready: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("db-{at}"));
        pod.metadata.labels = Some([(HASH.to_owned(), revision.to_owned())].into());
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

    fn told(actions: Vec<Action>) -> Vec<String> {
        let name = |p: Arc<Pod>| p.metadata.name.clone().unwrap();
        actions
            .into_iter()
            .map(|a| match a {
                Action::Create { ordinal, revision } => format!("+{ordinal}{revision}"),
                Action::Delete(p) => format!("-{}", name(p)),
                Action::Recreate(p) => format!("~{}", name(p)),
            })
            .collect()
    }

    #[test]
    fn steps_by_order_and_policy() {
        let names = Revisions { current: "a".into(), update: "a".into() };
        let rolling = Revisions { current: "a".into(), update: "b".into() };
        type Case<'a> = (i32, &'a str, Vec<Arc<Pod>>, &'a Revisions, &'a [&'a str]);
        let cases: [Case<'_>; 9] = [
            (3, "OrderedReady", vec![], &names, &["+0a"]),
            (3, "OrderedReady", vec![pod(0, "a", false)], &names, &[]),
            (3, "OrderedReady", vec![pod(0, "a", true)], &names, &["+1a"]),
            (3, "Parallel", vec![], &names, &["+0a", "+1a", "+2a"]),
            (1, "OrderedReady", vec![pod(0, "a", true), pod(1, "a", true), pod(2, "a", true)], &names, &["-db-2"]),
            (1, "Parallel", vec![pod(0, "a", true), pod(1, "a", true), pod(2, "a", true)], &names, &["-db-2", "-db-1"]),
            (2, "OrderedReady", vec![pod(0, "a", true), pod(1, "a", true)], &rolling, &["-db-1"]),
            (2, "OrderedReady", vec![pod(0, "a", true), pod(1, "b", true)], &rolling, &["-db-0"]),
            (2, "Parallel", vec![pod(0, "a", true), pod(1, "b", false)], &rolling, &[]),
        ];
        for (count, policy, all, names, wanted) in cases {
            let got = told(plan(&set(count, policy), &all, names, Timestamp::UNIX_EPOCH));
            assert_eq!(got, wanted, "{count} {policy} {}", all.len());
        }
    }

    #[test]
    fn revision_is_current_once_all_are_updated() {
        let names = Revisions { current: "a".into(), update: "b".into() };
        let half = status(&set(2, ""), &[pod(0, "a", true), pod(1, "b", true)], &names, Timestamp::UNIX_EPOCH);
        assert_eq!((half.current_revision.as_deref(), half.updated_replicas), (Some("a"), Some(1)));
        let full = status(&set(2, ""), &[pod(0, "b", true), pod(1, "b", true)], &names, Timestamp::UNIX_EPOCH);
        assert_eq!(full.current_revision.as_deref(), Some("b"));
    }
}
