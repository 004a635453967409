//! Tables for the status of a pod.

use super::*;
use crate::pods::observed::Sandbox;

fn pod(yaml: &str) -> Pod {
    serde_yaml_ng::from_str(&format!("{{metadata: {{name: p, namespace: n, uid: u, generation: 3}}, spec: {yaml}}}"))
        .unwrap()
}

fn seen(name: &str, state: State, exit_code: i32, created_at: i64) -> Seen {
    Seen {
        id: format!("{name}-{created_at}"),
        name: name.into(),
        sandbox: "s".into(),
        state,
        created_at,
        started_at: 1_000_000_000,
        finished_at: 2_000_000_000,
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "img:1".into(),
        image_ref: "img@sha256:0".into(),
        hash: String::new(),
        restarts: created_at as u32,
        log_path: String::new(),
        user: None,
    }
}

fn status_of(pod: &Pod, containers: Vec<Seen>, change: impl Fn(&mut Input)) -> PodStatus {
    let observed = Observed {
        sandboxes: vec![Sandbox {
            id: "s".into(),
            attempt: 0,
            ready: true,
            created_at: 0,
            ips: vec!["10.200.1.5".parse().unwrap()],
            host_network: false,
        }],
        containers,
    };
    let old = pod.status.clone().unwrap_or_default();
    let waiting = BTreeMap::from([(
        "crash".to_string(),
        Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 10s".into() },
    )]);
    let mut input = Input {
        pod,
        old: &old,
        seen: &observed,
        ready: &|_, _| true,
        started: &|_, _| true,
        waiting: &waiting,
        verdict: None,
        terminating: false,
        terminated: false,
        host_ips: &["10.77.0.11".parse().unwrap()],
        runtime: "containerd",
        now: Timestamp::from_second(100).unwrap(),
    };
    change(&mut input);
    compute(&input)
}

fn condition_of<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap()
}

#[test]
fn phases() {
    use State::{Exited, Running};
    for (policy, containers, phase) in [
        ("Always", vec![], "Pending"),
        ("Always", vec![seen("a", Running, 0, 0)], "Running"),
        ("Always", vec![seen("a", Exited, 0, 0)], "Running"),
        ("Never", vec![seen("a", Exited, 0, 0)], "Succeeded"),
        ("Never", vec![seen("a", Exited, 1, 0)], "Failed"),
        ("OnFailure", vec![seen("a", Exited, 1, 0)], "Running"),
        ("OnFailure", vec![seen("a", Exited, 0, 0)], "Succeeded"),
    ] {
        let pod = pod(&format!("{{restartPolicy: {policy}, containers: [{{name: a}}]}}"));
        let text = format!("{policy} {containers:?}");
        assert_eq!(status_of(&pod, containers, |_| {}).phase.as_deref(), Some(phase), "{text}");
    }
}

#[test]
fn a_running_pod_is_ready() {
    let pod = pod("{containers: [{name: a}]}");
    let status = status_of(&pod, vec![seen("a", State::Running, 0, 0)], |_| {});
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition_of(&status, kind).status, "True", "{kind}");
    }
    assert_eq!(status.pod_ip.as_deref(), Some("10.200.1.5"));
    assert_eq!(status.host_ip.as_deref(), Some("10.77.0.11"));
    assert_eq!(status.observed_generation, Some(3));
    let container = &status.container_statuses.unwrap()[0];
    assert!(container.ready && container.started == Some(true));
    assert_eq!(container.container_id.as_deref(), Some("containerd://a-0"));
}

#[test]
fn an_unready_container_is_named() {
    let pod = pod("{containers: [{name: a}]}");
    let status = status_of(&pod, vec![seen("a", State::Running, 0, 0)], |input| input.ready = &|_, _| false);
    let ready = condition_of(&status, "Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ContainersNotReady")));
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [a]"));
}

#[test]
fn a_crashing_container_waits_with_its_end_as_last_state() {
    let pod = pod("{containers: [{name: crash}]}");
    let status = status_of(&pod, vec![seen("crash", State::Exited, 1, 2)], |_| {});
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!(container.restart_count, 2);
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn init_containers_keep_the_pod_pending() {
    let pod = pod("{initContainers: [{name: i}], containers: [{name: a}]}");
    let status = status_of(&pod, vec![seen("i", State::Running, 0, 0)], |_| {});
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let main = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(main.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("PodInitializing"));
    let initialized = condition_of(&status, "Initialized");
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
}

#[test]
fn a_terminated_pod_is_judged_by_exit_codes() {
    let pod = pod("{containers: [{name: a}]}");
    for (code, phase) in [(0, "Succeeded"), (137, "Failed")] {
        let status = status_of(&pod, vec![seen("a", State::Exited, code, 0)], |input| {
            input.terminating = true;
            input.terminated = true;
        });
        assert_eq!(status.phase.as_deref(), Some(phase));
    }
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let mut pod = pod("{containers: [{name: a}]}");
    let first = status_of(&pod, vec![seen("a", State::Running, 0, 0)], |_| {});
    pod.status = Some(first.clone());
    let second = status_of(&pod, vec![seen("a", State::Running, 0, 0)], |input| {
        input.now = Timestamp::from_second(500).unwrap();
    });
    assert_eq!(first, second);
}

#[test]
fn the_verdict_of_the_kubelet_fails_the_pod() {
    let pod = pod("{containers: [{name: a}]}");
    static VERDICT: std::sync::LazyLock<Verdict> = std::sync::LazyLock::new(|| Verdict {
        reason: "Evicted".into(),
        message: "The node was low on resource: memory.".into(),
    });
    let status = status_of(&pod, vec![seen("a", State::Exited, 137, 0)], |input| input.verdict = Some(&VERDICT));
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}
