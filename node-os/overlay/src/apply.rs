//! Brings this node's network to what the plan says.

use crate::links::Links;
use crate::plan::{Wanted, tunnel_mac};
use crate::{Flags, Mode};
use anyhow::Context;
use ipnet::Ipv4Net;
use node_sys::nft::{Batch, CmpOp, Elem, Expr, Family, Hook, HookPoint, MapData, MetaKey, Reg, Set, Verdict, types};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

const TUNNEL: &str = "kimg.vxlan";
/// Carries the node's own addresses toward pods and services.
const OWN: &str = "kube-dns";
/// Outer IPv4, UDP, VXLAN and inner Ethernet header.
const VXLAN_OVERHEAD: u32 = 50;
const HOST_TABLE: &str = "kimg-host";
const NODE_SET: &str = "node_v4";

/// This node's network.
#[derive(Debug)]
pub(crate) struct Network {
    links: Links,
    mode: Mode,
    node_ip: Ipv4Addr,
    cluster: Ipv4Net,
    services: Ipv4Net,
    conf_dir: Option<PathBuf>,
    uplink: u32,
    mtu: u32,
    own: u32,
    /// What the host firewall was told last.
    firewall: Option<std::collections::BTreeSet<Ipv4Addr>>,
}

impl Network {
    /// What does not depend on other nodes: forwarding, the node's own interface, masquerading.
    pub(crate) async fn new(flags: &Flags) -> anyhow::Result<Network> {
        let forward = "/proc/sys/net/ipv4/ip_forward";
        std::fs::write(forward, "1").with_context(|| format!("writing {forward}"))?;
        let links = Links::open()?;
        let (uplink, uplink_mtu) = links.carrier_of(flags.node_ip).await?;
        let own = links.dummy(OWN).await?;
        if let Some(dns) = flags.dns_address {
            links.address(own, dns).await?;
        }
        let mtu = match flags.mode {
            Mode::Vxlan => uplink_mtu.saturating_sub(VXLAN_OVERHEAD),
            Mode::HostGw => uplink_mtu,
        };
        masquerade(flags.cluster_cidr).commit().context("writing the masquerade rules")?;
        Ok(Network {
            links,
            mode: flags.mode,
            node_ip: flags.node_ip,
            cluster: flags.cluster_cidr,
            services: flags.service_cidr,
            conf_dir: flags.cni_conf_dir.clone(),
            uplink,
            mtu,
            own,
            firewall: None,
        })
    }

    /// Brings everything that follows other nodes to the plan.
    pub(crate) async fn bring_to(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        self.tell_firewall(wanted)?;
        let Some(own_cidr) = wanted.own_cidr else { return Ok(()) };
        let source = own_cidr.network();
        self.links.address(self.own, source).await?;
        self.links.direct_route(self.services, self.own, source).await?;
        // A pod's address that is nobody's must not leave the cluster, where a stranger may have it.
        self.links.unreachable(self.cluster).await?;
        let mut keep = vec![self.services, self.cluster];
        match self.mode {
            Mode::Vxlan => {
                let tunnel = self.links.vxlan(TUNNEL, self.node_ip, tunnel_mac(self.node_ip), self.mtu).await?;
                for peer in &wanted.peers {
                    self.links.tunnel_to(tunnel, peer).await?;
                    self.links.peer_route(peer, peer.gateway(), tunnel, source).await?;
                }
                let peers: Vec<_> = wanted.peers.iter().collect();
                self.links.prune_tunnels(tunnel, &peers).await?;
            }
            Mode::HostGw => {
                self.links.delete(TUNNEL).await?;
                for peer in &wanted.peers {
                    self.links.peer_route(peer, peer.node_ip, self.uplink, source).await?;
                }
            }
        }
        keep.extend(wanted.peers.iter().map(|p| p.pod_cidr));
        self.links.prune_routes(&keep).await?;
        match &self.conf_dir {
            Some(dir) => write_conf(dir, own_cidr, self.cluster, self.mtu),
            None => Ok(()),
        }
    }

    fn tell_firewall(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        if self.firewall.as_ref() == Some(&wanted.node_addresses) {
            return Ok(());
        }
        let mut batch = Batch::new(Family::Inet, HOST_TABLE);
        batch.flush_set(NODE_SET);
        let elems: Vec<Elem> = wanted.node_addresses.iter().map(|a| Elem::key(a.octets())).collect();
        batch.add_elements(NODE_SET, 0, &elems);
        batch.commit().context("telling the host firewall the nodes' addresses")?;
        self.firewall = Some(wanted.node_addresses.clone());
        Ok(())
    }
}

/// Pods that talk to the world outside the pod network do it under the node's address.
/// The table also holds the host ports, whose elements the CNI plugin writes.
fn masquerade(cluster: Ipv4Net) -> Batch {
    let mut batch = Batch::new(Family::Inet, cni_table::NAME);
    // Elements of pods that run already must survive a restart of this component.
    batch.add_table();
    let key_type = types::concat2(types::PROTO, types::PORT);
    let data = MapData::Bytes(types::concat2(types::IPV4, types::PORT), 8);
    batch.add_set(&Set { name: cni_table::HOST_PORTS, id: 0, flags: 0, key_type, key_len: 8, data, timeout_ms: None });

    let hook = |kind, point, priority| Some(Hook { kind, point, priority, drop_by_default: false });
    for (chain, point) in [("hostports-in", HookPoint::Prerouting), ("hostports-out", HookPoint::Output)] {
        // After kube-proxy (-100): a service wins over a host port.
        batch.add_chain(chain, hook("nat", point, -90));
        batch.flush_chain(chain);
        const RTN_LOCAL: u32 = 2;
        let mut rule = Expr::nfproto(2).to_vec();
        rule.extend([Expr::FibDaddrType(Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, RTN_LOCAL.to_ne_bytes().to_vec())]);
        rule.extend(Expr::in_prefix4(Expr::load_daddr4(Reg(0)), Ipv4Addr::new(127, 0, 0, 0), 8, CmpOp::Ne));
        rule.extend([
            Expr::Meta(MetaKey::L4Proto, Reg(0)),
            Expr::load_dport(Reg(1)),
            Expr::Map { set: cni_table::HOST_PORTS.into(), id: 0, key: Reg(0), into: Reg(2) },
            Expr::Dnat { v6: false, addr: Reg(2), port: Some(Reg(3)) },
        ]);
        batch.add_rule(chain, &rule);
    }
    batch.add_chain("masquerade", hook("nat", HookPoint::Postrouting, 100));
    batch.flush_chain("masquerade");
    let (net, len) = (cluster.network(), cluster.prefix_len());
    let mut rule = Expr::nfproto(2).to_vec();
    rule.extend(Expr::in_prefix4(Expr::load_saddr4(Reg(0)), net, len, CmpOp::Eq));
    rule.extend(Expr::in_prefix4(Expr::load_daddr4(Reg(0)), net, len, CmpOp::Ne));
    rule.push(Expr::Masquerade);
    batch.add_rule("masquerade", &rule);
    // Packets that a pod sends to the world must not leave unmasqueraded when conntrack gave up on them.
    batch.add_chain("no-leak", hook("filter", HookPoint::Postrouting, 110));
    batch.flush_chain("no-leak");
    let mut leak = Expr::nfproto(2).to_vec();
    const INVALID: u32 = 1;
    leak.extend(Expr::ct_state(INVALID));
    leak.extend(Expr::in_prefix4(Expr::load_saddr4(Reg(0)), net, len, CmpOp::Eq));
    leak.extend(Expr::in_prefix4(Expr::load_daddr4(Reg(0)), net, len, CmpOp::Ne));
    leak.push(Expr::Verdict(Verdict::Drop));
    batch.add_rule("no-leak", &leak);
    batch
}

/// Names that this component and the CNI plugin share through the kernel.
mod cni_table {
    pub(super) const NAME: &str = "kimg-cni";
    pub(super) const HOST_PORTS: &str = "host-ports";
}

/// Writes the plugin's configuration, whole or not at all; unchanged content is left alone.
fn write_conf(dir: &Path, own: Ipv4Net, cluster: Ipv4Net, mtu: u32) -> anyhow::Result<()> {
    let conf = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "kimg",
        "plugins": [{
            "type": "kimg",
            "podCIDR": own,
            "clusterCIDR": cluster,
            "mtu": mtu,
            "capabilities": {"portMappings": true}
        }]
    });
    let text = format!("{conf:#}\n");
    let path = dir.join("10-kimg.conflist");
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let temporary = dir.join(".10-kimg.new");
    std::fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, &path).with_context(|| format!("writing {}", path.display()))
}
