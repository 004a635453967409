//! Jobs: pods that run to their end, so many times.
//!
//! Each pod carries a finalizer until its end has been counted in the job's status:
//! first its uid is written down as uncounted, then the finalizer goes, then it is counted.
//! So no end is counted twice or forgotten, whenever this process stops.

mod indexes;
mod plan;
mod policy;

use std::sync::Arc;

use control_client::{Failure, Key, Queue, pods, selector};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::claim::{claim, wake_owners};
use super::make;
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};
use plan::{FINALIZER, INDEX};

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.caches.jobs.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    context.caches.pods.subscribe({
        let (queue, store) = (queue.clone(), context.caches.jobs.clone());
        move |change| {
            wake_owners(change, &store, &queue, |job: &Job, meta| {
                let wanted = job.spec.as_ref().and_then(|s| s.selector.as_ref());
                wanted.is_some_and(|s| !selector::is_empty(s) && selector::matches(s, meta.labels.as_ref()))
            });
        }
    });
    // Pods whose job is gone must not be held by its finalizer.
    let orphans = Arc::new(Queue::<Key>::default());
    context.caches.pods.subscribe({
        let orphans = orphans.clone();
        move |change| {
            if plan::is_tracked(change.object()) && change.object().metadata.deletion_timestamp.is_some() {
                orphans.add(Key::of(&**change.object()));
            }
        }
    });
    runner::run("job-orphans", &orphans, 1, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { free_orphan(&context, &key).await }
        }
    });
    let context = context.clone();
    runner::run("job", &queue, 3, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

async fn free_orphan(context: &Context, key: &Key) -> Worked {
    let Some(pod) = context.caches.pods.get(key) else { return Ok(Outcome::Done) };
    let job = control_client::owner::controller_of(&pod.metadata).filter(|r| r.kind == "Job").and_then(|r| {
        context.caches.jobs.named(&key.namespace, &r.name).filter(|j| j.metadata.uid.as_ref() == Some(&r.uid))
    });
    if job.is_none() && plan::is_tracked(&pod) {
        strip(context, &pod).await?;
    }
    Ok(Outcome::Done)
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(job) = context.caches.jobs.get(key) else { return Ok(Outcome::Done) };
    let Some(spec) = &job.spec else { return Ok(Outcome::Done) };
    let foreign = spec.managed_by.as_deref().is_some_and(|m| m != "kubernetes.io/job-controller");
    if foreign || job.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let wanted = spec.selector.clone().unwrap_or_default();
    let mine = claim(&*job, &wanted, &context.caches.pods, plan::is_tracked).await?;
    let step = plan::plan(&job, &mine, Timestamp::now());

    let mut job = job.clone();
    if let Some(status) = step.status {
        let mut updated = (*job).clone();
        updated.status = Some(status);
        match context.caches.jobs.replace_status(&updated).await {
            Ok(written) => job = written,
            Err(failure) if failure.is_not_found() => return Ok(Outcome::Done),
            Err(failure) => return Err(failure.into()),
        }
    }
    for (warning, reason, message) in step.events {
        if warning {
            context.events.warning(&*job, reason, message);
        } else {
            context.events.normal(&*job, reason, message);
        }
    }
    let stripped = futures::future::join_all(step.strip.iter().map(|pod| strip(context, pod))).await;
    stripped.into_iter().collect::<Result<Vec<_>, _>>()?;
    make::delete_pods(context, &*job, &step.delete).await?;
    let pods: Vec<Pod> = step.create.iter().map(|index| new_pod(&job, *index)).collect();
    if let (_, Some(failure)) = make::create_pods(context, &*job, pods).await {
        return Err(failure.into());
    }
    if step.again {
        return Ok(Outcome::After(std::time::Duration::ZERO));
    }
    Ok(Outcome::after_secs(step.look_again_secs))
}

/// Lets go of a pod whose end is written down.
async fn strip(context: &Context, pod: &Pod) -> Result<(), Failure> {
    let left: Vec<_> = pod.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER).cloned().collect();
    let patch = serde_json::json!({"metadata": {
        "uid": pod.metadata.uid,
        "resourceVersion": pod.metadata.resource_version,
        "finalizers": Some(left).filter(|l| !l.is_empty()),
    }});
    match context.caches.pods.merge(None, pod, &patch).await {
        Err(failure) if !failure.is_not_found() => Err(failure),
        _ => Ok(()),
    }
}

fn new_pod(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = make::pod_from(job, &template);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    for map in [&mut pod.metadata.annotations, &mut pod.metadata.labels] {
        map.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname.get_or_insert_with(|| format!("{name}-{index}"));
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
                env.push(index_variable());
            }
        }
    }
    pod
}

fn index_variable() -> EnvVar {
    EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// Whether the job has ended, and when.
pub fn finished_at(job: &Job) -> Option<Timestamp> {
    let ended = job
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.status == "True" && (c.type_ == "Complete" || c.type_ == "Failed"))?;
    ended.last_transition_time.as_ref().map(|t| t.0)
}

pub fn has_failed(job: &Job) -> bool {
    job.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.status == "True" && c.type_ == "Failed")
}

/// How often containers of pods that still run have started again.
fn restarts_of_running(all: &[Arc<Pod>]) -> i32 {
    all.iter()
        .filter(|p| !pods::is_terminal(p))
        .flat_map(|p| p.status.iter())
        .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()))
        .map(|c| c.restart_count)
        .sum()
}
