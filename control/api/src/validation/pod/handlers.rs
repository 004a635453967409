//! Probes and lifecycle hooks.

use super::Whole;
use crate::validation::at::{At, Errors};

/// The three probes of a container.
pub(super) fn probes(e: &mut Errors, c: &At, whole: &Whole) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let p = c.get(name);
        if !p.is_set() {
            continue;
        }
        handler(e, &p, whole);
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            e.non_negative(&p.get(field));
        }
        let grace = p.get("terminationGracePeriodSeconds");
        if grace.int().is_some_and(|n| n <= 0) {
            e.invalid(&grace, "must be greater than 0");
        }
        if name == "readinessProbe" {
            if grace.is_set() {
                e.invalid(&grace, "must not be set for readinessProbes");
            }
        } else if p.get("successThreshold").int().unwrap_or(0) != 1 {
            e.invalid_as(&p.get("successThreshold"), p.get("successThreshold").int().unwrap_or(0), "must be 1");
        }
    }
}

/// Hooks after the start and before the end.
pub(super) fn lifecycle(e: &mut Errors, at: &At, whole: &Whole) {
    for hook in ["postStart", "preStop"] {
        if at.get(hook).is_set() {
            handler(e, &at.get(hook), whole);
        }
    }
}

fn handler(e: &mut Errors, at: &At, whole: &Whole) {
    let mut found = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let h = at.get(kind);
        if !h.is_set() {
            continue;
        }
        found += 1;
        if found > 1 {
            e.forbidden(&h, "may not specify more than 1 handler type");
            continue;
        }
        match kind {
            "exec" => {
                e.need(&h.get("command"));
            }
            "httpGet" => http_get(e, &h),
            "tcpSocket" => e.port_or_name(&h.get("port")),
            "grpc" => e.port(&h.get("port")),
            _ => sleep(e, &h, whole),
        }
    }
    if found == 0 {
        e.required(at, "must specify a handler type");
    }
}

fn http_get(e: &mut Errors, h: &At) {
    e.need(&h.get("path"));
    e.port_or_name(&h.get("port"));
    if !["HTTP", "HTTPS"].contains(&h.get("scheme").text()) {
        e.not_supported(&h.get("scheme"), &["HTTP", "HTTPS"]);
    }
    let headers = h.get("httpHeaders");
    for header in headers.items() {
        let name = header.get("name").text();
        if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
            e.invalid_as(&headers, name, "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')");
        }
    }
}

fn sleep(e: &mut Errors, h: &At, whole: &Whole) {
    let (seconds, Some(grace)) = (h.get("seconds").int().unwrap_or(0), whole.grace) else { return };
    if seconds < 0 || seconds > grace {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        e.invalid_as(h, seconds, detail);
    }
}
