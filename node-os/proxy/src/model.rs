//! What kube-proxy knows of a Service port, made from Service and EndpointSlice objects. Pure.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Services with this label belong to another proxy.
pub(crate) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// `namespace/name` of a Service.
pub(crate) type ServiceKey = String;

/// A place where a Service port is answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) ip: Ipv4Addr,
    pub(crate) port: u16,
    /// On this node.
    pub(crate) local: bool,
}

/// One port of one Service, with all that its rules need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// IP protocol number.
    pub(crate) protocol: u8,
    pub(crate) cluster_ip: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// External and load-balancer addresses.
    pub(crate) external_ips: Vec<Ipv4Addr>,
    /// Prefixes that may use the load-balancer addresses; empty means all.
    pub(crate) source_ranges: Vec<(Ipv4Addr, u8)>,
    pub(crate) affinity_secs: Option<u32>,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    /// Usable endpoints, sorted.
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Port {
    /// Endpoints for clients inside the cluster.
    pub(crate) fn internal(&self) -> Vec<&Endpoint> {
        self.endpoints.iter().filter(|e| e.local || !self.internal_local).collect()
    }
    /// Endpoints for clients outside the cluster.
    pub(crate) fn external(&self) -> Vec<&Endpoint> {
        self.endpoints.iter().filter(|e| e.local || !self.external_local).collect()
    }
}

/// All ports, by `namespace/name:port/PROTOCOL`.
pub(crate) type Ports = BTreeMap<String, Port>;

/// The ports of one Service, from the Service and its slices.
pub(crate) fn ports_of(service: &Service, slices: &[&EndpointSlice], node: &str) -> Ports {
    let mut out = Ports::new();
    let (Some(spec), Some(name), Some(namespace)) =
        (&service.spec, &service.metadata.name, &service.metadata.namespace)
    else {
        return out;
    };
    let foreign = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    let (false, Some(cluster_ip)) = (foreign, cluster_ip) else { return out };
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let affinity_secs = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
    });
    for port in spec.ports.iter().flatten() {
        let Some((protocol, protocol_name)) = protocol(port) else { continue };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let port_name = port.name.as_deref().unwrap_or("");
        let key = format!("{namespace}/{name}:{port_name}/{protocol_name}");
        let value = Port {
            protocol,
            cluster_ip,
            port: number,
            node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
            external_ips: external_ips(service),
            source_ranges: spec.load_balancer_source_ranges.iter().flatten().filter_map(|r| prefix(r)).collect(),
            affinity_secs,
            internal_local: local(&spec.internal_traffic_policy),
            external_local: local(&spec.external_traffic_policy),
            endpoints: endpoints(slices, port_name, protocol_name, node),
        };
        out.insert(key, value);
    }
    out
}

/// `namespace/name` of the Service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ServiceKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_ref()?))
}

fn protocol(port: &ServicePort) -> Option<(u8, &'static str)> {
    match port.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => Some((6, "TCP")),
        "UDP" => Some((17, "UDP")),
        "SCTP" => Some((132, "SCTP")),
        _ => None,
    }
}

fn external_ips(service: &Service) -> Vec<Ipv4Addr> {
    let spec = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten());
    let all: BTreeSet<Ipv4Addr> = spec.filter_map(|ip| ip.parse().ok()).chain(balancer_ips(service)).collect();
    all.into_iter().collect()
}

/// Addresses of the Service's load balancer that are answered here.
fn balancer_ips(service: &Service) -> BTreeSet<Ipv4Addr> {
    let ingress = service.status.iter().flat_map(|s| s.load_balancer.iter().flat_map(|l| l.ingress.iter().flatten()));
    // Proxy mode means that the balancer itself wants the traffic (KEP 1860).
    let ours = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    ours.filter_map(|ip| ip.parse().ok()).collect()
}

/// Whether its load balancer has an address now.
pub(crate) fn has_address(service: &Service) -> bool {
    !balancer_ips(service).is_empty()
}

/// Whether the nodes themselves are its load balancer: nobody else's class is named.
pub(crate) fn is_balanced(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.type_.as_deref()) == Some("LoadBalancer")
        && spec.is_some_and(|s| s.load_balancer_class.is_none())
}

fn prefix(text: &str) -> Option<(Ipv4Addr, u8)> {
    let net: ipnet::Ipv4Net = text.trim().parse().ok()?;
    Some((net.network(), net.prefix_len()))
}

/// Ready endpoints; where none is ready, those that still serve while they end (KEP 1669).
fn endpoints(slices: &[&EndpointSlice], port_name: &str, protocol: &str, node: &str) -> Vec<Endpoint> {
    let mut ready = BTreeSet::new();
    let mut ending = BTreeSet::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let ports = slice.ports.iter().flatten().filter(|p| {
            p.name.as_deref().unwrap_or("") == port_name && p.protocol.as_deref().unwrap_or("TCP") == protocol
        });
        for number in ports.filter_map(|p| p.port.and_then(|n| u16::try_from(n).ok())) {
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
                let local = endpoint.node_name.as_deref() == Some(node);
                let conditions = endpoint.conditions.as_ref();
                let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let serves = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
                let value = Endpoint { ip, port: number, local };
                if is_ready {
                    ready.insert(value);
                } else if serves {
                    ending.insert(value);
                }
            }
        }
    }
    if ready.is_empty() { ending } else { ready }.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"clusterIP": "10.32.0.5", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
        for (k, v) in extra.as_object().expect("an object") {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a"}, "spec": spec})).expect("a Service")
    }

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints
        }))
        .expect("a slice")
    }

    #[test]
    fn ready_endpoints_are_used_and_ending_ones_only_without_them() {
        let both = slice(json!([
            {"addresses": ["10.1.0.2"], "nodeName": "n1", "conditions": {"ready": true}},
            {"addresses": ["10.1.1.2"], "nodeName": "n2", "conditions": {"ready": false, "serving": true, "terminating": true}}
        ]));
        let ports = ports_of(&service(json!({})), &[&both], "n1");
        let port = &ports["a/web:http/TCP"];
        assert_eq!(port.endpoints, [Endpoint { ip: [10, 1, 0, 2].into(), port: 8080, local: true }]);

        let ending = slice(json!([
            {"addresses": ["10.1.1.2"], "nodeName": "n2", "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.1.1.3"], "nodeName": "n2", "conditions": {"ready": false, "serving": false}}
        ]));
        let ports = ports_of(&service(json!({})), &[&ending], "n1");
        assert_eq!(
            ports["a/web:http/TCP"].endpoints,
            [Endpoint { ip: [10, 1, 1, 2].into(), port: 8080, local: false }]
        );
    }

    #[test]
    fn headless_and_foreign_services_have_no_rules() {
        assert!(ports_of(&service(json!({"clusterIP": "None"})), &[], "n1").is_empty());
        let mut foreign = service(json!({}));
        foreign.metadata.labels = Some([(PROXY_NAME_LABEL.to_owned(), "x".to_owned())].into());
        assert!(ports_of(&foreign, &[], "n1").is_empty());
    }

    #[test]
    fn traffic_policies_and_affinity_are_read() {
        let s = service(json!({"internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}));
        let two = slice(
            json!([{"addresses": ["10.1.0.2"], "nodeName": "n1"}, {"addresses": ["10.1.1.2"], "nodeName": "n2"}]),
        );
        let ports = ports_of(&s, &[&two], "n1");
        let port = &ports["a/web:http/TCP"];
        assert_eq!((port.internal().len(), port.external().len(), port.affinity_secs), (1, 2, Some(10_800)));
    }
}
