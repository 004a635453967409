//! Changes of a pod's status.

use crate::names;
use crate::validation::at::{At, Errors};
use std::collections::HashSet;

/// What is wrong with a changed status.
pub(crate) fn status_update(e: &mut Errors, new: &At, old: &At) {
    super::update::annotation_changes(e, new, old);
    let (status, was) = (new.get("status"), old.get("status"));
    for c in status.get("conditions").items() {
        observed(e, &c.get("observedGeneration"));
        let kind = c.get("type").text();
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            let shown = c.named("Type", c.get("type").value);
            e.all(&shown, names::qualified_name(kind));
        }
    }
    let node = old.get("spec.nodeName");
    if new.get("spec.nodeName").text() != node.text() {
        e.forbidden(&status.get("nodeName"), "may not be changed directly");
    }
    let nominated = status.get("nominatedNodeName");
    if !nominated.is_empty() && nominated.value != was.get("nominatedNodeName").value {
        e.dns_subdomain(&nominated);
        if !node.is_empty() {
            e.forbidden(&nominated, "may not be set on pods that are already bound to a node");
        }
    }
    observed(e, &status.get("observedGeneration"));
    if !was.get("qosClass").is_empty() {
        e.fixed(&status.get("qosClass"), was.get("qosClass").value);
    }
    let spec = old.get("spec");
    if !restarts_together(&spec) {
        states(e, &status, &was, "containerStatuses", |name, code| restarts(&spec, "containers", name, code));
        states(e, &status, &was, "initContainerStatuses", |name, code| restarts(&spec, "initContainers", name, code));
    }
    states(e, &status, &was, "ephemeralContainerStatuses", |_, _| false);
    claims(e, &status.get("resourceClaimStatuses"), &new.get("spec.resourceClaims"));
    addresses(e, &status.get("podIPs"));
    let hosts = status.get("hostIPs");
    if !hosts.is_empty() && hosts.index(0).get("ip").text() != status.get("hostIP").text() {
        e.invalid(&hosts.index(0).get("ip"), "must be equal to `hostIP`");
    }
    addresses(e, &hosts);
    let windows = new.get("spec.os.name").text() == "windows";
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        for c in status.get(list).items() {
            user(e, &c.get("user.linux"), windows);
        }
    }
}

fn observed(e: &mut Errors, at: &At) {
    if at.int().is_some_and(|n| n < 0) {
        e.invalid(at, "must be a non-negative integer");
    }
}

fn user(e: &mut Errors, at: &At, windows: bool) {
    if windows && at.is_set() {
        return e.forbidden(at, "cannot be set for a windows pod");
    }
    e.id(&at.get("uid"));
    e.id(&at.get("gid"));
    at.get("supplementalGroups").items().for_each(|g| e.id(&g));
}

/// Whether a rule of some container may start all of them again.
fn restarts_together(spec: &At) -> bool {
    ["containers", "initContainers"].iter().any(|list| {
        spec.get(list)
            .items()
            .any(|c| c.get("restartPolicyRules").items().any(|r| r.get("action").text() == "RestartAllContainers"))
    })
}

/// Whether a container runs again after this exit code.
fn restarts(spec: &At, list: &str, name: &str, code: i64) -> bool {
    let containers = spec.get(list);
    let Some(c) = containers.items().find(|c| c.get("name").text() == name) else { return false };
    let rules = c.get("restartPolicyRules");
    let by_rule = rules.items().any(|r| {
        let codes = r.get("exitCodes");
        let listed = codes.get("values").items().any(|v| v.int() == Some(code));
        r.get("action").text() == "Restart"
            && match codes.get("operator").text() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
    });
    let own = c.get("restartPolicy");
    let policy = if own.is_set() { own.text() } else { spec.get("restartPolicy").text() };
    by_rule || policy == "Always" || (policy == "OnFailure" && code != 0)
}

/// A container that has ended for good does not run again.
fn states(e: &mut Errors, status: &At, was: &At, list: &str, again: impl Fn(&str, i64) -> bool) {
    let now = status.get(list);
    let running: HashSet<&str> =
        now.items().filter(|c| !c.get("state.terminated").is_set()).map(|c| c.get("name").text()).collect();
    for (i, before) in was.get(list).items().enumerate() {
        let ended = before.get("state.terminated");
        let name = before.get("name").text();
        if !ended.is_set() || again(name, ended.get("exitCode").int().unwrap_or(0)) {
            continue;
        }
        if running.contains(name) {
            e.forbidden(&now.index(i).get("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn claims(e: &mut Errors, statuses: &At, known: &At) {
    let known: HashSet<&str> = known.items().map(|c| c.get("name").text()).collect();
    let mut seen = HashSet::new();
    for s in statuses.items() {
        let name = s.get("name");
        if !known.contains(name.text()) {
            e.invalid_as(&name, name.text(), "must match the name of an entry in `spec.resourceClaims`");
        }
        if !seen.insert(name.text()) {
            e.duplicate(&name);
        }
        if s.get("resourceClaimName").is_set() {
            e.dns_subdomain(&s.get("resourceClaimName"));
        }
    }
}

fn addresses(e: &mut Errors, list: &At) {
    let before = e.0.len();
    for ip in list.items() {
        let shown = ip.get("ip");
        if shown.text().parse::<std::net::IpAddr>().is_err() {
            e.invalid_as(&ip, shown.text(), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        }
    }
    if list.len() < 2 || e.0.len() > before {
        return;
    }
    let six = list.items().filter(|ip| ip.get("ip").text().contains(':')).count();
    if list.len() > 2 || six != 1 {
        e.invalid(list, "may specify no more than one IP for each IP family");
    }
}
