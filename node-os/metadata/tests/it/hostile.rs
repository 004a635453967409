//! Answers that somebody spoiled: whatever a server says, a source ends with a finding or a sentence, at once.

use crate::fixture::{self, Fixture};
use node_metadata::{network_config, sources, userdata};
use std::time::{Duration, Instant};
use test_spoil::Dice;

/// Changed copies of each fixture.
const ROUNDS: u32 = 300;
/// One reading of spoiled answers takes no longer; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(5);

fn spoiled(fixture: &Fixture, dice: &mut Dice) -> Fixture {
    let mut other = fixture.clone();
    for answer in &mut other.answers {
        if dice.below(2) == 0 {
            answer.body = test_spoil::text(&answer.body, dice);
        }
    }
    let texts = other.dmi.values_mut().chain(other.firmware.values_mut()).chain(other.guest_info.values_mut());
    for text in texts {
        if dice.below(4) == 0 {
            *text = test_spoil::text(text, dice);
        }
    }
    if let Some(drive) = &mut other.drive {
        drive.files.values_mut().for_each(|text| *text = test_spoil::text(text, dice));
    }
    other
}

#[test]
fn spoiled_answers_end_in_a_finding_or_a_sentence() {
    let (mut findings, mut sentences) = (0, 0);
    for (number, fixture) in fixture::all().iter().enumerate() {
        let source = sources::by_name(&fixture.source).unwrap();
        let mut dice = Dice::new(u64::try_from(number).unwrap() << 32);
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
    let mut dice = Dice::new(42);
    let mut plans = 0;
    for text in good {
        for _ in 0..2000 {
            let other = test_spoil::text(text, &mut dice);
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

/// What init reads documents on has such a stack: a document within the limits must not outgrow it.
#[test]
fn deep_documents_fit_into_the_stack() {
    let thread = std::thread::Builder::new().stack_size(node_metadata::STACK_BYTES).spawn(|| {
        for (open, close) in [("[", "]"), ("{a: ", "}"), ("&a [", "]"), ("- ", "")] {
            for depth in [100, 120, 127, 200, 5000] {
                let deep = format!("{}x{}", open.repeat(depth), close.repeat(depth));
                let _ = userdata::parse(format!("#cloud-config\nkimg: {deep}\n").as_bytes());
                let _ = userdata::parse(
                    format!("#cloud-config\nkimg: {{labels: {{a: {deep}}}, api: {deep}}}\n").as_bytes(),
                );
                let _ = network_config::parse(format!("version: 2\nethernets: {deep}\n").as_bytes());
                let _ = network_config::parse(format!("version: 1\nconfig: {deep}\n").as_bytes());
            }
        }
        for depth in [100, 120, 127, 200, 5000] {
            let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let _ = network_config::openstack::parse(format!(r#"{{"links": {deep}}}"#).as_bytes());
        }
    });
    thread.unwrap().join().unwrap();
}

/// Drives with documents, bent in every field: directory records, clusters, lengths.
#[test]
fn spoiled_drives_end_in_a_finding_or_a_sentence() {
    let mut dice = Dice::new(7);
    let (mut findings, mut others) = (0, 0);
    for mut fixture in fixture::all().into_iter().filter(|fixture| fixture.drive.is_some()) {
        let source = sources::by_name(&fixture.source).unwrap();
        let good = fixture.image().unwrap();
        for _ in 0..1000 {
            // The descriptors and directories stand before the documents.
            let mut image = good.clone();
            let field = [16 * 2048 + dice.below(200), 20 * 2048 + dice.below(image.len() - 20 * 2048)][dice.below(2)];
            let end = (field + 12).min(image.len());
            let spoiled = test_spoil::bytes(&image[field..end], &mut dice);
            image.splice(field..end, spoiled);
            fixture.spoiled_image = Some(image);
            match source.read(&fixture) {
                Ok(Some(_)) => findings += 1,
                Ok(None) | Err(_) => others += 1,
            }
        }
    }
    assert!(findings > 100 && others > 100, "{findings} findings, {others} others");
}

/// User-data in each of its encodings.
#[test]
fn spoiled_user_data_ends_in_settings_or_a_sentence() {
    let plain = "#cloud-config\nhostname: w\nkimg:\n  role: worker\n  node-ip: [10.0.0.5]\n  api: 10.0.0.1\n  \
                 labels: {a: b, c: 1}\n  taints: ['a=b:NoSchedule']\n  token: abcdef.0123456789abcdef\n";
    let packed = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(plain.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let encode = |raw: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, raw).into_bytes();
    let good = [plain.as_bytes().to_vec(), packed.clone(), encode(plain.as_bytes()), encode(&packed)];
    let mut dice = Dice::new(11);
    let mut read = 0;
    for raw in &good {
        assert!(userdata::parse(raw).is_ok());
        for _ in 0..2000 {
            match userdata::parse(&test_spoil::bytes(raw, &mut dice)) {
                Ok(_) => read += 1,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    assert!((10..8000).contains(&read), "{read} of 8000 were read");
}
