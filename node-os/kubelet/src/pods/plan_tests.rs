//! Tables for the plan of a pod.

use super::*;
use crate::pods::observed::Sandbox;

struct Probes {
    failed: Vec<&'static str>,
    unstarted: Vec<&'static str>,
}

impl ProbeResults for Probes {
    fn liveness_failed(&self, id: &str) -> bool {
        self.failed.contains(&id)
    }
    fn startup_failed(&self, _: &str) -> bool {
        false
    }
    fn started(&self, id: &str) -> bool {
        !self.unstarted.contains(&id)
    }
}

const FINE: Probes = Probes { failed: Vec::new(), unstarted: Vec::new() };

fn pod(yaml: &str) -> Pod {
    serde_yaml_ng::from_str(&format!("{{metadata: {{name: p, namespace: n, uid: u}}, spec: {yaml}}}")).unwrap()
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    Sandbox {
        id: id.into(),
        attempt,
        ready,
        created_at: i64::from(attempt),
        ips: vec!["10.0.0.1".parse().unwrap()],
        host_network: false,
    }
}

fn seen(pod: &Pod, name: &str, id: &str, state: State, exit_code: i32) -> Seen {
    let hash = spec::find(pod, name).map(|(_, c)| spec::hash(&c)).unwrap_or_default();
    Seen {
        id: id.into(),
        name: name.into(),
        sandbox: "s0".into(),
        state,
        created_at: 1,
        started_at: 1,
        finished_at: 0,
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: String::new(),
        image_ref: String::new(),
        hash,
        restarts: 0,
        log_path: String::new(),
        user: None,
    }
}

fn starts(plan: &Plan) -> Vec<&str> {
    plan.start.iter().map(|s| s.name.as_str()).collect()
}

fn with(pod: &Pod, containers: &[(&str, State, i32)]) -> Observed {
    Observed {
        sandboxes: vec![sandbox("s0", 0, true)],
        containers: containers.iter().map(|(name, state, code)| seen(pod, name, name, *state, *code)).collect(),
    }
}

#[test]
fn a_new_pod_gets_a_sandbox_and_its_containers() {
    let pod = pod("{containers: [{name: a}, {name: b}]}");
    let plan = plan(&pod, &Observed::default(), &FINE);
    assert_eq!(plan.create_sandbox, Some(0));
    assert!(!plan.kill_pod);
    assert_eq!(starts(&plan), ["a", "b"]);
}

#[test]
fn init_containers_come_one_by_one() {
    let pod = pod("{initContainers: [{name: i}, {name: j}], containers: [{name: a}]}");
    // The containers there, and those to be started.
    type Case<'a> = (&'a [(&'a str, State, i32)], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[], &["i"]),
        (&[("i", State::Running, 0)], &[]),
        (&[("i", State::Exited, 0)], &["j"]),
        (&[("i", State::Exited, 1)], &["i"]),
        (&[("i", State::Exited, 0), ("j", State::Running, 0)], &[]),
        (&[("i", State::Exited, 0), ("j", State::Exited, 0)], &["a"]),
    ];
    for (containers, expected) in cases {
        assert_eq!(&starts(&plan(&pod, &with(&pod, containers), &FINE)), expected, "{containers:?}");
    }
}

#[test]
fn a_failed_init_container_that_may_not_be_tried_again_ends_the_pod() {
    let pod = pod("{restartPolicy: Never, initContainers: [{name: i}], containers: [{name: a}]}");
    let plan = plan(&pod, &with(&pod, &[("i", State::Exited, 1)]), &FINE);
    assert!(plan.kill_pod && plan.create_sandbox.is_none() && plan.start.is_empty());
}

#[test]
fn a_sidecar_goes_before_the_others_and_along_with_them() {
    let pod = pod("{initContainers: [{name: s, restartPolicy: Always}, {name: i}], containers: [{name: a}]}");
    let unstarted = Probes { failed: vec![], unstarted: vec!["s"] };
    let running = with(&pod, &[("s", State::Running, 0)]);
    assert_eq!(starts(&plan(&pod, &running, &unstarted)), Vec::<&str>::new());
    assert_eq!(starts(&plan(&pod, &running, &FINE)), ["i"]);
    let all = with(&pod, &[("s", State::Running, 0), ("i", State::Exited, 0)]);
    assert_eq!(starts(&plan(&pod, &all, &FINE)), ["a"]);
    let lost = with(&pod, &[("s", State::Exited, 0), ("i", State::Exited, 0), ("a", State::Running, 0)]);
    assert_eq!(starts(&plan(&pod, &lost, &FINE)), ["s"]);
}

#[test]
fn a_pod_whose_main_containers_are_done_ends_with_its_sidecars() {
    let pod =
        pod("{restartPolicy: Never, initContainers: [{name: s, restartPolicy: Always}], containers: [{name: a}]}");
    let done = with(&pod, &[("s", State::Running, 0), ("a", State::Exited, 0)]);
    assert!(plan(&pod, &done, &FINE).kill_pod);
}

#[test]
fn restart_policies() {
    for (policy, code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let pod = pod(&format!("{{restartPolicy: {policy}, containers: [{{name: a}}, {{name: b}}]}}"));
        let state = with(&pod, &[("a", State::Exited, code), ("b", State::Running, 0)]);
        let plan = plan(&pod, &state, &FINE);
        assert_eq!(starts(&plan) == ["a"], restarted, "{policy} {code}");
        assert!(!plan.kill_pod);
    }
}

#[test]
fn a_lost_sandbox_is_made_again_for_what_is_not_done() {
    let pod = pod("{restartPolicy: OnFailure, containers: [{name: a}, {name: b}]}");
    let mut state = with(&pod, &[("a", State::Exited, 0), ("b", State::Exited, 137)]);
    state.sandboxes = vec![sandbox("s0", 3, false)];
    let plan = plan(&pod, &state, &FINE);
    assert_eq!((plan.create_sandbox, plan.kill_pod), (Some(4), true));
    assert_eq!(starts(&plan), ["b"]);
}

#[test]
fn a_pod_that_is_done_gets_no_new_sandbox() {
    for policy in ["Never", "OnFailure"] {
        let pod = pod(&format!("{{restartPolicy: {policy}, containers: [{{name: a}}]}}"));
        let mut state = with(&pod, &[("a", State::Exited, 0)]);
        state.sandboxes = vec![sandbox("s0", 0, false)];
        let plan = plan(&pod, &state, &FINE);
        assert!(plan.create_sandbox.is_none(), "{policy}");
        assert!(plan.start.is_empty(), "{policy}");
    }
}

#[test]
fn failed_liveness_and_changed_images_restart() {
    let pod = pod("{containers: [{name: a, image: x}]}");
    let failed = Probes { failed: vec!["a"], unstarted: vec![] };
    let plan_failed = plan(&pod, &with(&pod, &[("a", State::Running, 0)]), &failed);
    assert_eq!(plan_failed.kill[0].why, "Container a failed liveness probe, will be restarted");
    assert_eq!(starts(&plan_failed), ["a"]);
    let mut changed = with(&pod, &[("a", State::Running, 0)]);
    changed.containers[0].hash = "other".into();
    let plan_changed = plan(&pod, &changed, &FINE);
    assert_eq!(plan_changed.kill[0].by, KilledBy::Spec);
    assert_eq!(starts(&plan_changed), ["a"]);
}

#[test]
fn ephemeral_containers_start_once() {
    let pod = pod("{containers: [{name: a}], ephemeralContainers: [{name: d, image: x}]}");
    let state = with(&pod, &[("a", State::Running, 0)]);
    assert_eq!(starts(&plan(&pod, &state, &FINE)), ["d"]);
    let state = with(&pod, &[("a", State::Running, 0), ("d", State::Exited, 0)]);
    assert!(plan(&pod, &state, &FINE).is_empty());
}
