//! Defaulting: what an object gets when its author left it open, kind by kind,
//! as the API promises.

mod admission;
mod pods;
mod workloads;

use crate::kinds::Kind;
use crate::meta;
use serde_json::{Map, Value, json};

pub(crate) use pods::pod_template;

/// Applies the defaults of the kind.
pub fn apply(kind: &Kind, object: &mut Value) {
    leave_out_empty(object);
    if kind.is_custom() {
        crate::crd::default_object(object, kind.schema());
        return;
    }
    if object.is_object() {
        by_kind(kind, object);
    }
}

/// Empty lists and maps of ObjectMeta are no fields: upstream's type does not encode them.
fn leave_out_empty(object: &mut Value) {
    let Some(Value::Object(metadata)) = object.get_mut("metadata") else { return };
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match metadata.get(field) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

fn by_kind(kind: &Kind, o: &mut Value) {
    match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("", "Pod") => pods::pod(o),
        ("", "PodTemplate") => with(o, "template", pod_template),
        ("", "ReplicationController") => workloads::replication_controller(o),
        ("", "Service") => service(o),
        ("", "Secret") => set(o, "type", "Opaque".into()),
        ("", "Namespace") => namespace(o),
        ("", "Node") => node(o),
        ("", "PersistentVolumeClaim") => claim(o),
        ("", "PersistentVolume") => volume(o),
        ("", "Endpoints") => each_at(o, &["subsets"], |s| each_at(s, &["ports"], |p| set(p, "protocol", "TCP".into()))),
        ("", "LimitRange") => each_at(o, &["spec", "limits"], limit_range_item),
        ("apps", _) | ("batch", _) => workloads::apply(kind, o),
        ("autoscaling", _) => autoscaler(o),
        ("discovery.k8s.io", "EndpointSlice") => each_at(o, &["ports"], |p| {
            set(p, "name", "".into());
            set(p, "protocol", "TCP".into());
        }),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(o),
        ("networking.k8s.io", "IngressClass") => {
            with_existing(o, &["spec", "parameters"], |p| set(p, "scope", "Cluster".into()))
        }
        ("rbac.authorization.k8s.io", _) => rbac(o),
        ("storage.k8s.io", "StorageClass") => {
            set(o, "reclaimPolicy", "Delete".into());
            set(o, "volumeBindingMode", "Immediate".into());
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(o),
        ("scheduling.k8s.io", "PriorityClass") => set(o, "preemptionPolicy", "PreemptLowerPriority".into()),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => admission::crd(o),
        ("apiregistration.k8s.io", "APIService") => {
            with_existing(o, &["spec", "service"], |s| set(s, "port", 443.into()))
        }
        ("admissionregistration.k8s.io", _) => admission::apply(kind, o),
        ("flowcontrol.apiserver.k8s.io", _) => admission::flow_control(kind, o),
        ("authentication.k8s.io", "TokenRequest") => with(o, "spec", |s| set(s, "expirationSeconds", 3600.into())),
        ("resource.k8s.io", "ResourceClaim") => with_existing(o, &["spec"], resource_claim_spec),
        ("resource.k8s.io", "ResourceClaimTemplate") => with_existing(o, &["spec", "spec"], resource_claim_spec),
        _ => {}
    }
}

/// A single value and its newer list say the same, and the single one stands above the list's first (upstream's
/// conversions of `core/v1`). `key`: where an item has the value, if it is not the value itself.
pub(crate) fn pair(o: &mut Value, one: &str, many: &str, key: Option<&str>) {
    let of_item = |item: &Value| key.map_or(item, |key| &item[key]).as_str().unwrap_or_default().to_string();
    let first = o[many].get(0).map(of_item).unwrap_or_default();
    let single = o[one].as_str().unwrap_or_default().to_string();
    let Value::Object(map) = o else { return };
    if single.is_empty() && !first.is_empty() {
        map.insert(one.into(), first.into());
    } else if single != first {
        let item = key.map_or(Value::from(single.as_str()), |key| serde_json::json!({key: single}));
        map.insert(many.into(), Value::Array(vec![item]));
    }
}

/// Sets a field that is missing or null.
pub(crate) fn set(o: &mut Value, key: &str, value: Value) {
    if let Value::Object(m) = o {
        let slot = m.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value;
        }
    }
}

/// Sets a text field that is missing, null or empty.
pub(crate) fn set_text(o: &mut Value, key: &str, value: &str) {
    if let Value::Object(m) = o
        && m.get(key).is_none_or(|v| v.is_null() || v == "")
    {
        m.insert(key.into(), value.into());
    }
}

/// Sets a number that is missing or zero.
pub(crate) fn set_nonzero(o: &mut Value, key: &str, value: i64) {
    if let Value::Object(m) = o
        && m.get(key).is_none_or(|v| v.is_null() || v == 0)
    {
        m.insert(key.into(), value.into());
    }
}

/// Runs on the object below `key`, made when it is missing.
pub(crate) fn with(o: &mut Value, key: &str, f: impl FnOnce(&mut Value)) {
    if let Value::Object(m) = o {
        let child = m.entry(key).or_insert(Value::Null);
        if child.is_null() {
            *child = Value::Object(Map::new());
        }
        // Anything else is left for validation to refuse.
        if child.is_object() {
            f(child);
        }
    }
}

/// Runs on the value at `path` if it is there.
pub(crate) fn with_existing(o: &mut Value, path: &[&str], f: impl FnOnce(&mut Value)) {
    let found = path.iter().try_fold(o, |v, p| v.get_mut(*p));
    if let Some(v) = found.filter(|v| v.is_object() || v.is_array()) {
        f(v);
    }
}

/// Runs on every item of an array.
pub(crate) fn each(v: &mut Value, f: impl FnMut(&mut Value)) {
    if let Value::Array(items) = v {
        items.iter_mut().filter(|i| i.is_object()).for_each(f);
    }
}

/// Runs on every item of the array at `path`, if it is there.
pub(crate) fn each_at(o: &mut Value, path: &[&str], f: impl FnMut(&mut Value)) {
    with_existing(o, path, |v| each(v, f));
}

fn namespace(o: &mut Value) {
    let name = meta::name(o).to_string();
    if !name.is_empty() {
        let labels = meta::child_mut(meta::metadata_mut(o), "labels");
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    with(o, "status", |s| set_text(s, "phase", "Active"));
}

fn node(o: &mut Value) {
    with_existing(o, &["spec"], |s| pair(s, "podCIDR", "podCIDRs", None));
    with_existing(o, &["status"], |s| {
        if let Some(capacity) = s.get("capacity").cloned() {
            set(s, "allocatable", capacity);
        }
    });
}

fn claim(o: &mut Value) {
    with(o, "spec", |s| set(s, "volumeMode", "Filesystem".into()));
    with(o, "status", |s| set_text(s, "phase", "Pending"));
}

fn volume(o: &mut Value) {
    with(o, "status", |s| set_text(s, "phase", "Pending"));
    with(o, "spec", |s| {
        set_text(s, "persistentVolumeReclaimPolicy", "Retain");
        set(s, "volumeMode", "Filesystem".into());
        pods::source(s);
    });
}

fn service(o: &mut Value) {
    with(o, "spec", |s| {
        set_text(s, "sessionAffinity", "None");
        if s["sessionAffinity"] == "ClientIP" {
            with(s, "sessionAffinityConfig", |c| with(c, "clientIP", |c| set(c, "timeoutSeconds", 10_800.into())));
        } else if let Value::Object(m) = s {
            m.remove("sessionAffinityConfig");
        }
        set_text(s, "type", "ClusterIP");
        each_at(s, &["ports"], |p| {
            set_text(p, "protocol", "TCP");
            let port = p["port"].clone();
            if p["targetPort"].is_null() || p["targetPort"] == 0 || p["targetPort"] == "" {
                p["targetPort"] = port;
            }
        });
        let ty = s["type"].as_str().unwrap_or("").to_string();
        let external = s["externalIPs"].as_array().is_some_and(|a| !a.is_empty());
        if matches!(ty.as_str(), "NodePort" | "LoadBalancer") || (ty == "ClusterIP" && external) {
            set_text(s, "externalTrafficPolicy", "Cluster");
        }
        if matches!(ty.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
            set(s, "internalTrafficPolicy", "Cluster".into());
        }
        if ty == "LoadBalancer" {
            set(s, "allocateLoadBalancerNodePorts", true.into());
        }
    });
    with(o, "status", |s| {
        set(s, "loadBalancer", json!({}));
        each_at(s, &["loadBalancer", "ingress"], |i| {
            if i["ip"].as_str().is_some_and(|ip| !ip.is_empty()) {
                set(i, "ipMode", "VIP".into());
            }
        });
    });
}

fn limit_range_item(item: &mut Value) {
    if item["type"] != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let source = item[from].as_object().cloned().unwrap_or_default();
        if !source.is_empty() {
            with(item, to, |t| source.into_iter().for_each(|(k, v)| set(t, &k, v)));
        }
    }
}

fn network_policy(o: &mut Value) {
    with(o, "spec", |s| {
        set(s, "podSelector", json!({}));
        if s["policyTypes"].as_array().is_none_or(Vec::is_empty) {
            let egress = s["egress"].as_array().is_some_and(|a| !a.is_empty());
            s["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
        for rules in ["ingress", "egress"] {
            each_at(s, &[rules], |r| each_at(r, &["ports"], |p| set(p, "protocol", "TCP".into())));
        }
    });
}

fn rbac(o: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    with_existing(o, &["roleRef"], |r| set_text(r, "apiGroup", GROUP));
    each_at(o, &["subjects"], |s| {
        if s["kind"] == "User" || s["kind"] == "Group" {
            set_text(s, "apiGroup", GROUP);
        }
    });
}

fn csi_driver(o: &mut Value) {
    with(o, "spec", |s| {
        set(s, "attachRequired", true.into());
        for k in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            set(s, k, false.into());
        }
        set(s, "fsGroupPolicy", "ReadWriteOnceWithFSType".into());
        if s["volumeLifecycleModes"].as_array().is_none_or(Vec::is_empty) {
            s["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    });
}

fn resource_claim_spec(s: &mut Value) {
    let request = |e: &mut Value| {
        set_text(e, "allocationMode", "ExactCount");
        if e["allocationMode"] == "ExactCount" {
            set_nonzero(e, "count", 1);
        }
        each_at(e, &["tolerations"], |t| set_text(t, "operator", "Equal"));
    };
    each_at(s, &["devices", "requests"], |r| {
        with_existing(r, &["exactly"], request);
        each_at(r, &["firstAvailable"], request);
    });
}

fn autoscaler(o: &mut Value) {
    let v2 = o["apiVersion"] == "autoscaling/v2";
    with(o, "spec", |s| {
        set(s, "minReplicas", 1.into());
        if !v2 {
            return;
        }
        if s["metrics"].as_array().is_none_or(Vec::is_empty) {
            s["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        }
        with_existing(s, &["behavior"], |b| {
            with(b, "scaleUp", |r| {
                set(r, "stabilizationWindowSeconds", 0.into());
                set(r, "selectPolicy", "Max".into());
                set(
                    r,
                    "policies",
                    json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
                );
            });
            with(b, "scaleDown", |r| {
                set(r, "selectPolicy", "Max".into());
                set(r, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
            });
        });
    });
}

#[cfg(test)]
mod tests;
