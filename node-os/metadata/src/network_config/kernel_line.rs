//! The network by the kernel's command line: `network-config=BASE64` as cloud-init reads it, and `ip=`, `nameserver=`
//! as dracut and the kernel's own client read them. It stands above what metadata says.
//! <https://man7.org/linux/man-pages/man7/dracut.cmdline.7.html>

use super::fields::{address, mac_address, with_netmask};
use super::{Dhcp6, NetworkConfigError, NetworkPlan, NicPlan, Result, RoutePlan, wrong};

/// `None` when the line says nothing of the network.
pub fn parse(line: &str) -> Result<Option<NetworkPlan>> {
    let values = |key: &str| -> Vec<&str> {
        line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    if let Some(value) = values("network-config").last() {
        // Metadata's network is not wanted, and a node without one is of no use.
        let disabled = *value == "disabled";
        return if disabled {
            Ok(Some(NetworkPlan::dhcp_everywhere()))
        } else {
            super::parse(value.as_bytes()).map(Some)
        };
    }
    let mut plan = NetworkPlan::default();
    for value in values("ip") {
        ip(value, &mut plan).map_err(|error| NetworkConfigError(format!("ip={value}: {}", error.0)))?;
    }
    if plan.nics.is_empty() {
        return Ok(None);
    }
    for value in values("nameserver") {
        plan.dns.push(address(value.trim_matches(['[', ']']))?);
    }
    plan.ordered().map(Some)
}

fn ip(value: &str, plan: &mut NetworkPlan) -> Result<()> {
    let fields = split(value);
    let field = |at: usize| fields.get(at).map(String::as_str).unwrap_or_default();
    let nic = match fields.len() {
        // ip=METHOD
        0 | 1 => NicPlan { name: Some("*".to_owned()), ..with_method(field(0))? },
        // ip=INTERFACE:METHOD[:MTU[:MAC]]
        2..=4 if field(0).parse::<std::net::IpAddr>().is_err() => NicPlan {
            mtu: field(2).parse().ok().filter(|mtu| (576..=65535).contains(mtu)),
            ..by(field(0), field(3), with_method(field(1))?)?
        },
        // ip=CLIENT:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD[:DNS:DNS | :MTU:MAC]
        _ => {
            let mut nic = match field(6) {
                "" | "none" | "off" | "static" => NicPlan::default(),
                method => with_method(method)?,
            };
            if !field(0).is_empty() {
                let own = with_netmask(field(0), Some(field(3)).filter(|mask| !mask.is_empty()))?;
                nic.addresses.push(own);
                if !field(2).is_empty() {
                    let via = address(field(2))?;
                    let mut route = RoutePlan::default_by(via, None);
                    route.on_link |= !own.contains(&via);
                    nic.routes.push(route);
                }
            }
            let extra = field(7).parse::<u32>();
            match extra {
                Ok(mtu) => nic.mtu = Some(mtu).filter(|mtu| (576..=65535).contains(mtu)),
                Err(_) => {
                    for server in [field(7), field(8)].iter().filter(|server| !server.is_empty()) {
                        plan.dns.push(address(server)?);
                    }
                }
            }
            by(field(5), if extra.is_ok() { field(8) } else { "" }, nic)?
        }
    };
    plan.nics.push(nic);
    Ok(())
}

fn by(name: &str, mac: &str, nic: NicPlan) -> Result<NicPlan> {
    let mac = if mac.is_empty() { None } else { Some(mac_address(mac)?) };
    let name = if name.is_empty() { "*" } else { name };
    Ok(NicPlan { id: name.to_owned(), name: mac.is_none().then(|| name.to_owned()), mac, ..nic })
}

fn with_method(method: &str) -> Result<NicPlan> {
    let nic = NicPlan::default();
    Ok(match method {
        "dhcp" | "on" | "any" | "single-dhcp" | "link6+dhcp" => NicPlan { dhcp4: true, ..nic },
        "dhcp6" => NicPlan { dhcp6: Some(Dhcp6::Stateful), ..nic },
        "auto6" => NicPlan { accept_ra: Some(true), ..nic },
        "either6" => NicPlan { accept_ra: Some(true), dhcp6: Some(Dhcp6::Stateful), ..nic },
        "none" | "off" | "link-local" => nic,
        other => return wrong(format!("{other:?} is no way to get an address; use dhcp, dhcp6, auto6 or none")),
    })
}

/// Fields between colons; an IPv6 address stands in brackets.
fn split(value: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut inside = false;
    for character in value.chars() {
        match character {
            '[' => inside = true,
            ']' => inside = false,
            ':' if !inside => fields.push(String::new()),
            other => fields.last_mut().into_iter().for_each(|field| field.push(other)),
        }
    }
    // A hardware address at the end has colons of its own.
    let tail = fields.len().checked_sub(6).and_then(|at| fields.get(at..)).map(|tail| tail.join(":"));
    if let Some(mac) = tail.filter(|mac| fields.len() > 6 && mac_address(mac).is_ok()) {
        fields.truncate(fields.len() - 6);
        fields.push(mac);
    }
    fields
}
