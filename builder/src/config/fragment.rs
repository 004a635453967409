//! `cluster.toml` as people write it: everything but the name and the nodes may be left out.
//!
//! The doc line of each field gives unit, default and reader; `kimg init` writes the same in its example.

use crate::image::recipe::PackageRecipe;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::Spanned;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fragment {
    /// Version of this file's format; default 1.
    pub version: Option<Spanned<i64>>,
    /// Cluster name, a DNS label.
    pub name: Spanned<String>,
    /// DNS domain of the cluster; default `cluster.local`.
    pub domain: Option<Spanned<String>>,
    /// Machine architecture; only `amd64`.
    pub arch: Option<Spanned<String>>,
    /// Addresses of all pods; default 10.200.0.0/16.
    pub pod_cidr: Option<Spanned<String>>,
    /// Addresses of services; default 10.32.0.0/24.
    pub service_cidr: Option<Spanned<String>>,
    /// Cluster DNS, inside the service CIDR; default its tenth address.
    pub dns_address: Option<Spanned<String>>,
    /// `vxlan` (default) or `host-gw`.
    pub overlay: Option<Spanned<String>>,
    /// `embedded` (default) or `etcd`.
    pub store: Option<Spanned<String>>,
    /// NTP servers; default Debian's pool.
    pub ntp_servers: Option<Vec<Spanned<String>>>,
    /// How masters carry their keys: `sealed` (default) or `plain` (local VMs only).
    pub secrets: Option<Spanned<String>>,
    /// Seconds that certificates of nodes live, which renew themselves; default 31536000, a year.
    pub certificate_life: Option<Spanned<i64>>,
    /// More add-on manifests (files relative to the cluster's folder).
    #[serde(default)]
    pub manifests: Vec<Spanned<PathBuf>>,
    /// Names and addresses of the API.
    #[serde(default)]
    pub api: ApiFragment,
    /// Where packages come from.
    #[serde(default)]
    pub packages: PackagesFragment,
    /// Options of the two images.
    #[serde(default)]
    pub image: ImagesFragment,
    /// Access to the platform's metadata server.
    #[serde(default)]
    pub metadata: MetadataFragment,
    /// Copies of the store.
    #[serde(default)]
    pub backup: BackupFragment,
    /// The cluster's own registry; default none.
    pub registry: Option<RegistryFragment>,
    /// Where nodes send their logs.
    #[serde(default)]
    pub logs: LogsFragment,
    /// The status page.
    #[serde(default)]
    pub status: StatusFragment,
    /// Where the machines are; default: VMs on this machine.
    pub provider: Option<ProviderFragment>,
    /// The nodes.
    pub nodes: Vec<Spanned<NodeFragment>>,
    /// VMs on this machine.
    #[serde(default)]
    pub local: LocalFragment,
}

/// `[backup]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BackupFragment {
    /// Seconds between two copies of the store on two workers; default 600.
    pub every: Option<Spanned<i64>>,
    /// Where `kimg backup send` keeps copies besides: a folder, or `s3://BUCKET/PREFIX`; default none.
    pub to: Option<Spanned<String>>,
    /// Days of which it keeps the last one there; default 30.
    pub keep: Option<Spanned<i64>>,
    /// The bucket's server; default: `AWS_ENDPOINT_URL_S3`, else AWS' own.
    pub endpoint: Option<Spanned<String>>,
    /// The bucket's region.
    pub region: Option<Spanned<String>>,
}

/// `[metadata]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MetadataFragment {
    /// Service accounts, as `namespace/name`, whose pods may ask the platform's metadata server; default none.
    #[serde(default)]
    pub allow: Vec<Spanned<String>>,
}

/// `[registry]`: where it stands, the cluster has a registry of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RegistryFragment {
    /// MiB of the master's disk that images may take; default 1024.
    pub size: Option<Spanned<i64>>,
}

/// `[logs]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogsFragment {
    /// `syslog+tls://HOST:PORT`, to which all nodes send their logs; default none.
    pub to: Option<Spanned<String>>,
    /// PEM file relative to the cluster's folder: the authorities of which one has signed its certificate; default: the
    /// web's.
    pub ca: Option<Spanned<PathBuf>>,
}

/// `[status]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StatusFragment {
    /// Whether the master shows a status page, on port 10272; default false.
    pub page: Option<bool>,
}

/// `[provider]`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ProviderFragment {
    /// `hetzner`, `digitalocean`, `linode`, `openstack`, `vultr`, `gcp`, `aws` or `proxmox`.
    pub name: Spanned<String>,
    /// The provider's name of a region (Hetzner: location, Google, AWS: zone, Proxmox: node).
    pub region: Spanned<String>,
    /// The provider's name of a type of machine (DigitalOcean: size, Vultr: plan, OpenStack: flavor), for all nodes that
    /// say no other.
    pub r#type: Option<Spanned<String>>,
    /// Of masters, where it is another.
    pub master_type: Option<Spanned<String>>,
    /// Of workers, where it is another.
    pub worker_type: Option<Spanned<String>>,
    /// What the machines may cost in a month, in the provider's currency, without taxes; default: as much as they do.
    pub budget: Option<Spanned<i64>>,
    /// OpenStack, Google, AWS: what a month of a machine costs, by its type; a type that is not named has no known price.
    #[serde(default)]
    pub prices: BTreeMap<String, Spanned<f64>>,
    /// OpenStack, Google, AWS: the currency of `prices`.
    pub currency: Option<Spanned<String>>,
    /// The private network between the machines; default 10.80.0.0/20.
    pub network: Option<Spanned<String>>,
    /// Google, AWS, Proxmox: GB of each machine's disk, which is no part of a type there; default 25.
    pub disk_gb: Option<Spanned<i64>>,
    /// OpenStack: the name of the network with public addresses; default: the only external one.
    pub external_network: Option<Spanned<String>>,
    /// OpenStack: `floating-ip` (the default), or `port`: machines have a port on the external network.
    pub public_address: Option<Spanned<String>>,
    /// AWS: the subnet for the machines, by its id; default: one in a VPC of the cluster's own.
    pub subnet: Option<Spanned<String>>,
    /// DigitalOcean, Vultr, Google: the bucket from which it fetches images.
    pub bucket: Option<Spanned<String>>,
    /// DigitalOcean, Vultr: the bucket's server; default: `AWS_ENDPOINT_URL_S3`, else AWS' own.
    pub endpoint: Option<Spanned<String>>,
    /// DigitalOcean, Vultr: the bucket's region.
    pub bucket_region: Option<Spanned<String>>,
    /// What only Proxmox has.
    pub proxmox: Option<Spanned<ProxmoxFragment>>,
}

/// `[provider.proxmox]`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ProxmoxFragment {
    /// The storage of the machines' disks.
    pub storage: Spanned<String>,
    /// The storage with the content `import`, for images; default `local`.
    pub image_storage: Option<Spanned<String>>,
    /// The bridge that `network` is on; default `vmbr0`.
    pub bridge: Option<Spanned<String>>,
    /// `FIRST-LAST` of `network`: the machines' addresses, which nobody else takes.
    pub addresses: Spanned<String>,
    /// The way out of `network`; default: its first address.
    pub gateway: Option<Spanned<String>>,
    /// Default: the gateway.
    #[serde(default)]
    pub nameservers: Vec<Spanned<String>>,
}

/// `[api]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ApiFragment {
    /// Host names clients use; they stand in the serving certificate.
    #[serde(default)]
    pub names: Vec<Spanned<String>>,
    /// Addresses clients use besides the masters' own.
    #[serde(default)]
    pub addresses: Vec<Spanned<String>>,
}

/// `[packages]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PackagesFragment {
    /// URL of a Debian mirror; default: the host's apt sources.
    pub mirror: Option<Spanned<String>>,
    /// URL of the security archive; default: the host's apt sources, else beside the mirror.
    pub security_mirror: Option<Spanned<String>>,
    /// RFC 3339: the mirrors are snapshots of this moment, and their Release files are judged by it.
    pub snapshot: Option<Spanned<String>>,
}

/// `[image]`: what both images have, and below it what each has besides.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImagesFragment {
    /// Whether kernels are signed by the cluster's Secure Boot keys; default false.
    pub secure_boot: Option<bool>,
    /// As in [`ImageFragment`].
    #[serde(default)]
    pub kernel_args: Vec<Spanned<String>>,
    /// As in [`ImageFragment`].
    #[serde(default)]
    pub modules: Vec<Spanned<String>>,
    /// As in [`ImageFragment`].
    #[serde(default)]
    pub images: Vec<Spanned<PathBuf>>,
    /// As in [`ImageFragment`].
    #[serde(default)]
    pub packages: Vec<Spanned<PackageRecipe>>,
    /// As in [`ImageFragment`].
    #[serde(default)]
    pub files: BTreeMap<Spanned<String>, Spanned<PathBuf>>,
    /// As in [`ImageFragment`].
    #[serde(default)]
    pub components: BTreeMap<Spanned<String>, ComponentFragment>,
    /// `[image.master]`
    #[serde(default)]
    pub master: ImageFragment,
    /// `[image.worker]`
    #[serde(default)]
    pub worker: ImageFragment,
}

/// `[image.ROLE]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageFragment {
    /// More words for the kernel's command line.
    #[serde(default)]
    pub kernel_args: Vec<Spanned<String>>,
    /// More kernel modules (with their dependencies).
    #[serde(default)]
    pub modules: Vec<Spanned<String>>,
    /// OCI archives baked into the image (files relative to the cluster's folder).
    #[serde(default)]
    pub images: Vec<Spanned<PathBuf>>,
    /// More Debian packages, and which of their files are taken; libraries come along.
    #[serde(default)]
    pub packages: Vec<Spanned<PackageRecipe>>,
    /// Files and programs: path in the image = file relative to the cluster's folder. One that may be executed there
    /// may be executed in the image; libraries that a program needs come from the packages.
    #[serde(default)]
    pub files: BTreeMap<Spanned<String>, Spanned<PathBuf>>,
    /// Own components: long-running programs, by the names under which init keeps them running.
    #[serde(default)]
    pub components: BTreeMap<Spanned<String>, ComponentFragment>,
}

/// `[image.components.NAME]`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ComponentFragment {
    /// Static program for x86-64, relative to the cluster's folder.
    pub binary: Spanned<PathBuf>,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<Spanned<String>>,
    /// Most memory, a Kubernetes quantity; default 64Mi.
    pub memory: Option<Spanned<String>>,
}

/// One entry of `nodes`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NodeFragment {
    /// Node name = host name, a DNS label.
    pub name: Spanned<String>,
    /// `master` or `worker`.
    pub role: Spanned<String>,
    /// The provider's name of its machine's type; default: as `[provider]` says.
    pub r#type: Option<Spanned<String>>,
    /// GB of a data volume at the provider, of a worker or of a single master; default: it has none.
    pub data_gb: Option<Spanned<i64>>,
    /// A worker that is there for the time of a roll, which removes it at its end; default false.
    pub spare: Option<Spanned<bool>>,
    /// Addresses, the first is the InternalIP; default: local VMs get one, elsewhere metadata says.
    #[serde(default)]
    pub addresses: Vec<Spanned<String>>,
    /// Labels of the Node object.
    #[serde(default)]
    pub labels: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Taints, `key[=value]:Effect`.
    #[serde(default)]
    pub taints: Vec<Spanned<String>>,
    /// Kept for the system.
    #[serde(default)]
    pub reserved: ReservedFragment,
}

/// `reserved = { cpu = "100m", memory = "128Mi" }`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReservedFragment {
    /// Kubernetes quantity.
    pub cpu: Option<Spanned<String>>,
    /// Kubernetes quantity.
    pub memory: Option<Spanned<String>>,
    /// Kubernetes quantity.
    pub ephemeral_storage: Option<Spanned<String>>,
}

/// `[local]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LocalFragment {
    /// Network between the VMs; default 10.77.0.0/24.
    pub network: Option<Spanned<String>>,
    /// `auto` (default), `kvm` or `tcg`.
    pub accel: Option<Spanned<String>>,
    /// `bios` (default) or `uefi`.
    pub firmware: Option<Spanned<String>>,
    /// Whether the network drops what a VM sends under a foreign address, as providers' do; default false.
    pub check_source: Option<bool>,
    /// Places on the network between the VMs for machines that are not nodes of the cluster; default 0.
    pub spare_ports: Option<Spanned<i64>>,
    /// NodePorts that answer on 127.0.0.1 of this machine, on the first worker.
    #[serde(default)]
    pub node_ports: Vec<Spanned<i64>>,
    /// Size of master VMs.
    #[serde(default)]
    pub master: VmFragment,
    /// Size of worker VMs.
    #[serde(default)]
    pub worker: VmFragment,
}

/// `[local.ROLE]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmFragment {
    /// MiB; default 512 (master), 768 (worker).
    pub memory: Option<Spanned<i64>>,
    /// Virtual CPUs; default 1.
    pub cpus: Option<Spanned<i64>>,
    /// MiB; default 2048 (master), 8192 (worker). Sparse: only what is written takes space.
    pub disk: Option<Spanned<i64>>,
}
