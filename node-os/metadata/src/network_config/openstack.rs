//! `network_data.json` of OpenStack, on a config drive or over HTTP.
//! <https://docs.openstack.org/nova/latest/user/metadata.html>

use super::fields::{
    address, bond_mode, hash_policy, list, mac_address, mtu, number, route, text, texts, vlan_tag, with_netmask,
};
use super::{BondPlan, Dhcp6, LinkKind, NetworkConfigError, NetworkPlan, NicPlan, Result, RoutePlan, wrong};
use ipnet::IpNet;
use serde_yaml_ng::Value;

/// Link types that are plain cards for the guest.
const CARDS: [&str; 13] = [
    "phy",
    "physical",
    "vif",
    "ovs",
    "bridge",
    "tap",
    "ethernet",
    "vhostuser",
    "hw_veb",
    "hyperv",
    "dvs",
    "bgpovs",
    "cascading",
];

/// The plan; JSON is YAML too.
pub fn parse(raw: &[u8]) -> Result<NetworkPlan> {
    if raw.len() > super::LIMIT {
        return wrong(format!("network_data.json has more than {} bytes", super::LIMIT));
    }
    let text = std::str::from_utf8(raw).map_err(|_| NetworkConfigError("network_data.json is not UTF-8".to_owned()))?;
    let document: Value =
        serde_yaml_ng::from_str(text).map_err(|error| NetworkConfigError(format!("network_data.json: {error}")))?;
    let mut plan = NetworkPlan::default();
    for item in list(&document, "links") {
        plan.nics.push(link(item)?);
    }
    for item in list(&document, "networks") {
        network(item, &mut plan)?;
    }
    plan.dns.extend(dns_services(&document)?);
    plan.ordered()
}

fn link(item: &Value) -> Result<NicPlan> {
    let id = text(item, "id").ok_or_else(|| NetworkConfigError("a link has no id".to_owned()))?;
    let mac = text(item, "ethernet_mac_address").map(|mac| mac_address(&mac)).transpose()?;
    let name: String = id.chars().filter(char::is_ascii_alphanumeric).take(15).collect();
    let mut nic = NicPlan { id, mtu: mtu(item)?, ..NicPlan::default() };
    match text(item, "type").unwrap_or_else(|| "physical".to_owned()).as_str() {
        "bond" => {
            nic.kind = LinkKind::Bond(BondPlan {
                members: texts(item, "bond_links"),
                mode: bond_mode(text(item, "bond_mode").as_deref())?,
                miimon: number(item, &["bond_miimon"]),
                hash_policy: hash_policy(text(item, "bond_xmit_hash_policy").as_deref())?,
                ..BondPlan::default()
            });
            (nic.name, nic.mac) = (Some(name), mac);
        }
        "vlan" => {
            let below =
                text(item, "vlan_link").ok_or_else(|| NetworkConfigError("a vlan has no vlan_link".to_owned()))?;
            nic.kind = LinkKind::Vlan { link: below, tag: vlan_tag(item, &["vlan_id"])? };
            let own = text(item, "vlan_mac_address").map(|mac| mac_address(&mac)).transpose()?;
            (nic.name, nic.mac) = (Some(name), own);
        }
        kind if CARDS.contains(&kind) => {
            if mac.is_none() {
                return wrong(format!("the link {} has no ethernet_mac_address", nic.id));
            }
            nic.mac = mac;
        }
        other => return wrong(format!("a link of type {other:?} is not supported")),
    }
    Ok(nic)
}

fn network(item: &Value, plan: &mut NetworkPlan) -> Result<()> {
    let link = text(item, "link").unwrap_or_default();
    let Some(nic) = plan.nics.iter_mut().find(|nic| nic.id == link) else {
        return wrong(format!("a network is on the link {link:?}, which is not defined"));
    };
    match text(item, "type").unwrap_or_default().as_str() {
        "ipv4_dhcp" | "dhcp" | "dhcp4" => nic.dhcp4 = true,
        "ipv6_dhcp" | "dhcp6" | "ipv6_dhcpv6-stateful" => nic.dhcp6 = Some(Dhcp6::Stateful),
        "ipv6_dhcpv6-stateless" => (nic.dhcp6, nic.accept_ra) = (Some(Dhcp6::Stateless), Some(true)),
        "ipv6_slaac" => nic.accept_ra = Some(true),
        "ipv4" | "ipv6" | "static" | "static6" => {
            let given = text(item, "ip_address")
                .ok_or_else(|| NetworkConfigError(format!("a network on {link} has no ip_address")))?;
            let own = with_netmask(&given, text(item, "netmask").as_deref())?;
            nic.addresses.push(own);
            if let Some(gateway) = text(item, "gateway") {
                add(nic, own, route(None, Some(address(&gateway)?), None)?);
            }
            for entry in list(item, "routes") {
                add(nic, own, item_route(entry)?);
            }
        }
        other => return wrong(format!("a network of type {other:?} is not supported")),
    }
    plan.dns.extend(super::fields::addresses(item, "dns_nameservers")?);
    plan.dns.extend(dns_services(item)?);
    Ok(())
}

/// The gateway is often said twice, and may lie outside the network of a /32.
fn add(nic: &mut NicPlan, own: IpNet, mut route: RoutePlan) {
    route.on_link |= route.via.is_some_and(|via| {
        via.is_ipv4() == own.addr().is_ipv4() && !own.contains(&via) && own.prefix_len() == own.max_prefix_len()
    });
    if !nic.routes.contains(&route) {
        nic.routes.push(route);
    }
}

fn item_route(entry: &Value) -> Result<RoutePlan> {
    let to = text(entry, "network").ok_or_else(|| NetworkConfigError("a route has no network".to_owned()))?;
    let to = with_netmask(&to, text(entry, "netmask").as_deref())?;
    let via = text(entry, "gateway").map(|via| address(&via)).transpose()?;
    let is_default = to.prefix_len() == 0 || to.addr().is_unspecified();
    route((!is_default).then_some(to), via, number(entry, &["metric"]))
}

fn dns_services(item: &Value) -> Result<Vec<std::net::IpAddr>> {
    let services = list(item, "services").iter().filter(|service| text(service, "type").as_deref() == Some("dns"));
    services.filter_map(|service| text(service, "address")).map(|given| address(&given)).collect()
}
