//! Changes of a pod's status.

use crate::names;
use crate::validation::at::{At, Errors};

/// What is wrong with a changed status.
pub(crate) fn status_update(e: &mut Errors, new: &At, old: &At) {
    let (status, was) = (new.get("status"), old.get("status"));
    // The path is what clients know.
    let conditions = new.named("metadata.conditions", status.get("conditions").value);
    for c in conditions.items() {
        let kind = c.get("type").text();
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            let shown = c.named("Type", c.get("type").value);
            e.all(&shown, names::qualified_name(kind));
        }
    }
    let nominated = status.get("nominatedNodeName");
    if !nominated.is_empty() && nominated.value != was.get("nominatedNodeName").value {
        e.dns_subdomain(&nominated);
    }
    if !was.get("qosClass").is_empty() {
        e.fixed(&status.get("qosClass"), was.get("qosClass").value);
    }
    let policy = old.get("spec.restartPolicy").text();
    states(e, &status, &was, "containerStatuses", policy, &[]);
    let inits = old.get("spec.initContainers");
    let sidecars: Vec<&str> =
        inits.items().filter(|c| c.get("restartPolicy").text() == "Always").map(|c| c.get("name").text()).collect();
    states(e, &status, &was, "initContainerStatuses", policy, &sidecars);
    states(e, &status, &was, "ephemeralContainerStatuses", "Never", &[]);
    claims(e, &status.get("resourceClaimStatuses"), &new.get("spec.resourceClaims"));
    addresses(e, &status.get("podIPs"));
    let hosts = status.get("hostIPs");
    if !hosts.is_empty() && hosts.index(0).get("ip").text() != status.get("hostIP").text() {
        e.invalid(&hosts.index(0).get("ip"), "must be equal to `hostIP`");
    }
    addresses(e, &hosts);
}

/// A container that has ended for good does not run again.
fn states(e: &mut Errors, status: &At, was: &At, list: &str, policy: &str, sidecars: &[&str]) {
    if policy == "Always" {
        return;
    }
    let now = status.get(list);
    for (i, before) in was.get(list).items().enumerate() {
        let ended = before.get("state.terminated");
        let name = before.get("name").text();
        let failed = ended.get("exitCode").int().unwrap_or(0) != 0;
        if !ended.is_set() || (failed && policy == "OnFailure") || sidecars.contains(&name) {
            continue;
        }
        let revived = |c: &At| c.get("name").text() == name && !c.get("state.terminated").is_set();
        if now.items().any(|c| revived(&c)) {
            e.forbidden(&now.index(i).get("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn claims(e: &mut Errors, statuses: &At, known: &At) {
    let mut seen: Vec<&str> = Vec::new();
    for s in statuses.items() {
        let name = s.get("name");
        if !known.items().any(|c| c.get("name").text() == name.text()) {
            e.invalid_as(&name, name.text(), "must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&name.text()) {
            e.duplicate(&name);
        }
        seen.push(name.text());
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
    let mut seen: Vec<&str> = Vec::new();
    for ip in list.items() {
        if seen.contains(&ip.get("ip").text()) {
            e.duplicate(&ip);
        }
        seen.push(ip.get("ip").text());
    }
}
