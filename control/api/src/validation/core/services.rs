//! Services.

use crate::names;
use crate::validation::at::{At, Errors, same};
use crate::validation::selectors;
use serde_json::json;
use std::collections::HashSet;
use std::net::IpAddr;

const ONCE: &str = "may not change once set";

fn is_headless(s: &At) -> bool {
    let ips = s.get("spec.clusterIPs");
    ips.len() == 1 && ips.index(0).text() == "None"
}

fn kind<'v>(s: &At<'_, 'v>) -> &'v str {
    s.get("spec.type").text()
}

/// A service, with its addresses and ports allocated.
pub(crate) fn service(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let (ports, ips) = (spec.get("ports"), spec.get("clusterIPs"));
    let headless = is_headless(o);
    if ports.is_empty() && !headless && kind(o) != "ExternalName" {
        e.required(&ports, "");
    }
    match kind(o) {
        name @ ("LoadBalancer" | "NodePort") if headless => {
            e.invalid(&ips.index(0), format!("may not be set to 'None' for {name} services"));
        }
        "ExternalName" => external_name(e, &spec),
        _ => {}
    }
    self::ports(e, &ports);
    selectors::labels(e, &spec.get("selector"));
    affinity(e, &spec);
    addresses(e, o);
    for ip in spec.get("externalIPs").items() {
        if ip.text().parse::<IpAddr>().is_err() {
            e.ip(&ip);
        } else {
            ordinary_address(e, &ip);
        }
    }
    e.need_one_of(&spec.get("type"), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    port_clashes(e, o, &ports);
    source_ranges(e, o);
    let of_balancer = "may only be used when `type` is 'LoadBalancer'";
    let nodes = spec.get("allocateLoadBalancerNodePorts");
    if nodes.is_set() && kind(o) != "LoadBalancer" {
        e.forbidden(&nodes, of_balancer);
    } else if !nodes.is_set() && kind(o) == "LoadBalancer" {
        e.required(&o.named("allocateLoadBalancerNodePorts", nodes.value), "");
    }
    balancer_class(e, o);
    traffic(e, o);
}

fn external_name(e: &mut Errors, spec: &At) {
    const NOT: &str = "may not be set for ExternalName services";
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !spec.get(field).is_empty() {
            e.forbidden(&spec.get(field), NOT);
        }
    }
    let at = spec.get("externalName");
    let name = at.text().strip_suffix('.').unwrap_or(at.text());
    if name.is_empty() {
        e.required(&at, "");
    } else {
        names::dns1123_subdomain(name).into_iter().for_each(|t| e.invalid_as(&at, name, t));
    }
}

fn ports(e: &mut Errors, list: &At) {
    let mut seen = HashSet::new();
    for p in list.items() {
        let name = p.get("name");
        if name.is_empty() {
            if list.len() > 1 {
                e.required(&name, "");
            }
        } else {
            e.dns_label(&name);
            if !seen.insert(name.text()) {
                e.duplicate(&name);
            }
        }
        e.port(&p.get("port"));
        e.need_one_of(&p.get("protocol"), &["SCTP", "TCP", "UDP"]);
        e.port_or_name(&p.get("targetPort"));
        if p.get("appProtocol").is_set() {
            e.qualified_name(&p.get("appProtocol"));
        }
    }
}

fn affinity(e: &mut Errors, spec: &At) {
    let (at, config) = (spec.get("sessionAffinity"), spec.get("sessionAffinityConfig"));
    e.need_one_of(&at, &["ClientIP", "None"]);
    match at.text() {
        "ClientIP" => {
            let detail = "when session affinity type is ClientIP";
            let seconds = config.get("clientIP.timeoutSeconds");
            for at in [&config, &config.get("clientIP"), &seconds] {
                if !at.is_set() {
                    return e.required(at, detail);
                }
            }
            if seconds.int().is_some_and(|n| n <= 0 || n > 86_400) {
                e.invalid(&seconds, "must be greater than 0 and less than 86400");
            }
        }
        "None" if config.is_set() => {
            e.forbidden(&config, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

/// Cluster addresses and families.
fn addresses(e: &mut Errors, o: &At) {
    if kind(o) == "ExternalName" {
        return;
    }
    let spec = o.get("spec");
    let (ip, ips, families) = (spec.get("clusterIP"), spec.get("clusterIPs"), spec.get("ipFamilies"));
    if ip.is_empty() {
        if !ips.is_empty() {
            e.invalid(&ips, "must be empty when `clusterIP` is not specified");
        }
    } else if ips.is_empty() {
        e.required(&ips, "");
    } else if ips.index(0).text() != ip.text() {
        e.invalid(&ips, "first value must match `clusterIP`");
    }
    let mut seen = HashSet::new();
    for f in families.items() {
        if !["IPv4", "IPv6"].contains(&f.text()) {
            e.not_supported(&f, &["IPv4", "IPv6"]);
        }
        if !seen.insert(f.text()) {
            e.duplicate(&f);
        }
    }
    e.one_of(&spec.get("ipFamilyPolicy"), &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let before = e.0.len();
    for (i, ip) in ips.items().enumerate() {
        if i == 0 && ip.text() == "None" {
            if ips.len() > 1 {
                e.invalid(&ips, "'None' must be the first and only value");
            }
            continue;
        }
        e.ip(&ip);
    }
    let bad = e.0.len() > before;
    if ips.len() > 2 {
        e.invalid(&ips, "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    let six = |ip: &At| ip.text().contains(':');
    if ips.len() > 1 && ips.items().filter(six).count() != 1 {
        e.invalid(&ips, "may specify no more than one IP for each IP family");
    }
    if is_headless(o) {
        return;
    }
    for (i, (ip, family)) in ips.items().zip(families.items()).enumerate() {
        let want = family.text();
        if (want == "IPv4" && six(&ip)) || (want == "IPv6" && !six(&ip)) {
            e.invalid(&ip, format!("expected an {want} value as indicated by `ipFamilies[{i}]`"));
        }
    }
}

fn port_clashes(e: &mut Errors, o: &At, ports: &At) {
    let node_port = |p: &At| p.get("nodePort").int().unwrap_or(0);
    if kind(o) == "ClusterIP" {
        for p in ports.items().filter(|p| node_port(p) != 0) {
            e.forbidden(&p.get("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    let mut seen = HashSet::new();
    for p in ports.items().filter(|p| node_port(p) != 0) {
        let key = (p.get("protocol").text(), node_port(&p));
        if !seen.insert(key) {
            e.duplicate(&p.get("nodePort"));
        }
    }
    let mut seen = HashSet::new();
    for p in ports.items() {
        let key = (p.get("protocol").text(), p.get("port").int().unwrap_or(0));
        if !seen.insert(key) {
            // As upstream's internal type is written.
            let shown = json!({"Name": "", "Protocol": key.0, "AppProtocol": null, "Port": key.1, "TargetPort": 0, "NodePort": 0});
            e.duplicate_as(&p, shown);
        }
    }
}

fn source_ranges(e: &mut Errors, o: &At) {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let spec = o.get("spec");
    let list = spec.named("LoadBalancerSourceRanges", spec.get("loadBalancerSourceRanges").value);
    let annotations = o.get("metadata.annotations");
    let note = annotations.key(ANNOTATION);
    if !list.is_empty() {
        if kind(o) != "LoadBalancer" {
            e.forbidden(&list, "may only be used when `type` is 'LoadBalancer'");
        }
        list.items().for_each(|c| e.cidr(&c));
    } else if note.is_set() {
        if kind(o) != "LoadBalancer" {
            e.forbidden(&note, "may only be used when `type` is 'LoadBalancer'");
        }
        for text in note.text().split(',').map(str::trim).filter(|_| !note.text().trim().is_empty()) {
            if crate::validation::at::parse_cidr(text).is_none() {
                e.invalid_as(&note, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
            }
        }
    }
}

fn balancer_class(e: &mut Errors, o: &At) {
    let class = o.get("spec.loadBalancerClass");
    if !class.is_set() {
        return;
    }
    if kind(o) == "LoadBalancer" {
        e.qualified_name(&class);
    } else {
        e.forbidden(&class, "may only be used when `type` is 'LoadBalancer'");
    }
}

fn reaches_outside(o: &At) -> bool {
    match kind(o) {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !o.get("spec.externalIPs").is_empty(),
        _ => false,
    }
}

fn needs_health_check(o: &At) -> bool {
    kind(o) == "LoadBalancer" && o.get("spec.externalTrafficPolicy").text() == "Local"
}

fn traffic(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let external = spec.get("externalTrafficPolicy");
    if reaches_outside(o) {
        e.need_one_of(&external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        e.invalid(&external, "may only be set for externally-accessible services");
    }
    let check = spec.get("healthCheckNodePort");
    match (needs_health_check(o), check.int().unwrap_or(0)) {
        (true, 0) => e.required(&check, ""),
        (true, _) => e.port(&check),
        (false, 0) => {}
        (false, _) => {
            e.invalid(&check, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
        }
    }
    let internal = spec.get("internalTrafficPolicy");
    if !internal.is_set() && matches!(kind(o), "NodePort" | "LoadBalancer" | "ClusterIP") {
        e.required(&internal, "");
    }
    if internal.is_set() && !["Cluster", "Local"].contains(&internal.text()) {
        e.not_supported(&internal, &["Cluster", "Local"]);
    }
    let distribution = spec.get("trafficDistribution");
    let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if distribution.is_set() && !known.contains(&distribution.text()) {
        e.not_supported(&distribution, &known);
    }
}

/// A changed service.
pub(crate) fn service_update(e: &mut Errors, new: &At, old: &At) {
    if kind(new) != "ExternalName" && kind(old) != "ExternalName" {
        kept(e, new, old, "clusterIPs", "secondary clusterIP", "primary clusterIP can not be unset");
        if is_headless(new) == is_headless(old) {
            kept(e, new, old, "ipFamilies", "secondary ipFamily", "primary ipFamily can not be unset");
        }
    }
    if kind(new) == "LoadBalancer" && kind(old) == "LoadBalancer" {
        let (class, was) = (new.get("spec.loadBalancerClass"), old.get("spec.loadBalancerClass"));
        if !same(class.value, was.value) {
            e.invalid(&class, ONCE);
        }
    }
    if needs_health_check(new) && needs_health_check(old) {
        let (port, was) = (new.get("spec.healthCheckNodePort"), old.get("spec.healthCheckNodePort"));
        if port.int() != was.int() {
            e.forbidden(&port, "field is immutable");
        }
    }
    service(e, new);
}

/// The first of a list stays; a second may come and go.
fn kept(e: &mut Errors, new: &At, old: &At, field: &str, second: &str, unset: &str) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let (spec, was) = (new.get("spec"), old.get("spec"));
    let (list, was) = (spec.get(field), was.get(field));
    let first = list.index(0);
    if list.len() == was.len() {
        for (i, old) in was.items().enumerate() {
            let at = if field == "ipFamilies" { list.index(0) } else { list.index(i) };
            if list.index(i).text() != old.text() {
                e.invalid_as(&at, list.value.clone(), ONCE);
            }
        }
        return;
    }
    if list.is_empty() {
        return e.invalid_as(&first, list.value.clone(), unset);
    }
    if !was.is_empty() && first.text() != was.index(0).text() {
        e.invalid_as(&first, list.value.clone(), ONCE);
    }
    let policy = spec.get("ipFamilyPolicy");
    if list.len() < was.len() && list.len() == 1 && policy.text() != "SingleStack" {
        e.invalid(&policy, format!("must be set to 'SingleStack' when releasing the {second}"));
    }
}

/// An address that is no special one.
pub(crate) fn ordinary_address(e: &mut Errors, at: &At) {
    let Ok(ip) = at.text().parse::<IpAddr>() else { return };
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        e.invalid(at, format!("may not be unspecified ({})", at.text()));
    }
    if ip.is_loopback() {
        e.invalid(at, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        e.invalid(at, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        e.invalid(at, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// The status of a load balancer.
pub(crate) fn balancer_status(e: &mut Errors, o: &At, of_service: bool) {
    let list = o.get("status.loadBalancer.ingress");
    if of_service && kind(o) != "LoadBalancer" && !list.is_empty() {
        return e.forbidden(&list, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for i in list.items() {
        let (ip, host, mode) = (i.get("ip"), i.get("hostname"), i.get("ipMode"));
        if !ip.is_empty() {
            e.ip(&ip);
        }
        if of_service {
            match (mode.is_set(), ip.is_empty()) {
                (false, false) => e.required(&mode, "must be specified when `ip` is set"),
                (true, true) => e.forbidden(&mode, "may not be specified when `ip` is not set"),
                (true, false) => e.one_of(&mode, &["Proxy", "VIP"]),
                (false, true) => {}
            }
        }
        if !host.is_empty() {
            e.dns_subdomain(&host);
            if host.text().parse::<IpAddr>().is_ok() {
                e.invalid(&host, "must be a DNS name, not an IP address");
            }
        }
    }
}
