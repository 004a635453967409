//! What a node is told at its first boot: user-data, and the NoCloud drive that carries it.

pub mod fat;
pub mod token;

use crate::config::{NodeSettings, SecretsForm, Settings};
use crate::input::{self, bad};
use crate::pki::Secrets;
use anyhow::{Context, Result};
use node_metadata::{NodeEntry, Reserved, Role};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use token::BootstrapToken;

/// User-data must fit where providers allow the least.
pub const USER_DATA_LIMIT: usize = node_metadata::userdata::KIMG_LIMIT;
/// Label of a NoCloud volume.
const LABEL: &str = "CIDATA";

/// A network interface in network-config, found by its hardware address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name in the document.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// `address/prefix`; none means DHCP.
    pub address: Option<String>,
}

/// What the user-data of a machine may say of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A VM on this machine, which has its address in the local network.
    Local,
    /// Any other machine: only what `cluster.toml` says, else its metadata.
    Elsewhere,
    /// A machine of `kimg up` at a provider: its address is the one in this private network, and a worker finds the masters
    /// at these.
    Network {
        /// The private network.
        range: ipnet::Ipv4Net,
        /// The masters' addresses in it.
        masters: &'a [IpAddr],
    },
}

/// What a node begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin<'a> {
    /// A worker joins with a token; a master, and a worker that has joined, needs none.
    Join(Option<&'a BootstrapToken>),
    /// A master without a store waits for a backup: an empty one would have every worker end its pods.
    AwaitBackup,
    /// A master's etcd joins those of the masters that run, where it has no data; it never begins a cluster.
    JoinEtcd,
}

/// The user-data of a node.
///
/// # Errors
/// Bad input: it is too long, or nothing says where a worker elsewhere finds the API.
pub fn user_data(
    settings: &Settings,
    node: &NodeSettings,
    place: Place<'_>,
    begin: Begin<'_>,
    secrets: &Secrets,
) -> Result<String> {
    let mut text = format!("#cloud-config\nhostname: {}\nkimg:\n  role: {}\n", node.entry.name, node.entry.role);
    let mut own = node.entry.clone();
    if place == Place::Elsewhere && node.unaddressed {
        own.addresses.clear();
    }
    if let Place::Network { range, .. } = place {
        own.addresses.clear();
        let _ = writeln!(text, "  node-ip: {}", list(&[range]));
    }
    if let Some(gb) = node.data_gb {
        // It waits for the volume, which is attached once it is there.
        let _ = writeln!(text, "  data-volume: {gb}");
    }
    if own.role == Role::Master {
        // Its image has them.
        (own.labels, own.taints, own.reserved) = Default::default();
    }
    text.push_str(&own_lines(&own));
    let mut api: Vec<String> = settings.api_addresses(place == Place::Local).iter().map(ToString::to_string).collect();
    if let Place::Network { masters, .. } = place {
        api = masters.iter().map(ToString::to_string).collect();
    } else if api.is_empty() {
        api.extend(settings.api.names.iter().cloned());
    }
    if begin == Begin::AwaitBackup && settings.has_several_masters() {
        // Its etcd begins alone, and the others join it once it has the store.
        api = own.addresses.first().iter().map(ToString::to_string).collect();
    }
    if !api.is_empty() {
        let _ = writeln!(text, "  api: {}", list(&api));
    } else if node.entry.role == Role::Worker
        && let Some(missing) = settings.api_missing()
    {
        return input::bad(missing);
    }
    match begin {
        Begin::Join(Some(token)) => drop(writeln!(text, "  token: {token}")),
        Begin::Join(None) => {}
        Begin::AwaitBackup => text.push_str("  await-backup: true\n"),
        Begin::JoinEtcd => text.push_str("  join-etcd: true\n"),
    }
    if node.entry.role == Role::Master && settings.secrets == SecretsForm::Sealed {
        let _ = writeln!(text, "  seal-key: {}", secrets.seal_key()?.to_base64());
    }
    if text.len() > USER_DATA_LIMIT {
        return input::bad(format!(
            "the user-data of {} is {} bytes and must not be over {USER_DATA_LIMIT}; give it fewer addresses, labels and taints in cluster.toml",
            node.entry.name,
            text.len()
        ));
    }
    Ok(text)
}

/// What of the user-data is one node's alone. The texts are such as need no escape.
pub fn own_lines(entry: &NodeEntry) -> String {
    let mut text = String::new();
    if !entry.addresses.is_empty() {
        let _ = writeln!(text, "  node-ip: {}", list(&entry.addresses));
    }
    // In quotes: YAML reads some words as something else than text.
    let map = |pairs: &[(&str, &str)]| {
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("\"{key}\": \"{value}\"")).collect();
        format!("{{{}}}", pairs.join(", "))
    };
    let labels: Vec<(&str, &str)> = entry.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if !labels.is_empty() {
        let _ = writeln!(text, "  labels: {}", map(&labels));
    }
    if !entry.taints.is_empty() {
        let _ = writeln!(text, "  taints: {}", list(&entry.taints));
    }
    let Reserved { cpu, memory, ephemeral_storage } = &entry.reserved;
    let amounts = [("cpu", cpu), ("memory", memory), ("ephemeral-storage", ephemeral_storage)];
    let amounts: Vec<(&str, &str)> =
        amounts.iter().filter_map(|(key, amount)| Some((*key, amount.as_deref()?))).collect();
    if !amounts.is_empty() {
        let _ = writeln!(text, "  reserved: {}", map(&amounts));
    }
    text
}

/// What `kimg upload` calls a provider whose source of metadata has another name.
const UPLOAD_NAMES: [(&str, &str); 2] = [("aws", "ec2"), ("proxmox", "nocloud")];

/// What is wrong with user-data for a provider; the sentence about its size when nothing is. `provider` is the name of a
/// data source, as `docs/platforms.md` lists them, or that of `kimg upload`.
pub fn check_for(provider: &str, user_data: &str) -> Result<String> {
    let uploaded = UPLOAD_NAMES.iter().find(|(name, _)| *name == provider);
    let Some(source) = node_metadata::sources::by_name(uploaded.map_or(provider, |(_, source)| *source)) else {
        let sources = node_metadata::sources::all();
        let own = sources.iter().map(|source| source.name());
        let known: Vec<&str> = own.chain(UPLOAD_NAMES.iter().map(|(name, _)| *name)).collect();
        return input::bad(format!("{provider:?} is no provider; known are {}", known.join(", ")));
    };
    let Some(limit) = source.user_data_limit() else {
        return Ok(format!("{} bytes; {provider} publishes no limit that kimg knows", user_data.len()));
    };
    // Base64 writes three bytes as four characters.
    let size = if limit.as_base64 { user_data.len().div_ceil(3) * 4 } else { user_data.len() };
    let form = if limit.as_base64 { " as base64" } else { "" };
    if size > limit.bytes {
        let most = limit.bytes;
        return input::bad(format!(
            "the user-data has {size} bytes{form}, and {provider} takes at most {most}; shorten it"
        ));
    }
    Ok(format!("{size} of the {} bytes{form} that {provider} takes", limit.bytes))
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let quoted: Vec<String> = items.iter().map(|a| format!("\"{a}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// network-config, version 2.
pub fn network_config(interfaces: &[Interface]) -> String {
    let mut text = "version: 2\nethernets:\n".to_string();
    for interface in interfaces {
        let _ = writeln!(text, "  {}:\n    match: {{macaddress: \"{}\"}}", interface.name, interface.mac);
        match &interface.address {
            Some(address) => {
                let _ = writeln!(text, "    dhcp4: false\n    addresses: [\"{address}\"]");
            }
            None => text.push_str("    dhcp4: true\n"),
        }
    }
    text
}

/// Whether a drive may be written to `path`.
///
/// # Errors
/// [`BadInput`] where something is that is no seed: it would be lost.
pub fn check_replaceable(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut head = Vec::new();
    if path.is_file() {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        file.take(512).read_to_end(&mut head).with_context(|| format!("reading {}", path.display()))?;
    }
    if fat::is_labelled(&head, LABEL) {
        return Ok(());
    }
    bad(format!("{} exists and is no seed; remove it, or give another name", path.display()))
}

/// A NoCloud volume (FAT, label CIDATA).
pub fn drive(settings: &Settings, node: &str, user_data: &str, interfaces: &[Interface]) -> Result<Vec<u8>> {
    let network = if interfaces.is_empty() { String::new() } else { network_config(interfaces) };
    volume(&settings.name, node, user_data, &network)
}

/// The same with a network-config as it is to stand there.
pub fn volume(cluster: &str, node: &str, user_data: &str, network: &str) -> Result<Vec<u8>> {
    let meta_data = format!("instance-id: {cluster}-{node}\nlocal-hostname: {node}\n");
    let mut files = vec![("meta-data", meta_data.as_bytes()), ("user-data", user_data.as_bytes())];
    if !network.is_empty() {
        files.push(("network-config", network.as_bytes()));
    }
    fat::volume(LABEL, &files)
}

/// The drive of a VM on this machine: its first interface is on the switch, its second behind QEMU's NAT.
pub fn local_drive(settings: &Settings, node: &NodeSettings, begin: Begin<'_>, secrets: &Secrets) -> Result<Vec<u8>> {
    let name = &node.entry.name;
    let prefix = settings.local.network.prefix_len();
    let interfaces = [
        Interface {
            name: "lan".into(),
            mac: mac(&settings.name, name, 0),
            address: Some(format!("{}/{prefix}", node.local_address)),
        },
        Interface { name: "nat".into(), mac: mac(&settings.name, name, 1), address: None },
    ];
    drive(settings, name, &user_data(settings, node, Place::Local, begin, secrets)?, &interfaces)
}

/// A locally administered hardware address that follows from cluster, node and interface.
pub fn mac(cluster: &str, node: &str, interface: u8) -> String {
    let digest = Sha256::digest(format!("{cluster}/{node}/{interface}"));
    format!("52:54:00:{:02x}:{:02x}:{:02x}", digest[0], digest[1], digest[2])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use node_metadata::sources::{Answer, Platform, Request, SourceError};

    #[test]
    fn only_seeds_are_written_over() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("x");
        check_replaceable(&path).expect("nothing is there");
        std::fs::write(&path, fat::volume(LABEL, &[("user-data", b"x".as_slice())]).expect("volume")).expect("written");
        check_replaceable(&path).expect("a seed");
        for precious in ["precious".to_string(), format!("what is {LABEL}? {}", "x".repeat(600))] {
            std::fs::write(&path, precious).expect("written");
            assert!(check_replaceable(&path).is_err());
        }
        assert!(check_replaceable(dir.path()).is_err());
    }

    #[test]
    fn user_data_is_what_a_node_reads() {
        let dir = tempfile::tempdir().expect("dir");
        let text =
            "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
        let settings = crate::config::parse(Path::new("c"), text, dir.path()).expect("valid");
        let secrets = Secrets::ensure(&settings.secrets_dir(), "demo").expect("secrets");
        let token = BootstrapToken { id: "abcdef".into(), secret: "0123456789abcdef".into() };
        let worker =
            user_data(&settings, &settings.nodes[1], Place::Local, Begin::Join(Some(&token)), &secrets).expect("text");
        assert_eq!(
            worker,
            "#cloud-config\nhostname: w\nkimg:\n  role: worker\n  node-ip: [\"10.77.0.11\"]\n  \
             api: [\"10.77.0.10\"]\n  token: abcdef.0123456789abcdef\n"
        );
        let master = user_data(&settings, &settings.nodes[0], Place::Local, Begin::Join(None), &secrets).expect("text");
        assert!(master.contains("  seal-key: "), "{master}");
        let waits = user_data(&settings, &settings.nodes[0], Place::Local, Begin::AwaitBackup, &secrets).expect("text");
        assert!(node_metadata::userdata::parse(waits.as_bytes()).expect("user-data").kimg.await_backup);
        // At a provider, nobody knows the addresses yet.
        let master =
            user_data(&settings, &settings.nodes[0], Place::Elsewhere, Begin::Join(None), &secrets).expect("text");
        assert!(!master.contains("10.77") && !master.contains("api:"), "{master}");
        let lost = user_data(&settings, &settings.nodes[1], Place::Elsewhere, Begin::Join(Some(&token)), &secrets);
        assert!(lost.expect_err("no API").to_string().contains("[api]"));
        // There, kimg has made the network and the master before.
        let range = "10.80.0.0/20".parse().expect("range");
        let master = Place::Network { range, masters: &[] };
        let master = user_data(&settings, &settings.nodes[0], master, Begin::Join(None), &secrets).expect("text");
        assert!(master.contains("  node-ip: [\"10.80.0.0/20\"]\n  seal-key: "), "{master}");
        let masters = ["10.80.0.2".parse().expect("address")];
        let worker = Place::Network { range, masters: &masters };
        let worker =
            user_data(&settings, &settings.nodes[1], worker, Begin::Join(Some(&token)), &secrets).expect("text");
        assert!(worker.contains("  node-ip: [\"10.80.0.0/20\"]\n  api: [\"10.80.0.2\"]\n  token: abc"), "{worker}");
        let settings =
            crate::config::parse(Path::new("c"), &format!("{text}[api]\nnames = [\"api.example\"]\n"), dir.path())
                .expect("valid");
        let worker = user_data(&settings, &settings.nodes[1], Place::Elsewhere, Begin::Join(Some(&token)), &secrets)
            .expect("text");
        assert!(!worker.contains("node-ip") && worker.contains("  api: [\"api.example\"]\n"), "{worker}");
    }

    #[test]
    fn masters_that_share_etcd_know_each_other() {
        let dir = tempfile::tempdir().expect("dir");
        let master = |n: u8| format!("{{ name = \"m{n}\", role = \"master\", addresses = [\"10.77.0.{n}\"] }}");
        let masters = [1, 2, 3].map(master).join(", ");
        let text =
            format!("name = \"demo\"\nstore = \"etcd\"\nnodes = [{masters}, {{ name = \"w\", role = \"worker\" }}]\n");
        let settings = crate::config::parse(Path::new("c"), &text, dir.path()).expect("valid");
        let secrets = Secrets::ensure(&settings.secrets_dir(), "demo").expect("secrets");
        let said = |node: usize, begin| {
            user_data(&settings, &settings.nodes[node], Place::Local, begin, &secrets).expect("text")
        };
        let all = "  api: [\"10.77.0.1\", \"10.77.0.2\", \"10.77.0.3\"]\n";
        let begins = said(1, Begin::Join(None));
        assert!(begins.contains(all) && !begins.contains("join-etcd"), "{begins}");
        let joins = said(1, Begin::JoinEtcd);
        assert!(joins.contains(all) && joins.contains("  join-etcd: true\n"), "{joins}");
        let waits = said(1, Begin::AwaitBackup);
        assert!(waits.contains("  api: [\"10.77.0.2\"]\n") && waits.contains("await-backup"), "{waits}");
        assert!(said(3, Begin::Join(None)).contains(all));
    }

    /// A machine with one drive.
    pub(crate) struct Machine(pub(crate) Vec<u8>);

    impl Platform for Machine {
        fn dmi(&self, name: &str) -> Option<String> {
            (name == "product_serial").then(|| "ds=nocloud".to_string())
        }
        fn kernel_line(&self) -> String {
            String::new()
        }
        fn devices(&self) -> Vec<(String, Box<dyn node_metadata::ReadAt>)> {
            vec![("vdb".to_string(), Box::new(self.0.clone()))]
        }
        fn firmware_file(&self, _: &str) -> Option<Vec<u8>> {
            None
        }
        fn guest_info(&self, _: &str) -> Option<Vec<u8>> {
            None
        }
        fn send(&self, request: &Request) -> std::result::Result<Answer, SourceError> {
            Err(SourceError::Absent(format!("no network for {}", request.url)))
        }
    }

    #[test]
    fn a_node_reads_its_drive() {
        let dir = tempfile::tempdir().expect("dir");
        let text =
            "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
        let settings = crate::config::parse(Path::new("c"), text, dir.path()).expect("valid");
        let secrets = Secrets::ensure(&settings.secrets_dir(), "demo").expect("secrets");
        let token = BootstrapToken::random();
        let user_data =
            user_data(&settings, &settings.nodes[1], Place::Local, Begin::Join(Some(&token)), &secrets).expect("text");
        let interfaces = [
            Interface { name: "lan".into(), mac: mac("demo", "w", 0), address: Some("10.77.0.11/24".into()) },
            Interface { name: "nat".into(), mac: mac("demo", "w", 1), address: None },
        ];
        let machine = Machine(drive(&settings, "w", &user_data, &interfaces).expect("drive"));
        let found = node_metadata::sources::all()
            .iter()
            .filter(|source| source.detect(&machine))
            .find_map(|source| source.read(&machine).expect("readable"))
            .expect("a source knows the drive");
        assert_eq!(found.instance_id.as_deref(), Some("demo-w"));
        let user = node_metadata::userdata::parse(found.user_data.as_deref().expect("user-data")).expect("valid");
        let cluster = settings.cluster(Role::Worker, node_metadata::BuildInfo::default());
        let merged = node_metadata::merge::merge(&cluster, &found, &user, &["10.77.0.11".parse().expect("address")])
            .expect("merges");
        assert_eq!(merged.node.name, "w");
        assert_eq!(merged.node.api_endpoints, ["10.77.0.10:6443"]);
        assert_eq!(merged.token.map(|t| t.0), Some(token.to_string()));
        let network = found.network.expect("a network");
        assert_eq!(network.nics[0].mac.as_deref(), Some(mac("demo", "w", 0).as_str()));
        assert_eq!((network.nics[0].addresses.len(), network.nics[0].dhcp4), (1, false));
        assert!(network.nics[1].dhcp4);
    }

    #[test]
    fn a_worker_is_what_cluster_toml_says_by_its_user_data_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\n[[nodes]]\nname = \"m\"\nrole = \"master\"\naddresses = [\"10.77.0.10\"]\n\
                    [[nodes]]\nname = \"w\"\nrole = \"worker\"\naddresses = [\"10.77.0.30\", \"2001:db8::5\"]\n\
                    labels = { disk = \"ssd\", \"example.org/on\" = \"true\", n = \"010\" }\n\
                    taints = [\"a=b:NoSchedule\", \"c:NoExecute\"]\nreserved = { cpu = \"1\", ephemeral-storage = \"1Gi\" }\n";
        let settings = crate::config::parse(Path::new("c"), text, dir.path()).expect("valid");
        let secrets = Secrets::ensure(&settings.secrets_dir(), "demo").expect("secrets");
        let token = BootstrapToken::random();
        let own = ["10.0.2.15", "2001:db8::5", "10.77.0.30", "10.80.0.3"].map(|text| text.parse().expect("address"));
        let cluster = settings.cluster(Role::Worker, node_metadata::BuildInfo::default());
        let node = &settings.nodes[1];
        for place in [Place::Local, Place::Elsewhere] {
            let text = user_data(&settings, node, place, Begin::Join(Some(&token)), &secrets).expect("text");
            let user = node_metadata::userdata::parse(text.as_bytes()).expect("valid");
            let found = node_metadata::sources::Found::default();
            let told = node_metadata::merge::merge(&cluster, &found, &user, &own).expect("merges").node;
            assert_eq!(told.addresses, node.entry.addresses);
            assert_eq!((&told.labels, &told.reserved), (&node.entry.labels, &node.entry.reserved));
            let taints = told.taints.iter().map(|t| format!("{}={}:{}", t.key, t.value, t.effect)).collect::<Vec<_>>();
            assert_eq!(taints, ["a=b:NoSchedule", "c=:NoExecute"]);
        }
    }

    #[test]
    fn the_limit_of_each_provider_is_checked() {
        let text = "x".repeat(20_000);
        let error = check_for("ec2", &text).expect_err("too long").to_string();
        assert!(error.contains("20000 bytes") && error.contains("16384"), "{error}");
        let error = check_for("openstack", &"x".repeat(60_000)).expect_err("too long in base64").to_string();
        assert!(error.contains("80000 bytes as base64"), "{error}");
        assert_eq!(check_for("hetzner", &text).expect("fits"), "20000 of the 32768 bytes that hetzner takes");
        assert!(check_for("vultr", &text).expect("unknown").contains("publishes no limit"));
        let error = check_for("hetzna", "").expect_err("unknown").to_string();
        assert!(error.contains("known are") && error.contains("hetzner"), "{error}");
        // Whatever kimg writes fits everywhere.
        for source in node_metadata::sources::all() {
            check_for(source.name(), &"x".repeat(USER_DATA_LIMIT)).expect("fits");
        }
    }
}
