//! Version 1: a list of physical, bond, bridge, vlan, nameserver and route items.
//! <https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v1.html>

use super::fields::{
    address, addresses, bond_mode, flag, hash_policy, list, mac, mtu, number, route, text, texts, vlan_tag,
    with_netmask,
};
use super::{
    BondPlan, BridgePlan, Dhcp6, LinkKind, NetworkConfigError, NetworkPlan, NicPlan, Result, RoutePlan, wrong,
};
use serde_yaml_ng::Value;

pub(super) fn read(document: &Value) -> Result<NetworkPlan> {
    let mut plan = NetworkPlan::default();
    let mut routes = Vec::new();
    for item in list(document, "config") {
        match text(item, "type").unwrap_or_default().as_str() {
            "physical" => link(item, LinkKind::Hardware, &mut plan)?,
            "bond" => link(item, LinkKind::Bond(bond(item)?), &mut plan)?,
            "bridge" => link(item, LinkKind::Bridge(bridge(item)), &mut plan)?,
            "vlan" => {
                let link_id =
                    text(item, "vlan_link").ok_or_else(|| NetworkConfigError("a vlan has no vlan_link".to_owned()))?;
                link(item, LinkKind::Vlan { link: link_id, tag: vlan_tag(item, &["vlan_id"])? }, &mut plan)?;
            }
            "nameserver" => {
                plan.dns.extend(addresses(item, "address")?);
                plan.search.extend(texts(item, "search"));
            }
            "route" => routes.push(item_route(item)?),
            "loopback" => {}
            other => {
                return wrong(format!(
                    "an item of type {other:?} is not supported; use physical, bond, bridge, vlan, nameserver and route"
                ));
            }
        }
    }
    for route in routes {
        place(route, &mut plan)?;
    }
    Ok(plan)
}

/// A route without an interface goes to the one whose network has its gateway.
fn place(route: RoutePlan, plan: &mut NetworkPlan) -> Result<()> {
    let reaches = |nic: &NicPlan| route.via.is_some_and(|via| nic.addresses.iter().any(|own| own.contains(&via)));
    let at = plan.nics.iter().position(reaches).or(plan.nics.len().checked_sub(1));
    match at.and_then(|at| plan.nics.get_mut(at)) {
        Some(nic) => nic.routes.push(route),
        None => return wrong("there is a route and no interface".to_owned()),
    }
    Ok(())
}

fn link(item: &Value, kind: LinkKind, plan: &mut NetworkPlan) -> Result<()> {
    let mac = mac(item, "mac_address")?;
    let name = text(item, "name");
    let is_card = kind == LinkKind::Hardware;
    if name.is_none() && (mac.is_none() || !is_card) {
        return wrong("an interface has neither mac_address nor name".to_owned());
    }
    let mut nic = NicPlan {
        id: name.clone().or_else(|| mac.clone()).unwrap_or_default(),
        kind,
        // A card that is known by its hardware address keeps the name that the kernel gave it.
        name: name.filter(|_| mac.is_none() || !is_card),
        mac,
        mtu: mtu(item)?,
        accept_ra: flag(item, "accept-ra"),
        ..NicPlan::default()
    };
    for subnet in list(item, "subnets") {
        subnet_of(subnet, &mut nic)?;
        plan.dns.extend(addresses(subnet, "dns_nameservers")?);
        plan.search.extend(texts(subnet, "dns_search"));
    }
    plan.nics.push(nic);
    Ok(())
}

fn subnet_of(subnet: &Value, nic: &mut NicPlan) -> Result<()> {
    // Some providers leave the type of a static subnet out.
    let implied = if subnet.get("address").is_some() { "static" } else { "manual" };
    match text(subnet, "type").unwrap_or_else(|| implied.to_owned()).as_str() {
        "dhcp" | "dhcp4" => {
            nic.dhcp4 = true;
            nic.dhcp_metric = number(subnet, &["metric"]).or(nic.dhcp_metric);
        }
        "dhcp6" | "ipv6_dhcpv6-stateful" => nic.dhcp6 = Some(Dhcp6::Stateful),
        "ipv6_dhcpv6-stateless" => {
            nic.dhcp6 = nic.dhcp6.or(Some(Dhcp6::Stateless));
            nic.accept_ra = Some(true);
        }
        "ipv6_slaac" => nic.accept_ra = Some(true),
        "static" | "static6" => static_subnet(subnet, nic)?,
        "manual" => {}
        other => return wrong(format!("a subnet of type {other:?} is not supported")),
    }
    for route in list(subnet, "routes") {
        nic.routes.push(item_route(route)?);
    }
    Ok(())
}

fn static_subnet(subnet: &Value, nic: &mut NicPlan) -> Result<()> {
    let given =
        text(subnet, "address").ok_or_else(|| NetworkConfigError("a static subnet has no address".to_owned()))?;
    let own = with_netmask(&given, text(subnet, "netmask").as_deref())?;
    nic.addresses.push(own);
    if let Some(gateway) = text(subnet, "gateway") {
        let mut route = route(None, Some(address(&gateway)?), number(subnet, &["metric"]))?;
        // A gateway outside the address's own network is reached over the link.
        route.on_link |= route.via.is_some_and(|via| !own.contains(&via));
        nic.routes.push(route);
    }
    Ok(())
}

fn item_route(item: &Value) -> Result<RoutePlan> {
    let to = text(item, "destination").or_else(|| text(item, "network")).filter(|to| to != "default");
    let to = to.map(|to| with_netmask(&to, text(item, "netmask").as_deref())).transpose()?;
    let via = text(item, "gateway").map(|gateway| address(&gateway)).transpose()?;
    route(to, via, number(item, &["metric"]))
}

fn bond(item: &Value) -> Result<BondPlan> {
    let params = item.get("params").unwrap_or(item);
    let either = |name: &str| ["bond-", "bond_", ""].iter().find_map(|prefix| text(params, &format!("{prefix}{name}")));
    let digits = |name: &str| either(name).and_then(|text| text.parse().ok());
    Ok(BondPlan {
        members: texts(item, "bond_interfaces"),
        mode: bond_mode(either("mode").as_deref())?,
        miimon: digits("miimon"),
        updelay: digits("updelay"),
        downdelay: digits("downdelay"),
        lacp_fast: either("lacp-rate").or_else(|| either("lacp_rate")).map(|rate| rate == "fast" || rate == "1"),
        hash_policy: hash_policy(either("xmit-hash-policy").or_else(|| either("xmit_hash_policy")).as_deref())?,
        min_links: digits("min-links").or_else(|| digits("min_links")),
        primary: either("primary"),
    })
}

fn bridge(item: &Value) -> BridgePlan {
    let params = item.get("params").unwrap_or(item);
    let digits = |name: &str| number(params, &[&format!("bridge_{name}"), &format!("bridge-{name}")]);
    BridgePlan {
        members: texts(item, "bridge_interfaces"),
        stp: flag(params, "bridge_stp").or_else(|| flag(params, "bridge-stp")),
        forward_delay: digits("fd"),
        ageing_time: digits("ageing"),
        priority: digits("bridgeprio").and_then(|priority| u16::try_from(priority).ok()),
    }
}
