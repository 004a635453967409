//! `kimg-node master-pki`: a master's leaf certificates and kubeconfigs, made anew at each boot,
//! so that an added address or name is in them, and renewed while the master runs.
//!
//! A renewed certificate keeps its key until the next boot: who reads both files always finds a pair.

use super::issue::{Authority, Leaf, Usage, fresh_key, is_due};
use crate::services::table::{STATUS_PAGE, STATUS_SERVICE};
use anyhow::{Context, Result};
use ipnet::IpNet;
use node_metadata::{Cluster, Node, OwnComponent, REGISTRY, StoreEngine};
use rcgen::KeyPair;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::{Duration, OffsetDateTime};

/// Folders that the certificates come from and go to.
#[derive(Debug, Clone)]
struct Folders {
    authorities: PathBuf,
    secrets: PathBuf,
    leaves: PathBuf,
    kubeconfigs: PathBuf,
    /// All that the status page reads.
    page: PathBuf,
    /// The page's group, which may read it.
    page_group: u32,
}

const SERVER: &str = "https://127.0.0.1:6443";
/// What the status page's files are called.
const PAGE: &str = "status";

/// Entry point.
pub fn main() -> ExitCode {
    let folders = Folders {
        authorities: "/run/kimg/config/pki".into(),
        secrets: "/run/kimg/secrets".into(),
        leaves: "/run/kimg/pki".into(),
        kubeconfigs: "/run/kimg/kubeconfig".into(),
        page: STATUS_PAGE.into(),
        page_group: OwnComponent::user(STATUS_SERVICE),
    };
    match run(&folders) {
        Ok(Made { all, now }) => {
            if now > 0 {
                node_sys::notify::status(&format!("{all} certificates, {now} of them made now"));
                tracing::info!("{now} of {all} certificates were made");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error:#}");
            node_sys::notify::status(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// How many certificates there are, and were made now.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    all: usize,
    now: usize,
}

fn run(folders: &Folders) -> Result<Made> {
    let cluster: Cluster = read_json(Path::new("/run/kimg/config/cluster.json"))?;
    let node: Node = read_json(Path::new("/run/kimg/node.json"))?;
    make(folders, &cluster, &node)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what this program writes", path.display()))
}

fn make(folders: &Folders, cluster: &Cluster, node: &Node) -> Result<Made> {
    let authority = |name: &str| {
        Authority::read(&folders.authorities.join(format!("{name}.crt")), &folders.secrets.join(format!("{name}.key")))
    };
    let (cluster_ca, front_proxy, etcd) =
        (authority("cluster-ca")?, authority("front-proxy-ca")?, authority("etcd-ca")?);
    let leaves = leaves(cluster, node);
    let (time, life) =
        (OffsetDateTime::now_utc().unix_timestamp(), Duration::seconds(cluster.certificate_life_s.into()));
    let mut now = 0;
    for (file, leaf) in &leaves {
        let (folder, mode) = if *file == PAGE { (&folders.page, 0o640) } else { (&folders.leaves, 0o600) };
        let (key_file, file_name) = (folder.join(format!("{file}.key")), folder.join(format!("{file}.crt")));
        let key = std::fs::read_to_string(&key_file).ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
        if key.is_some() && std::fs::read(&file_name).is_ok_and(|pem| !is_due(&pem, time)) {
            continue;
        }
        let signer = match *file {
            "front-proxy-client" => &front_proxy,
            "etcd" | "apiserver-etcd-client" => &etcd,
            _ => &cluster_ca,
        };
        let key = match key {
            Some(key) => key,
            None => {
                let key = fresh_key()?;
                super::write(&key_file, key.serialize_pem().as_bytes(), mode)?;
                key
            }
        };
        super::write(&file_name, signer.issue(leaf, &key, life)?.as_bytes(), 0o644)?;
        now += 1;
    }
    let registry = cluster.registry.map(|_| "registry");
    let components = ["kubelet", "kube-proxy", "overlay", "kube-controller-manager", "kube-scheduler"];
    for component in components.into_iter().chain(registry) {
        let text = kubeconfig(folders, &cluster.name, component);
        keep(&folders.kubeconfigs.join(format!("{component}.conf")), text.as_bytes(), 0o600)?;
    }
    if cluster.status_page {
        page(folders, &cluster.name)?;
    }
    Ok(Made { all: leaves.len(), now })
}

/// Writes what is not there already: its reader may be about to open it.
fn keep(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    super::write(path, bytes, mode)
}

/// Puts beside the page's certificate what else it needs, and lets its group read it all: it is a user of its own, who
/// gets into no other folder of the node's.
fn page(folders: &Folders, cluster: &str) -> Result<()> {
    let folder = &folders.page;
    let authority = std::fs::read(folders.authorities.join("cluster-ca.crt")).context("cannot read cluster-ca.crt")?;
    keep(&folder.join("cluster-ca.crt"), &authority, 0o644)?;
    let all = Folders { authorities: folder.clone(), leaves: folder.clone(), ..folders.clone() };
    keep(&folder.join(format!("{PAGE}.conf")), kubeconfig(&all, cluster, PAGE).as_bytes(), 0o640)?;
    let context = || format!("cannot let the status page read {}", folder.display());
    let lend = |path: &Path| std::os::unix::fs::lchown(path, None, Some(folders.page_group));
    for entry in std::fs::read_dir(folder).with_context(context)? {
        lend(&entry.with_context(context)?.path()).with_context(context)?;
    }
    lend(folder)
        .and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o750)))
        .with_context(context)
}

/// File name and content of each certificate.
fn leaves(cluster: &Cluster, node: &Node) -> Vec<(&'static str, Leaf)> {
    let client = |common_name: &str, organization: Option<&str>| Leaf {
        common_name: common_name.to_owned(),
        organization: organization.map(str::to_owned),
        usage: Usage::Client,
        names: Vec::new(),
        addresses: Vec::new(),
    };
    let server = |common_name: &str, organization: Option<&str>, names: Vec<String>, addresses: Vec<IpAddr>| Leaf {
        usage: Usage::Server,
        names,
        addresses,
        ..client(common_name, organization)
    };
    let node_user = format!("system:node:{}", node.name);
    let own_names = vec![node.name.clone()];
    // By the node API the operator reaches the registry, too, and calls it by its own name.
    let registry = cluster.registry.map(|_| REGISTRY.to_owned());
    let node_api_names = own_names.iter().cloned().chain(registry.clone()).collect();
    let mut leaves = vec![
        ("apiserver", server("kube-apiserver", None, api_names(cluster, node), api_addresses(cluster, node))),
        ("kubelet-server", server(&node_user, Some("system:nodes"), own_names, node.addresses.clone())),
        ("node-api", server(&format!("kimg:node-api:{}", node.name), None, node_api_names, node.addresses.clone())),
        ("apiserver-kubelet-client", client("kube-apiserver-kubelet-client", Some("kimg:kubelet-api-clients"))),
        ("front-proxy-client", client("front-proxy-client", None)),
        ("kubelet", client(&node_user, Some("system:nodes"))),
        ("kube-proxy", client("system:kube-proxy", None)),
        ("overlay", client("kimg:overlay", None)),
        ("kube-controller-manager", client("system:kube-controller-manager", None)),
        ("kube-scheduler", client("system:kube-scheduler", None)),
    ];
    if cluster.store == StoreEngine::Etcd {
        // A member shows its certificate to other members, too, which reach it and are reached from its addresses.
        let addresses = std::iter::once(Ipv4Addr::LOCALHOST.into()).chain(node.addresses.iter().copied());
        let member = server("etcd", None, vec!["localhost".to_owned()], addresses.collect());
        leaves.push(("etcd", Leaf { usage: Usage::Both, ..member }));
        leaves.push(("apiserver-etcd-client", client("kube-apiserver-etcd-client", None)));
    }
    if let Some(name) = registry {
        // Nodes reach it by the loopback port of their balancer, and it asks the API server.
        let loopback = server("kimg:registry", None, vec![name], vec![Ipv4Addr::LOCALHOST.into()]);
        leaves.push(("registry", Leaf { usage: Usage::Both, ..loopback }));
    }
    if cluster.status_page {
        // Where the API is found from outside, but for the names and the address that it has inside.
        let names = std::iter::once("localhost".to_owned()).chain(Some(node.name.clone()));
        let inside = first_address(cluster.service_cidr);
        let addresses = api_addresses(cluster, node).into_iter().filter(|address| Some(*address) != inside);
        let page =
            server("kimg:status", None, names.chain(cluster.api_names.iter().cloned()).collect(), addresses.collect());
        leaves.push((PAGE, Leaf { usage: Usage::Both, ..page }));
    }
    leaves
}

fn api_names(cluster: &Cluster, node: &Node) -> Vec<String> {
    let fixed = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(str::to_owned);
    let full = format!("kubernetes.default.svc.{}", cluster.domain);
    let names: BTreeSet<String> =
        fixed.into_iter().chain([full, node.name.clone()]).chain(cluster.api_names.iter().cloned()).collect();
    names.into_iter().collect()
}

fn api_addresses(cluster: &Cluster, node: &Node) -> Vec<IpAddr> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses: BTreeSet<IpAddr> = loopback
        .into_iter()
        .chain(first_address(cluster.service_cidr))
        .chain(node.addresses.iter().copied())
        // Where a provider lets it be reached from outside, which nobody knows when the image is built.
        .chain(node.external_addresses.iter().copied())
        .chain(cluster.api_addresses.iter().copied())
        .collect();
    addresses.into_iter().collect()
}

/// The address of the Service `kubernetes`.
fn first_address(range: IpNet) -> Option<IpAddr> {
    match range.network() {
        IpAddr::V4(network) => u32::from(network).checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(network) => u128::from(network).checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

fn kubeconfig(folders: &Folders, cluster: &str, component: &str) -> String {
    let path = |folder: &Path, file: String| folder.join(file).display().to_string();
    // JSON is YAML, and is quoted without thinking.
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {
            "server": SERVER,
            "certificate-authority": path(&folders.authorities, "cluster-ca.crt".to_owned()),
        }}],
        "users": [{"name": component, "user": {
            "client-certificate": path(&folders.leaves, format!("{component}.crt")),
            "client-key": path(&folders.leaves, format!("{component}.key")),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": component}}],
        "current-context": cluster,
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    #[test]
    fn a_masters_certificates_and_kubeconfigs_are_made() {
        let base = std::env::temp_dir().join(format!("kimg-master-pki-{}", std::process::id()));
        let folders = Folders {
            authorities: base.join("ca"),
            secrets: base.join("secrets"),
            leaves: base.join("pki"),
            kubeconfigs: base.join("kubeconfig"),
            page: base.join("page"),
            page_group: rustix::process::getgid().as_raw(),
        };
        for name in ["cluster-ca", "front-proxy-ca", "etcd-ca"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            super::super::write(&folders.authorities.join(format!("{name}.crt")), certificate.pem().as_bytes(), 0o644)
                .unwrap();
            super::super::write(&folders.secrets.join(format!("{name}.key")), key.serialize_pem().as_bytes(), 0o600)
                .unwrap();
        }
        let json = r#"{"name":"demo","role":"master","domain":"cluster.local","api-names":["kube.example.org"],
            "api-addresses":["203.0.113.5"],"pod-cidr":"10.200.0.0/16","service-cidr":"10.32.0.0/24",
            "dns-address":"10.32.0.10","overlay":"vxlan","store":"embedded"}"#;
        let cluster: Cluster = serde_json::from_str(json).unwrap();
        let node: Node = serde_json::from_str(
            r#"{"name":"m1","role":"master","addresses":["10.77.0.10"],"external-addresses":["198.51.100.7"],
                "api-endpoints":[],"source":"nocloud"}"#,
        )
        .unwrap();
        let made = |all, now| Made { all, now };
        assert_eq!(make(&folders, &cluster, &node).unwrap(), made(10, 10));
        assert_eq!(make(&folders, &cluster, &node).unwrap(), made(10, 0), "nothing is due");
        let read = |name: &str| std::fs::read_to_string(folders.leaves.join(name)).unwrap();
        let (key, certificate) = (read("kubelet.key"), read("kubelet.crt"));
        std::fs::remove_file(folders.leaves.join("overlay.crt")).unwrap();
        let short = Cluster { certificate_life_s: 2, ..cluster.clone() };
        assert_eq!(make(&folders, &short, &node).unwrap(), made(10, 1), "what is gone");
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert_eq!(make(&folders, &cluster, &node).unwrap(), made(10, 1), "what is due");
        assert_eq!((read("kubelet.key"), read("kubelet.crt")), (key.clone(), certificate.clone()));
        super::super::write(&folders.leaves.join("kubelet.crt"), b"torn", 0o644).unwrap();
        assert_eq!(make(&folders, &cluster, &node).unwrap(), made(10, 1));
        assert!(read("kubelet.key") == key && read("kubelet.crt") != certificate, "another one of the same key");
        assert!(!folders.leaves.join("etcd.crt").exists(), "of the other engine");
        let pem = std::fs::read(folders.leaves.join("apiserver.crt")).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let certificate = block.parse_x509().unwrap();
        let text = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
        for wanted in [
            "kubernetes.default.svc.cluster.local",
            "kube.example.org",
            "m1",
            "[10, 32, 0, 1]",
            "[10, 77, 0, 10]",
            "[203, 0, 113, 5]",
            "[198, 51, 100, 7]",
            "[127, 0, 0, 1]",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in {text}");
        }
        assert!(std::fs::read_to_string(folders.kubeconfigs.join("kubelet.conf")).unwrap().contains("kubelet.key"));
        let cluster = Cluster { store: StoreEngine::Etcd, ..cluster };
        assert_eq!(make(&folders, &cluster, &node).unwrap(), made(12, 2));
        for (file, server) in [("etcd", true), ("apiserver-etcd-client", false)] {
            let pem = std::fs::read(folders.leaves.join(format!("{file}.crt"))).unwrap();
            let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
            let certificate = block.parse_x509().unwrap();
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((usage.client_auth, usage.server_auth), (true, server), "{file}");
        }
        let pem = std::fs::read(folders.leaves.join("etcd.crt")).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let certificate = block.parse_x509().unwrap();
        let text = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
        assert!(text.contains("[127, 0, 0, 1]") && text.contains("[10, 77, 0, 10]"), "{text}");
        let registry = Some(node_metadata::Registry { size: 64 });
        // Which names a certificate has is settled at boot.
        std::fs::remove_dir_all(&folders.leaves).unwrap();
        assert_eq!(make(&folders, &Cluster { registry, ..cluster.clone() }, &node).unwrap(), made(13, 13));
        for (file, address) in [("registry", "[127, 0, 0, 1]"), ("node-api", "[10, 77, 0, 10]")] {
            let pem = std::fs::read(folders.leaves.join(format!("{file}.crt"))).unwrap();
            let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
            let certificate = block.parse_x509().unwrap();
            let text = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
            assert!(text.contains(REGISTRY) && text.contains(address), "{file}: {text}");
        }
        assert!(std::fs::read_to_string(folders.kubeconfigs.join("registry.conf")).unwrap().contains("registry.key"));
        assert_eq!(make(&folders, &Cluster { status_page: true, ..cluster }, &node).unwrap(), made(13, 1));
        assert!(!folders.leaves.join("status.key").exists(), "where the page cannot read it");
        let mode = |name: &str| std::fs::metadata(folders.page.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(["", "status.key", "status.conf", "cluster-ca.crt"].map(mode), [0o750, 0o640, 0o640, 0o644]);
        let pem = std::fs::read(folders.page.join("status.crt")).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let certificate = block.parse_x509().unwrap();
        let text = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
        assert!(text.contains("kube.example.org") && text.contains("[198, 51, 100, 7]"), "{text}");
        assert!(!text.contains("kubernetes") && !text.contains("[10, 32, 0, 1]"), "{text}");
        let config = std::fs::read_to_string(folders.page.join("status.conf")).unwrap();
        let own = format!("{}/", folders.page.display());
        assert_eq!(config.matches(&own).count(), 3, "{config}");
        std::fs::remove_dir_all(base).unwrap();
    }
}
