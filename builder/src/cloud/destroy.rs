//! Removes all that is the cluster's, in the order in which the provider lets it go.

use super::machines::CloudMachines;
use super::{Busy, Cloud, Inventory, Server, Thing};
use crate::config::Settings;
use crate::input;
use crate::upload::Remote;
use crate::web::{Client, Interrupted};
use anyhow::{Result, bail};
use node_metadata::Role;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// Machines go within a minute; what they were in, a little later.
const LIMIT: Duration = Duration::from_secs(900);

/// Whether it is clear what is the cluster's.
///
/// # Errors
/// Bad input: a machine that kimg made for it has become something else, or there are only those of others.
pub fn check(inventory: &Inventory) -> Result<()> {
    let nothing = things(inventory).is_empty();
    let in_the_way = inventory.foreign.iter().filter(|one| one.ours || nothing);
    let why: Vec<&str> = in_the_way.map(|one| one.why.as_str()).collect();
    if why.is_empty() { Ok(()) } else { input::bad(format!("nothing was removed: {}", why.join("; "))) }
}

/// Everything that can go: machines first.
pub fn things(inventory: &Inventory) -> Vec<Thing> {
    let mut all: Vec<Thing> = inventory.servers.iter().map(Server::thing).collect();
    all.extend(inventory.firewalls.iter().filter(|firewall| !firewall.id.is_empty()).map(|firewall| Thing {
        kind: "firewall",
        id: firewall.id.clone(),
        name: format!("of the {}s", firewall.role),
    }));
    all.extend(inventory.networks.iter().filter(|network| !network.kept).map(|network| Thing {
        kind: "network",
        id: network.id.clone(),
        name: network.range.clone(),
    }));
    all.extend(inventory.rest.iter().cloned());
    all
}

/// Data volumes, which go only where it was said.
pub fn volumes(inventory: &Inventory) -> Vec<Thing> {
    inventory.volumes.iter().map(super::Volume::thing).collect()
}

/// What goes with one node, which `cluster.toml` need not name: its machine, and nothing that others are in.
///
/// # Errors
/// Bad input: it is a master, with which the store would go, or has no machine.
pub fn of_node(settings: &Settings, inventory: &Inventory, node: &str) -> Result<Vec<Thing>> {
    if settings.nodes_of(Role::Master).any(|master| master.entry.name == node) {
        return input::bad(format!("the store goes with {node}; `kimg destroy` removes the whole cluster"));
    }
    let things = things_of(inventory, node);
    if things.is_empty() { input::bad(format!("{node} has no machine; see `kimg plan`")) } else { Ok(things) }
}

/// The machine of a node, and what was made before one that could not be made.
pub fn things_of(inventory: &Inventory, node: &str) -> Vec<Thing> {
    let machines = inventory.servers.iter().filter(|server| server.node == node);
    let of_node =
        |thing: &&Thing| thing.name == node && ["server", "port", "floating-ip", "seed"].contains(&thing.kind);
    machines.map(Server::thing).chain(inventory.rest.iter().filter(of_node).cloned()).collect()
}

/// What is left behind a removal without an error, a line for each kind; `data`: images go, too.
pub fn left(inventory: &Inventory, images: &Result<Vec<Remote>>, data: bool) -> Vec<String> {
    let kept = inventory.networks.iter().filter(|network| network.kept);
    let mut lines: Vec<String> = kept
        .map(|network| {
            format!(
                "stays: network {} ({}), which is no cluster's alone, or its region's default, which the provider removes for \
                 nobody; it costs nothing",
                network.range, network.id
            )
        })
        .collect();
    if inventory.volumes_unseen {
        lines.push("whether data volumes stay, which cost money, is not known: this token may not list them".into());
    }
    match images {
        _ if data => {}
        Ok(images) if images.is_empty() => {}
        Ok(images) => {
            let names: Vec<String> = images.iter().map(|image| format!("{} ({})", image.name, image.id)).collect();
            // By its name alone an image may be another cluster's.
            let command = if inventory.foreign.is_empty() { "destroy --data" } else { "image rm" };
            let names = names.join(", image ");
            lines.push(format!("stays, and costs money: image {names}; `kimg {command}` removes images"));
        }
        Err(error) => lines.push(format!(
            "whether uploaded images stay, which cost money, is not known ({error:#}); `kimg image ls` lists them"
        )),
    }
    lines
}

/// Has the machines among `things` power off whose data volumes are not among them: what programs have written would be
/// missing there, as far as nobody synced it. Names the nodes that did not.
///
/// # Errors
/// The provider cannot be asked.
pub fn power_off(
    machines: &CloudMachines<'_>,
    inventory: &Inventory,
    things: &[Thing],
    tell: impl Fn(&str),
) -> Result<Vec<String>> {
    let goes = |thing: &Thing| things.contains(thing);
    let stays = |server: &&Server| {
        let mut of = inventory.volumes.iter().filter(|volume| volume.server.as_ref() == Some(&server.id));
        of.any(|volume| !goes(&volume.thing()))
    };
    let mut deaf = Vec::new();
    for server in inventory.servers.iter().filter(|server| goes(&server.thing())).filter(stays) {
        tell(&server.node);
        if !machines.switch_off(&server.node)? {
            deaf.push(server.node.clone());
        }
    }
    Ok(deaf)
}

/// Removes what `of` finds in all that is there, and ends when it finds nothing any more. What cannot go yet is asked for
/// again, and what the provider refuses keeps no other.
///
/// # Errors
/// Something stays; the error names all of it.
pub fn destroy(
    cloud: &dyn Cloud,
    client: &Client,
    of: impl Fn(&Inventory) -> Vec<Thing>,
    mut tell: impl FnMut(&Thing),
) -> Result<()> {
    let mut told = Vec::new();
    // Why things are still there: for good, and since the last round.
    let (mut refused, mut busy) = (Vec::<(Thing, String)>::new(), Vec::<(Thing, String)>::new());
    let done = client.poll("removing what is left", EVERY, LIMIT, || {
        let all = of(&cloud.inventory()?);
        // What machines are in or known by goes when there are none.
        let servers = all.iter().any(|thing| thing.kind == "server");
        let is_next = |thing: &&Thing| {
            (!servers || thing.kind == "server") && refused.iter().all(|(refused, _)| refused != *thing)
        };
        let next: Vec<Thing> = all.iter().filter(is_next).cloned().collect();
        if next.is_empty() {
            return Ok(Some(all));
        }
        busy.clear();
        for thing in next {
            match cloud.delete(&thing) {
                Ok(()) if told.contains(&thing) => {}
                Ok(()) => {
                    tell(&thing);
                    told.push(thing);
                }
                Err(error) if error.is::<Busy>() => busy.push((thing, format!("{error:#}"))),
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => refused.push((thing, format!("{error:#}"))),
            }
        }
        Ok(None)
    });
    let shown = |thing: &Thing| {
        let why = refused.iter().chain(&busy).find(|(known, _)| known == thing);
        let why = why.map_or("a machine that stays needs it", |(_, why)| why.as_str());
        format!("{} {} ({}): {why}", thing.kind, thing.name, thing.id)
    };
    let listed = |things: &mut dyn Iterator<Item = &Thing>| things.map(shown).collect::<Vec<_>>().join("; ");
    match done {
        Ok(stay) if stay.is_empty() => Ok(()),
        Ok(stay) => bail!("these stay: {}; see to it, and `kimg destroy` goes on", listed(&mut stay.iter())),
        Err(error) if refused.is_empty() && busy.is_empty() => Err(error),
        Err(error) => {
            let known = listed(&mut refused.iter().chain(&busy).map(|(thing, _)| thing));
            Err(error.context(format!("not all is gone, and `kimg destroy` goes on ({known})")))
        }
    }
}
