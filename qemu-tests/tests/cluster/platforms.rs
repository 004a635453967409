//! Machines of providers: DMI says whose they are, the metadata server answers as that provider's does, with its
//! habits, and what it knows reaches the Node.

use super::joining::{GUEST, GUEST_ADDRESS, end, good_user_data, token};
use anyhow::{Context, ensure};
use node_metadata::sources::Reach;
use qemu_tests::cluster::run_in;
use qemu_tests::guest::{Guest, Lan, Platform};
use qemu_tests::{Cluster, Result, wait};
use serde_json::{Map, Value};
use std::net::Ipv4Addr;

pub(crate) const TESTS: &[super::Test] = &[
    ("a_hetzner_server_wakes_up_and_joins", hetzner),
    ("a_droplet_wakes_up_and_joins", digitalocean),
    ("an_ec2_instance_wakes_up_and_joins", ec2),
    ("a_vultr_instance_wakes_up_and_joins", vultr),
    ("an_upcloud_server_wakes_up_and_joins", upcloud),
    ("an_oracle_instance_wakes_up_and_joins", oracle),
    ("an_azure_machine_wakes_up_and_joins", azure),
    ("an_openstack_server_wakes_up_and_joins", openstack),
    ("a_linode_wakes_up_and_joins", linode),
    ("a_scaleway_instance_wakes_up_and_joins", scaleway),
    ("an_exoscale_instance_wakes_up_and_joins", exoscale),
    ("a_google_machine_wakes_up_and_joins", gcp),
    ("an_openstack_server_without_ipv4_metadata_wakes_up_and_joins", openstack_over_ipv6),
    ("a_hetzner_server_without_ipv4_metadata_wakes_up_and_joins", hetzner_over_ipv6),
    ("a_server_whose_metadata_are_slow_to_come_wakes_up_and_joins", slow),
    ("a_server_that_is_plugged_in_late_wakes_up_and_joins", plugged_in_late),
];

const SPARE: u8 = 2;

/// What the Node of a provider's machine must hold.
struct Wanted {
    provider_id: &'static str,
    labels: &'static [(&'static str, &'static str)],
    external: Option<&'static str>,
    /// How its metadata server is reached.
    way: Reach,
}

/// Boots the machine, waits until its Node is Ready and compares; its server was asked the one way that is the right one.
fn joins(cluster: &Cluster, platform: Platform<'_>, documents: &[(&str, String)], wanted: &Wanted) -> Result {
    wakes(cluster, platform, documents, wanted, |_| Ok(()), |guest| asked_by(guest, platform, wanted.way))
}

/// What is done `at_first`, while the machine boots, and what is looked at `at_last`, when it has joined.
fn wakes(
    cluster: &Cluster,
    platform: Platform<'_>,
    documents: &[(&str, String)],
    wanted: &Wanted,
    at_first: impl FnOnce(&Guest) -> Result,
    at_last: impl FnOnce(&Guest) -> Result,
) -> Result {
    end();
    let guest = Guest::boot_as(cluster, SPARE, platform, documents)?;
    let node = at_first(&guest).and_then(|()| {
        wait::until(&format!("the Node {GUEST} to be Ready"), wait::scale(90), || {
            let node = cluster.json(&["get", "node", GUEST])?;
            let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            Ok(ready.then_some(node))
        })
    });
    let outcome = node.and_then(|node| compare(&node, wanted)).and_then(|()| at_last(&guest));
    let outcome = outcome.with_context(|| last_words(&guest));
    drop(guest);
    cluster.k(&["delete", "node", GUEST, "--ignore-not-found"])?;
    // With it the next machine would be taken for one that takes a live node's name.
    cluster.k(&["-n", "kube-node-lease", "delete", "lease", GUEST, "--ignore-not-found"])?;
    outcome
}

/// Over the link: from an address of the machine's own, before it had asked for one. Else from DHCP's.
fn asked_by(guest: &Guest, platform: Platform<'_>, way: Reach) -> Result {
    let (from, lease) = (guest.asked_from()?, platform.lease());
    let right = match (way, from.as_slice()) {
        // Later it has an address, too, from which it looks whether its token is still the same.
        (Reach::LinkLocal, [first, ..]) => first.is_link_local() && *first != lease,
        (Reach::Dhcp, [one]) => *one == lease,
        _ => false,
    };
    ensure!(right, "the metadata server was asked from {from:?}, DHCP gives {lease}, and {way:?} is wanted");
    Ok(())
}

fn last_words(guest: &Guest) -> String {
    let console = guest.console().unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().rev().take(25).collect();
    format!("its console, the last line first: {lines:#?}; asked for: {:?}", guest.requests())
}

fn compare(node: &Value, wanted: &Wanted) -> Result {
    ensure!(node["spec"]["providerID"] == wanted.provider_id, "providerID: {}", node["spec"]);
    for (key, value) in wanted.labels {
        ensure!(node["metadata"]["labels"][key] == *value, "{key}: {}", node["metadata"]["labels"]);
    }
    let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
    let has = |kind: &str, address: &str| addresses.iter().any(|a| a["type"] == kind && a["address"] == address);
    let internal = GUEST_ADDRESS.to_string();
    let external = wanted.external.is_none_or(|address| has("ExternalIP", address));
    ensure!(has("InternalIP", &internal) && external, "addresses: {addresses:?}");
    Ok(())
}

/// The server is asked over the link, before there is an address, and has too much to do at first.
fn hetzner(cluster: &Cluster) -> Result {
    let mut documents = hetzner_documents(cluster)?.to_vec();
    documents.push(("moods", "429\n503\n".to_owned()));
    joins(cluster, Platform::new(HETZNER), &documents, &HETZNER_NODE)
}

/// One thing after the other goes wrong in its first seconds; the node looks again until it knows all.
fn slow(cluster: &Cluster) -> Result {
    let mut documents = hetzner_documents(cluster)?.to_vec();
    let moods = ["closed", "closed", "closed", "slow", "429", "silent", "503", "closed", "503"];
    documents.push(("moods", moods.join("\n")));
    let all_came = |guest: &Guest| {
        let asked = guest.requests();
        ensure!(asked.len() > moods.len(), "the server was asked only for {asked:?}");
        Ok(())
    };
    wakes(cluster, Platform::new(HETZNER), &documents, &HETZNER_NODE, |_| Ok(()), all_came)
}

/// A card without a carrier, and nobody on the other one: there is no way to a server until the cable is in.
fn plugged_in_late(cluster: &Cluster) -> Result {
    let plug_in_late = |guest: &Guest| {
        guest.plug(false)?;
        wait::until("the node to say that it has no metadata", wait::scale(60), || {
            Ok(guest.news()?.contains("no answer of a metadata server").then_some(()))
        })?;
        ensure!(guest.requests().is_empty(), "without a cable it was asked for {:?}", guest.requests());
        guest.plug(true)
    };
    let documents = hetzner_documents(cluster)?;
    wakes(cluster, Platform::new(HETZNER), &documents, &HETZNER_NODE, plug_in_late, |_| Ok(()))
}

const HETZNER: &str = "manufacturer=Hetzner,serial=4711";
const HETZNER_NODE: Wanted = Wanted {
    provider_id: "hcloud://4711",
    labels: &[("topology.kubernetes.io/region", "fsn1"), ("topology.kubernetes.io/zone", "fsn1-dc14")],
    external: Some("203.0.113.7"),
    way: Reach::LinkLocal,
};

fn hetzner_documents(cluster: &Cluster) -> Result<[(&'static str, String); 2]> {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let metadata = format!(
        "instance-id: 4711\nhostname: {GUEST}\navailability-zone: fsn1-dc14\nregion: eu-central\n\
         public-ipv4: 203.0.113.7\nnetwork-config:\n  version: 1\n  config:\n  \
         - {{type: physical, name: eth0, mac_address: '{nat}', subnets: [{{type: dhcp, ipv4: true}}]}}\n  \
         - {{type: physical, name: eth1, mac_address: '{lan}', subnets: [{{type: static, address: {GUEST_ADDRESS}/24}}]}}\n"
    );
    Ok([
        ("hetzner/v1/metadata", metadata),
        ("hetzner/v1/userdata", good_user_data(GUEST, &token(cluster, GUEST, 600)?)),
    ])
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
        external: Some("169.254.169.15"),
        way: Reach::LinkLocal,
    };
    let documents = [("metadata/v1.json", document.to_string())];
    joins(cluster, Platform::new("manufacturer=DigitalOcean,serial=2756294"), &documents, &wanted)
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
        external: Some("203.0.113.9"),
        way: Reach::Dhcp,
    };
    let smbios = "manufacturer=Amazon EC2,uuid=ec2e1916-9099-7caf-fd21-012345abcdef";
    joins(cluster, Platform::new(smbios), &documents, &wanted)
}

/// The public card by DHCP, the private one as the document says.
fn vultr(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let document = serde_json::json!({
        "hostname": GUEST, "instance-v2-id": "29bea708-2e6e-480a-90ad-0e6b5d5ad62f", "instanceid": "42506325",
        "region": {"countrycode": "US", "regioncode": "EWR"},
        "user-data": good_user_data(GUEST, &token(cluster, GUEST, 600)?),
        "interfaces": [
            {"mac": nat, "network-type": "public", "ipv4": {"additional": [],
                "address": "203.0.113.10", "netmask": "255.255.255.0", "gateway": "203.0.113.1"}},
            {"mac": lan, "network-type": "private", "networkid": "net5", "ipv4": {"additional": [],
                "address": GUEST_ADDRESS.to_string(), "netmask": "255.255.255.0", "gateway": ""}},
        ],
    });
    let wanted = Wanted {
        provider_id: "vultr://29bea708-2e6e-480a-90ad-0e6b5d5ad62f",
        labels: &[("topology.kubernetes.io/region", "ewr")],
        external: Some("203.0.113.10"),
        way: Reach::Dhcp,
    };
    let documents = [("v1.json", document.to_string())];
    joins(cluster, Platform::new("manufacturer=Vultr,serial=42506325"), &documents, &wanted)
}

fn upcloud(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let document = serde_json::json!({
        "cloud_name": "upcloud", "instance_id": "00322b68-0096-4042-9406-faad61922128", "hostname": GUEST,
        "region": "fi-hel2", "user_data": good_user_data(GUEST, &token(cluster, GUEST, 600)?),
        "network": {"dns": [], "interfaces": [
            {"index": 1, "mac": nat, "type": "public", "ip_addresses": [{"address": "203.0.113.11", "dhcp": true,
                "family": "IPv4", "floating": false, "gateway": "203.0.113.1", "network": "203.0.113.0/24"}]},
            {"index": 2, "mac": lan, "type": "private", "ip_addresses": [{"address": GUEST_ADDRESS.to_string(),
                "dhcp": false, "family": "IPv4", "gateway": "10.77.0.1", "network": "10.77.0.0/24"}]},
        ]},
    });
    let wanted = Wanted {
        provider_id: "upcloud:////00322b68-0096-4042-9406-faad61922128",
        labels: &[("topology.kubernetes.io/region", "fi-hel2"), ("topology.kubernetes.io/zone", "fi-hel2")],
        external: Some("203.0.113.11"),
        way: Reach::Dhcp,
    };
    let documents = [("metadata/v1.json", document.to_string())];
    joins(cluster, Platform::new("manufacturer=UpCloud"), &documents, &wanted)
}

/// Nothing without its header; the chassis tells whose machine it is; DHCP serves the first card only.
fn oracle(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let instance = serde_json::json!({
        "availabilityDomain": "qIZq:EU-FRANKFURT-1-AD-1", "canonicalRegionName": "eu-frankfurt-1", "region": "fra",
        "displayName": GUEST, "hostname": GUEST, "id": "ocid1.instance.oc1.eu-frankfurt-1.abc",
        "shape": "VM.Standard.E2.1.Micro",
        "metadata": {"user_data": good_user_data(GUEST, &token(cluster, GUEST, 600)?)},
    });
    let vnics = serde_json::json!([
        {"macAddr": nat, "privateIp": "169.254.169.15", "subnetCidrBlock": "169.254.169.0/24", "vnicId": "v1"},
        {"macAddr": lan, "privateIp": GUEST_ADDRESS.to_string(), "subnetCidrBlock": "10.77.0.0/24", "vnicId": "v2"},
    ]);
    let documents = [
        ("opc/v2/instance/index", instance.to_string()),
        ("opc/v2/vnics/index", vnics.to_string()),
        ("secret", "Authorization: Bearer Oracle\n".to_owned()),
    ];
    let wanted = Wanted {
        provider_id: "oci://ocid1.instance.oc1.eu-frankfurt-1.abc",
        labels: &[
            ("topology.kubernetes.io/region", "eu-frankfurt-1"),
            ("topology.kubernetes.io/zone", "EU-FRANKFURT-1-AD-1"),
            ("node.kubernetes.io/instance-type", "VM.Standard.E2.1.Micro"),
        ],
        external: None,
        way: Reach::Dhcp,
    };
    let platform = Platform { chassis: Some("OracleCloud.com"), ..Platform::new("manufacturer=QEMU") };
    joins(cluster, platform, &documents, &wanted)
}

/// The wire server, which is not there at once and knows its agents by a header, hears that the machine is ready.
fn azure(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let plain = |mac: &str| mac.replace(':', "").to_ascii_uppercase();
    let instance = serde_json::json!({
        "compute": {"location": "WestEurope", "name": GUEST, "osProfile": {"computerName": GUEST}, "zone": "1",
            "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6", "vmSize": "Standard_B1s", "resourceId":
            "/subscriptions/8d10da13/resourceGroups/My-Group/providers/Microsoft.Compute/virtualMachines/worker-3"},
        "network": {"interface": [
            {"macAddress": plain(&nat), "ipv4": {"ipAddress": [{"privateIpAddress": "169.254.169.15",
                "publicIpAddress": "203.0.113.12"}], "subnet": [{"address": "169.254.169.0", "prefix": "24"}]}},
            {"macAddress": plain(&lan), "ipv4": {"ipAddress": [{"privateIpAddress": "10.77.0.98"},
                {"privateIpAddress": GUEST_ADDRESS.to_string()}], "subnet": [{"address": "10.77.0.0", "prefix": "24"}]}},
        ]},
    });
    let goal_state = "<?xml version=\"1.0\" encoding=\"utf-8\"?><GoalState><Version>2012-11-30</Version>\
        <Incarnation>3</Incarnation><Container><ContainerId>c0ffee</ContainerId><RoleInstanceList><RoleInstance>\
        <InstanceId>worker-3-role</InstanceId><State>Started</State></RoleInstance></RoleInstanceList></Container></GoalState>";
    let documents = [
        ("metadata/instance?api-version=2021-08-01&extended=true", instance.to_string()),
        (
            "metadata/instance/compute/userData?api-version=2021-01-01&format=text",
            good_user_data(GUEST, &token(cluster, GUEST, 600)?),
        ),
        ("secret", "Metadata: true\n".to_owned()),
        ("wire/secret", "X-Ms-Version: 2012-11-30\n".to_owned()),
        ("wire/moods", "410\n".to_owned()),
        ("wire/machine/?comp=goalstate", goal_state.to_owned()),
        ("wire/machine?comp=health", String::new()),
    ];
    let wanted = Wanted {
        provider_id: "azure:///subscriptions/8d10da13/resourceGroups/my-group/providers/Microsoft.Compute/virtualMachines/worker-3",
        labels: &[
            ("topology.kubernetes.io/region", "westeurope"),
            ("topology.kubernetes.io/zone", "westeurope-1"),
            ("node.kubernetes.io/instance-type", "Standard_B1s"),
        ],
        external: Some("203.0.113.12"),
        way: Reach::Dhcp,
    };
    let platform = Platform {
        chassis: Some("7783-7084-3265-9085-8269-3286-77"),
        wire_server: true,
        ..Platform::new("manufacturer=Microsoft")
    };
    let reported = |guest: &Guest| {
        asked_by(guest, platform, wanted.way)?;
        let (asked, posted) = guest.reports();
        let ways = ["/machine/?comp=goalstate", "/machine/?comp=goalstate", "/machine?comp=health"];
        ensure!(asked == ways, "the wire server was asked for {asked:?}");
        for part in [
            "<GoalStateIncarnation>3<",
            "<ContainerId>c0ffee<",
            "<InstanceId>worker-3-role<",
            "<Health><State>Ready</State></Health>",
        ] {
            ensure!(posted.contains(part), "the ready report has no {part}: {posted}");
        }
        Ok(())
    };
    wakes(cluster, platform, &documents, &wanted, |_| Ok(()), reported)
}

fn openstack(cluster: &Cluster) -> Result {
    let mut documents = openstack_documents(cluster)?.to_vec();
    documents.extend([
        ("latest/meta-data/public-ipv4", "198.51.100.7".to_owned()),
        ("latest/meta-data/instance-type", "m1.small".to_owned()),
    ]);
    let wanted = Wanted {
        provider_id: OPENSTACK_ID,
        labels: &[("topology.kubernetes.io/zone", "nova"), ("node.kubernetes.io/instance-type", "m1.small")],
        external: Some("198.51.100.7"),
        way: Reach::Dhcp,
    };
    joins(cluster, Platform::new(OPENSTACK), &documents, &wanted)
}

const OPENSTACK: &str = "product=OpenStack Nova,uuid=83679162-1378-4288-a2d4-70e13ec132aa";
const OPENSTACK_ID: &str = "openstack:///83679162-1378-4288-a2d4-70e13ec132aa";

fn openstack_documents(cluster: &Cluster) -> Result<[(&'static str, String); 3]> {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let meta = serde_json::json!({"uuid": "83679162-1378-4288-a2d4-70e13ec132aa", "hostname": format!("{GUEST}.novalocal"), "name": GUEST,
        "availability_zone": "nova", "meta": {}});
    let network = serde_json::json!({
        "links": [{"id": "tap0", "type": "ovs", "mtu": 1442, "ethernet_mac_address": nat},
            {"id": "tap1", "type": "ovs", "mtu": 1500, "ethernet_mac_address": lan}],
        "networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "tap0"},
            {"id": "network1", "type": "ipv4", "link": "tap1", "ip_address": GUEST_ADDRESS.to_string(),
                "netmask": "255.255.255.0", "routes": []}],
        "services": [],
    });
    Ok([
        ("openstack/latest/meta_data.json", meta.to_string()),
        ("openstack/latest/network_data.json", network.to_string()),
        ("openstack/latest/user_data", good_user_data(GUEST, &token(cluster, GUEST, 600)?)),
    ])
}

/// One card: public by DHCP, the private address beside it. Nothing without a token.
fn linode(cluster: &Cluster) -> Result {
    let instance = serde_json::json!({"id": 4242, "label": GUEST, "region": "us-iad", "type": "g6-nanode-1",
        "host_uuid": "aa", "tags": []});
    let network = serde_json::json!({"interfaces": [], "ipv4": {"public": ["203.0.113.14/32"],
        "private": [format!("{GUEST_ADDRESS}/24")], "shared": []}, "ipv6": {"slaac": null, "ranges": []}});
    let user_data = good_user_data(GUEST, &token(cluster, GUEST, 600)?);
    let documents = [
        ("v1/token", "T0KEN".to_owned()),
        ("secret", "Metadata-Token: T0KEN\n".to_owned()),
        ("v1/instance", instance.to_string()),
        ("v1/network", network.to_string()),
        ("v1/user-data", run_in(&cluster.dir, "base64".into(), &["-w0"], Some(&user_data))?.success()?),
    ];
    let wanted = Wanted {
        provider_id: "linode://4242",
        labels: &[("topology.kubernetes.io/region", "us-iad"), ("node.kubernetes.io/instance-type", "g6-nanode-1")],
        external: Some("203.0.113.14"),
        way: Reach::Dhcp,
    };
    let platform = Platform { lan: Lan::Only([0xf2, 0x3c]), ..Platform::new("manufacturer=Akamai,serial=4242") };
    joins(cluster, platform, &documents, &wanted)
}

/// DHCP on every card, and the server at an address of its own.
fn scaleway(cluster: &Cluster) -> Result {
    let conf = serde_json::json!({
        "id": "11111111-1111-4111-8111-111111111111", "name": GUEST, "hostname": GUEST, "commercial_type": "DEV1-S",
        "tags": [], "state_detail": "booted", "zone": "fr-par-1", "private_ip": null,
        "public_ip": {"id": "x", "address": "203.0.113.15", "dynamic": false},
    });
    let documents = [
        ("conf?format=json", conf.to_string()),
        ("user_data/cloud-init", good_user_data(GUEST, &token(cluster, GUEST, 600)?)),
    ];
    let wanted = Wanted {
        provider_id: "scaleway://instance/fr-par-1/11111111-1111-4111-8111-111111111111",
        labels: &[
            ("topology.kubernetes.io/region", "fr-par"),
            ("topology.kubernetes.io/zone", "fr-par-1"),
            ("node.kubernetes.io/instance-type", "DEV1-S"),
        ],
        external: Some("203.0.113.15"),
        way: Reach::Dhcp,
    };
    let platform = Platform {
        server: Ipv4Addr::new(169, 254, 42, 42),
        lan: Lan::Dhcp(GUEST_ADDRESS),
        ..Platform::new("manufacturer=Scaleway")
    };
    joins(cluster, platform, &documents, &wanted)
}

/// DHCP on every card; one document for each value.
fn exoscale(cluster: &Cluster) -> Result {
    let documents = [
        ("1.0/meta-data/instance-id", "4b81c1a4-0b06-4e0e-9d8b-1c2d3e4f5a6b".to_owned()),
        ("1.0/meta-data/local-hostname", GUEST.to_owned()),
        ("1.0/meta-data/availability-zone", "ch-gva-2".to_owned()),
        ("1.0/meta-data/service-offering", "standard.tiny".to_owned()),
        ("1.0/meta-data/public-ipv4", "203.0.113.16\n".to_owned()),
        ("1.0/user-data", good_user_data(GUEST, &token(cluster, GUEST, 600)?)),
    ];
    let wanted = Wanted {
        provider_id: "exoscale://4b81c1a4-0b06-4e0e-9d8b-1c2d3e4f5a6b",
        labels: &[("topology.kubernetes.io/region", "ch-gva-2"), ("node.kubernetes.io/instance-type", "standard.tiny")],
        external: Some("203.0.113.16"),
        way: Reach::Dhcp,
    };
    let platform = Platform { lan: Lan::Dhcp(GUEST_ADDRESS), ..Platform::new("product=Exoscale Compute Platform") };
    joins(cluster, platform, &documents, &wanted)
}

/// Nothing without its header; DHCP on the cards that it lists.
fn gcp(cluster: &Cluster) -> Result {
    let [lan, nat] = Guest::macs(cluster, SPARE)?;
    let interfaces = serde_json::json!([
        {"mac": nat, "ip": "169.254.169.15", "mtu": 1460, "gateway": "169.254.169.2",
            "accessConfigs": [{"externalIp": "203.0.113.17", "type": "ONE_TO_ONE_NAT"}]},
        {"mac": lan, "ip": GUEST_ADDRESS.to_string(), "mtu": 1460, "gateway": "10.77.0.250"},
    ]);
    let root = "computeMetadata/v1";
    let texts = [
        ("secret".to_owned(), "Metadata-Flavor: Google\n".to_owned()),
        (format!("{root}/instance/id"), "4242424242".to_owned()),
        (format!("{root}/project/project-id"), "my-project".to_owned()),
        (format!("{root}/instance/name"), GUEST.to_owned()),
        (format!("{root}/instance/hostname"), GUEST.to_owned()),
        (format!("{root}/instance/zone"), "projects/1234/zones/europe-west3-a".to_owned()),
        (format!("{root}/instance/machine-type"), "projects/1234/machineTypes/e2-micro".to_owned()),
        (format!("{root}/instance/network-interfaces/?recursive=true&alt=json"), interfaces.to_string()),
        (format!("{root}/instance/attributes/user-data"), good_user_data(GUEST, &token(cluster, GUEST, 600)?)),
    ];
    let documents: Vec<(&str, String)> = texts.iter().map(|(path, text)| (path.as_str(), text.clone())).collect();
    let wanted = Wanted {
        provider_id: "gce://my-project/europe-west3-a/worker-3",
        labels: &[
            ("topology.kubernetes.io/region", "europe-west3"),
            ("topology.kubernetes.io/zone", "europe-west3-a"),
            ("node.kubernetes.io/instance-type", "e2-micro"),
        ],
        external: Some("203.0.113.17"),
        way: Reach::Dhcp,
    };
    let smbios = "product=Google Compute Engine,serial=GoogleCloud-F7E0";
    joins(cluster, Platform { lan: Lan::Dhcp(GUEST_ADDRESS), ..Platform::new(smbios) }, &documents, &wanted)
}

fn openstack_over_ipv6(cluster: &Cluster) -> Result {
    let wanted = Wanted {
        provider_id: OPENSTACK_ID,
        labels: &[("topology.kubernetes.io/zone", "nova")],
        external: None,
        way: Reach::LinkLocal,
    };
    joins_over_ipv6(cluster, OPENSTACK, &openstack_documents(cluster)?, &wanted)
}

fn hetzner_over_ipv6(cluster: &Cluster) -> Result {
    joins_over_ipv6(cluster, HETZNER, &hetzner_documents(cluster)?, &HETZNER_NODE)
}

/// The metadata server is on the switch at fe80::a9fe:a9fe, and nothing at 169.254.169.254: QEMU's user network
/// hands nothing to a server of ours in IPv6, so a worker has the address and the server for as long as it takes.
fn joins_over_ipv6(cluster: &Cluster, system: &str, documents: &[(&str, String)], wanted: &Wanted) -> Result {
    let secret = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "metadata"},
        "stringData": documents.iter().enumerate().map(|(n, (_, text))| (format!("d{n}"), Value::from(text.as_str()))).collect::<Map<_, _>>()});
    let items: Vec<Value> = documents
        .iter()
        .enumerate()
        .map(|(n, (path, _))| serde_json::json!({"key": format!("d{n}"), "path": path}))
        .collect();
    let serve = "dev=$(ip -o -4 address | grep ' 10.77.0.' | cut -d' ' -f2) && \
        ip address add fe80::a9fe:a9fe/64 dev $dev && sleep 3 && \
        trap \"ip address del fe80::a9fe:a9fe/64 dev $dev; exit\" TERM && \
        { httpd -f -p [fe80::a9fe:a9fe%$dev]:80 -h /documents & wait; }";
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "metadata"}, "spec": {
        "nodeName": "worker-1", "hostNetwork": true, "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "main", "image": "localhost/kimg/toolbox:latest", "imagePullPolicy": "IfNotPresent",
            "securityContext": {"privileged": true}, "command": ["sh", "-ec", serve],
            "volumeMounts": [{"name": "documents", "mountPath": "/documents"}]}],
        "volumes": [{"name": "documents", "secret": {"secretName": "metadata", "items": items}}]}});
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [secret, pod]});
    cluster.apply(&list.to_string())?;
    let outcome = cluster
        .k(&["wait", "--for=condition=Ready", "pod/metadata", "--timeout=60s"])
        .map(drop)
        .and_then(|()| {
            let platform = Platform { server: Ipv4Addr::new(169, 254, 42, 42), routed: false, ..Platform::new(system) };
            wakes(cluster, platform, &[], wanted, |_| Ok(()), |_| Ok(()))
        })
        .with_context(|| format!("the server says: {:?}", cluster.k(&["logs", "metadata"])));
    cluster.k(&["delete", "pod/metadata", "secret/metadata", "--wait"])?;
    outcome
}
