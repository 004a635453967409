//! The worker of one pod: it looks, decides and acts, again and again, until the pod is gone.
//!
//! ```text
//! Running ──deletion, verdict──► terminate ──► Finished ──removed from the API──► gone
//!    └──────all containers ended for good───────►┘
//! ```
//! In every stage the worker may be dropped and made anew: what it needs is in the runtime,
//! on disk and in the API.

use super::kill::{self, Killer};
use super::observed::{self, Observed, State};
use super::plan::{self, Kill, KilledBy, Start};
use super::spec::{self, Kind};
use super::start::{Failure, Starter};
use super::status::{self, Input, Verdict, Waiting};
use super::{Desired, admit, backoff::Backoff};
use crate::container::downward::Facts;
use crate::container::{dns, sandbox};
use crate::cri::{Cri, PodSandboxConfig};
use crate::events;
use crate::images::Credentials;
use crate::kubelet::Kubelet;
use crate::probes::Probes;
use crate::volumes::{self, Volumes};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Secret};
use kube::api::Api;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// A pod without news is looked at this often; volumes from the API are brought up to date then.
const QUIET: Duration = Duration::from_secs(60);
/// After something failed.
const RETRY: Duration = Duration::from_secs(2);
/// The network usually comes within a moment of the node's start.
const NETWORK_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// All has ended and is cleaned up; the API still has the pod.
    Finished,
}

enum Next {
    /// Look again at once.
    Again,
    /// Look again when something happens, or after this time.
    Wait(Duration),
    /// The pod is gone.
    Done,
}

/// The worker of one pod.
pub struct Worker {
    kubelet: Arc<Kubelet>,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    pod: Arc<Pod>,
    stage: Stage,
    admitted: bool,
    verdict: Option<Verdict>,
    probes: Probes,
    backoff: Backoff,
    waiting: BTreeMap<String, Waiting>,
    status: PodStatus,
    volumes: Option<Volumes>,
    volumes_at: Instant,
    failures: u32,
    told_of_network: bool,
}

impl Worker {
    /// A worker that has not looked yet.
    pub fn new(kubelet: Arc<Kubelet>, desired: watch::Receiver<Desired>, wake: Arc<Notify>) -> Worker {
        let pod = desired.borrow().pod.clone();
        Worker {
            probes: Probes::new(kubelet.cri.clone(), kubelet.events.clone(), wake.clone()),
            status: pod.status.clone().unwrap_or_default(),
            kubelet,
            desired,
            wake,
            pod,
            stage: Stage::Running,
            admitted: false,
            verdict: None,
            backoff: Backoff::default(),
            waiting: BTreeMap::new(),
            volumes: None,
            volumes_at: Instant::now(),
            failures: 0,
            told_of_network: false,
        }
    }

    /// Works until the pod is gone.
    pub async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            self.pod = desired.pod.clone();
            let wait = match self.step(&desired).await {
                Next::Again => continue,
                Next::Done => return,
                Next::Wait(wait) => wait,
            };
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn step(&mut self, desired: &Desired) -> Next {
        if self.verdict.is_none() {
            self.verdict = desired.verdict.clone();
        }
        let Some(cri) = self.kubelet.cri.clone() else { return self.without_runtime(desired) };
        match self.stage {
            Stage::Finished => self.finished(&cri, desired).await,
            Stage::Running if desired.ends() || self.verdict.is_some() => self.terminate(&cri, desired).await,
            Stage::Running => self.sync(&cri).await,
        }
    }

    /// On a node without a runtime every pod fails, with a sentence, and nothing is left behind.
    fn without_runtime(&mut self, desired: &Desired) -> Next {
        if desired.removed {
            self.kubelet.statuses.forget(spec::uid(&self.pod));
            return Next::Done;
        }
        if !self.admitted {
            self.admitted = true;
            if let Err(verdict) = self.admit() {
                self.reject(verdict);
            }
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.kubelet.statuses.put(self.pod.clone(), self.status.clone(), true);
        }
        Next::Wait(QUIET)
    }

    fn admit(&self) -> Result<(), Verdict> {
        let uid = spec::uid(&self.pod);
        let others: Vec<Arc<Pod>> = self
            .kubelet
            .pods
            .list()
            .into_iter()
            .filter(|p| spec::uid(p) != uid)
            .filter(|p| !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded")))
            // Of those that came at the same time, the ones that have not started wait for their own turn.
            .filter(|p| p.status.as_ref().is_some_and(|s| s.start_time.is_some()))
            .collect();
        let labels = self.kubelet.node.labels();
        let allocatable = self.kubelet.node.allocatable();
        admit::admit(
            &self.pod,
            &admit::Node {
                name: &self.kubelet.options.node_name,
                labels: &labels,
                allocatable: &allocatable,
                others: &others,
                has_runtime: self.kubelet.cri.is_some(),
            },
        )
    }

    fn reject(&mut self, verdict: Verdict) {
        let reference = events::pod_reference(&self.pod, None);
        self.kubelet.events.warning(reference, &verdict.reason, verdict.message.clone());
        self.status = status::rejected(&self.pod, &verdict, &self.kubelet.options.node_ips, Timestamp::now());
        self.kubelet.statuses.put(self.pod.clone(), self.status.clone(), false);
        self.stage = Stage::Finished;
    }

    /// A pod that shall run.
    async fn sync(&mut self, cri: &Cri) -> Next {
        let seen = match observed::observe(cri, spec::uid(&self.pod)).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!("looking at {}: {error}", spec::full_name(&self.pod));
                return Next::Wait(RETRY);
            }
        };
        if matches!(self.status.phase.as_deref(), Some("Failed" | "Succeeded")) && seen.running().next().is_none() {
            return self.finish(cri).await;
        }
        if !self.admitted {
            self.admitted = true;
            if seen.sandboxes.is_empty()
                && !spec::is_static(&self.pod)
                && let Err(verdict) = self.admit()
            {
                self.reject(verdict);
                return Next::Again;
            }
        }
        self.probes.follow(&self.pod, &seen);
        self.forget_waiting(&seen);
        if let Some(left) = self.deadline_left()
            && left.is_zero()
        {
            self.verdict = Some(Verdict {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
            return Next::Again;
        }
        self.report(&seen, false, false);
        if matches!(self.status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            return self.end_of_life(cri, &seen).await;
        }
        if let Err(wait) = self.prepare(&seen).await {
            return Next::Wait(wait);
        }
        self.open_metadata(&self.facts(&seen));
        let plan = plan::plan(&self.pod, &seen, &self.probes);
        if plan.is_empty() {
            self.failures = 0;
            self.collect(cri, &seen).await;
            return Next::Wait(self.deadline_left().unwrap_or(QUIET).min(QUIET));
        }
        let (acted, wait) = self.act(cri, &seen, plan).await;
        if acted {
            return Next::Again;
        }
        // Nothing was started, but why it was not is news.
        self.report(&seen, false, false);
        Next::Wait(wait)
    }

    /// Containers that run no longer wait for anything.
    fn forget_waiting(&mut self, seen: &Observed) {
        self.waiting.retain(|name, _| seen.latest(name).is_none_or(|c| c.state != State::Running));
    }

    fn deadline_left(&self) -> Option<Duration> {
        let allowed = spec::of(&self.pod).active_deadline_seconds?;
        let start = self.status.start_time.as_ref()?.0.as_second();
        let left = start + allowed - Timestamp::now().as_second();
        Some(Duration::from_secs(left.max(0) as u64))
    }

    fn facts(&self, seen: &Observed) -> Facts {
        let pod_ips: Vec<IpAddr> = if spec::host_network(&self.pod) {
            self.kubelet.options.node_ips.clone()
        } else {
            seen.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default()
        };
        Facts {
            node_name: self.kubelet.options.node_name.clone(),
            host_ips: self.kubelet.options.node_ips.clone(),
            pod_ips,
            allocatable: self.kubelet.node.allocatable(),
        }
    }

    fn open_metadata(&self, facts: &Facts) {
        let groups = self.kubelet.cgroups.as_ref();
        let group = groups.map(|groups| groups.path(&crate::cgroups::Cgroups::pod_path(&self.pod)));
        self.kubelet.metadata.open(&self.pod, &facts.pod_ips, group.as_deref());
    }

    /// Computes the status and hands it over when it has changed.
    fn report(&mut self, seen: &Observed, terminating: bool, terminated: bool) {
        let probes = &self.probes;
        let new = status::compute(&Input {
            pod: &self.pod,
            old: &self.status,
            seen,
            ready: &|id: &str, container: &Container| probes.ready(id, container),
            started: &|id: &str, container: &Container| probes.is_started(id, container),
            waiting: &self.waiting,
            verdict: self.verdict.as_ref(),
            terminating,
            terminated,
            host_ips: &self.kubelet.options.node_ips,
            runtime: &self.kubelet.runtime_name(),
            now: Timestamp::now(),
        });
        self.status = new;
        self.kubelet.statuses.put(self.pod.clone(), self.status.clone(), false);
    }

    /// cgroup, directories, volumes. The error is how long to wait.
    async fn prepare(&mut self, seen: &Observed) -> Result<(), Duration> {
        let uid = spec::uid(&self.pod).to_string();
        let fresh = self.volumes.is_some() && (!volumes::has_payload(&self.pod) || self.volumes_at.elapsed() < QUIET);
        if fresh {
            return Ok(());
        }
        if let Some(cgroups) = &self.kubelet.cgroups
            && let Err(error) = cgroups.apply(&self.pod)
        {
            return Err(
                self.failed("FailedCreatePodContainer", format!("unable to ensure pod container exists: {error}"))
            );
        }
        let pod_dir = self.kubelet.options.pod_dir(&uid);
        if let Err(error) = volumes::make_directory(&pod_dir) {
            return Err(self.failed("Failed", format!("error making pod data directories: {error}")));
        }
        let facts = self.facts(seen);
        let result = volumes::prepare(&self.kubelet, &self.pod, &facts, self.volumes.as_ref()).await;
        match result {
            Ok(ready) => {
                self.volumes = Some(ready);
                self.volumes_at = Instant::now();
                self.failures = 0;
                Ok(())
            }
            // What runs goes on with what it has.
            Err(error) if self.volumes.is_some() => {
                tracing::warn!("volumes of {}: {error}", spec::full_name(&self.pod));
                self.volumes_at = Instant::now();
                Ok(())
            }
            Err(error) => Err(self.failed("FailedMount", error)),
        }
    }

    /// Tells of a failure; how long to wait.
    fn failed(&mut self, reason: &str, message: String) -> Duration {
        self.kubelet.events.warning(events::pod_reference(&self.pod, None), reason, message);
        self.failures = self.failures.saturating_add(1);
        RETRY.saturating_mul(1 << self.failures.min(5)).min(LONGEST_RETRY) / 2
    }

    /// Carries out a plan: whether anything changed, and else how long to wait.
    async fn act(&mut self, cri: &Cri, seen: &Observed, plan: plan::Plan) -> (bool, Duration) {
        if plan.kill_pod {
            let any = seen.running().next().is_some() || seen.sandboxes.iter().any(|s| s.ready);
            self.kill_all(cri, seen, Duration::from_secs(spec::grace(&self.pod) as u64)).await;
            if plan.create_sandbox.is_none() {
                return (any, QUIET);
            }
        }
        for kill in &plan.kill {
            self.kill_one(cri, seen, kill).await;
        }
        let mut sandbox_id = seen.ready_sandbox().map(|s| s.id.clone());
        let attempt = plan.create_sandbox.unwrap_or_else(|| seen.sandboxes.first().map_or(0, |s| s.attempt));
        let config = self.sandbox_config(attempt);
        let mut facts = self.facts(seen);
        if plan.create_sandbox.is_some() {
            match self.create_sandbox(cri, config.clone()).await {
                Ok((id, ips)) => {
                    sandbox_id = Some(id);
                    if !spec::host_network(&self.pod) {
                        facts.pod_ips = ips;
                    }
                    self.open_metadata(&facts);
                }
                Err(wait) => return (false, wait),
            }
        }
        let Some(sandbox_id) = sandbox_id else { return (false, RETRY) };
        let made = plan.create_sandbox.is_some() || !plan.kill.is_empty();
        let (started, wait) = self.start_all(seen, &plan.start, &sandbox_id, &config, &facts).await;
        (made || started, wait)
    }

    fn sandbox_config(&self, attempt: u32) -> PodSandboxConfig {
        let options = &self.kubelet.options;
        let host = std::fs::read_to_string(&options.flags.resolv_conf).unwrap_or_default();
        let resolver = dns::parse_resolv_conf(&host);
        let log_directory =
            options.pod_log_dir(spec::namespace(&self.pod), spec::name(&self.pod), spec::uid(&self.pod));
        sandbox::config(
            &self.pod,
            attempt,
            &sandbox::Surroundings {
                domain: &options.cluster_domain,
                dns: dns::config(&self.pod, &resolver, &options.cluster_dns, &options.cluster_domain),
                log_directory: &log_directory,
                cgroup: self.kubelet.cgroups.as_ref().map(|_| crate::cgroups::Cgroups::pod_path(&self.pod)),
                seccomp_root: &options.flags.root_dir.join("seccomp"),
            },
        )
    }

    async fn create_sandbox(&mut self, cri: &Cri, config: PodSandboxConfig) -> Result<(String, Vec<IpAddr>), Duration> {
        if !spec::host_network(&self.pod)
            && let Some(reason) = self.kubelet.node.network_trouble()
        {
            if !self.told_of_network {
                let text = format!("network is not ready: container runtime network not ready: {reason}");
                self.kubelet.events.warning(events::pod_reference(&self.pod, None), "NetworkNotReady", text);
                self.told_of_network = true;
            }
            return Err(NETWORK_RETRY);
        }
        if let Err(error) = volumes::make_directory(std::path::Path::new(&config.log_directory)) {
            return Err(self.failed("Failed", error));
        }
        let handler = match self.kubelet.runtime_handler(&self.pod).await {
            Ok(handler) => handler,
            Err(error) => return Err(self.failed("FailedCreatePodSandBox", error)),
        };
        let id = match cri.run_pod_sandbox(config, &handler).await {
            Ok(id) => id,
            Err(error) => {
                return Err(self.failed("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}")));
            }
        };
        let status = cri.pod_sandbox_status(&id, false).await.ok().and_then(|a| a.status);
        let network = status.and_then(|s| s.network).unwrap_or_default();
        let texts = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|i| i.ip));
        Ok((id, texts.filter_map(|t| t.parse().ok()).collect()))
    }

    async fn start_all(
        &mut self,
        seen: &Observed,
        starts: &[Start],
        sandbox_id: &str,
        sandbox_config: &PodSandboxConfig,
        facts: &Facts,
    ) -> (bool, Duration) {
        if let Err(error) = self.write_hosts(facts) {
            return (false, self.failed("Failed", error));
        }
        let credentials = self.credentials().await;
        let Some(volumes) = self.volumes.clone() else { return (false, RETRY) };
        let kubelet = self.kubelet.clone();
        let pod = self.pod.clone();
        let starter = Starter {
            kubelet: &kubelet,
            pod: &pod,
            sandbox: sandbox_id,
            sandbox_config,
            volumes: &volumes,
            facts,
            credentials: &credentials,
        };
        let (mut started, mut wait) = (false, QUIET);
        for start in starts {
            match self.start_one(&starter, seen, start).await {
                Some(Ok(())) => started = true,
                Some(Err(failure)) => {
                    wait = wait.min(failure.again);
                    self.waiting.insert(start.name.clone(), failure.waiting);
                }
                // The pod is to end: there is no use in starting the others.
                None => return (true, Duration::ZERO),
            }
        }
        (started, wait)
    }

    /// Starts one container; none if the pod came to its end meanwhile.
    async fn start_one(
        &mut self,
        starter: &Starter<'_>,
        seen: &Observed,
        start: &Start,
    ) -> Option<Result<(), Failure>> {
        let (kind, container) = spec::find(&self.pod, &start.name)?;
        let last = seen.latest(&start.name);
        // One that is being replaced while it runs waits as long as the run before it says.
        let ended = seen.containers.iter().find(|c| c.name == start.name && c.state == State::Exited);
        if let Some(failure) = self.backing_off(&container, kind, ended) {
            return Some(Err(failure));
        }
        let restarts = match last {
            Some(last) => last.restarts + 1,
            None => self.restarts_by_status(&start.name),
        };
        let target = spec::ephemerals(&self.pod)
            .into_iter()
            .find(|(c, _)| kind == Kind::Ephemeral && c.name == start.name)
            .and_then(|(_, target)| target)
            .and_then(|name| seen.latest(&name).filter(|c| c.state == State::Running).map(|c| c.id.clone()));
        let mut desired = self.desired.clone();
        let ending = async {
            loop {
                if desired.borrow_and_update().ends() || desired.changed().await.is_err() {
                    return;
                }
            }
        };
        let result = tokio::select! {
            result = starter.start(kind, &container, restarts, target.as_deref()) => result,
            () = ending => return None,
        };
        let id = match result {
            Ok(id) => id,
            Err(failure) => return Some(Err(failure)),
        };
        self.waiting.remove(&start.name);
        self.probes.hook(&id, true);
        let hook = starter.post_start(kind, &container, &id).await;
        self.probes.hook(&id, false);
        Some(hook)
    }

    fn backing_off(
        &mut self,
        container: &Container,
        kind: Kind,
        last: Option<&observed::Container>,
    ) -> Option<Failure> {
        let last = last?;
        let now = Timestamp::now().as_nanosecond() as i64;
        let (left, length) = self.backoff.ask(&container.name, last.finished_at, now).err()?;
        let who = format!("{}_{}({})", spec::name(&self.pod), spec::namespace(&self.pod), spec::uid(&self.pod));
        let reference = events::pod_reference(&self.pod, Some(super::field_path(kind, &container.name)));
        if self.waiting.get(&container.name).is_none_or(|w| w.reason != "CrashLoopBackOff") {
            let text = format!("Back-off restarting failed container {} in pod {who}", container.name);
            self.kubelet.events.warning(reference, "BackOff", text);
        }
        let length = crash_loop_length(length);
        Some(Failure {
            waiting: Waiting {
                reason: "CrashLoopBackOff".into(),
                message: format!("back-off {length} restarting failed container={} pod={who}", container.name),
            },
            again: left,
        })
    }

    /// After a node lost its containers, the count goes on from what the API shows.
    fn restarts_by_status(&self, name: &str) -> u32 {
        let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
        let known = lists.iter().flat_map(|l| l.iter().flatten()).find(|s| s.name == name);
        known.filter(|s| s.container_id.is_some()).map_or(0, |s| s.restart_count as u32 + 1)
    }

    fn write_hosts(&self, facts: &Facts) -> Result<(), String> {
        let node_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = dns::hosts_file(&self.pod, &facts.pod_ips, &self.kubelet.options.cluster_domain, &node_hosts);
        let path = volumes::mount::hosts_path(&self.kubelet.options.pod_dir(spec::uid(&self.pod)));
        std::fs::write(&path, text).map_err(|e| format!("writing {}: {e}", path.display()))?;
        volumes::set_mode(&path, 0o644)
    }

    async fn credentials(&self) -> Credentials {
        let mut credentials = Credentials::default();
        let api: Api<Secret> = Api::namespaced(self.kubelet.api.clone(), spec::namespace(&self.pod));
        for reference in spec::of(&self.pod).image_pull_secrets.iter().flatten() {
            match api.get_opt(&reference.name).await {
                Ok(Some(secret)) => credentials.add(&secret.data.unwrap_or_default()),
                Ok(None) => {
                    let text = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    let pod = events::pod_reference(&self.pod, None);
                    self.kubelet.events.warning(pod, "FailedToRetrieveImagePullSecret", text);
                }
                Err(error) => tracing::warn!("pull secret {}: {}", reference.name, crate::client::explain(&error)),
            }
        }
        credentials
    }

    fn killer(&self, cri: &Cri, seen: &Observed) -> Killer {
        let ip = seen.ready_sandbox().and_then(|s| s.ips.first().copied());
        let ip = if spec::host_network(&self.pod) { Some(IpAddr::from([127, 0, 0, 1])) } else { ip };
        Killer { cri: cri.clone(), events: self.kubelet.events.clone(), pod: self.pod.clone(), ip }
    }

    async fn kill_one(&self, cri: &Cri, seen: &Observed, kill: &Kill) {
        let Some(container) = seen.containers.iter().find(|c| c.id == kill.id) else { return };
        let own = spec::find(&self.pod, &kill.name).and_then(|(_, c)| match kill.by {
            KilledBy::Liveness => c.liveness_probe.and_then(|p| p.termination_grace_period_seconds),
            KilledBy::Startup => c.startup_probe.and_then(|p| p.termination_grace_period_seconds),
            KilledBy::Spec => None,
        });
        let grace = Duration::from_secs(own.unwrap_or_else(|| spec::grace(&self.pod)).max(0) as u64);
        self.killer(cri, seen).kill(container, Some(&kill.why), Instant::now() + grace).await;
    }

    /// Ends all containers and sandboxes. A shorter grace that comes meanwhile holds at once.
    async fn kill_all(&mut self, cri: &Cri, seen: &Observed, grace: Duration) {
        let begun = Instant::now();
        let mut deadline = begun + grace;
        let killer = Arc::new(self.killer(cri, seen));
        for group in kill::order(&self.pod, seen) {
            let mut tasks = tokio::task::JoinSet::new();
            for container in &group {
                let (killer, container) = (killer.clone(), (*container).clone());
                tasks.spawn(async move { killer.kill(&container, None, deadline).await });
            }
            loop {
                tokio::select! {
                    done = tasks.join_next() => if done.is_none() { break },
                    changed = self.desired.changed() => {
                        if changed.is_err() { break }
                        let desired = self.desired.borrow_and_update().clone();
                        let shorter = begun + grace_of(&desired).unwrap_or(grace);
                        if shorter < deadline {
                            deadline = shorter;
                            tasks.abort_all();
                            for container in &group {
                                let (cri, id) = (cri.clone(), container.id.clone());
                                let left = deadline.saturating_duration_since(Instant::now()).as_secs() as i64;
                                tasks.spawn(async move {
                                    if let Err(error) = cri.stop_container(&id, left.max(kill::LEAST_GRACE.as_secs() as i64)).await {
                                        tracing::warn!("stopping container {id}: {error}");
                                    }
                                });
                            }
                        }
                    }
                }
            }
        }
        for sandbox in &seen.sandboxes {
            if let Err(error) = self.stop_sandbox(cri, &sandbox.id).await {
                tracing::warn!("stopping a sandbox of {}: {error:#}", spec::full_name(&self.pod));
            }
        }
    }

    /// Gives the pod's addresses back, and before them what they alone may do.
    async fn stop_sandbox(&self, cri: &Cri, id: &str) -> anyhow::Result<()> {
        self.kubelet.metadata.close(spec::uid(&self.pod))?;
        Ok(cri.stop_pod_sandbox(id).await?)
    }

    /// A pod that is to end.
    async fn terminate(&mut self, cri: &Cri, desired: &Desired) -> Next {
        let uid = spec::uid(&self.pod).to_string();
        let Ok(seen) = observed::observe(cri, &uid).await else { return Next::Wait(RETRY) };
        self.probes.only_readiness();
        self.report(&seen, true, false);
        let grace = grace_of(desired).unwrap_or_else(|| match &self.verdict {
            Some(verdict) if verdict.reason == "Evicted" => Duration::from_secs(spec::grace(&self.pod).min(30) as u64),
            _ => Duration::from_secs(spec::grace(&self.pod) as u64),
        });
        self.kill_all(cri, &seen, grace).await;
        let Ok(seen) = observed::observe(cri, &uid).await else { return Next::Wait(RETRY) };
        if seen.running().next().is_some() {
            return Next::Wait(RETRY);
        }
        self.probes.stop();
        self.report(&seen, true, true);
        self.finish(cri).await
    }

    /// All containers have ended for good: sidecars and the sandbox follow.
    async fn end_of_life(&mut self, cri: &Cri, seen: &Observed) -> Next {
        self.kill_all(cri, seen, Duration::from_secs(spec::grace(&self.pod) as u64)).await;
        let Ok(seen) = observed::observe(cri, spec::uid(&self.pod)).await else { return Next::Wait(RETRY) };
        if seen.running().next().is_some() {
            return Next::Wait(RETRY);
        }
        self.report(&seen, false, true);
        self.finish(cri).await
    }

    /// Nothing runs any more: gives back volumes and the cgroup. Containers stay for their logs.
    async fn finish(&mut self, cri: &Cri) -> Next {
        let uid = spec::uid(&self.pod).to_string();
        if let Ok(seen) = observed::observe(cri, &uid).await {
            for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
                if let Err(error) = self.stop_sandbox(cri, &sandbox.id).await {
                    tracing::warn!("stopping a sandbox of {}: {error:#}", spec::full_name(&self.pod));
                    return Next::Wait(RETRY);
                }
            }
        }
        self.probes.stop();
        if let Err(error) = self.give_back(&uid).await {
            tracing::warn!("cleaning up after {}: {error}", spec::full_name(&self.pod));
            return Next::Wait(RETRY);
        }
        self.volumes = None;
        self.stage = Stage::Finished;
        Next::Again
    }

    async fn give_back(&self, uid: &str) -> std::io::Result<()> {
        let pod_dir = self.kubelet.options.pod_dir(uid);
        let cgroups = self.kubelet.cgroups.clone();
        let uid_owned = uid.to_string();
        let result = tokio::task::spawn_blocking(move || {
            volumes::tear_down(&pod_dir)?;
            cgroups.map_or(Ok(()), |c| c.remove(&uid_owned))
        });
        self.kubelet.tokens.forget(uid);
        result.await.map_err(std::io::Error::other)?
    }

    /// A pod that has ended waits for the API to let it go.
    async fn finished(&mut self, cri: &Cri, desired: &Desired) -> Next {
        if desired.removed {
            return self.purge(cri).await;
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.kubelet.statuses.put(self.pod.clone(), self.status.clone(), true);
        }
        Next::Wait(QUIET)
    }

    /// The API has let the pod go: containers and logs go, too.
    async fn purge(&mut self, cri: &Cri) -> Next {
        let uid = spec::uid(&self.pod).to_string();
        let Ok(seen) = observed::observe(cri, &uid).await else { return Next::Wait(RETRY) };
        for sandbox in &seen.sandboxes {
            if let Err(error) = cri.remove_pod_sandbox(&sandbox.id).await {
                tracing::warn!("removing a sandbox of {}: {error}", spec::full_name(&self.pod));
                return Next::Wait(RETRY);
            }
        }
        let options = &self.kubelet.options;
        let logs = options.pod_log_dir(spec::namespace(&self.pod), spec::name(&self.pod), &uid);
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("removing {}: {error}", logs.display());
            }
            _ => {}
        }
        super::housekeeping::sweep_links(&options.container_log_dir());
        self.kubelet.statuses.forget(&uid);
        Next::Done
    }

    /// Removes containers and sandboxes that nobody will ask for: of each container the last run
    /// and the one before are kept.
    async fn collect(&self, cri: &Cri, seen: &Observed) {
        let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
        for container in &seen.containers {
            let count = kept.entry(&container.name).or_default();
            *count += 1;
            if *count > 2 && container.state != State::Running {
                if let Err(error) = cri.remove_container(&container.id).await {
                    tracing::debug!("removing container {}: {error}", container.id);
                    continue;
                }
                for log in crate::logs::read::history(std::path::Path::new(&container.log_path)) {
                    // Already gone is as good.
                    std::fs::remove_file(log).ok();
                }
                super::housekeeping::sweep_links(&self.kubelet.options.container_log_dir());
            }
        }
        for sandbox in seen.sandboxes.iter().skip(1).filter(|s| !s.ready) {
            if !seen.containers.iter().any(|c| c.sandbox == sandbox.id)
                && let Err(error) = cri.remove_pod_sandbox(&sandbox.id).await
            {
                tracing::debug!("removing sandbox {}: {error}", sandbox.id);
            }
        }
    }
}

/// The grace that the API (or its absence) gives a pod that is to end.
fn grace_of(desired: &Desired) -> Option<Duration> {
    if let Some(grace) = desired.pod.metadata.deletion_grace_period_seconds {
        return Some(Duration::from_secs(grace.max(0) as u64));
    }
    desired.removed.then(|| Duration::from_secs(spec::grace(&desired.pod) as u64))
}

/// A wait as the message has it: 10s, 20s, 1m20s, 5m0s.
fn crash_loop_length(length: Duration) -> String {
    match length.as_secs() {
        seconds if seconds < 60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spelt_as_go_spells_them() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(crash_loop_length(Duration::from_secs(seconds)), text);
        }
    }
}
