//! What is missing at the provider, what somebody changed by hand, and what it all costs. Pure.

use super::{
    Cents, Cloud, Firewall, Inventory, Network, Offer, ROLES, Rule, Server, Size, State, Thing, Volume, amount, volumes,
};
use crate::client::kube::NodeState;
use crate::config::{NodeSettings, Provider, Settings, nearest};
use crate::input;
use crate::logs::line::harmless;
use crate::machines::NO_IMAGE;
use crate::roll::skew::{self, Level, Stand};
use crate::table;
use anyhow::Result;
use node_metadata::Role;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Make the private network.
    MakeNetwork {
        /// Its addresses.
        range: String,
    },
    /// Make a firewall.
    MakeFirewall {
        /// For whose machines.
        role: Role,
    },
    /// Give a firewall its rules again.
    SetRules {
        /// For whose machines.
        role: Role,
    },
    /// Make the data volume of a node.
    MakeVolume {
        /// Whose it will be.
        node: String,
        /// Its size.
        gb: u32,
        /// What a month of it costs, in hundredths, where somebody says it.
        monthly: Option<Cents>,
    },
    /// Attach the data volume of a node to its machine, which is there.
    AttachVolume {
        /// Whose it is.
        node: String,
    },
    /// Make a machine.
    MakeServer {
        /// The node that it will be.
        node: String,
        /// Its type.
        r#type: String,
        /// What a month of it costs, in hundredths, where somebody says it.
        monthly: Option<Cents>,
    },
    /// Switch a machine on.
    Start {
        /// The node that it is.
        node: String,
    },
}

/// What `kimg up` would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The cluster.
    pub cluster: String,
    /// The provider.
    pub provider: String,
    /// The region.
    pub region: String,
    /// What is not as `cluster.toml` says, and is not merely missing.
    pub drift: Vec<String>,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    /// Why nothing of it can be done.
    pub refusals: Vec<String>,
    /// The currency of the amounts.
    pub currency: String,
    /// What machines and data volumes cost in a month as they are, in hundredths, without taxes; none where nobody says it of
    /// any.
    pub monthly_now: Option<Cents>,
    /// What they cost then.
    pub monthly_then: Option<Cents>,
    /// Machines and data volumes, there or to be made, that are in neither sum: nobody says what they cost.
    pub unpriced: Vec<String>,
    /// What they may cost.
    pub budget: Option<Cents>,
    /// Whether data volumes are among them.
    #[serde(skip)]
    pub volumes: bool,
    /// Of the refusals those that `kimg heal` does away with.
    #[serde(skip)]
    pub lost: Vec<String>,
}

/// What the plan is made from.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The cluster.
    pub settings: &'a Settings,
    /// Its `[provider]`.
    pub provider: &'a Provider,
    /// What can be had.
    pub offer: &'a Offer,
    /// What is there.
    pub inventory: &'a Inventory,
    /// What each role's firewall should let in.
    pub rules: BTreeMap<Role, BTreeSet<Rule>>,
    /// The beginning of the SHA-256 of the images that are built here.
    pub built: BTreeMap<Role, String>,
}

/// What the firewall of each role lets in at this provider.
pub fn rules(cloud: &dyn Cloud) -> BTreeMap<Role, BTreeSet<Rule>> {
    ROLES.map(|role| (role, cloud.rules(role))).into()
}

/// Makes the plan.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let Situation { settings, provider, offer, inventory, .. } = situation;
    let mut plan = Plan {
        cluster: settings.name.clone(),
        provider: provider.name.as_str().into(),
        region: provider.region.clone(),
        drift: Vec::new(),
        steps: Vec::new(),
        refusals: inventory.foreign.iter().map(|foreign| foreign.why.clone()).collect(),
        currency: offer.currency.clone(),
        monthly_now: None,
        monthly_then: None,
        unpriced: Vec::new(),
        budget: provider.budget.map(|whole| Cents(u64::from(whole) * 100)),
        volumes: !inventory.volumes.is_empty() || settings.nodes.iter().any(|node| node.data_gb.is_some()),
        lost: Vec::new(),
    };
    plan.network(situation);
    for role in ROLES.into_iter().filter(|role| settings.nodes_of(*role).next().is_some()) {
        plan.firewall(situation, role);
    }
    for node in &settings.nodes {
        if let Some(gb) = node.data_gb {
            plan.volume(situation, &node.entry.name, gb);
        }
        if node.entry.role == Role::Master {
            plan.store(situation, node);
        }
        plan.node(situation, &node.entry.name, node.entry.role);
    }
    plan.strangers(situation);
    plan.drift.extend(settings.spares_left());
    plan.count(provider, offer, inventory);
    plan
}

impl Plan {
    fn network(&mut self, situation: &Situation<'_>) {
        let (range, region) = (situation.provider.network.to_string(), &situation.provider.region);
        match situation.inventory.networks.first() {
            None => self.steps.push(Step::MakeNetwork { range }),
            Some(found) if found.range != range => self.refusals.push(format!(
                "the private network is {}, and cluster.toml says {range}: a network keeps its addresses; write \
                 network = \"{}\" under [provider]",
                found.range, found.range
            )),
            Some(Network { region: Some(found), .. }) if found != region => self.refusals.push(format!(
                "the private network is in {found}, and cluster.toml says {region}: machines are where their network is; \
                 write region = \"{found}\" under [provider]"
            )),
            Some(_) => {}
        }
    }

    fn firewall(&mut self, situation: &Situation<'_>, role: Role) {
        let wanted = situation.rules.get(&role);
        match situation.inventory.firewalls.iter().find(|known| known.role == role) {
            None => {
                let there = |server: &Server| situation.settings.nodes_of(role).any(|n| n.entry.name == server.node);
                if situation.inventory.servers.iter().any(there) {
                    self.drift.push(format!("the firewall of the {role}s is gone"));
                }
                self.steps.push(Step::MakeFirewall { role });
            }
            Some(Firewall { rules, .. }) if Some(rules) != wanted => {
                self.drift.push(format!("the rules of the firewall of the {role}s were changed"));
                self.steps.push(Step::SetRules { role });
            }
            Some(_) => {}
        }
    }

    fn node(&mut self, situation: &Situation<'_>, node: &str, role: Role) {
        let Situation { settings, provider, offer, inventory, built, .. } = situation;
        let several = role == Role::Master && settings.has_several_masters();
        let size = provider.types.get(node).cloned().unwrap_or_default();
        let machines: Vec<&Server> = inventory.servers.iter().filter(|server| server.node == node).collect();
        match machines[..] {
            // They begin before any worker is made.
            [] if several && inventory.servers.iter().any(|server| !is_master(settings, &server.node)) => {
                let why = format!(
                    "the machine of {node} is gone, and the other masters have the store: `kimg heal {node}` makes another, \
                     which joins them (where there never was one: `kimg scale masters {}`)",
                    settings.nodes_of(Role::Master).count()
                );
                self.lost.push(why.clone());
                self.refusals.push(why);
                // What that costs.
                let monthly = offer.price(&size);
                self.steps.push(Step::MakeServer { node: node.into(), r#type: size, monthly });
            }
            [] if role == Role::Master && !several && !inventory.servers.is_empty() && inventory.volume(node).is_some() => {
                self.refusals.push(format!(
                    "the machine of {node} is gone, while others are there: `kimg heal master` makes another, and gives it the \
                     data volume with the store"
                ));
            }
            [] if role == Role::Master && !several && !inventory.servers.is_empty() => self.refusals.push(format!(
                "the machine of {node} is gone, and the store went with it, while others are there; a new one would begin \
                 with nothing: `kimg backup ls` shows the copies that workers keep, and `kimg destroy` begins anew"
            )),
            [] => match offer.sizes.get(&size).filter(|size| size.available) {
                Some(Size { monthly, .. }) => {
                    self.steps.push(Step::MakeServer { node: node.into(), r#type: size, monthly: *monthly });
                }
                None => self.refusals.push(unknown(offer, provider, node, &size)),
            },
            [server] => {
                if server.size != size {
                    self.drift.push(format!("{node} is a {}, and cluster.toml says {size}; it stays one", server.size));
                }
                if server.region != provider.region {
                    let (there, wanted) = (&server.region, &provider.region);
                    self.drift.push(format!("{node} is in {there}, and cluster.toml says {wanted}; it stays there"));
                }
                if server.image == NO_IMAGE && several {
                    self.drift.push(format!(
                        "{node} is being made anew, or waits until it is told of the other masters: `kimg roll` goes on with a \
                         roll that was interrupted, and `kimg heal {node}` has it join them"
                    ));
                } else if server.image == NO_IMAGE {
                    self.drift.push(format!(
                        "{node} is being made anew, or waits for its store: `kimg roll` goes on with a roll that was \
                         interrupted, and `kimg heal master` gives a master the newest copy"
                    ));
                } else if let Some(image) = built.get(&role).filter(|image| **image != server.image) {
                    self.drift.push(format!("{node} runs image {}, and {image} is built; it keeps its own", server.image));
                }
                if server.state == State::Off {
                    self.drift.push(format!("{node} is switched off"));
                    self.steps.push(Step::Start { node: node.into() });
                }
            }
            _ => {
                let ids: Vec<&str> = machines.iter().map(|server| server.id.as_str()).collect();
                self.refusals.push(format!("{node} has several machines ({}); remove all but one", ids.join(", ")));
            }
        }
    }

    /// The data volume of a node.
    fn volume(&mut self, situation: &Situation<'_>, node: &str, gb: u32) {
        let Situation { provider, offer, inventory, .. } = situation;
        let server = inventory.servers.iter().find(|server| server.node == node);
        let volumes: Vec<&Volume> = inventory.volumes.iter().filter(|volume| volume.node == node).collect();
        match volumes[..] {
            [] => {
                if server.is_some_and(|server| server.on_volume) {
                    self.drift.push(format!("the data volume of {node} is gone, and what it held with it"));
                }
                let monthly = offer.volume_price(gb.into());
                match server {
                    // A volume that is there was that of a machine which knew of it, so that nobody takes an empty one for
                    // what is on this one's disk.
                    Some(server) if !server.on_volume => self.drift.push(format!(
                        "the machine of {node} was made without a data volume, and has its data on its own disk; its next roll \
                         gives it one ({gb} GB, {} a month)",
                        amount(monthly, &offer.currency)
                    )),
                    Some(server) if server.region != provider.region => self.refusals.push(format!(
                        "{node} needs another data volume, which would be made in {}, and its machine is in {}: write region = \
                         \"{1}\" under [provider]",
                        provider.region, server.region
                    )),
                    _ => self.steps.push(Step::MakeVolume { node: node.into(), gb, monthly }),
                }
            }
            [volume] => {
                let has = volume.gb;
                if has > u64::from(gb) {
                    self.refusals.push(format!(
                        "the data volume of {node} has {has} GB, and cluster.toml says {gb}: none gets smaller; write data-gb = \
                         {has}"
                    ));
                } else if has < u64::from(gb) {
                    self.drift.push(format!(
                        "the data volume of {node} has {has} GB, and cluster.toml says {gb}: kimg does not make one larger yet; \
                         it stays as it is"
                    ));
                }
                let machine = server.map_or(&provider.region, |server| &server.region);
                if volume.region != *machine {
                    self.refusals.push(format!(
                        "the data volume of {node} is in {}, and its machine in {machine}: a volume is attached where it is; \
                         write region = \"{0}\" under [provider], or `kimg destroy --node {node} --data` removes it",
                        volume.region
                    ));
                }
            }
            _ => {
                let ids: Vec<&str> = volumes.iter().map(|volume| volume.id.as_str()).collect();
                self.refusals.push(format!("{node} has several data volumes ({}); remove all but one", ids.join(", ")));
            }
        }
        let Some(server) = server.filter(|server| server.on_volume) else { return };
        match volumes.first().and_then(|volume| volume.server.as_deref()) {
            None => self.steps.push(Step::AttachVolume { node: node.into() }),
            Some(at) if at != server.id => self.refusals.push(format!(
                "the data volume of {node} is attached to the machine {at}, which is not the node's: detach it at the provider"
            )),
            Some(_) => {}
        }
    }

    /// A master's store is either on its data volume or not, and nobody may take an old one for it.
    fn store(&mut self, situation: &Situation<'_>, node: &NodeSettings) {
        let (name, inventory) = (&node.entry.name, situation.inventory);
        let Some(volume) = inventory.volume(name) else { return };
        let server = inventory.servers.iter().find(|server| server.node == *name);
        // One whose image is none may be on its way there.
        let on_disk = server.is_some_and(|server| !server.on_volume && server.image != NO_IMAGE);
        match node.data_gb {
            None if server.is_some_and(|server| server.on_volume) => self.refusals.push(format!(
                "the store of {name} is on its data volume {}, and kimg takes none off again: write data-gb = {}",
                volume.id, volume.gb
            )),
            // Another store beside it would make it an old one that nobody can tell from the current one.
            None if !on_disk => self.refusals.push(format!(
                "the data volume {} may have the store of {name}: write data-gb = {}, or give it up with `kimg destroy --node \
                 {name} --data`",
                volume.id, volume.gb
            )),
            Some(_) if on_disk => self.refusals.push(format!(
                "the store of {name} is on its own disk, and the data volume {} has what a machine before it left: remove that \
                 volume at the provider, and the next roll makes one and moves the store there",
                volume.id
            )),
            _ => {}
        }
    }

    /// Machines of nodes that `cluster.toml` does not know. They may hold data, so they stay.
    fn strangers(&mut self, situation: &Situation<'_>) {
        let known = |node: &str| situation.settings.nodes.iter().any(|known| known.entry.name == node);
        for server in situation.inventory.servers.iter().filter(|server| !known(&server.node)) {
            self.drift.push(format!(
                "{0} ({1}) is no node of cluster.toml; drain it, and `kimg destroy --node {0}` removes its machine {2}",
                server.node, server.size, server.id
            ));
        }
        self.drift.extend(volumes::left(situation.settings, situation.inventory, situation.offer));
        let left = |thing: &&Thing| thing.kind == "floating-ip" && !known(&thing.name);
        for Thing { id, name, .. } in situation.inventory.rest.iter().filter(left) {
            self.drift.push(format!(
                "the address {id} of {name}, which is no node of cluster.toml, stays and may cost money; `kimg destroy --node \
                 {name}` removes it"
            ));
        }
    }

    fn count(&mut self, provider: &Provider, offer: &Offer, inventory: &Inventory) {
        let volume = |node: &str, gb: u64| format!("the data volume of {node} ({gb} GB)");
        let made = |step: &Step| match step {
            Step::MakeServer { node, r#type, monthly } => Some((format!("{node} ({})", r#type), *monthly)),
            Step::MakeVolume { node, gb, monthly } => Some((volume(node, (*gb).into()), *monthly)),
            _ => None,
        };
        let server = |server: &Server| (format!("{} ({})", server.node, server.size), offer.price(&server.size));
        let kept = |one: &Volume| (volume(&one.node, one.gb), offer.volume_price(one.gb));
        let there = inventory.servers.iter().map(server).chain(inventory.volumes.iter().map(kept));
        let there: Vec<(String, Option<Cents>)> = there.collect();
        let more: Vec<(String, Option<Cents>)> = self.steps.iter().filter_map(made).collect();
        let all = || there.iter().chain(&more);
        self.monthly_now = Cents::total(there.iter().map(|(_, price)| *price));
        self.monthly_then = Cents::total(all().map(|(_, price)| *price));
        self.unpriced = all().filter(|(_, price)| price.is_none()).map(|(name, _)| name.clone()).collect();
        if let Some(budget) = self.budget.filter(|_| !more.is_empty() && !self.unpriced.is_empty()) {
            self.refusals.push(format!(
                "{} has no price of {}, so nobody knows whether the budget of {budget} is kept; {}, or remove budget under \
                 [provider]",
                self.provider,
                self.unpriced.join(", "),
                match provider.name.tells_prices() {
                    _ if self.unpriced.iter().any(|one| one.starts_with("the data volume")) && !provider.name.tells_volume_price() =>
                        "write that of a GB as data-gb under [provider.prices]",
                    true => "remove that machine",
                    false => "write its price under [provider.prices]",
                }
            ));
        }
        if more.is_empty() {
            return;
        }
        if let Some((then, budget)) = self.monthly_then.zip(self.budget).filter(|(then, budget)| then > budget) {
            self.refusals.push(format!(
                "it would cost {then} {} a month, and the budget is {budget}; raise budget under [provider], or write \
                 smaller types or fewer nodes",
                self.currency
            ));
        }
        let machines = self.steps.iter().filter(|step| matches!(step, Step::MakeServer { .. })).count();
        if let Some(room) = offer.room.filter(|room| *room < machines as u64) {
            self.refusals.push(format!(
                "{machines} machines are to be made, and the account may have {room} more; remove some, or ask {} for more",
                self.provider
            ));
        }
    }

    /// The machines that are to be made get what is built here, and must work together with the nodes that are there.
    pub fn refuse_skew(&mut self, settings: &Settings, nodes: &[NodeState]) {
        let stand = |name: &str, level: Option<Level>| {
            Some(Stand { node: name.to_owned(), master: is_master(settings, name), level: level? })
        };
        // What is no node of cluster.toml may say what it likes.
        let ours = |node: &&NodeState| settings.nodes.iter().any(|known| known.entry.name == node.name);
        let nodes = nodes.iter().filter(ours);
        let now: Vec<Stand> = nodes.filter_map(|node| stand(&node.name, Level::of(&node.version))).collect();
        let made = self.steps.iter().filter_map(|step| match step {
            Step::MakeServer { node, .. } => stand(node, Level::this()),
            _ => None,
        });
        self.refusals.extend(skew::check(&now, &made.collect::<Vec<_>>()).err());
    }

    /// A master that is gone is in the way of `up`, and not of what makes it anew.
    pub fn heals(&mut self) {
        self.refusals.retain(|why| !self.lost.contains(why));
    }

    /// Whether it can be done.
    ///
    /// # Errors
    /// Bad input: why not.
    pub fn check(&self) -> Result<()> {
        if self.refusals.is_empty() { Ok(()) } else { input::bad(self.refusals.join("; ")) }
    }

    /// What the spares cost that are to be made, as long as they are there.
    pub fn prices_of_spares(&self, settings: &Settings) -> Vec<String> {
        let price = |step: &Step| match step {
            Step::MakeServer { node, r#type, monthly } if settings.spares().any(|spare| spare.entry.name == *node) => {
                Some(format!("the spare {node} is a {}, {} a month", r#type, amount(*monthly, &self.currency)))
            }
            _ => None,
        };
        let mut lines: Vec<String> = self.steps.iter().filter_map(price).collect();
        if !lines.is_empty() {
            let sum = |cents| amount(cents, &self.currency);
            let budget = self.budget.map_or(String::new(), |budget| format!(", of a budget of {budget}"));
            lines.push(format!(
                "all machines a month: {} now, {} while it lasts{budget}; the provider bills spares for as long as they are there",
                sum(self.monthly_now),
                sum(self.monthly_then)
            ));
        }
        lines
    }

    /// Whether machines are to be made, for which images are needed.
    pub fn makes_servers(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::MakeServer { .. }))
    }

    /// As people read it: drift first.
    pub fn shown(&self) -> String {
        let mut text = format!("cluster {} at {}, {}\n", self.cluster, self.provider, self.region);
        let mut list = |title: &str, lines: &[String]| {
            if !lines.is_empty() {
                let _ = writeln!(text, "\n{title}:");
                for line in lines {
                    let _ = writeln!(text, "  {}", harmless(line));
                }
            }
        };
        list("changed by hand, or not to be changed", &self.drift);
        list("in the way", &self.refusals);
        let rows: Vec<Vec<String>> = self.steps.iter().map(|step| step.row(&self.currency)).collect();
        if rows.is_empty() {
            text.push_str("\nnothing is to be made\n");
        } else {
            let _ = write!(text, "\n{}", table::render(&["TO DO", "TYPE", "A MONTH"], &rows));
        }
        let budget = self.budget.map_or(String::new(), |budget| format!(", of a budget of {budget}"));
        let without = match &self.unpriced[..] {
            [] => String::new(),
            unpriced => format!("; and without {}, whose price nobody says", unpriced.join(", ")),
        };
        let what = if self.volumes { "machines and data volumes" } else { "machines" };
        let _ = writeln!(
            text,
            "\n{what} a month: {} now, {} then{budget} (without taxes, traffic and images{})",
            amount(self.monthly_now, &self.currency),
            amount(self.monthly_then, &self.currency),
            harmless(&without)
        );
        text
    }
}

impl Step {
    fn row(&self, currency: &str) -> Vec<String> {
        let (what, size, monthly) = match self {
            Step::MakeNetwork { range } => (format!("make the private network {range}"), "", String::new()),
            Step::MakeFirewall { role } => (format!("make the firewall of the {role}s"), "", String::new()),
            Step::SetRules { role } => (format!("set the rules of the firewall of the {role}s"), "", String::new()),
            Step::MakeServer { node, r#type, monthly } => {
                (format!("make {node}"), r#type.as_str(), amount(*monthly, currency))
            }
            Step::MakeVolume { node, gb, monthly } => {
                return vec![format!("make the data volume of {node}"), format!("{gb} GB"), amount(*monthly, currency)];
            }
            Step::AttachVolume { node } => (format!("attach the data volume of {node}"), "", String::new()),
            Step::Start { node } => (format!("start {node}"), "", String::new()),
        };
        vec![what, size.to_string(), monthly]
    }
}

fn is_master(settings: &Settings, name: &str) -> bool {
    settings.nodes_of(Role::Master).any(|node| node.entry.name == name)
}

fn unknown(offer: &Offer, provider: &Provider, node: &str, size: &str) -> String {
    let known: Vec<&str> =
        offer.sizes.iter().filter(|(_, size)| size.available).map(|(name, _)| name.as_str()).collect();
    let hint = match nearest(size, &known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("there are {}", known.join(", ")),
    };
    format!("{node}: {} has no type {size} in {}; {hint}", provider.name.as_str(), provider.region)
}
