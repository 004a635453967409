//! Version 2: the subset of netplan that cloud-init documents: ethernets, bonds, bridges and vlans by id.
//! <https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html>

use super::fields::{
    address, addresses, bond_mode, flag, hash_policy, list, mac, mtu, number, route, text, texts, vlan_tag,
    with_netmask,
};
use super::{
    BondPlan, BridgePlan, Dhcp6, LinkKind, NetworkConfigError, NetworkPlan, NicPlan, Result, RoutePlan, wrong,
};
use ipnet::IpNet;
use serde_yaml_ng::Value;

/// All that is read of an interface.
const READ: [&str; 19] = [
    "accept-ra",
    "addresses",
    "dhcp4",
    "dhcp4-overrides",
    "dhcp6",
    "dhcp6-overrides",
    "gateway4",
    "gateway6",
    "id",
    "interfaces",
    "link",
    "macaddress",
    "match",
    "mtu",
    "nameservers",
    "optional",
    "parameters",
    "routes",
    "set-name",
];
/// What is read of the overrides of DHCPv4, and of DHCPv6.
const OVERRIDES: [(&str, &[&str]); 2] =
    [("dhcp4-overrides", &["use-dns", "use-routes", "use-mtu", "route-metric"]), ("dhcp6-overrides", &["use-dns"])];
/// More are not told of: the node's console is one screen.
const MOST_IGNORED: usize = 8;

/// The kernel's table of ordinary routes.
const MAIN_TABLE: u32 = 254;

pub(super) fn read(document: &Value) -> Result<NetworkPlan> {
    for kind in ["wifis", "tunnels", "vrfs", "modems", "dummy-devices"] {
        if document.get(kind).and_then(Value::as_mapping).is_some_and(|map| !map.is_empty()) {
            return wrong(format!("{kind} are not supported; use ethernets, bonds, bridges and vlans"));
        }
    }
    let mut plan = NetworkPlan::default();
    type Kind = fn(&str, &Value) -> Result<LinkKind>;
    let kinds: [(&str, Kind); 4] =
        [("ethernets", |_, _| Ok(LinkKind::Hardware)), ("bonds", bond), ("bridges", bridge), ("vlans", vlan)];
    for (section, kind) in kinds {
        let Some(map) = document.get(section).and_then(Value::as_mapping) else { continue };
        for (key, item) in map {
            let key = key.as_str().ok_or_else(|| NetworkConfigError(format!("a key of {section} is no text")))?;
            if plan.nics.iter().any(|nic| nic.id == key) {
                return wrong(format!("{key} is defined twice"));
            }
            let nic = device(key, kind(key, item)?, item)?;
            if let Some(servers) = item.get("nameservers") {
                plan.dns.extend(addresses(servers, "addresses")?);
                plan.search.extend(texts(servers, "search"));
            }
            plan.ignored.extend(ignored(key, item));
            plan.nics.push(nic);
        }
    }
    plan.ignored.truncate(MOST_IGNORED);
    Ok(plan)
}

/// What an interface asks for that nobody here brings about.
fn ignored(key: &str, item: &Value) -> Vec<String> {
    let unread = |item: &Value, read: &[&str], path: &str| -> Vec<String> {
        let keys = item.as_mapping().into_iter().flat_map(|map| map.keys()).filter_map(Value::as_str);
        let unread = keys.filter(|key| !read.contains(key));
        unread.map(|unread| format!("{path}.{}: this is not brought about", unread.escape_debug())).collect()
    };
    let path = format!("network-config: {}", key.escape_debug());
    let mut out = unread(item, &READ, &path);
    for (overrides, read) in OVERRIDES {
        out.extend(unread(item.get(overrides).unwrap_or(&Value::Null), read, &format!("{path}.{overrides}")));
    }
    out
}

fn device(key: &str, kind: LinkKind, item: &Value) -> Result<NicPlan> {
    // Each is about its own protocol. DHCPv6 brings no routes and no MTU: of its overrides only `use-dns` has a meaning.
    let [overrides, overrides6] =
        ["dhcp4-overrides", "dhcp6-overrides"].map(|key| item.get(key).unwrap_or(&Value::Null));
    let mut nic = NicPlan {
        id: key.to_owned(),
        dhcp4: flag(item, "dhcp4").unwrap_or(false),
        dhcp6: flag(item, "dhcp6").unwrap_or(false).then_some(Dhcp6::Stateful),
        accept_ra: flag(item, "accept-ra"),
        dhcp_dns: flag(overrides, "use-dns").unwrap_or(true),
        dhcp6_dns: flag(overrides6, "use-dns").unwrap_or(true),
        dhcp_routes: flag(overrides, "use-routes").unwrap_or(true),
        dhcp_mtu: flag(overrides, "use-mtu").unwrap_or(true),
        dhcp_metric: number(overrides, &["route-metric"]),
        mtu: mtu(item)?,
        optional: flag(item, "optional").unwrap_or(false),
        ..NicPlan::default()
    };
    name_it(&mut nic, kind, key, item)?;
    for given in list(item, "addresses") {
        nic.addresses.push(with_netmask(&entry_text(given).unwrap_or_default(), None)?);
    }
    for gateway in ["gateway4", "gateway6"].iter().filter_map(|name| text(item, name)) {
        nic.routes.push(route(None, Some(address(&gateway)?), None)?);
    }
    for entry in list(item, "routes") {
        nic.routes.push(route_of(key, entry)?);
    }
    Ok(nic)
}

/// A card is found by what `match` says; without it the key is its name. What is made has the key as its name.
fn name_it(nic: &mut NicPlan, kind: LinkKind, key: &str, item: &Value) -> Result<()> {
    let matcher = item.get("match").unwrap_or(&Value::Null);
    if kind == LinkKind::Hardware {
        nic.mac = mac(matcher, "macaddress")?;
        nic.driver = text(matcher, "driver").or_else(|| texts(matcher, "driver").into_iter().next());
        let by_driver = nic.driver.is_some().then(|| "*".to_owned());
        let name = text(matcher, "name").or(by_driver).unwrap_or_else(|| key.to_owned());
        nic.name = nic.mac.is_none().then_some(name);
        nic.set_name = text(item, "set-name");
    } else {
        nic.mac = mac(item, "macaddress")?;
        nic.name = Some(key.to_owned());
    }
    nic.kind = kind;
    Ok(())
}

/// `address/prefix`, or a map of it to options that mean nothing here (label, lifetime).
fn entry_text(given: &Value) -> Option<String> {
    let key = given.as_mapping().and_then(|map| map.keys().next());
    key.unwrap_or(given).as_str().map(str::to_owned)
}

fn route_of(key: &str, entry: &Value) -> Result<RoutePlan> {
    let via = text(entry, "via").map(|via| address(&via)).transpose()?;
    let to: Option<IpNet> = match text(entry, "to").as_deref() {
        None => return wrong(format!("a route of {key} has no destination (to)")),
        Some("default" | "0.0.0.0/0" | "::/0") => None,
        Some(to) => Some(with_netmask(to, None)?),
    };
    let mut route = route(to, via, number(entry, &["metric"]))?;
    route.on_link |= flag(entry, "on-link").unwrap_or(false);
    route.table = number(entry, &["table"]).filter(|table| *table != MAIN_TABLE);
    route.source = text(entry, "from").map(|from| address(&from)).transpose()?;
    Ok(route)
}

fn bond(key: &str, item: &Value) -> Result<LinkKind> {
    let params = item.get("parameters").unwrap_or(&Value::Null);
    let members = texts(item, "interfaces");
    if members.is_empty() {
        return wrong(format!("the bond {key} has no interfaces"));
    }
    Ok(LinkKind::Bond(BondPlan {
        members,
        mode: bond_mode(text(params, "mode").as_deref())?,
        miimon: number(params, &["mii-monitor-interval"]),
        updelay: number(params, &["up-delay"]),
        downdelay: number(params, &["down-delay"]),
        lacp_fast: text(params, "lacp-rate").map(|rate| rate == "fast"),
        hash_policy: hash_policy(text(params, "transmit-hash-policy").as_deref())?,
        min_links: number(params, &["min-links"]),
        primary: text(params, "primary"),
    }))
}

fn bridge(_key: &str, item: &Value) -> Result<LinkKind> {
    let params = item.get("parameters").unwrap_or(&Value::Null);
    Ok(LinkKind::Bridge(BridgePlan {
        members: texts(item, "interfaces"),
        stp: flag(params, "stp"),
        forward_delay: number(params, &["forward-delay"]),
        ageing_time: number(params, &["ageing-time"]),
        priority: number(params, &["priority"]).and_then(|priority| u16::try_from(priority).ok()),
    }))
}

fn vlan(key: &str, item: &Value) -> Result<LinkKind> {
    match text(item, "link") {
        Some(link) => Ok(LinkKind::Vlan { link, tag: vlan_tag(item, &["id"])? }),
        None => wrong(format!("the vlan {key} has no link")),
    }
}
