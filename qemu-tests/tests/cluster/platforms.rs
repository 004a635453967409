//! Machines of three providers: DMI says whose they are, the metadata server answers as that provider's does, with its
//! habits, and what it knows reaches the Node.

use super::joining::{GUEST, GUEST_ADDRESS, end, good_user_data, token};
use anyhow::{Context, ensure};
use qemu_tests::guest::Guest;
use qemu_tests::{Cluster, Result, wait};
use serde_json::Value;

pub(crate) const TESTS: &[super::Test] = &[
    ("a_hetzner_server_wakes_up_and_joins", hetzner),
    ("a_droplet_wakes_up_and_joins", digitalocean),
    ("an_ec2_instance_wakes_up_and_joins", ec2),
];

const SPARE: u8 = 2;

/// What the Node of a provider's machine must hold.
struct Wanted {
    provider_id: &'static str,
    labels: &'static [(&'static str, &'static str)],
    external: &'static str,
}

/// Boots the machine, waits until its Node is Ready and compares.
fn joins(cluster: &Cluster, smbios: &str, documents: &[(&str, String)], wanted: &Wanted) -> Result {
    end();
    let guest = Guest::boot_as(cluster, SPARE, smbios, documents)?;
    let node = wait::until(&format!("the Node {GUEST} to be Ready"), wait::scale(90), || {
        let node = cluster.json(&["get", "node", GUEST])?;
        let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        Ok(ready.then_some(node))
    });
    let node = node.with_context(|| {
        let console = guest.console().unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().rev().take(25).collect();
        format!("its console: {lines:#?}; asked for: {:?}", guest.requests())
    })?;
    let outcome = compare(&node, wanted);
    drop(guest);
    cluster.k(&["delete", "node", GUEST])?;
    outcome
}

fn compare(node: &Value, wanted: &Wanted) -> Result {
    ensure!(node["spec"]["providerID"] == wanted.provider_id, "providerID: {}", node["spec"]);
    for (key, value) in wanted.labels {
        ensure!(node["metadata"]["labels"][key] == *value, "{key}: {}", node["metadata"]["labels"]);
    }
    let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
    let has = |kind: &str, address: &str| addresses.iter().any(|a| a["type"] == kind && a["address"] == address);
    let internal = GUEST_ADDRESS.to_string();
    ensure!(has("InternalIP", &internal) && has("ExternalIP", wanted.external), "addresses: {addresses:?}");
    Ok(())
}

/// The server is asked over the link, before there is an address, and has too much to do at first.
fn hetzner(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let metadata = format!(
        "instance-id: 4711\nhostname: {GUEST}\navailability-zone: fsn1-dc14\nregion: eu-central\n\
         public-ipv4: 203.0.113.7\nnetwork-config:\n  version: 1\n  config:\n  \
         - {{type: physical, name: eth0, mac_address: '{nat}', subnets: [{{type: dhcp, ipv4: true}}]}}\n  \
         - {{type: physical, name: eth1, mac_address: '{lan}', subnets: [{{type: static, address: {GUEST_ADDRESS}/24}}]}}\n"
    );
    let documents = [
        ("metadata", metadata),
        ("userdata", good_user_data(GUEST, &token(cluster, GUEST, 600)?)),
        ("busy", "2".to_owned()),
    ];
    let wanted = Wanted {
        provider_id: "hcloud://4711",
        labels: &[("topology.kubernetes.io/region", "fsn1"), ("topology.kubernetes.io/zone", "fsn1-dc14")],
        external: "203.0.113.7",
    };
    joins(cluster, "manufacturer=Hetzner,serial=4711", &documents, &wanted)
}

/// No DHCP: the metadata give every address.
fn digitalocean(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let document = serde_json::json!({
        "droplet_id": 2_756_294, "hostname": GUEST, "region": "fra1",
        "user_data": good_user_data(GUEST, &token(cluster, GUEST, 600)?),
        "interfaces": {
            "public": [{"mac": nat, "type": "public", "ipv4": {
                "ip_address": "169.254.169.15", "netmask": "255.255.255.0", "gateway": "169.254.169.2"}}],
            "private": [{"mac": lan, "type": "private", "ipv4": {
                "ip_address": GUEST_ADDRESS.to_string(), "netmask": "255.255.255.0", "gateway": "10.77.0.1"}}],
        },
    });
    let wanted = Wanted {
        provider_id: "digitalocean://2756294",
        labels: &[("topology.kubernetes.io/region", "fra1")],
        external: "169.254.169.15",
    };
    let documents = [("metadata/v1.json", document.to_string())];
    joins(cluster, "manufacturer=DigitalOcean,serial=2756294", &documents, &wanted)
}

/// Nothing without a token.
fn ec2(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let user_data = good_user_data(GUEST, &token(cluster, GUEST, 600)?);
    let root = "latest/meta-data";
    let macs = format!("{root}/network/interfaces/macs");
    let texts = [
        ("latest/api/token".to_owned(), "T0KEN==".to_owned()),
        ("secret".to_owned(), "X-Aws-Ec2-Metadata-Token: T0KEN==\n".to_owned()),
        (format!("{root}/instance-id"), "i-0abc".to_owned()),
        (format!("{root}/instance-type"), "t3.micro".to_owned()),
        (format!("{root}/placement/availability-zone"), "eu-central-1a".to_owned()),
        (format!("{root}/placement/region"), "eu-central-1".to_owned()),
        (format!("{root}/public-ipv4"), "203.0.113.9".to_owned()),
        (format!("{macs}/index"), format!("{lan}/\n{nat}/\n")),
        (format!("{macs}/{nat}/device-number"), "0".to_owned()),
        (format!("{macs}/{nat}/local-ipv4s"), "169.254.169.15".to_owned()),
        (format!("{macs}/{lan}/device-number"), "1".to_owned()),
        (format!("{macs}/{lan}/local-ipv4s"), format!("10.77.0.98\n{GUEST_ADDRESS}")),
        (format!("{macs}/{lan}/subnet-ipv4-cidr-block"), "10.77.0.0/24".to_owned()),
        ("latest/user-data".to_owned(), user_data),
    ];
    let documents: Vec<(&str, String)> = texts.iter().map(|(path, text)| (path.as_str(), text.clone())).collect();
    let wanted = Wanted {
        provider_id: "aws:///eu-central-1a/i-0abc",
        labels: &[
            ("topology.kubernetes.io/region", "eu-central-1"),
            ("topology.kubernetes.io/zone", "eu-central-1a"),
            ("node.kubernetes.io/instance-type", "t3.micro"),
        ],
        external: "203.0.113.9",
    };
    let smbios = "manufacturer=Amazon EC2,uuid=ec2e1916-9099-7caf-fd21-012345abcdef";
    joins(cluster, smbios, &documents, &wanted)
}
