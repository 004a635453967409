//! Interfaces, addresses and routes by rtnetlink. Saying a thing twice is no error.

use anyhow::{Context, Result, anyhow};
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, State};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use node_metadata::network_config::RoutePlan;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub(super) const EEXIST: i32 = 17;
const ARPHRD_ETHER: u16 = 1;
/// How long a card may need for its carrier, and how often it is looked for.
const CARRIER: std::time::Duration = std::time::Duration::from_secs(3);
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

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
pub struct Links {
    pub(super) handle: Handle,
    /// Virtual Ethernet interfaces count as cards: the tests have no others.
    pub(super) any_ethernet: bool,
}

impl Links {
    /// Opens the socket.
    pub fn open() -> Result<Links> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Links { handle, any_ethernet: false })
    }

    /// Ethernet interfaces that are no virtual ones, by index.
    pub async fn hardware(&self) -> Result<Vec<Nic>> {
        let mut nics: Vec<Nic> = self
            .messages()
            .await?
            .iter()
            .filter(|link| self.any_ethernet || !is_virtual(link))
            .filter_map(ethernet)
            .collect();
        nics.sort_by_key(|nic| nic.index);
        Ok(nics)
    }

    async fn messages(&self) -> Result<Vec<LinkMessage>> {
        self.handle.link().get().execute().try_collect().await.context("cannot list the network interfaces")
    }

    /// Sets an interface up by name.
    pub async fn up(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.handle.link().set(message).execute().await.with_context(|| format!("cannot set {name} up"))
    }

    /// Sets an interface up.
    pub async fn up_index(&self, index: u32) -> Result<()> {
        Ok(self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?)
    }

    /// Sets the MTU.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.with_context(|| format!("cannot set the MTU {mtu}"))
    }

    /// Gives an interface another name; it must be down.
    pub async fn rename(&self, nic: &Nic, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(nic.index).name(name).build();
        self.handle.link().set(message).execute().await.with_context(|| format!("cannot rename {} to {name}", nic.name))
    }

    /// Adds an address.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        let added = self.handle.address().add(index, address.addr(), address.prefix_len()).execute().await;
        there(added).with_context(|| format!("cannot add the address {address}"))
    }

    /// Adds a route.
    pub async fn add_route(&self, index: u32, route: &RoutePlan) -> Result<()> {
        let message = route_message(index, route)?;
        let added = self.handle.route().add(message).replace().execute().await;
        there(added).with_context(|| format!("cannot add the route to {}", route.to))
    }

    /// Removes the addresses that were given to an interface, and with them their routes. Those that the kernel made
    /// from router advertisements stay: it would not ask for them again.
    pub async fn flush(&self, index: u32) -> Result<()> {
        let addresses: Vec<_> =
            self.handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
        for address in addresses {
            let link_local = address.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Address(IpAddr::V6(ip)) if ip.is_unicast_link_local())
            });
            let advertised = !address.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Permanent))
            });
            if !link_local && !advertised {
                self.handle.address().del(address).execute().await.context("cannot remove an address")?;
            }
        }
        Ok(())
    }

    /// Addresses of cards and of `more` interfaces beside IPv6's link-local ones, in the order of the interfaces.
    pub async fn addresses(&self, more: &[u32]) -> Result<Vec<IpAddr>> {
        let nics = self.hardware().await?;
        let by_index = self.addresses_by_index().await?;
        let indices =
            nics.iter().map(|nic| nic.index).filter(|index| !more.contains(index)).chain(more.iter().copied());
        let own = indices.filter_map(|index| by_index.get(&index)).flatten().map(IpNet::addr);
        Ok(own.filter(|ip| !matches!(ip, IpAddr::V6(six) if six.is_unicast_link_local())).collect())
    }

    /// The interface of that name, of whatever kind.
    pub async fn by_name(&self, name: &str) -> Result<Option<Nic>> {
        Ok(self.messages().await?.iter().filter_map(ethernet).find(|nic| nic.name == name))
    }

    /// Removes a virtual interface; one that is gone is no error.
    pub async fn remove_link(&self, name: &str) -> Result<()> {
        match self.by_name(name).await? {
            Some(nic) => {
                self.handle.link().del(nic.index).execute().await.with_context(|| format!("cannot remove {name}"))
            }
            None => Ok(()),
        }
    }

    /// Removes an address; one that is gone is no error.
    pub async fn remove_address(&self, index: u32, address: IpNet) -> Result<()> {
        let found: Vec<_> = self.handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
        for message in found {
            let is_it = message
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, AddressAttribute::Address(ip) if *ip == address.addr()));
            if is_it && message.header.prefix_len == address.prefix_len() {
                self.handle.address().del(message).execute().await.context("cannot remove an address")?;
            }
        }
        Ok(())
    }

    async fn addresses_by_index(&self) -> Result<BTreeMap<u32, Vec<IpNet>>> {
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.context("cannot list the addresses")?;
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
                self.handle.route().get(family).execute().try_collect().await.context("cannot list the routes")?;
            routes.extend(
                list.iter()
                    .filter(|route| matches!(route.header.kind, RouteType::Unicast | RouteType::Unreachable))
                    .map(|route| describe_route(route, &names)),
            );
        }
        Ok(routes)
    }
}

/// Virtual interfaces say what kind they are.
fn is_virtual(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(_)))
}

fn ethernet(link: &LinkMessage) -> Option<Nic> {
    if u16::from(link.header.link_layer_type) != ARPHRD_ETHER {
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
    if let Some(table) = route.table {
        message = message.table_id(table);
    }
    if let Some(source) = route.source {
        message = message.pref_source(source).with_context(|| format!("{source} is no source for {}", route.to))?;
    }
    Ok(if route.on_link { message.onlink().build() } else { message.build() })
}

/// A link-local address that follows from the hardware address (RFC 3927: 169.254.1.0 to 169.254.254.255).
pub(super) fn link_local_of(mac: [u8; 6]) -> IpNet {
    let [.., fifth, last] = mac;
    let address = std::net::Ipv4Addr::new(169, 254, 1 + fifth % 253, last);
    IpNet::from(ipnet::Ipv4Net::new_assert(address, 16))
}

/// Whether routers' advertisements are taken. Where the node forwards packets, as it does for its pods, the kernel takes
/// them only if it is told so twice (2).
pub(super) fn accept_advertisements(name: &str, wanted: Option<bool>) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    let value = if wanted == Some(false) { "0" } else { "2" };
    match std::fs::write(&path, value) {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("cannot write {value} to {path}")),
    }
}

/// Waits until a card has a carrier, for a moment.
pub(super) async fn wait_for_carrier(nics: &[Nic]) {
    let has_carrier = |nic: &Nic| {
        std::fs::read_to_string(format!("/sys/class/net/{}/carrier", nic.name)).is_ok_and(|text| text.trim() == "1")
    };
    let look = async {
        while !nics.is_empty() && !nics.iter().any(has_carrier) {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Without one no server is reached, and that is said then.
    let _ = tokio::time::timeout(CARRIER, look).await;
}

/// The kernel driver of a card, empty when it has none.
pub(super) fn driver_of(name: &str) -> String {
    let link = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).unwrap_or_default();
    link.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
    if route.header.kind == RouteType::Unreachable {
        shown.gateway = "unreachable".to_owned();
    }
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
