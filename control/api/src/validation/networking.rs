//! Ingresses and their classes, network policies, addresses and service networks.

use super::at::{At, Errors, parse_cidr};
use super::selectors::label_selector;
use crate::names;
use serde_json::Value;
use std::collections::HashSet;
use std::net::IpAddr;

/// Where a policy's rules are, and the peers in them.
const RULES: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// A network policy; `old` is what is there, whose networks may stay as they are written.
pub(crate) fn policy(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let known = old.map(networks).unwrap_or_default();
    label_selector(e, &spec.get("podSelector"));
    for (rules, peers) in RULES {
        for rule in spec.get(rules).items() {
            rule.get("ports").items().for_each(|p| policy_port(e, &p));
            rule.get(peers).items().for_each(|p| peer(e, &p, &known));
        }
    }
    let types = spec.get("policyTypes");
    if types.len() > 2 {
        return e.invalid(&types, "may not specify more than two policyTypes");
    }
    for t in types.items().filter(|t| !["Ingress", "Egress"].contains(&t.text())) {
        e.not_supported(&t, &["Ingress", "Egress"]);
    }
}

/// The texts of a policy's networks.
fn networks<'v>(o: &At<'_, 'v>) -> HashSet<&'v str> {
    let spec = o.get("spec").value;
    let list = |v: &'v Value| v.as_array().into_iter().flatten();
    let rules = RULES.iter().flat_map(|(rules, peers)| list(&spec[*rules]).flat_map(move |r| list(&r[*peers])));
    let blocks = rules.map(|peer| &peer["ipBlock"]);
    blocks.flat_map(|b| list(&b["except"]).chain([&b["cidr"]]).filter_map(Value::as_str)).collect()
}

fn policy_port(e: &mut Errors, p: &At) {
    let (protocol, port, end) = (p.get("protocol"), p.get("port"), p.get("endPort"));
    if protocol.is_set() && !["TCP", "UDP", "SCTP"].contains(&protocol.text()) {
        e.not_supported(&protocol, &["TCP", "UDP", "SCTP"]);
    }
    if !port.is_set() {
        if end.is_set() {
            e.invalid(&end, "may not be specified when `port` is not specified");
        }
        return;
    }
    if end.is_set() && port.value.is_string() {
        e.invalid(&end, "may not be specified when `port` is non-numeric");
    }
    e.port_or_name(&port);
    if let (Some(first), Some(last)) = (port.int(), end.int()) {
        if last < first {
            // The value that clients see is the port's.
            e.invalid_as(&end, first, "must be greater than or equal to `port`");
        }
        e.port(&end);
    }
}

fn peer(e: &mut Errors, p: &At, known: &HashSet<&str>) {
    let mut found = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if p.get(field).is_set() {
            found += 1;
            label_selector(e, &p.get(field));
        }
    }
    let block = p.get("ipBlock");
    if block.is_set() {
        found += 1;
        ip_block(e, &block, known);
    }
    if found == 0 {
        e.required(p, "must specify a peer");
    } else if found > 1 && block.is_set() {
        e.forbidden(p, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(e: &mut Errors, b: &At, known: &HashSet<&str>) {
    let cidr = b.get("cidr");
    if !e.need(&cidr) {
        return;
    }
    let network = |e: &mut Errors, at: &At| {
        if !known.contains(at.text()) {
            e.all(at, names::network(at.text(), false));
        }
        parse_cidr(at.text())
    };
    let Some((outer, bits)) = network(e, &cidr) else { return };
    for x in b.get("except").items() {
        if network(e, &x).is_some_and(|(ip, length)| !contains(outer, bits, ip) || bits >= length) {
            e.invalid(&x, "must be a strict subset of `cidr`");
        }
    }
}

fn contains(network: IpAddr, bits: u8, ip: IpAddr) -> bool {
    let head = |n: u128, width: u32| if bits == 0 { 0 } else { n >> (width - u32::from(bits)) };
    match (network, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => head(u128::from(u32::from(a)), 32) == head(u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => head(u128::from(a), 128) == head(u128::from(b), 128),
        _ => false,
    }
}

/// An ingress; `old` is what is there.
pub(crate) fn ingress(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let (default, rules) = (spec.get("defaultBackend"), spec.get("rules"));
    if rules.is_empty() && !default.is_set() {
        e.invalid_as(&spec, rules.value.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    if default.is_set() {
        backend(e, &default);
    }
    let loose = old.is_some_and(|o| {
        o.get("spec.rules").items().any(|r| {
            let mut faults = Errors::default();
            paths(&mut faults, &r);
            r.get("host").text().contains('*') && !faults.0.is_empty()
        })
    });
    for r in rules.items() {
        rule(e, &r);
        if !loose || !r.get("host").text().contains('*') {
            paths(e, &r);
        }
    }
    let tolerated = old.is_some_and(|o| {
        let spec = o.get("spec");
        let tls = spec.get("tls");
        tls.items().any(|t| {
            let name = t.get("secretName").text();
            !name.is_empty() && !names::dns1123_subdomain(name).is_empty()
        })
    });
    for t in spec.get("tls").items() {
        t.get("hosts").items().for_each(|h| host(e, &h));
        let secret = t.get("secretName");
        if !secret.is_empty() && !tolerated {
            e.dns_subdomain(&secret);
        }
    }
    let class = spec.get("ingressClassName");
    if class.is_set() {
        e.dns_subdomain(&class);
    }
    let annotations = o.get("metadata.annotations");
    let note = annotations.key("kubernetes.io/ingress.class");
    if old.is_none() && note.is_set() && class.is_set() && note.text() != class.text() {
        let shown = o.named("annotations.kubernetes.io/ingress.class", note.value);
        e.invalid(&shown, "must match `ingressClassName` when both are specified");
    }
}

fn host(e: &mut Errors, at: &At) {
    let texts = if at.text().contains('*') {
        names::wildcard_subdomain(at.text())
    } else {
        names::dns1123_subdomain(at.text())
    };
    e.all(at, texts);
}

fn rule(e: &mut Errors, r: &At) {
    let name = r.get("host");
    if !name.is_empty() {
        if name.text().parse::<IpAddr>().is_ok() {
            e.invalid(&name, "must be a DNS name, not an IP address");
        }
        host(e, &name);
    }
}

fn paths(e: &mut Errors, r: &At) {
    let http = r.get("http");
    if !http.is_set() {
        return;
    }
    let paths = http.get("paths");
    e.need(&paths);
    for p in paths.items() {
        path(e, &p);
    }
}

fn path(e: &mut Errors, p: &At) {
    let (kind, at) = (p.get("pathType"), p.get("path"));
    if kind.is_empty() {
        return e.required(&kind, "pathType must be specified");
    }
    let text = at.text();
    match kind.text() {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                e.invalid_as(&at, text, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(part) {
                    e.invalid(&at, format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if text.ends_with(end) {
                    e.invalid(&at, format!("cannot end with '{end}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                e.invalid(&at, "must be an absolute path");
            }
        }
        _ => e.not_supported(&kind, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(e, &p.get("backend"));
}

fn backend(e: &mut Errors, b: &At) {
    let (service, resource) = (b.get("service"), b.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => e.invalid_as(b, "", "cannot set both resource and service backends"),
        (false, true) => local_reference(e, &resource),
        (false, false) => e.invalid_as(b, "", "resource or service backend is required"),
        (true, false) => {
            if e.need(&service.get("name")) {
                e.all(&service.get("name"), names::dns1123_label(service.get("name").text()));
            }
            let (name, number) = (service.get("port.name"), service.get("port.number"));
            match (!name.is_empty(), number.int().unwrap_or(0) != 0) {
                (true, true) => e.invalid_as(b, "", "cannot set both port name & port number"),
                (true, false) => e.port_or_name(&name),
                (false, true) => e.port(&number),
                (false, false) => e.required(b, "port name or number is required"),
            }
        }
    }
}

fn local_reference(e: &mut Errors, at: &At) {
    if at.get("apiGroup").is_set() {
        e.dns_subdomain(&at.get("apiGroup"));
    }
    for (field, detail) in [("kind", "kind is required"), ("name", "name is required")] {
        if at.get(field).is_empty() {
            e.required(&at.get(field), detail);
        } else {
            e.all(&at.get(field), names::path_segment(at.get(field).text()));
        }
    }
}

/// An ingress class.
pub(crate) fn class(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let controller = spec.get("controller");
    if controller.text().len() > 250 {
        e.too_long(&controller, 250);
    }
    if controller.is_empty() {
        e.required(&controller, "");
    } else {
        e.all(&controller, names::domain_prefixed_path(controller.text()));
    }
    let p = spec.get("parameters");
    if !p.is_set() {
        return;
    }
    local_reference(e, &p);
    let (scope, namespace) = (p.get("scope"), p.get("namespace"));
    match scope.text() {
        "Cluster" => {
            if namespace.is_set() {
                e.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'");
            }
        }
        "Namespace" => {
            if !namespace.is_set() {
                e.required(&namespace, "`parameters.scope` is set to 'Namespace'");
            } else {
                e.dns_label(&namespace);
            }
        }
        "" if !scope.is_set() => e.required(&scope, ""),
        _ => e.not_supported(&scope, &["Cluster", "Namespace"]),
    }
}

/// An IPAddress.
pub(crate) fn address(e: &mut Errors, o: &At) {
    let parent = o.get("spec.parentRef");
    if !parent.is_set() {
        return e.required(&parent, "");
    }
    if !parent.get("group").is_empty() {
        e.dns_subdomain(&parent.get("group"));
    }
    for field in ["resource", "name"] {
        if e.need(&parent.get(field)) {
            e.all(&parent.get(field), names::path_segment(parent.get(field).text()));
        }
    }
    e.all(&parent.get("namespace"), names::path_segment(parent.get("namespace").text()));
}

/// A ServiceCIDR.
pub(crate) fn service_cidr(e: &mut Errors, o: &At) {
    let list = o.get("spec.cidrs");
    let spec = || o.get("spec").value.clone();
    if list.is_empty() {
        return e.required(&list, "at least one CIDR required");
    }
    if list.len() > 2 {
        return e.invalid_as(&list, spec(), "may only hold up to 2 values");
    }
    if list.len() == 2 && list.items().filter(|c| c.text().contains(':')).count() != 1 {
        return e.invalid_as(
            &list,
            spec(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
    list.items().for_each(|c| e.all(&c, names::network(c.text(), true)));
}
