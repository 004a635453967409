//! What the cluster's zone answers, from Services and EndpointSlices. Pure.
//! The rules are those of the DNS specification for Kubernetes services, version 1.1.0,
//! and of CoreDNS's kubernetes plugin where the specification is silent.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Something that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    A(Ipv4Addr),
    Srv { port: u16, target: String },
    Cname(String),
    Ptr(String),
    Txt(String),
}

/// What a name has; the asked type is looked for among `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The name exists, with these records (perhaps none: an empty non-terminal).
    Name(Vec<Data>),
    /// The name does not exist in a zone that is ours.
    Missing,
    /// Not our zone: ask upstream.
    Foreign,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ServiceEntry {
    cluster_ip: Option<Ipv4Addr>,
    external_name: Option<String>,
    /// Name, protocol (lower case) and number.
    ports: Vec<(String, String, u16)>,
    publish_not_ready: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Backend {
    ip: Ipv4Addr,
    /// The endpoint's host name, or its address with dashes.
    label: String,
    ready: bool,
    ports: Vec<(String, String, u16)>,
}

/// The zone.
#[derive(Debug)]
pub struct Zone {
    domain: String,
    services: BTreeMap<(String, String), ServiceEntry>,
    backends: BTreeMap<(String, String), Vec<Backend>>,
    namespaces: BTreeSet<String>,
    reverse: BTreeMap<Ipv4Addr, BTreeSet<String>>,
}

impl Zone {
    /// Builds the zone anew. `domain` has no dot at its end.
    pub fn new<'a>(
        domain: &str,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
        namespaces: impl Iterator<Item = &'a str>,
    ) -> Zone {
        let mut zone = Zone {
            domain: domain.to_ascii_lowercase(),
            services: services.filter_map(service_entry).collect(),
            backends: BTreeMap::new(),
            namespaces: namespaces.map(str::to_owned).collect(),
            reverse: BTreeMap::new(),
        };
        for slice in slices.filter(|s| s.address_type == "IPv4") {
            if let Some((key, mut list)) = backends(slice) {
                zone.backends.entry(key).or_default().append(&mut list);
            }
        }
        zone.fill_reverse();
        zone
    }

    fn fill_reverse(&mut self) {
        for ((namespace, name), service) in &self.services {
            let base = format!("{name}.{namespace}.svc.{}", self.domain);
            if let Some(ip) = service.cluster_ip {
                self.reverse.entry(ip).or_default().insert(base.clone());
            } else if service.external_name.is_none() {
                for backend in self.backends.get(&(namespace.clone(), name.clone())).into_iter().flatten() {
                    if backend.ready || service.publish_not_ready {
                        self.reverse.entry(backend.ip).or_default().insert(format!("{}.{base}", backend.label));
                    }
                }
            }
        }
    }

    /// Name of the zone, without a dot at its end.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Looks a name up; lower case, without a dot at its end.
    pub fn find(&self, name: &str) -> Found {
        if let Some(address) = reverse_address(name) {
            return match self.reverse.get(&address) {
                Some(names) => Found::Name(names.iter().map(|n| Data::Ptr(n.clone())).collect()),
                None => Found::Foreign,
            };
        }
        let Some(rest) = name.strip_suffix(&self.domain) else { return Found::Foreign };
        let labels: Vec<&str> = match rest.strip_suffix('.') {
            None if rest.is_empty() => Vec::new(),
            None => return Found::Foreign,
            Some(rest) => rest.split('.').collect(),
        };
        match labels.as_slice() {
            [] | ["svc" | "pod"] => Found::Name(Vec::new()),
            ["dns-version"] => Found::Name(vec![Data::Txt("1.1.0".into())]),
            [namespace, "svc" | "pod"] => self.known_namespace(namespace, Vec::new()),
            [ip, namespace, "pod"] => match dashed(ip) {
                Some(ip) => self.known_namespace(namespace, vec![Data::A(ip)]),
                None => Found::Missing,
            },
            [service, namespace, "svc"] => self.service(service, namespace),
            [endpoint, service, namespace, "svc"] => self.endpoint(endpoint, service, namespace),
            [port, protocol, service, namespace, "svc"] => self.port(port, protocol, service, namespace),
            _ => Found::Missing,
        }
    }

    fn known_namespace(&self, namespace: &str, data: Vec<Data>) -> Found {
        if self.namespaces.contains(namespace) { Found::Name(data) } else { Found::Missing }
    }

    fn entry(&self, service: &str, namespace: &str) -> Option<(&ServiceEntry, Vec<&Backend>)> {
        let key = (namespace.to_owned(), service.to_owned());
        let entry = self.services.get(&key)?;
        let all = self.backends.get(&key).into_iter().flatten();
        Some((entry, all.filter(|b| b.ready || entry.publish_not_ready).collect()))
    }

    fn service(&self, service: &str, namespace: &str) -> Found {
        let Some((entry, backends)) = self.entry(service, namespace) else { return Found::Missing };
        if let Some(target) = &entry.external_name {
            return Found::Name(vec![Data::Cname(target.clone())]);
        }
        if let Some(ip) = entry.cluster_ip {
            let base = format!("{service}.{namespace}.svc.{}", self.domain);
            let srv = entry.ports.iter().map(|(_, _, port)| Data::Srv { port: *port, target: base.clone() });
            return Found::Name(std::iter::once(Data::A(ip)).chain(srv).collect());
        }
        let addresses: BTreeSet<Data> = backends.iter().map(|b| Data::A(b.ip)).collect();
        // A headless service without endpoints does not exist for a resolver.
        if addresses.is_empty() { Found::Missing } else { Found::Name(addresses.into_iter().collect()) }
    }

    fn endpoint(&self, endpoint: &str, service: &str, namespace: &str) -> Found {
        // `_tcp.web.ns.svc`: an empty non-terminal above the ports.
        if endpoint.starts_with('_') {
            let known = self.entry(service, namespace).is_some();
            return if known { Found::Name(Vec::new()) } else { Found::Missing };
        }
        let Some((_, backends)) = self.entry(service, namespace) else { return Found::Missing };
        let addresses: BTreeSet<Data> =
            backends.iter().filter(|b| b.label == endpoint).map(|b| Data::A(b.ip)).collect();
        if addresses.is_empty() { Found::Missing } else { Found::Name(addresses.into_iter().collect()) }
    }

    fn port(&self, port: &str, protocol: &str, service: &str, namespace: &str) -> Found {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
            return Found::Missing;
        };
        let Some((entry, backends)) = self.entry(service, namespace) else { return Found::Missing };
        let base = format!("{service}.{namespace}.svc.{}", self.domain);
        let matches = |p: &&(String, String, u16)| p.0 == port && p.1 == protocol;
        let records: BTreeSet<Data> = if entry.cluster_ip.is_some() {
            entry.ports.iter().filter(matches).map(|p| Data::Srv { port: p.2, target: base.clone() }).collect()
        } else {
            let of = |b: &&Backend| {
                let target = format!("{}.{base}", b.label);
                b.ports
                    .iter()
                    .filter(matches)
                    .map(|p| Data::Srv { port: p.2, target: target.clone() })
                    .collect::<Vec<_>>()
            };
            backends.iter().flat_map(of).collect()
        };
        if records.is_empty() { Found::Missing } else { Found::Name(records.into_iter().collect()) }
    }
}

fn service_entry(service: &Service) -> Option<((String, String), ServiceEntry)> {
    let spec = service.spec.as_ref()?;
    let key = (service.metadata.namespace.clone()?, service.metadata.name.clone()?);
    let external = spec.type_.as_deref() == Some("ExternalName");
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        let protocol = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        Some((p.name.clone().unwrap_or_default(), protocol, u16::try_from(p.port).ok()?))
    });
    Some((
        key,
        ServiceEntry {
            cluster_ip: spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|_| !external),
            external_name: spec
                .external_name
                .clone()
                .filter(|_| external)
                .map(|n| n.trim_end_matches('.').to_ascii_lowercase()),
            ports: ports.collect(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        },
    ))
}

fn backends(slice: &EndpointSlice) -> Option<((String, String), Vec<Backend>)> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?.clone();
    let key = (slice.metadata.namespace.clone()?, name);
    let ports: Vec<(String, String, u16)> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            let protocol = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            Some((p.name.clone().unwrap_or_default(), protocol, u16::try_from(p.port?).ok()?))
        })
        .collect();
    let list = slice.endpoints.iter().flatten().filter_map(|e| {
        let ip: Ipv4Addr = e.addresses.first()?.parse().ok()?;
        let label = e.hostname.clone().unwrap_or_else(|| ip.to_string().replace('.', "-"));
        let ready = e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        Some(Backend { ip, label, ready, ports: ports.clone() })
    });
    Some((key, list.collect()))
}

fn dashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok()
}

/// The address that a name in `in-addr.arpa` asks for.
fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> =
        name.strip_suffix(".in-addr.arpa")?.split('.').map(|o| o.parse().ok()).collect::<Option<_>>()?;
    let [d, c, b, a]: [u8; 4] = octets.try_into().ok()?;
    Some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone() -> Zone {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "web", "namespace": "a"},
             "spec": {"clusterIP": "10.32.0.5", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}},
            {"metadata": {"name": "db", "namespace": "a"},
             "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}},
            {"metadata": {"name": "lone", "namespace": "a"}, "spec": {"clusterIP": "None"}},
            {"metadata": {"name": "out", "namespace": "a"}, "spec": {"type": "ExternalName", "externalName": "Example.COM."}}
        ]))
        .expect("services");
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"metadata": {"name": "db-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "db"}},
             "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
             "endpoints": [{"addresses": ["10.200.1.4"], "hostname": "db-0"},
                           {"addresses": ["10.200.2.4"], "conditions": {"ready": false}},
                           {"addresses": ["10.200.2.5"]}]}
        ]))
        .expect("slices");
        Zone::new("cluster.local", services.iter(), slices.iter(), ["a", "default"].into_iter())
    }

    #[test]
    fn names_stand_for_what_the_specification_says() {
        let a = |a, b, c, d| Data::A(Ipv4Addr::new(a, b, c, d));
        let srv = |port, target: &str| Data::Srv { port, target: target.into() };
        let zone = zone();
        for (name, expected) in [
            ("web.a.svc.cluster.local", Found::Name(vec![a(10, 32, 0, 5), srv(80, "web.a.svc.cluster.local")])),
            ("_http._tcp.web.a.svc.cluster.local", Found::Name(vec![srv(80, "web.a.svc.cluster.local")])),
            ("_http._udp.web.a.svc.cluster.local", Found::Missing),
            ("_tcp.web.a.svc.cluster.local", Found::Name(vec![])),
            ("db.a.svc.cluster.local", Found::Name(vec![a(10, 200, 1, 4), a(10, 200, 2, 5)])),
            ("db-0.db.a.svc.cluster.local", Found::Name(vec![a(10, 200, 1, 4)])),
            ("10-200-2-5.db.a.svc.cluster.local", Found::Name(vec![a(10, 200, 2, 5)])),
            (
                "_sql._tcp.db.a.svc.cluster.local",
                Found::Name(vec![
                    srv(5432, "10-200-2-5.db.a.svc.cluster.local"),
                    srv(5432, "db-0.db.a.svc.cluster.local"),
                ]),
            ),
            ("lone.a.svc.cluster.local", Found::Missing),
            ("out.a.svc.cluster.local", Found::Name(vec![Data::Cname("example.com".into())])),
            ("none.a.svc.cluster.local", Found::Missing),
            ("a.svc.cluster.local", Found::Name(vec![])),
            ("zzz.svc.cluster.local", Found::Missing),
            ("10-200-1-4.a.pod.cluster.local", Found::Name(vec![a(10, 200, 1, 4)])),
            ("10-200-1-4.zzz.pod.cluster.local", Found::Missing),
            ("dns-version.cluster.local", Found::Name(vec![Data::Txt("1.1.0".into())])),
            ("5.0.32.10.in-addr.arpa", Found::Name(vec![Data::Ptr("web.a.svc.cluster.local".into())])),
            ("4.1.200.10.in-addr.arpa", Found::Name(vec![Data::Ptr("db-0.db.a.svc.cluster.local".into())])),
            ("1.1.1.1.in-addr.arpa", Found::Foreign),
            ("example.com", Found::Foreign),
            ("notcluster.local", Found::Foreign),
        ] {
            assert_eq!(zone.find(name), expected, "{name}");
        }
    }
}
