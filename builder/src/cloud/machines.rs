//! The machines at a provider as a roll sees them: a worker's is removed, and one of its name made from another image.
//!
//! A worker joins with a fresh token in its user-data, which not all providers change: so none is rebuilt in place
//! (docs/decisions/0087). Neither disk nor addresses outlive that, but a data volume does ([`super::volumes`]). A master,
//! whose store is on its disk and whose private address its workers know, is rebuilt in place ([`super::master`]).
//! A new machine has the type and the region of the old one, and comes after it: no month costs more.

use super::images::{Image, Images};
use super::plan::{self, Situation, Step};
use super::{Cloud, Inventory, Maker, Offer, ROLES, Server, State, destroy, volumes};
use crate::client::block_on;
use crate::client::node::{NodeClient, Refused};
use crate::config::{Provider, Settings};
use crate::image::build::output_dir;
use crate::input::{self, BadInput};
use crate::local::up::ImageFile;
use crate::machines::local::short;
use crate::machines::{Data, Ended, Machine, Machines, NO_IMAGE, Order};
use crate::node::Target;
use crate::pki::Secrets;
use crate::seed::Begin;
use crate::web::Client;
use anyhow::{Context, Result, bail};
use node_api::{Done, Masters, NodeStatus, RemoveMember, StoreMember, Taken, path};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// How long a machine may take to power off.
const OFF: Duration = Duration::from_secs(60);
/// How long the provider may take to remove it.
const GONE: Duration = Duration::from_secs(180);
/// How long a node may take to answer.
const ASK: Duration = Duration::from_secs(8);

/// The nodes themselves, found at their machines' addresses.
pub trait Nodes {
    /// The boot that a node is in; none while it does not answer.
    fn boot(&self, node: &str, at: IpAddr) -> Option<String>;

    /// Asks a node to power off.
    ///
    /// # Errors
    /// It does not answer.
    fn power_off(&self, node: &str, at: IpAddr) -> Result<()>;

    /// Has a master take no more writes, also after it has started again. Twice is as good as once.
    ///
    /// # Errors
    /// It does not answer, or is none.
    fn fence(&self, node: &str, at: IpAddr) -> Result<()>;

    /// Takes that back.
    ///
    /// # Errors
    /// It does not answer.
    fn unfence(&self, node: &str, at: IpAddr) -> Result<()>;

    /// Has a master go on with the store that is there, also one that came on its data volume from another disk; none where
    /// it closed that itself. Twice is as good as once.
    ///
    /// # Errors
    /// It does not answer, or its image knows nothing of that.
    fn take(&self, node: &str, at: IpAddr) -> Result<Option<Taken>>;

    /// A copy of a master's store.
    ///
    /// # Errors
    /// It does not answer, or the copy is not whole.
    fn snapshot(&self, node: &str, at: IpAddr) -> Result<Vec<u8>>;

    /// Has a master without a store begin with a copy, or with nothing where that is empty; a copy takes the place of another
    /// disk's store on its data volume. One that has a store keeps it. Not so where its store is closed.
    ///
    /// # Errors
    /// It does not answer, or the copy is damaged.
    fn begin(&self, node: &str, at: IpAddr, copy: &[u8]) -> Result<bool>;

    /// Which masters one of several was told of; none where its image knows of no others.
    ///
    /// # Errors
    /// It does not answer.
    fn told(&self, node: &str, at: IpAddr) -> Result<Option<Masters>>;

    /// Tells one of several masters which they are. Twice is as good as once.
    ///
    /// # Errors
    /// It does not answer, or is none of several.
    fn tell(&self, node: &str, at: IpAddr, masters: &Masters) -> Result<()>;

    /// The members of the store that several masters share, as this one sees them.
    ///
    /// # Errors
    /// It does not answer.
    fn members(&self, node: &str, at: IpAddr) -> Result<Vec<StoreMember>>;

    /// Has this master take a member out of the store.
    ///
    /// # Errors
    /// It does not answer, or the rest would be no healthy majority.
    fn remove_member(&self, node: &str, at: IpAddr, name: &str) -> Result<()>;
}

/// Nodes that are asked by their own API.
#[derive(Debug)]
pub struct NodeApi<'a>(pub &'a Settings);

impl NodeApi<'_> {
    /// A request that takes its time: an API server is started anew.
    fn done(&self, node: &str, at: IpAddr, path: &str, body: Vec<u8>) -> Result<()> {
        block_on(self.client(node, at)?.post_bytes::<Done>(path, body)).map(drop)
    }

    /// Asks what is answered at once.
    fn soon<T>(&self, node: &str, at: IpAddr, ask: impl AsyncFnOnce(&NodeClient) -> Result<T>) -> Result<T> {
        let client = self.client(node, at)?;
        block_on(async { tokio::time::timeout(ASK, ask(&client)).await.context("it does not answer")? })
    }

    fn client(&self, node: &str, at: IpAddr) -> Result<NodeClient> {
        Target { node: Some(node.into()), address: Some(at.to_string()), ..Target::default() }.client(self.0)
    }
}

impl Nodes for NodeApi<'_> {
    fn boot(&self, node: &str, at: IpAddr) -> Option<String> {
        let client = self.client(node, at).ok()?;
        let asked = async { tokio::time::timeout(ASK, client.get::<NodeStatus>(path::STATUS)).await? };
        block_on(asked).ok().map(|status| status.boot_id)
    }

    fn power_off(&self, node: &str, at: IpAddr) -> Result<()> {
        let client = self.client(node, at)?;
        let asked = async { tokio::time::timeout(ASK, client.post::<Done>(path::POWEROFF, None)).await? };
        block_on(asked).context("asking the node to power off").map(drop)
    }

    fn fence(&self, node: &str, at: IpAddr) -> Result<()> {
        let fenced = self.done(node, at, path::STORE_FENCE, Vec::new());
        fenced.map_err(|error| match error.is::<BadInput>() {
            true => error.context("its image is of a kimg that cannot close a store"),
            false => error,
        })
    }

    fn unfence(&self, node: &str, at: IpAddr) -> Result<()> {
        self.done(node, at, path::STORE_UNFENCE, Vec::new())
    }

    fn take(&self, node: &str, at: IpAddr) -> Result<Option<Taken>> {
        match block_on(self.client(node, at)?.post_bytes(path::STORE_TAKE, Vec::new())) {
            Err(error) if error.downcast_ref().is_some_and(Refused::is_conflict) => Ok(None),
            Err(error) if error.is::<BadInput>() => {
                Err(error.context("its image is of a kimg that knows no data volume of a master"))
            }
            taken => taken.map(Some),
        }
    }

    fn snapshot(&self, node: &str, at: IpAddr) -> Result<Vec<u8>> {
        let (client, mut copy) = (self.client(node, at)?, Vec::new());
        let taken = client.text(path::STORE_SNAPSHOT, |piece| {
            copy.extend_from_slice(piece);
            Ok(())
        });
        block_on(taken).context("copying the store")?;
        Ok(copy)
    }

    fn begin(&self, node: &str, at: IpAddr, copy: &[u8]) -> Result<bool> {
        match self.done(node, at, path::STORE_BEGIN, copy.to_vec()) {
            Err(error) if error.downcast_ref().is_some_and(Refused::is_conflict) => Ok(false),
            done => done.map(|()| true),
        }
    }

    fn told(&self, node: &str, at: IpAddr) -> Result<Option<Masters>> {
        match self.soon(node, at, async |client| client.get(path::STORE_MASTERS).await) {
            Err(error) if error.downcast_ref().is_some_and(Refused::is_conflict) => Ok(None),
            // Of a kimg that knew nothing of it.
            Err(error) if error.is::<BadInput>() => Ok(None),
            told => told.map(Some),
        }
    }

    fn tell(&self, node: &str, at: IpAddr, masters: &Masters) -> Result<()> {
        let body = serde_json::to_value(masters).context("writing a request")?;
        self.soon(node, at, async |client| client.post::<Done>(path::STORE_MASTERS, Some(&body)).await).map(drop)
    }

    fn members(&self, node: &str, at: IpAddr) -> Result<Vec<StoreMember>> {
        self.soon(node, at, async |client| client.get(path::STORE_MEMBERS).await)
    }

    fn remove_member(&self, node: &str, at: IpAddr, name: &str) -> Result<()> {
        let body = serde_json::to_value(RemoveMember { name: name.into() }).context("writing a request")?;
        let left =
            async |client: &NodeClient| client.post::<Vec<StoreMember>>(path::STORE_MEMBERS_REMOVE, Some(&body)).await;
        self.soon(node, at, left).map(drop)
    }
}

/// The machines of a cluster at a provider.
pub struct CloudMachines<'a> {
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
    /// The nodes on them.
    pub nodes: &'a dyn Nodes,
    /// Whose clock it is.
    pub client: &'a Client,
}

/// The machines of a node.
pub(super) fn of<'a>(inventory: &'a Inventory, node: &'a str) -> impl Iterator<Item = &'a Server> {
    inventory.servers.iter().filter(move |server| server.node == node)
}

impl CloudMachines<'_> {
    /// Whether these nodes' machines could be made anew with what there is.
    pub(super) fn check_in(&self, inventory: &Inventory, nodes: &[&str]) -> Result<()> {
        let (settings, provider) = (self.settings, self.provider);
        let comes = |node: &&str| {
            settings.spares().any(|spare| spare.entry.name == *node) && of(inventory, node).next().is_none()
        };
        // Each machine goes before the next one comes, so none takes more room in the account; but a spare does.
        let room = self.offer.room.filter(|_| nodes.iter().any(comes));
        let offer = &Offer { room, ..self.offer.clone() };
        let (rules, built) = (plan::rules(self.cloud), BTreeMap::new());
        let mut plan = plan::plan(&Situation { settings, provider, offer, inventory, rules, built });
        plan.heals();
        plan.check()?;
        let of_ground =
            |step: &Step| matches!(step, Step::MakeNetwork { .. } | Step::MakeFirewall { .. } | Step::SetRules { .. });
        if plan.steps.iter().any(of_ground) {
            return input::bad(
                "the private network or a firewall is not as it should be: `kimg plan` shows it, and `kimg up` puts it right",
            );
        }
        let at = provider.name.as_str();
        for node in nodes {
            let size = provider.types.get(*node).with_context(|| format!("nothing says which type {node} is"))?;
            let other = |server: &&Server| server.size != *size || server.region != provider.region;
            if let Some(Server { size: has, region, .. }) = of(inventory, node).find(other) {
                return input::bad(format!(
                    "{node} is a {has} in {region}, and cluster.toml says {size} in {}: a roll changes nothing but images; \
                     write what it is, or drain it, and `kimg destroy --node {node}` and `kimg up` change it",
                    provider.region
                ));
            }
            if self.is_master(node)
                && settings.node(node)?.data_gb.is_some()
                && of(inventory, node).any(|server| !server.on_volume)
                && !self.cloud.moves_to_volume()
            {
                return input::bad(format!(
                    "{node} was made without a data volume, and {at} tells a machine that is rebuilt of none: remove its \
                     data-gb; only one that is made anew gets a volume"
                ));
            }
            // A master's is rebuilt, and not made.
            if !self.is_master(node) && !offer.sizes.get(size).is_some_and(|size| size.available) {
                return input::bad(format!(
                    "{node}: {at} makes no {size} in {} now, so its machine would go and none would come",
                    provider.region
                ));
            }
        }
        Ok(())
    }

    fn is_master(&self, node: &str) -> bool {
        self.settings.nodes_of(Role::Master).any(|master| master.entry.name == node)
    }

    /// The machine of a master that is gone, or new; it waits for its store. `mark` is noted as its image.
    pub(super) fn make_master(&self, known: &Inventory, node: &str, image: &str, mark: &str) -> Result<()> {
        let network = known.networks.first().context("the private network is gone; `kimg up` makes it")?;
        let firewall = known.firewalls.iter().find(|firewall| firewall.role == Role::Master);
        let firewall = firewall.context("the firewall of the masters is gone; `kimg up` makes it")?;
        let CloudMachines { settings, provider, secrets, cloud, .. } = *self;
        let maker = Maker { settings, provider, secrets, cloud };
        if let Some(gb) = settings.node(node)?.data_gb.filter(|_| known.volume(node).is_none()) {
            cloud.make_volume(node, gb)?;
        }
        let image = Image { sum: mark.into(), ..self.image(image)? };
        maker.make(settings.node(node)?, &image, (network, firewall), &[], Begin::AwaitBackup)
    }

    fn check_order(&self, known: &Inventory, order: &Order<'_>) -> Result<()> {
        let kept = || order.data == Data::Stays && volumes::keep_data(self.settings, known, order.node);
        if order.token.is_none() || order.data != Data::Goes && !kept() {
            bail!("{} keeps the data of no machine that is made anew", self.provider.name.as_str());
        }
        Ok(())
    }

    pub(super) fn image(&self, sum: &str) -> Result<Image> {
        let at = self.provider.name.as_str();
        self.images.find(sum)?.with_context(|| format!("the image {sum} is not at {at} any more"))
    }

    /// How a machine came to its end, where its node could be asked to.
    fn power_off(&self, server: &Server) -> Result<Ended> {
        if server.state == State::Off {
            return Ok(Ended::Clean);
        }
        let asked = match server.public {
            Some(at) => self.nodes.power_off(&server.node, at),
            None => Err(anyhow::anyhow!("it has no address")),
        };
        if let Err(error) = asked {
            tracing::debug!("{}: {error:#}", server.node);
            return Ok(Ended::Forced);
        }
        let begun = self.client.clock().now();
        self.client.poll(&format!("{} powers off", server.node), EVERY, 2 * OFF, || {
            let known = self.cloud.inventory()?;
            let runs = known.servers.iter().any(|known| known.id == server.id && known.state != State::Off);
            let late = Duration::try_from(self.client.clock().now().duration_since(begun)).unwrap_or_default() >= OFF;
            Ok(match runs {
                false => Some(Ended::Clean),
                true => late.then_some(Ended::Forced),
            })
        })
    }

    /// Asks a machine to power off; it stays, with its disk, address and price. Whether it has.
    ///
    /// # Errors
    /// The provider cannot be asked.
    pub fn switch_off(&self, node: &str) -> Result<bool> {
        let known = self.cloud.inventory()?;
        match of(&known, node).next() {
            Some(server) => Ok(self.power_off(server)? == Ended::Clean),
            None => Ok(true),
        }
    }

    /// Ends the machine of a node for good. Its data volume stays, and is nobody's afterwards.
    fn finish(&self, known: &Inventory, node: &str) -> Result<Ended> {
        let ended = of(known, node).next().map_or(Ok(Ended::Clean), |server| self.power_off(server))?;
        let has_volume = known.volume(node).is_some();
        // From a machine that does not power off it is taken by its end.
        if has_volume && ended == Ended::Clean {
            volumes::free(self.cloud, self.client, node)?;
        }
        self.delete_all(node)?;
        if has_volume {
            volumes::free(self.cloud, self.client, node)?;
        }
        Ok(ended)
    }

    /// Removes all machines of a node, and waits until the provider knows none.
    fn delete_all(&self, node: &str) -> Result<()> {
        self.client.poll(&format!("removing the machine of {node}"), EVERY, GONE, || {
            let known = self.cloud.inventory()?;
            for server in of(&known, node) {
                match self.cloud.delete(&server.thing()) {
                    Err(error) if !error.is::<super::Busy>() => return Err(error),
                    _ => {}
                }
            }
            Ok(of(&known, node).next().is_none().then_some(()))
        })
    }
}

impl Machines for CloudMachines<'_> {
    /// Those of all nodes of `cluster.toml`, where there are any at all: one may be between its end and the next one.
    fn list(&self) -> Result<Vec<Machine>> {
        let known = self.cloud.inventory()?;
        if known.servers.is_empty() {
            return Ok(Vec::new());
        }
        let machine = |node: &str| {
            let server = of(&known, node).next();
            let image = server.map_or(NO_IMAGE, |server| server.image.as_str()).to_string();
            let running = server.is_some_and(|server| server.state == State::Running);
            let keeps_data = volumes::keep_data(self.settings, &known, node);
            Machine { node: node.into(), image, running, keeps_data, on_volume: keeps_data }
        };
        Ok(self.settings.nodes.iter().map(|node| machine(&node.entry.name)).collect())
    }

    fn offer(&mut self, image: &ImageFile) -> Result<()> {
        let of_role = |role: &Role| image.path.starts_with(output_dir(self.settings, *role));
        let role = ROLES.into_iter().find(of_role).context("the image is none that was built here")?;
        let sum = self.images.ensure(role)?.sum;
        if sum != short(&image.id) {
            bail!(
                "another {role} image was built meanwhile ({sum} instead of {}); run `kimg roll` again",
                short(&image.id)
            );
        }
        Ok(())
    }

    fn holds(&self, image: &str) -> Result<bool> {
        Ok(self.images.find(image)?.is_some())
    }

    fn check(&self, nodes: &[&str]) -> Result<()> {
        self.check_in(&self.cloud.inventory()?, nodes)
    }

    fn end(&mut self, order: &Order<'_>) -> Result<Option<Ended>> {
        if self.is_master(order.node) {
            return Ok(None);
        }
        let known = self.cloud.inventory()?;
        self.check_order(&known, order)?;
        self.check_in(&known, &[order.node])?;
        self.image(order.image)?;
        self.finish(&known, order.node).map(Some)
    }

    /// An interrupted attempt may have left a machine, whose token is no more.
    fn rebuild(&mut self, order: &Order<'_>) -> Result<Ended> {
        if self.is_master(order.node) && order.data == Data::JoinsEtcd {
            return self.rejoin(order);
        }
        if self.is_master(order.node) && order.data == Data::Stays {
            return self.carry(order);
        }
        let mut known = self.cloud.inventory()?;
        self.check_order(&known, order)?;
        let mut ended = Ended::Clean;
        if of(&known, order.node).next().is_some() {
            ended = self.end(order)?.unwrap_or(ended);
            known = self.cloud.inventory()?;
        } else {
            self.check_in(&known, &[order.node])?;
        }
        let node = self.settings.node(order.node)?;
        let network = known.networks.first().context("the private network is gone; `kimg up` makes it")?;
        let firewall = known.firewalls.iter().find(|firewall| firewall.role == node.entry.role);
        let firewall = firewall.context("the firewall of the workers is gone; `kimg up` makes it")?;
        let masters = self.settings.nodes_of(Role::Master).map(|master| master.entry.name.as_str());
        let masters: Vec<IpAddr> =
            masters.filter_map(|name| of(&known, name).find_map(|server| server.private)).collect();
        if masters.is_empty() {
            bail!("no master has an address in the private network");
        }
        let CloudMachines { settings, provider, secrets, cloud, .. } = *self;
        let maker = Maker { settings, provider, secrets, cloud };
        if let Some(gb) = node.data_gb.filter(|_| known.volume(order.node).is_none()) {
            // The machine before knew of none, or it is gone.
            cloud.make_volume(order.node, gb)?;
        }
        maker.make(node, &self.image(order.image)?, (network, firewall), &masters, Begin::Join(order.token))?;
        if node.data_gb.is_some() {
            volumes::attach(cloud, self.client, order.node)?;
        }
        Ok(ended)
    }

    fn remove(&mut self, node: &str) -> Result<Ended> {
        let ended = self.finish(&self.cloud.inventory()?, node)?;
        // What was made for a machine that came to nothing costs on, too.
        destroy::destroy(self.cloud, self.client, |found| destroy::things_of(found, node), |_| ())?;
        Ok(ended)
    }

    fn boot(&self, node: &str) -> Option<String> {
        let at = of(&self.cloud.inventory().ok()?, node).find_map(|server| server.public)?;
        self.nodes.boot(node, at)
    }

    fn console(&self, node: &str) -> Vec<String> {
        let at = self.provider.name.as_str();
        vec![format!("{at} shows consoles to browsers only; `kimg node --node {node} status` may tell more")]
    }
}
