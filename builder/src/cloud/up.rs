//! From nothing, or from whatever an earlier run left, to a cluster whose nodes are all Ready.
//!
//! Each step asks first whether it is done, so that a run that was ended anywhere is gone on with by the next one. The
//! master comes first: workers are told its private address, and their tokens are registered with it before they are made,
//! so that no machine has a token that nobody knows. Nobody can give a machine another one later: one that has not joined
//! when its token has run out is made anew.

use super::cluster::Cluster;
use super::images::Images;
use super::{Busy, Cloud, Firewall, Network, Order, Server, State};
use crate::client::kube::NodeState;
use crate::config::{NodeSettings, Provider, Settings};
use crate::pki::kubeconfig::{kubeconfig, server_url};
use crate::pki::{Authority, Secrets, Subject, issue, secrets};
use crate::progress::Progress;
use crate::seed::token::{BootstrapToken, LIFE};
use crate::seed::{self, Place};
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
    made: Vec<String>,
}

impl Ground {
    fn server(&self, node: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.node == node)
    }
}

impl Up<'_> {
    /// Makes what is missing and waits until all nodes are Ready.
    ///
    /// # Errors
    /// Something cannot be made, or a node does not become Ready; the next run goes on.
    pub fn run(&self) -> Result<Done> {
        let mut ground = self.ground()?;
        let master = self.settings.nodes_of(Role::Master).next().context("cluster.toml names no master")?;
        if ground.server(&master.entry.name).is_none() {
            self.make(&mut ground, master, None, None)?;
        }
        let (outside, inside) = self.addresses_of(&master.entry.name)?;
        let kubeconfig = self.write_kubeconfig(outside)?;
        self.progress.line(&format!("{} is at {outside}; waiting for its API server", master.entry.name));
        self.persist(&format!("the API server at {outside}"), READY, || self.cluster.ready(outside))?;
        let before = self.persist("the nodes", AWAY, || self.cluster.nodes(outside))?;
        let at_first = ground.made.len();
        for worker in self.settings.nodes_of(Role::Worker) {
            self.ensure_worker(&mut ground, worker, (outside, inside), &before)?;
        }
        self.all_ready(outside, &before, ground.made.get(at_first..).unwrap_or_default())?;
        let known = self.cloud.inventory()?.servers;
        let of = |node: &NodeSettings| known.iter().find(|server| server.node == node.entry.name).cloned();
        Ok(Done { kubeconfig, servers: self.settings.nodes.iter().filter_map(of).collect(), made: ground.made })
    }

    /// Network and firewalls as they should be, and no machine switched off.
    fn ground(&self) -> Result<Ground> {
        let known = self.cloud.inventory()?;
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
        Ok(Ground { network, firewalls, servers: known.servers, made: Vec::new() })
    }

    fn found(&self, node: &str) -> Result<Option<Server>> {
        Ok(self.cloud.inventory()?.servers.into_iter().find(|server| server.node == node))
    }

    fn make(
        &self,
        ground: &mut Ground,
        node: &NodeSettings,
        token: Option<&BootstrapToken>,
        master: Option<IpAddr>,
    ) -> Result<()> {
        let (name, role) = (node.entry.name.as_str(), node.entry.role);
        let image = self.images.ensure(role)?;
        let place = Place::Network { range: self.provider.network, master };
        let user_data = seed::user_data(self.settings, node, place, seed::Begin::Join(token), self.secrets)?;
        let size = self.provider.types.get(name).with_context(|| format!("nothing says which type {name} is"))?;
        let firewall = ground.firewalls.get(&role).with_context(|| format!("there is no firewall of {role}s"))?;
        self.progress.line(&format!("making {name}, {size}"));
        let network = &ground.network;
        let (image_id, image) = (image.id.as_str(), image.sum.as_str());
        let order = Order { node: name, role, size, image_id, image, user_data: &user_data, network, firewall };
        self.cloud.make_server(&order).with_context(|| format!("making the machine of {name}"))?;
        ground.made.push(name.to_string());
        Ok(())
    }

    fn ensure_worker(
        &self,
        ground: &mut Ground,
        node: &NodeSettings,
        (outside, inside): (IpAddr, IpAddr),
        before: &[NodeState],
    ) -> Result<()> {
        let name = node.entry.name.as_str();
        let joined = before.iter().any(|known| known.name == name);
        if let Some(server) = ground.server(name) {
            let now = self.client.clock().now();
            let token_is_good = server.created.is_none_or(|created| now.duration_since(created) < life());
            if joined || token_is_good {
                return Ok(());
            }
            self.progress.line(&format!("{name} has not joined and its token has run out; it is made anew"));
            match self.cloud.delete(&server.thing()) {
                // It is on its way out already.
                Err(error) if error.is::<Busy>() => {}
                asked => asked?,
            }
            self.client.poll(&format!("removing the machine of {name}"), EVERY, MADE, || {
                Ok(self.found(name)?.is_none().then_some(()))
            })?;
        }
        let token = BootstrapToken::random();
        let register = || self.cluster.create_token(outside, &token, name, joined);
        self.persist(&format!("the token of {name}"), AWAY, register)?;
        self.make(ground, node, Some(&token), Some(inside))
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

    fn write_kubeconfig(&self, master: IpAddr) -> Result<PathBuf> {
        let ca = self.secrets.read(&Authority::Cluster.certificate_file())?;
        let client = issue::admin(self.secrets)?;
        let url = server_url(&master.to_string(), 6443);
        let text = kubeconfig(&self.settings.name, &url, &ca, &Subject::admin().user, &client);
        let path = self.settings.dir.join("kubeconfig");
        secrets::write_private(&path, text.as_bytes())?;
        Ok(path)
    }
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
