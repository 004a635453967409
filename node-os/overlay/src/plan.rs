//! What the network should be, from the Node objects. Pure.

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What matters here of a Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// IPv4 addresses, the InternalIP first.
    pub(crate) addresses: Vec<Ipv4Addr>,
    pub(crate) pod_cidr: Option<Ipv4Net>,
}

/// Another node with its pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    pub(crate) node_ip: Ipv4Addr,
    pub(crate) pod_cidr: Ipv4Net,
}

impl Peer {
    /// The peer's own address in its pod CIDR, next hop for all its pods.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.pod_cidr.network()
    }
    /// Hardware address of the peer's tunnel end.
    pub(crate) fn mac(&self) -> [u8; 6] {
        tunnel_mac(self.node_ip)
    }
}

/// Hardware address of a node's tunnel end: locally administered, made of the node's address,
/// so that nobody has to publish it.
pub(crate) fn tunnel_mac(node_ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = node_ip.octets();
    [0x0e, 0x6b, a, b, c, d]
}

/// What the network should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    pub(crate) own_cidr: Option<Ipv4Net>,
    pub(crate) peers: BTreeSet<Peer>,
    /// All addresses of all nodes, for the host firewall.
    pub(crate) node_addresses: BTreeSet<Ipv4Addr>,
}

/// Reads a Node object; nothing of it is trusted to be well-formed.
pub(crate) fn facts(node: &Node) -> Option<(String, NodeFacts)> {
    let name = node.metadata.name.clone()?;
    let all = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let mut addresses: Vec<(bool, Ipv4Addr)> = all
        .filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP")
        .filter_map(|a| Some((a.type_ != "InternalIP", a.address.parse().ok()?)))
        .collect();
    addresses.sort_by_key(|(external, _)| *external);
    let pod_cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).and_then(|c| c.parse().ok());
    Some((name, NodeFacts { addresses: addresses.into_iter().map(|(_, a)| a).collect(), pod_cidr }))
}

/// The network that these nodes need on node `own`.
pub(crate) fn plan(nodes: &BTreeMap<String, NodeFacts>, own: &str) -> Wanted {
    let peers = nodes
        .iter()
        .filter(|(name, _)| *name != own)
        .filter_map(|(_, node)| Some(Peer { node_ip: *node.addresses.first()?, pod_cidr: node.pod_cidr? }));
    Wanted {
        own_cidr: nodes.get(own).and_then(|n| n.pod_cidr),
        peers: peers.collect(),
        node_addresses: nodes.values().flat_map(|n| n.addresses.iter().copied()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, ip: &str, cidr: Option<&str>) -> (String, NodeFacts) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"podCIDR": cidr},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.9"},
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": ip}
            ]}
        }))
        .expect("a Node");
        facts(&node).expect("a named node")
    }

    #[test]
    fn peers_are_the_other_nodes_that_have_a_pod_cidr() {
        let nodes = [
            node("a", "10.0.0.1", Some("10.200.0.0/24")),
            node("b", "10.0.0.2", Some("10.200.1.0/24")),
            node("c", "10.0.0.3", None),
        ];
        let wanted = plan(&nodes.into(), "a");
        assert_eq!(wanted.own_cidr, Some("10.200.0.0/24".parse().expect("a CIDR")));
        let peers: Vec<_> = wanted.peers.iter().collect();
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].gateway(), Ipv4Addr::new(10, 200, 1, 0));
        assert_eq!(peers[0].mac(), [0x0e, 0x6b, 10, 0, 0, 2]);
        assert_eq!(wanted.node_addresses.len(), 4);
    }

    #[test]
    fn an_unknown_own_node_has_no_cidr() {
        assert_eq!(plan(&BTreeMap::new(), "a"), Wanted::default());
    }
}
