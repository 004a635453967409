//! Removes all that is the cluster's, in the order in which the provider lets it go.

use super::{Busy, Cloud, Inventory, Thing};
use crate::config::Settings;
use crate::input;
use crate::web::Client;
use anyhow::Result;
use node_metadata::Role;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// Machines go within a minute; what they were in, a little later.
const LIMIT: Duration = Duration::from_secs(900);

/// Whether it is clear what is the cluster's.
///
/// # Errors
/// Bad input: a machine that kimg made for it has become something else.
pub fn check(inventory: &Inventory) -> Result<()> {
    let why: Vec<&str> = inventory.foreign.iter().filter(|one| one.ours).map(|one| one.why.as_str()).collect();
    if why.is_empty() { Ok(()) } else { input::bad(format!("nothing was removed: {}", why.join("; "))) }
}

/// Everything that is to go: machines first.
pub fn things(inventory: &Inventory) -> Vec<Thing> {
    let mut all: Vec<Thing> = inventory.servers.iter().map(super::Server::thing).collect();
    all.extend(inventory.firewalls.iter().map(|firewall| Thing {
        kind: "firewall",
        id: firewall.id.clone(),
        name: format!("of the {}s", firewall.role),
    }));
    all.extend(inventory.networks.iter().map(|network| Thing {
        kind: "network",
        id: network.id.clone(),
        name: network.range.clone(),
    }));
    all.extend(inventory.rest.iter().cloned());
    all
}

/// What goes with one node, which `cluster.toml` need not name: its machine, and nothing that others are in.
///
/// # Errors
/// Bad input: it is a master, with which the store would go, or has no machine.
pub fn of_node(settings: &Settings, inventory: &Inventory, node: &str) -> Result<Vec<Thing>> {
    if settings.nodes_of(Role::Master).any(|master| master.entry.name == node) {
        return input::bad(format!("the store goes with {node}; `kimg destroy` removes the whole cluster"));
    }
    let machines = inventory.servers.iter().filter(|server| server.node == node);
    let things: Vec<Thing> = machines.map(super::Server::thing).collect();
    if things.is_empty() { input::bad(format!("{node} has no machine; see `kimg plan`")) } else { Ok(things) }
}

/// Removes what `of` finds in all that is there, and ends when it finds nothing any more. What cannot go yet is asked for
/// again.
///
/// # Errors
/// Something stays, or the provider refuses.
pub fn destroy(
    cloud: &dyn Cloud,
    client: &Client,
    of: impl Fn(&Inventory) -> Vec<Thing>,
    mut tell: impl FnMut(&Thing),
) -> Result<()> {
    let mut last = None;
    let mut told = Vec::new();
    let done = client.poll("removing what is left", EVERY, LIMIT, || {
        let all = of(&cloud.inventory()?);
        if all.is_empty() {
            return Ok(Some(()));
        }
        // What machines are in or found by goes when there are none.
        let servers = all.iter().any(|thing| thing.kind == "server");
        for thing in all.into_iter().filter(|thing| !servers || thing.kind == "server") {
            match cloud.delete(&thing) {
                Ok(()) if told.contains(&thing) => {}
                Ok(()) => {
                    tell(&thing);
                    told.push(thing);
                }
                Err(error) if error.is::<Busy>() => last = Some(format!("{} {}: {error:#}", thing.kind, thing.name)),
                Err(error) => return Err(error.context(format!("removing the {} {}", thing.kind, thing.name))),
            }
        }
        Ok(None)
    });
    done.map_err(|error| match last {
        Some(last) => error.context(format!("not all is gone, and `kimg destroy` goes on ({last})")),
        None => error,
    })
}
