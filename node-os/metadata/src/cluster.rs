//! `cluster.json`: the resolved settings of the cluster, as `kimg build` bakes them into CONFIG.

use crate::OwnComponent;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a machine is in the cluster. An image is made for one role and refuses to be another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Control plane.
    Master,
    /// Runs pods.
    Worker,
}

impl Role {
    /// The name used in `cluster.toml`, user-data and file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Worker => "worker",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Name of the cluster's own registry in the names of images. Nobody resolves it: nodes and `kimg` know where it is.
pub const REGISTRY: &str = "registry.kimg.local";
/// Its port: on the master for nodes only, and on every worker's loopback, which leads there.
pub const REGISTRY_PORT: u16 = 10271;

/// Port of the status page, on the master.
pub const STATUS_PORT: u16 = 10272;

/// Set of the host firewall: addresses of the pods of [`Cluster::metadata_allow`], filled by the kubelet.
pub const METADATA_PODS: &str = "metadata_pods";
/// Set of the host firewall: control groups of those that have the host's network.
pub const METADATA_GROUPS: &str = "metadata_groups";

/// How pods on different nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// Encapsulated in UDP 8472; works on every provider.
    Vxlan,
    /// Plain routes; needs a network that carries foreign source addresses.
    HostGw,
}

/// What holds the API objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    /// One append-only log on the master's STATE.
    Embedded,
    /// etcd 3.5 on the masters.
    Etcd,
}

/// The cluster's own registry, on its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Registry {
    /// The most that it holds, MiB.
    pub size: u32,
}

/// Where all nodes send their logs: syslog (RFC 5424) over TLS (RFC 5425).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogTarget {
    /// Host name or address, that its certificate must say.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether CONFIG has an authority of its own for it, `pki/logs-ca.crt`; else the web's are believed.
    #[serde(default)]
    pub ca: bool,
}

/// Resources kept for the system and not offered to pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Reserved {
    /// Kubernetes quantity, e.g. `100m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Kubernetes quantity, e.g. `128Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Kubernetes quantity, e.g. `1Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<String>,
}

/// A node, as `cluster.toml` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NodeEntry {
    /// Node name, a DNS-1123 label.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its addresses, the first is the InternalIP. May be empty: then metadata says.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Extra labels of its Node object.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Extra taints, as `key[=value]:Effect`.
    #[serde(default)]
    pub taints: Vec<String>,
    /// What the system keeps for itself.
    #[serde(default)]
    pub reserved: Reserved,
}

/// Which build made the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildInfo {
    /// kimg's version, e.g. `0.1.0`.
    pub version: String,
    /// Content hash of the root partition (verity root hash), hex.
    #[serde(default)]
    pub root_hash: String,
}

/// What `cluster.json` of an older image does not say.
fn backup_every_s() -> u64 {
    600
}

/// The life of certificates where `cluster.toml` says nothing: 365 days, in seconds.
pub const CERTIFICATE_LIFE_S: u32 = 31_536_000;

fn certificate_life_s() -> u32 {
    CERTIFICATE_LIFE_S
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_usual_life(seconds: &u32) -> bool {
    *seconds == CERTIFICATE_LIFE_S
}

/// The whole of `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// Cluster name.
    pub name: String,
    /// The role this image is made for.
    pub role: Role,
    /// DNS domain of the cluster, `cluster.local`.
    pub domain: String,
    /// Names under which clients reach the API from outside.
    pub api_names: Vec<String>,
    /// Addresses (without port) of the masters' API servers (in a worker's image of the first one, and of those under `[api]`
    /// in `cluster.toml`); the balancer's first list, where user-data has none.
    pub api_addresses: Vec<IpAddr>,
    /// Pod addresses of the whole cluster.
    pub pod_cidr: IpNet,
    /// Service addresses.
    pub service_cidr: IpNet,
    /// Cluster DNS address, inside the service CIDR.
    pub dns_address: IpAddr,
    /// Pod network.
    pub overlay: Overlay,
    /// Store engine of the masters; without a meaning in a worker's image.
    pub store: StoreEngine,
    /// NTP servers (host names or addresses); empty: time is taken from the RTC only.
    #[serde(default)]
    pub ntp_servers: Vec<String>,
    /// Service accounts, as `namespace/name`, whose pods may ask the platform's metadata server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata_allow: Vec<String>,
    /// Seconds between two backups of the store.
    #[serde(default = "backup_every_s")]
    pub backup_every_s: u64,
    /// Seconds that certificates of nodes live; they are renewed while three tenths are left.
    #[serde(default = "certificate_life_s", skip_serializing_if = "is_usual_life")]
    pub certificate_life_s: u32,
    /// The cluster's own registry, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<Registry>,
    /// What init keeps running besides the services, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, OwnComponent>,
    /// Whether the master has a status page.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub status_page: bool,
    /// The masters that `cluster.toml` names, in a worker's image the first one. Of workers no image says anything, so that
    /// there can be more and fewer of them with the same images: what one is told stands in its user-data.
    #[serde(default)]
    pub masters: Vec<NodeEntry>,
    /// Where logs are sent, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogTarget>,
    /// Which build made this.
    #[serde(default)]
    pub build: BuildInfo,
}
