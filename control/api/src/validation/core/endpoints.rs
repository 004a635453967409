//! Endpoints and events.

use super::ordinary_address;
use crate::names;
use crate::validation::at::{At, Errors};

/// Endpoints.
pub(crate) fn endpoints(e: &mut Errors, o: &At) {
    for s in o.get("subsets").items() {
        if s.get("addresses").is_empty() && s.get("notReadyAddresses").is_empty() {
            e.required(&s, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for a in s.get(list).items() {
                address(e, &a);
            }
        }
        let ports = s.get("ports");
        for p in ports.items() {
            let name = p.get("name");
            if ports.len() > 1 && name.is_empty() {
                e.required(&name, "");
            } else if !name.is_empty() {
                e.dns_label(&name);
            }
            e.port(&p.get("port"));
            e.need_one_of(&p.get("protocol"), &["SCTP", "TCP", "UDP"]);
            if p.get("appProtocol").is_set() {
                e.qualified_name(&p.get("appProtocol"));
            }
        }
    }
}

fn address(e: &mut Errors, a: &At) {
    let ip = a.get("ip");
    if ip.text().parse::<std::net::IpAddr>().is_err() {
        e.ip(&ip);
    } else {
        ordinary_address(e, &ip);
    }
    if !a.get("hostname").is_empty() {
        e.dns_label(&a.get("hostname"));
    }
    if a.get("nodeName").is_set() {
        e.dns_subdomain(&a.get("nodeName"));
    }
}

/// An event; `strict` when it came by events.k8s.io.
pub(crate) fn event(e: &mut Errors, o: &At, strict: bool) {
    let (about, own) = (o.get("involvedObject.namespace"), o.get("metadata.namespace").text());
    let timed = o.get("eventTime").is_set();
    let fits = match about.text() {
        "" if timed => matches!(own, "default" | "kube-system"),
        "" => own == "default",
        other => timed || other == own,
    };
    if !fits {
        e.invalid_as(&about, about.text(), "does not match event.namespace");
    }
    if timed {
        reporter(e, o, strict);
    }
    if !strict {
        return;
    }
    series(e, &o.get("series"));
    if !timed {
        e.required(&o.get("eventTime"), "");
    }
    if !["Normal", "Warning"].contains(&o.get("type").text()) {
        e.invalid_as(&o.get("type"), "", format!("has invalid value: {}", o.get("type").text()));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let at = o.get(field);
        if !at.is_empty() && at.int() != Some(0) {
            e.invalid_as(&at, "", "needs to be unset");
        }
    }
}

/// Events with a time of their own say who reports them.
fn reporter(e: &mut Errors, o: &At, strict: bool) {
    let controller = o.get("reportingComponent");
    let shown = o.named(if strict { "reportingController" } else { "reportingComponent" }, controller.value);
    e.need(&shown);
    e.all(&shown, names::qualified_name(controller.text()));
    for field in ["reportingInstance", "action", "reason"] {
        let at = o.get(field);
        e.need(&at);
        if at.text().len() > 128 {
            e.invalid_as(&at, "", "can have at most 128 characters");
        }
    }
    if o.get("message").text().len() > 1024 {
        e.invalid_as(&o.get("message"), "", "can have at most 1024 characters");
    }
}

fn series(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    if at.get("count").int().unwrap_or(0) < 2 {
        e.invalid_as(&at.get("count"), "", "should be at least 2");
    }
    if !at.get("lastObservedTime").is_set() {
        e.required(&at.get("lastObservedTime"), "");
    }
}

/// A changed event: only its series moves.
pub(crate) fn event_update(e: &mut Errors, new: &At, old: &At, strict: bool) {
    event(e, new, strict);
    if !strict {
        return;
    }
    const FIXED: &[&str] = &[
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ];
    for field in FIXED {
        let shown = if *field == "reportingComponent" { "reportingController" } else { field };
        e.fixed(&new.named(shown, new.get(field).value), old.get(field).value);
    }
}
