//! Interfaces, addresses, routes and neighbours of this node, by rtnetlink.
//! Everything may be said again: what is there already is no error.

use crate::plan::Peer;
use anyhow::{Context, anyhow};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkDummy, LinkUnspec, LinkVxlan, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};

/// Routes of this component carry this protocol number, so that foreign ones are left alone.
const ROUTE_PROTOCOL: u8 = 0x6b;
const EEXIST: i32 = 17;

/// The kernel's network, as this component changes it.
#[derive(Debug, Clone)]
pub(crate) struct Links(Handle);

impl Links {
    /// Opens the netlink socket.
    pub(crate) fn open() -> anyhow::Result<Links> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        tokio::spawn(connection);
        Ok(Links(handle))
    }

    /// Index of an interface, if there is one of that name.
    pub(crate) async fn index(&self, name: &str) -> anyhow::Result<Option<u32>> {
        let mut links = self.0.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|l| l.header.index)),
            Err(error) if is(&error, 19) => Ok(None),
            Err(error) => Err(anyhow!(error)).with_context(|| format!("looking for interface {name}")),
        }
    }

    /// The interface that carries an address, and its MTU.
    pub(crate) async fn carrier_of(&self, address: Ipv4Addr) -> anyhow::Result<(u32, u32)> {
        let mut addresses = self.0.address().get().set_address_filter(IpAddr::V4(address)).execute();
        let mut index = None;
        while let Some(message) = addresses.try_next().await.context("listing addresses")? {
            let same = message.attributes.iter().any(|a| {
                matches!(a, AddressAttribute::Address(ip) | AddressAttribute::Local(ip) if *ip == IpAddr::V4(address))
            });
            if same {
                index = Some(message.header.index);
            }
        }
        let index = index.with_context(|| format!("no interface carries the node's address {address}"))?;
        let mut links = self.0.link().get().match_index(index).execute();
        let link = links.try_next().await.context("reading the node's interface")?;
        let mtu = link.iter().flat_map(|l| &l.attributes).find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok((index, mtu.unwrap_or(1500)))
    }

    /// A dummy interface, up.
    pub(crate) async fn dummy(&self, name: &str) -> anyhow::Result<u32> {
        if self.index(name).await?.is_none() {
            let add = self.0.link().add(LinkDummy::new(name).build()).execute().await;
            there(add).with_context(|| format!("making the dummy interface {name} (kernel module dummy)"))?;
        }
        self.up(name, None).await
    }

    /// A vxlan interface with a fixed hardware address, up. One that differs is made anew.
    pub(crate) async fn vxlan(&self, name: &str, local: Ipv4Addr, mac: [u8; 6], mtu: u32) -> anyhow::Result<u32> {
        const VNI: u32 = 1;
        const PORT: u16 = 8472;
        if let Some(index) = self.index(name).await? {
            let mut links = self.0.link().get().match_index(index).execute();
            let link = links.try_next().await.context("reading the vxlan interface")?;
            let same =
                link.iter().flat_map(|l| &l.attributes).any(|a| matches!(a, LinkAttribute::Address(m) if m[..] == mac));
            if !same {
                self.delete(name).await?;
            }
        }
        if self.index(name).await?.is_none() {
            let vxlan =
                LinkVxlan::new(name, VNI).local(local).port(PORT).learning(false).address(mac.to_vec()).mtu(mtu);
            let add = self.0.link().add(vxlan.build()).execute().await;
            there(add).with_context(|| format!("making the vxlan interface {name} (kernel module vxlan)"))?;
        }
        self.up(name, Some(mtu)).await
    }

    /// Removes an interface, if it is there.
    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        if let Some(index) = self.index(name).await? {
            self.0.link().del(index).execute().await.with_context(|| format!("removing interface {name}"))?;
        }
        Ok(())
    }

    async fn up(&self, name: &str, mtu: Option<u32>) -> anyhow::Result<u32> {
        let index = self.index(name).await?.with_context(|| format!("interface {name} has gone away"))?;
        let mut change = LinkUnspec::new_with_index(index).up();
        if let Some(mtu) = mtu {
            change = change.mtu(mtu);
        }
        self.0.link().set(change.build()).execute().await.with_context(|| format!("setting interface {name} up"))?;
        Ok(index)
    }

    /// Puts an address with prefix length 32 on an interface.
    pub(crate) async fn address(&self, index: u32, address: Ipv4Addr) -> anyhow::Result<()> {
        let add = self.0.address().add(index, IpAddr::V4(address), 32).execute().await;
        there(add).with_context(|| format!("adding address {address}"))
    }

    /// A route to a prefix that is directly on an interface.
    pub(crate) async fn direct_route(&self, to: Ipv4Net, index: u32, source: Ipv4Addr) -> anyhow::Result<()> {
        let route = base_route(to).output_interface(index).scope(RouteScope::Link).pref_source(source).build();
        self.replace(route, to).await
    }

    /// Says that a prefix is nowhere but where longer prefixes lead.
    pub(crate) async fn unreachable(&self, to: Ipv4Net) -> anyhow::Result<()> {
        self.replace(base_route(to).kind(RouteType::Unreachable).build(), to).await
    }

    /// The way to a peer's pods.
    pub(crate) async fn peer_route(
        &self,
        peer: &Peer,
        via: Ipv4Addr,
        index: u32,
        source: Ipv4Addr,
    ) -> anyhow::Result<()> {
        let route = base_route(peer.pod_cidr).output_interface(index).gateway(via).onlink().pref_source(source).build();
        self.replace(route, peer.pod_cidr).await
    }

    async fn replace(&self, route: RouteMessage, to: Ipv4Net) -> anyhow::Result<()> {
        self.0.route().add(route).replace().execute().await.with_context(|| format!("adding the route to {to}"))
    }

    /// Removes this component's routes whose destination is not among `keep`.
    pub(crate) async fn prune_routes(&self, keep: &[Ipv4Net]) -> anyhow::Result<()> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.0.route().get(filter).execute();
        let mut stale = Vec::new();
        while let Some(route) = routes.try_next().await.context("listing routes")? {
            if route.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
                continue;
            }
            let destination = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
                _ => None,
            });
            let net = destination.and_then(|ip| Ipv4Net::new(ip, route.header.destination_prefix_length).ok());
            if net.is_some_and(|n| !keep.contains(&n)) {
                stale.push(route);
            }
        }
        for route in stale {
            self.0.route().del(route).execute().await.context("removing a route")?;
        }
        Ok(())
    }

    /// Where a peer's tunnel end is: its hardware address by next hop, and its node by hardware address.
    pub(crate) async fn tunnel_to(&self, index: u32, peer: &Peer) -> anyhow::Result<()> {
        let mac = peer.mac();
        let gateway = IpAddr::V4(peer.gateway());
        let arp = self.0.neighbours().add(index, gateway).link_layer_address(&mac).replace().execute().await;
        arp.with_context(|| format!("noting the hardware address of {gateway}"))?;
        let to = IpAddr::V4(peer.node_ip);
        let fdb = self.0.neighbours().add_bridge(index, &mac).destination(to).flags(NeighbourFlags::Own);
        fdb.replace().execute().await.with_context(|| format!("noting the tunnel to node {to}"))
    }

    /// Removes neighbour and forwarding entries of peers that are gone.
    pub(crate) async fn prune_tunnels(&self, index: u32, keep: &[&Peer]) -> anyhow::Result<()> {
        let mut stale: Vec<NeighbourMessage> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Bridge] {
            let mut request = self.0.neighbours().get();
            request.message_mut().header.family = family;
            let mut entries = request.execute();
            while let Some(entry) = entries.try_next().await.context("listing neighbours")? {
                if entry.header.ifindex == index && !known(&entry, keep) {
                    stale.push(entry);
                }
            }
        }
        for entry in stale {
            self.0.neighbours().del(entry).execute().await.context("removing a neighbour")?;
        }
        Ok(())
    }
}

fn known(entry: &NeighbourMessage, keep: &[&Peer]) -> bool {
    let mut mac = None;
    let mut destination = None;
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(m) => mac = Some(m.clone()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => destination = Some(*ip),
            _ => {}
        }
    }
    // Entries without a unicast hardware address belong to the kernel.
    let Some(mac) = mac.filter(|m| m.len() == 6 && m.iter().any(|b| *b != 0)) else { return true };
    keep.iter().any(|p| mac[..] == p.mac() && destination.is_none_or(|d| d == p.gateway() || d == p.node_ip))
}

fn base_route(to: Ipv4Net) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to.network(), to.prefix_len())
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(e) if e.raw_code().abs() == errno)
}

/// What is there already is what was wanted.
fn there(result: Result<(), rtnetlink::Error>) -> anyhow::Result<()> {
    match result {
        Err(error) if is(&error, EEXIST) => Ok(()),
        other => Ok(other?),
    }
}
