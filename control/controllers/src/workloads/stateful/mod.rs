//! StatefulSets: pods with names that stay, claims that stay with them, made and updated in order.

mod plan;
mod pod;

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use control_client::{Key, Queue, pods, selector};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::claim::{claim, wake_owners};
use super::history;
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};
use plan::Action;

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    let caches = &context.caches;
    caches.stateful_sets.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    caches.pods.subscribe({
        let (queue, store) = (queue.clone(), caches.stateful_sets.clone());
        move |change| {
            wake_owners(change, &store, &queue, |set: &StatefulSet, meta| {
                set.spec.as_ref().is_some_and(|s| {
                    !selector::is_empty(&s.selector) && selector::matches(&s.selector, meta.labels.as_ref())
                })
            });
        }
    });
    let context = context.clone();
    runner::run("statefulset", &queue, 2, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(set) = context.caches.stateful_sets.get(key) else { return Ok(Outcome::Done) };
    let spec = set.spec.as_ref().context("the stateful set has no spec")?;
    if selector::is_empty(&spec.selector) {
        return Ok(Outcome::Done);
    }
    let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let history = match history::sync(context, &*set, &spec.selector, &spec.template, collisions).await {
        Err(failure) if failure.already_exists() => {
            let mut updated = (*set).clone();
            updated.status.get_or_insert_default().collision_count = Some(collisions + 1);
            context.caches.stateful_sets.replace_status(&updated).await?;
            return Ok(Outcome::Done);
        }
        other => other?,
    };
    let set_name = key.name.clone();
    let mine =
        claim(&*set, &spec.selector, &context.caches.pods, |p: &Pod| pod::ordinal(&set_name, p).is_some()).await?;
    let update = history.current.clone();
    let current = set
        .status
        .as_ref()
        .and_then(|s| s.current_revision.as_ref())
        .and_then(|name| history.all.iter().find(|r| r.metadata.name.as_ref() == Some(name)))
        .cloned()
        .unwrap_or_else(|| update.clone());
    let names = plan::Revisions {
        current: current.metadata.name.clone().unwrap_or_default(),
        update: update.metadata.name.clone().unwrap_or_default(),
    };
    let now = Timestamp::now();
    let mut claims = Ok(());
    if set.metadata.deletion_timestamp.is_none() {
        for action in plan::plan(&set, &mine, &names, now) {
            act(context, &set, action, &current, &update, &names).await?;
        }
        // As upstream does it (`pkg/controller/statefulset`): a claim that was deleted under a pod that waits comes back.
        for pod in mine.iter().filter(|pod| plan::waits(pod)) {
            if let Some(ordinal) = pod::ordinal(&set_name, pod) {
                // Its status is told all the same, and it is tried again.
                claims = claims.and(make_claims(context, &set, ordinal).await);
            }
        }
    }
    retain_claims(context, &set).await?;
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let after = context.caches.pods.controlled_by(&uid);
    let status = plan::status(&set, &after, &names, now);
    if set.status.as_ref() != Some(&status) {
        let mut updated = (*set).clone();
        updated.status = Some(status);
        match context.caches.stateful_sets.replace_status(&updated).await {
            Err(failure) if failure.is_not_found() => return Ok(Outcome::Done),
            other => drop(other?),
        }
    }
    let mut in_use: Vec<String> = after.iter().map(|p| plan::revision_of(p).to_owned()).collect();
    in_use.push(names.current);
    history::trim(context, &history, &in_use, spec.revision_history_limit.unwrap_or(10)).await?;
    claims?;
    let wait = i64::from(spec.min_ready_seconds.unwrap_or(0));
    let left = after.iter().filter_map(|p| pods::ready_for_secs(p, now)).map(|s| wait - s).filter(|l| *l > 0).min();
    Ok(Outcome::after_secs(left))
}

async fn act(
    context: &Context,
    set: &StatefulSet,
    action: Action,
    current: &k8s_openapi::api::apps::v1::ControllerRevision,
    update: &k8s_openapi::api::apps::v1::ControllerRevision,
    names: &plan::Revisions,
) -> anyhow::Result<()> {
    let events = &context.events;
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    match action {
        Action::Create { ordinal, revision } => {
            let of = if revision == names.update { update } else { current };
            let template = history::template_of(of).context("a revision holds no template")?;
            make_claims(context, set, ordinal).await?;
            let new = pod::new(set, &template, ordinal, &revision);
            let name = new.metadata.name.clone().unwrap_or_default();
            match context.caches.pods.create(&new).await {
                Ok(_) => events.normal(
                    set,
                    "SuccessfulCreate",
                    format!("create Pod {name} in StatefulSet {set_name} successful"),
                ),
                Err(failure) => {
                    events.warning(
                        set,
                        "FailedCreate",
                        format!("create Pod {name} in StatefulSet {set_name} failed error: {}", failure.message()),
                    );
                    return Err(failure.into());
                }
            }
        }
        Action::Delete(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            context.caches.pods.delete(&pod).await?;
            events.normal(set, "SuccessfulDelete", format!("delete Pod {name} in StatefulSet {set_name} successful"));
        }
        Action::Recreate(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            events.normal(
                set,
                "RecreatingTerminatedPod",
                format!(
                    "StatefulSet {}/{set_name} is recreating terminated Pod {name}",
                    set.metadata.namespace.as_deref().unwrap_or_default()
                ),
            );
            context.caches.pods.delete(&pod).await?;
        }
    }
    Ok(())
}

/// The claims of one ordinal, where they are missing. With one that goes, its pod is to wait until there is a new one.
async fn make_claims(context: &Context, set: &StatefulSet, ordinal: i32) -> anyhow::Result<()> {
    for wanted in pod::claims(set, ordinal) {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        if let Some(known) = context.caches.claims.get(&Key::of(&wanted)) {
            ensure!(known.metadata.deletion_timestamp.is_none(), "claim {name} is being deleted");
            continue;
        }
        let set_name = set.metadata.name.as_deref().unwrap_or_default();
        match context.caches.claims.create(&wanted).await {
            Ok(_) => context.events.normal(
                set,
                "SuccessfulCreate",
                format!("create Claim {name} Pod {set_name}-{ordinal} in StatefulSet {set_name} success"),
            ),
            Err(failure) if failure.already_exists() => {}
            Err(failure) => {
                context.events.warning(
                    set,
                    "FailedCreate",
                    format!(
                        "create Claim {name} for Pod {set_name}-{ordinal} in StatefulSet {set_name} failed error: {}",
                        failure.message()
                    ),
                );
                return Err(failure.into());
            }
        }
    }
    Ok(())
}

/// Claims follow their set or their pod only where the set says so.
async fn retain_claims(context: &Context, set: &StatefulSet) -> anyhow::Result<()> {
    let Some(spec) = &set.spec else { return Ok(()) };
    if spec.volume_claim_templates.as_ref().is_none_or(Vec::is_empty) {
        return Ok(());
    }
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    for claim in context.caches.claims.in_namespace(namespace) {
        let Some(ordinal) = pod::claim_ordinal(set, &claim) else { continue };
        let pod = context.caches.pods.named(namespace, &pod::name(set, ordinal));
        let references = pod::claim_owners(set, &claim, ordinal, pod.as_deref());
        let before: &PersistentVolumeClaim = &claim;
        if before.metadata.owner_references.clone().unwrap_or_default() != references {
            let patch = serde_json::json!({"metadata": {
                "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": references,
            }});
            context.caches.claims.merge(None, &claim, &patch).await?;
        }
    }
    Ok(())
}
