//! Networks of more than one card, as NoCloud describes them: two cards are one bond, and a VLAN lies on it.

use crate::Test;
use anyhow::{Context, ensure};
use kimg::seed::fat;
use kimg::switch::Mac;
use qemu_tests::cables::{Cables, Heard, LEASE, PREFIX, TAG};
use qemu_tests::{Bench, Machine, Result};
use std::net::{IpAddr, Ipv4Addr};

const NODE: &str = "worker-1";
/// The cable beside the machine's own.
const SECOND: &str = "second";
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const BEHIND_TAG: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 11);

pub(crate) fn tests() -> Vec<Test> {
    vec![Test::new("boot::a_bond_a_vlan_and_advertised_addresses_are_reached", true, bond)]
}

/// The bond has a static address and what a router advertises, DNS servers among that; the VLAN a static address and
/// DHCPv6's. Each is pinged; then the cable that is in use is pulled out.
fn bond(bench: &Bench) -> Result {
    bench.with("bond", NODE, |machine| {
        let [lan, nat] = machine.macs();
        let second = kimg::seed::mac("bond", NODE, 2);
        let config = format!(
            "version: 2
ethernets:
  one: {{match: {{macaddress: '{lan}'}}}}
  two: {{match: {{macaddress: '{second}'}}}}
  nat: {{match: {{macaddress: '{nat}'}}, dhcp4: true, dhcp4-overrides: {{use-dns: false}}}}
bonds:
  bond0:
    interfaces: [one, two]
    addresses: [{OWN}/24]
    parameters: {{mode: active-backup, mii-monitor-interval: 50, primary: one}}
vlans:
  bond0.{TAG}: {{id: {TAG}, link: bond0, addresses: [{BEHIND_TAG}/24], dhcp6: true}}
"
        );
        let user_data = machine.user_data()?;
        let meta = format!("instance-id: a\nlocal-hostname: {NODE}\n");
        let files = [("meta-data", &meta), ("user-data", &user_data), ("network-config", &config)];
        let drive = fat::volume("cidata", &files.map(|(name, text)| (name, text.as_bytes())))?;
        let card = [
            "-netdev".to_owned(),
            format!(
                "dgram,id={SECOND},local.type=unix,local.path={SECOND}.vm,remote.type=unix,remote.path={SECOND}.sw"
            ),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev={SECOND},romfile=,mac={second}"),
        ];
        machine.wake_by("product=a machine", &drive, &card)?;
        let cables = Cables::plug_in(machine.folder(), &[NODE, SECOND])?;
        machine.start()?;
        let status = machine.booted()?;
        ensure!(status.source == "nocloud", "it woke up by {}", status.source);
        ensure!(status.warnings.iter().all(|warning| !warning.starts_with("network")), "{:?}", status.warnings);

        let mac = mac(&lan)?;
        let advertised = advertised_address(machine)?;
        let (own, behind) = (IpAddr::from(OWN), IpAddr::from(BEHIND_TAG));
        let all = [(None, own), (None, advertised), (Some(TAG), behind), (Some(TAG), IpAddr::from(LEASE))];
        for (tag, address) in all {
            answers(machine, &cables, mac, tag, address, 0)?;
        }
        machine.until("a question to the advertised DNS server", 60, |_| {
            Ok(cables.has_heard(&Heard::Question).then_some(()))
        })?;
        machine.plug("lan", false)?;
        for (tag, address) in all {
            answers(machine, &cables, mac, tag, address, 1)?;
        }
        Ok(())
    })
}

fn mac(text: &str) -> Result<Mac> {
    let octets: std::result::Result<Vec<u8>, _> = text.split(':').map(|pair| u8::from_str_radix(pair, 16)).collect();
    Ok(Mac(octets?.try_into().ok().context("six octets")?))
}

/// Made by the kernel from the prefix.
fn advertised_address(machine: &mut Machine<'_>) -> Result<IpAddr> {
    machine.until("an address of the advertised prefix", 30, |machine| {
        let links: Vec<node_api::Link> = machine.node(node_api::path::LINKS)?;
        let bond = links.iter().find(|link| link.name == "bond0").context("there is no bond0")?;
        let bare = bond.addresses.iter().filter_map(|own| own.split('/').next()?.parse().ok());
        Ok(bare.into_iter().find(|own| matches!(own, IpAddr::V6(own) if own.segments()[..4] == PREFIX.segments()[..4])))
    })
}

/// Pings until an answer has come over this cable.
fn answers(
    machine: &mut Machine<'_>,
    cables: &Cables,
    mac: Mac,
    tag: Option<u16>,
    from: IpAddr,
    cable: usize,
) -> Result {
    machine.until(&format!("{from} to answer over cable {cable}"), 30, |_| {
        cables.ping(mac, tag, from);
        Ok(cables.has_heard(&Heard::Pong { cable, tag, from }).then_some(()))
    })
}
