//! What a machine's network is to be, as one plan, whoever says it: network-config of version 1 or 2, OpenStack's
//! `network_data.json`, the kernel's command line, or a data source that builds the plan itself.
//!
//! A plan is checked when it is read: members and parents of bonds, bridges and VLANs exist, nothing goes in circles.
//! What cannot be brought about (tunnels, Wi-Fi) is refused by name rather than left out silently.

mod fields;
pub mod kernel_line;
pub mod openstack;
#[cfg(test)]
mod tests;
mod version_1;
mod version_2;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_yaml_ng::Value;
use std::net::IpAddr;

/// What to do with the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkPlan {
    /// One entry an interface; what lies below another one stands before it.
    pub nics: Vec<NicPlan>,
    /// DNS servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// DNS search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// What was asked for and is not brought about, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NicPlan {
    /// How other entries of the plan name it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// A card of the hardware, or made of other interfaces.
    #[serde(skip_serializing_if = "LinkKind::is_hardware")]
    pub kind: LinkKind,
    /// Lower-case hardware address (or its pattern with `*`) to find a card by; the address to give to what is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Name to find a card by, when there is no hardware address; may be a pattern with `*`. Name of what is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Driver that a card must have, may be a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Name to give it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_name: Option<String>,
    /// Static addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// Routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RoutePlan>,
    /// Ask by DHCP for an IPv4 address.
    #[serde(skip_serializing_if = "is_false")]
    pub dhcp4: bool,
    /// Ask by DHCPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp6: Option<Dhcp6>,
    /// Take IPv6 addresses and routes from router advertisements; the kernel's way when it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_ra: Option<bool>,
    /// Take the DNS servers of the DHCP answer.
    #[serde(skip_serializing_if = "is_true")]
    pub dhcp_dns: bool,
    /// Take the DNS servers of the DHCPv6 answer.
    #[serde(skip_serializing_if = "is_true")]
    pub dhcp6_dns: bool,
    /// Take the routes of the DHCP answer.
    #[serde(skip_serializing_if = "is_true")]
    pub dhcp_routes: bool,
    /// Take the MTU of the DHCP answer.
    #[serde(skip_serializing_if = "is_true")]
    pub dhcp_mtu: bool,
    /// Metric of the routes of the DHCP answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp_metric: Option<u32>,
    /// MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The boot does not wait for it.
    #[serde(skip_serializing_if = "is_false")]
    pub optional: bool,
}

impl Default for NicPlan {
    fn default() -> NicPlan {
        NicPlan {
            id: String::new(),
            kind: LinkKind::Hardware,
            mac: None,
            name: None,
            driver: None,
            set_name: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            dhcp4: false,
            dhcp6: None,
            accept_ra: None,
            dhcp_dns: true,
            dhcp6_dns: true,
            dhcp_routes: true,
            dhcp_mtu: true,
            dhcp_metric: None,
            mtu: None,
            optional: false,
        }
    }
}

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A card.
    Hardware,
    /// Several cards as one.
    Bond(BondPlan),
    /// A switch of interfaces.
    Bridge(BridgePlan),
    /// Tagged frames of another interface.
    Vlan {
        /// The interface below, by its id.
        link: String,
        /// Tag, 1 to 4094.
        tag: u16,
    },
}

impl LinkKind {
    fn is_hardware(&self) -> bool {
        *self == LinkKind::Hardware
    }

    /// Ids of the interfaces that it is made of.
    pub fn parts(&self) -> Vec<&str> {
        match self {
            LinkKind::Hardware => Vec::new(),
            LinkKind::Bond(bond) => bond.members.iter().map(String::as_str).collect(),
            LinkKind::Bridge(bridge) => bridge.members.iter().map(String::as_str).collect(),
            LinkKind::Vlan { link, .. } => vec![link],
        }
    }
}

/// Settings of a bond; what is not said is the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BondPlan {
    /// Its members, by their ids.
    pub members: Vec<String>,
    /// The kernel's number of the mode: 0 balance-rr, 1 active-backup, 2 balance-xor, 3 broadcast, 4 802.3ad,
    /// 5 balance-tlb, 6 balance-alb.
    pub mode: u8,
    /// Milliseconds between two looks at a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miimon: Option<u32>,
    /// Milliseconds before a link that came back is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updelay: Option<u32>,
    /// Milliseconds before a link that went is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downdelay: Option<u32>,
    /// LACP every second instead of every 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacp_fast: Option<bool>,
    /// The kernel's number: 0 layer2, 1 layer3+4, 2 layer2+3, 3 encap2+3, 4 encap3+4, 5 vlan+srcmac.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_policy: Option<u8>,
    /// Links that must be up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_links: Option<u32>,
    /// The member that is preferred, by its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
}

/// Settings of a bridge; what is not said is the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BridgePlan {
    /// Its members, by their ids.
    pub members: Vec<String>,
    /// Spanning tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stp: Option<bool>,
    /// Seconds a port waits before it forwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_delay: Option<u32>,
    /// Seconds an address is remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ageing_time: Option<u32>,
    /// Spanning tree priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
}

/// What is asked of a DHCPv6 server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dhcp6 {
    /// An address, and DNS servers.
    Stateful,
    /// DNS servers only; addresses come by router advertisement.
    Stateless,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoutePlan {
    /// Destination; a zero prefix is the default route.
    pub to: IpNet,
    /// Next hop, `None` for a route on the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Routing table, the main one when it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Source address of packets that take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The next hop is on the link whatever the addresses say.
    #[serde(skip_serializing_if = "is_false")]
    pub on_link: bool,
}

/// Why a network configuration cannot be used: one sentence.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("network-config is wrong: {0}")]
pub struct NetworkConfigError(pub String);

type Result<T> = std::result::Result<T, NetworkConfigError>;

/// Nothing larger is looked at.
const LIMIT: usize = 64 * 1024;
/// A plan has no more interfaces.
const MOST_NICS: usize = 256;

impl NetworkPlan {
    /// Without any configuration: DHCP on every interface, and what routers advertise.
    pub fn dhcp_everywhere() -> NetworkPlan {
        let nic = NicPlan { name: Some("*".to_owned()), dhcp4: true, ..NicPlan::default() };
        NetworkPlan { nics: vec![nic], ..NetworkPlan::default() }
    }

    /// Interfaces in an order in which each can be made: what lies below another one comes first.
    fn ordered(mut self) -> Result<NetworkPlan> {
        if self.nics.len() > MOST_NICS {
            return wrong(format!("it has more than {MOST_NICS} interfaces"));
        }
        for nic in &self.nics {
            if !nic.kind.is_hardware() {
                check_interface_name(nic.name.as_deref().unwrap_or_default())?;
            }
            if let Some(name) = &nic.set_name {
                check_interface_name(name)?;
            }
            for part in nic.kind.parts() {
                if !self.nics.iter().any(|other| other.id == part) {
                    return wrong(format!("{} is made of {part:?}, which is not defined", nic.id));
                }
            }
        }
        let mut ordered: Vec<NicPlan> = Vec::new();
        while !self.nics.is_empty() {
            let ready = |nic: &NicPlan| nic.kind.parts().iter().all(|part| ordered.iter().any(|done| done.id == *part));
            let (now, later): (Vec<NicPlan>, Vec<NicPlan>) = self.nics.into_iter().partition(ready);
            if now.is_empty() {
                let names: Vec<&str> = later.iter().map(|nic| nic.id.as_str()).collect();
                return wrong(format!("{} are made of each other", names.join(" and ")));
            }
            ordered.extend(now);
            self.nics = later;
        }
        Ok(NetworkPlan { nics: ordered, ..self })
    }
}

impl NicPlan {
    /// A card found by its hardware address.
    pub fn with_mac(mac: &str) -> Result<NicPlan> {
        Ok(NicPlan { mac: Some(fields::mac_address(mac)?), ..NicPlan::default() })
    }
}

impl RoutePlan {
    /// The default route of the gateway's family. A link-local gateway is on the link by its nature.
    pub fn default_by(via: IpAddr, metric: Option<u32>) -> RoutePlan {
        let to = match via {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        RoutePlan { on_link: is_link_local(via), metric, ..RoutePlan::to(to, Some(via)) }
    }

    /// A plain route.
    pub fn to(to: IpNet, via: Option<IpAddr>) -> RoutePlan {
        RoutePlan { to, via, metric: None, table: None, source: None, on_link: via.is_some_and(is_link_local) }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    }
}

/// Reads either version, with or without `network:` around it, as text, base64 or gzip.
pub fn parse(raw: &[u8]) -> Result<NetworkPlan> {
    let text = crate::encoding::decode(raw, LIMIT).map_err(|error| NetworkConfigError(error.to_string()))?;
    let document: Value = serde_yaml_ng::from_str(&text).map_err(|error| NetworkConfigError(error.to_string()))?;
    from_value(&document)
}

/// The same from a document that is a part of another.
pub fn from_value(document: &Value) -> Result<NetworkPlan> {
    let document = document.get("network").unwrap_or(document);
    let plan = match document.get("version").and_then(Value::as_u64) {
        Some(1) => version_1::read(document),
        Some(2) => version_2::read(document),
        Some(other) => wrong(format!("version {other} is unknown, 1 and 2 are known")),
        None => wrong("it has no version".to_owned()),
    };
    plan?.ordered()
}

/// An address with its prefix: `a/24`, or `a` with the netmask `255.255.255.0`, `24` or `ffff::`; alone it is a host.
pub fn address_with_netmask(given: &str, netmask: Option<&str>) -> Result<IpNet> {
    fields::with_netmask(given, netmask)
}

fn wrong<T>(sentence: String) -> Result<T> {
    Err(NetworkConfigError(sentence))
}

/// The kernel's rules for names.
fn check_interface_name(name: &str) -> Result<()> {
    let good = (1..=15).contains(&name.len())
        && !["lo", ".", ".."].contains(&name)
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    if good { Ok(()) } else { wrong(format!("{name:?} cannot be the name of an interface")) }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_true(flag: &bool) -> bool {
    *flag
}
