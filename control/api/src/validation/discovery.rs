//! Endpoint slices.

use super::at::{At, Errors};
use super::core::ordinary_address;
use super::selectors::labels;
use crate::names;
use std::collections::HashSet;
use std::net::IpAddr;

/// An endpoint slice.
pub(crate) fn slice(e: &mut Errors, o: &At) {
    let kind = o.get("addressType");
    e.need_one_of(&kind, &["FQDN", "IPv4", "IPv6"]);
    let endpoints = o.get("endpoints");
    if endpoints.len() > 1000 {
        e.too_many(&endpoints, 1000);
    } else {
        endpoints.items().for_each(|x| endpoint(e, &x, kind.text()));
    }
    let ports = o.get("ports");
    if ports.len() > 20_000 {
        return e.too_many(&ports, 20_000);
    }
    let mut seen = HashSet::new();
    for p in ports.items() {
        let name = p.get("name");
        if !name.is_empty() {
            e.dns_label(&name);
        }
        if !seen.insert(name.text()) {
            e.duplicate_as(&name, name.text());
        }
        let port = p.get("port");
        if port.is_set() {
            e.port(&port);
        }
        e.need_one_of(&p.get("protocol"), &["SCTP", "TCP", "UDP"]);
        if p.get("appProtocol").is_set() {
            e.qualified_name(&p.get("appProtocol"));
        }
    }
}

fn endpoint(e: &mut Errors, x: &At, kind: &str) {
    let addresses = x.get("addresses");
    if addresses.is_empty() {
        e.required(&addresses, "must contain at least 1 address");
    } else if addresses.len() > 100 {
        e.too_many(&addresses, 100);
    }
    for a in addresses.items() {
        let ip = a.text().parse::<IpAddr>().ok();
        match kind {
            "IPv4" | "IPv6" => {
                if ip.is_none_or(|ip| ip.is_ipv4() != (kind == "IPv4")) {
                    e.invalid(&a, format!("must be an {kind} address"));
                }
                if ip.is_none() {
                    e.invalid(&a, "must be a valid IP address");
                }
                ordinary_address(e, &a);
            }
            "FQDN" => {
                let name = a.text().strip_suffix('.').unwrap_or(a.text());
                let texts = names::dns1123_subdomain(name);
                if texts.is_empty() && name.split('.').count() < 2 {
                    e.invalid(&a, "should be a domain with at least two segments separated by dots");
                }
                e.all(&a, texts);
            }
            _ => {}
        }
    }
    if x.get("nodeName").is_set() {
        e.dns_subdomain(&x.get("nodeName"));
    }
    let topology = x.get("deprecatedTopology");
    if topology.len() > 16 {
        e.too_many(&topology, 16);
    }
    labels(e, &topology);
    if x.get("hostname").is_set() {
        e.dns_label(&x.get("hostname"));
    }
    for field in ["forZones", "forNodes"] {
        let hints = x.get("hints");
        let list = hints.get(field);
        if list.len() > 8 {
            e.too_many(&list, 8);
            continue;
        }
        let mut seen = HashSet::new();
        for h in list.items() {
            let name = h.get("name");
            if !seen.insert(name.text()) {
                e.duplicate(&name);
            }
            let texts = if field == "forZones" {
                names::label_value(name.text())
            } else {
                names::dns1123_subdomain(name.text())
            };
            e.all(&name, texts);
        }
    }
}
