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
    let signal = at.get("stopSignal");
    if !signal.is_set() {
        return;
    }
    match whole.os {
        None => e.forbidden(&signal, "may not be set for containers with empty `spec.os.name`"),
        Some("windows") if !["SIGKILL", "SIGTERM"].contains(&signal.text()) => {
            e.not_supported(&signal, &["SIGKILL", "SIGTERM"]);
        }
        Some("linux") if !SIGNALS.contains(&signal.text()) => e.not_supported(&signal, SIGNALS),
        Some(_) => {}
    }
}

/// The signals of Linux, as a list of them is sorted.
const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

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
