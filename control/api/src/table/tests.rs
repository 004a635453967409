use super::*;
use crate::kinds::{builtin, find};

const NOW: i64 = 1_767_323_045;

fn text_cells(group: &str, version: &str, plural: &str, o: Value) -> Vec<String> {
    cells(find(group, version, plural).unwrap(), &o, NOW).iter().map(text).collect()
}

#[test]
fn pods() {
    let created = crate::time::format(NOW - 300);
    let base = json!({"metadata": {"name": "a", "creationTimestamp": created}, "spec": {"nodeName": "n", "containers": [{"name": "c"}, {"name": "d"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [
            {"name": "c", "ready": true, "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": crate::time::format(NOW - 60)}}},
            {"name": "d", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
    assert_eq!(
        text_cells("", "v1", "pods", base.clone()),
        ["a", "1/2", "CrashLoopBackOff", "2 (60s ago)", "5m", "10.0.0.1", "n", "<none>", "<none>"]
    );
    let mut terminating = base.clone();
    terminating["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
    assert_eq!(text_cells("", "v1", "pods", terminating)[2], "Terminating");
    let init = json!({"metadata": {"name": "a"}, "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]},
        "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}});
    assert_eq!(text_cells("", "v1", "pods", init)[1..3], ["0/1", "Init:0/1"]);
    let done = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Succeeded", "containerStatuses": [{"name": "c", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}});
    assert_eq!(text_cells("", "v1", "pods", done)[2], "Completed");
}

#[test]
fn others() {
    let n = text_cells(
        "",
        "v1",
        "nodes",
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}}),
    );
    assert_eq!(
        n,
        [
            "n",
            "Ready,SchedulingDisabled",
            "control-plane",
            "<unknown>",
            "v1.36.0",
            "1.2.3.4",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ]
    );
    let s = text_cells(
        "",
        "v1",
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}]}}),
    );
    assert_eq!(s[1..5], ["NodePort", "10.0.0.1", "<none>", "80:30000/TCP"]);
    let d = text_cells(
        "apps",
        "v1",
        "deployments",
        json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"readyReplicas": 1}}),
    );
    assert_eq!(d, ["d", "1/3", "0", "0", "<unknown>", "c", "i", "a=b"]);
}

#[test]
fn every_kind_has_a_row() {
    for k in builtin() {
        let o = json!({"metadata": {"name": "x"}});
        let c = cells(k, &o, NOW);
        assert_eq!(c.len(), columns(k).as_array().unwrap().len(), "{}", k.plural);
        if k.plural != "events" {
            assert!(c[0].as_str().unwrap().starts_with('x'), "{}", k.plural);
        }
    }
}

#[test]
fn tables() {
    let k = find("", "v1", "configmaps").unwrap();
    let o = json!({"metadata": {"name": "x"}, "data": {"a": "b"}});
    let t = table(k, [&o], json!({"resourceVersion": "5"}), Include::Metadata, "v1", true, NOW);
    assert_eq!(t["rows"][0]["cells"], json!(["x", 1, "<unknown>"]));
    assert_eq!(t["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(t["columnDefinitions"].as_array().unwrap().len(), 3);
}

/// What upstream's printers make of the objects in `cells.jsonl`, at 2026-01-02T03:04:05Z.
#[test]
fn cells_are_upstreams() {
    for line in include_str!("cells.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let of: Vec<&str> = case["of"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
        let cells = text_cells(of[0], of[1], of[2], case["object"].clone());
        assert_eq!(json!(cells), case["cells"], "{line}");
    }
}

#[test]
fn cells_of_custom_columns() {
    let column = |ty: &'static str, path: &'static str| Column {
        name: "C".into(),
        ty: ty.into(),
        format: "".into(),
        priority: 0,
        description: "".into(),
        path: path.into(),
    };
    let o = json!({"a": 3.0, "b": 1.5, "c": true, "d": crate::time::format(NOW - 7200), "e": "never", "f": {"g": [1]}, "h": "text", "n": null});
    for (ty, path, wanted) in [
        ("integer", ".a", json!(3)),
        ("number", ".b", json!(1.5)),
        ("boolean", ".c", json!(true)),
        ("boolean", ".h", Value::Null),
        ("date", ".d", json!("120m")),
        ("date", ".e", json!("<invalid>")),
        ("date", ".a", Value::Null),
        ("string", ".h", json!("text")),
        ("string", ".c", json!("true")),
        ("string", ".f.g", json!("[1]")),
        ("string", ".n", Value::Null),
        ("string", ".none", Value::Null),
    ] {
        assert_eq!(custom_cell(&column(ty, path), &o, NOW), wanted, "{ty} {path}");
    }
}
