//! Deployments: replica sets, one a template, and how replicas move from the old to the new.

mod rollout;
mod sets;
mod status;

use std::sync::Arc;

use anyhow::Context as _;
use control_client::{Change, Failure, Key, Queue, owner, pods, selector};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::claim::{claim, wake_owners};
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};
use rollout::Action;
use sets::REVISION;

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    let caches = &context.caches;
    caches.deployments.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    caches.replica_sets.subscribe({
        let (queue, store) = (queue.clone(), caches.deployments.clone());
        move |change| {
            wake_owners(change, &store, &queue, |d: &Deployment, meta| {
                d.spec.as_ref().is_some_and(|s| {
                    !selector::is_empty(&s.selector) && selector::matches(&s.selector, meta.labels.as_ref())
                })
            });
        }
    });
    caches.pods.subscribe({
        // Recreate waits for the last old pod to be gone.
        let (queue, sets) = (queue.clone(), caches.replica_sets.clone());
        move |change| {
            let pod = change.object();
            if !matches!(change, Change::Deleted(_)) && !pods::is_terminal(pod) {
                return;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let set = owner::controller_of(&pod.metadata).and_then(|r| sets.named(namespace, &r.name));
            if let Some(of) = set.as_ref().and_then(|s| owner::controller_of(&s.metadata)) {
                queue.add(Key::new(namespace, &of.name));
            }
        }
    });
    let context = context.clone();
    runner::run("deployment", &queue, 3, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

/// What is known of a deployment at one moment.
struct Observed {
    sets: Vec<Arc<ReplicaSet>>,
    /// Place of the set with the current template.
    new: Option<usize>,
    /// Pods of older sets that have not ended.
    old_pods_run: bool,
}

async fn observe(context: &Context, deployment: &Deployment) -> anyhow::Result<Observed> {
    let spec = deployment.spec.as_ref().context("the deployment has no spec")?;
    let sets = claim(deployment, &spec.selector, &context.caches.replica_sets, |_| true).await?;
    let new = sets::find_new(deployment, &sets);
    let old = sets.iter().enumerate().filter(|(at, _)| Some(*at) != new);
    let mut old_uids = old.filter_map(|(_, set)| set.metadata.uid.as_deref());
    let runs = |uid| context.caches.pods.controlled_by(uid).iter().any(|pod| !pods::is_terminal(pod));
    let old_pods_run = old_uids.any(runs);
    Ok(Observed { sets, new, old_pods_run })
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(deployment) = context.caches.deployments.get(key) else { return Ok(Outcome::Done) };
    let spec = deployment.spec.as_ref().context("the deployment has no spec")?;
    if selector::is_empty(&spec.selector) {
        context.events.warning(
            &*deployment,
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        );
        return Ok(Outcome::Done);
    }
    let mut observed = observe(context, &deployment).await?;
    let mut deployment = deployment.clone();
    if deployment.metadata.deletion_timestamp.is_none() {
        for action in rollout::plan(&deployment, &observed.sets, observed.new, observed.old_pods_run) {
            match apply(context, &deployment, action).await {
                Ok(()) => {}
                Err(failure) if failure.already_exists() => {
                    return collided(context, &deployment).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        observed = observe(context, &deployment).await?;
        deployment = write_revision(context, deployment, &observed).await?;
    }
    let now = Timestamp::now();
    let new_set = observed.new.map(|at| &*observed.sets[at]);
    let next = status::next(&deployment, &observed.sets, new_set, now);
    if deployment.status.as_ref() != Some(&next.status) {
        let mut updated = (*deployment).clone();
        updated.status = Some(next.status);
        match context.caches.deployments.replace_status(&updated).await {
            Err(failure) if failure.is_not_found() => return Ok(Outcome::Done),
            other => drop(other?),
        }
    }
    Ok(Outcome::after_secs(next.look_again_secs))
}

async fn apply(context: &Context, deployment: &Deployment, action: Action) -> Result<(), Failure> {
    let caches = &context.caches;
    match action {
        Action::Create(set) => {
            let to = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            let set = caches.replica_sets.create(&set).await?;
            if to > 0 {
                announce(context, deployment, "up", &set, 0, to);
            }
        }
        Action::Update(set) => drop(caches.replica_sets.replace(&set).await?),
        Action::Scale { set, to } => {
            let from = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            let mut updated = set.clone();
            if let Some(spec) = &mut updated.spec {
                spec.replicas = Some(to);
            }
            caches.replica_sets.replace(&updated).await?;
            if from != to {
                announce(context, deployment, if to > from { "up" } else { "down" }, &set, from, to);
            }
        }
        Action::Delete(set) => caches.replica_sets.delete(&set).await?,
    }
    Ok(())
}

fn announce(context: &Context, deployment: &Deployment, direction: &str, set: &ReplicaSet, from: i32, to: i32) {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
    context.events.normal(deployment, "ScalingReplicaSet", message);
}

/// A set of that name exists and is another one: the next name is made with another count.
async fn collided(context: &Context, deployment: &Arc<Deployment>) -> Worked {
    let mut updated = (**deployment).clone();
    let status = updated.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    context.caches.deployments.replace_status(&updated).await?;
    Ok(Outcome::Done)
}

/// The deployment carries the revision of its newest set, for `kubectl rollout history`.
async fn write_revision(
    context: &Context,
    deployment: Arc<Deployment>,
    observed: &Observed,
) -> anyhow::Result<Arc<Deployment>> {
    let Some(new) = observed.new.map(|at| &observed.sets[at]) else { return Ok(deployment) };
    let of = |a: &Option<std::collections::BTreeMap<String, String>>| a.as_ref().and_then(|a| a.get(REVISION)).cloned();
    let revision = of(&new.metadata.annotations);
    if revision.is_none() || of(&deployment.metadata.annotations) == revision {
        return Ok(deployment);
    }
    let patch = serde_json::json!({"metadata": {"annotations": {REVISION: revision}}});
    Ok(context.caches.deployments.merge(None, &deployment, &patch).await?)
}
