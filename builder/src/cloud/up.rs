//! From nothing, or from whatever an earlier run left, to a cluster whose nodes are all Ready.
//!
//! Each step asks first whether it is done, so that a run that was ended anywhere is gone on with by the next one. The
//! master comes first: workers are told its private address, and their tokens are registered with it right before they are
//! made, so that no machine has a token that nobody knows or that has run out. Nobody can give a machine another one later:
//! where one has not joined by then, it is said, and the machine is removed by whom it belongs to.

mod masters;

use super::cluster::Cluster;
use super::images::{Image, Images};
use super::plan::{self, Situation};
use super::{Cloud, Firewall, Inventory, Maker, Network, Offer, Server, State, Volume, volumes};
use crate::client::kube::NodeState;
use crate::config::{NodeSettings, Provider, Settings};
use crate::input::{self, BadInput};
use crate::machines::NO_IMAGE;
use crate::pki::kubeconfig::{kubeconfig, server_url};
use crate::pki::{Authority, Secrets, Subject, issue, secrets, successor};
use crate::progress::Progress;
use crate::seed::Begin;
use crate::seed::token::{BootstrapToken, LIFE};
use crate::web::{Client, Interrupted};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// A provider makes a machine within a minute or two.
const MADE: Duration = Duration::from_secs(600);
/// A node is Ready a minute after its machine started.
const READY: Duration = Duration::from_secs(900);
/// How long an API server that was ready may be away.
const AWAY: Duration = Duration::from_secs(120);

/// What a run needs.
pub struct Up<'a> {
    /// The cluster.
    pub settings: &'a Settings,
    /// Its `[provider]`.
    pub provider: &'a Provider,
    /// Its secrets.
    pub secrets: &'a Secrets,
    /// What can be had.
    pub offer: &'a Offer,
    /// Where machines are made.
    pub cloud: &'a dyn Cloud,
    /// Where their images come from.
    pub images: &'a dyn Images,
    /// The cluster's own API.
    pub cluster: &'a dyn Cluster,
    /// Whose clock it is, and who is interrupted.
    pub client: &'a Client,
    /// What is told meanwhile.
    pub progress: &'a Progress,
    /// Gives a master that is made now its store; without it, the first one begins with an empty one.
    pub restore: Option<&'a dyn Fn(IpAddr) -> Result<()>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Done {
    /// The kubeconfig.
    pub kubeconfig: PathBuf,
    /// The machines of all nodes, in the order of `cluster.toml`.
    pub servers: Vec<Server>,
    /// Nodes whose machines were made now.
    pub made: Vec<String>,
}

/// What is there for machines to be made in, and those that were there.
struct Ground {
    network: Network,
    firewalls: BTreeMap<Role, Firewall>,
    servers: Vec<Server>,
    volumes: Vec<Volume>,
    images: BTreeMap<Role, Image>,
    made: Vec<String>,
}

/// Where a worker finds its masters.
struct Master<'a> {
    outside: IpAddr,
    inside: &'a [IpAddr],
    /// The worker takes the place of one of its name.
    replace: bool,
}

impl Ground {
    fn server(&self, node: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.node == node)
    }

    /// Whether a data volume is to be made for a node: its machine, which there may be, knows of one, and none is there.
    fn lacks_its_volume(&self, node: &str) -> bool {
        let has = self.volumes.iter().any(|volume| volume.node == node);
        !has && self.server(node).is_none_or(|server| server.on_volume)
    }

    /// Whether the machine of a node was there with its data volume, or knows of none.
    fn has_its_volume(&self, node: &str) -> bool {
        let volume = self.volumes.iter().find(|volume| volume.node == node);
        let at = volume.and_then(|volume| volume.server.as_ref());
        self.server(node).is_some_and(|server| !server.on_volume || at == Some(&server.id))
    }
}

impl Up<'_> {
    /// Makes what is missing and waits until all nodes are Ready. Nothing is removed.
    ///
    /// # Errors
    /// Bad input: what is there now stands in the way. Something cannot be made, or a node does not become Ready; the next
    /// run goes on.
    pub fn run(&self) -> Result<Done> {
        let known = self.cloud.inventory()?;
        self.check(&known)?;
        let mut ground = self.ground(known)?;
        let (outside, inside) = match self.settings.has_several_masters() {
            true => self.several(&mut ground)?,
            false => self.single(&mut ground)?,
        };
        let kubeconfig = write_kubeconfig(self.settings, self.secrets, outside)?;
        self.persist(&format!("the API server at {outside}"), READY, || self.cluster.ready(outside))?;
        let before = self.persist("the nodes", AWAY, || self.cluster.nodes(outside))?;
        self.none_is_late(&ground, &before)?;
        let at_first = ground.made.len();
        for worker in self.settings.nodes_of(Role::Worker) {
            let name = &worker.entry.name;
            self.make_volume(&ground, worker)?;
            if ground.server(name).is_none() {
                let replace = before.iter().any(|known| known.name == *name);
                self.make(&mut ground, worker, Some(Master { outside, inside: &inside, replace }))?;
            }
            self.attach_volume(&ground, worker)?;
        }
        self.all_ready(outside, &before, ground.made.get(at_first..).unwrap_or_default())?;
        let known = self.cloud.inventory()?.servers;
        let of = |node: &NodeSettings| known.iter().find(|server| server.node == node.entry.name).cloned();
        Ok(Done { kubeconfig, servers: self.settings.nodes.iter().filter_map(of).collect(), made: ground.made })
    }

    fn make_volume(&self, ground: &Ground, node: &NodeSettings) -> Result<()> {
        let name = &node.entry.name;
        let Some(gb) = node.data_gb.filter(|_| ground.lacks_its_volume(name)) else { return Ok(()) };
        self.progress.line(&format!("making the data volume of {name}"));
        self.cloud.make_volume(name, gb)
    }

    fn attach_volume(&self, ground: &Ground, node: &NodeSettings) -> Result<()> {
        let name = &node.entry.name;
        if node.data_gb.is_some() && !ground.has_its_volume(name) {
            self.progress.line(&format!("attaching the data volume of {name}"));
            volumes::attach(self.cloud, self.client, name)?;
            if !ground.made.contains(name) {
                self.progress.line(&format!("{name} mounts it when it boots: `kimg node --node {name} reboot`"));
            }
        }
        Ok(())
    }

    /// What stands in the way of a plan does so here, whatever has happened since a plan was agreed to.
    fn check(&self, inventory: &Inventory) -> Result<()> {
        let (settings, provider, offer, rules) = (self.settings, self.provider, self.offer, plan::rules(self.cloud));
        // A newer image is in nobody's way.
        let built = BTreeMap::new();
        plan::plan(&Situation { settings, provider, offer, inventory, rules, built }).check()
    }

    /// Network and firewalls as they should be, and no machine switched off.
    fn ground(&self, known: Inventory) -> Result<Ground> {
        let network = match known.networks.into_iter().next() {
            Some(network) => network,
            None => {
                self.progress.line(&format!("making the private network {}", self.provider.network));
                self.cloud.make_network()?
            }
        };
        let mut firewalls = BTreeMap::new();
        for role in super::ROLES.into_iter().filter(|role| self.settings.nodes_of(*role).next().is_some()) {
            let firewall = match known.firewalls.iter().find(|known| known.role == role) {
                Some(firewall) => {
                    if firewall.rules != self.cloud.rules(role) {
                        self.progress.line(&format!("setting the rules of the firewall of the {role}s"));
                        self.cloud.set_rules(firewall)?;
                    }
                    firewall.clone()
                }
                None => {
                    self.progress.line(&format!("making the firewall of the {role}s"));
                    self.cloud.make_firewall(role)?
                }
            };
            firewalls.insert(role, firewall);
        }
        let ours = |server: &&Server| self.settings.nodes.iter().any(|node| node.entry.name == server.node);
        for server in known.servers.iter().filter(ours).filter(|server| server.state == State::Off) {
            self.progress.line(&format!("starting {}", server.node));
            self.cloud.start(server)?;
        }
        let (servers, volumes) = (known.servers, known.volumes);
        Ok(Ground { network, firewalls, servers, volumes, images: BTreeMap::new(), made: Vec::new() })
    }

    /// The only master, with its store: where it is found from outside, and by the workers.
    fn single(&self, ground: &mut Ground) -> Result<(IpAddr, Vec<IpAddr>)> {
        let master = self.settings.nodes_of(Role::Master).next().context("cluster.toml names no master")?;
        let name = &master.entry.name;
        self.make_volume(ground, master)?;
        if ground.server(name).is_none() {
            self.make(ground, master, None)?;
        }
        self.attach_volume(ground, master)?;
        let (outside, inside) = self.addresses_of(name)?;
        write_kubeconfig(self.settings, self.secrets, outside)?;
        self.progress.line(&format!("{name} is at {outside}; waiting for its API server"));
        self.store(ground, name, outside)?;
        Ok((outside, vec![inside]))
    }

    /// Every master waits until it is told what to begin with, so that one whose disk is new serves no empty store to
    /// workers that would end their pods. Where no machine but the master's is there, there is nothing to end.
    fn store(&self, ground: &Ground, master: &str, at: IpAddr) -> Result<()> {
        if let Some(restore) = self.restore.filter(|_| ground.made.iter().any(|made| made == master)) {
            self.restore(at, restore)?;
            let server = self.found(master)?.with_context(|| format!("the machine of {master} is gone"))?;
            let image = ground.images.get(&Role::Master).context("the master was made of no image")?;
            return self.cloud.mark(&server, &image.sum);
        }
        let known = ground.server(master);
        if known.is_some_and(|server| server.image == NO_IMAGE) && self.cluster.ready(at).is_err() {
            return input::bad(format!(
                "{master} has a new disk, and waits for its store: `kimg roll` goes on with a roll that was interrupted, and \
                 `kimg heal master` gives it the newest copy that there is"
            ));
        }
        if ground.servers.iter().all(|server| server.node == master) {
            let begin = || self.cluster.ready(at).or_else(|_| self.cluster.begin(at));
            self.persist(&format!("{master} to begin with a store"), READY, begin)?;
        }
        Ok(())
    }

    /// The master takes its store, or has: an answer may be lost, and what was written since must not be.
    fn restore(&self, at: IpAddr, restore: &dyn Fn(IpAddr) -> Result<()>) -> Result<()> {
        let give = || match self.cluster.ready(at).or_else(|_| restore(at)) {
            // It is there, and says no.
            Err(error) if error.is::<BadInput>() => Ok(Err(error)),
            done => done.map(Ok),
        };
        let given = self.persist(&format!("the backup to be taken by the master at {at}"), READY, give)?;
        given.with_context(|| format!("the machine of the master at {at} stays, and waits for a backup"))
    }

    fn found(&self, node: &str) -> Result<Option<Server>> {
        Ok(self.cloud.inventory()?.servers.into_iter().find(|server| server.node == node))
    }

    /// The image of a role, which is packed and asked for once.
    fn image(&self, ground: &mut Ground, role: Role) -> Result<Image> {
        if let Some(known) = ground.images.get(&role) {
            return Ok(known.clone());
        }
        let image = self.images.ensure(role)?;
        ground.images.insert(role, image.clone());
        Ok(image)
    }

    /// Makes the machine of a node; `master` is there for a worker.
    fn make(&self, ground: &mut Ground, node: &NodeSettings, master: Option<Master<'_>>) -> Result<()> {
        let (name, role) = (node.entry.name.as_str(), node.entry.role);
        let mut image = self.image(ground, role)?;
        if role == Role::Master && self.restore.is_some() {
            // Until it has its store.
            image.sum = NO_IMAGE.into();
        }
        // Its hour begins when it is registered, so what takes long is done before.
        let token = master.as_ref().map(|_| BootstrapToken::random());
        if let (Some(token), Some(master)) = (&token, &master) {
            let register = || self.cluster.create_token(master.outside, token, name, master.replace);
            self.persist(&format!("the token of {name}"), AWAY, register)?;
        }
        let firewall = ground.firewalls.get(&role).with_context(|| format!("there is no firewall of {role}s"))?;
        self.progress.line(&format!("making {name}"));
        let Up { settings, provider, secrets, cloud, .. } = *self;
        let maker = Maker { settings, provider, secrets, cloud };
        let begin = if master.is_none() { Begin::AwaitBackup } else { Begin::Join(token.as_ref()) };
        maker.make(node, &image, (&ground.network, firewall), master.map_or(&[][..], |master| master.inside), begin)?;
        ground.made.push(name.to_string());
        Ok(())
    }

    /// Nobody waits for a worker whose token has run out before it joined.
    fn none_is_late(&self, ground: &Ground, nodes: &[NodeState]) -> Result<()> {
        let now = self.client.clock().now();
        let is_late = |node: &&str| {
            let created = ground.server(node).and_then(|server| server.created);
            created.is_some_and(|at| now.duration_since(at) >= life()) && nodes.iter().all(|known| known.name != **node)
        };
        let workers = self.settings.nodes_of(Role::Worker).map(|node| node.entry.name.as_str());
        let late: Vec<&str> = workers.filter(is_late).collect();
        let Some(first) = late.first() else { return Ok(()) };
        bail!(
            "not joined within the hour of their tokens, which no machine is given twice: {}; `kimg node --node {first} \
             status` may tell why, `kimg destroy --node {first}` removes the machine, and `kimg up` makes it anew",
            late.join(", ")
        )
    }

    /// Where a machine is found from outside and by the others, once it is.
    fn addresses_of(&self, node: &str) -> Result<(IpAddr, IpAddr)> {
        self.client.poll(&format!("the machine of {node}"), EVERY, MADE, || {
            let Some(server) = self.found(node)? else { return Ok(None) };
            Ok(server.public.zip(server.private))
        })
    }

    /// Asks until there is an answer; what is said last stands in the error.
    fn persist<T>(&self, what: &str, limit: Duration, ask: impl Fn() -> Result<T>) -> Result<T> {
        let mut last = String::new();
        let found = self.client.poll(what, EVERY, limit, || {
            self.client.clock().check()?;
            match ask() {
                Ok(found) => Ok(Some(found)),
                Err(error) => {
                    last = format!("{error:#}");
                    Ok(None)
                }
            }
        });
        found.map_err(|error| told(error, &last))
    }

    /// `made`: nodes whose machines are younger than what was known `before`.
    fn all_ready(&self, master: IpAddr, before: &[NodeState], made: &[String]) -> Result<()> {
        self.progress.line("waiting until all nodes are Ready");
        let why = |name: &String, nodes: &[NodeState]| -> Option<String> {
            let Some(node) = nodes.iter().find(|node| node.name == *name) else {
                return Some(format!("{name} has not joined"));
            };
            // A node whose machine was lost stays Ready in the API until somebody misses it.
            let old = before.iter().find(|old| old.name == *name).filter(|_| made.contains(name));
            if old.is_some_and(|old| old.boot_id == node.boot_id) {
                return Some(format!("{name} has not come back"));
            }
            (!node.ready).then(|| format!("{name} is not ready: {}", node.reason))
        };
        let look = || {
            let nodes = self.cluster.nodes(master)?;
            let names = self.settings.nodes.iter().map(|node| &node.entry.name);
            let waiting: Vec<String> = names.filter_map(|name| why(name, &nodes)).collect();
            if waiting.is_empty() { Ok(()) } else { bail!("{}", waiting.join("; ")) }
        };
        self.persist("all nodes Ready", READY, look)
    }
}

/// The kubeconfig of a cluster whose master is found at an address.
///
/// # Errors
/// It cannot be written.
pub fn write_kubeconfig(settings: &Settings, secrets: &Secrets, master: IpAddr) -> Result<PathBuf> {
    let ca = successor::bundle(secrets, Authority::Cluster)?;
    let client = issue::admin(secrets)?;
    let url = server_url(&master.to_string(), 6443);
    let text = kubeconfig(&settings.name, &url, &ca, &Subject::admin().user, &client);
    let path = settings.dir.join("kubeconfig");
    secrets::write_private(&path, text.as_bytes())?;
    Ok(path)
}

/// How long a token is good, by the clock that judges when a machine was made.
fn life() -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(LIFE.as_secs() as i64)
}

fn told(error: anyhow::Error, last: &str) -> anyhow::Error {
    if last.is_empty() || error.is::<Interrupted>() {
        return error;
    }
    error.context(format!("{last} (`kimg up` goes on waiting)"))
}
