//! What can be wrong with a pod's spec beyond its schema; shared by pods and pod templates.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::fields::{items_at, quantity, str_at};
use crate::error::Cause;

/// What the place of the spec demands.
#[derive(Debug, Default)]
pub struct Known<'a> {
    /// Volumes that come from elsewhere: a stateful set's claim templates.
    pub claims: Vec<&'a str>,
    /// Restart policies that the owner's kind allows; empty: all.
    pub restart_policies: &'static [&'static str],
}

/// Checks a pod spec found at `path`.
pub fn validate(spec: &Value, path: &str, known: &Known<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut volumes = volumes(spec, path, &mut causes);
    volumes.extend(known.claims.iter().copied());
    let mut names = HashSet::new();
    let containers = items_at(spec, "/containers");
    if containers.is_empty() {
        causes.push(Cause::required(&format!("{path}.containers"), ""));
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in items_at(spec, &format!("/{list}")).iter().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            check_container(container, &at, &volumes, &mut names, &mut causes);
            restart_of_container(container, &at, list, &mut causes);
        }
    }
    host_ports(spec, path, &mut causes);
    policies(spec, path, known, &mut causes);
    causes
}

fn volumes<'a>(spec: &'a Value, path: &str, causes: &mut Vec<Cause>) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (i, volume) in items_at(spec, "/volumes").iter().enumerate() {
        let name = str_at(volume, "/name");
        let at = format!("{path}.volumes[{i}]");
        dns_label(name, &format!("{at}.name"), causes);
        if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(&format!("{at}.name"), &json!(name)));
        }
        let sources = volume.as_object().map_or(0, |m| m.iter().filter(|(k, v)| *k != "name" && !v.is_null()).count());
        if sources == 0 {
            causes.push(Cause::required(&at, "must specify a volume type"));
        }
        if sources > 1 {
            causes.push(Cause::forbidden(&at, "may not specify more than 1 volume type"));
        }
    }
    names
}

fn dns_label(name: &str, at: &str, causes: &mut Vec<Cause>) {
    if name.is_empty() {
        causes.push(Cause::required(at, ""));
        return;
    }
    causes.extend(api::names::dns1123_label(name).into_iter().map(|e| Cause::invalid(at, &json!(name), &e)));
}

fn check_container<'a>(
    c: &'a Value,
    at: &str,
    volumes: &HashSet<&str>,
    names: &mut HashSet<&'a str>,
    causes: &mut Vec<Cause>,
) {
    let name = str_at(c, "/name");
    dns_label(name, &format!("{at}.name"), causes);
    if !name.is_empty() && !names.insert(name) {
        causes.push(Cause::duplicate(&format!("{at}.name"), &json!(name)));
    }
    let image = str_at(c, "/image");
    if image.is_empty() {
        causes.push(Cause::required(&format!("{at}.image"), ""));
    } else if image.trim() != image {
        causes.push(Cause::invalid(
            &format!("{at}.image"),
            &json!(image),
            "must not have leading or trailing whitespace",
        ));
    }
    mounts(c, at, volumes, causes);
    ports(c, at, causes);
    environment(c, at, causes);
    resources(c, at, causes);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        check_probe(c, at, probe, causes);
    }
    if str_at(c, "/imagePullPolicy") != "" {
        one_of(
            str_at(c, "/imagePullPolicy"),
            &["Always", "IfNotPresent", "Never"],
            &format!("{at}.imagePullPolicy"),
            causes,
        );
    }
}

fn mounts(c: &Value, at: &str, volumes: &HashSet<&str>, causes: &mut Vec<Cause>) {
    let mut paths = HashSet::new();
    for (i, mount) in items_at(c, "/volumeMounts").iter().enumerate() {
        let (name, path) = (str_at(mount, "/name"), str_at(mount, "/mountPath"));
        let at = format!("{at}.volumeMounts[{i}]");
        if name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if !volumes.contains(name) {
            let mut cause = Cause::invalid(&format!("{at}.name"), &json!(name), "");
            cause.reason = "FieldValueNotFound".into();
            cause.message = format!("Not found: {name:?}");
            causes.push(cause);
        }
        if path.is_empty() {
            causes.push(Cause::required(&format!("{at}.mountPath"), ""));
        } else if !paths.insert(path) {
            causes.push(Cause::invalid(&format!("{at}.mountPath"), &json!(path), "must be unique"));
        }
        let sub = str_at(mount, "/subPath");
        if sub.starts_with('/') || sub.split('/').any(|p| p == "..") {
            causes.push(Cause::invalid(
                &format!("{at}.subPath"),
                &json!(sub),
                "must be a relative path and not contain '..'",
            ));
        }
    }
}

fn port_number(value: &Value) -> bool {
    value.as_i64().is_some_and(|p| (1..=65535).contains(&p))
}

fn ports(c: &Value, at: &str, causes: &mut Vec<Cause>) {
    let mut names = HashSet::new();
    for (i, port) in items_at(c, "/ports").iter().enumerate() {
        let at = format!("{at}.ports[{i}]");
        let name = str_at(port, "/name");
        if !name.is_empty() {
            let field = format!("{at}.name");
            causes.extend(api::names::port_name(name).into_iter().map(|e| Cause::invalid(&field, &json!(name), &e)));
            if !names.insert(name) {
                causes.push(Cause::duplicate(&field, &json!(name)));
            }
        }
        match &port["containerPort"] {
            p if port_number(p) => {}
            Value::Null => causes.push(Cause::required(&format!("{at}.containerPort"), "")),
            p => {
                causes.push(Cause::invalid(&format!("{at}.containerPort"), p, "must be between 1 and 65535, inclusive"))
            }
        }
        let host = &port["hostPort"];
        if host.as_i64().unwrap_or(0) != 0 && !port_number(host) {
            causes.push(Cause::invalid(&format!("{at}.hostPort"), host, "must be between 1 and 65535, inclusive"));
        }
        one_of(str_at(port, "/protocol"), &["", "TCP", "UDP", "SCTP"], &format!("{at}.protocol"), causes);
    }
}

fn environment(c: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (i, env) in items_at(c, "/env").iter().enumerate() {
        let at = format!("{at}.env[{i}]");
        if str_at(env, "/name").is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        }
        let from = &env["valueFrom"];
        if from.is_object() && !str_at(env, "/value").is_empty() {
            causes.push(Cause::invalid(
                &format!("{at}.valueFrom"),
                &json!(""),
                "may not be specified when `value` is not empty",
            ));
        }
    }
}

fn resources(c: &Value, at: &str, causes: &mut Vec<Cause>) {
    for kind in ["limits", "requests"] {
        for (name, amount) in c["resources"][kind].as_object().into_iter().flatten() {
            let field = format!("{at}.resources.{kind}[{name}]");
            match quantity(amount) {
                None => causes.push(Cause::invalid(&field, amount, "must be a quantity")),
                Some(q) if q.sign() < 0 => {
                    causes.push(Cause::invalid(&field, amount, "must be greater than or equal to 0"))
                }
                Some(_) => {}
            }
        }
    }
    for (name, request) in c["resources"]["requests"].as_object().into_iter().flatten() {
        let limit = c.pointer("/resources/limits").and_then(|l| l.get(name)).and_then(quantity);
        if let (Some(request_quantity), Some(limit)) = (quantity(request), limit)
            && request_quantity > limit
        {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            causes.push(Cause::invalid(&format!("{at}.resources.requests"), request, &detail));
        }
    }
}

fn check_probe(c: &Value, at: &str, probe: &str, causes: &mut Vec<Cause>) {
    let Some(object) = c[probe].as_object() else { return };
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"]
        .iter()
        .filter(|h| object.get(**h).is_some_and(|v| !v.is_null()))
        .count();
    if handlers == 0 {
        causes.push(Cause::required(&format!("{at}.{probe}"), "must specify a handler type"));
    }
    if handlers > 1 {
        causes.push(Cause::forbidden(&format!("{at}.{probe}"), "may not specify more than 1 handler type"));
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if object.get(field).and_then(Value::as_i64).is_some_and(|n| n < 0) {
            causes.push(Cause::invalid(
                &format!("{at}.{probe}.{field}"),
                &object[field],
                "must be greater than or equal to 0",
            ));
        }
    }
    if probe != "readinessProbe" && object.get("successThreshold").and_then(Value::as_i64).is_some_and(|n| n > 1) {
        causes.push(Cause::invalid(
            &format!("{at}.{probe}.successThreshold"),
            &object["successThreshold"],
            "must be 1",
        ));
    }
}

fn restart_of_container(c: &Value, at: &str, list: &str, causes: &mut Vec<Cause>) {
    if list == "initContainers" && str_at(c, "/restartPolicy") != "Always" {
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if c[field].is_object() {
                causes.push(Cause::forbidden(
                    &format!("{at}.{field}"),
                    "may not be set for init containers without restartPolicy=Always",
                ));
            }
        }
    }
    if list == "ephemeralContainers" {
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if c[field].is_object() || c[field].as_array().is_some_and(|a| !a.is_empty()) {
                causes.push(Cause::forbidden(&format!("{at}.{field}"), "cannot be set for an Ephemeral Container"));
            }
        }
    }
}

fn host_ports(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut seen = HashSet::new();
    for (c, container) in items_at(spec, "/containers").iter().enumerate() {
        for (p, port) in items_at(container, "/ports").iter().enumerate() {
            let number = port["hostPort"].as_i64().unwrap_or(0);
            if number != 0 && !seen.insert((number, str_at(port, "/hostIP"), str_at(port, "/protocol"))) {
                causes.push(Cause::duplicate(&format!("{path}.containers[{c}].ports[{p}].hostPort"), &json!(number)));
            }
        }
    }
}

fn policies(spec: &Value, path: &str, known: &Known<'_>, causes: &mut Vec<Cause>) {
    let restart = str_at(spec, "/restartPolicy");
    let allowed =
        if known.restart_policies.is_empty() { &["Always", "OnFailure", "Never"][..] } else { known.restart_policies };
    if !restart.is_empty() {
        one_of(restart, allowed, &format!("{path}.restartPolicy"), causes);
    }
    let dns = str_at(spec, "/dnsPolicy");
    if !dns.is_empty() {
        one_of(
            dns,
            &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
            &format!("{path}.dnsPolicy"),
            causes,
        );
    }
    if dns == "None" && items_at(spec, "/dnsConfig/nameservers").is_empty() {
        causes.push(Cause::required(
            &format!("{path}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s < 1) {
        let detail = "must be between 1 and 2147483647, inclusive";
        causes.push(Cause::invalid(&format!("{path}.activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], detail));
    }
}

fn one_of(value: &str, allowed: &[&str], at: &str, causes: &mut Vec<Cause>) {
    if !allowed.contains(&value) {
        let named: Vec<&str> = allowed.iter().copied().filter(|a| !a.is_empty()).collect();
        causes.push(Cause::not_supported(at, &json!(value), &named));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_templates_count_as_volumes() {
        let spec = json!({
            "containers": [{"name": "a", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                "volumeMounts": [{"name": "data", "mountPath": "/x"}]}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst"
        });
        let about_data = |known: &Known<'_>| validate(&spec, "spec", known).iter().any(|c| c.message.contains("data"));
        assert!(about_data(&Known::default()));
        assert!(!about_data(&Known { claims: vec!["data"], ..Known::default() }));
    }

    #[test]
    fn finds_what_is_wrong() {
        let ok = json!({"name": "a", "image": "i"});
        let table = [
            (json!({"containers": [ok]}), ""),
            (json!({"containers": []}), "spec.containers"),
            (json!({"containers": [ok, ok]}), "spec.containers[1].name"),
            (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image"),
            (json!({"containers": [{"name": "A", "image": "i"}]}), "spec.containers[0].name"),
            (
                json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
                "spec.containers[0].volumeMounts[0].name",
            ),
            (
                json!({"containers": [ok], "volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}),
                "spec.volumes[1].name",
            ),
            (json!({"containers": [ok], "volumes": [{"name": "v"}]}), "spec.volumes[0]"),
            (json!({"containers": [ok], "restartPolicy": "Sometimes"}), "spec.restartPolicy"),
            (
                json!({"containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]}),
                "spec.containers[0].resources.requests",
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {}}]}),
                "spec.containers[0].livenessProbe",
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]}),
                "spec.containers[0].ports[0].containerPort",
            ),
        ];
        for (spec, field) in table {
            let causes = validate(&spec, "spec", &Known::default());
            assert_eq!(causes.first().map(|c| c.field.as_str()).unwrap_or_default(), field, "{spec}: {causes:?}");
        }
    }
}
