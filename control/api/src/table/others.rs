//! Rows of the other groups.

use super::{age, balancer_addresses, first_three, int_at, list_at, or, selector_text, str_at, text, with_group};
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
            let mut parent = with_group(str_at(p, "resource"), str_at(p, "group"));
            for part in ["namespace", "name"].map(|k| str_at(p, k)).iter().filter(|s| !s.is_empty()) {
                parent = format!("{parent}/{part}");
            }
            vec![name(), if p.is_object() { parent.into() } else { "<none>".into() }]
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
            let audiences = if spec["tokenRequests"].is_array() { audiences.join(",") } else { "<unset>".into() };
            let mut cells = vec![
                name(),
                (spec["attachRequired"] != false).into(),
                (spec["podInfoOnMount"] == true).into(),
                (spec["storageCapacity"] == true).into(),
            ];
            cells.extend([
                audiences.into(),
                (spec["requiresRepublish"] == true).into(),
                or(&modes, "<none>").into(),
                age(o, now),
            ]);
            cells
        }
        "CSIStorageCapacity" => {
            vec![name(), str_at(o, "storageClassName").into(), o["capacity"].as_str().unwrap_or("<unset>").into()]
        }
        "VolumeAttachment" => vec![
            name(),
            str_at(spec, "attacher").into(),
            str_at(&spec["source"], "persistentVolumeName").into(),
            str_at(spec, "nodeName").into(),
            (status["attached"] == true).into(),
            age(o, now),
        ],
        "VolumeAttributesClass" => {
            let default = ["volumeattributesclass.alpha.kubernetes.io/is-default-class"]
                .iter()
                .any(|a| meta::annotation(o, a) == Some("true"));
            let shown = format!("{}{}", meta::name(o), if default { " (default)" } else { "" });
            vec![shown.into(), str_at(o, "driverName").into(), age(o, now)]
        }
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
            vec![name(), str_at(spec, "policyName").into(), param_ref(&spec["paramRef"]).into(), age(o, now)]
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
            let l = &spec["limited"];
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
                if !list_at(status, "reservedFor").is_empty() {
                    states.push("reserved");
                }
            } else if states.is_empty() {
                states.push("pending");
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

/// What a binding's parameters are called: by name in a namespace or in any, or chosen by labels.
fn param_ref(p: &Value) -> String {
    match (str_at(p, "namespace"), str_at(p, "name")) {
        (_, "") if p["selector"].is_object() => go_selector(&p["selector"]),
        (_, "") => "<unset>".into(),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// A label selector as Go's generated code writes it.
fn go_selector(v: &Value) -> String {
    let labels: String =
        v["matchLabels"].as_object().into_iter().flatten().map(|(k, v)| format!("{k}: {},", text(v))).collect();
    let expressions: String = list_at(v, "matchExpressions")
        .iter()
        .map(|e| {
            let values = strings(e, "values").join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                str_at(e, "key"),
                str_at(e, "operator")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn endpoint_slice(o: &Value, now: i64) -> Vec<Value> {
    let port = |p: &Value| match (p["port"].as_i64(), p["name"].as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.to_string(),
        (None, None) => "*".to_string(),
    };
    let ports: Vec<String> = list_at(o, "ports").iter().map(port).collect();
    let addresses: Vec<String> =
        list_at(o, "endpoints").iter().flat_map(|e| strings(e, "addresses")).map(String::from).collect();
    vec![
        meta::name(o).into(),
        str_at(o, "addressType").into(),
        or(&first_three(&ports, ports.len()), "<unset>").into(),
        or(&first_three(&addresses, addresses.len()), "<unset>").into(),
        age(o, now),
    ]
}

fn ingress(o: &Value, now: i64) -> Vec<Value> {
    let spec = &o["spec"];
    let rules = list_at(spec, "rules");
    let hosts: Vec<String> = rules.iter().map(|r| str_at(r, "host").to_string()).filter(|h| !h.is_empty()).collect();
    // What is more than three are rules, with or without a host, after the third host.
    let third = rules.iter().enumerate().filter(|(_, r)| !str_at(r, "host").is_empty()).nth(2).map(|(i, _)| i);
    let total = if third.is_some_and(|i| i + 1 < rules.len()) { rules.len() } else { hosts.len().min(3) };
    let ports = if list_at(spec, "tls").is_empty() { "80" } else { "80, 443" };
    vec![
        meta::name(o).into(),
        or(str_at(spec, "ingressClassName"), "<none>").into(),
        or(&first_three(&hosts, total), "*").into(),
        balancer_addresses(&o["status"]).into(),
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
    let list: Vec<String> = list_at(&o["spec"], "metrics")
        .iter()
        .enumerate()
        .map(|(i, m)| metric(m, current.get(i).unwrap_or(&Value::Null)))
        .collect();
    match list.len() {
        0 => "<none>".into(),
        1 | 2 => list.join(", "),
        n => format!("{} + {} more...", list[..2].join(", "), n - 2),
    }
}

/// `current/target` of one metric.
fn metric(spec: &Value, status: &Value) -> String {
    let (key, resource) = match str_at(spec, "type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".into(),
    };
    let (now, goal) = (&status[key]["current"], &spec[key]["target"]);
    let shown = |v: &Value| if v.is_null() { "<unknown>".to_string() } else { text(v) };
    let percent = |v: &Value, other: &str| v.as_i64().map_or(other.to_string(), |n| format!("{n}%"));
    let average = !goal["averageValue"].is_null();
    if resource {
        let name = str_at(&spec[key], "name");
        return if average {
            format!("{name}: {}/{}", shown(&now["averageValue"]), text(&goal["averageValue"]))
        } else {
            let utilization = "averageUtilization";
            format!("{name}: {}/{}", percent(&now[utilization], "<unknown>"), percent(&goal[utilization], "<auto>"))
        };
    }
    match (key, average) {
        ("pods", _) => format!("{}/{}", shown(&now["averageValue"]), text_or_zero(&goal["averageValue"])),
        (_, true) => format!("{}/{} (avg)", shown(&now["averageValue"]), text(&goal["averageValue"])),
        _ => format!("{}/{}", shown(&now["value"]), text_or_zero(&goal["value"])),
    }
}

fn text_or_zero(v: &Value) -> String {
    if v.is_null() { "0".into() } else { text(v) }
}
