//! Rows of the core and apps and batch groups.

use super::{
    age, balancer_addresses, containers, first_three, int_at, list_at, map_text, or, selector_text, since, str_at,
    text, with_group,
};
use crate::kinds::Kind;
use crate::meta;
use serde_json::Value;

pub(super) fn cells(kind: &Kind, o: &Value, now: i64) -> Option<Vec<Value>> {
    let name = || Value::from(meta::name(o));
    let (spec, status) = (&o["spec"], &o["status"]);
    Some(match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("", "Pod") => super::pod::cells(o, now),
        ("", "ConfigMap") => vec![name(), (count(&o["data"]) + count(&o["binaryData"])).into(), age(o, now)],
        ("", "Secret") => vec![name(), str_at(o, "type").into(), count(&o["data"]).into(), age(o, now)],
        ("", "Namespace") => vec![name(), str_at(status, "phase").into(), age(o, now)],
        ("", "ServiceAccount") => vec![name(), age(o, now)],
        ("", "Node") => node(o, now),
        ("", "Service") => service(o, now),
        ("", "Endpoints") => vec![name(), endpoints(o).into(), age(o, now)],
        ("" | "events.k8s.io", "Event") => event(o, now),
        ("", "PersistentVolume") => volume(o, now),
        ("", "PersistentVolumeClaim") => claim(o, now),
        ("", "ResourceQuota") => quota(o, now),
        ("", "ComponentStatus") => component_status(o),
        ("", "PodTemplate") => {
            let (c, i) = containers(&o["template"]);
            vec![name(), c.into(), i.into(), map_text(&o["template"]["metadata"]["labels"]).into()]
        }
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            let (c, i) = containers(&spec["template"]);
            let s =
                if kind.kind == "ReplicaSet" { selector_text(&spec["selector"]) } else { map_text(&spec["selector"]) };
            vec![
                name(),
                int_at(spec, "replicas").into(),
                int_at(status, "replicas").into(),
                int_at(status, "readyReplicas").into(),
                age(o, now),
                c.into(),
                i.into(),
                s.into(),
            ]
        }
        ("apps", "Deployment") => {
            let (c, i) = containers(&spec["template"]);
            let ready = format!("{}/{}", int_at(status, "readyReplicas"), int_at(spec, "replicas"));
            vec![
                name(),
                ready.into(),
                int_at(status, "updatedReplicas").into(),
                int_at(status, "availableReplicas").into(),
                age(o, now),
                c.into(),
                i.into(),
                plain_selector(&spec["selector"]).into(),
            ]
        }
        ("apps", "StatefulSet") => {
            let (c, i) = containers(&spec["template"]);
            vec![
                name(),
                format!("{}/{}", int_at(status, "readyReplicas"), int_at(spec, "replicas")).into(),
                age(o, now),
                c.into(),
                i.into(),
            ]
        }
        ("apps", "DaemonSet") => {
            let (c, i) = containers(&spec["template"]);
            let n = |k| Value::from(int_at(status, k));
            vec![
                name(),
                n("desiredNumberScheduled"),
                n("currentNumberScheduled"),
                n("numberReady"),
                n("updatedNumberScheduled"),
                n("numberAvailable"),
                map_text(&spec["template"]["spec"]["nodeSelector"]).into(),
                age(o, now),
                c.into(),
                i.into(),
                selector_text(&spec["selector"]).into(),
            ]
        }
        ("apps", "ControllerRevision") => {
            let owner = meta::owners(o).iter().find(|r| r["controller"] == true);
            let controller = owner.map_or("<none>".to_string(), |r| {
                let (group, _) = crate::kinds::split_api_version(str_at(r, "apiVersion"));
                format!("{}/{}", with_group(str_at(r, "kind"), group), str_at(r, "name"))
            });
            vec![name(), controller.into(), int_at(o, "revision").into(), age(o, now)]
        }
        ("batch", "Job") => job(o, now),
        ("batch", "CronJob") => {
            let (c, i) = containers(&spec["jobTemplate"]["spec"]["template"]);
            let last = &status["lastScheduleTime"];
            vec![
                name(),
                str_at(spec, "schedule").into(),
                or(str_at(spec, "timeZone"), "<none>").into(),
                spec["suspend"].as_bool().map_or("<unset>", |s| if s { "True" } else { "False" }).into(),
                list_at(status, "active").len().into(),
                if last.is_null() { "<none>".into() } else { since(last, now) },
                age(o, now),
                c.into(),
                i.into(),
                selector_text(&spec["jobTemplate"]["spec"]["selector"]).into(),
            ]
        }
        _ => return None,
    })
}

/// A deployment's selector, which is empty where others say `<none>`.
fn plain_selector(v: &Value) -> String {
    match crate::selector::Labels::from_value(v) {
        Ok(selector) => selector.map(|s| s.to_string()).unwrap_or_default(),
        Err(_) => "<invalid>".into(),
    }
}

fn count(v: &Value) -> usize {
    v.as_object().map_or(0, |m| m.len())
}

fn node(o: &Value, now: i64) -> Vec<Value> {
    let (status, info) = (&o["status"], &o["status"]["nodeInfo"]);
    let ready = list_at(status, "conditions").iter().find(|c| c["type"] == "Ready");
    let mut state = match ready {
        Some(c) if c["status"] == "True" => "Ready".to_string(),
        Some(_) => "NotReady".into(),
        None => "Unknown".into(),
    };
    if o["spec"]["unschedulable"] == true {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (k, v) in meta::labels(o).into_iter().flatten() {
        if let Some(role) = k.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.push(role);
        } else if k == "kubernetes.io/role" {
            roles.extend(v.as_str().filter(|v| !v.is_empty()));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |ty: &str| {
        let found = list_at(status, "addresses").iter().find(|a| a["type"] == ty).map_or("", |a| str_at(a, "address"));
        Value::from(or(found, "<none>"))
    };
    let of = |k| Value::from(or(str_at(info, k), "<unknown>"));
    vec![
        meta::name(o).into(),
        state.into(),
        or(&roles.join(","), "<none>").into(),
        age(o, now),
        str_at(info, "kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        of("osImage"),
        of("kernelVersion"),
        of("containerRuntimeVersion"),
    ]
}

fn service(o: &Value, now: i64) -> Vec<Value> {
    let spec = &o["spec"];
    let ty = str_at(spec, "type");
    let cluster_ip = list_at(spec, "clusterIPs").first().and_then(Value::as_str).unwrap_or(str_at(spec, "clusterIP"));
    let join = |k: &str| list_at(spec, k).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
    let external = match ty {
        "ClusterIP" | "NodePort" => or(&join("externalIPs"), "<none>").to_string(),
        "LoadBalancer" => {
            let all = [balancer_addresses(&o["status"]), join("externalIPs")];
            let given: Vec<&str> = all.iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
            or(&given.join(","), "<pending>").to_string()
        }
        "ExternalName" => str_at(spec, "externalName").to_string(),
        _ => "<unknown>".into(),
    };
    let ports: Vec<String> = list_at(spec, "ports")
        .iter()
        .map(|p| match int_at(p, "nodePort") {
            0 => format!("{}/{}", int_at(p, "port"), str_at(p, "protocol")),
            n => format!("{}:{n}/{}", int_at(p, "port"), str_at(p, "protocol")),
        })
        .collect();
    vec![
        meta::name(o).into(),
        ty.into(),
        or(cluster_ip, "<none>").into(),
        external.into(),
        or(&ports.join(","), "<none>").into(),
        age(o, now),
        map_text(&spec["selector"]).into(),
    ]
}

fn endpoints(o: &Value) -> String {
    let mut list = Vec::new();
    for subset in list_at(o, "subsets") {
        let addresses: Vec<&str> = list_at(subset, "addresses").iter().map(|a| str_at(a, "ip")).collect();
        let ports = list_at(subset, "ports");
        if ports.is_empty() {
            list.extend(addresses.iter().map(|ip| ip.to_string()));
        }
        for port in ports.iter().map(|p| int_at(p, "port")) {
            list.extend(addresses.iter().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    if list_at(o, "subsets").is_empty() { "<none>".into() } else { first_three(&list, list.len()) }
}

/// Events of both groups: the newer one has other names for some fields.
fn event(o: &Value, now: i64) -> Vec<Value> {
    let involved = if o["involvedObject"].is_object() { &o["involvedObject"] } else { &o["regarding"] };
    let pick = |names: &[&str]| names.iter().map(|n| &o[*n]).find(|v| v.is_string()).cloned().unwrap_or(Value::Null);
    let first = pick(&["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"]);
    let (mut last, mut count) =
        (pick(&["lastTimestamp", "deprecatedLastTimestamp"]), o["count"].as_i64().or(o["deprecatedCount"].as_i64()));
    if last.is_null() {
        last = first.clone();
    }
    if o["series"].is_object() {
        last = o["series"]["lastObservedTime"].clone();
        count = Some(int_at(&o["series"], "count"));
    } else if count.is_none_or(|c| c == 0) {
        count = Some(1);
    }
    let mut target = str_at(involved, "kind").to_lowercase();
    if !str_at(involved, "name").is_empty() {
        target = format!("{target}/{}", str_at(involved, "name"));
    }
    let source = if o["source"].is_object() { &o["source"] } else { &o["deprecatedSource"] };
    let component =
        or(str_at(source, "component"), or(str_at(o, "reportingComponent"), str_at(o, "reportingController")));
    let host = or(str_at(source, "host"), str_at(o, "reportingInstance"));
    let from = if host.is_empty() { component.to_string() } else { format!("{component}, {host}") };
    let message = or(str_at(o, "message"), str_at(o, "note")).trim().to_string();
    vec![
        since(&last, now),
        str_at(o, "type").into(),
        str_at(o, "reason").into(),
        target.into(),
        str_at(involved, "fieldPath").into(),
        from.into(),
        message.into(),
        since(&first, now),
        count.into(),
        meta::name(o).into(),
    ]
}

fn access_modes(v: &Value) -> String {
    let mut modes: Vec<&str> = Vec::new();
    for (long, short) in
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")]
    {
        if v.as_array().is_some_and(|a| a.iter().any(|m| m == long)) {
            modes.push(short);
        }
    }
    modes.join(",")
}

fn volume(o: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let claim = &spec["claimRef"];
    let claim = if claim.is_object() {
        format!("{}/{}", str_at(claim, "namespace"), str_at(claim, "name"))
    } else {
        String::new()
    };
    let mut phase = str_at(status, "phase").to_string();
    if o["metadata"]["deletionTimestamp"].is_string() {
        phase = "Terminating".into();
    }
    let class = or(
        meta::annotation(o, "volume.beta.kubernetes.io/storage-class").unwrap_or(""),
        str_at(spec, "storageClassName"),
    );
    vec![
        meta::name(o).into(),
        text_or(&spec["capacity"]["storage"], "0").into(),
        access_modes(&spec["accessModes"]).into(),
        str_at(spec, "persistentVolumeReclaimPolicy").into(),
        phase.into(),
        claim.into(),
        class.into(),
        or(str_at(spec, "volumeAttributesClassName"), "<unset>").into(),
        str_at(status, "reason").into(),
        age(o, now),
        or(str_at(spec, "volumeMode"), "<unset>").into(),
    ]
}

fn text_or(v: &Value, other: &str) -> String {
    if v.is_null() { other.into() } else { text(v) }
}

fn claim(o: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let mut phase = str_at(status, "phase").to_string();
    if o["metadata"]["deletionTimestamp"].is_string() {
        phase = "Terminating".into();
    }
    let bound = !str_at(spec, "volumeName").is_empty();
    let (capacity, modes) = if bound {
        (text_or(&status["capacity"]["storage"], "0"), access_modes(&status["accessModes"]))
    } else {
        Default::default()
    };
    let class = or(
        meta::annotation(o, "volume.beta.kubernetes.io/storage-class").unwrap_or(""),
        str_at(spec, "storageClassName"),
    );
    vec![
        meta::name(o).into(),
        phase.into(),
        str_at(spec, "volumeName").into(),
        capacity.into(),
        modes.into(),
        class.into(),
        or(str_at(spec, "volumeAttributesClassName"), "<unset>").into(),
        age(o, now),
        or(str_at(spec, "volumeMode"), "<unset>").into(),
    ]
}

fn quota(o: &Value, now: i64) -> Vec<Value> {
    let (hard, used) = (&o["status"]["hard"], &o["status"]["used"]);
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (k, v) in hard.as_object().into_iter().flatten() {
        let part = format!("{k}: {}/{}", text_or(&used[k], "0"), text(v));
        if k.starts_with("limits.") { limits.push(part) } else { requests.push(part) }
    }
    vec![meta::name(o).into(), requests.join(", ").into(), limits.join(", ").into(), age(o, now)]
}

fn component_status(o: &Value) -> Vec<Value> {
    let (state, condition) = match list_at(o, "conditions").iter().find(|c| c["type"] == "Healthy") {
        Some(c) => (if c["status"] == "True" { "Healthy" } else { "Unhealthy" }, c),
        None => ("Unknown", &Value::Null),
    };
    vec![meta::name(o).into(), state.into(), str_at(condition, "message").into(), str_at(condition, "error").into()]
}

fn job(o: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let succeeded = int_at(status, "succeeded");
    let completions = match (spec["completions"].as_i64(), int_at(spec, "parallelism")) {
        (Some(c), _) => format!("{succeeded}/{c}"),
        (None, p) if p > 1 => format!("{succeeded}/1 of {p}"),
        _ => format!("{succeeded}/1"),
    };
    let secs = |v: &Value| v.as_str().and_then(crate::time::parse).map(|t| t.seconds);
    let duration = match (secs(&status["startTime"]), secs(&status["completionTime"])) {
        (None, _) => String::new(),
        (Some(s), None) => crate::time::human(now - s),
        (Some(s), Some(e)) => crate::time::human(e - s),
    };
    let has = |ty: &str| {
        list_at(status, "conditions").iter().find(|c| c["type"] == ty).is_some_and(|c| c["status"] == "True")
    };
    let state = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if o["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let (c, i) = containers(&spec["template"]);
    vec![
        meta::name(o).into(),
        state.into(),
        completions.into(),
        duration.into(),
        age(o, now),
        c.into(),
        i.into(),
        selector_text(&spec["selector"]).into(),
    ]
}
