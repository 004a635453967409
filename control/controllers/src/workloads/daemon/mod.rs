//! DaemonSets: one pod on each node that it may run on.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use control_client::{Key, Queue, pods, selector};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodTemplateSpec, Toleration,
};

use super::claim::{claim, wake_owners};
use super::{history, make};
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    let caches = &context.caches;
    caches.daemon_sets.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    caches.pods.subscribe({
        let (queue, store) = (queue.clone(), caches.daemon_sets.clone());
        move |change| {
            wake_owners(change, &store, &queue, |set: &DaemonSet, meta| {
                set.spec.as_ref().is_some_and(|s| {
                    !selector::is_empty(&s.selector) && selector::matches(&s.selector, meta.labels.as_ref())
                })
            });
        }
    });
    caches.nodes.subscribe({
        let (queue, store) = (queue.clone(), caches.daemon_sets.clone());
        move |change| {
            let heartbeat = change.old().is_some_and(|old| {
                let new = change.object();
                old.spec == new.spec
                    && old.metadata.labels == new.metadata.labels
                    && plan::has_room_for_pods(old) == plan::has_room_for_pods(new)
                    && !matches!(change, control_client::Change::Deleted(_))
            });
            if !heartbeat {
                store.keys().into_iter().for_each(|key| queue.add(key));
            }
        }
    });
    let context = context.clone();
    runner::run("daemonset", &queue, 2, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(set) = context.caches.daemon_sets.get(key) else { return Ok(Outcome::Done) };
    let spec = set.spec.as_ref().context("the daemon set has no spec")?;
    if selector::is_empty(&spec.selector) {
        context.events.warning(
            &*set,
            "SelectingAll",
            "This daemon set is selecting all pods. A non-empty selector is required.",
        );
        return Ok(Outcome::Done);
    }
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let history = match history::sync(context, &*set, &spec.selector, &spec.template, collisions).await {
        Err(failure) if failure.already_exists() => {
            let mut updated = (*set).clone();
            updated.status.get_or_insert_default().collision_count = Some(collisions + 1);
            context.caches.daemon_sets.replace_status(&updated).await?;
            return Ok(Outcome::Done);
        }
        other => other?,
    };
    let hash = history::hash_of(&history.current).to_owned();
    let mine = claim(&*set, &spec.selector, &context.caches.pods, |_| true).await?;
    let nodes = context.caches.nodes.list();
    let now = Timestamp::now();
    let step = plan::plan(&set, &nodes, &mine, &hash, now);

    for pod in &step.failed {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "Found failed daemon pod {key_ns}/{name} on node {}, will try to kill it",
            pods::node_name(pod),
            key_ns = key.namespace
        );
        context.events.warning(&*set, "FailedDaemonPod", message);
    }
    make::delete_pods(context, &*set, &step.delete).await?;
    let wanted: Vec<Pod> = step.create.iter().map(|node| new_pod(&set, &spec.template, node, &hash)).collect();
    let (_, failure) = make::create_pods(context, &*set, wanted).await;

    let uid = set.metadata.uid.clone().unwrap_or_default();
    let after = context.caches.pods.controlled_by(&uid);
    write_status(context, &set, plan::status(&set, &nodes, &after, &hash, now)).await?;
    let in_use: Vec<String> =
        after.iter().filter_map(|p| p.metadata.labels.as_ref().and_then(|l| l.get(history::HASH)).cloned()).collect();
    history::trim(context, &history, &in_use, spec.revision_history_limit.unwrap_or(10)).await?;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    Ok(Outcome::after_secs(step.look_again_secs))
}

async fn write_status(context: &Context, set: &DaemonSet, status: DaemonSetStatus) -> anyhow::Result<()> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut updated = set.clone();
    updated.status = Some(status);
    match context.caches.daemon_sets.replace_status(&updated).await {
        Err(failure) if !failure.is_not_found() => Err(failure.into()),
        _ => Ok(()),
    }
}

/// A pod for one node; the scheduler binds it there.
fn new_pod(set: &DaemonSet, template: &PodTemplateSpec, node: &str, hash: &str) -> Pod {
    let mut pod = make::pod_from(set, template);
    pod.metadata.labels.get_or_insert_default().insert(history::HASH.to_owned(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations.get_or_insert_default().extend(plan::tolerations(spec.host_network == Some(true)));
    pin(spec.affinity.get_or_insert_default(), node);
    pod
}

/// Replaces what the template says about nodes: that was judged here already.
fn pin(affinity: &mut Affinity, node: &str) {
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let of_nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    of_nodes.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![by_name]),
            ..NodeSelectorTerm::default()
        }],
    });
}

/// The node a pod is on, or is meant for.
fn node_of(pod: &Pod) -> String {
    let bound = pods::node_name(pod);
    if !bound.is_empty() {
        return bound.to_owned();
    }
    let terms = pod
        .spec
        .as_ref()
        .and_then(|s| s.affinity.as_ref())
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = terms.and_then(|t| t.node_selector_terms.first()).and_then(|t| t.match_fields.as_ref());
    fields.and_then(|f| f.first()).and_then(|r| r.values.as_ref()?.first().cloned()).unwrap_or_default()
}

fn by_node(all: &[Arc<Pod>]) -> HashMap<String, Vec<Arc<Pod>>> {
    let mut map: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
    for pod in all {
        map.entry(node_of(pod)).or_default().push(pod.clone());
    }
    map
}

/// A toleration of every taint with that key and effect.
fn tolerate(key: &str, effect: &str) -> Toleration {
    Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some(effect.to_owned()),
        ..Toleration::default()
    }
}
