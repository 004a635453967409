//! Several masters, which share etcd. None knows the others' addresses before all machines are there:
//!
//! ```text
//! all are made → each has its private address → each is told all of them → one begins with a store → workers
//! ```
//! Whoever was ended on the way asks each which it was told of. A store begins only where no worker is, as none is made
//! before; and the masters' own etcd begins none where one of them has run (docs/decisions/0111).

use super::{Ground, READY, Server, Up};
use crate::config::NodeSettings;
use crate::input::{self, BadInput};
use crate::machines::NO_IMAGE;
use anyhow::{Context, Result, bail};
use node_api::Masters;
use node_metadata::Role;
use std::net::IpAddr;

/// A master and its machine.
struct Place<'a> {
    name: &'a str,
    outside: IpAddr,
    inside: IpAddr,
}

impl Up<'_> {
    /// All masters, which have their store then: where one that serves is found from outside, and all by the workers.
    pub(super) fn several(&self, ground: &mut Ground) -> Result<(IpAddr, Vec<IpAddr>)> {
        let masters: Vec<&NodeSettings> = self.settings.nodes_of(Role::Master).collect();
        self.check_several(ground, &masters)?;
        for master in masters.iter().filter(|master| ground.server(&master.entry.name).is_none()).collect::<Vec<_>>() {
            self.make(ground, master, None)?;
        }
        let mut places = Vec::new();
        for master in &masters {
            let (outside, inside) = self.addresses_of(&master.entry.name)?;
            places.push(Place { name: &master.entry.name, outside, inside });
        }
        let found: Vec<String> = places.iter().map(|place| format!("{} at {}", place.name, place.outside)).collect();
        self.progress.line(&format!("{}; waiting for their API servers", found.join(", ")));
        let is_master = |node: &str| masters.iter().any(|master| master.entry.name == node);
        let begins = ground.servers.iter().all(|server| is_master(&server.node));
        let all = self.tell_all(&places, begins)?;
        let first = places.first().context("cluster.toml names no master")?;
        if let Some(restore) = self.restore.filter(|_| ground.made.iter().any(|made| made == first.name)) {
            self.restore(first.outside, restore)?;
            let image = ground.images.get(&Role::Master).context("the masters were made of no image")?;
            for place in &places {
                let server =
                    self.found(place.name)?.with_context(|| format!("the machine of {} is gone", place.name))?;
                self.cloud.mark(&server, &image.sum)?;
            }
        } else if begins {
            let begin = || match self.serves(&places) {
                Ok(_) => Ok(()),
                Err(_) => self.cluster.begin(first.outside),
            };
            self.persist(&format!("{} to begin with a store", first.name), READY, begin)?;
        }
        let outside = self.persist("the API server of a master", READY, || self.serves(&places))?;
        Ok((outside, all))
    }

    /// Nobody is made in the place of a master that had a store, and nobody's new disk is taken for one that begins.
    fn check_several(&self, ground: &Ground, masters: &[&NodeSettings]) -> Result<()> {
        let there = || masters.iter().filter_map(|master| ground.server(&master.entry.name));
        let waits = |server: &&Server| {
            let serves = |at: IpAddr| self.cluster.ready(at).is_ok();
            server.image == NO_IMAGE && !server.public.is_some_and(serves)
        };
        if let Some(server) = there().find(waits) {
            if ground.servers.iter().all(|server| masters.iter().any(|master| master.entry.name == server.node)) {
                return input::bad(format!(
                    "{0} waits for the store that it was to be given, and no master serves one: `kimg destroy`, and then `kimg \
                     restore` once more where a restore was interrupted; else `kimg roll` goes on with a roll",
                    server.node
                ));
            }
            return input::bad(format!(
                "{0} is being made anew, and is no member of the other masters' store yet: `kimg roll` goes on with a roll that \
                 was interrupted, and `kimg heal {0}` has it join them",
                server.node
            ));
        }
        let Some(gone) = masters.iter().find(|master| ground.server(&master.entry.name).is_none()) else {
            return Ok(());
        };
        for server in there() {
            let (outside, _) = self.addresses_of(&server.node)?;
            if !self.told(&server.node, outside)?.masters.is_empty() {
                return input::bad(format!(
                    "the machine of {0} is gone, and the other masters have the store: `kimg heal {0}` makes another, which \
                     joins them",
                    gone.entry.name
                ));
            }
        }
        Ok(())
    }

    /// Sees to it that each master knows all, and says where those are.
    fn tell_all(&self, places: &[Place<'_>], begins: bool) -> Result<Vec<IpAddr>> {
        let all: Vec<IpAddr> = places.iter().map(|place| place.inside).collect();
        // Whoever is new joins what runs.
        let runs = self.serves(places).is_ok();
        for Place { name, outside, .. } in places {
            let told = self.told(name, *outside)?;
            let is_new = told.masters.is_empty();
            if is_new && !begins {
                return input::bad(format!(
                    "{name} has a new disk, and knows nothing of the other masters' store: `kimg heal {name}` has it join them"
                ));
            }
            let same = told.masters.len() == all.len() && all.iter().all(|one| told.masters.contains(one));
            if !same {
                // Of those that were told before one has another address.
                let masters = Masters { masters: all.clone(), join: runs || !is_new };
                let tell = || self.cluster.tell(name, *outside, &masters);
                self.answered(&format!("{name} to be told of the other masters"), tell)?;
            }
        }
        Ok(all)
    }

    fn told(&self, node: &str, at: IpAddr) -> Result<Masters> {
        self.answered(&format!("{node} at {at}"), || self.cluster.told(node, at))
    }

    /// Asks until there is an answer; a node that says that the question is wrong is believed.
    fn answered<T>(&self, what: &str, ask: impl Fn() -> Result<T>) -> Result<T> {
        self.persist(what, READY, || match ask() {
            Err(error) if error.is::<BadInput>() => Ok(Err(error)),
            answer => answer.map(Ok),
        })?
    }

    /// The first master whose API server is ready.
    fn serves(&self, places: &[Place<'_>]) -> Result<IpAddr> {
        let mut why = Vec::new();
        for Place { name, outside, .. } in places {
            match self.cluster.ready(*outside) {
                Ok(()) => return Ok(*outside),
                Err(error) => why.push(format!("{name}: {error:#}")),
            }
        }
        bail!("{}", why.join("; "))
    }
}
