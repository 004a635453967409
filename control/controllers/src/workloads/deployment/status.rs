//! The status of a deployment: counts, and the conditions that `kubectl rollout status` waits for. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

pub struct Next {
    pub status: DeploymentStatus,
    /// When the deadline of the rollout comes.
    pub look_again_secs: Option<i64>,
}

fn sum(all: &[Arc<ReplicaSet>], of: impl Fn(&ReplicaSet) -> Option<i32>) -> i32 {
    all.iter().filter_map(|s| of(s)).sum()
}

pub fn next(deployment: &Deployment, all: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>, now: Timestamp) -> Next {
    let before = deployment.status.clone().unwrap_or_default();
    let sizes = rollout::sizes(deployment);
    let of = |set: &ReplicaSet, field: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        set.status.as_ref().and_then(field)
    };
    let available = sum(all, |s| of(s, |s| s.available_replicas));
    let total = sum(all, |s| of(s, |s| Some(s.replicas)));
    let spec_total = sum(all, |s| s.spec.as_ref().and_then(|s| s.replicas));
    let terminating = sum(all, |s| of(s, |s| s.terminating_replicas));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(total),
        updated_replicas: new.and_then(|s| of(s, |s| Some(s.replicas))).and_then(positive),
        ready_replicas: positive(sum(all, |s| of(s, |s| s.ready_replicas))),
        available_replicas: positive(available),
        unavailable_replicas: positive((spec_total - available).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    let enough = available >= sizes.wanted - sizes.unavailable;
    set(
        &mut status,
        if enough {
            condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
        } else {
            condition(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
                now,
            )
        },
    );
    let look_again_secs = progress(deployment, &before, &mut status, new, now);
    fail(&mut status, all, new, now);
    Next { status, look_again_secs }
}

/// Zero is left out, as upstream does.
fn positive(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets the condition; one that says the same as before keeps its times.
fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let all = status.conditions.get_or_insert_default();
    match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) if old.status == new.status && old.reason == new.reason => {}
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => all.push(new),
    }
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(all) = &mut status.conditions {
        all.retain(|c| c.type_ != kind);
    }
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    [status.updated_replicas, status.replicas, status.available_replicas].iter().all(|n| n.unwrap_or(0) == wanted)
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let old = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(after.updated_replicas) > n(before.updated_replicas)
        || old(after) < old(before)
        || n(after.ready_replicas) > n(before.ready_replicas)
        || n(after.available_replicas) > n(before.available_replicas)
}

/// Keeps the Progressing condition; says when the deadline comes.
fn progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> Option<i64> {
    let spec = deployment.spec.as_ref()?;
    let Some(deadline) = spec.progress_deadline_seconds.filter(|d| *d != i32::MAX) else {
        remove(status, PROGRESSING);
        return None;
    };
    let what = match new.and_then(|s| s.metadata.name.as_deref()) {
        Some(name) => format!("ReplicaSet {name:?}"),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let current = find(status, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or_default();
    if spec.paused == Some(true) {
        if reason != TIMED_OUT {
            set(status, condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused", now));
        }
        return None;
    }
    if reason == "DeploymentPaused" {
        set(status, condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed", now));
    }
    if is_complete(deployment, status) {
        set(status, condition(PROGRESSING, "True", DONE, &format!("{what} has successfully progressed."), now));
        return None;
    }
    let template_is_new = reason == DONE && before.observed_generation != status.observed_generation && {
        // Another template, not merely another size.
        status.updated_replicas.unwrap_or(0) < before.updated_replicas.unwrap_or(0)
    };
    if has_progressed(before, status) || current.is_none() || template_is_new {
        let mut updated = condition(PROGRESSING, "True", "ReplicaSetUpdated", &format!("{what} is progressing."), now);
        if let Some(current) = &current
            && current.status == updated.status
        {
            updated.last_transition_time = current.last_transition_time.clone();
        }
        remove(status, PROGRESSING);
        status.conditions.get_or_insert_default().push(updated);
        return Some(i64::from(deadline) + 1);
    }
    if matches!(reason, DONE | TIMED_OUT) {
        // A finished rollout whose pods fall ill is no rollout that got stuck.
        return None;
    }
    let since = current.and_then(|c| c.last_update_time).map_or(now, |t| t.0);
    let left = since.as_second() + i64::from(deadline) - now.as_second();
    if left > 0 {
        return Some(left + 1);
    }
    set(status, condition(PROGRESSING, "False", TIMED_OUT, &format!("{what} has timed out progressing."), now));
    None
}

/// Passes on what the sets say about pods that cannot be made.
fn fail(status: &mut DeploymentStatus, all: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>, now: Timestamp) {
    let of = |set: &ReplicaSet| {
        set.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == FAILURE).cloned()
    };
    let failure = new.and_then(of).or_else(|| all.iter().find_map(|s| of(s)));
    match failure {
        Some(failure) => set(
            status,
            condition(
                FAILURE,
                &failure.status,
                failure.reason.as_deref().unwrap_or_default(),
                failure.message.as_deref().unwrap_or_default(),
                now,
            ),
        ),
        None => remove(status, FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec, ReplicaSetStatus};

    #[test]
    fn conditions_tell_progress_success_and_deadline() {
        let mut deployment = Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(2),
                progress_deadline_seconds: Some(60),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        let set = |ready: i32| {
            Arc::new(ReplicaSet {
                spec: Some(ReplicaSetSpec { replicas: Some(2), ..ReplicaSetSpec::default() }),
                status: Some(ReplicaSetStatus {
                    replicas: 2,
                    ready_replicas: Some(ready),
                    available_replicas: Some(ready),
                    ..ReplicaSetStatus::default()
                }),
                ..ReplicaSet::default()
            })
        };
        let at = |secs| Timestamp::from_second(secs).unwrap();
        let reason = |status: &DeploymentStatus| find(status, PROGRESSING).unwrap().reason.clone().unwrap();
        let sick = set(0);
        let first = next(&deployment, std::slice::from_ref(&sick), Some(&sick), at(0));
        assert_eq!((reason(&first.status).as_str(), first.look_again_secs), ("ReplicaSetUpdated", Some(61)));
        deployment.status = Some(first.status);
        let stuck = next(&deployment, std::slice::from_ref(&sick), Some(&sick), at(61));
        assert_eq!(reason(&stuck.status), TIMED_OUT);
        let well = set(2);
        let done = next(&deployment, std::slice::from_ref(&well), Some(&well), at(30));
        assert_eq!(reason(&done.status), DONE);
        assert_eq!(find(&done.status, AVAILABLE).unwrap().status, "True");
    }
}
