//! Flags of the kubelet: upstream's names where upstream has the flag. What is not given is
//! taken from what init wrote about the cluster and this node.

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The kubelet: runs the pods that are bound to this node.
#[derive(Debug, Clone, Parser)]
#[command(name = "kubelet", version = crate::VERSION)]
pub struct Flags {
    /// How to reach the API server and as whom.
    #[arg(long, default_value = "/run/kimg/kubeconfig/kubelet.conf")]
    pub kubeconfig: PathBuf,
    /// Name of the Node object; default: the name that metadata gave.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// This node's addresses, the first is the InternalIP.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Socket of the container runtime; empty: this node runs no pods.
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// Labels that the Node is registered with, key=value.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints that the Node is registered with, key[=value]:Effect.
    #[arg(long, value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// Address of the cluster's DNS.
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    #[arg(long)]
    pub cluster_domain: Option<String>,
    /// Kept for the system and not offered to pods, e.g. cpu=100m,memory=128Mi.
    #[arg(long, value_delimiter = ',')]
    pub system_reserved: Vec<String>,
    /// Most pods that this node takes.
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// spec.providerID of the Node.
    #[arg(long)]
    pub provider_id: Option<String>,
    /// Where pods' volumes and the kubelet's own state lie.
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Where containers' logs lie.
    #[arg(long, default_value = "/var/log/pods")]
    pub pod_logs_dir: PathBuf,
    /// Directory of manifests of static pods.
    #[arg(long, default_value = "/run/kimg/config/static-pods")]
    pub pod_manifest_path: PathBuf,
    /// The node's resolver configuration, for pods with dnsPolicy Default.
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Image archives that are imported at start when missing.
    #[arg(long, default_value = "/usr/share/kimg/images")]
    pub image_archive_dir: PathBuf,
    /// Address of the server.
    #[arg(long, default_value = "0.0.0.0")]
    pub address: IpAddr,
    /// Port of the server; 0: none.
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// Port of the health check on 127.0.0.1; 0: none.
    #[arg(long, default_value_t = 10248)]
    pub healthz_port: u16,
    /// Serving certificate.
    #[arg(long, default_value = "/var/lib/kimg/pki/kubelet-server.crt")]
    pub tls_cert_file: PathBuf,
    /// Key of the serving certificate.
    #[arg(long, default_value = "/var/lib/kimg/pki/kubelet-server.key")]
    pub tls_private_key_file: PathBuf,
    /// CA of client certificates.
    #[arg(long, default_value = "/run/kimg/config/pki/cluster-ca.crt")]
    pub client_ca_file: PathBuf,
    /// Unix socket that tells the node API of pods, containers and images; empty: none.
    #[arg(long, default_value = "/run/kimg/kubelet.sock")]
    pub local_socket: PathBuf,
    /// Root of the pods' cgroups.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub cgroup_mount: PathBuf,
    /// Make and limit cgroups of pods.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub cgroups_per_qos: bool,
    /// Times a day's worth of seconds between image garbage collections is never exceeded: seconds between two.
    #[arg(long, default_value_t = 300)]
    pub image_gc_period: u64,
    /// What metadata said about this node.
    #[arg(long, default_value = "/run/kimg/node.json")]
    pub node_file: PathBuf,
    /// What the image knows about the cluster.
    #[arg(long, default_value = "/run/kimg/config/cluster.json")]
    pub cluster_file: PathBuf,
}

/// A taint as the flags spell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, may be empty.
    pub value: String,
    /// Effect.
    pub effect: String,
}

/// Flags and files, merged and checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// The flags as given.
    pub flags: Flags,
    /// Name of the Node.
    pub node_name: String,
    /// Addresses of this node.
    pub node_ips: Vec<IpAddr>,
    /// Addresses under which the platform reaches this node from outside.
    pub external_ips: Vec<IpAddr>,
    /// Socket of the runtime; none: no pods.
    pub runtime: Option<String>,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Taints at registration.
    pub taints: Vec<Taint>,
    /// DNS addresses for pods.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain.
    pub cluster_domain: String,
    /// Kept for the system: resource name to quantity.
    pub reserved: BTreeMap<String, String>,
    /// Provider ID.
    pub provider_id: Option<String>,
    /// Service accounts, as `namespace/name`, whose pods may ask the platform's metadata server.
    pub metadata_allow: Vec<String>,
    /// Whether this node is a master.
    pub master: bool,
}

const DEFAULT_RUNTIME: &str = "unix:///run/containerd/containerd.sock";

impl Options {
    /// Merges flags with the files they name.
    pub fn load(args: Vec<OsString>) -> Result<Result<Options, clap::Error>> {
        match Flags::try_parse_from(args) {
            Err(error) => Ok(Err(error)),
            Ok(flags) => Self::merge(flags).map(Ok),
        }
    }

    fn merge(flags: Flags) -> Result<Options> {
        let node: Option<node_metadata::Node> = read_json(&flags.node_file)?;
        let cluster: Option<node_metadata::Cluster> = read_json(&flags.cluster_file)?;
        let master = match (&node, &cluster) {
            (Some(node), _) => node.role == node_metadata::Role::Master,
            (None, Some(cluster)) => cluster.role == node_metadata::Role::Master,
            (None, None) => flags.container_runtime_endpoint.as_deref() == Some(""),
        };
        let node_name = flags
            .hostname_override
            .clone()
            .or_else(|| node.as_ref().map(|n| n.name.clone()))
            .with_context(|| format!("no node name: give --hostname-override or {}", flags.node_file.display()))?;
        let node_ips = match (&flags.node_ip[..], &node) {
            ([], Some(node)) => node.addresses.clone(),
            (given, _) => given.to_vec(),
        };
        let runtime = match flags.container_runtime_endpoint.as_deref() {
            Some("") => None,
            Some(endpoint) => Some(endpoint.to_string()),
            None if master => None,
            None => Some(DEFAULT_RUNTIME.to_string()),
        };
        let (labels, taints) = labels_and_taints(&flags, node.as_ref(), master)?;
        let cluster_dns = match (&flags.cluster_dns[..], &cluster) {
            ([], Some(cluster)) => vec![cluster.dns_address],
            (given, _) => given.to_vec(),
        };
        let cluster_domain = flags
            .cluster_domain
            .clone()
            .or_else(|| cluster.as_ref().map(|c| c.domain.clone()))
            .unwrap_or_else(|| "cluster.local".into());
        let reserved = reserved(&flags, node.as_ref(), cluster.as_ref())?;
        let provider_id = flags.provider_id.clone().or_else(|| node.as_ref().and_then(|n| n.provider_id.clone()));
        Ok(Options {
            node_name,
            node_ips,
            external_ips: node.as_ref().map(|n| n.external_addresses.clone()).unwrap_or_default(),
            runtime,
            labels,
            taints,
            cluster_dns,
            cluster_domain,
            reserved,
            provider_id,
            metadata_allow: cluster.map(|c| c.metadata_allow).unwrap_or_default(),
            master,
            flags,
        })
    }

    /// Where a pod's volumes, hosts file and termination messages lie.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.flags.root_dir.join("pods").join(uid)
    }

    /// Where collectors look for containers' logs.
    pub fn container_log_dir(&self) -> PathBuf {
        self.flags.pod_logs_dir.parent().unwrap_or(Path::new("/var/log")).join("containers")
    }

    /// Where a pod's logs lie.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.flags.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}

fn labels_and_taints(
    flags: &Flags,
    node: Option<&node_metadata::Node>,
    master: bool,
) -> Result<(BTreeMap<String, String>, Vec<Taint>)> {
    let role = if master { "control-plane" } else { "worker" };
    let mut labels = BTreeMap::from([(format!("node-role.kubernetes.io/{role}"), String::new())]);
    let mut taints = Vec::new();
    if let Some(node) = node {
        labels.extend(node.labels.clone());
        taints.extend(node.taints.iter().map(|t| Taint {
            key: t.key.clone(),
            value: t.value.clone(),
            effect: t.effect.clone(),
        }));
    }
    for pair in flags.node_labels.iter().filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').with_context(|| format!("--node-labels: {pair:?} is not key=value"))?;
        labels.insert(key.into(), value.into());
    }
    for text in flags.register_with_taints.iter().filter(|t| !t.is_empty()) {
        taints.push(parse_taint(text)?);
    }
    let control_plane = "node-role.kubernetes.io/control-plane";
    if master && !taints.iter().any(|t| t.key == control_plane) {
        taints.push(Taint { key: control_plane.into(), value: String::new(), effect: "NoSchedule".into() });
    }
    Ok((labels, taints))
}

fn parse_taint(text: &str) -> Result<Taint> {
    let (head, effect) =
        text.rsplit_once(':').with_context(|| format!("--register-with-taints: {text:?} is not key[=value]:Effect"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("--register-with-taints: {effect:?} in {text:?} is none of NoSchedule, PreferNoSchedule, NoExecute");
    }
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    Ok(Taint { key: key.into(), value: value.into(), effect: effect.into() })
}

fn reserved(
    flags: &Flags,
    node: Option<&node_metadata::Node>,
    cluster: Option<&node_metadata::Cluster>,
) -> Result<BTreeMap<String, String>> {
    let mut reserved = BTreeMap::new();
    if let Some(kept) = node.map(|n| &n.reserved) {
        let all = [("cpu", &kept.cpu), ("memory", &kept.memory), ("ephemeral-storage", &kept.ephemeral_storage)];
        for (name, quantity) in all {
            if let Some(quantity) = quantity {
                reserved.insert(name.to_string(), quantity.clone());
            }
        }
    }
    for pair in flags.system_reserved.iter().filter(|p| !p.is_empty()) {
        let (name, quantity) =
            pair.split_once('=').with_context(|| format!("--system-reserved: {pair:?} is not resource=quantity"))?;
        reserved.insert(name.into(), quantity.into());
    }
    for (name, quantity) in &reserved {
        if crate::quantity::parse(quantity).is_none() {
            bail!("reserved {name}: {quantity:?} is not a quantity such as 100m or 128Mi");
        }
    }
    // What own components may use, pods cannot have.
    let own =
        cluster.map_or(0, |cluster| cluster.components.values().fold(0, |sum, own| own.memory.saturating_add(sum)));
    if own > 0 {
        let kept = reserved.get("memory").and_then(|kept| crate::quantity::parse(kept)).unwrap_or(0);
        reserved.insert("memory".into(), own.saturating_add_signed(kept).to_string());
    }
    Ok(reserved)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_spelt_as_upstream_spells_them() {
        let taint = parse_taint("dedicated=db:NoSchedule").unwrap();
        assert_eq!((&*taint.key, &*taint.value, &*taint.effect), ("dedicated", "db", "NoSchedule"));
        assert_eq!(parse_taint("a:NoExecute").unwrap().value, "");
        for bad in ["a", "a=b", "a=b:Never"] {
            assert!(parse_taint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_runtime_means_a_node_without_pods() {
        let args = ["kubelet", "--hostname-override=m", "--container-runtime-endpoint=", "--node-file=/nonexistent"];
        let options = Options::load(args.map(OsString::from).to_vec()).unwrap().unwrap();
        assert!(options.runtime.is_none());
        assert!(options.taints.iter().any(|t| t.key == "node-role.kubernetes.io/control-plane"));
        assert!(options.labels.contains_key("node-role.kubernetes.io/control-plane"));
    }

    #[test]
    fn memory_of_own_components_is_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster.json");
        let json = r#"{"name": "demo", "role": "worker", "domain": "cluster.local", "api-names": [], "api-addresses": [],
            "pod-cidr": "10.200.0.0/16", "service-cidr": "10.32.0.0/24", "dns-address": "10.32.0.10",
            "overlay": "vxlan", "store": "embedded", "components": {"a": {"memory": 1048576}, "b": {"memory": 3}}}"#;
        std::fs::write(&file, json).unwrap();
        let flag = format!("--cluster-file={}", file.display());
        let reserved = |more: &str| {
            let args = ["kubelet", "--hostname-override=w", "--node-file=/nonexistent", &flag, more];
            Options::load(args.map(OsString::from).to_vec()).unwrap().unwrap().reserved
        };
        assert_eq!(reserved("--system-reserved=")["memory"], "1048579");
        assert_eq!(reserved("--system-reserved=memory=1Ki")["memory"], "1049603");
    }
}
