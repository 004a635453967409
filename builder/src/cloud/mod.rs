//! The machines of a cluster at a provider: private network, firewalls, servers.
//!
//! What exists is asked of the provider: everything bears the cluster's name and the fingerprint of its CA as labels, tags or
//! in its own name, and there is no file of ours. [`plan`] says what is missing and what is in the way, [`up`] makes it,
//! [`destroy`] removes it, [`machines`] makes workers anew for a roll. Who has the name and another fingerprint is another
//! cluster, and nothing of it is touched.
//!
//! To add a provider: its name in [`crate::config::ProviderName`], a file here with a type that implements [`Cloud`], its
//! arm in [`open`], its published calls in `builder/tests/data/providers/NAME.json`, a fake in `fakes/NAME.rs`.

mod aws;
pub mod cluster;
pub mod destroy;
mod digitalocean;
mod gcp;
mod hetzner;
pub mod images;
mod linode;
pub mod machines;
pub mod master;
mod openstack;
pub mod plan;
mod proxmox;
mod rules;
mod tags;
pub mod token;
pub mod up;
pub mod volumes;
mod vultr;

#[cfg(test)]
mod fakes;
#[cfg(test)]
mod tests;

use crate::config::{NodeSettings, Provider, ProviderName, Settings, nearest};
use crate::input;
use crate::machines::NO_IMAGE;
use crate::pki::Secrets;
use crate::pki::successor::fingerprint;
use crate::seed::{self, Place};
use crate::upload::settings::Environment;
use crate::web::{Client, Refused};
use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use node_metadata::{Role, STATUS_PORT};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An amount of money in hundredths of the provider's currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct Cents(pub u64);

impl Cents {
    /// What a provider writes as a number; one that is none, or below nothing, is no price.
    pub fn of(amount: f64) -> Option<Cents> {
        // `as` keeps within bounds.
        (amount.is_finite() && amount >= 0.0).then(|| Cents((amount * 100.0).round() as u64))
    }

    /// The sum of the prices that are known; none where there are prices and none is known.
    pub fn total(prices: impl IntoIterator<Item = Option<Cents>>) -> Option<Cents> {
        let prices: Vec<Option<Cents>> = prices.into_iter().collect();
        let known = prices.is_empty() || prices.iter().any(Option::is_some);
        known.then(|| prices.into_iter().flatten().sum())
    }
}

impl std::fmt::Display for Cents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl std::iter::Sum for Cents {
    fn sum<I: Iterator<Item = Cents>>(all: I) -> Cents {
        Cents(all.map(|one| one.0).fold(0, u64::saturating_add))
    }
}

/// What a provider has in the cluster's region.
#[derive(Debug, Clone)]
pub struct Offer {
    /// `EUR`, `USD`.
    pub currency: String,
    /// The types of machine, by name; where the provider tells prices, those that have one.
    pub sizes: BTreeMap<String, Size>,
    /// How many machines more the account may have, where the provider says it.
    pub room: Option<u64>,
    /// What a month of a GB of a data volume costs, in whole units, where the provider or `cluster.toml` says it.
    pub gb: Option<f64>,
}

impl Offer {
    /// What can be had of a provider that tells no prices, at those of `cluster.toml`: types of machine with their disks.
    fn at_written_prices(provider: &Provider, types: impl Iterator<Item = (String, u64)>, room: Option<u64>) -> Offer {
        let price = |name: &str| provider.prices.get(name).map(|price| Cents(*price));
        // One without a disk would need a volume, which is not made.
        let size = |(name, disk_gb): (String, u64)| {
            let size = Size { monthly: price(&name), disk_gb, available: disk_gb > 0 };
            (name, size)
        };
        let mut sizes: BTreeMap<String, Size> = types.map(size).collect();
        for name in provider.prices.keys() {
            // One that is made no more keeps its price.
            let old = Size { monthly: price(name), disk_gb: 0, available: false };
            sizes.entry(name.clone()).or_insert(old);
        }
        Offer { currency: provider.currency.clone().unwrap_or_default(), sizes, room, gb: provider.volume_price }
    }

    /// What a month of a machine of this type costs.
    pub fn price(&self, size: &str) -> Option<Cents> {
        self.sizes.get(size)?.monthly
    }

    /// What a month of a data volume costs.
    pub fn volume_price(&self, gb: u64) -> Option<Cents> {
        // Sizes have few digits.
        Cents::of(self.gb? * gb as f64)
    }
}

/// A sum as people read it: what nobody says is unknown, which is not nothing. Without any price there may be no currency.
pub fn amount(sum: Option<Cents>, currency: &str) -> String {
    sum.map_or("unknown".into(), |sum| format!("{sum} {currency}").trim_end().to_string())
}

/// A type of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// A month of it with its public address, without taxes, where the provider or `cluster.toml` says it.
    pub monthly: Option<Cents>,
    /// Its disk.
    pub disk_gb: u64,
    /// Whether it can be made in the region now; else there may be older ones.
    pub available: bool,
}

/// How far a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The provider is at work on it.
    Pending,
    /// It runs.
    Running,
    /// It is switched off.
    Off,
}

/// A machine of the cluster: it bears its name, its fingerprint, and is called as kimg called it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The provider's name for it.
    pub id: String,
    /// The node that it is.
    pub node: String,
    /// The beginning of its image's SHA-256; [`NO_IMAGE`] while it is being made anew.
    pub image: String,
    /// The provider's name of its type.
    pub size: String,
    /// Where it is.
    pub region: String,
    /// How far it is.
    pub state: State,
    /// Where it is found from outside.
    pub public: Option<IpAddr>,
    /// Where the other machines find it.
    pub private: Option<IpAddr>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// It was told that its data lies on a volume.
    pub on_volume: bool,
}

impl Server {
    /// As a thing to remove.
    fn thing(&self) -> Thing {
        Thing { kind: "server", id: self.id.clone(), name: self.node.clone() }
    }
}

/// A data volume of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The provider's name for it.
    pub id: String,
    /// The node whose data it holds.
    pub node: String,
    /// Its size.
    pub gb: u64,
    /// Where it is.
    pub region: String,
    /// The machine that it is attached to.
    pub server: Option<String>,
}

impl Volume {
    /// As a thing to remove.
    fn thing(&self) -> Thing {
        Thing { kind: "volume", id: self.id.clone(), name: self.node.clone() }
    }
}

/// A machine that looks like one of the cluster's and is none, or is no more what kimg made: nobody touches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What it is called.
    pub name: String,
    /// Whether kimg made it for this cluster.
    pub ours: bool,
    /// What is wrong with it, and what to do.
    pub why: String,
}

/// A private network with the cluster's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The provider's name for it.
    pub id: String,
    /// Its addresses, as the provider writes them.
    pub range: String,
    /// Where it is, where it is in one region only.
    pub region: Option<String>,
    /// Whether it stays, whoever asks for its end: the provider keeps it, or it is not the cluster's own.
    pub kept: bool,
}

/// What a firewall lets in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// A port, `from-to`, or nothing where the protocol has none.
    pub ports: String,
    /// Ranges of addresses from which.
    pub from: BTreeSet<String>,
}

/// A firewall with the cluster's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// The provider's name for it; empty where it has none, and a node's own is the only one.
    pub id: String,
    /// For whose machines.
    pub role: Role,
    /// What it lets in.
    pub rules: BTreeSet<Rule>,
}

/// Something that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thing {
    /// What the provider calls such a thing.
    pub kind: &'static str,
    /// The provider's name for it.
    pub id: String,
    /// The name that kimg gave it.
    pub name: String,
}

/// Everything at the provider that is the cluster's, but for images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Private networks.
    pub networks: Vec<Network>,
    /// Firewalls.
    pub firewalls: Vec<Firewall>,
    /// Machines.
    pub servers: Vec<Server>,
    /// Machines that are in the way, or might be taken for the cluster's.
    pub foreign: Vec<Foreign>,
    /// Data volumes.
    pub volumes: Vec<Volume>,
    /// There may be others: the provider does not let them be listed.
    pub volumes_unseen: bool,
    /// The provider's names for all machines that there are, whosever they are.
    pub machines: BTreeSet<String>,
    /// What only this provider needs besides.
    pub rest: Vec<Thing>,
}

impl Inventory {
    /// Adds a data volume, once all machines are known. What it is said to be attached to may be gone, which is shown for a
    /// while: then it is attached to nothing, and the provider says no where that is too early.
    fn add_volume(&mut self, volume: Volume) {
        let server = volume.server.filter(|at| self.machines.contains(at));
        self.volumes.push(Volume { server, ..volume });
    }

    /// The data volume of a node.
    fn volume(&self, node: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.node == node)
    }
}

/// A machine to make. It is shown to nobody, for its secrets.
pub struct Order<'a> {
    /// The node that it will be.
    pub node: &'a str,
    /// Its role.
    pub role: Role,
    /// The provider's name of its type.
    pub size: &'a str,
    /// The provider's name for its image.
    pub image_id: &'a str,
    /// The beginning of the image's SHA-256.
    pub image: &'a str,
    /// What it is told; it holds secrets.
    pub user_data: &'a str,
    /// The private network.
    pub network: &'a Network,
    /// The firewall of its role.
    pub firewall: &'a Firewall,
    /// It is told that its data lies on a volume.
    pub on_volume: bool,
}

/// Makes the machines of a cluster's nodes.
struct Maker<'a> {
    settings: &'a Settings,
    provider: &'a Provider,
    secrets: &'a Secrets,
    cloud: &'a dyn Cloud,
}

impl Maker<'_> {
    /// Orders the machine of a node; a worker is told where its masters are in the network, and joins by the token.
    fn make(
        &self,
        node: &NodeSettings,
        image: &images::Image,
        (network, firewall): (&Network, &Firewall),
        masters: &[IpAddr],
        begin: seed::Begin<'_>,
    ) -> Result<()> {
        let (name, role) = (node.entry.name.as_str(), node.entry.role);
        let place = Place::Network { range: self.provider.network, masters };
        let user_data = seed::user_data(self.settings, node, place, begin, self.secrets)?;
        let size = self.provider.types.get(name).with_context(|| format!("nothing says which type {name} is"))?;
        let (image_id, image, on_volume) = (image.id.as_str(), image.sum.as_str(), node.data_gb.is_some());
        let order =
            Order { node: name, role, size, image_id, image, user_data: &user_data, network, firewall, on_volume };
        self.cloud.make_server(&order).with_context(|| format!("making the machine of {name}"))
    }
}

/// Where machines are made. Whatever a call of it makes is found again by [`Cloud::inventory`], also after it failed, and
/// is not made twice when its answer was lost.
pub trait Cloud {
    /// What can be had, at which price. The first thing asked: it also tells whether the token counts.
    ///
    /// # Errors
    /// The provider cannot be asked, or has no such region.
    fn offer(&self) -> Result<Offer>;

    /// All that is the cluster's, and the machines that might be taken for its own.
    ///
    /// # Errors
    /// The provider cannot be asked.
    fn inventory(&self) -> Result<Inventory>;

    /// Makes the private network.
    ///
    /// # Errors
    /// The provider refuses.
    fn make_network(&self) -> Result<Network>;

    /// Makes the firewall of a role.
    ///
    /// # Errors
    /// The provider refuses.
    fn make_firewall(&self, role: Role) -> Result<Firewall>;

    /// Gives a firewall the rules of its role again.
    ///
    /// # Errors
    /// The provider refuses.
    fn set_rules(&self, firewall: &Firewall) -> Result<()>;

    /// What the firewall of a role lets in, as this provider writes it.
    fn rules(&self, role: Role) -> BTreeSet<Rule>;

    /// Orders a machine, and does not wait until it runs.
    ///
    /// # Errors
    /// The provider refuses.
    fn make_server(&self, order: &Order<'_>) -> Result<()>;

    /// Puts another image on the disk of a machine that stays, with its addresses and its price, tells it what the order
    /// says, and has it start; what was on the disk goes. Whatever answers there afterwards is the new one. Called again
    /// after it was interrupted, it comes to the same.
    ///
    /// # Errors
    /// [`Busy`] where it may be done later; else the provider refuses.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()>;

    /// Whether a machine that is rebuilt can be told of a data volume that it had not, and be noted as one that was.
    fn moves_to_volume(&self) -> bool {
        false
    }

    /// Notes with a machine which image it is of; [`NO_IMAGE`]: it is being made anew. Also that its data lies on a volume,
    /// where `server` says so.
    ///
    /// # Errors
    /// The provider refuses.
    fn mark(&self, server: &Server, image: &str) -> Result<()>;

    /// Switches a machine on.
    ///
    /// # Errors
    /// The provider refuses.
    fn start(&self, server: &Server) -> Result<()>;

    /// Makes the data volume of a node, which is attached to nothing.
    ///
    /// # Errors
    /// The provider refuses.
    fn make_volume(&self, node: &str, gb: u32) -> Result<()>;

    /// Asks for a volume to be attached to a machine. Whether it is, [`Cloud::inventory`] tells; so it may be asked again.
    ///
    /// # Errors
    /// [`Busy`] where it may be done later, or is done already; else the provider refuses.
    fn attach(&self, volume: &Volume, server: &Server) -> Result<()>;

    /// Asks for a volume to be taken from its machine, in the same way.
    ///
    /// # Errors
    /// As [`Cloud::attach`].
    fn detach(&self, volume: &Volume) -> Result<()>;

    /// Asks for a thing's end. Whether it has come to it, [`Cloud::inventory`] tells. One that is gone is no error.
    ///
    /// # Errors
    /// [`Busy`] where it may go later; else the provider refuses.
    fn delete(&self, thing: &Thing) -> Result<()>;
}

/// A thing cannot go as long as something else is there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Busy(pub String);

/// Opens the provider of `[provider]` with the credentials of the environment.
///
/// # Errors
/// There is no token.
pub fn open(settings: &Settings, provider: &Provider, client: &Client, env: Environment<'_>) -> Result<Box<dyn Cloud>> {
    let joint = provider.name.joint();
    let machine = |node: &NodeSettings| machine_name(&settings.name, joint, &node.entry.name);
    let tenant = Tenant {
        cluster: settings.name.clone(),
        ca: fingerprint(&Secrets::open(&settings.secrets_dir()))?.unwrap_or_else(|| NO_CA.into()),
        region: provider.region.clone(),
        network: provider.network,
        machines: settings.nodes.iter().map(machine).collect(),
        joint,
        status_page: settings.status_page,
        volume_price: provider.volume_price,
        has_volumes: settings.nodes.iter().any(|node| node.data_gb.is_some()),
    };
    Ok(match provider.name {
        ProviderName::Hetzner => Box::new(hetzner::Hetzner::new(client, env, tenant)?),
        ProviderName::DigitalOcean => Box::new(digitalocean::DigitalOcean::new(client, env, tenant)?),
        ProviderName::Linode => Box::new(linode::Linode::new(client, env, tenant)?),
        ProviderName::OpenStack => Box::new(openstack::OpenStack::new(client, env, tenant, provider)?),
        ProviderName::Vultr => Box::new(vultr::Vultr::new(client, env, tenant)?),
        ProviderName::Gcp => Box::new(gcp::Gcp::new(client, env, tenant, provider)?),
        ProviderName::Aws => Box::new(aws::Aws::new(client, env, tenant, provider)?),
        ProviderName::Proxmox => Box::new(proxmox::Proxmox::new(client, env, tenant, provider)?),
    })
}

/// Where a node's machine is found from outside, as its provider says: it knows also when the cluster's API is away.
///
/// # Errors
/// The provider cannot be asked, or has no such machine.
pub fn address_of(
    settings: &Settings,
    provider: &Provider,
    node: &str,
    client: &Client,
    env: Environment<'_>,
) -> Result<IpAddr> {
    let servers = open(settings, provider, client, env)?.inventory()?.servers;
    match servers.into_iter().find(|server| server.node == node).and_then(|server| server.public) {
        Some(address) => Ok(address),
        None => bail!("{} has no machine of {node} with a public address; see `kimg plan`", provider.name.as_str()),
    }
}

/// The machines of a cluster's masters, as their provider says.
///
/// # Errors
/// The provider cannot be asked.
pub fn masters(settings: &Settings, provider: &Provider, client: &Client, env: Environment<'_>) -> Result<Vec<Server>> {
    let servers = open(settings, provider, client, env)?.inventory()?.servers;
    let is_master = |server: &Server| settings.nodes_of(Role::Master).any(|node| node.entry.name == server.node);
    Ok(servers.into_iter().filter(is_master).collect())
}

/// Stands for the fingerprint of a cluster that has no secrets yet: nothing bears it, so nothing is such a cluster's.
const NO_CA: &str = "-";

/// A field that is a text; empty where it is none.
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A provider's name for a thing, which becomes part of an address of its API: an empty one, or one with a `/` in it, would
/// be the address of something else.
///
/// # Errors
/// It is no such name.
fn checked(id: &str, what: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_:".contains(c);
    if id.is_empty() || id.len() > 255 || !id.chars().all(fine) {
        bail!("the provider's answer calls {what} `{id}`, which is no name; nothing is done with it");
    }
    Ok(id.to_string())
}

/// The image that a machine bears; none while it is being made anew.
fn image_of(mark: &str) -> String {
    if mark.is_empty() { NO_IMAGE.into() } else { mark.into() }
}

/// A number by which a provider names a thing.
///
/// # Errors
/// There is none.
fn numbered(one: &Value, what: &str) -> Result<u64> {
    one["id"].as_u64().filter(|id| *id > 0).with_context(|| format!("the provider's answer names no id of {what}"))
}

/// What a node's machine is called: no two nodes of two clusters come to the same, and its first label is the node.
fn machine_name(cluster: &str, joint: &str, node: &str) -> String {
    format!("{node}{joint}{cluster}")
}

/// What a machine shows of whose it is.
struct Marks<'a> {
    /// What it is called.
    name: &'a str,
    /// It bears the name of the cluster.
    cluster: bool,
    /// And its fingerprint.
    ca: bool,
}

/// Whose things, and where.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// The cluster's name.
    pub cluster: String,
    /// The fingerprint of its CA.
    pub ca: String,
    /// The region.
    pub region: String,
    /// The private network.
    pub network: Ipv4Net,
    /// What the machines of its nodes are called.
    pub machines: BTreeSet<String>,
    /// What stands between node and cluster in these names.
    pub joint: &'static str,
    /// Whether its master has a status page.
    pub status_page: bool,
    /// What `cluster.toml` says that a month of a GB of a data volume costs.
    pub volume_price: Option<f64>,
    /// Whether one of its nodes is to have a data volume.
    pub has_volumes: bool,
}

/// What things of a cluster bear, at providers whose labels or tags have a key and a value.
mod marks {
    use crate::machines::NO_IMAGE;
    use serde_json::{Value, json};

    pub(super) const CLUSTER: &str = "kimg-cluster";
    pub(super) const CA: &str = "kimg-ca";
    pub(super) const NODE: &str = "kimg-node";
    pub(super) const ROLE: &str = "kimg-role";
    pub(super) const IMAGE: &str = "kimg-image";
    pub(super) const DATA: &str = "kimg-data";
    /// Of a machine that is told that its data lies on a volume.
    pub(super) const ON_VOLUME: &str = "volume";

    impl super::Tenant {
        /// The labels of something of the cluster's.
        pub(super) fn labels(&self, more: &[(&str, &str)]) -> Value {
            let mut labels = json!({CLUSTER: self.cluster, CA: self.ca});
            for (key, value) in more {
                labels[key] = json!(value);
            }
            labels
        }
    }

    /// Notes an image among labels; none while it is being made anew.
    pub(super) fn relabel(labels: &mut Value, image: &str) {
        if image == NO_IMAGE {
            labels.as_object_mut().map(|labels| labels.remove(IMAGE));
        } else {
            labels[IMAGE] = json!(image);
        }
    }
}

impl Tenant {
    /// Rules where a firewall filters the private network, too: that may reach all ports, which are called `all` there;
    /// `none` are those of a protocol without any.
    fn rules_with_inside(&self, role: Role, all: &str, none: &str) -> BTreeSet<Rule> {
        let outside = open_ports(role, self.status_page).into_iter().map(|(protocol, ports)| Rule {
            protocol: protocol.into(),
            ports: if ports.is_empty() { none.into() } else { ports },
            from: ANYWHERE.map(String::from).into(),
        });
        let inside = ["tcp", "udp"].map(|protocol| Rule {
            protocol: protocol.into(),
            ports: all.into(),
            from: [self.network.to_string()].into(),
        });
        outside.chain(inside).collect()
    }

    /// The same where the network has addresses of version 4 only, and a rule ranges of one family.
    fn rules_of_four(&self, role: Role, all: &str) -> BTreeSet<Rule> {
        let of_four =
            |rule: Rule| Rule { from: rule.from.into_iter().filter(|one| *one != ANYWHERE[1]).collect(), ..rule };
        self.rules_with_inside(role, all, "").into_iter().map(of_four).collect()
    }

    /// What networks and the like are called.
    fn name(&self) -> String {
        format!("kimg-{}-{}", self.cluster, self.ca)
    }

    /// What a role's firewall is called.
    fn firewall(&self, role: Role) -> String {
        format!("{}-{role}", self.name())
    }

    /// Volumes as they were listed: a token need not see any as long as no node is to have one, which is noted.
    fn seen(&self, listed: Result<Vec<Value>>, into: &mut Inventory) -> Result<Vec<Value>> {
        let refused = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<Refused>().is_some_and(|refused| [401, 403].contains(&refused.status))
        };
        match listed {
            Err(error) if !self.has_volumes && error.chain().any(refused) => {
                into.volumes_unseen = true;
                Ok(Vec::new())
            }
            listed => listed,
        }
    }

    /// What a node's data volume is called. By the name alone of its cluster it might be another's.
    fn volume(&self, node: &str) -> String {
        format!("kimg-{}-{node}", self.ca)
    }

    /// What a node's machine is called.
    fn machine(&self, node: &str) -> String {
        machine_name(&self.cluster, self.joint, node)
    }

    /// Puts a machine where it belongs: among the cluster's own, among those that might be taken for them, or nowhere.
    fn sort(&self, server: Server, marks: &Marks<'_>, into: &mut Inventory) {
        into.machines.insert(server.id.clone());
        let (id, name, cluster) = (&server.id, marks.name, &self.cluster);
        let own = self.machine(&server.node);
        let why = if marks.cluster && marks.ca && !server.node.is_empty() && name == own {
            return into.servers.push(server);
        } else if marks.cluster && marks.ca {
            let own = if server.node.is_empty() { "a node's".into() } else { own };
            format!(
                "the machine {id} was made for this cluster as {own}, and is called {name}: give it its name back at the \
                 provider, or take its marks of kimg off, and it is no node any more"
            )
        } else if marks.cluster {
            format!(
                "the machine {id}, {name}, is of another cluster called {cluster}: rename one of the two, or, if it is this \
                 one's, copy the secrets/ here with which it was made"
            )
        } else if self.machines.contains(name) {
            format!(
                "the machine {id} is called {name}, as a node of this cluster would be, and kimg did not make it: rename \
                 it or the node"
            )
        } else {
            return;
        };
        into.foreign.push(Foreign { name: name.into(), ours: marks.cluster && marks.ca, why });
    }
}

/// Both roles.
pub const ROLES: [Role; 2] = [Role::Master, Role::Worker];
/// Everybody.
const ANYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// The ports that a role's nodes open to everybody; the host firewall of the node says the same.
fn open_ports(role: Role, status_page: bool) -> Vec<(&'static str, String)> {
    let mut ports = vec![("tcp", node_api::PORT.to_string()), ("icmp", String::new())];
    match role {
        Role::Master => {
            ports.push(("tcp", "6443".into()));
            ports.extend(status_page.then(|| ("tcp", STATUS_PORT.to_string())));
        }
        Role::Worker => {
            for port in ["80", "443", "30000-32767"] {
                ports.push(("tcp", port.into()));
            }
            ports.push(("udp", "30000-32767".into()));
        }
    }
    ports
}

/// Bad input: a region that a provider does not have.
fn no_region<T>(provider: &str, kind: &str, wanted: &str, known: &[&str]) -> Result<T> {
    let hint = nearest(wanted, known)
        .map_or_else(|| format!("there are {}", known.join(", ")), |near| format!("did you mean {near}?"));
    input::bad(format!("provider.region: {provider} has no {kind} {wanted}; {hint}"))
}

/// A provider's refusal as a sentence with the way out; `variable` is that of the token.
fn explained(error: anyhow::Error, provider: &str, variable: &str) -> anyhow::Error {
    let Some(refused) = error.chain().find_map(|cause| cause.downcast_ref::<Refused>()) else { return error };
    let said = refused.said.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let sentence = match refused.status {
        401 => format!("{provider} does not take the token of {variable}; make one that reads and writes"),
        400 | 403 | 409 | 422 if any(&["limit_exceeded", "droplet limit", "limit reached", "exceed"]) => {
            format!("the account at {provider} may have no more of these; remove some, or ask {provider} for more")
        }
        403 if any(&["readonly", "forbidden", "not authorized", "unauthorized", "permission"]) => {
            format!("the token of {variable} may not do this; make one that reads and writes")
        }
        422 if any(&["overlap"]) => {
            format!("the account at {provider} has these addresses already; write another network under [provider]")
        }
        400 | 409 | 422 if any(&["uniqueness", "already exists", "already in use", "must be unique"]) => {
            format!("{provider} has one already that is not this cluster's; rename the cluster, or remove that one")
        }
        400 | 409 | 412 | 422 | 500 | 503
            if any(&[
                "unavailable",
                "placement_error",
                "not available",
                "pool_exhausted",
                "insufficientinstancecapacity",
                "not supported in your requested",
            ]) =>
        {
            format!(
                "{provider} has none of this type in this region now; write another type or region under [provider]"
            )
        }
        429 => format!("{provider} wants more patience than kimg has; the same command goes on later"),
        _ => return error,
    };
    error.context(sentence)
}
