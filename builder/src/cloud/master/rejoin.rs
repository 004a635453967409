//! One of several masters under another image, or in the place of one that is gone: the others serve, its disk is new, and
//! its etcd joins theirs.
//!
//! ```text
//! image noted as `none` → rebuilt in place, or made → lost members removed → all told of all → image noted
//! ```
//! Nothing is carried, so each step may be done twice, and whoever was ended between two of them begins again. Whether the
//! others do without it is asked before, by the roll that this is a step of ([`crate::roll::members`]).

use super::{BEGUN, EVERY, Onto};
use crate::cloud::machines::{CloudMachines, of};
use crate::cloud::{Inventory, Server, State};
use crate::input::{self, BadInput};
use crate::machines::{Data, Ended, NO_IMAGE, Order};
use crate::roll::members;
use crate::upload::may_be_done;
use crate::web::Refused;
use anyhow::{Context, Result, bail};
use node_api::{Masters, StoreMember};
use node_metadata::Role;
use std::net::IpAddr;
use std::time::Duration;

/// How long the others are asked whether they do without it.
const SHOWN: Duration = Duration::from_secs(60);

/// A master that is there, and where.
struct Place {
    server: Server,
    outside: IpAddr,
    inside: IpAddr,
}

impl CloudMachines<'_> {
    /// Makes one of several masters anew; it is told to join the others, and nobody waits until it has.
    pub(in crate::cloud) fn rejoin(&self, order: &Order<'_>) -> Result<Ended> {
        if order.data == Data::AwaitsBackup {
            bail!("at {} no backup takes the place of a store that several masters share", self.provider.name.as_str());
        }
        let (node, known) = (order.node, self.cloud.inventory()?);
        self.check_in(&known, &[node])?;
        // Before the machine loses what it has.
        self.image(order.image)?;
        self.patiently("the other masters", SHOWN, || self.check_others(&self.cloud.inventory()?, node))?;
        match of(&known, node).next() {
            Some(_) => self.rebuild_member(&self.settled(node)?, order.image)?,
            // There is no other image that it might have.
            None => self.make_master(&known, node, order.image, order.image)?,
        }
        let what = format!("{node} is told of the other masters");
        let told = self.patiently(&what, BEGUN, || self.introduce(node));
        let server = told.with_context(|| format!("{node} has a new disk, and has not been told to join"))?;
        if server.image != order.image {
            self.cloud.mark(&server, order.image)?;
        }
        Ok(Ended::Clean)
    }

    /// Whether the store is on other machines than this one's, which is to lose its disk, and those do without it.
    fn check_others(&self, known: &Inventory, node: &str) -> Result<()> {
        let own = match of(known, node).next() {
            // One whose member is not known would count as one that is missing already.
            Some(server) => {
                server.private.with_context(|| format!("the private address of {node} is not known"))?.to_string()
            }
            None => String::new(),
        };
        let mut why = "there is no other".to_owned();
        for Place { server, outside, .. } in self.places(known).iter().filter(|place| place.server.node != node) {
            // Its etcd hears nobody, so that a machine would be made in vain.
            let list = match self.nodes.told(&server.node, *outside) {
                Ok(None) => {
                    return input::bad(format!(
                        "the image of {} knows no other masters, so none can join it; `kimg scale masters` gives it one that does",
                        server.node
                    ));
                }
                Ok(Some(_)) => self.nodes.members(&server.node, *outside),
                Err(error) => Err(error),
            };
            match list {
                Ok(list) => match members::needed(&list, &own, false) {
                    None => return Ok(()),
                    Some(needed) => why = needed,
                },
                Err(error) => why = format!("{}: {error:#}", server.node),
            }
        }
        bail!("the other masters cannot do without {node}, so it is not touched: {why}")
    }

    /// The machine, which an interrupted run may have made a moment ago: none is rebuilt that has no address yet.
    fn settled(&self, node: &str) -> Result<Server> {
        self.client.poll(&format!("the machine of {node}"), EVERY, BEGUN, || {
            let known = self.cloud.inventory()?;
            let server = of(&known, node).next().with_context(|| format!("the machine of {node} is gone"))?;
            Ok(server.private.map(|_| server.clone()))
        })
    }

    fn rebuild_member(&self, server: &Server, image: &str) -> Result<()> {
        if server.image != NO_IMAGE {
            self.cloud.mark(server, NO_IMAGE)?;
        }
        let Err(error) = self.rebuild_in_place(server, image, Onto::Disk) else { return Ok(()) };
        let refused = error.chain().any(|cause| cause.is::<Refused>() || cause.is::<BadInput>());
        if refused && !may_be_done(&error) && server.image != NO_IMAGE {
            // The old disk is as it was.
            self.cloud.mark(server, &server.image)?;
        }
        Err(error)
    }

    /// Tells the masters that there are which those are, as some are gone for good.
    ///
    /// # Errors
    /// One of them does not answer.
    pub fn introduce_all(&self) -> Result<()> {
        self.patiently("the masters are told of each other", BEGUN, || {
            let all = self.places(&self.cloud.inventory()?);
            let told = told(&all);
            for place in &all {
                let name = &place.server.node;
                // It was made, and not started any more.
                if place.server.state == State::Off {
                    self.cloud.start(&place.server)?;
                }
                // Not one whose image knows only itself.
                if self.nodes.told(name, place.outside)?.is_some() {
                    self.nodes.tell(name, place.outside, &told).with_context(|| format!("telling {name}"))?;
                }
            }
            Ok(())
        })
    }

    /// The masters that have machines with addresses.
    fn places(&self, known: &Inventory) -> Vec<Place> {
        let place = |name: &str| {
            let server = of(known, name).next()?;
            Some(Place { server: server.clone(), outside: server.public?, inside: server.private? })
        };
        self.settings.nodes_of(Role::Master).filter_map(|master| place(&master.entry.name)).collect()
    }

    /// Tells all masters of each other, the new one last, which begins to join then. It is the one that is returned.
    fn introduce(&self, node: &str) -> Result<Server> {
        let known = self.cloud.inventory()?;
        if let Some(off) = of(&known, node).find(|server| server.state == State::Off) {
            self.cloud.start(off)?;
        }
        let all = self.places(&known);
        let own = all.iter().find(|place| place.server.node == node).context("it has no address yet")?;
        self.nodes.boot(node, own.outside).context("it does not answer yet")?;
        let told = told(&all);
        let mut asked = None;
        for other in all.iter().filter(|place| place.server.node != node) {
            let name = &other.server.node;
            // One that is away, too, is told by `kimg up`, or when it is healed.
            if self.nodes.boot(name, other.outside).is_some() {
                self.nodes.tell(name, other.outside, &told).with_context(|| format!("telling {name}"))?;
                asked.get_or_insert(other);
            }
        }
        let asked = asked.context("none of the other masters answers")?;
        // Only where each has a machine it is known whose are the members that no machine has.
        if all.len() == self.settings.nodes_of(Role::Master).count() {
            for lost in self.nodes.members(&asked.server.node, asked.outside)?.iter().filter(|it| is_lost(it, &all)) {
                self.nodes.remove_member(&asked.server.node, asked.outside, &host(lost))?;
            }
        }
        self.nodes.tell(node, own.outside, &told)?;
        Ok(own.server.clone())
    }
}

fn told(all: &[Place]) -> Masters {
    Masters { masters: all.iter().map(|place| place.inside).collect(), join: true }
}

/// Whether a member is of a machine that is gone: it does not answer, and no master has its address.
fn is_lost(member: &StoreMember, all: &[Place]) -> bool {
    !member.healthy && !all.iter().any(|place| members::is(member, &place.inside.to_string()))
}

/// The address of a member's master; one that has not started yet has no other name.
fn host(member: &StoreMember) -> String {
    let address = member.peer.strip_prefix("https://").and_then(|rest| rest.parse::<std::net::SocketAddr>().ok());
    address.map_or_else(|| member.name.clone(), |address| address.ip().to_string())
}
