//! The host firewall, `inet kimg-host`: closed by default, from before the first interface is up.
//!
//! Open to all: the node API, 6443 on masters and the status page where there is one, NodePorts and 80/443 on workers, ICMP, DHCP answers.
//! Open to this cluster's nodes: everything, but for etcd, which is open to the other masters only ([`admit`]); overlay
//! fills the sets `node_v4` and `node_v6` from Node objects.
//! Strangers reach no service by its cluster address, and masters answer on no NodePort.
//! Pods, with the host's network or their own, reach neither the node API nor the metadata address, not by way
//! of a service either, nor by what the node's services fetch for them: of this node only init opens connections to
//! a metadata server. But for the pods whose service accounts `[metadata] allow` names: the kubelet fills the sets
//! `metadata_pods` and `metadata_groups`.

use anyhow::{Context, Result};
use node_metadata::sources::{SERVERS_V4, SERVERS_V6, WIRE_SERVER};
use node_metadata::{Cluster, METADATA_GROUPS, METADATA_PODS, Node, Overlay, Role, STATUS_PORT, StoreEngine};
use node_sys::nft::{
    Batch, CmpOp, Elem, Expr, Family, Hook, HookPoint, MapData, MetaKey, PayloadBase, Reg, Set, Verdict, types,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;

const TABLE: &str = "kimg-host";
/// Host side of each pod's link: `podHASH`.
const POD_LINKS: &[u8] = b"pod";
/// How deep pods' control groups lie: those of guaranteed pods, and those of the other classes.
const POD_LEVELS: [u32; 2] = [2, 3];
const TUNNEL: &str = "kimg.vxlan";
/// Between connection tracking (-200) and the first change of a destination (-100).
const BEFORE_NAT: i32 = -150;
const RTN_LOCAL: u32 = 2;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const API_PORT: u16 = 6443;
const WEB_PORTS: [u16; 2] = [80, 443];
/// Of clients, and of peers.
pub(crate) const ETCD_PORTS: [u16; 2] = [2379, 2380];
const MASTERS_V4: &str = "master_v4";
const MASTERS_V6: &str = "master_v6";
const DNS: u16 = 53;
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCP6_CLIENT: u16 = 546;
const NODE_PORTS: (u16, u16) = (30000, 32767);

/// Puts the rules in force, in one transaction. `cluster` is known from CONFIG before any interface is up.
pub fn close(cluster: &Cluster) -> Result<()> {
    // Anywhere else init would shut itself out from its metadata.
    let own = std::fs::read_to_string("/proc/self/cgroup").context("cannot read init's control group")?;
    anyhow::ensure!(own.trim() == "0::/kimg/init", "init is in the control group {}, not in /kimg/init", own.trim());
    let id = |path: &str| -> Result<u64> {
        Ok(std::fs::metadata(path).with_context(|| format!("the control group {path} is missing"))?.ino())
    };
    let groups = Groups { pods: id(crate::mounts::PODS_CGROUP)?, init: id(crate::mounts::INIT_CGROUP)? };
    rules(cluster, &groups).commit().context("cannot close the host firewall")
}

/// Opens etcd to the members on other masters: those that this one is told of, and those that the image knows, as there may
/// be more by now than when this machine was made.
pub fn admit(cluster: &Cluster, node: &Node) -> Result<()> {
    if node.etcd_members.is_empty() {
        return Ok(());
    }
    let baked = cluster.masters.iter().flat_map(|entry| entry.addresses.iter().copied());
    admit_only(&node.etcd_members.iter().copied().chain(baked).collect())
}

/// Opens etcd to these masters, and to no others any more.
pub fn admit_only(masters: &BTreeSet<IpAddr>) -> Result<()> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for master in masters {
        match master {
            IpAddr::V4(address) => v4.push(Elem::key(address.octets())),
            IpAddr::V6(address) => v6.push(Elem::key(address.octets())),
        }
    }
    let mut batch = Batch::new(Family::Inet, TABLE);
    for (set, elements) in [(MASTERS_V4, v4), (MASTERS_V6, v6)] {
        batch.flush_set(set);
        if !elements.is_empty() {
            batch.add_elements(set, 0, &elements);
        }
    }
    batch.commit().context("cannot open the host firewall to the other masters")
}

/// Ids of control groups, by which a socket's owner is told.
struct Groups {
    /// Of all pods, one level below the root.
    pods: u64,
    /// Of init itself, two levels below the root.
    init: u64,
}

fn rules(cluster: &Cluster, groups: &Groups) -> Batch {
    let mut batch = Batch::new(Family::Inet, TABLE);
    batch.replace_table();
    let sets = [
        ("node_v4", types::IPV4, 4),
        ("node_v6", types::IPV6, 16),
        (MASTERS_V4, types::IPV4, 4),
        (MASTERS_V6, types::IPV6, 16),
        (METADATA_PODS, types::IPV4, 4),
        (METADATA_GROUPS, types::CGROUP, 8),
    ];
    for (name, key_type, key_len) in sets {
        batch.add_set(&Set { name, id: 0, flags: 0, key_type, key_len, data: MapData::None, timeout_ms: None });
    }
    // The batch is one transaction: not even for a moment is a chain there without its rules.
    prerouting(&mut batch, cluster);
    input(&mut batch, cluster);
    forward(&mut batch, cluster);
    output(&mut batch, groups, cluster);
    batch
}

fn chain(batch: &mut Batch, name: &str, point: HookPoint, drop_by_default: bool) {
    batch.add_chain(name, Some(Hook { kind: "filter", point, priority: 0, drop_by_default }));
}

fn rule(batch: &mut Batch, chain: &str, parts: &[&[Expr]], verdict: Verdict) {
    let mut exprs: Vec<Expr> = parts.iter().flat_map(|part| part.iter().cloned()).collect();
    exprs.push(Expr::Verdict(verdict));
    batch.add_rule(chain, &exprs);
}

fn port(protocol: u8, port: u16) -> Vec<Expr> {
    [&Expr::l4proto(protocol)[..], &Expr::dport(port)[..]].concat()
}

/// What strangers may not ask for at all; later, behind a service's address, it would look like the service's pod.
fn prerouting(batch: &mut Batch, cluster: &Cluster) {
    let hook = Hook { kind: "filter", point: HookPoint::Prerouting, priority: BEFORE_NAT, drop_by_default: false };
    batch.add_chain("prerouting", Some(hook));
    rule(batch, "prerouting", &[&Expr::ct_state(ESTABLISHED_OR_RELATED)], Verdict::Accept);
    for from in [Expr::iif("lo"), from_pod_links(), Expr::iif(TUNNEL)] {
        rule(batch, "prerouting", &[&from], Verdict::Accept);
    }
    from_nodes(batch, "prerouting");
    if let ipnet::IpNet::V4(services) = cluster.service_cidr {
        let address = Expr::in_prefix4(Expr::load_daddr4(Reg(0)), services.network(), services.prefix_len(), CmpOp::Eq);
        rule(batch, "prerouting", &[&Expr::nfproto(IPV4), &address], Verdict::Drop);
    }
    if cluster.role == Role::Master {
        let to_this_node = [Expr::FibDaddrType(Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, RTN_LOCAL.to_ne_bytes().to_vec())];
        for protocol in [TCP, UDP] {
            rule(batch, "prerouting", &[&to_this_node, &Expr::l4proto(protocol), &node_port_range()], Verdict::Drop);
        }
    }
}

fn input(batch: &mut Batch, cluster: &Cluster) {
    chain(batch, "input", HookPoint::Input, true);
    let accept = || Verdict::Accept;
    // Before all else: a pod must not even go on with a connection to the node API.
    for from in [from_pod_links(), Expr::iif(TUNNEL)] {
        rule(batch, "input", &[&from, &port(TCP, node_api::PORT)], Verdict::Drop);
    }
    // The operator asks for it by its own address; a NodePort of another node's may be a pod's way around.
    rule(batch, "input", &[&port(TCP, node_api::PORT), &Expr::ct_dnat()], Verdict::Drop);
    rule(batch, "input", &[&Expr::ct_state(ESTABLISHED_OR_RELATED)], accept());
    rule(batch, "input", &[&Expr::iif("lo")], accept());
    if (cluster.role, cluster.store) == (Role::Master, StoreEngine::Etcd) {
        for number in ETCD_PORTS {
            for from in [from_pod_links(), Expr::iif(TUNNEL)] {
                rule(batch, "input", &[&from, &port(TCP, number)], Verdict::Drop);
            }
            from_sets(batch, "input", [MASTERS_V4, MASTERS_V6], &port(TCP, number));
            rule(batch, "input", &[&port(TCP, number)], Verdict::Drop);
        }
    }
    for from in [from_pod_links(), Expr::iif(TUNNEL)] {
        rule(batch, "input", &[&from], accept());
    }
    for protocol in [ICMP, ICMPV6] {
        rule(batch, "input", &[&Expr::l4proto(protocol)], accept());
    }
    let from_dhcp_server = [
        Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 2, into: Reg(0) },
        Expr::Cmp(Reg(0), CmpOp::Eq, DHCP_SERVER.to_be_bytes().to_vec()),
    ];
    rule(batch, "input", &[&port(UDP, DHCP_CLIENT), &from_dhcp_server], accept());
    // Servers and relays of DHCPv6 may answer from any port, and only over the link: from fe80::/10.
    let from_the_link = [
        Expr::Payload { base: PayloadBase::Network, offset: 8, len: 2, into: Reg(0) },
        Expr::Bitwise { reg: Reg(0), mask: vec![0xff, 0xc0], xor: vec![0; 2] },
        Expr::Cmp(Reg(0), CmpOp::Eq, vec![0xfe, 0x80]),
    ];
    rule(batch, "input", &[&Expr::nfproto(IPV6), &port(UDP, DHCP6_CLIENT), &from_the_link], accept());
    rule(batch, "input", &[&port(TCP, node_api::PORT)], accept());
    match cluster.role {
        Role::Master => {
            rule(batch, "input", &[&port(TCP, API_PORT)], accept());
            if cluster.status_page {
                rule(batch, "input", &[&port(TCP, STATUS_PORT)], accept());
            }
        }
        Role::Worker => {
            for number in WEB_PORTS {
                rule(batch, "input", &[&port(TCP, number)], accept());
            }
            for protocol in [TCP, UDP] {
                rule(batch, "input", &[&Expr::l4proto(protocol), &node_port_range()], accept());
            }
        }
    }
    // Service and host ports whose pod has the host's own network.
    rule(batch, "input", &[&Expr::ct_dnat()], accept());
    from_nodes(batch, "input");
}

/// A comparison with fewer bytes than a name has is one with its beginning.
fn from_pod_links() -> [Expr; 2] {
    [Expr::Meta(MetaKey::IifName, Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, POD_LINKS.to_vec())]
}

fn node_port_range() -> [Expr; 3] {
    [
        Expr::load_dport(Reg(0)),
        Expr::Cmp(Reg(0), CmpOp::Ge, NODE_PORTS.0.to_be_bytes().to_vec()),
        Expr::Cmp(Reg(0), CmpOp::Le, NODE_PORTS.1.to_be_bytes().to_vec()),
    ]
}

fn lookup(set: &str, key: Reg) -> Expr {
    Expr::Lookup { set: set.to_owned(), id: 0, key, invert: false }
}

fn from_nodes(batch: &mut Batch, chain: &str) {
    from_sets(batch, chain, ["node_v4", "node_v6"], &[]);
}

/// Lets in whose source is in one of the sets, of IPv4 and of IPv6, and which asks for `what`.
fn from_sets(batch: &mut Batch, chain: &str, [v4, v6]: [&str; 2], what: &[Expr]) {
    let source6 = Expr::Payload { base: PayloadBase::Network, offset: 8, len: 16, into: Reg(0) };
    for (family, source, set) in [(IPV4, Expr::load_saddr4(Reg(0)), v4), (IPV6, source6, v6)] {
        let in_set = [source, lookup(set, Reg(0))];
        rule(batch, chain, &[&Expr::nfproto(family), what, &in_set], Verdict::Accept);
    }
}

/// What no pod may reach: the metadata addresses and every node's API.
fn forbidden_to_pods() -> Vec<Vec<Expr>> {
    let wire_server = [&Expr::l4proto(TCP)[..], &to_v4(WIRE_SERVER)[..]].concat();
    // Some answer DNS too, which pods with the node's resolver ask for.
    let but_dns = |what: Vec<Expr>| {
        let no_udp = [Expr::Meta(MetaKey::L4Proto, Reg(0)), Expr::Cmp(Reg(0), CmpOp::Ne, vec![UDP])];
        [[&what[..], &no_udp[..]].concat(), [&what[..], &Expr::l4proto(UDP)[..], &no_dns()[..]].concat()]
    };
    metadata_servers().flat_map(but_dns).chain([wire_server, port(TCP, node_api::PORT)]).collect()
}

fn no_dns() -> [Expr; 2] {
    [Expr::load_dport(Reg(0)), Expr::Cmp(Reg(0), CmpOp::Ne, DNS.to_be_bytes().to_vec())]
}

fn metadata_servers() -> impl Iterator<Item = Vec<Expr>> {
    let v6 = SERVERS_V6.iter().map(|address| {
        let load = Expr::Payload { base: PayloadBase::Network, offset: 24, len: 16, into: Reg(0) };
        let is_it = [load, Expr::Cmp(Reg(0), CmpOp::Eq, address.octets().to_vec())];
        [&Expr::nfproto(IPV6)[..], &is_it[..]].concat()
    });
    SERVERS_V4.into_iter().map(to_v4).chain(v6)
}

fn to_v4(address: Ipv4Addr) -> Vec<Expr> {
    let is_it = Expr::in_prefix4(Expr::load_daddr4(Reg(0)), address, 32, CmpOp::Eq);
    [&Expr::nfproto(IPV4)[..], &is_it[..]].concat()
}

fn forward(batch: &mut Batch, cluster: &Cluster) {
    chain(batch, "forward", HookPoint::Forward, true);
    if !cluster.metadata_allow.is_empty() {
        let of_set = [Expr::load_saddr4(Reg(0)), lookup(METADATA_PODS, Reg(0))];
        for what in metadata_servers() {
            rule(batch, "forward", &[&from_pod_links(), &Expr::nfproto(IPV4), &of_set, &what], Verdict::Accept);
        }
    }
    for what in forbidden_to_pods() {
        rule(batch, "forward", &[&what], Verdict::Drop);
    }
    rule(batch, "forward", &[&Expr::ct_state(ESTABLISHED_OR_RELATED)], Verdict::Accept);
    for from in [from_pod_links(), Expr::iif(TUNNEL)] {
        rule(batch, "forward", &[&from], Verdict::Accept);
    }
    rule(batch, "forward", &[&Expr::ct_dnat()], Verdict::Accept);
    from_nodes(batch, "forward");
    if let (Overlay::HostGw, ipnet::IpNet::V4(pods)) = (cluster.overlay, cluster.pod_cidr) {
        let source = Expr::in_prefix4(Expr::load_saddr4(Reg(0)), pods.network(), pods.prefix_len(), CmpOp::Eq);
        rule(batch, "forward", &[&Expr::nfproto(IPV4), &source], Verdict::Accept);
    }
}

/// Pods with the host's network are told by the control group of the socket. The node's services, which act for pods
/// too (probes, hooks, images, webhooks), open no connection to a metadata server but for DNS, which some give.
fn output(batch: &mut Batch, groups: &Groups, cluster: &Cluster) {
    chain(batch, "output", HookPoint::Output, false);
    let of_group = |level: u32, id: u64| {
        [Expr::SocketCgroup { level, into: Reg(8) }, Expr::Cmp(Reg(8), CmpOp::Eq, id.to_ne_bytes().to_vec())]
    };
    if !cluster.metadata_allow.is_empty() {
        for what in metadata_servers() {
            for level in POD_LEVELS {
                let of_set = [Expr::SocketCgroup { level, into: Reg(8) }, lookup(METADATA_GROUPS, Reg(8))];
                rule(batch, "output", &[&what, &of_set], Verdict::Accept);
            }
        }
    }
    for what in forbidden_to_pods() {
        rule(batch, "output", &[&what, &of_group(1, groups.pods)], Verdict::Drop);
    }
    rule(batch, "output", &[&of_group(2, groups.init)], Verdict::Accept);
    for what in metadata_servers().chain([to_v4(WIRE_SERVER)]) {
        batch.add_rule("output", &[&what[..], &Expr::l4proto(TCP)[..], &no_dns()[..], &[Expr::RejectAdmin]].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(role: Role, overlay: Overlay) -> Cluster {
        Cluster {
            name: "demo".into(),
            role,
            domain: "cluster.local".into(),
            api_names: vec![],
            api_addresses: vec![],
            pod_cidr: "10.200.0.0/16".parse().unwrap(),
            service_cidr: "10.32.0.0/24".parse().unwrap(),
            dns_address: "10.32.0.10".parse().unwrap(),
            overlay,
            store: StoreEngine::Embedded,
            ntp_servers: vec![],
            metadata_allow: vec![],
            backup_every_s: 600,
            certificate_life_s: node_metadata::CERTIFICATE_LIFE_S,
            registry: None,
            components: Default::default(),
            status_page: role == Role::Master,
            masters: vec![],
            logs: None,
            build: Default::default(),
        }
    }

    /// A rule that the kernel refuses would keep every node from its network.
    #[test]
    fn the_kernel_takes_the_rules() {
        for (role, overlay) in [(Role::Master, Overlay::Vxlan), (Role::Worker, Overlay::HostGw)] {
            let thread = std::thread::spawn(move || {
                if let Err(error) = node_sys::netns::isolate_thread() {
                    return test_spoil::skipped(&format!("a network namespace cannot be made: {error}"));
                }
                let mut probe = Batch::new(Family::Inet, "probe");
                probe.replace_table();
                if let Err(error) = probe.commit() {
                    return test_spoil::skipped(&format!("this kernel has no nf_tables: {error}"));
                }
                for store in [StoreEngine::Embedded, StoreEngine::Etcd] {
                    let cluster = Cluster { store, ..cluster(role, overlay) };
                    rules(&cluster, &Groups { pods: 1, init: 2 }).commit().unwrap();
                    let node = r#"{"name":"m","role":"master","addresses":[],"api-endpoints":[],"source":"",
                        "etcd-members":["10.77.0.11","10.77.0.10","fd00::1"]}"#;
                    admit(&cluster, &serde_json::from_str(node).unwrap()).unwrap();
                    // One of them has another address now.
                    admit_only(&["10.77.0.9", "fd00::2"].map(|address| address.parse().unwrap()).into()).unwrap();
                    let rules = node_sys::nft_dump::dump().unwrap();
                    assert!(rules.contains("10.77.0.9") && !rules.contains("10.77.0.11"), "{rules}");
                    admit(&cluster, &serde_json::from_str(node).unwrap()).unwrap();
                }
                let rules = node_sys::nft_dump::dump().unwrap();
                assert!(rules.contains("10.77.0.11") && rules.contains("fd00::1"), "{rules}");
                assert_eq!(rules.matches("@master_v4").count(), if role == Role::Master { 2 } else { 0 }, "{rules}");
            });
            thread.join().unwrap();
        }
    }
}
