//! What must be done so that a pod that shall run, runs: from its spec and what the runtime
//! says, to the containers to kill and to start. Pure.

use super::observed::{Container as Seen, Observed, State};
use super::spec::{self, Kind};
use k8s_openapi::api::core::v1::{Container, Pod};

/// What probes said of the containers that run now, by runtime id.
pub trait ProbeResults {
    /// The liveness probe has failed for good.
    fn liveness_failed(&self, id: &str) -> bool;
    /// The startup probe has failed for good.
    fn startup_failed(&self, id: &str) -> bool;
    /// There is no startup probe, or it has succeeded; for sidecars also: postStart is done.
    fn started(&self, id: &str) -> bool;
}

/// A container to kill, and why, in the words of its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Runtime id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// Kind.
    pub kind: Kind,
    /// Sentence for the event.
    pub why: String,
    /// Whether a probe asked for it; then the probe's own grace may hold.
    pub by: KilledBy,
}

/// Who asked for a container to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KilledBy {
    /// Its spec changed.
    Spec,
    /// Its liveness probe.
    Liveness,
    /// Its startup probe.
    Startup,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Kind.
    pub kind: Kind,
    /// Name in the pod.
    pub name: String,
}

/// The whole plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Stop all containers and sandboxes first.
    pub kill_pod: bool,
    /// Then make a new sandbox, with this attempt.
    pub create_sandbox: Option<u32>,
    /// Kill these.
    pub kill: Vec<Kill>,
    /// Start these, in this order.
    pub start: Vec<Start>,
}

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Plan::default()
    }
}

/// Plans for a pod that shall run.
pub fn plan(pod: &Pod, seen: &Observed, probes: &dyn ProbeResults) -> Plan {
    if let Some(attempt) = sandbox_attempt(pod, seen) {
        return plan_sandbox(pod, seen, attempt);
    }
    let sandbox = seen.sandboxes.first().map(|s| s.id.clone()).unwrap_or_default();
    let mut plan = Plan::default();
    for (container, _) in spec::ephemerals(pod) {
        if seen.latest(&container.name).is_none() {
            plan.start.push(Start { kind: Kind::Ephemeral, name: container.name });
        }
    }
    match plan_inits(pod, seen, &sandbox, probes, &mut plan) {
        Inits::Failed => return Plan { kill_pod: true, ..Plan::default() },
        Inits::Wait => return plan,
        Inits::Done => {}
    }
    let ephemeral_starts = plan.start.iter().filter(|s| s.kind == Kind::Ephemeral).count();
    let sidecar_starts = plan.start.len() - ephemeral_starts;
    let kept = plan_mains(pod, seen, probes, &mut plan);
    let main_starts = plan.start.len() - ephemeral_starts - sidecar_starts;
    if kept == 0 && main_starts == 0 {
        return Plan { kill_pod: true, ..Plan::default() };
    }
    plan
}

/// The attempt of the sandbox that must be made, if one must.
fn sandbox_attempt(pod: &Pod, seen: &Observed) -> Option<u32> {
    let Some(newest) = seen.sandboxes.first() else { return Some(0) };
    let several = seen.sandboxes.iter().filter(|s| s.ready).count() > 1;
    let wrong_network = newest.host_network != spec::host_network(pod);
    let no_address = !newest.host_network && newest.ips.is_empty();
    (several || !newest.ready || wrong_network || no_address).then_some(newest.attempt + 1)
}

/// A new sandbox: everything in the old one ends, and what has not come to its end starts anew.
fn plan_sandbox(pod: &Pod, seen: &Observed, attempt: u32) -> Plan {
    let mut plan = Plan { kill_pod: !seen.sandboxes.is_empty(), ..Plan::default() };
    let never = spec::restart_policy(pod) == "Never";
    if never && attempt != 0 && seen.containers.iter().any(|c| c.started_at > 0) {
        return plan;
    }
    let mains: Vec<&Container> =
        spec::mains(pod).iter().filter(|c| !finished_for_good(pod, c, seen.latest(&c.name))).collect();
    if mains.is_empty() {
        return plan;
    }
    plan.create_sandbox = Some(attempt);
    match spec::inits(pod).first() {
        Some(first) => plan.start.push(Start { kind: Kind::Init, name: first.name.clone() }),
        None => plan.start.extend(mains.iter().map(|c| Start { kind: Kind::Main, name: c.name.clone() })),
    }
    plan
}

/// Ended, and its policy does not ask for a restart.
fn finished_for_good(pod: &Pod, container: &Container, seen: Option<&Seen>) -> bool {
    seen.is_some_and(|s| s.state == State::Exited && !wants_restart(pod, container, s))
}

/// Whether an ended (or lost) container shall run again.
fn wants_restart(pod: &Pod, container: &Container, seen: &Seen) -> bool {
    match seen.state {
        State::Running => false,
        State::Created | State::Unknown => true,
        State::Exited => {
            if let Some(restart) = rule(container, seen.exit_code) {
                return restart;
            }
            match spec::restart_policy_of(pod, container) {
                "Never" => false,
                "OnFailure" => seen.exit_code != 0,
                _ => true,
            }
        }
    }
}

/// The container's own rules on exit codes; the first that matches decides.
fn rule(container: &Container, exit_code: i32) -> Option<bool> {
    container.restart_policy_rules.iter().flatten().find_map(|rule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (matches && rule.action == "Restart").then_some(true)
    })
}

enum Inits {
    /// All that must come first has come.
    Done,
    /// Something is still to come.
    Wait,
    /// One failed and may not be tried again.
    Failed,
}

/// Whether the main containers of this sandbox have begun: then no plain init container runs any more.
fn initialized(pod: &Pod, seen: &Observed, sandbox: &str) -> bool {
    spec::mains(pod).iter().any(|c| seen.latest_in(&c.name, sandbox).is_some_and(|s| s.started_at > 0))
}

fn plan_inits(pod: &Pod, seen: &Observed, sandbox: &str, probes: &dyn ProbeResults, plan: &mut Plan) -> Inits {
    let begun = initialized(pod, seen, sandbox);
    for container in spec::inits(pod) {
        let sidecar = spec::is_sidecar(container);
        if begun && !sidecar {
            continue;
        }
        let start = Start { kind: Kind::Init, name: container.name.clone() };
        let Some(status) = seen.latest_in(&container.name, sandbox) else {
            plan.start.push(start);
            if begun {
                continue;
            }
            return Inits::Wait;
        };
        match status.state {
            State::Running => {
                if let Some(kill) = failed_probe(container, Kind::Init, status, probes) {
                    plan.kill.push(kill);
                } else if !begun && (!sidecar || !probes.started(&status.id)) {
                    return Inits::Wait;
                }
                if !sidecar {
                    return Inits::Wait;
                }
            }
            State::Exited if sidecar => plan.start.push(start),
            State::Exited if status.exit_code == 0 => continue,
            State::Exited if !wants_restart_init(pod, container, status) => return Inits::Failed,
            State::Exited | State::Created | State::Unknown => {
                plan.start.push(start);
            }
        }
        if !begun && (!sidecar || status.state != State::Running) {
            return Inits::Wait;
        }
    }
    Inits::Done
}

/// Init containers: Always means "until it has succeeded".
fn wants_restart_init(pod: &Pod, container: &Container, seen: &Seen) -> bool {
    rule(container, seen.exit_code).unwrap_or_else(|| spec::restart_policy_of(pod, container) != "Never")
}

/// Plans the main containers; how many of them go on as they are.
fn plan_mains(pod: &Pod, seen: &Observed, probes: &dyn ProbeResults, plan: &mut Plan) -> usize {
    let mut kept = 0;
    for container in spec::mains(pod) {
        let start = Start { kind: Kind::Main, name: container.name.clone() };
        let Some(status) = seen.latest(&container.name) else {
            plan.start.push(start);
            continue;
        };
        if status.state != State::Running {
            if wants_restart(pod, container, status) {
                plan.start.push(start);
            }
            continue;
        }
        if status.hash != spec::hash(container) && !status.hash.is_empty() {
            plan.kill.push(Kill {
                id: status.id.clone(),
                name: container.name.clone(),
                kind: Kind::Main,
                why: format!("Container {} definition changed, will be restarted", container.name),
                by: KilledBy::Spec,
            });
            plan.start.push(start);
            continue;
        }
        match failed_probe(container, Kind::Main, status, probes) {
            None => kept += 1,
            Some(mut kill) => {
                if spec::restart_policy_of(pod, container) != "Never" {
                    kill.why.push_str(", will be restarted");
                    plan.start.push(start);
                }
                plan.kill.push(kill);
                kept += 1;
            }
        }
    }
    kept
}

fn failed_probe(container: &Container, kind: Kind, seen: &Seen, probes: &dyn ProbeResults) -> Option<Kill> {
    let (which, by) = if probes.liveness_failed(&seen.id) {
        ("liveness", KilledBy::Liveness)
    } else if probes.startup_failed(&seen.id) {
        ("startup", KilledBy::Startup)
    } else {
        return None;
    };
    Some(Kill {
        id: seen.id.clone(),
        name: container.name.clone(),
        kind,
        why: format!("Container {} failed {which} probe", container.name),
        by,
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
