//! Answers that somebody spoiled: whatever a server says, a source ends with a finding or a sentence, at once.

use crate::fixture::{self, Fixture};
use node_metadata::{network_config, sources, userdata};
use std::time::{Duration, Instant};

/// Changed copies of each fixture.
const ROUNDS: u32 = 300;
/// One reading of spoiled answers takes no longer; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// A small generator of numbers (xorshift), so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

/// Values that parsers stumble over.
const NASTY: [&str; 22] = [
    "",
    "null",
    "-1",
    "99999999999999999999",
    "[]",
    "{}",
    "[[[[[[[[",
    "\"",
    "\\u0000",
    "\u{0}",
    "\u{feff}",
    "\n\n",
    "../../etc",
    "::",
    "255.255.255.255",
    "0.0.0.0/0",
    "999.1.1.1",
    "&a [*a]",
    "!!binary x",
    "%25nic]",
    "\u{1F980}\u{202E}",
    "a: b: c",
];

fn spoil(text: &str, dice: &mut Dice) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for _ in 0..=dice.below(3) {
        let at = dice.below(characters.len() + 1).min(characters.len());
        match dice.below(6) {
            0 => characters.truncate(at),
            1 => {
                let end = (at + dice.below(12)).min(characters.len());
                characters.splice(at..end, NASTY[dice.below(NASTY.len())].chars());
            }
            2 => {
                characters.splice(at..at, NASTY[dice.below(NASTY.len())].chars());
            }
            3 if at < characters.len() => characters[at] = char::from(u8::try_from(dice.below(127)).unwrap()),
            4 => {
                let end = (at + dice.below(40)).min(characters.len());
                let copy: Vec<char> = characters[at..end].to_vec();
                characters.splice(at..at, copy);
            }
            _ => {
                let end = (at + dice.below(20)).min(characters.len());
                characters.drain(at..end);
            }
        }
    }
    characters.into_iter().collect()
}

fn spoiled(fixture: &Fixture, dice: &mut Dice) -> Fixture {
    let mut other = fixture.clone();
    for answer in &mut other.answers {
        if dice.below(2) == 0 {
            answer.body = spoil(&answer.body, dice);
        }
    }
    let texts = other.dmi.values_mut().chain(other.firmware.values_mut()).chain(other.guest_info.values_mut());
    for text in texts {
        if dice.below(4) == 0 {
            *text = spoil(text, dice);
        }
    }
    if let Some(drive) = &mut other.drive {
        drive.files.values_mut().for_each(|text| *text = spoil(text, dice));
    }
    other
}

#[test]
fn spoiled_answers_end_in_a_finding_or_a_sentence() {
    let (mut findings, mut sentences) = (0, 0);
    for (number, fixture) in fixture::all().iter().enumerate() {
        let source = sources::by_name(&fixture.source).unwrap();
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (u64::try_from(number).unwrap() << 32));
        for _ in 0..ROUNDS {
            let other = spoiled(fixture, &mut dice);
            let begin = Instant::now();
            match source.read(&other) {
                Ok(found) => {
                    findings += 1;
                    let raw = found.and_then(|found| found.user_data).unwrap_or_default();
                    let _ = userdata::parse(&raw);
                }
                Err(error) => {
                    sentences += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
            let _ = source.report_ready(&other);
            assert!(begin.elapsed() < PATIENCE, "{} took {:?}", fixture.name, begin.elapsed());
        }
    }
    // Neither side is empty, or nothing was tried.
    assert!(findings > 100 && sentences > 100, "{findings} findings, {sentences} sentences");
}

#[test]
fn spoiled_network_configurations_end_in_a_plan_or_a_sentence() {
    let good = [
        "version: 1\nconfig:\n- {type: physical, name: a, mac_address: '52:54:00:00:00:0a', mtu: 1400, subnets: [{type: static, address: 10.0.0.5, netmask: 255.255.255.0, gateway: 10.0.0.1, routes: [{network: 10.9.0.0, netmask: 255.255.0.0, gateway: 10.0.0.2}]}, {type: dhcp6}]}\n- {type: bond, name: b, bond_interfaces: [a], params: {bond-mode: active-backup}}\n- {type: vlan, name: v, vlan_link: b, vlan_id: 5}\n- {type: nameserver, address: [9.9.9.9], search: [x.y]}\n- {type: route, destination: 10.1.0.0/16, gateway: 10.0.0.3}\n",
        "network:\n  version: 2\n  ethernets:\n    a: {match: {macaddress: '52:54:00:00:00:0a'}, dhcp4: true, dhcp4-overrides: {use-dns: false}, addresses: [10.0.0.5/24, '2001:db8::5/64'], gateway6: 'fe80::1', routes: [{to: default, via: 10.0.0.1, on-link: true, metric: 5, table: 9}], nameservers: {addresses: [9.9.9.9]}}\n  bonds: {b: {interfaces: [a], parameters: {mode: 802.3ad}}}\n  bridges: {r: {interfaces: [b]}}\n  vlans: {v: {id: 7, link: r}}\n",
        "ip=10.0.0.5::10.0.0.1:255.255.255.0:w:eth0:none:9.9.9.9 nameserver=[2001:db8::1] ip=[2001:db8::5]::[fe80::1]:64::eth1:off ip=eth2:dhcp:1400:52:54:00:00:00:01",
        r#"{"links": [{"id": "a", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:0a"}, {"id": "b", "type": "bond", "bond_links": ["a"], "bond_mode": "1"}, {"id": "v", "type": "vlan", "vlan_link": "b", "vlan_id": 4}], "networks": [{"link": "v", "type": "ipv4", "ip_address": "10.0.0.5", "netmask": "255.255.255.0", "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}]}], "services": [{"type": "dns", "address": "9.9.9.9"}]}"#,
    ];
    let mut dice = Dice(42);
    let mut plans = 0;
    for text in good {
        for _ in 0..2000 {
            let other = spoil(text, &mut dice);
            let begin = Instant::now();
            plans += u32::from(network_config::parse(other.as_bytes()).is_ok());
            plans += u32::from(network_config::openstack::parse(other.as_bytes()).is_ok());
            plans += u32::from(network_config::kernel_line::parse(&other).is_ok());
            assert!(begin.elapsed() < PATIENCE, "{other:?} took {:?}", begin.elapsed());
        }
    }
    assert!(plans > 100, "only {plans} plans");
}

/// YAML's aliases can unfold a few lines into a memory full of them.
#[test]
fn unfolding_aliases_is_bounded() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 9].join(", ")));
    }
    let begin = Instant::now();
    let _ = network_config::parse(format!("version: 2\n{text}").as_bytes());
    let _ = userdata::parse(format!("#cloud-config\nkimg: {{}}\n{text}").as_bytes());
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}
