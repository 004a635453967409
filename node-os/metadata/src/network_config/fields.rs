//! Single values of a network configuration, in all the ways in which they are written.

use super::{NetworkConfigError, Result, RoutePlan, wrong};
use ipnet::IpNet;
use serde_yaml_ng::Value;
use std::net::{IpAddr, Ipv4Addr};

pub(super) fn with_netmask(given: &str, netmask: Option<&str>) -> Result<IpNet> {
    if let Ok(net) = given.trim().parse::<IpNet>() {
        return Ok(net);
    }
    let ip = address(given)?;
    let prefix = match netmask.map(str::trim).filter(|mask| !mask.is_empty()) {
        None if ip.is_ipv4() => 32,
        None => 128,
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

pub(super) fn address(given: &str) -> Result<IpAddr> {
    let ip: IpAddr = given.trim().parse().map_err(|_| NetworkConfigError(format!("{given:?} is no IP address")))?;
    if ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return wrong(format!("{given} cannot be used as an address"));
    }
    Ok(ip)
}

pub(super) fn addresses(item: &Value, key: &str) -> Result<Vec<IpAddr>> {
    texts(item, key).iter().map(|given| address(given)).collect()
}

/// A route; without a destination it is the default route of its gateway.
pub(super) fn route(to: Option<IpNet>, via: Option<IpAddr>, metric: Option<u32>) -> Result<RoutePlan> {
    match (to, via) {
        // An IPv4 route over an IPv6 gateway is the kernel's RTA_VIA, which no provider hands out.
        (Some(to), Some(via)) if to.addr().is_ipv4() != via.is_ipv4() => {
            wrong(format!("the route to {to} has the gateway {via}, which is of the other family"))
        }
        (Some(to), via) => Ok(RoutePlan { metric, ..RoutePlan::to(to.trunc(), via) }),
        (None, Some(via)) => Ok(RoutePlan::default_by(via, metric)),
        (None, None) => wrong("a default route has no gateway".to_owned()),
    }
}

/// Lower case, with colons.
pub(super) fn mac_address(given: &str) -> Result<String> {
    let mut mac = given.trim().to_ascii_lowercase().replace('-', ":");
    if mac.len() == 12 && mac.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let pairs: Vec<&str> = (0..12).step_by(2).filter_map(|at| mac.get(at..at + 2)).collect();
        mac = pairs.join(":");
    }
    let parts: Vec<&str> = mac.split(':').collect();
    let is_pair = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let good = parts.len() == 6 && parts.iter().all(is_pair);
    if good { Ok(mac) } else { wrong(format!("{given:?} is no hardware address")) }
}

pub(super) fn mac(item: &Value, key: &str) -> Result<Option<String>> {
    text(item, key).map(|mac| mac_address(&mac)).transpose()
}

pub(super) fn mtu(item: &Value) -> Result<Option<u32>> {
    match item.get("mtu").filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(_) => match number(item, &["mtu"]) {
            Some(mtu @ 576..=65535) => Ok(Some(mtu)),
            _ => wrong("an mtu is not between 576 and 65535".to_owned()),
        },
    }
}

/// The first of the keys that is there, as a number.
pub(super) fn number(item: &Value, keys: &[&str]) -> Option<u32> {
    let value = keys.iter().find_map(|key| item.get(key))?;
    let wide = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())?;
    u32::try_from(wide).ok()
}

pub(super) fn list<'a>(item: &'a Value, key: &str) -> &'a [Value] {
    item.get(key).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
}

pub(super) fn text(item: &Value, key: &str) -> Option<String> {
    match item.get(key)? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.trim().is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A list of texts, or one text of several words.
pub(super) fn texts(item: &Value, key: &str) -> Vec<String> {
    match item.get(key) {
        Some(Value::String(text)) => {
            text.split([' ', ',', '\t', '\n']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        }
        Some(Value::Sequence(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn flag(item: &Value, key: &str) -> Option<bool> {
    match item.get(key)? {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => number.as_u64().map(|number| number != 0),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "yes" | "true" | "on" | "1" => Some(true),
            "no" | "false" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

const BOND_MODES: [&str; 7] =
    ["balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"];
const HASH_POLICIES: [&str; 6] = ["layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"];

/// The kernel's number of a bond's mode; the number itself may be given.
pub(super) fn bond_mode(given: Option<&str>) -> Result<u8> {
    given.map_or(Ok(0), |given| named(given, &BOND_MODES, "mode of a bond"))
}

pub(super) fn hash_policy(given: Option<&str>) -> Result<Option<u8>> {
    given.map(|given| named(given, &HASH_POLICIES, "hash policy of a bond")).transpose()
}

fn named(given: &str, names: &[&str], what: &str) -> Result<u8> {
    let at = names.iter().position(|name| *name == given).or_else(|| given.parse().ok().filter(|at| *at < names.len()));
    match at.and_then(|at| u8::try_from(at).ok()) {
        Some(number) => Ok(number),
        None => wrong(format!("{given:?} is no {what}; known are {}", names.join(", "))),
    }
}

pub(super) fn vlan_tag(item: &Value, keys: &[&str]) -> Result<u16> {
    match number(item, keys).and_then(|tag| u16::try_from(tag).ok()) {
        Some(tag @ 1..=4094) => Ok(tag),
        _ => wrong(format!("a vlan has no {} between 1 and 4094", keys.first().unwrap_or(&"id"))),
    }
}
