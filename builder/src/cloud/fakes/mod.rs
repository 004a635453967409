//! Providers of machines as they behave, and a cluster that their machines make up: both know what they were told, work
//! slowly, and remember it from one run of kimg to the next.

pub(super) mod aws;
pub(super) mod digitalocean;
pub(super) mod gcp;
pub(super) mod hetzner;
pub(super) mod linode;
pub(super) mod members;
pub(super) mod openstack;
pub(super) mod proxmox;
pub(super) mod vultr;

use super::cluster::Cluster;
use crate::client::kube::NodeState;
use crate::config::Settings;
use crate::seed::token::{BootstrapToken, LIFE};
use crate::web::fake::{Reply, Virtual};
use anyhow::{Result, bail};
use jiff::Timestamp;
use node_api::Masters;
use node_metadata::sources::Found;
use node_metadata::{BuildInfo, Role, merge, userdata};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// All that a provider and the cluster on its machines know.
#[derive(Default, Clone)]
pub(super) struct World {
    pub(super) machines: BTreeMap<u64, Machine>,
    /// Networks, firewalls and keys as they were asked for, by kind and id.
    pub(super) things: BTreeMap<(&'static str, u64), Value>,
    pub(super) tags: BTreeSet<String>,
    /// What was begun by calls that bear a number, by it, and how it ended.
    pub(super) operations: BTreeMap<String, Value>,
    pub(super) count: u64,
    pub(super) answered: usize,
    /// The user interrupts kimg by this clock behind so many calls.
    pub(super) stops: Option<(Arc<Virtual>, usize)>,
    /// How often a machine is looked at until it runs, and until it is gone.
    pub(super) slow: usize,
    /// How many machines the account may have.
    pub(super) limit: Option<usize>,
    /// How many the account says that it may have.
    pub(super) account: Option<usize>,
    /// How long it takes to pack an image, and for which roles it was done.
    pub(super) packing: Duration,
    pub(super) packed: Vec<Role>,
    /// Another token that the provider takes.
    pub(super) also: Option<String>,
    /// Machines that are asked for cannot be made after all.
    pub(super) refuses: bool,
    /// No machine's disk is made anew.
    pub(super) keeps_disks: bool,
    /// The price list has something else where an address (Hetzner) or the smallest size (the others) has its price.
    pub(super) no_price: bool,
    /// Tokens of the cluster: the node, and until when.
    pub(super) tokens: BTreeMap<String, (String, Timestamp)>,
    /// Nodes of the cluster, and the machine that each was last.
    pub(super) nodes: BTreeMap<String, u64>,
    /// The API server is away for so many questions.
    pub(super) away: usize,
    /// A master that waits for a backup has got it.
    pub(super) restored: bool,
    /// Data volumes with a master's store, and those that are in the configuration of a machine's disk before.
    pub(super) stores: BTreeSet<u64>,
    pub(super) stale: BTreeSet<u64>,
    /// Machines that went with their data volumes attached.
    pub(super) torn: usize,
    /// Machines that began with an empty store, and on which of their disks.
    pub(super) begun: BTreeSet<(u64, usize)>,
    /// No node is Ready for so many.
    pub(super) unready: usize,
    /// What several masters share.
    pub(super) etcd: members::Etcd,
}

/// A machine.
#[derive(Default, Clone)]
pub(super) struct Machine {
    /// As it was asked for.
    pub(super) body: Value,
    pub(super) looked: usize,
    pub(super) off: bool,
    pub(super) going: bool,
    /// How often its disk was made anew, and from which image the last time.
    pub(super) disks: usize,
    pub(super) made_of: String,
    /// It was rebuilt, and its configuration does not say yet how it boots.
    pub(super) bare: bool,
    /// The number in its addresses, where it is not its own.
    pub(super) at: Option<u64>,
}

impl Machine {
    /// Its disk is made anew, which takes as long as making a machine.
    fn rebuild(&mut self, image: &str) {
        (self.looked, self.disks, self.made_of) = (0, self.disks + 1, image.into());
    }
}

impl World {
    pub(super) fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// One look at all machines, which is how time passes there.
    fn look(&mut self) {
        let slow = self.slow;
        for machine in self.machines.values_mut() {
            machine.looked += 1;
        }
        self.machines.retain(|_, machine| !machine.going || machine.looked <= slow);
        // A volume outlives what it is attached to.
        let there: Vec<u64> = self.machines.keys().copied().collect();
        for ((kind, _), body) in &mut self.things {
            if *kind == "volume" && body["server"].as_u64().is_some_and(|at| !there.contains(&at)) {
                body["server"] = Value::Null;
                self.torn += 1;
            }
        }
    }

    /// Whether one of this kind is called so.
    fn has_named(&self, kind: &'static str, name: &Value) -> bool {
        self.of(kind).any(|(_, known)| known["name"] == *name)
    }

    /// The volumes as they are shown; what was asked of one is so the next time.
    fn volumes(&mut self) -> Vec<(u64, Value)> {
        let shown = self.of("volume").map(|(id, body)| (id, body.clone())).collect();
        for ((kind, _), body) in &mut self.things {
            if *kind == "volume"
                && let Some(wants) = body.as_object_mut().unwrap().remove("wants")
            {
                body["server"] = wants;
            }
        }
        shown
    }

    /// Begins to attach a volume, or to detach it; else why not.
    fn carry(&mut self, volume: u64, to: Option<u64>) -> Option<&'static str> {
        let ready = to.is_none_or(|id| self.machines.contains_key(&id) && (self.runs(id) || self.machines[&id].off));
        let Some(body) = self.things.get_mut(&("volume", volume)) else { return Some("not_found") };
        if body.get("wants").is_some() || !ready {
            return Some("locked");
        }
        if body["server"].is_null() == to.is_none() {
            return Some("volume_already_attached");
        }
        body["wants"] = json!(to);
        self.stale.remove(&volume);
        None
    }

    /// What a machine sees of the data volume that it was told of: none that it waits for.
    pub(super) fn sees(&self, machine: u64) -> Option<u64> {
        let attached = self.of("volume").find(|(id, volume)| volume["server"] == machine && !self.stale.contains(id));
        attached.map(|(id, _)| id)
    }

    /// Whether a machine was told of one.
    pub(super) fn told(&self, machine: u64) -> bool {
        let text = &self.machines[&machine].body["user_data"];
        text.as_str().is_some_and(|text| text.contains("data-volume: 20\n"))
    }

    /// The machine that a volume is attached to.
    pub(super) fn attached(&self, volume: u64) -> Option<u64> {
        self.things.get(&("volume", volume))?["server"].as_u64()
    }

    fn add(&mut self, kind: &'static str, body: &Value) -> u64 {
        let id = self.number();
        self.things.insert((kind, id), body.clone());
        id
    }

    pub(super) fn of(&self, kind: &str) -> impl Iterator<Item = (u64, &Value)> {
        self.things.iter().filter(move |((known, _), _)| *known == kind).map(|((_, id), body)| (*id, body))
    }

    fn full(&self) -> bool {
        self.limit.is_some_and(|limit| self.machines.len() >= limit)
    }

    pub(super) fn runs(&self, id: u64) -> bool {
        let machine = &self.machines[&id];
        machine.looked > self.slow && !machine.off && !machine.going
    }

    /// The number in a machine's addresses.
    fn at(&self, id: u64) -> u64 {
        self.machines.get(&id).and_then(|machine| machine.at).unwrap_or(id)
    }

    /// Where a machine is found from outside.
    pub(super) fn public(&self, id: u64) -> String {
        public(self.at(id))
    }

    /// Where the others find it.
    pub(super) fn private(&self, id: u64) -> String {
        // At Proxmox there is one network.
        let one = self.machines.get(&id).is_some_and(|machine| machine.body["net0"].is_string());
        if one { self.public(id) } else { private(self.at(id)) }
    }

    pub(super) fn machine(&self, name: &str) -> Vec<u64> {
        self.machines.iter().filter(|(_, one)| one.body["name"] == name).map(|(id, _)| *id).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.machines.is_empty() && self.things.is_empty() && self.tags.is_empty()
    }
}

/// When all machines were made: the moment at which the virtual clock begins.
pub(super) const CREATED: &str = "2027-01-15T08:00:00Z";

fn public(id: u64) -> String {
    format!("192.0.2.{id}")
}

fn private(id: u64) -> String {
    format!("10.80.0.{id}")
}

fn number(id: &str) -> u64 {
    id.parse().unwrap()
}

/// The part of the body that a field of the answer has, or an id beside it.
fn with_id(id: impl Into<Value>, body: &Value) -> Value {
    let mut shown = body.clone();
    shown["id"] = id.into();
    shown
}

fn gone(was: bool) -> Reply {
    Reply::new(if was { 204 } else { 404 })
}

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn held(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The cluster on the machines: a worker joins once it runs and its user-data leads it to the master with a token that the
/// cluster knows.
pub(super) struct FakeCluster<'a> {
    pub(super) settings: &'a Settings,
    pub(super) world: Shared,
    pub(super) now: Box<dyn Fn() -> Timestamp>,
}

impl FakeCluster<'_> {
    /// The master that answers at an address.
    fn master(&self, world: &World, at: IpAddr) -> Result<u64> {
        let id = world.machines.keys().copied().find(|id| world.public(*id) == at.to_string() && world.runs(*id));
        let Some(id) = id else { bail!("nobody answers at {at}") };
        let (node, data) = self.told(world, id, Role::Master);
        assert!(data.kimg.seal_key.is_some() && data.kimg.token.is_none(), "a master gets the seal's key");
        assert_eq!(node.addresses, [world.private(id).parse::<IpAddr>().unwrap()]);
        if world.told(id) && world.sees(id).is_none() {
            bail!("{} waits for its data volume", node.name);
        }
        Ok(id)
    }

    /// What a machine makes of its user-data, by the node's own code.
    fn told(&self, world: &World, id: u64, role: Role) -> (node_metadata::Node, userdata::UserData) {
        let text = world.machines[&id].body["user_data"].as_str().unwrap();
        let data = userdata::parse(text.as_bytes()).unwrap();
        let found = Found { external_addresses: vec![world.public(id).parse().unwrap()], ..Found::default() };
        let own = [world.public(id).parse().unwrap(), world.private(id).parse().unwrap()];
        let cluster = self.settings.cluster(role, BuildInfo::default());
        (merge::merge(&cluster, &found, &data, &own).unwrap().node, data)
    }

    fn several(&self) -> bool {
        self.settings.has_several_masters()
    }

    /// The machines of all masters, by their nodes.
    fn masters(&self, world: &World) -> Vec<(String, u64)> {
        let masters = self.settings.nodes_of(Role::Master).map(|node| node.entry.name.clone());
        let machine = |name: String| Some((name.clone(), *world.machine(&format!("{name}.demo")).first()?));
        masters.filter_map(machine).collect()
    }

    /// A question to a node is a call as those to the provider are: kimg may be ended behind it.
    fn asked(&self, at: IpAddr) -> Result<(u64, MutexGuard<'_, World>)> {
        let mut world = held(&self.world);
        let World { answered, stops, .. } = &mut *world;
        crate::web::fake::count(answered, stops.as_ref());
        let id = self.master(&world, at)?;
        assert!(self.told(&world, id, Role::Master).0.await_masters, "nobody could tell it of the others");
        Ok((id, world))
    }
}

impl Cluster for FakeCluster<'_> {
    fn ready(&self, at: IpAddr) -> Result<()> {
        let mut world = held(&self.world);
        if world.away > 0 {
            world.away -= 1;
            bail!("it does not answer yet");
        }
        let id = self.master(&world, at)?;
        assert!(self.told(&world, id, Role::Master).0.await_backup, "a new disk would begin with nothing");
        if self.several() {
            world.serves(id)?;
            for (name, id) in self.masters(&world) {
                if world.serves(id).is_ok() {
                    world.nodes.insert(name, id);
                }
            }
            return Ok(());
        }
        if !world.restored && !world.begun.contains(&(id, world.machines[&id].disks)) {
            bail!("it waits for a backup");
        }
        let name = self.settings.nodes_of(Role::Master).next().unwrap().entry.name.clone();
        world.nodes.insert(name, id);
        Ok(())
    }

    fn begin(&self, at: IpAddr) -> Result<()> {
        let mut world = held(&self.world);
        let id = self.master(&world, at)?;
        let masters = self.settings.nodes_of(Role::Master).count();
        assert!(world.machines.len() <= masters, "workers would end their pods");
        if self.several() {
            return world.begin_filled();
        }
        let disk = world.machines[&id].disks;
        world.begun.insert((id, disk));
        if let Some(volume) = world.sees(id).filter(|_| world.told(id)) {
            world.stores.insert(volume);
        }
        Ok(())
    }

    fn told(&self, _: &str, at: IpAddr) -> Result<Masters> {
        let (id, world) = self.asked(at)?;
        Ok(world.told_of(id))
    }

    fn tell(&self, _: &str, at: IpAddr, masters: &Masters) -> Result<()> {
        let (id, mut world) = self.asked(at)?;
        world.tell(id, masters);
        Ok(())
    }

    fn nodes(&self, at: IpAddr) -> Result<Vec<NodeState>> {
        if self.several() {
            self.ready(at)?;
        }
        let mut world = held(&self.world);
        let master = self.master(&world, at)?;
        let masters: Vec<u64> = match self.several() {
            true => self.masters(&world).into_iter().map(|(_, id)| id).collect(),
            false => vec![master],
        };
        // Time passes at the provider without being asked.
        world.look();
        let ids: Vec<u64> =
            world.machines.keys().copied().filter(|id| !masters.contains(id) && world.runs(*id)).collect();
        for id in ids {
            let (node, data) = self.told(&world, id, Role::Worker);
            let endpoints: Vec<String> = masters.iter().map(|id| format!("{}:6443", world.private(*id))).collect();
            // One that has joined hears of others by the API.
            let is_new = world.nodes.get(&node.name) != Some(&id);
            assert!(node.api_endpoints == endpoints || self.several() && !is_new, "{:?}", node.api_endpoints);
            assert_eq!(node.addresses, [world.private(id).parse::<IpAddr>().unwrap()]);
            let token = data.kimg.token.unwrap().0;
            // It waits for the volume that it was told of.
            if world.told(id) && world.sees(id).is_none() {
                continue;
            }
            let good = world.tokens.get(&token).is_some_and(|(of, end)| *of == node.name && *end > (self.now)());
            if good {
                world.tokens.remove(&token);
                world.nodes.insert(node.name, id);
            }
        }
        let ready = world.unready == 0;
        world.unready = world.unready.saturating_sub(1);
        let state = |(name, id): (&String, &u64)| NodeState {
            name: name.clone(),
            // One whose machine was lost stays so until somebody misses it.
            ready,
            reason: "no network yet".into(),
            cordoned: false,
            version: String::new(),
            image: String::new(),
            address: world.private(*id),
            boot_id: id.to_string(),
        };
        Ok(world.nodes.iter().map(state).collect())
    }

    fn create_token(&self, at: IpAddr, token: &BootstrapToken, node: &str, replace: bool) -> Result<()> {
        let mut world = held(&self.world);
        self.master(&world, at)?;
        assert_eq!(replace, world.nodes.contains_key(node), "only what is there is replaced");
        world.tokens.insert(token.to_string(), (node.into(), (self.now)() + LIFE));
        Ok(())
    }
}

/// A page of two entries, and whether there is another; `next` is written by the provider's own hand.
fn page(all: &[Value], at: usize) -> (Vec<Value>, bool) {
    (all.iter().skip((at - 1) * 2).take(2).cloned().collect(), at * 2 < all.len())
}

fn action(world: &mut World) -> Value {
    json!({"id": world.number(), "status": "running", "progress": 0})
}
