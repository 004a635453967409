//! Probes: one task for each probe of each running container. A task writes down what it finds
//! and wakes the pod's worker when the verdict changes.

pub mod attempt;
mod dial;
pub mod http;

use crate::cri::Cri;
use crate::events::{self, Recorder};
use crate::pods::observed::{Observed, State};
use crate::pods::plan::ProbeResults;
use crate::pods::spec;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// Until it succeeds, the others wait.
    Startup,
    /// Failure restarts the container.
    Liveness,
    /// Failure takes the pod out of services.
    Readiness,
}

impl Which {
    fn word(self) -> &'static str {
        match self {
            Which::Startup => "Startup",
            Which::Liveness => "Liveness",
            Which::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Which::Startup => container.startup_probe.as_ref(),
            Which::Liveness => container.liveness_probe.as_ref(),
            Which::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

const ALL: [Which; 3] = [Which::Startup, Which::Liveness, Which::Readiness];

/// Verdicts by runtime id and probe; absent until the thresholds are first met.
type Verdicts = Arc<Mutex<HashMap<(String, Which), bool>>>;

/// The probes of one pod.
pub struct Probes {
    cri: Option<Cri>,
    events: Recorder,
    wake: Arc<Notify>,
    verdicts: Verdicts,
    tasks: HashMap<(String, Which), AbortOnDropHandle<()>>,
    /// Containers whose postStart hook is not over.
    hooks: std::collections::HashSet<String>,
    /// Runtime id to whether the container has a startup probe.
    with_startup: HashMap<String, bool>,
}

impl Probes {
    /// No probes yet.
    pub fn new(cri: Option<Cri>, events: Recorder, wake: Arc<Notify>) -> Probes {
        Probes {
            cri,
            events,
            wake,
            verdicts: Verdicts::default(),
            tasks: HashMap::new(),
            hooks: Default::default(),
            with_startup: HashMap::new(),
        }
    }

    /// Starts and ends tasks so that exactly the running containers are probed.
    pub fn follow(&mut self, pod: &Arc<Pod>, seen: &Observed) {
        let Some(cri) = self.cri.clone() else { return };
        let ip = seen.ready_sandbox().and_then(|s| s.ips.first().copied());
        let ip = if spec::host_network(pod) { Some(IpAddr::from([127, 0, 0, 1])) } else { ip };
        let running: HashMap<&str, &str> = seen
            .containers
            .iter()
            .filter(|c| c.state == State::Running)
            .map(|c| (c.id.as_str(), c.name.as_str()))
            .collect();
        self.tasks.retain(|(id, _), _| running.contains_key(id.as_str()));
        self.with_startup.retain(|id, _| running.contains_key(id.as_str()));
        crate::lock(&self.verdicts).retain(|(id, _), _| running.contains_key(id.as_str()));
        for seen in seen.containers.iter().filter(|c| c.state == State::Running) {
            let Some((kind, container)) = spec::find(pod, &seen.name) else { continue };
            self.with_startup.insert(seen.id.clone(), container.startup_probe.is_some());
            for which in ALL {
                let key = (seen.id.clone(), which);
                let Some(probe) = which.of(&container).filter(|_| !self.tasks.contains_key(&key)) else { continue };
                let task = Task {
                    cri: cri.clone(),
                    events: self.events.clone(),
                    wake: self.wake.clone(),
                    verdicts: self.verdicts.clone(),
                    reference: events::pod_reference(pod, Some(super::pods::field_path(kind, &container.name))),
                    id: seen.id.clone(),
                    which,
                    probe: probe.clone(),
                    waits_for_startup: which != Which::Startup && container.startup_probe.is_some(),
                    target: attempt::Target { ip, container: container.clone() },
                    started: jiff::Timestamp::from_nanosecond(i128::from(seen.started_at)).unwrap_or_default(),
                };
                self.tasks.insert(key, AbortOnDropHandle::new(tokio::spawn(task.run())));
            }
        }
    }

    /// A pod on its way out is no longer restarted; its readiness still counts.
    pub fn only_readiness(&mut self) {
        self.tasks.retain(|(_, which), _| *which == Which::Readiness);
    }

    /// Ends all probes.
    pub fn stop(&mut self) {
        self.tasks.clear();
    }

    /// Ready by its readiness probe, or without one.
    pub fn ready(&self, id: &str, container: &Container) -> bool {
        container.readiness_probe.is_none() || self.verdict(id, Which::Readiness) == Some(true)
    }

    /// Startup is over.
    pub fn is_started(&self, id: &str, container: &Container) -> bool {
        !self.hooks.contains(id)
            && (container.startup_probe.is_none() || self.verdict(id, Which::Startup) == Some(true))
    }

    /// A container's postStart hook begins or is over.
    pub fn hook(&mut self, id: &str, running: bool) {
        if running {
            self.hooks.insert(id.to_string());
        } else {
            self.hooks.remove(id);
        }
    }

    fn verdict(&self, id: &str, which: Which) -> Option<bool> {
        crate::lock(&self.verdicts).get(&(id.to_string(), which)).copied()
    }
}

impl ProbeResults for Probes {
    fn liveness_failed(&self, id: &str) -> bool {
        self.verdict(id, Which::Liveness) == Some(false)
    }

    fn startup_failed(&self, id: &str) -> bool {
        self.verdict(id, Which::Startup) == Some(false)
    }

    fn started(&self, id: &str) -> bool {
        let has = self.with_startup.get(id).copied().unwrap_or(false);
        !self.hooks.contains(id) && (!has || self.verdict(id, Which::Startup) == Some(true))
    }
}

struct Task {
    cri: Cri,
    events: Recorder,
    wake: Arc<Notify>,
    verdicts: Verdicts,
    reference: k8s_openapi::api::core::v1::ObjectReference,
    id: String,
    which: Which,
    probe: Probe,
    waits_for_startup: bool,
    target: attempt::Target,
    started: jiff::Timestamp,
}

impl Task {
    async fn run(self) {
        let period = seconds(self.probe.period_seconds, 10);
        let limit = seconds(self.probe.timeout_seconds, 1);
        let delay = Duration::from_secs(self.probe.initial_delay_seconds.unwrap_or(0).max(0) as u64);
        let age = jiff::Timestamp::now().duration_since(self.started);
        let age = Duration::try_from(age).unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
        let mut tally = Tally::new(&self.probe);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.waits_for_startup && !self.startup_succeeded() {
                // Looks often, so that readiness follows startup at once.
                tokio::time::sleep(Duration::from_millis(200)).await;
                ticks.reset_immediately();
                continue;
            }
            let outcome = attempt::run(&self.cri, &self.id, &self.probe, &self.target, limit).await;
            if let Err(message) = &outcome {
                let text = format!("{} probe failed: {message}", self.which.word());
                self.events.warning(self.reference.clone(), "Unhealthy", text);
            }
            let Some(verdict) = tally.count(outcome.is_ok()) else { continue };
            let old = crate::lock(&self.verdicts).insert((self.id.clone(), self.which), verdict);
            if old != Some(verdict) {
                self.wake.notify_one();
            }
            // A verdict for good: startup is over, or the container will be killed.
            if self.which == Which::Startup || (self.which == Which::Liveness && !verdict) {
                return;
            }
        }
    }

    fn startup_succeeded(&self) -> bool {
        crate::lock(&self.verdicts).get(&(self.id.clone(), Which::Startup)) == Some(&true)
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.filter(|v| *v > 0).map_or(default, |v| v as u64))
}

/// Counts outcomes until a threshold is met.
struct Tally {
    successes_needed: u32,
    failures_needed: u32,
    last: Option<bool>,
    run: u32,
}

impl Tally {
    fn new(probe: &Probe) -> Tally {
        let at_least_one = |value: Option<i32>, default: u32| value.filter(|v| *v > 0).map_or(default, |v| v as u32);
        Tally {
            successes_needed: at_least_one(probe.success_threshold, 1),
            failures_needed: at_least_one(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// The verdict, once there is one.
    fn count(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let needed = if success { self.successes_needed } else { self.failures_needed };
        (self.run >= needed).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(1), ..Default::default() };
        let mut tally = Tally::new(&probe);
        let verdicts: Vec<Option<bool>> =
            [true, false, false, true, false].into_iter().map(|outcome| tally.count(outcome)).collect();
        assert_eq!(verdicts, [Some(true), None, Some(false), Some(true), None]);
    }
}
