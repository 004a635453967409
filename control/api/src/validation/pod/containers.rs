//! Containers of the three kinds.

use super::{Whole, environment, handlers, mounts, security};
use crate::validation::at::{At, Errors};
use crate::validation::resources;
use std::collections::HashSet;

/// All containers of a spec.
pub(super) fn all(e: &mut Errors, s: &At, whole: &Whole) {
    regular(e, &s.get("containers"), whole);
    init(e, s, whole);
    ephemeral(e, s, whole);
}

fn regular(e: &mut Errors, at: &At, whole: &Whole) {
    if at.is_empty() {
        return e.required(at, "");
    }
    let mut names = HashSet::new();
    for c in at.items() {
        common(e, &c, whole);
        let name = c.get("name");
        if !names.insert(name.text()) {
            e.duplicate_as(&name, name.text());
        }
        handlers::lifecycle(e, &c.get("lifecycle"), whole);
        handlers::probes(e, &c, whole);
        restart_policy(e, &c);
    }
    let mut taken = HashSet::new();
    at.items().for_each(|c| host_ports(e, &c, &mut taken));
}

fn init(e: &mut Errors, s: &At, whole: &Whole) {
    let (at, others) = (s.get("initContainers"), s.get("containers"));
    let mut names: HashSet<&str> = others.items().map(|c| c.get("name").text()).collect();
    for c in at.items() {
        common(e, &c, whole);
        restart_policy(e, &c);
        let name = c.get("name");
        if names.contains(name.text()) {
            e.duplicate_as(&name, name.text());
        } else if !name.is_empty() {
            names.insert(name.text());
        }
        // Init containers run one by one, so each has the ports to itself.
        let alone = at.index(0);
        host_ports_at(e, &c, &alone, &mut HashSet::new());
        if c.get("restartPolicy").text() == "Always" {
            handlers::lifecycle(e, &c.get("lifecycle"), whole);
            handlers::probes(e, &c, whole);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if c.get(field).is_set() {
                e.forbidden(&c.get(field), "may not be set for init containers without restartPolicy=Always");
            }
        }
        for p in c.get("resizePolicy").items().filter(|p| p.get("restartPolicy").text() == "RestartContainer") {
            let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
            e.invalid(&p.get("restartPolicy"), detail);
        }
    }
}

fn ephemeral(e: &mut Errors, s: &At, whole: &Whole) {
    let (containers, inits) = (s.get("containers"), s.get("initContainers"));
    let others: HashSet<&str> = containers.items().chain(inits.items()).map(|c| c.get("name").text()).collect();
    let mut names = others.clone();
    for c in s.get("ephemeralContainers").items() {
        common(e, &c, whole);
        image_of_pod(e, &c);
        let name = c.get("name");
        if !names.insert(name.text()) {
            e.duplicate_as(&name, name.text());
        }
        let target = c.get("targetContainerName");
        if !target.is_empty() && !others.contains(target.text()) {
            e.not_found(&target);
        }
        let forbidden = [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ];
        for field in forbidden {
            let at = c.get(field);
            // A template's empty resources are no resources.
            if !at.is_empty() || (at.is_set() && !matches!(field, "resources" | "ports" | "resizePolicy")) {
                e.forbidden(&at, "cannot be set for an Ephemeral Container");
            }
        }
        for mount in c.get("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.get(field).is_empty() {
                    e.forbidden(&mount.get(field), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

/// Images of pods are not padded; those of templates may be.
pub(super) fn image_of_pod(e: &mut Errors, c: &At) {
    let image = c.get("image");
    if image.text().trim().len() != image.text().len() {
        e.invalid(&image, "must not have leading or trailing whitespace");
    }
}

fn common(e: &mut Errors, c: &At, whole: &Whole) {
    if e.need(&c.get("name")) {
        e.dns_label(&c.get("name"));
    }
    e.need(&c.get("image"));
    e.need_one_of(&c.get("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]);
    ports(e, &c.get("ports"));
    environment::env(e, &c.get("env"));
    environment::env_from(e, &c.get("envFrom"));
    mounts::mounts(e, c, whole);
    mounts::devices(e, c, whole);
    e.need_one_of(&c.get("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    resources::requirements(e, &c.get("resources"), &whole.claims, false);
    resize_policy(e, &c.get("resizePolicy"), whole);
    security::container_context(e, &c.get("securityContext"), whole.host_users);
}

fn ports(e: &mut Errors, at: &At) {
    let mut names = HashSet::new();
    for p in at.items() {
        let name = p.get("name");
        if !name.is_empty() {
            let texts = crate::names::port_name(name.text());
            if !texts.is_empty() {
                e.all(&name, texts);
            } else if !names.insert(name.text()) {
                e.duplicate(&name);
            }
        }
        if p.get("containerPort").int().unwrap_or(0) == 0 {
            e.required(&p.get("containerPort"), "");
        } else {
            e.port(&p.get("containerPort"));
        }
        if p.get("hostPort").int().unwrap_or(0) != 0 {
            e.port(&p.get("hostPort"));
        }
        e.need_one_of(&p.get("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

fn host_ports(e: &mut Errors, c: &At, taken: &mut HashSet<String>) {
    host_ports_at(e, c, c, taken);
}

/// Host ports of `c` that are taken; errors are about `shown`.
fn host_ports_at(e: &mut Errors, c: &At, shown: &At, taken: &mut HashSet<String>) {
    for (i, p) in c.get("ports").items().enumerate() {
        let port = p.get("hostPort").int().unwrap_or(0);
        if port == 0 {
            continue;
        }
        let key = format!("{}/{}/{port}", p.get("protocol").text(), p.get("hostIP").text());
        if !taken.insert(key.clone()) {
            let ports = shown.get("ports");
            e.duplicate_as(&ports.index(i).get("hostPort"), key);
        }
    }
}

fn resize_policy(e: &mut Errors, at: &At, whole: &Whole) {
    let mut seen = HashSet::new();
    for p in at.items() {
        let (resource, policy) = (p.get("resourceName"), p.get("restartPolicy"));
        if !seen.insert(resource.text()) {
            e.duplicate_as(&p, resource.text());
        }
        for (value, allowed) in
            [(&resource, &["cpu", "memory"][..]), (&policy, &["NotRequired", "RestartContainer"][..])]
        {
            if value.is_empty() {
                e.required(at, "");
            } else if !allowed.contains(&value.text()) {
                e.0.push(crate::status::FieldError::not_supported(at.path(), value.text(), allowed));
            }
        }
        if whole.restart == "Never" && policy.text() != "NotRequired" {
            e.invalid_as(at, policy.text(), "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn restart_policy(e: &mut Errors, c: &At) {
    let (policy, rules) = (c.get("restartPolicy"), c.get("restartPolicyRules"));
    if policy.is_set() {
        if !["Always", "Never", "OnFailure"].contains(&policy.text()) {
            e.not_supported(&policy, &["Always", "Never", "OnFailure"]);
        }
    } else if !rules.is_empty() {
        e.required(&policy, "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > 20 {
        e.too_many(&rules, 20);
    }
    for rule in rules.items() {
        if !["Restart", "RestartAllContainers"].contains(&rule.get("action").text()) {
            e.not_supported(&rule.get("action"), &["Restart", "RestartAllContainers"]);
        }
        let codes = rule.get("exitCodes");
        if !codes.is_set() {
            e.required(&codes, "must be specified");
            continue;
        }
        if !["In", "NotIn"].contains(&codes.get("operator").text()) {
            e.not_supported(&codes.get("operator"), &["In", "NotIn"]);
        }
        if codes.get("values").len() > 255 {
            e.too_many(&codes.get("values"), 255);
        }
    }
}
