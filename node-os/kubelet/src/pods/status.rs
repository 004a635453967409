//! The status of a pod, from its spec, what the runtime says, what probes say and what the
//! status was before. Pure.

use super::observed::{Container as Seen, Observed, State};
use super::spec::{self, Kind};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Why a container waits, in the API's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// CamelCase reason.
    pub reason: String,
    /// Sentence.
    pub message: String,
}

/// What a pod was ended for by the kubelet itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// CamelCase reason: Evicted, DeadlineExceeded, NodeAffinity, …
    pub reason: String,
    /// Sentence.
    pub message: String,
}

/// All that goes into a status.
pub struct Input<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// The status that was last computed or, after a restart, the API's.
    pub old: &'a PodStatus,
    /// What the runtime says.
    pub seen: &'a Observed,
    /// Runtime ids that are ready by their readiness probe (or without one).
    pub ready: &'a dyn Fn(&str, &Container) -> bool,
    /// Runtime ids whose startup is over.
    pub started: &'a dyn Fn(&str, &Container) -> bool,
    /// Why containers wait, by name.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// The kubelet ended the pod itself.
    pub verdict: Option<&'a Verdict>,
    /// The pod is to end, or has ended.
    pub terminating: bool,
    /// All its containers have ended for good.
    pub terminated: bool,
    /// This node's addresses.
    pub host_ips: &'a [IpAddr],
    /// Name of the runtime, for container ids.
    pub runtime: &'a str,
    /// The clock.
    pub now: Timestamp,
}

/// Computes the status.
pub fn compute(input: &Input) -> PodStatus {
    let pod = input.pod;
    let finished_inits = inits_done(input);
    let init_statuses = statuses(input, Kind::Init, spec::inits(pod), true);
    let main_statuses = statuses(input, Kind::Main, spec::mains(pod), finished_inits);
    let ephemerals: Vec<Container> = spec::ephemerals(pod).into_iter().map(|(c, _)| c).collect();
    let ephemeral_statuses = statuses(input, Kind::Ephemeral, &ephemerals, true);
    let phase = match input.verdict {
        Some(_) => "Failed",
        None => phase(input, &init_statuses, &main_statuses),
    };
    // A pod that has come to its end never leaves it.
    let phase = match input.old.phase.as_deref() {
        Some(end @ ("Failed" | "Succeeded")) if main_statuses.iter().all(has_ended) => end,
        _ => phase,
    };
    let conditions = conditions(input, phase, &init_statuses, &main_statuses);
    let (pod_ips, host_ips) = addresses(input);
    let non_empty = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    PodStatus {
        phase: Some(phase.to_string()),
        conditions: Some(conditions),
        reason: input.verdict.map(|v| v.reason.clone()).or_else(|| input.old.reason.clone()),
        message: input.verdict.map(|v| v.message.clone()).or_else(|| input.old.message.clone()),
        host_ip: host_ips.first().cloned(),
        host_ips: Some(host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty()).then(|| pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: Some(input.old.start_time.clone().unwrap_or(Time::from(input.now))),
        init_container_statuses: non_empty(init_statuses),
        container_statuses: non_empty(main_statuses),
        ephemeral_container_statuses: non_empty(ephemeral_statuses),
        qos_class: Some(super::qos::class(pod).as_str().to_string()),
        observed_generation: pod.metadata.generation,
        ..input.old.clone_foreign()
    }
}

/// What of a status others than the kubelet write.
trait Foreign {
    fn clone_foreign(&self) -> PodStatus;
}

impl Foreign for PodStatus {
    fn clone_foreign(&self) -> PodStatus {
        PodStatus {
            nominated_node_name: self.nominated_node_name.clone(),
            resource_claim_statuses: self.resource_claim_statuses.clone(),
            resize: self.resize.clone(),
            ..Default::default()
        }
    }
}

fn addresses(input: &Input) -> (Vec<String>, Vec<String>) {
    let host: Vec<String> = input.host_ips.iter().map(IpAddr::to_string).collect();
    if spec::host_network(input.pod) {
        let known = !input.seen.sandboxes.is_empty() || input.old.pod_ip.is_some();
        return (if known { host.clone() } else { Vec::new() }, host);
    }
    let own: Vec<String> = match input.seen.ready_sandbox() {
        Some(sandbox) => sandbox.ips.iter().map(IpAddr::to_string).collect(),
        // A pod that has ended keeps showing where it was.
        None if input.terminating || input.terminated => {
            input.old.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect()
        }
        None => Vec::new(),
    };
    (own, host)
}

/// Whether all init containers have done their part (sidecars: have started).
fn inits_done(input: &Input) -> bool {
    let pod = input.pod;
    if spec::mains(pod).iter().any(|c| input.seen.latest(&c.name).is_some_and(|s| s.started_at > 0)) {
        return true;
    }
    spec::inits(pod).iter().all(|container| match input.seen.latest(&container.name) {
        None => false,
        Some(seen) if spec::is_sidecar(container) => {
            seen.state == State::Running && (input.started)(&seen.id, container)
        }
        Some(seen) => seen.state == State::Exited && seen.exit_code == 0,
    })
}

fn has_ended(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.terminated.is_some())
}

fn statuses(input: &Input, kind: Kind, containers: &[Container], may_start: bool) -> Vec<ContainerStatus> {
    let old = match kind {
        Kind::Init => &input.old.init_container_statuses,
        Kind::Main => &input.old.container_statuses,
        Kind::Ephemeral => &input.old.ephemeral_container_statuses,
    };
    containers
        .iter()
        .map(|container| {
            let old = old.iter().flatten().find(|s| s.name == container.name);
            one_status(input, kind, container, old, may_start)
        })
        .collect()
}

fn one_status(
    input: &Input,
    kind: Kind,
    container: &Container,
    old: Option<&ContainerStatus>,
    may_start: bool,
) -> ContainerStatus {
    let Some(seen) = input.seen.latest(&container.name) else {
        return missing_status(input, container, old, may_start);
    };
    let waiting = input.waiting.get(&container.name);
    let id = format!("{}://{}", input.runtime, seen.id);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: shown_image(container, seen),
        image_id: seen.image_ref.clone(),
        container_id: Some(id),
        restart_count: seen.restarts as i32,
        ..base_status(input, container)
    };
    status.user = seen.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: *uid,
            gid: *gid,
            supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
        }),
    });
    let previous = input.seen.previous(&container.name).map(|p| terminated_state(input, p));
    status.last_state = Some(previous.or_else(|| old.and_then(|o| o.last_state.clone())).unwrap_or_default());
    match seen.state {
        State::Running => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: time(seen.started_at) }),
                ..Default::default()
            });
            let started = (input.started)(&seen.id, container);
            status.started = Some(started);
            status.ready = match kind {
                Kind::Init if !spec::is_sidecar(container) => false,
                Kind::Ephemeral => false,
                _ => started && !input.terminated && (input.ready)(&seen.id, container),
            };
        }
        State::Exited => {
            let ended = terminated_state(input, seen);
            status.ready = kind == Kind::Init && !spec::is_sidecar(container) && seen.exit_code == 0;
            status.started = Some(false);
            match waiting {
                Some(waiting) if !input.terminating => {
                    status.state = Some(waiting_state(waiting));
                    status.last_state = Some(ended);
                }
                _ => status.state = Some(ended),
            }
        }
        State::Created | State::Unknown => {
            status.started = Some(false);
            let fallback = default_waiting(input, may_start);
            status.state = Some(waiting_state(waiting.unwrap_or(&fallback)));
        }
    }
    status
}

/// A container that the runtime does not know: not yet, or no longer.
fn missing_status(
    input: &Input,
    container: &Container,
    old: Option<&ContainerStatus>,
    may_start: bool,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |o| o.restart_count),
        started: Some(false),
        last_state: Some(old.and_then(|o| o.last_state.clone()).unwrap_or_default()),
        ..base_status(input, container)
    };
    let old_state = old.and_then(|o| o.state.as_ref());
    if let Some(ended) = old_state.filter(|s| s.terminated.is_some()) {
        // Cleaned up after its end: what was reported stays true.
        status.state = Some(ended.clone());
        status.image_id = old.map(|o| o.image_id.clone()).unwrap_or_default();
        status.container_id = old.and_then(|o| o.container_id.clone());
        status.ready = old.is_some_and(|o| o.ready);
        return status;
    }
    let was_running = old_state.is_some_and(|s| s.running.is_some());
    if was_running && (input.terminating || spec::restart_policy(input.pod) == "Never") {
        status.container_id = old.and_then(|o| o.container_id.clone());
        status.state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                ..Default::default()
            }),
            ..Default::default()
        });
        return status;
    }
    let fallback = default_waiting(input, may_start);
    status.state = Some(waiting_state(input.waiting.get(&container.name).unwrap_or(&fallback)));
    status
}

fn base_status(input: &Input, container: &Container) -> ContainerStatus {
    let resources = container.resources.as_ref().filter(|r| r.requests.is_some() || r.limits.is_some());
    let _ = input;
    ContainerStatus {
        allocated_resources: resources.and_then(|r| r.requests.clone()),
        resources: Some(resources.cloned().unwrap_or_default()),
        ..Default::default()
    }
}

/// The name as the user wrote it, unless the runtime knows a fuller one.
fn shown_image(container: &Container, seen: &Seen) -> String {
    match seen.image.as_str() {
        "" => container.image.clone().unwrap_or_default(),
        id if id.starts_with("sha256:") => container.image.clone().unwrap_or_default(),
        image => image.to_string(),
    }
}

fn default_waiting(input: &Input, may_start: bool) -> Waiting {
    let has_inits = !spec::inits(input.pod).is_empty();
    let reason = if has_inits && !may_start { "PodInitializing" } else { "ContainerCreating" };
    // Before the first init container runs, everything is being created.
    let reason = if has_inits && input.seen.sandboxes.is_empty() && may_start { "PodInitializing" } else { reason };
    Waiting { reason: reason.into(), message: String::new() }
}

fn waiting_state(waiting: &Waiting) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(waiting.reason.clone()),
            message: (!waiting.message.is_empty()).then(|| waiting.message.clone()),
        }),
        ..Default::default()
    }
}

fn terminated_state(input: &Input, seen: &Seen) -> ContainerState {
    let reason = match (seen.reason.as_str(), seen.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{}://{}", input.runtime, seen.id)),
            exit_code: seen.exit_code,
            finished_at: time(seen.finished_at),
            message: (!seen.message.is_empty()).then(|| seen.message.clone()),
            reason: Some(reason.into()),
            signal: None,
            started_at: time(seen.started_at),
        }),
        ..Default::default()
    }
}

fn time(nanoseconds: i64) -> Option<Time> {
    Timestamp::from_second(nanoseconds / 1_000_000_000).ok().map(Time::from)
}

/// The phase, from the containers' states.
fn phase(input: &Input, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> &'static str {
    let policy = spec::restart_policy(input.pod);
    let (mut pending_inits, mut failed_inits) = (0, 0);
    for (container, status) in spec::inits(input.pod).iter().zip(inits) {
        if spec::is_sidecar(container) {
            if status.started != Some(true) && !inits_done(input) {
                pending_inits += 1;
            }
            continue;
        }
        let ended = |s: &Option<ContainerState>| s.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
        match ended(&status.state).or(ended(&status.last_state)) {
            Some(0) => {}
            Some(_) if status.state.as_ref().is_some_and(|s| s.running.is_none()) => {
                failed_inits += 1;
            }
            _ => pending_inits += 1,
        }
    }
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in mains {
        let state = status.state.clone().unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        if state.running.is_some() {
            running += 1;
        } else if let Some(ended) = &state.terminated {
            stopped += 1;
            succeeded += usize::from(ended.exit_code == 0);
        } else if last.is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if failed_inits > 0 && policy == "Never" {
        return "Failed";
    }
    if input.terminated {
        return if stopped > 0 && stopped == succeeded && waiting == 0 && running == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    match () {
        () if pending_inits > 0 || failed_inits > 0 && !inits_done(input) => "Pending",
        () if waiting > 0 => "Pending",
        () if running > 0 => "Running",
        () if stopped > 0 && policy == "Always" => "Running",
        () if stopped > 0 && stopped == succeeded => "Succeeded",
        () if stopped > 0 && policy == "Never" => "Failed",
        () if stopped > 0 => "Running",
        () => "Pending",
    }
}

fn conditions(input: &Input, phase: &str, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> Vec<PodCondition> {
    let sandbox_ready = input.seen.ready_sandbox().is_some_and(|s| s.host_network || !s.ips.is_empty());
    let initialized = initialized(input, phase, inits);
    let containers = containers_ready(input, phase, inits, mains);
    let ready = pod_ready(input, phase, &containers);
    let mut list = vec![
        condition("PodReadyToStartContainers", (sandbox_ready, None, None)),
        condition("Initialized", initialized),
        condition("Ready", ready),
        condition("ContainersReady", containers),
    ];
    let old = input.old.conditions.as_deref().unwrap_or_default();
    let owned = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
    list.extend(old.iter().filter(|c| !owned.contains(&c.type_.as_str())).cloned());
    if !list.iter().any(|c| c.type_ == "PodScheduled") {
        list.push(condition("PodScheduled", (true, None, None)));
    }
    for new in &mut list {
        let before = old.iter().find(|c| c.type_ == new.type_);
        let same = before.filter(|b| b.status == new.status).and_then(|b| b.last_transition_time.clone());
        new.last_transition_time = Some(same.unwrap_or(Time::from(input.now)));
        if owned.contains(&new.type_.as_str()) {
            new.observed_generation = input.pod.metadata.generation;
        }
    }
    list
}

type Verdicts = (bool, Option<&'static str>, Option<String>);

fn condition(kind: &str, (status, reason, message): Verdicts) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: reason.map(Into::into),
        message,
        ..Default::default()
    }
}

fn initialized(input: &Input, phase: &str, inits: &[ContainerStatus]) -> Verdicts {
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    if inits_done(input) {
        return (true, None, None);
    }
    let open: Vec<&str> = spec::inits(input.pod)
        .iter()
        .zip(inits)
        .filter(|(container, status)| {
            let done = if spec::is_sidecar(container) { status.started == Some(true) } else { status.ready };
            !done
        })
        .map(|(container, _)| container.name.as_str())
        .collect();
    if open.is_empty() {
        return (true, None, None);
    }
    (false, Some("ContainersNotInitialized"), Some(format!("containers with incomplete status: [{}]", open.join(" "))))
}

fn containers_ready(input: &Input, phase: &str, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> Verdicts {
    match phase {
        "Succeeded" => return (false, Some("PodCompleted"), None),
        "Failed" => return (false, Some("PodFailed"), None),
        _ => {}
    }
    let sidecars = spec::inits(input.pod).iter().zip(inits).filter(|(c, _)| spec::is_sidecar(c)).map(|(_, s)| s);
    let all: Vec<&ContainerStatus> = sidecars.chain(mains).collect();
    let is_unknown = |s: &ContainerStatus| s.state.is_none();
    let unready: Vec<&str> = all.iter().filter(|s| !s.ready && !is_unknown(s)).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return (true, None, None);
    }
    (false, Some("ContainersNotReady"), Some(format!("containers with unready status: [{}]", unready.join(" "))))
}

fn pod_ready(input: &Input, phase: &str, containers: &Verdicts) -> Verdicts {
    if !containers.0 || matches!(phase, "Succeeded" | "Failed") {
        return containers.clone();
    }
    let conditions = input.old.conditions.as_deref().unwrap_or_default();
    let missing: Vec<String> = spec::of(input.pod)
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match api_condition(input.pod, conditions, kind) {
                Some("True") => None,
                Some(status) => {
                    Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {status}"))
                }
                None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            }
        })
        .collect();
    if missing.is_empty() {
        return (true, None, None);
    }
    (false, Some("ReadinessGatesNotReady"), Some(missing.join(", ")))
}

/// A condition that others write: the API's word counts, not ours of before.
fn api_condition<'a>(pod: &'a Pod, own: &'a [PodCondition], kind: &str) -> Option<&'a str> {
    let api = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    api.iter().chain(own).find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

/// The status of a pod that this node does not take.
pub fn rejected(pod: &Pod, verdict: &Verdict, host_ips: &[IpAddr], now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let host: Vec<String> = host_ips.iter().map(IpAddr::to_string).collect();
    PodStatus {
        phase: Some("Failed".into()),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        start_time: Some(old.start_time.clone().unwrap_or(Time::from(now))),
        host_ip: host.first().cloned(),
        host_ips: Some(host.into_iter().map(|ip| HostIP { ip }).collect()),
        qos_class: Some(super::qos::class(pod).as_str().into()),
        conditions: old.conditions.clone(),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
