//! Defaults of pods and of the pod templates inside other kinds.

use super::{each_at, pair, set, set_nonzero, set_text, with, with_existing};
use crate::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A Pod.
pub(super) fn pod(o: &mut Value) {
    with_existing(o, &["status"], |s| pair(s, "podIP", "podIPs", Some("ip")));
    with(o, "spec", |s| {
        // Requests follow limits in pods only, not in templates.
        for list in ["containers", "initContainers"] {
            each_at(s, &[list], requests_from_limits);
        }
        requests_of_pod(s);
        set(s, "enableServiceLinks", true.into());
        if s["hostNetwork"] == true {
            for list in ["containers", "initContainers"] {
                each_at(s, &[list], |c| each_at(c, &["ports"], host_port));
            }
        }
        spec(s);
    });
    with(o, "status", |s| set_text(s, "phase", "Pending"));
}

/// A PodTemplateSpec.
pub(crate) fn pod_template(t: &mut Value) {
    with(t, "metadata", |_| {});
    with(t, "spec", spec);
}

fn requests_from_limits(c: &mut Value) {
    let Some(limits) = c["resources"]["limits"].as_object().cloned().filter(|l| !l.is_empty()) else {
        return;
    };
    with(c, "resources", |r| with(r, "requests", |q| limits.into_iter().for_each(|(k, v)| set(q, &k, v))));
}

fn spec(s: &mut Value) {
    set_text(s, "dnsPolicy", "ClusterFirst");
    set_text(s, "restartPolicy", "Always");
    set_text(s, "schedulerName", "default-scheduler");
    set(s, "terminationGracePeriodSeconds", 30.into());
    set(s, "securityContext", json!({}));
    // The old spelling and the new one are kept equal.
    let old = s["serviceAccount"].as_str().unwrap_or("").to_string();
    if !old.is_empty() {
        set_text(s, "serviceAccountName", &old);
    }
    let name = s["serviceAccountName"].as_str().unwrap_or("").to_string();
    if !name.is_empty() {
        s["serviceAccount"] = name.into();
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each_at(s, &[list], container);
    }
    each_at(s, &["volumes"], volume);
}

/// Requests of the whole pod, where it has limits: what its containers ask for, or the limits.
fn requests_of_pod(s: &mut Value) {
    let Some(limits) = s["resources"]["limits"].as_object().cloned().filter(|l| !l.is_empty()) else {
        return;
    };
    let supported = |k: &str| matches!(k, "cpu" | "memory") || k.starts_with("hugepages-");
    let amount = |v: &Value| v.as_str().and_then(Quantity::parse);
    let mut sums: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for c in s["containers"].as_array().into_iter().flatten() {
        for (k, v) in c["resources"]["requests"].as_object().into_iter().flatten().filter(|(k, _)| supported(k)) {
            sums.entry(k.clone()).or_default().push(v.clone());
        }
    }
    with(s, "resources", |r| {
        with(r, "requests", |q| {
            for (k, all) in sums {
                let sum = match all.as_slice() {
                    [one] => Some(one.clone()),
                    more => {
                        let all: Option<Vec<Quantity>> = more.iter().map(amount).collect();
                        all.and_then(|a| a.into_iter().reduce(|x, y| x.plus(&y))).map(|q| q.to_string().into())
                    }
                };
                sum.into_iter().for_each(|sum| set(q, &k, sum));
            }
            limits.into_iter().filter(|(k, _)| supported(k)).for_each(|(k, v)| set(q, &k, v));
        });
    });
}

fn host_port(p: &mut Value) {
    let port = p["containerPort"].as_i64().unwrap_or(0);
    set_nonzero(p, "hostPort", port);
}

fn container(c: &mut Value) {
    let image = c["image"].as_str().unwrap_or("");
    let policy = if latest(image) { "Always" } else { "IfNotPresent" };
    set_text(c, "imagePullPolicy", policy);
    set_text(c, "terminationMessagePath", "/dev/termination-log");
    set_text(c, "terminationMessagePolicy", "File");
    set(c, "resources", json!({}));
    each_at(c, &["ports"], |p| set_text(p, "protocol", "TCP"));
    each_at(c, &["env"], |e| with_existing(e, &["valueFrom", "fieldRef"], |f| set_text(f, "apiVersion", "v1")));
    for p in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with_existing(c, &[p], probe);
    }
    for hook in ["postStart", "preStop"] {
        with_existing(c, &["lifecycle", hook, "httpGet"], http_get);
    }
}

/// Whether an image reference means the tag `latest`.
fn latest(image: &str) -> bool {
    if image.contains('@') {
        let name = image.split('@').next().unwrap_or("");
        return name.rsplit('/').next().unwrap_or("").rsplit_once(':').is_some_and(|(_, tag)| tag == "latest");
    }
    image.rsplit('/').next().unwrap_or("").rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(p: &mut Value) {
    set_nonzero(p, "timeoutSeconds", 1);
    set_nonzero(p, "periodSeconds", 10);
    set_nonzero(p, "successThreshold", 1);
    set_nonzero(p, "failureThreshold", 3);
    with_existing(p, &["httpGet"], http_get);
    with_existing(p, &["grpc"], |g| set(g, "service", "".into()));
}

fn http_get(h: &mut Value) {
    set_text(h, "path", "/");
    set_text(h, "scheme", "HTTP");
}

fn volume(v: &mut Value) {
    if v.as_object().is_some_and(|m| m.len() == 1 && m.contains_key("name")) {
        v["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        with_existing(v, &[source], |s| set(s, "defaultMode", 420.into()));
    }
    source(v);
    with_existing(v, &["ephemeral", "volumeClaimTemplate", "spec"], |s| set(s, "volumeMode", "Filesystem".into()));
    with_existing(v, &["image"], |i| {
        let policy = if latest(i["reference"].as_str().unwrap_or("")) { "Always" } else { "IfNotPresent" };
        set_text(i, "pullPolicy", policy);
    });
    let field_ref = |i: &mut Value| with_existing(i, &["fieldRef"], |f| set_text(f, "apiVersion", "v1"));
    each_at(v, &["downwardAPI", "items"], field_ref);
    each_at(v, &["projected", "sources"], |s| {
        each_at(s, &["downwardAPI", "items"], field_ref);
        with_existing(s, &["serviceAccountToken"], |t| set(t, "expirationSeconds", 3600.into()));
    });
}

/// Sources that pods and persistent volumes have in common.
pub(super) fn source(v: &mut Value) {
    with_existing(v, &["hostPath"], |h| set(h, "type", "".into()));
    with_existing(v, &["iscsi"], |i| set_text(i, "iscsiInterface", "default"));
    with_existing(v, &["rbd"], |r| {
        set_text(r, "pool", "rbd");
        set_text(r, "user", "admin");
        set_text(r, "keyring", "/etc/ceph/keyring");
    });
    with_existing(v, &["scaleIO"], |s| {
        set_text(s, "storageMode", "ThinProvisioned");
        set_text(s, "fsType", "xfs");
    });
    with_existing(v, &["azureDisk"], |a| {
        set(a, "cachingMode", "ReadWrite".into());
        set(a, "kind", "Shared".into());
        set(a, "fsType", "ext4".into());
        set(a, "readOnly", false.into());
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn tags() {
        for (image, want) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:aa", false),
            ("nginx:latest@sha256:aa", true),
        ] {
            assert_eq!(super::latest(image), want, "{image}");
        }
    }
}
