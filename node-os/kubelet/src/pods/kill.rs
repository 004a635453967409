//! Ending containers: preStop hook, SIGTERM, and SIGKILL when the grace is over. Sidecars end
//! after the others, the last one first.

use super::observed::{Container as Seen, Observed};
use super::spec::{self, Kind};
use crate::cri::Cri;
use crate::events::{self, Recorder};
use crate::probes::attempt;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Even a container that is to end at once gets this long to do so by itself.
pub const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Ends one container.
pub struct Killer {
    /// The runtime.
    pub cri: Cri,
    /// Where its end is told.
    pub events: Recorder,
    /// Its pod.
    pub pod: Arc<Pod>,
    /// Address of the pod, for hooks.
    pub ip: Option<IpAddr>,
}

impl Killer {
    /// Ends a container before `deadline`.
    pub async fn kill(&self, seen: &Seen, why: Option<&str>, deadline: Instant) {
        let found = spec::find(&self.pod, &seen.name);
        let kind = found.as_ref().map_or(Kind::Main, |(kind, _)| *kind);
        let reference = events::pod_reference(&self.pod, Some(super::field_path(kind, &seen.name)));
        let text = why.map_or_else(|| format!("Stopping container {}", seen.name), String::from);
        self.events.normal(reference.clone(), "Killing", text);
        if let Some((_, container)) = &found {
            self.pre_stop(container, seen, &reference, deadline).await;
        }
        let left = deadline.saturating_duration_since(Instant::now()).max(LEAST_GRACE);
        if let Err(error) = self.cri.stop_container(&seen.id, left.as_secs() as i64).await {
            tracing::warn!("stopping container {} of {}: {error}", seen.name, spec::full_name(&self.pod));
        }
    }

    async fn pre_stop(
        &self,
        container: &Container,
        seen: &Seen,
        reference: &k8s_openapi::api::core::v1::ObjectReference,
        deadline: Instant,
    ) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let target = attempt::Target { ip: self.ip, container: container.clone() };
        let work = run_hook(&self.cri, &seen.id, hook, &target);
        let result = tokio::time::timeout(left, work).await;
        let failure = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "it did not end within the pod's grace".to_string(),
        };
        self.events.warning(reference.clone(), "FailedPreStopHook", format!("PreStopHook failed: {failure}"));
    }
}

/// Runs a lifecycle hook.
pub async fn run_hook(
    cri: &Cri,
    id: &str,
    hook: &k8s_openapi::api::core::v1::LifecycleHandler,
    target: &attempt::Target,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        return attempt::command(cri, id, command, Duration::ZERO).await.map(|_| ());
    }
    if let Some(get) = &hook.http_get {
        return attempt::http_get(get, target, "kube-lifecycle/1.36").await;
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("invalid handler: it says nothing to do".into())
}

/// The containers that end together, group by group: all but the sidecars, then these from the last to the first.
pub fn order<'a>(pod: &Pod, seen: &'a Observed) -> Vec<Vec<&'a Seen>> {
    let sidecars: Vec<&str> =
        spec::inits(pod).iter().filter(|c| spec::is_sidecar(c)).map(|c| c.name.as_str()).collect();
    let first: Vec<&Seen> = seen.running().filter(|c| !sidecars.contains(&c.name.as_str())).collect();
    let later = sidecars.iter().rev().map(|name| seen.running().filter(|c| c.name == *name).collect::<Vec<_>>());
    std::iter::once(first).chain(later).filter(|group| !group.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::observed::State;
    use super::*;

    #[test]
    fn sidecars_end_last_and_backwards() {
        let pod: Pod = serde_yaml_ng::from_str(
            "{metadata: {}, spec: {initContainers: [{name: s, restartPolicy: Always}, {name: i}, {name: t, restartPolicy: Always}], containers: [{name: a}, {name: b}]}}",
        )
        .unwrap();
        let one = |name: &str| Seen {
            id: name.into(),
            name: name.into(),
            sandbox: String::new(),
            state: State::Running,
            created_at: 0,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_ref: String::new(),
            hash: String::new(),
            restarts: 0,
            log_path: String::new(),
            user: None,
        };
        let seen = Observed { sandboxes: vec![], containers: ["a", "b", "s", "t"].map(one).to_vec() };
        let names: Vec<Vec<&str>> =
            order(&pod, &seen).into_iter().map(|g| g.into_iter().map(|c| c.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["t"], vec!["s"]]);
    }
}
