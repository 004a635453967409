//! The pod's row: the one that scripts read most.

use super::{age, int_at, list_at, or, since, str_at};
use serde_json::Value;

struct Row {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

pub(super) fn cells(o: &Value, now: i64) -> Vec<Value> {
    let row = summary(o);
    let status = &o["status"];
    let restarts = match row.last_restart {
        Some(t) if row.restarts != 0 => {
            format!("{} ({} ago)", row.restarts, since(&t.into(), now).as_str().unwrap_or(""))
        }
        _ => row.restarts.to_string(),
    };
    let ip = list_at(status, "podIPs").first().map_or(str_at(status, "podIP"), |i| str_at(i, "ip"));
    vec![
        crate::meta::name(o).into(),
        format!("{}/{}", row.ready, row.total).into(),
        row.reason.into(),
        restarts.into(),
        age(o, now),
        or(ip, "<none>").into(),
        or(str_at(&o["spec"], "nodeName"), "<none>").into(),
        or(str_at(status, "nominatedNodeName"), "<none>").into(),
        readiness_gates(o).into(),
    ]
}

fn readiness_gates(o: &Value) -> String {
    let gates = list_at(&o["spec"], "readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates
        .iter()
        .filter(|g| condition(o, str_at(g, "conditionType")).is_some_and(|c| c["status"] == "True"))
        .count();
    format!("{met}/{}", gates.len())
}

fn condition<'a>(o: &'a Value, ty: &str) -> Option<&'a Value> {
    list_at(&o["status"], "conditions").iter().find(|c| c["type"] == ty)
}

fn exit_text(t: &Value, prefix: &str) -> String {
    match (str_at(t, "reason"), int_at(t, "signal")) {
        ("", 0) => format!("{prefix}ExitCode:{}", int_at(t, "exitCode")),
        ("", s) => format!("{prefix}Signal:{s}"),
        (r, _) => format!("{prefix}{r}"),
    }
}

fn later(a: &mut Option<String>, status: &Value) {
    if let Some(t) = status["lastState"]["terminated"]["finishedAt"].as_str()
        && a.as_deref().is_none_or(|a| a < t)
    {
        *a = Some(t.to_string());
    }
}

fn summary(o: &Value) -> Row {
    let (spec, status) = (&o["spec"], &o["status"]);
    let sidecar = |name: &str| {
        list_at(spec, "initContainers").iter().any(|c| c["name"] == name && c["restartPolicy"] == "Always")
    };
    let sidecars = list_at(spec, "initContainers").iter().filter(|c| c["restartPolicy"] == "Always").count();
    let mut row = Row {
        reason: or(str_at(status, "reason"), str_at(status, "phase")).to_string(),
        ready: 0,
        total: list_at(spec, "containers").len() + sidecars,
        restarts: 0,
        last_restart: None,
    };
    if condition(o, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        row.reason = "SchedulingGated".into();
    }
    let (mut initializing, mut sidecar_restarts, mut sidecar_last) = (false, 0, None);
    for (i, c) in list_at(status, "initContainerStatuses").iter().enumerate() {
        row.restarts += int_at(c, "restartCount");
        later(&mut row.last_restart, c);
        let is_sidecar = sidecar(str_at(c, "name"));
        if is_sidecar {
            sidecar_restarts += int_at(c, "restartCount");
            later(&mut sidecar_last, c);
        }
        let state = &c["state"];
        if state["terminated"].is_object() && int_at(&state["terminated"], "exitCode") == 0 {
            continue;
        }
        if is_sidecar && c["started"] == true {
            row.ready += usize::from(c["ready"] == true);
            continue;
        }
        row.reason = if state["terminated"].is_object() {
            exit_text(&state["terminated"], "Init:")
        } else if !matches!(str_at(&state["waiting"], "reason"), "" | "PodInitializing") {
            format!("Init:{}", str_at(&state["waiting"], "reason"))
        } else {
            format!("Init:{i}/{}", list_at(spec, "initContainers").len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition(o, "Initialized").is_some_and(|c| c["status"] == "True") {
        row.restarts = sidecar_restarts;
        row.last_restart = sidecar_last;
        main_containers(o, &mut row);
    }
    if o["metadata"]["deletionTimestamp"].is_string() {
        if status["reason"] == "NodeLost" {
            row.reason = "Unknown".into();
        } else if !matches!(str_at(status, "phase"), "Succeeded" | "Failed") {
            row.reason = "Terminating".into();
        }
    }
    row
}

fn main_containers(o: &Value, row: &mut Row) {
    let mut running = false;
    for c in list_at(&o["status"], "containerStatuses").iter().rev() {
        row.restarts += int_at(c, "restartCount");
        later(&mut row.last_restart, c);
        let state = &c["state"];
        if !str_at(&state["waiting"], "reason").is_empty() {
            row.reason = str_at(&state["waiting"], "reason").into();
        } else if state["terminated"].is_object() {
            row.reason = exit_text(&state["terminated"], "");
        } else if c["ready"] == true && state["running"].is_object() {
            running = true;
            row.ready += 1;
        }
    }
    if row.reason == "Completed" && running {
        let ready = condition(o, "Ready").is_some_and(|c| c["status"] == "True");
        row.reason = if ready { "Running" } else { "NotReady" }.into();
    }
}
