//! Priority classes, runtime classes, API services.

use super::at::{At, Errors};
use super::{pod, resources, selectors};
use crate::names;
use crate::status::FieldError;
use std::collections::HashSet;

const HIGHEST: i64 = 1_000_000_000;

/// A priority class.
pub(crate) fn priority_class(e: &mut Errors, o: &At) {
    let (name, value) = (o.get("metadata.name"), o.get("value").int().unwrap_or(0));
    let known = match name.text() {
        "system-cluster-critical" => Some((2_000_000_000, false)),
        "system-node-critical" => Some((2_000_001_000, false)),
        _ => None,
    };
    if name.text().starts_with("system-") {
        let fault = match known {
            None => Some(format!("{} is not a known system priority class", name.text())),
            Some((v, _)) if v != value => Some(format!("value of {} PriorityClass must be {v}", name.text())),
            Some(_) if o.get("globalDefault").is_true() => {
                Some(format!("globalDefault of {} PriorityClass must be false", name.text()))
            }
            Some(_) => None,
        };
        if let Some(fault) = fault {
            e.forbidden(
                &name,
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {fault}"),
            );
        }
    } else if value > HIGHEST {
        e.forbidden(&o.get("value"), format!("maximum allowed value of a user defined priority is {HIGHEST}"));
    }
    let policy = o.get("preemptionPolicy");
    if policy.is_set() {
        e.need_one_of(&policy, &["PreemptLowerPriority", "Never"]);
    }
}

/// A changed priority class.
pub(crate) fn priority_class_update(e: &mut Errors, new: &At, old: &At) {
    if new.get("value").int().unwrap_or(0) != old.get("value").int().unwrap_or(0) {
        e.forbidden(&new.get("value"), "may not be changed in an update.");
    }
    e.fixed(&new.get("preemptionPolicy"), old.get("preemptionPolicy").value);
}

/// A runtime class.
pub(crate) fn runtime_class(e: &mut Errors, o: &At) {
    let handler = o.get("handler");
    e.dns_label(&handler);
    let fixed = o.get("overhead.podFixed");
    if fixed.is_set() {
        let overhead = o.get("overhead");
        let limits = overhead.named("limits", fixed.value);
        for (name, q) in limits.entries() {
            resources::container_name(e, &q, name);
            resources::amount(e, &q, name);
        }
    }
    let scheduling = o.get("scheduling");
    selectors::labels(e, &scheduling.get("nodeSelector"));
    let list = scheduling.get("tolerations");
    pod::tolerations(e, &list);
    let mut seen = HashSet::new();
    for t in list.items() {
        if !seen.insert(t.value) {
            e.duplicate(&t);
        }
    }
}

/// A changed runtime class.
pub(crate) fn runtime_class_update(e: &mut Errors, new: &At, old: &At) {
    e.fixed(&new.get("handler"), old.get("handler").value);
}

/// An API service.
pub(crate) fn api_service(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let (group, version, service) = (spec.get("group"), spec.get("version"), spec.get("service"));
    let want = format!("{}.{}", version.text(), group.text());
    let name = o.get("metadata.name");
    if name.text() != want {
        e.invalid(&name, format!("must be `spec.version+\".\"+spec.group`: {want:?}"));
    }
    // The core group is the server's own.
    if group.is_empty() {
        if service.is_set() {
            e.required(&group, "only v1 may have an empty group and it better be legacy kube");
        }
    } else {
        e.dns_subdomain(&group);
    }
    let texts = names::dns1035_label(version.text());
    if !texts.is_empty() {
        e.0.push(FieldError::invalid(version.path(), version.text(), texts.join(",")));
    }
    let priorities = [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)];
    for (field, most) in priorities {
        let n = spec.get(field).int().unwrap_or(0);
        if n <= 0 || n > most {
            let detail = format!("must be positive and less than {most}");
            e.invalid_as(&spec.get(field), n, detail);
        }
    }
    if !service.is_set() {
        if !spec.get("caBundle").is_empty() {
            e.invalid_as(
                &spec.get("caBundle"),
                format!("{} bytes", spec.get("caBundle").text().len()),
                "local APIServices may not have a caBundle",
            );
        }
        if spec.get("insecureSkipTLSVerify").is_true() {
            e.invalid(&spec.get("insecureSkipTLSVerify"), "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    for field in ["namespace", "name"] {
        e.need(&service.get(field));
    }
    let port = service.get("port");
    if port.is_set() && !port.int().is_some_and(|p| (1..=65_535).contains(&p)) {
        e.invalid(&port, "port is not valid: must be between 1 and 65535, inclusive");
    }
    if spec.get("insecureSkipTLSVerify").is_true() && !spec.get("caBundle").is_empty() {
        e.invalid(&spec.get("insecureSkipTLSVerify"), "may not be true if caBundle is present");
    }
}

/// An API service's changed status.
pub(crate) fn api_service_status(e: &mut Errors, o: &At) {
    for c in o.get("status.conditions").items() {
        if !["False", "True", "Unknown"].contains(&c.get("status").text()) {
            e.not_supported(&c.get("status"), &["False", "True", "Unknown"]);
        }
    }
}
