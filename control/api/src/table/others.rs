//! Rows of the other groups.

use super::{age, int_at, list_at, or, selector_text, str_at, text};
use crate::kinds::Kind;
use crate::meta;
use serde_json::Value;

pub(super) fn cells(kind: &Kind, o: &Value, now: i64) -> Option<Vec<Value>> {
    let name = || Value::from(meta::name(o));
    let (spec, status) = (&o["spec"], &o["status"]);
    Some(match kind.kind.as_ref() {
        "Lease" => vec![name(), str_at(spec, "holderIdentity").into(), age(o, now)],
        "EndpointSlice" => endpoint_slice(o, now),
        "Ingress" => ingress(o, now),
        "IngressClass" => {
            let p = &spec["parameters"];
            let params = if p.is_object() {
                let g = str_at(p, "apiGroup");
                let k = if g.is_empty() { str_at(p, "kind").to_string() } else { format!("{}.{g}", str_at(p, "kind")) };
                format!("{k}/{}", str_at(p, "name"))
            } else {
                "<none>".into()
            };
            vec![name(), str_at(spec, "controller").into(), params.into(), age(o, now)]
        }
        "NetworkPolicy" => vec![name(), selector_text(&spec["podSelector"]).into(), age(o, now)],
        "IPAddress" => {
            let p = &spec["parentRef"];
            let parts: Vec<&str> =
                ["resource", "namespace", "name"].iter().map(|k| str_at(p, k)).filter(|s| !s.is_empty()).collect();
            vec![name(), parts.join("/").into()]
        }
        "ServiceCIDR" => vec![name(), strings(spec, "cidrs").join(",").into(), age(o, now)],
        "PodDisruptionBudget" => {
            let of = |k: &str| {
                if spec[k].is_null() { "N/A".to_string() } else { text(&spec[k]) }
            };
            vec![
                name(),
                of("minAvailable").into(),
                of("maxUnavailable").into(),
                int_at(status, "disruptionsAllowed").into(),
                age(o, now),
            ]
        }
        "RoleBinding" | "ClusterRoleBinding" => binding(o, now),
        "HorizontalPodAutoscaler" => autoscaler(o, now),
        "StorageClass" => {
            let mut n = meta::name(o).to_string();
            if ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
                .iter()
                .any(|a| meta::annotation(o, a) == Some("true"))
            {
                n.push_str(" (default)");
            }
            vec![
                n.into(),
                str_at(o, "provisioner").into(),
                or(str_at(o, "reclaimPolicy"), "Delete").into(),
                or(str_at(o, "volumeBindingMode"), "Immediate").into(),
                (o["allowVolumeExpansion"] == true).into(),
                age(o, now),
            ]
        }
        "CSINode" => vec![name(), list_at(spec, "drivers").len().into(), age(o, now)],
        "CSIDriver" => {
            let modes = strings(spec, "volumeLifecycleModes").join(",");
            let audiences: Vec<&str> = list_at(spec, "tokenRequests").iter().map(|t| str_at(t, "audience")).collect();
            let mut cells = vec![
                name(),
                (spec["attachRequired"] != false).into(),
                (spec["podInfoOnMount"] == true).into(),
                (spec["storageCapacity"] == true).into(),
            ];
            cells.extend([
                or(&audiences.join(","), "<unset>").into(),
                (spec["requiresRepublish"] == true).into(),
                or(&modes, "<none>").into(),
                age(o, now),
            ]);
            // The table of columns says how many of them are shown.
            cells
        }
        "CSIStorageCapacity" => {
            vec![name(), str_at(o, "storageClassName").into(), o["capacity"].as_str().unwrap_or("").into()]
        }
        "VolumeAttachment" => vec![
            name(),
            str_at(spec, "attacher").into(),
            str_at(&spec["source"], "persistentVolumeName").into(),
            str_at(spec, "nodeName").into(),
            (status["attached"] == true).into(),
            age(o, now),
        ],
        "VolumeAttributesClass" => vec![name(), str_at(o, "driverName").into(), age(o, now)],
        "PriorityClass" => vec![
            name(),
            int_at(o, "value").into(),
            (o["globalDefault"] == true).into(),
            age(o, now),
            str_at(o, "preemptionPolicy").into(),
        ],
        "RuntimeClass" => vec![name(), str_at(o, "handler").into(), age(o, now)],
        "CertificateSigningRequest" => csr(o, now),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            vec![name(), list_at(o, "webhooks").len().into(), age(o, now)]
        }
        "ValidatingAdmissionPolicy" => {
            vec![name(), list_at(spec, "validations").len().into(), param_kind(spec).into(), age(o, now)]
        }
        "MutatingAdmissionPolicy" => {
            vec![name(), list_at(spec, "mutations").len().into(), param_kind(spec).into(), age(o, now)]
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            let p = &spec["paramRef"];
            let param = match (str_at(p, "namespace"), str_at(p, "name")) {
                _ if !p.is_object() => "<unset>".to_string(),
                ("", n) => or(n, "*").to_string(),
                (ns, n) => format!("{ns}/{}", or(n, "*")),
            };
            vec![name(), str_at(spec, "policyName").into(), param.into(), age(o, now)]
        }
        "FlowSchema" => {
            let missing = list_at(status, "conditions")
                .iter()
                .find(|c| c["type"] == "Dangling")
                .map_or("?", |c| str_at(c, "status"));
            vec![
                name(),
                str_at(&spec["priorityLevelConfiguration"], "name").into(),
                int_at(spec, "matchingPrecedence").into(),
                or(str_at(&spec["distinguisherMethod"], "type"), "<none>").into(),
                age(o, now),
                missing.into(),
            ]
        }
        "PriorityLevelConfiguration" => {
            let l = if spec["limited"].is_object() { &spec["limited"] } else { &spec["exempt"] };
            let q = &l["limitResponse"]["queuing"];
            let of = |v: &Value| {
                if v.is_null() { Value::from("<none>") } else { v.clone() }
            };
            vec![
                name(),
                str_at(spec, "type").into(),
                of(&l["nominalConcurrencyShares"]),
                of(&q["queues"]),
                of(&q["handSize"]),
                of(&q["queueLengthLimit"]),
                age(o, now),
            ]
        }
        "ResourceClaim" => {
            let mut states = Vec::new();
            if o["metadata"]["deletionTimestamp"].is_string() {
                states.push("deleted");
            }
            if status["allocation"].is_object() {
                states.push("allocated");
            } else if states.is_empty() {
                states.push("pending");
            }
            if !list_at(status, "reservedFor").is_empty() {
                states.push("reserved");
            }
            vec![name(), states.join(",").into(), age(o, now)]
        }
        "ResourceSlice" => vec![
            name(),
            or(str_at(spec, "nodeName"), "<unset>").into(),
            str_at(spec, "driver").into(),
            str_at(&spec["pool"], "name").into(),
            age(o, now),
        ],
        "APIService" => {
            let s = &spec["service"];
            let target = if s.is_object() {
                format!("{}/{}", str_at(s, "namespace"), str_at(s, "name"))
            } else {
                "Local".into()
            };
            let available = list_at(status, "conditions").iter().find(|c| c["type"] == "Available");
            let state = match available {
                Some(c) if c["status"] == "True" => "True".to_string(),
                Some(c) => format!("{} ({})", str_at(c, "status"), str_at(c, "reason")),
                None => "Unknown".into(),
            };
            vec![name(), target.into(), state.into(), age(o, now)]
        }
        _ => generic(kind, o, now),
    })
}

/// Name and age where a kind has no more to say.
fn generic(kind: &Kind, o: &Value, now: i64) -> Vec<Value> {
    let cell = |c: &crate::kinds::Column| match c.name.as_ref() {
        "Name" => meta::name(o).into(),
        "Age" => age(o, now),
        _ => "".into(),
    };
    kind.columns.iter().map(cell).collect()
}

fn strings<'a>(v: &'a Value, key: &str) -> Vec<&'a str> {
    list_at(v, key).iter().filter_map(Value::as_str).collect()
}

fn param_kind(spec: &Value) -> String {
    let p = &spec["paramKind"];
    if p.is_object() { format!("{}/{}", str_at(p, "apiVersion"), str_at(p, "kind")) } else { "<unset>".into() }
}

fn first_three(list: &[String]) -> String {
    if list.len() > 3 { format!("{} + {} more...", list[..3].join(","), list.len() - 3) } else { list.join(",") }
}

fn endpoint_slice(o: &Value, now: i64) -> Vec<Value> {
    let ports: Vec<String> =
        list_at(o, "ports").iter().map(|p| p["port"].as_i64().map_or("*".into(), |n| n.to_string())).collect();
    let addresses: Vec<String> =
        list_at(o, "endpoints").iter().flat_map(|e| strings(e, "addresses")).map(String::from).collect();
    vec![
        meta::name(o).into(),
        str_at(o, "addressType").into(),
        or(&first_three(&ports), "<unset>").into(),
        or(&first_three(&addresses), "<unset>").into(),
        age(o, now),
    ]
}

fn ingress(o: &Value, now: i64) -> Vec<Value> {
    let spec = &o["spec"];
    let hosts: Vec<String> =
        list_at(spec, "rules").iter().map(|r| str_at(r, "host").to_string()).filter(|h| !h.is_empty()).collect();
    let addresses: Vec<&str> = list_at(&o["status"]["loadBalancer"], "ingress")
        .iter()
        .map(|i| or(str_at(i, "ip"), str_at(i, "hostname")))
        .collect();
    let ports = if list_at(spec, "tls").is_empty() { "80" } else { "80, 443" };
    vec![
        meta::name(o).into(),
        or(str_at(spec, "ingressClassName"), "<none>").into(),
        or(&first_three(&hosts), "*").into(),
        addresses.join(",").into(),
        ports.into(),
        age(o, now),
    ]
}

fn binding(o: &Value, now: i64) -> Vec<Value> {
    let of = |kind: &str| {
        let list: Vec<String> = list_at(o, "subjects")
            .iter()
            .filter(|s| s["kind"] == kind)
            .map(|s| {
                if kind == "ServiceAccount" {
                    format!("{}/{}", str_at(s, "namespace"), str_at(s, "name"))
                } else {
                    str_at(s, "name").to_string()
                }
            })
            .collect();
        Value::from(list.join(", "))
    };
    let role = format!("{}/{}", str_at(&o["roleRef"], "kind"), str_at(&o["roleRef"], "name"));
    vec![meta::name(o).into(), role.into(), age(o, now), of("User"), of("Group"), of("ServiceAccount")]
}

fn csr(o: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let has = |ty: &str| list_at(status, "conditions").iter().any(|c| c["type"] == ty);
    let mut states = Vec::new();
    if has("Denied") {
        states.push("Denied");
    } else if has("Approved") {
        states.push("Approved");
    } else {
        states.push("Pending");
    }
    if has("Failed") {
        states.push("Failed");
    }
    if !str_at(status, "certificate").is_empty() {
        states.push("Issued");
    }
    let duration = spec["expirationSeconds"].as_i64().map_or("<none>".to_string(), crate::time::human);
    vec![
        meta::name(o).into(),
        age(o, now),
        or(str_at(spec, "signerName"), "<none>").into(),
        str_at(spec, "username").into(),
        duration.into(),
        states.join(",").into(),
    ]
}

fn autoscaler(o: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let target = &spec["scaleTargetRef"];
    let reference = format!("{}/{}", str_at(target, "kind"), str_at(target, "name"));
    let min = spec["minReplicas"].as_i64().map_or("<unset>".to_string(), |m| m.to_string());
    let targets = if spec["metrics"].is_array() { metrics(o) } else { cpu_v1(o) };
    vec![
        meta::name(o).into(),
        reference.into(),
        targets.into(),
        min.into(),
        int_at(spec, "maxReplicas").into(),
        int_at(status, "currentReplicas").into(),
        age(o, now),
    ]
}

fn cpu_v1(o: &Value) -> String {
    let show = |v: &Value| v.as_i64().map_or("<unknown>".to_string(), |n| format!("{n}%"));
    match &o["spec"]["targetCPUUtilizationPercentage"] {
        Value::Null => "<none>".into(),
        t => format!("cpu: {}/{}", show(&o["status"]["currentCPUUtilizationPercentage"]), show(t)),
    }
}

fn metrics(o: &Value) -> String {
    let current = list_at(&o["status"], "currentMetrics");
    let mut list = Vec::new();
    for (i, m) in list_at(&o["spec"], "metrics").iter().enumerate() {
        let key = match str_at(m, "type") {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "Pods" => "pods",
            "Object" => "object",
            "External" => "external",
            _ => continue,
        };
        let now = &current.get(i).unwrap_or(&Value::Null)[key]["current"];
        let goal = &m[key]["target"];
        let prefix = if key.ends_with("esource") { format!("{}: ", str_at(&m[key], "name")) } else { String::new() };
        let text = if goal["averageUtilization"].is_i64() {
            let c = now["averageUtilization"].as_i64().map_or("<unknown>".to_string(), |n| format!("{n}%"));
            format!("{prefix}{c}/{}%", int_at(goal, "averageUtilization"))
        } else if goal["averageValue"].is_string() {
            format!("{prefix}{}/{} (avg)", or(str_at(now, "averageValue"), "<unknown>"), str_at(goal, "averageValue"))
                .replace(" (avg)", if matches!(key, "object" | "external") { " (avg)" } else { "" })
        } else {
            format!("{prefix}{}/{}", or(str_at(now, "value"), "<unknown>"), str_at(goal, "value"))
        };
        list.push(text);
    }
    let more = list.len().saturating_sub(2);
    list.truncate(2);
    let text = list.join(", ");
    if more > 0 { format!("{text} + {more} more...") } else { or(&text, "<none>").to_string() }
}
