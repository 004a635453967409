//! One step of a job: what its pods mean for its status, which pods to make and which to end. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use control_client::pods;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::policy::{self, Meaning};
use super::{indexes, restarts_of_running};

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Pause before a failed pod is replaced; it doubles with each failure.
const FIRST_PAUSE_SECS: i64 = 10;
const LONGEST_PAUSE_SECS: i64 = 600;
/// Pods made in one step.
const BURST: usize = 500;

/// What to do.
#[derive(Debug, Default)]
pub struct Step {
    /// The new status, where it differs.
    pub status: Option<JobStatus>,
    /// Pods to make, with their index where the job has indexes.
    pub create: Vec<Option<i32>>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods whose finalizer has done its work.
    pub strip: Vec<Arc<Pod>>,
    /// Warning or not, reason, message.
    pub events: Vec<(bool, &'static str, String)>,
    pub again: bool,
    pub look_again_secs: Option<i64>,
}

pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

fn has(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let all = status.conditions.get_or_insert_default();
    let condition = JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
        message: Some(message.to_owned()).filter(|m| !m.is_empty()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match all.iter_mut().find(|c| c.type_ == kind) {
        Some(old) if old.status == value => {}
        Some(old) => *old = condition,
        None => all.push(condition),
    }
}

/// A verdict on the whole job.
enum End {
    Success(&'static str, String),
    Failure(&'static str, String),
}

struct Work<'a> {
    spec: &'a JobSpec,
    indexed: bool,
    status: JobStatus,
    completed: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    succeeded: i32,
    failed: i32,
    fail_job: Option<String>,
    step: Step,
    now: Timestamp,
}

pub fn plan(job: &Job, all: &[Arc<Pod>], now: Timestamp) -> Step {
    let Some(spec) = &job.spec else { return Step::default() };
    let before = job.status.clone().unwrap_or_default();
    if has(&before, "Complete") || has(&before, "Failed") {
        return after_the_end(all);
    }
    let mut work = Work {
        spec,
        indexed: spec.completion_mode.as_deref() == Some("Indexed"),
        completed: indexes::parse(before.completed_indexes.as_deref().unwrap_or_default()),
        failed_indexes: indexes::parse(before.failed_indexes.as_deref().unwrap_or_default()),
        succeeded: before.succeeded.unwrap_or(0),
        failed: before.failed.unwrap_or(0),
        fail_job: None,
        status: before.clone(),
        step: Step::default(),
        now,
    };
    work.begin();
    work.count(job, all);
    let active: Vec<_> = all.iter().filter(|p| pods::is_active(p)).cloned().collect();
    work.run(job, all, &active);
    work.finish(all, &active);
    let mut step = work.step;
    let mut status = work.status;
    status.active = positive(active.len() as i32 + step.create.len() as i32 - step.delete.len() as i32);
    status.ready = Some(active.iter().filter(|p| pods::is_ready(p)).count() as i32);
    status.terminating = Some(all.iter().filter(|p| pods::is_terminating(p) && !pods::is_terminal(p)).count() as i32);
    // Written only where it differs from what is known.
    let same = normal(&status) == normal(&before);
    step.status = (!same).then_some(status);
    step
}

fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}

/// Zero and nothing mean the same.
fn normal(status: &JobStatus) -> JobStatus {
    let mut status = status.clone();
    for count in
        [&mut status.active, &mut status.ready, &mut status.terminating, &mut status.succeeded, &mut status.failed]
    {
        *count = count.filter(|c| *c != 0);
    }
    status.uncounted_terminated_pods = status
        .uncounted_terminated_pods
        .filter(|u| u.failed.iter().flatten().count() + u.succeeded.iter().flatten().count() > 0);
    status.completed_indexes = status.completed_indexes.filter(|t| !t.is_empty());
    status.failed_indexes = status.failed_indexes.filter(|t| !t.is_empty());
    status
}

fn after_the_end(all: &[Arc<Pod>]) -> Step {
    Step {
        delete: all.iter().filter(|p| pods::is_active(p)).cloned().collect(),
        strip: all.iter().filter(|p| is_tracked(p)).cloned().collect(),
        ..Step::default()
    }
}

impl Work<'_> {
    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn begin(&mut self) {
        if self.is_suspended() {
            if !has(&self.status, "Suspended") {
                set(&mut self.status, "Suspended", "True", "JobSuspended", "Job suspended", self.now);
                self.step.events.push((false, "Suspended", "Job suspended".to_owned()));
            }
            self.status.start_time = None;
            return;
        }
        if has(&self.status, "Suspended") {
            set(&mut self.status, "Suspended", "False", "JobResumed", "Job resumed", self.now);
            self.step.events.push((false, "Resumed", "Job resumed".to_owned()));
            self.status.start_time = None;
        }
        self.status.start_time.get_or_insert(Time(self.now));
    }

    /// Terminating pods count as failed at once, unless the job wants to see how they end.
    fn is_failed(&self, pod: &Pod) -> bool {
        let waits =
            self.spec.pod_failure_policy.is_some() || self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        pods::phase(pod) == "Failed" || (!waits && pods::is_terminating(pod) && pods::phase(pod) != "Succeeded")
    }

    fn count(&mut self, job: &Job, all: &[Arc<Pod>]) {
        let lists = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let held = |id: &String| all.iter().any(|p| uid(p) == *id && is_tracked(p));
        let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
        for id in lists.succeeded.into_iter().flatten() {
            if held(&id) {
                succeeded.push(id);
            } else if !self.indexed {
                self.succeeded += 1;
            }
        }
        for id in lists.failed.into_iter().flatten() {
            if held(&id) { failed.push(id) } else { self.failed += 1 }
        }
        for pod in all.iter().filter(|p| is_tracked(p)) {
            let id = uid(pod);
            let index = index_of(pod);
            if pods::phase(pod) == "Succeeded" {
                if let Some(index) = index.filter(|_| self.indexed) {
                    self.completed.insert(index);
                }
                if !succeeded.contains(&id) {
                    succeeded.push(id);
                }
                self.step.strip.push(pod.clone());
            } else if self.is_failed(pod) {
                let known = failed.contains(&id);
                match policy::judge(job, pod) {
                    Meaning::Ignore => {}
                    Meaning::FailJob(message) => {
                        self.fail_job.get_or_insert(message);
                        if !known {
                            failed.push(id);
                        }
                    }
                    Meaning::FailIndex => {
                        self.failed_indexes.extend(index);
                        if !known {
                            failed.push(id);
                        }
                    }
                    Meaning::Count if !known => failed.push(id),
                    Meaning::Count => {}
                }
                self.step.strip.push(pod.clone());
            }
        }
        let uncounted = (succeeded.len(), failed.len());
        if self.indexed {
            // A job that was made smaller has no indexes beyond its completions any more.
            self.completed.retain(|i| self.spec.completions.is_none_or(|n| *i < n));
            self.status.completed_indexes = Some(indexes::format(&self.completed)).filter(|t| !t.is_empty());
            self.succeeded = self.completed.len() as i32;
        }
        self.status.succeeded = positive(self.succeeded);
        self.status.failed = positive(self.failed);
        self.status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: Some(succeeded).filter(|l| !l.is_empty()),
            failed: Some(failed).filter(|l| !l.is_empty()),
        });
        // From here on the sums hold those that are written down but not yet let go, too.
        if !self.indexed {
            self.succeeded += uncounted.0 as i32;
        }
        self.failed += uncounted.1 as i32;
        self.step.again = !self.step.strip.is_empty();
    }

    fn fail_indexes(&mut self, all: &[Arc<Pod>]) {
        let Some(limit) = self.spec.backoff_limit_per_index else { return };
        let mut counts = std::collections::BTreeMap::new();
        for pod in all.iter().filter(|p| self.is_failed(p)) {
            if let Some(index) = index_of(pod) {
                *counts.entry(index).or_insert(0) += 1;
            }
        }
        let over = counts.into_iter().filter(|(_, count)| *count > limit).map(|(index, _)| index);
        self.failed_indexes.extend(over);
        let spec = self.spec;
        self.failed_indexes.retain(|i| !self.completed.contains(i) && spec.completions.is_none_or(|n| *i < n));
        self.status.failed_indexes = Some(indexes::format(&self.failed_indexes));
    }

    fn verdict(&self, all: &[Arc<Pod>], active: usize) -> Option<End> {
        if let Some(message) = &self.fail_job {
            return Some(End::Failure("PodFailurePolicy", message.clone()));
        }
        let on_failure =
            self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let restarts = if on_failure { restarts_of_running(all) } else { 0 };
        if self.failed > limit || (restarts > 0 && restarts >= limit) {
            return Some(End::Failure(
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit".to_owned(),
            ));
        }
        let started = self.status.start_time.as_ref().map_or(self.now, |t| t.0);
        if !self.is_suspended()
            && let Some(deadline) = self.spec.active_deadline_seconds
            && self.now.as_second() - started.as_second() >= deadline
        {
            return Some(End::Failure("DeadlineExceeded", "Job was active longer than specified deadline".to_owned()));
        }
        if let Some(most) = self.spec.max_failed_indexes
            && self.failed_indexes.len() as i32 > most
        {
            return Some(End::Failure(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes".to_owned(),
            ));
        }
        if self.by_success_policy() {
            return Some(End::Success("SuccessPolicy", "Matched rules at index 0".to_owned()));
        }
        let reached =
            || Some(End::Success("CompletionsReached", "Reached expected number of succeeded pods".to_owned()));
        match self.spec.completions {
            None if self.succeeded > 0 && active == 0 => reached(),
            None => None,
            Some(wanted) if self.succeeded >= wanted => reached(),
            Some(wanted) if self.succeeded + self.failed_indexes.len() as i32 >= wanted => {
                Some(End::Failure("FailedIndexes", "Job has failed indexes".to_owned()))
            }
            Some(_) => None,
        }
    }

    fn by_success_policy(&self) -> bool {
        let rules = self.spec.success_policy.as_ref().map(|p| p.rules.as_slice()).unwrap_or_default();
        self.indexed
            && rules.iter().any(|rule| {
                let counted = match &rule.succeeded_indexes {
                    Some(text) => {
                        let listed = indexes::parse(text);
                        let met = listed.intersection(&self.completed).count() as i32;
                        (met, listed.len() as i32)
                    }
                    None => (self.completed.len() as i32, i32::MAX),
                };
                counted.0 >= rule.succeeded_count.unwrap_or(counted.1)
            })
    }

    fn run(&mut self, job: &Job, all: &[Arc<Pod>], active: &[Arc<Pod>]) {
        self.fail_indexes(all);
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let decided = has(&self.status, "SuccessCriteriaMet") || has(&self.status, "FailureTarget");
        if !decided {
            match self.verdict(all, active.len()) {
                Some(End::Success(reason, message)) => {
                    set(&mut self.status, "SuccessCriteriaMet", "True", reason, &message, self.now);
                }
                Some(End::Failure(reason, message)) => {
                    tracing::debug!("job {name}: {message}");
                    set(&mut self.status, "FailureTarget", "True", reason, &message, self.now);
                }
                None => return self.scale(all, active),
            }
        }
        self.step.delete = active.to_vec();
    }

    /// How many pods there should be, and which.
    fn scale(&mut self, all: &[Arc<Pod>], active: &[Arc<Pod>]) {
        if self.is_suspended() {
            self.step.delete = active.to_vec();
            return;
        }
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0);
        let wanted = match self.spec.completions {
            None if self.succeeded > 0 => (active.len() as i32).min(parallelism),
            None => parallelism,
            Some(completions) => {
                (completions - self.succeeded - self.failed_indexes.len() as i32).clamp(0, parallelism)
            }
        } as usize;
        if active.len() > wanted {
            let mut order = active.to_vec();
            order.sort_by_key(|p| {
                (
                    pods::is_ready(p),
                    pods::phase(p) == "Running",
                    std::cmp::Reverse(p.metadata.creation_timestamp.clone()),
                )
            });
            order.truncate(active.len() - wanted);
            self.step.delete = order;
            return;
        }
        // Pods on their way out hold their place where the job waits for them.
        let leaving = if self.spec.pod_replacement_policy.as_deref() == Some("Failed")
            || self.spec.pod_failure_policy.is_some()
        {
            all.iter().filter(|p| pods::is_terminating(p) && !pods::is_terminal(p)).count()
        } else {
            0
        };
        let missing = wanted.saturating_sub(active.len() + leaving).min(BURST);
        if missing == 0 {
            return self.watch_deadline();
        }
        if let Some(pause) = self.pause(all).filter(|p| *p > 0) {
            self.step.look_again_secs = Some(pause);
            return;
        }
        self.step.create = if self.indexed { self.free_indexes(active, missing) } else { vec![None; missing] };
        self.watch_deadline();
    }

    fn watch_deadline(&mut self) {
        if let (Some(deadline), Some(start)) = (self.spec.active_deadline_seconds, &self.status.start_time) {
            let left = start.0.as_second() + deadline - self.now.as_second();
            self.step.look_again_secs = Some(left.max(1));
        }
    }

    fn free_indexes(&self, active: &[Arc<Pod>], count: usize) -> Vec<Option<i32>> {
        let used: BTreeSet<i32> = active.iter().filter_map(|p| index_of(p)).collect();
        (0..self.spec.completions.unwrap_or(0))
            .filter(|i| !used.contains(i) && !self.completed.contains(i) && !self.failed_indexes.contains(i))
            .take(count)
            .map(Some)
            .collect()
    }

    /// Seconds until the next pod may be made, after failures.
    fn pause(&self, all: &[Arc<Pod>]) -> Option<i64> {
        let ended = |p: &Arc<Pod>| {
            let status = p.status.as_ref()?;
            let by_container = status
                .container_statuses
                .iter()
                .flatten()
                .filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0))
                .max();
            by_container.or_else(|| pods::condition(p, "Ready")?.last_transition_time.as_ref().map(|t| t.0))
        };
        let last_success = all.iter().filter(|p| pods::phase(p) == "Succeeded").filter_map(ended).max();
        let failures: Vec<_> = all
            .iter()
            .filter(|p| pods::phase(p) == "Failed")
            .filter_map(ended)
            .filter(|t| last_success.is_none_or(|s| *t > s))
            .collect();
        let last = failures.iter().max()?;
        let doubled = FIRST_PAUSE_SECS << (failures.len() - 1).min(10);
        Some(last.as_second() + doubled.min(LONGEST_PAUSE_SECS) - self.now.as_second())
    }

    /// The last word, once nothing runs any more and everything is counted.
    fn finish(&mut self, all: &[Arc<Pod>], active: &[Arc<Pod>]) {
        let runs = !active.is_empty() || all.iter().any(|p| pods::is_terminating(p) && !pods::is_terminal(p));
        let open = self
            .status
            .uncounted_terminated_pods
            .as_ref()
            .is_some_and(|u| u.failed.iter().flatten().count() + u.succeeded.iter().flatten().count() > 0);
        if runs || open {
            return;
        }
        let find = |status: &JobStatus, kind: &str| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True").cloned();
            found.map(|c| (c.reason.unwrap_or_default(), c.message.unwrap_or_default()))
        };
        if let Some((reason, message)) = find(&self.status, "SuccessCriteriaMet") {
            set(&mut self.status, "Complete", "True", &reason, &message, self.now);
            self.status.completion_time = Some(Time(self.now));
            self.step.events.push((false, "Completed", "Job completed".to_owned()));
        } else if let Some((reason, message)) = find(&self.status, "FailureTarget") {
            set(&mut self.status, "Failed", "True", &reason, &message, self.now);
            let event = match reason.as_str() {
                "DeadlineExceeded" => "DeadlineExceeded",
                "PodFailurePolicy" => "PodFailurePolicy",
                "FailedIndexes" => "FailedIndexes",
                "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
                _ => "BackoffLimitExceeded",
            };
            self.step.events.push((true, event, message));
        }
    }
}

#[cfg(test)]
mod tests;
