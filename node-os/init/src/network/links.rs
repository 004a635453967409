//! Interfaces, addresses and routes by rtnetlink. Saying a thing twice is no error.

use anyhow::{Context, Result, anyhow};
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, State};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use node_metadata::network_config::RoutePlan;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::IpAddr;

const EEXIST: i32 = 17;
const ARPHRD_ETHER: u16 = 1;

/// A network interface of the hardware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: [u8; 6],
}

impl Nic {
    /// The hardware address as `52:54:00:…`.
    pub fn mac_text(&self) -> String {
        mac_text(&self.mac)
    }
}

/// Netlink.
#[derive(Debug, Clone)]
pub struct Links(Handle);

impl Links {
    /// Opens the socket.
    pub fn open() -> Result<Links> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Links(handle))
    }

    /// Ethernet interfaces that are no virtual ones, by index.
    pub async fn hardware(&self) -> Result<Vec<Nic>> {
        let mut nics: Vec<Nic> = self.messages().await?.iter().filter_map(hardware_nic).collect();
        nics.sort_by_key(|nic| nic.index);
        Ok(nics)
    }

    async fn messages(&self) -> Result<Vec<LinkMessage>> {
        self.0.link().get().execute().try_collect().await.context("cannot list the network interfaces")
    }

    /// Sets an interface up by name.
    pub async fn up(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.0.link().set(message).execute().await.with_context(|| format!("cannot set {name} up"))
    }

    /// Sets an interface up.
    pub async fn up_index(&self, index: u32) -> Result<()> {
        Ok(self.0.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?)
    }

    /// Sets the MTU.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.0.link().set(message).execute().await.with_context(|| format!("cannot set the MTU {mtu}"))
    }

    /// Gives an interface another name; it must be down.
    pub async fn rename(&self, nic: &Nic, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(nic.index).name(name).build();
        self.0.link().set(message).execute().await.with_context(|| format!("cannot rename {} to {name}", nic.name))
    }

    /// Adds an address.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        let added = self.0.address().add(index, address.addr(), address.prefix_len()).execute().await;
        there(added).with_context(|| format!("cannot add the address {address}"))
    }

    /// Adds a route.
    pub async fn add_route(&self, index: u32, route: &RoutePlan) -> Result<()> {
        let message = route_message(index, route)?;
        let added = self.0.route().add(message).replace().execute().await;
        there(added).with_context(|| format!("cannot add the route to {}", route.to))
    }

    /// Removes all addresses of an interface, and with them its routes.
    pub async fn flush(&self, index: u32) -> Result<()> {
        let addresses: Vec<_> = self.0.address().get().set_link_index_filter(index).execute().try_collect().await?;
        for address in addresses {
            let link_local = address.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Address(IpAddr::V6(ip)) if ip.is_unicast_link_local())
            });
            if !link_local {
                self.0.address().del(address).execute().await.context("cannot remove an address")?;
            }
        }
        Ok(())
    }

    /// Addresses of hardware interfaces beside link-local ones, in the order of the interfaces.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>> {
        let nics = self.hardware().await?;
        let by_index = self.addresses_by_index().await?;
        let own = nics.iter().filter_map(|nic| by_index.get(&nic.index)).flatten().map(IpNet::addr);
        Ok(own.filter(|ip| !matches!(ip, IpAddr::V6(six) if six.is_unicast_link_local())).collect())
    }

    async fn addresses_by_index(&self) -> Result<BTreeMap<u32, Vec<IpNet>>> {
        let messages: Vec<_> =
            self.0.address().get().execute().try_collect().await.context("cannot list the addresses")?;
        let mut found: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for message in messages {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let plain = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            if let Some(net) = local.or(plain).and_then(|ip| IpNet::new(ip, message.header.prefix_len).ok()) {
                found.entry(message.header.index).or_default().push(net);
            }
        }
        Ok(found)
    }

    /// All links for the node API.
    pub async fn describe_links(&self) -> Result<Vec<node_api::Link>> {
        let messages = self.messages().await?;
        let names: BTreeMap<u32, String> = messages.iter().map(|link| (link.header.index, name_of(link))).collect();
        let addresses = self.addresses_by_index().await?;
        Ok(messages.iter().map(|link| describe_link(link, &names, &addresses)).collect())
    }

    /// All routes of both families for the node API.
    pub async fn describe_routes(&self) -> Result<Vec<node_api::Route>> {
        let names: BTreeMap<u32, String> =
            self.messages().await?.iter().map(|link| (link.header.index, name_of(link))).collect();
        let mut routes = Vec::new();
        let families = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for family in families {
            let list: Vec<RouteMessage> =
                self.0.route().get(family).execute().try_collect().await.context("cannot list the routes")?;
            routes.extend(
                list.iter()
                    .filter(|route| route.header.kind == RouteType::Unicast)
                    .map(|route| describe_route(route, &names)),
            );
        }
        Ok(routes)
    }
}

fn hardware_nic(link: &LinkMessage) -> Option<Nic> {
    // Virtual interfaces say what kind they are.
    let is_virtual = link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(_)));
    if is_virtual || u16::from(link.header.link_layer_type) != ARPHRD_ETHER {
        return None;
    }
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok(),
        _ => None,
    })?;
    Some(Nic { index: link.header.index, name: name_of(link), mac })
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn route_message(index: u32, route: &RoutePlan) -> Result<RouteMessage> {
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.addr(), route.to.prefix_len())
        .with_context(|| format!("{} is no destination", route.to))?
        .output_interface(index)
        .protocol(RouteProtocol::Boot);
    message = match route.via {
        Some(via) => message.gateway(via).with_context(|| format!("{via} is no gateway for {}", route.to))?,
        None => message.scope(RouteScope::Link),
    };
    if let Some(metric) = route.metric {
        message = message.priority(metric);
    }
    Ok(if route.on_link { message.onlink().build() } else { message.build() })
}

fn describe_link(
    link: &LinkMessage,
    names: &BTreeMap<u32, String>,
    addresses: &BTreeMap<u32, Vec<IpNet>>,
) -> node_api::Link {
    let mut shown = node_api::Link { index: link.header.index, name: name_of(link), ..Default::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => shown.mtu = *mtu,
            LinkAttribute::Address(mac) => shown.mac = mac_text(mac),
            LinkAttribute::OperState(state) => shown.state = state_text(*state),
            LinkAttribute::Controller(index) => shown.master = names.get(index).cloned().unwrap_or_default(),
            LinkAttribute::Stats64(stats) => (shown.rx_bytes, shown.tx_bytes) = (stats.rx_bytes, stats.tx_bytes),
            LinkAttribute::LinkInfo(infos) => shown.kind = kind_text(infos),
            _ => {}
        }
    }
    let own = addresses.get(&shown.index).map(Vec::as_slice).unwrap_or_default();
    shown.addresses = own.iter().map(IpNet::to_string).collect();
    shown
}

fn state_text(state: State) -> String {
    format!("{state:?}").to_ascii_lowercase()
}

fn kind_text(infos: &[LinkInfo]) -> String {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Other(name)) => name.clone(),
        Some(kind) => format!("{kind:?}").to_ascii_lowercase(),
        None => String::new(),
    }
}

fn describe_route(route: &RouteMessage, names: &BTreeMap<u32, String>) -> node_api::Route {
    let mut shown = node_api::Route {
        destination: "default".to_owned(),
        table: u32::from(route.header.table),
        protocol: format!("{:?}", route.header.protocol).to_ascii_lowercase(),
        ..Default::default()
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                shown.destination = format!("{}/{}", address_text(to), route.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(via) => shown.gateway = address_text(via),
            RouteAttribute::PrefSource(source) => shown.source = address_text(source),
            RouteAttribute::Oif(index) => shown.device = names.get(index).cloned().unwrap_or_default(),
            RouteAttribute::Priority(metric) => shown.metric = *metric,
            RouteAttribute::Table(table) => shown.table = *table,
            _ => {}
        }
    }
    shown
}

fn address_text(address: &RouteAddress) -> String {
    match address {
        RouteAddress::Inet(ip) => ip.to_string(),
        RouteAddress::Inet6(ip) => ip.to_string(),
        other => format!("{other:?}"),
    }
}

fn there(result: std::result::Result<(), rtnetlink::Error>) -> Result<()> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code().abs() == EEXIST => Ok(()),
        Err(error) => Err(anyhow!(error)),
        Ok(()) => Ok(()),
    }
}
