//! The settings of a cluster: everything that `cluster.toml` says or implies.

use super::error::ConfigError;
use crate::image::recipe::PackageRecipe;
use crate::input::BadInput;
use ipnet::IpNet;
use node_metadata::{BuildInfo, Cluster, LogTarget, NodeEntry, Overlay, OwnComponent, Registry, Role, StoreEngine};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Everything `cluster.toml` says or implies.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's folder, absolute.
    pub dir: PathBuf,
    /// `cluster.toml` as it was read.
    pub text: String,
    /// Cluster name.
    pub name: String,
    /// DNS domain.
    pub domain: String,
    /// Machine architecture.
    pub arch: Arch,
    /// Pod addresses.
    pub pod_cidr: IpNet,
    /// Service addresses.
    pub service_cidr: IpNet,
    /// Cluster DNS.
    pub dns_address: IpAddr,
    /// Pod network.
    pub overlay: Overlay,
    /// Store engine.
    pub store: StoreEngine,
    /// NTP servers.
    pub ntp_servers: Vec<String>,
    /// How masters carry their keys.
    pub secrets: SecretsForm,
    /// Service accounts, as `namespace/name`, whose pods may ask the platform's metadata server.
    pub metadata_allow: Vec<String>,
    /// Seconds that certificates of nodes live.
    pub certificate_life_s: u32,
    /// Seconds between two backups of the store.
    pub backup_every_s: u64,
    /// Where copies of it go that leave the cluster, if anywhere.
    pub backup_to: Option<BackupTo>,
    /// Days of which the last copy stays there.
    pub backup_keep_days: u64,
    /// The cluster's own registry, where it has one.
    pub registry: Option<Registry>,
    /// Where nodes send their logs, if anywhere.
    pub logs: Option<LogTarget>,
    /// PEM: whom they believe there, where it is not the web's authorities.
    pub logs_ca: Option<String>,
    /// Whether the master has a status page.
    pub status_page: bool,
    /// More add-on manifests, absolute paths.
    pub manifests: Vec<PathBuf>,
    /// API names and addresses.
    pub api: Api,
    /// Package sources.
    pub packages: Packages,
    /// Whether kernels are signed by the cluster's Secure Boot keys.
    pub secure_boot: bool,
    /// Options of the master image.
    pub master_image: ImageOptions,
    /// Options of the worker image.
    pub worker_image: ImageOptions,
    /// Where the machines are, if not here.
    pub provider: Option<Provider>,
    /// The nodes, in the file's order.
    pub nodes: Vec<NodeSettings>,
    /// VMs on this machine.
    pub local: Local,
}

/// Machine architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
}

/// Where copies of the store go that leave the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupTo {
    /// An absolute path.
    Folder(PathBuf),
    /// A bucket of an object store.
    Bucket {
        /// Its name.
        name: String,
        /// What all keys begin with: nothing, or a path that ends in `/`.
        prefix: String,
        /// Its server.
        endpoint: Option<String>,
        /// Its region.
        region: Option<String>,
    },
}

impl std::fmt::Display for BackupTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BackupTo::Folder(path) => path.display().fmt(f),
            BackupTo::Bucket { name, prefix, .. } => write!(f, "s3://{name}/{prefix}"),
        }
    }
}

/// How masters carry the private halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretsForm {
    /// In clear in CONFIG; local VMs only.
    Plain,
    /// Encrypted to the seal key that a master's user-data brings.
    Sealed,
}

/// API names and addresses besides the masters' own.
#[derive(Debug, Clone, Default)]
pub struct Api {
    /// Host names.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// Package sources; `None` means what the host's apt uses.
#[derive(Debug, Clone, Default)]
pub struct Packages {
    /// Main archive.
    pub mirror: Option<String>,
    /// Security archive.
    pub security_mirror: Option<String>,
    /// The moment that the mirrors show, where they are snapshots.
    pub snapshot: Option<jiff::Timestamp>,
}

/// Options of one role's image.
#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    /// More kernel arguments.
    pub kernel_args: Vec<String>,
    /// More kernel modules.
    pub modules: Vec<String>,
    /// OCI archives to bake in, absolute paths.
    pub images: Vec<PathBuf>,
    /// More Debian packages.
    pub packages: Vec<PackageRecipe>,
    /// Files, and then the programs of `components`: absolute path in the image, absolute path here.
    pub files: Vec<(String, PathBuf)>,
    /// What init keeps running besides the services, by name.
    pub components: BTreeMap<String, OwnComponent>,
}

/// A node of `cluster.toml`.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// What the node itself is told.
    pub entry: NodeEntry,
    /// Address in the local network, for local VMs.
    pub local_address: Ipv4Addr,
    /// Whether `cluster.toml` says nothing of its addresses: the local VM has `local_address`, a machine at a
    /// provider what its metadata says.
    pub unaddressed: bool,
    /// GB of its data volume, for a worker or a single master at a provider that has one.
    pub data_gb: Option<u32>,
    /// A worker that is there for the time of a roll.
    pub spare: bool,
}

impl NodeSettings {
    /// What images say of a master: no address that only its local VM has.
    fn baked(&self) -> NodeEntry {
        let mut entry = self.entry.clone();
        if self.unaddressed {
            entry.addresses.clear();
        }
        entry
    }
}

/// A provider that machines can be made at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderName {
    /// Hetzner Cloud.
    Hetzner,
    /// DigitalOcean.
    DigitalOcean,
    /// Linode (Akamai).
    Linode,
    /// OpenStack.
    OpenStack,
    /// Vultr.
    Vultr,
    /// Google Cloud.
    Gcp,
    /// AWS EC2.
    Aws,
    /// Proxmox VE.
    Proxmox,
}

impl ProviderName {
    /// As it is written in `cluster.toml`, and called by `kimg upload`.
    pub fn as_str(self) -> &'static str {
        match self {
            ProviderName::Hetzner => "hetzner",
            ProviderName::DigitalOcean => "digitalocean",
            ProviderName::Linode => "linode",
            ProviderName::OpenStack => "openstack",
            ProviderName::Vultr => "vultr",
            ProviderName::Gcp => "gcp",
            ProviderName::Aws => "aws",
            ProviderName::Proxmox => "proxmox",
        }
    }

    /// What stands between the node and the cluster in the name of a machine: Google's have no dots.
    pub fn joint(self) -> &'static str {
        if self == ProviderName::Gcp { "--" } else { "." }
    }

    /// How many GB a data volume there may have.
    pub fn volume_gb(self) -> std::ops::RangeInclusive<u32> {
        match self {
            ProviderName::Hetzner => 10..=10_240,
            ProviderName::DigitalOcean | ProviderName::OpenStack | ProviderName::Aws | ProviderName::Proxmox => {
                1..=16_384
            }
            ProviderName::Linode => 10..=16_384,
            ProviderName::Vultr => 10..=10_000,
            ProviderName::Gcp => 10..=65_536,
        }
    }

    /// Whether it says what a volume costs; at Proxmox it is nothing.
    pub fn tells_volume_price(self) -> bool {
        matches!(self, ProviderName::Hetzner | ProviderName::Linode | ProviderName::Proxmox)
    }

    /// Whether it says what machines cost; else only `cluster.toml` does.
    pub fn tells_prices(self) -> bool {
        !matches!(self, ProviderName::OpenStack | ProviderName::Gcp | ProviderName::Aws)
    }
}

/// Where the machines are, and which.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Which.
    pub name: ProviderName,
    /// Region.
    pub region: String,
    /// Each node's type of machine.
    pub types: BTreeMap<String, String>,
    /// What a month may cost, in whole units of the provider's currency.
    pub budget: Option<u32>,
    /// What a month of a machine costs, in hundredths, by its type, where the provider does not say it.
    pub prices: BTreeMap<String, u64>,
    /// What a month of a GB of a data volume costs, in whole units, where the provider does not say it.
    pub volume_price: Option<f64>,
    /// In which currency.
    pub currency: Option<String>,
    /// The private network between the machines.
    pub network: ipnet::Ipv4Net,
    /// GB of a machine's disk, where its type has none.
    pub disk_gb: u32,
    /// OpenStack: the network with public addresses, by its name.
    pub external_network: Option<String>,
    /// OpenStack: how a machine has a public address.
    pub public_address: PublicAddress,
    /// AWS: the subnet of the machines, where it is not the cluster's own, by its id.
    pub subnet: Option<String>,
    /// DigitalOcean, Vultr, Google: the bucket from which it fetches images; its server and its region.
    pub bucket: Option<String>,
    /// Its server.
    pub endpoint: Option<String>,
    /// Its region.
    pub bucket_region: Option<String>,
    /// What only Proxmox has.
    pub proxmox: Option<Proxmox>,
}

/// Where machines at Proxmox are, besides its node.
#[derive(Debug, Clone)]
pub struct Proxmox {
    /// The storage of their disks.
    pub storage: String,
    /// The storage of images.
    pub image_storage: String,
    /// The bridge that their network is on.
    pub bridge: String,
    /// Their addresses, from the first to the last.
    pub addresses: std::ops::RangeInclusive<std::net::Ipv4Addr>,
    /// Their way out.
    pub gateway: std::net::Ipv4Addr,
    /// Whom they ask for names.
    pub nameservers: Vec<IpAddr>,
}

impl Proxmox {
    /// Cores, and MB of memory, of a type of machine, which is `2c-4g` or `1c-768m`: Proxmox knows none.
    pub fn size(name: &str) -> Option<(u64, u64)> {
        let number = |text: &str| text.parse().ok().filter(|n| (1..=65_536).contains(n) && !text.starts_with('0'));
        let (cores, memory) = name.split_once("c-")?;
        let memory = match memory.strip_suffix('g') {
            Some(gb) => number(gb)? * 1024,
            None => number(memory.strip_suffix('m')?)?,
        };
        Some((number(cores)?, memory))
    }
}

/// How a machine of OpenStack's has a public address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicAddress {
    /// A floating IP is led to its address in the private network, by a router.
    FloatingIp,
    /// It has a port on the external network, too.
    Port,
}

/// VMs on this machine.
#[derive(Debug, Clone)]
pub struct Local {
    /// Network between the VMs.
    pub network: ipnet::Ipv4Net,
    /// `None`: find out by booting.
    pub accel: Option<String>,
    /// Boot by UEFI instead of BIOS.
    pub uefi: bool,
    /// The network drops what a VM sends under a foreign address.
    pub check_source: bool,
    /// Places on the network for machines that are not nodes.
    pub spare_ports: u8,
    /// NodePorts forwarded from 127.0.0.1 to the first worker.
    pub node_ports: Vec<u16>,
    /// Master VMs.
    pub master: VmSize,
    /// Worker VMs.
    pub worker: VmSize,
    /// Why the cluster cannot run as VMs on this machine, though it may run elsewhere.
    pub fault: Option<ConfigError>,
}

/// Size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Disk, MiB.
    pub disk_mib: u32,
}

impl Settings {
    /// Options of a role's image.
    pub fn image(&self, role: Role) -> &ImageOptions {
        match role {
            Role::Master => &self.master_image,
            Role::Worker => &self.worker_image,
        }
    }

    /// Nodes of a role.
    pub fn nodes_of(&self, role: Role) -> impl Iterator<Item = &NodeSettings> {
        self.nodes.iter().filter(move |n| n.entry.role == role)
    }

    /// The workers that are there whether or not somebody rolls.
    pub fn lasting_workers(&self) -> impl Iterator<Item = &NodeSettings> {
        self.nodes_of(Role::Worker).filter(|node| !node.spare)
    }

    /// The workers that are there for the time of a roll.
    pub fn spares(&self) -> impl Iterator<Item = &NodeSettings> {
        self.nodes.iter().filter(|node| node.spare)
    }

    /// What there is to say of spares that a roll has left.
    pub fn spares_left(&self) -> Option<String> {
        let names: Vec<&str> = self.spares().map(|node| node.entry.name.as_str()).collect();
        let (are, there, them) =
            if names.len() > 1 { ("are spares", "they are", "them") } else { ("is a spare", "it is", "it") };
        (!names.is_empty()).then(|| {
            format!(
                "{} {are}: {there} there for the time of a roll, and `kimg roll` removes {them} when it comes to its end, or \
                 `kimg scale workers {}` without one",
                names.join(", "),
                self.lasting_workers().count()
            )
        })
    }

    /// A node by name; the error ([`BadInput`]) lists the known ones.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeSettings> {
        self.nodes.iter().find(|n| n.entry.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().map(|n| n.entry.name.as_str()).collect();
            let hint = match super::nearest(name, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are: {}", names.join(", ")),
            };
            BadInput(format!("cluster {} has no node {name}; {hint}", self.name)).into()
        })
    }

    /// The folder of private keys and issued certificates.
    pub fn secrets_dir(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// What `kimg up` keeps about its VMs.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where images are built to.
    pub fn build_dir(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// The masters' addresses, those that only their local VMs have among them if `local`, and the extra ones of `[api]`.
    pub fn api_addresses(&self, local: bool) -> Vec<IpAddr> {
        self.addresses_of(usize::MAX, local)
    }

    /// The same, of the first `masters`.
    fn addresses_of(&self, masters: usize, local: bool) -> Vec<IpAddr> {
        let masters = self.nodes_of(Role::Master).take(masters).filter(|n| local || !n.unaddressed);
        let own = masters.filter_map(|n| n.entry.addresses.first().copied());
        let mut all: Vec<IpAddr> = Vec::new();
        for address in own.chain(self.api.addresses.iter().copied()) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// What `cluster.toml` lacks for machines elsewhere to find the API, and what to write. `kimg up` asks a provider.
    pub fn api_missing(&self) -> Option<String> {
        if self.provider.is_some() || !self.api.names.is_empty() || !self.api_addresses(false).is_empty() {
            return None;
        }
        let master = self.nodes_of(Role::Master).next().map_or("the master", |node| node.entry.name.as_str());
        Some(format!(
            "cluster.toml does not say where the API is found: give {master} its address (`addresses = [\"…\"]`), or \
             write `addresses` or `names` under [api]"
        ))
    }

    /// Where clients look for the API: a name, an address, and that of a local VM only where there is no other.
    pub fn api_host(&self) -> Option<String> {
        self.api_hosts().into_iter().next()
    }

    /// The same, with all addresses where no name stands for them.
    pub fn api_hosts(&self) -> Vec<String> {
        if let Some(name) = self.api.names.first() {
            return vec![name.clone()];
        }
        let addresses = [false, true].map(|local| self.api_addresses(local));
        addresses.iter().find(|all| !all.is_empty()).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// Whether several masters share etcd.
    pub fn has_several_masters(&self) -> bool {
        self.nodes_of(Role::Master).nth(1).is_some()
    }

    /// Each master's name in the etcd that several share; nothing where there is one master. At a provider, whose machines'
    /// addresses come and go, it is the node's ([`crate::node::members::Masters`]).
    pub fn members(&self) -> BTreeMap<String, String> {
        let masters = self.nodes_of(Role::Master).filter(|_| self.has_several_masters());
        let member = |node: &NodeSettings| {
            let name = node.entry.name.clone();
            let member = match &self.provider {
                Some(_) => name.clone(),
                None => node.entry.addresses.first()?.to_string(),
            };
            Some((name, member))
        };
        masters.filter_map(member).collect()
    }

    /// `cluster.json` for an image of `role`.
    pub fn cluster(&self, role: Role, build: BuildInfo) -> Cluster {
        // A worker begins with the first and hears of the others: its image stays the same where masters come and go, and
        // where their store moves.
        let (masters, store) = match role {
            Role::Master => (usize::MAX, self.store),
            Role::Worker => (1, StoreEngine::Embedded),
        };
        Cluster {
            name: self.name.clone(),
            role,
            domain: self.domain.clone(),
            api_names: self.api.names.clone(),
            api_addresses: self.addresses_of(masters, false),
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            dns_address: self.dns_address,
            overlay: self.overlay,
            store,
            ntp_servers: self.ntp_servers.clone(),
            metadata_allow: self.metadata_allow.clone(),
            certificate_life_s: self.certificate_life_s,
            backup_every_s: self.backup_every_s,
            registry: self.registry,
            components: self.image(role).components.clone(),
            status_page: self.status_page,
            masters: self.nodes_of(Role::Master).take(masters).map(NodeSettings::baked).collect(),
            logs: self.logs.clone(),
            build,
        }
    }
}
