//! CronJobs: a job at each time of a schedule; and jobs that go some time after their end.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use control_client::events::reference;
use control_client::{Key, Queue, owner};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::core::params::DeleteParams;

use super::job::{finished_at, has_failed};
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};
use schedule::Schedule;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are not counted out.
const MOST_MISSED: usize = 100;

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    let ended = Arc::new(Queue::<Key>::default());
    context.caches.cron_jobs.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    context.caches.jobs.subscribe({
        let (queue, ended) = (queue.clone(), ended.clone());
        move |change| {
            let meta = &change.object().metadata;
            if let Some(parent) = owner::controller_of(meta).filter(|r| r.kind == "CronJob") {
                queue.add(Key::new(meta.namespace.as_deref().unwrap_or_default(), &parent.name));
            }
            ended.add(Key::of(&**change.object()));
        }
    });
    runner::run("cronjob", &queue, 1, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { work(&context, &key).await }
        }
    });
    runner::run("ttl-after-finished", &ended, 1, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { clean(&context, &key).await }
        }
    });
}

/// Deletes a job some time after its end, where it says so.
async fn clean(context: &Context, key: &Key) -> Worked {
    let Some(job) = context.caches.jobs.get(key) else { return Ok(Outcome::Done) };
    let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
    let (Some(ttl), Some(end)) = (ttl, finished_at(&job)) else { return Ok(Outcome::Done) };
    if job.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let left = end.as_second() + i64::from(ttl) - Timestamp::now().as_second();
    if left > 0 {
        return Ok(Outcome::after_secs(Some(left)));
    }
    context.caches.jobs.delete_with(&job, DeleteParams::foreground()).await?;
    Ok(Outcome::Done)
}

/// When the schedule says that a job is due.
#[derive(Debug, PartialEq)]
struct Due {
    /// The latest time that has come and has no job yet.
    now: Option<Timestamp>,
    next: Option<Timestamp>,
}

fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Due {
    let spec = cron.spec.clone();
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let mut from = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
    if let Some(deadline) = spec.starting_deadline_seconds {
        let earliest = Timestamp::from_second(now.as_second() - deadline).unwrap_or(from);
        from = from.max(earliest);
    }
    let mut latest = None;
    for _ in 0..MOST_MISSED {
        match schedule.next(from, zone) {
            Some(time) if time <= now => {
                latest = Some(time);
                from = time;
            }
            next => return Due { now: latest, next },
        }
    }
    // Too many were missed: only the newest counts, found from a little before now.
    let near = Timestamp::from_second(now.as_second() - 3600).unwrap_or(from).max(from);
    let recent = std::iter::successors(schedule.next(near, zone), |t| schedule.next(*t, zone));
    let newest = recent.take_while(|t| *t <= now).last().or(latest);
    Due { now: newest, next: schedule.next(now, zone) }
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(cron) = context.caches.cron_jobs.get(key) else { return Ok(Outcome::Done) };
    let spec = cron.spec.clone();
    if cron.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let uid = cron.metadata.uid.clone().unwrap_or_default();
    let jobs = context.caches.jobs.controlled_by(&uid);
    trim_history(context, &cron, &jobs).await?;
    let mut cron = note_jobs(context, cron, &jobs).await?;
    if spec.suspend == Some(true) {
        return Ok(Outcome::Done);
    }
    let zone = match spec.time_zone.as_deref().map(TimeZone::get) {
        None => TimeZone::UTC,
        Some(Ok(zone)) => zone,
        Some(Err(error)) => {
            let name = spec.time_zone.unwrap_or_default();
            context.events.warning(&*cron, "UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}"));
            return Ok(Outcome::Done);
        }
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            context.events.warning(
                &*cron,
                "UnparseableSchedule",
                format!("unparseable schedule: {:?}: {error:#}", spec.schedule),
            );
            return Ok(Outcome::Done);
        }
    };
    let now = Timestamp::now();
    let due = due(&cron, &schedule, &zone, now);
    if let Some(time) = due.now {
        let active: Vec<_> = jobs.iter().filter(|j| is_active(&cron, j)).collect();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                context.events.normal(
                    &*cron,
                    "JobAlreadyActive",
                    "Not starting job because prior execution is running and concurrency policy is Forbid",
                );
                // Looked at again when the job that runs has ended.
                return Ok(outcome(due.next, now));
            }
            Some("Replace") => {
                for job in active {
                    context.caches.jobs.delete_with(job, DeleteParams::background()).await?;
                    let name = job.metadata.name.as_deref().unwrap_or_default();
                    context.events.normal(&*cron, "SuccessfulDelete", format!("Deleted job {name}"));
                }
            }
            _ => {}
        }
        cron = begin(context, cron, time).await?;
        tracing::debug!("cron job {} ran for {time}", Key::of(&*cron));
    }
    Ok(outcome(due.next, now))
}

fn outcome(next: Option<Timestamp>, now: Timestamp) -> Outcome {
    match next {
        Some(next) => {
            let left = next.duration_since(now).as_millis().max(0) as u64;
            // A moment later, so that the time has come for sure.
            Outcome::After(Duration::from_millis(left + 100))
        }
        None => Outcome::Done,
    }
}

async fn begin(context: &Context, cron: Arc<CronJob>, time: Timestamp) -> anyhow::Result<Arc<CronJob>> {
    let template = cron.spec.clone().job_template;
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), time.to_string());
    // The minute in the name: two of these processes cannot make the job twice.
    let name = format!("{}-{}", cron.metadata.name.as_deref().unwrap_or_default(), time.as_second() / 60);
    let job = Job {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner::controller_reference(&*cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    let made = match context.caches.jobs.create(&job).await {
        Ok(made) => {
            context.events.normal(&*cron, "SuccessfulCreate", format!("Created job {name}"));
            made
        }
        // Made before, and the status was not written.
        Err(failure) if failure.already_exists() => {
            Arc::new(context.client.get::<Job>(cron.metadata.namespace.as_deref(), &name).await?)
        }
        Err(failure) => {
            context.events.warning(&*cron, "FailedCreate", format!("Error creating job: {}", failure.message()));
            return Err(failure.into());
        }
    };
    let mut updated = (*cron).clone();
    let status = updated.status.get_or_insert_default();
    status.last_schedule_time = Some(Time(time));
    let uid = cron.metadata.uid.as_deref().unwrap_or_default();
    if owner::is_controlled_by(&made.metadata, uid) && finished_at(&made).is_none() && !is_active(&cron, &made) {
        status.active.get_or_insert_default().push(reference(&*made));
    }
    Ok(context.caches.cron_jobs.replace_status(&updated).await?)
}

/// Whether the job is one that the schedule began, as the status says.
fn is_active(cron: &CronJob, job: &Job) -> bool {
    let active = cron.status.iter().flat_map(|s| s.active.iter().flatten());
    active.into_iter().any(|known| known.uid == job.metadata.uid)
}

/// The status as the jobs are now, and the names of those that run and were not begun by the schedule: a person may
/// have made them from it, and they hold nothing up.
fn plan_status(cron: &CronJob, jobs: &[Arc<Job>]) -> (CronJobStatus, Vec<String>) {
    let mut status = cron.status.clone().unwrap_or_default();
    let (known, unexpected): (Vec<_>, Vec<_>) =
        jobs.iter().filter(|j| finished_at(j).is_none()).partition(|j| is_active(cron, j));
    if let Some(active) = &mut status.active {
        active.retain(|r| known.iter().any(|j| j.metadata.uid == r.uid));
    }
    status.active = status.active.filter(|a| !a.is_empty());
    let success = jobs.iter().filter(|j| !has_failed(j)).filter_map(|j| finished_at(j)).max();
    status.last_successful_time = status.last_successful_time.max(success.map(Time));
    (status, unexpected.into_iter().filter_map(|j| j.metadata.name.clone()).collect())
}

/// Writes down which of the schedule's jobs run, and the latest success.
async fn note_jobs(context: &Context, cron: Arc<CronJob>, jobs: &[Arc<Job>]) -> anyhow::Result<Arc<CronJob>> {
    let (status, unexpected) = plan_status(&cron, jobs);
    for name in unexpected {
        let message = format!("Saw a job that the controller did not create or forgot: {name}");
        context.events.warning(&*cron, "UnexpectedJob", message);
    }
    if cron.status.clone().unwrap_or_default() == status {
        return Ok(cron);
    }
    let mut updated = (*cron).clone();
    updated.status = Some(status);
    Ok(context.caches.cron_jobs.replace_status(&updated).await?)
}

async fn trim_history(context: &Context, cron: &CronJob, jobs: &[Arc<Job>]) -> anyhow::Result<()> {
    let spec = cron.spec.clone();
    let limits =
        [(false, spec.successful_jobs_history_limit.unwrap_or(3)), (true, spec.failed_jobs_history_limit.unwrap_or(1))];
    for (failed, limit) in limits {
        let mut ended: Vec<_> = jobs
            .iter()
            .filter(|j| finished_at(j).is_some() && has_failed(j) == failed && j.metadata.deletion_timestamp.is_none())
            .collect();
        ended.sort_by_key(|j| j.metadata.creation_timestamp.clone());
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for job in ended.into_iter().take(surplus) {
            context.caches.jobs.delete_with(job, DeleteParams::background()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

    fn job(name: &str, finished: Option<&str>) -> Arc<Job> {
        let mut job = Job::default();
        job.metadata.name = Some(name.into());
        job.metadata.uid = Some(format!("uid of {name}"));
        let end = |kind: &str| JobCondition {
            type_: kind.into(),
            status: "True".into(),
            last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
            ..JobCondition::default()
        };
        job.status = finished.map(|kind| JobStatus { conditions: Some(vec![end(kind)]), ..JobStatus::default() });
        Arc::new(job)
    }

    #[test]
    fn only_the_schedules_own_jobs_are_active() {
        let (own, ended, manual) = (job("own", None), job("ended", Some("Complete")), job("manual", None));
        let active = [&own, &ended, &job("gone", None)].map(|j| reference(&**j)).to_vec();
        let mut cron = CronJob::default();
        cron.status.get_or_insert_default().active = Some(active);
        let failed = job("failed", Some("Failed"));
        let (status, unexpected) = plan_status(&cron, &[own.clone(), ended, manual.clone(), failed]);
        assert_eq!(unexpected, ["manual"], "what has ended surprises nobody");
        assert_eq!(status.active, Some(vec![reference(&*own)]));
        assert_eq!(status.last_successful_time, Some(Time(Timestamp::UNIX_EPOCH)));
        cron.status = Some(status);
        assert!(is_active(&cron, &own) && !is_active(&cron, &manual), "Forbid and Replace ask this");
        let (status, _) = plan_status(&cron, &[manual]);
        assert_eq!(status.active, None);
    }
}
