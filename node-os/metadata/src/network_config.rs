//! Network configuration, versions 1 and 2, as cloud-init documents them: what a server needs of it
//! (ethernets with static addresses, routes, DHCPv4, DNS, MTU), as one plan.
//!
//! Bonds, bridges and VLANs are refused by name rather than left out silently.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_yaml_ng::Value;
use std::net::{IpAddr, Ipv4Addr};

/// What to do with the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPlan {
    /// One entry an interface.
    pub nics: Vec<NicPlan>,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// DNS search domains.
    pub search: Vec<String>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NicPlan {
    /// Lower-case hardware address to find it by.
    pub mac: Option<String>,
    /// Name to find it by, when there is no hardware address; may be a pattern with `*`.
    pub name: Option<String>,
    /// Name to give it.
    pub set_name: Option<String>,
    /// Static addresses.
    pub addresses: Vec<IpNet>,
    /// Routes.
    pub routes: Vec<RoutePlan>,
    /// Ask by DHCP for an IPv4 address.
    pub dhcp4: bool,
    /// Take the DNS servers of the DHCP answer.
    pub dhcp_dns: bool,
    /// Take the routes of the DHCP answer.
    pub dhcp_routes: bool,
    /// Metric of the routes of the DHCP answer.
    pub dhcp_metric: Option<u32>,
    /// MTU.
    pub mtu: Option<u32>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePlan {
    /// Destination; a zero prefix is the default route.
    pub to: IpNet,
    /// Next hop, `None` for a route on the link.
    pub via: Option<IpAddr>,
    /// Metric.
    pub metric: Option<u32>,
    /// The next hop is on the link whatever the addresses say.
    pub on_link: bool,
}

/// Why a network configuration cannot be used: one sentence.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("network-config is wrong: {0}")]
pub struct NetworkConfigError(pub String);

type Result<T> = std::result::Result<T, NetworkConfigError>;

/// Nothing larger is looked at.
const LIMIT: usize = 64 * 1024;

impl NetworkPlan {
    /// Without any configuration: DHCP on every interface.
    pub fn dhcp_everywhere() -> NetworkPlan {
        let nic = NicPlan {
            name: Some("*".to_owned()),
            dhcp4: true,
            dhcp_dns: true,
            dhcp_routes: true,
            ..NicPlan::default()
        };
        NetworkPlan { nics: vec![nic], ..NetworkPlan::default() }
    }
}

/// Reads either version, with or without `network:` around it.
pub fn parse(text: &str) -> Result<NetworkPlan> {
    if text.len() > LIMIT {
        return wrong(format!("it has more than {LIMIT} bytes"));
    }
    let document: Value = serde_yaml_ng::from_str(text).map_err(|error| NetworkConfigError(error.to_string()))?;
    let document = document.get("network").cloned().unwrap_or(document);
    match document.get("version").and_then(Value::as_u64) {
        Some(1) => version_1(&document),
        Some(2) => version_2(&document),
        Some(other) => wrong(format!("version {other} is unknown, 1 and 2 are known")),
        None => wrong("it has no version".to_owned()),
    }
}

fn wrong<T>(sentence: String) -> Result<T> {
    Err(NetworkConfigError(sentence))
}

fn version_1(document: &Value) -> Result<NetworkPlan> {
    let mut plan = NetworkPlan::default();
    for item in list(document, "config") {
        match text(item, "type").unwrap_or_default().as_str() {
            "physical" => {
                let nic = physical(item, &mut plan)?;
                plan.nics.push(nic);
            }
            "nameserver" => {
                plan.dns.extend(addresses(item, "address")?);
                plan.search.extend(texts(item, "search"));
            }
            "route" => {
                let route = route_1(item)?;
                match plan.nics.last_mut() {
                    Some(nic) => nic.routes.push(route),
                    None => return wrong("a route stands before the first interface".to_owned()),
                }
            }
            other => {
                return wrong(format!(
                    "an item of type {other:?} is not supported; use physical, nameserver and route"
                ));
            }
        }
    }
    Ok(plan)
}

fn physical(item: &Value, plan: &mut NetworkPlan) -> Result<NicPlan> {
    let mac = mac(item, "mac_address")?;
    let name = text(item, "name");
    let mut nic = NicPlan { name: name.filter(|_| mac.is_none()), mac, mtu: mtu(item)?, ..NicPlan::default() };
    if nic.mac.is_none() && nic.name.is_none() {
        return wrong("a physical interface has neither mac_address nor name".to_owned());
    }
    for subnet in list(item, "subnets") {
        match text(subnet, "type").unwrap_or_else(|| "static".to_owned()).as_str() {
            "dhcp" | "dhcp4" => (nic.dhcp4, nic.dhcp_dns, nic.dhcp_routes) = (true, true, true),
            "static" | "static6" => static_subnet(subnet, &mut nic)?,
            "manual" => {}
            // The kernel takes IPv6 addresses from router advertisements by itself.
            "dhcp6" | "ipv6_slaac" | "ipv6_dhcpv6-stateless" | "ipv6_dhcpv6-stateful" => {}
            other => return wrong(format!("a subnet of type {other:?} is not supported")),
        }
        plan.dns.extend(addresses(subnet, "dns_nameservers")?);
        plan.search.extend(texts(subnet, "dns_search"));
    }
    Ok(nic)
}

fn static_subnet(subnet: &Value, nic: &mut NicPlan) -> Result<()> {
    let given = text(subnet, "address").ok_or(NetworkConfigError("a static subnet has no address".to_owned()))?;
    nic.addresses.push(with_netmask(&given, text(subnet, "netmask").as_deref())?);
    if let Some(gateway) = text(subnet, "gateway") {
        nic.routes.push(default_route(address(&gateway)?, metric(subnet)));
    }
    for route in list(subnet, "routes") {
        nic.routes.push(route_1(route)?);
    }
    Ok(())
}

fn route_1(item: &Value) -> Result<RoutePlan> {
    let to = text(item, "destination").or_else(|| text(item, "network")).unwrap_or_else(|| "default".to_owned());
    let to = if to == "default" { None } else { Some(with_netmask(&to, text(item, "netmask").as_deref())?) };
    let via = text(item, "gateway").map(|gateway| address(&gateway)).transpose()?;
    route(to, via, metric(item), false)
}

fn version_2(document: &Value) -> Result<NetworkPlan> {
    for kind in ["bonds", "bridges", "vlans", "wifis", "tunnels"] {
        if document.get(kind).and_then(Value::as_mapping).is_some_and(|map| !map.is_empty()) {
            return wrong(format!("{kind} are not supported; use ethernets"));
        }
    }
    let mut plan = NetworkPlan::default();
    let Some(ethernets) = document.get("ethernets").and_then(Value::as_mapping) else { return Ok(plan) };
    for (key, item) in ethernets {
        let key = key.as_str().unwrap_or_default();
        let nic = ethernet(key, item)?;
        if let Some(servers) = item.get("nameservers") {
            plan.dns.extend(addresses(servers, "addresses")?);
            plan.search.extend(texts(servers, "search"));
        }
        plan.nics.push(nic);
    }
    Ok(plan)
}

fn ethernet(key: &str, item: &Value) -> Result<NicPlan> {
    let empty = Value::Null;
    let matcher = item.get("match").unwrap_or(&empty);
    let overrides = item.get("dhcp4-overrides").unwrap_or(&empty);
    let mac = mac(matcher, "macaddress")?;
    let name = text(matcher, "name").unwrap_or_else(|| key.to_owned());
    let mut nic = NicPlan {
        name: mac.is_none().then_some(name),
        mac,
        set_name: text(item, "set-name"),
        dhcp4: flag(item, "dhcp4").unwrap_or(false),
        dhcp_dns: flag(overrides, "use-dns").unwrap_or(true),
        dhcp_routes: flag(overrides, "use-routes").unwrap_or(true),
        dhcp_metric: overrides.get("route-metric").and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok()),
        mtu: mtu(item)?,
        ..NicPlan::default()
    };
    for given in texts(item, "addresses") {
        nic.addresses.push(with_netmask(&given, None)?);
    }
    for gateway in ["gateway4", "gateway6"].iter().filter_map(|name| text(item, name)) {
        nic.routes.push(default_route(address(&gateway)?, None));
    }
    for entry in list(item, "routes") {
        let via = text(entry, "via").map(|via| address(&via)).transpose()?;
        let to = match text(entry, "to").as_deref() {
            None => return wrong(format!("a route of {key} has no destination (to)")),
            Some("default" | "0.0.0.0/0" | "::/0") => None,
            Some(to) => Some(with_netmask(to, None)?),
        };
        nic.routes.push(route(to, via, metric(entry), flag(entry, "on-link").unwrap_or(false))?);
    }
    Ok(nic)
}

fn route(to: Option<IpNet>, via: Option<IpAddr>, metric: Option<u32>, on_link: bool) -> Result<RoutePlan> {
    match (to, via) {
        (Some(to), via) => Ok(RoutePlan { to: to.trunc(), via, metric, on_link }),
        (None, Some(via)) => Ok(RoutePlan { on_link, ..default_route(via, metric) }),
        (None, None) => wrong("a default route has no gateway".to_owned()),
    }
}

fn default_route(via: IpAddr, metric: Option<u32>) -> RoutePlan {
    let to = match via {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    // A link-local gateway is on the link by its nature.
    let on_link = matches!(via, IpAddr::V6(address) if address.is_unicast_link_local());
    RoutePlan { to, via: Some(via), metric, on_link }
}

/// An address with its prefix: `a/24`, or `a` with the netmask `255.255.255.0`, `24` or `ffff::`; alone it is a host.
fn with_netmask(given: &str, netmask: Option<&str>) -> Result<IpNet> {
    if let Ok(net) = given.parse::<IpNet>() {
        return Ok(net);
    }
    let ip = address(given)?;
    let prefix = match netmask {
        None => {
            if ip.is_ipv4() {
                32
            } else {
                128
            }
        }
        Some(mask) => prefix_of(mask).ok_or_else(|| NetworkConfigError(format!("{mask:?} is no netmask")))?,
    };
    IpNet::new(ip, prefix).map_err(|_| NetworkConfigError(format!("{given}/{prefix} is no network")))
}

fn prefix_of(mask: &str) -> Option<u8> {
    if let Ok(prefix) = mask.parse() {
        return Some(prefix);
    }
    match mask.parse().ok()? {
        IpAddr::V4(mask) => ipnet::ipv4_mask_to_prefix(mask).ok(),
        IpAddr::V6(mask) => ipnet::ipv6_mask_to_prefix(mask).ok(),
    }
}

fn address(given: &str) -> Result<IpAddr> {
    let ip: IpAddr = given.trim().parse().map_err(|_| NetworkConfigError(format!("{given:?} is no IP address")))?;
    if ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return wrong(format!("{given} cannot be used as an address"));
    }
    Ok(ip)
}

fn addresses(item: &Value, key: &str) -> Result<Vec<IpAddr>> {
    texts(item, key).iter().map(|given| address(given)).collect()
}

fn mac(item: &Value, key: &str) -> Result<Option<String>> {
    let Some(mac) = text(item, key) else { return Ok(None) };
    let mac = mac.to_ascii_lowercase().replace('-', ":");
    let parts: Vec<&str> = mac.split(':').collect();
    let good = parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok());
    if good { Ok(Some(mac)) } else { wrong(format!("{mac:?} is no hardware address")) }
}

fn mtu(item: &Value) -> Result<Option<u32>> {
    match item.get("mtu").filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(mtu @ 576..=65535) => Ok(u32::try_from(mtu).ok()),
            _ => wrong("an mtu is not between 576 and 65535".to_owned()),
        },
    }
}

fn metric(item: &Value) -> Option<u32> {
    item.get("metric").and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok())
}

fn list<'a>(item: &'a Value, key: &str) -> &'a [Value] {
    item.get(key).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
}

fn text(item: &Value, key: &str) -> Option<String> {
    match item.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(item: &Value, key: &str) -> Vec<String> {
    match item.get(key) {
        Some(Value::String(text)) => text.split_ascii_whitespace().map(str::to_owned).collect(),
        Some(Value::Sequence(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn flag(item: &Value, key: &str) -> Option<bool> {
    match item.get(key)? {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => match text.as_str() {
            "yes" | "true" | "on" => Some(true),
            "no" | "false" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn both_versions_give_the_same_plan() {
        let one = "version: 1\nconfig:\n- type: physical\n  name: eth0\n  mac_address: '52:54:00:AA:00:01'\n  mtu: 1400\n  \
                   subnets:\n  - type: static\n    address: 10.77.0.11\n    netmask: 255.255.255.0\n    gateway: 10.77.0.1\n    \
                   routes:\n    - {network: 10.9.0.0, netmask: 255.255.0.0, gateway: 10.77.0.2}\n- type: nameserver\n  address: 9.9.9.9\n";
        let two = "network:\n  version: 2\n  ethernets:\n    eth0:\n      match: {macaddress: '52:54:00:aa:00:01'}\n      mtu: 1400\n      \
                   addresses: [10.77.0.11/24]\n      gateway4: 10.77.0.1\n      routes: [{to: 10.9.0.0/16, via: 10.77.0.2}]\n      \
                   nameservers: {addresses: [9.9.9.9]}\n";
        let (mut first, second) = (parse(one).unwrap(), parse(two).unwrap());
        // Without DHCP its options mean nothing.
        first.nics[0].dhcp_dns = true;
        first.nics[0].dhcp_routes = true;
        assert_eq!(first, second);
        let nic = &second.nics[0];
        assert_eq!(nic.addresses, [net("10.77.0.11/24")]);
        assert_eq!(nic.routes[0].to, net("0.0.0.0/0"));
        assert_eq!(nic.routes[1].to, net("10.9.0.0/16"));
        assert_eq!(second.dns, ["9.9.9.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn dhcp_and_its_overrides() {
        let plan = parse("version: 2\nethernets:\n  a:\n    match: {name: 'en*'}\n    dhcp4: true\n    dhcp4-overrides: {use-dns: false, route-metric: 200}\n").unwrap();
        let nic = &plan.nics[0];
        assert_eq!(
            (nic.name.as_deref(), nic.dhcp4, nic.dhcp_dns, nic.dhcp_metric),
            (Some("en*"), true, false, Some(200))
        );
        let plan = parse("version: 1\nconfig:\n- {type: physical, name: eth1, subnets: [{type: dhcp4}]}\n").unwrap();
        assert!(plan.nics[0].dhcp4 && plan.nics[0].dhcp_routes);
    }

    #[test]
    fn every_fault_is_named() {
        let cases = [
            ("version: 3", "version 3"),
            ("a: b", "no version"),
            ("version: 2\nvlans: {v: {}}", "vlans are not supported"),
            ("version: 1\nconfig: [{type: bond}]", "bond"),
            ("version: 2\nethernets: {a: {addresses: [10.0.0.300/24]}}", "10.0.0.300/24"),
            ("version: 2\nethernets: {a: {mtu: 5}}", "mtu"),
            ("version: 2\nethernets: {a: {match: {macaddress: zz}}}", "hardware address"),
            ("version: 2\nethernets: {a: {routes: [{to: default}]}}", "no gateway"),
            (
                "version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: 1.2.3.4, netmask: 7.7.7.7}]}]",
                "netmask",
            ),
            ("[", "network-config is wrong"),
        ];
        for (text, wanted) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error:?} should contain {wanted:?}");
        }
    }
}
