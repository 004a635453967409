//! ReplicaSets and ReplicationControllers: so many pods of a template, no more and no fewer.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use control_client::{Key, Object, Queue, Store, owner, pods, selector};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};

use super::claim::{claim, wake_owners};
use super::make;
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

/// Pods created or deleted in one go.
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const FAILURE: &str = "ReplicaFailure";

/// What the two kinds have in common.
trait Replicated: Object {
    fn selector(&self) -> LabelSelector;
    fn replicas(&self) -> i32;
    fn min_ready_secs(&self) -> i64;
    fn template(&self) -> PodTemplateSpec;
    fn counts(&self) -> Counts;
    fn with_counts(&self, counts: &Counts, now: Timestamp) -> Self;
    fn store(context: &Context) -> &Arc<Store<Self>>;
}

/// The status, as both kinds have it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    replicas: i32,
    labelled: i32,
    ready: i32,
    available: i32,
    terminating: i32,
    observed: i64,
    /// Reason and message of a failure to create or delete.
    failure: Option<(String, String)>,
}

impl Replicated for ReplicaSet {
    fn selector(&self) -> LabelSelector {
        self.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default()
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_secs(&self) -> i64 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0).into()
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        Counts {
            replicas: status.replicas,
            labelled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas.unwrap_or(0),
            observed: status.observed_generation.unwrap_or(0),
            failure: status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == FAILURE)
                .map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())),
        }
    }

    fn with_counts(&self, counts: &Counts, now: Timestamp) -> Self {
        let mut new = self.clone();
        let before = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut conditions: Vec<_> = before.filter(|c| c.type_ != FAILURE).cloned().collect();
        if let Some((reason, message)) = &counts.failure {
            conditions.push(ReplicaSetCondition {
                type_: FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.clone()),
                message: Some(message.clone()),
                last_transition_time: Some(Time(now)),
            });
        }
        new.status = Some(ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.labelled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: Some(counts.observed),
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        });
        new
    }

    fn store(context: &Context) -> &Arc<Store<Self>> {
        &context.caches.replica_sets
    }
}

impl Replicated for ReplicationController {
    fn selector(&self) -> LabelSelector {
        LabelSelector { match_labels: self.spec.as_ref().and_then(|s| s.selector.clone()), ..LabelSelector::default() }
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_secs(&self) -> i64 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0).into()
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        Counts {
            replicas: status.replicas,
            labelled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: 0,
            observed: status.observed_generation.unwrap_or(0),
            failure: status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == FAILURE)
                .map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())),
        }
    }

    fn with_counts(&self, counts: &Counts, now: Timestamp) -> Self {
        let mut new = self.clone();
        let before = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut conditions: Vec<_> = before.filter(|c| c.type_ != FAILURE).cloned().collect();
        if let Some((reason, message)) = &counts.failure {
            conditions.push(ReplicationControllerCondition {
                type_: FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.clone()),
                message: Some(message.clone()),
                last_transition_time: Some(Time(now)),
            });
        }
        new.status = Some(ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.labelled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: Some(counts.observed),
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        });
        new
    }

    fn store(context: &Context) -> &Arc<Store<Self>> {
        &context.caches.replication_controllers
    }
}

#[derive(Debug, PartialEq)]
enum Action {
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// What brings the number of active pods to the wanted one.
fn plan(wanted: i32, active: &[Arc<Pod>], on_nodes: &HashMap<String, usize>, now: Timestamp) -> Option<Action> {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => None,
        Ordering::Less => Some(Action::Create((wanted - active.len()).min(BURST))),
        Ordering::Greater => {
            let mut ranked = active.to_vec();
            ranked.sort_by_key(|pod| rank(pod, on_nodes, now));
            ranked.truncate((active.len() - wanted).min(BURST));
            Some(Action::Delete(ranked))
        }
    }
}

/// Smaller goes first: those without a node, those not running, those not ready, the cheap ones,
/// those that share their node with most others, the younger, the often restarted.
type Rank =
    (bool, u8, bool, i64, std::cmp::Reverse<usize>, i64, std::cmp::Reverse<i32>, std::cmp::Reverse<Option<Time>>);

fn rank(pod: &Pod, on_nodes: &HashMap<String, usize>, now: Timestamp) -> Rank {
    let node = pods::node_name(pod);
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST)).and_then(|c| c.parse().ok());
    (
        !node.is_empty(),
        phase,
        pods::is_ready(pod),
        cost.unwrap_or(0),
        std::cmp::Reverse(on_nodes.get(node).copied().unwrap_or(0)),
        // By orders of magnitude, so that a few seconds make no difference.
        pods::ready_for_secs(pod, now).map_or(0, |secs| i64::from(secs.max(1).ilog2())),
        std::cmp::Reverse(pods::restarts(pod)),
        std::cmp::Reverse(pod.metadata.creation_timestamp.clone()),
    )
}

fn count<R: Replicated>(of: &R, all: &[Arc<Pod>], now: Timestamp) -> Counts {
    let labels = of.template().metadata.and_then(|m| m.labels).unwrap_or_default();
    let mut counts = Counts { observed: of.meta().generation.unwrap_or(0), ..Counts::default() };
    for pod in all {
        if pods::is_terminal(pod) {
            continue;
        }
        if pods::is_terminating(pod) {
            counts.terminating += 1;
            continue;
        }
        counts.replicas += 1;
        counts.labelled += i32::from(selector::contains(&labels, pod.metadata.labels.as_ref()));
        counts.ready += i32::from(pods::is_ready(pod));
        counts.available += i32::from(pods::is_available(pod, of.min_ready_secs(), now));
    }
    counts
}

pub fn start(context: &Arc<Context>) {
    start_kind::<ReplicaSet>(context, "replicaset");
    start_kind::<ReplicationController>(context, "replicationcontroller");
}

fn start_kind<R: Replicated>(context: &Arc<Context>, name: &'static str) {
    let queue = Arc::new(Queue::<Key>::default());
    R::store(context).subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    context.caches.pods.subscribe({
        let (queue, store) = (queue.clone(), R::store(context).clone());
        move |change| wake_owners(change, &store, &queue, selects::<R>)
    });
    let context = context.clone();
    runner::run(name, &queue, 3, move |key| {
        let context = context.clone();
        async move { work::<R>(&context, &key).await }
    });
}

fn selects<R: Replicated>(of: &R, meta: &ObjectMeta) -> bool {
    let selector = of.selector();
    !selector::is_empty(&selector) && selector::matches(&selector, meta.labels.as_ref())
}

async fn work<R: Replicated>(context: &Context, key: &Key) -> Worked {
    let Some(set) = R::store(context).get(key) else { return Ok(Outcome::Done) };
    let now = Timestamp::now();
    let mine = claim(&*set, &set.selector(), &context.caches.pods, pods::is_active).await?;
    let active: Vec<_> = mine.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let mut trouble = None;
    if set.meta().deletion_timestamp.is_none() {
        match plan(set.replicas(), &active, &relatives(context, &*set), now) {
            None => {}
            Some(Action::Create(missing)) => {
                let pod = make::pod_from(&*set, &set.template());
                let (_, failure) = make::create_pods(context, &*set, vec![pod; missing]).await;
                trouble = failure.map(|f| ("FailedCreate", f));
            }
            Some(Action::Delete(surplus)) => {
                trouble = make::delete_pods(context, &*set, &surplus).await.err().map(|f| ("FailedDelete", f));
            }
        }
    }
    // Counted anew: what was created or deleted shows in the cache already.
    let uid = set.meta().uid.clone().unwrap_or_default();
    let after = context.caches.pods.controlled_by(&uid);
    let mut counts = count(&*set, &after, now);
    counts.failure = trouble.as_ref().map(|(reason, f)| ((*reason).to_owned(), f.message()));
    if counts != set.counts() {
        match R::store(context).replace_status(&set.with_counts(&counts, now)).await {
            Err(failure) if failure.is_not_found() => return Ok(Outcome::Done),
            other => drop(other?),
        }
    }
    if let Some((_, failure)) = trouble {
        return Err(failure.into());
    }
    Ok(next_look(&*set, &after, now))
}

/// Where pods still have to prove themselves, look again when the first has.
fn next_look<R: Replicated>(set: &R, all: &[Arc<Pod>], now: Timestamp) -> Outcome {
    let wait = set.min_ready_secs();
    let left = all.iter().filter_map(|p| pods::ready_for_secs(p, now)).map(|secs| wait - secs).filter(|l| *l > 0);
    Outcome::after_secs(left.min())
}

/// How many pods of the same Deployment, or of the set itself, stand on each node.
fn relatives<R: Replicated>(context: &Context, set: &R) -> HashMap<String, usize> {
    let mut uids = HashSet::from([set.meta().uid.clone().unwrap_or_default()]);
    if let Some(parent) = owner::controller_of(set.meta()) {
        let siblings = context.caches.replica_sets.controlled_by(&parent.uid);
        uids.extend(siblings.iter().filter_map(|s| s.metadata.uid.clone()));
    }
    let mut counts = HashMap::new();
    for pod in uids.iter().flat_map(|uid| context.caches.pods.controlled_by(uid)).filter(|pod| pods::is_active(pod)) {
        *counts.entry(pods::node_name(&pod).to_owned()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};

    fn pod(name: &str, node: &str, ready: bool) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            spec: Some(PodSpec {
                node_name: Some(node.into()).filter(|n: &String| !n.is_empty()),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(if node.is_empty() { "Pending" } else { "Running" }.into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
        })
    }

    #[test]
    fn missing_pods_are_made_and_the_least_useful_go() {
        let all =
            [pod("ready-b", "b", true), pod("waiting", "", false), pod("sick", "a", false), pod("ready-a", "a", true)];
        let on_nodes: HashMap<_, _> = [("a".to_owned(), 2), ("b".to_owned(), 1)].into();
        let names = |wanted: i32| match plan(wanted, &all, &on_nodes, Timestamp::UNIX_EPOCH) {
            Some(Action::Delete(list)) => list.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(names(3), ["waiting"]);
        assert_eq!(names(2), ["waiting", "sick"]);
        assert_eq!(names(1), ["waiting", "sick", "ready-a"]);
        assert_eq!(plan(4, &all, &on_nodes, Timestamp::UNIX_EPOCH), None);
        assert_eq!(plan(6, &all, &on_nodes, Timestamp::UNIX_EPOCH), Some(Action::Create(2)));
    }
}
