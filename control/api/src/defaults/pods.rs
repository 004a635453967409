//! Defaults of pods and of the pod templates inside other kinds.

use super::{each_at, set, set_nonzero, set_text, with, with_existing};
use serde_json::{Value, json};

/// A Pod.
pub(super) fn pod(o: &mut Value) {
    with(o, "spec", |s| {
        // Requests follow limits in pods only, not in templates.
        for list in ["containers", "initContainers"] {
            each_at(s, &[list], requests_from_limits);
        }
        set(s, "enableServiceLinks", true.into());
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
    let host_network = s["hostNetwork"] == true;
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each_at(s, &[list], |c| {
            container(c);
            if host_network && list != "ephemeralContainers" {
                each_at(c, &["ports"], host_port);
            }
        });
    }
    each_at(s, &["volumes"], volume);
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
    with_existing(v, &["hostPath"], |h| set(h, "type", "".into()));
    with_existing(v, &["iscsi"], |i| set_text(i, "iscsiInterface", "default"));
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
