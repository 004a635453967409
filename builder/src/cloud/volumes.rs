//! Data volumes of workers, and of a single master: each outlives its node's machines, and goes from one to the next.
//!
//! A machine is told that it has one, and then waits for it before its services start; it bears a mark that says so. What
//! was made without that keeps its data on its own disk, whatever is attached to it.

use super::machines::of;
use super::{Busy, Cloud, Inventory, Offer, Volume, amount};
use crate::config::Settings;
use crate::web::{Client, Interrupted};
use anyhow::{Result, bail};
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// A provider attaches within seconds, once it is done with the machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Whether what a node's machine holds outlives it.
pub(super) fn keep_data(settings: &Settings, inventory: &Inventory, node: &str) -> bool {
    let wanted = settings.nodes.iter().any(|known| known.entry.name == node && known.data_gb.is_some());
    wanted && inventory.volume(node).is_some() && of(inventory, node).all(|server| server.on_volume)
}

/// Attaches the volume of a node to its machine, and waits until it is.
///
/// # Errors
/// One of the two is gone, or the provider does not attach it.
pub(super) fn attach(cloud: &dyn Cloud, client: &Client, node: &str) -> Result<()> {
    settle(client, &format!("attaching the data volume of {node}"), || {
        let known = cloud.inventory()?;
        // What was made a moment ago may not be listed yet.
        let volume = known.volume(node).ok_or_else(|| Busy("there is no such volume".into()))?;
        let server = of(&known, node).next().ok_or_else(|| Busy("its machine is gone".into()))?;
        match &volume.server {
            Some(at) if *at == server.id => return Ok(true),
            Some(at) => bail!("it is attached to the machine {at}, which is not the node's: detach it there"),
            None => cloud.attach(volume, server)?,
        }
        Ok(false)
    })
}

/// Takes the volume of a node from its machine, and waits until it is nobody's. From others it is not taken.
///
/// # Errors
/// The provider does not detach it.
pub(super) fn free(cloud: &dyn Cloud, client: &Client, node: &str) -> Result<()> {
    settle(client, &format!("detaching the data volume of {node}"), || {
        let known = cloud.inventory()?;
        let Some((volume, at)) = known.volume(node).and_then(|volume| Some((volume, volume.server.as_ref()?))) else {
            return Ok(true);
        };
        if of(&known, node).any(|server| server.id == *at) {
            cloud.detach(volume)?;
            return Ok(false);
        }
        bail!("it is attached to the machine {at}, which is not the node's: detach it there")
    })
}

/// Asks until it is so; what the provider said last stands in the error.
fn settle(client: &Client, what: &str, step: impl Fn() -> Result<bool>) -> Result<()> {
    let mut last = String::new();
    let done = client.poll(what, EVERY, LIMIT, || match step() {
        Err(error) if error.is::<Busy>() => {
            last = format!("{error:#}");
            Ok(None)
        }
        done => Ok(done?.then_some(())),
    });
    done.map_err(|error| if last.is_empty() || error.is::<Interrupted>() { error } else { error.context(last) })
}

/// A volume as people read of it.
pub fn shown(volume: &Volume, offer: &Offer) -> String {
    let price = match offer.volume_price(volume.gb) {
        None => "its price is not known".into(),
        price => format!("{} a month", amount(price, &offer.currency)),
    };
    format!("data volume {} of {} ({} GB, {price})", volume.id, volume.node, volume.gb)
}

/// Volumes that no node of `cluster.toml` has, a sentence for each: they hold data, so they stay.
pub fn left(settings: &Settings, inventory: &Inventory, offer: &Offer) -> Vec<String> {
    let has = |node: &str| settings.nodes.iter().any(|known| known.entry.name == node && known.data_gb.is_some());
    let line = |volume: &Volume| {
        let (shown, node) = (shown(volume, offer), &volume.node);
        if of(inventory, node).any(|server| server.on_volume) {
            return format!(
                "the {shown} is that of a machine, and {node} has no data-gb in cluster.toml: write data-gb = {} there, or its \
                 next machine comes without what is on it",
                volume.gb
            );
        }
        format!(
            "the {shown} is of no node that has data-gb in cluster.toml; it stays, and costs money: `kimg destroy --node {node} \
             --data` removes it"
        )
    };
    inventory.volumes.iter().filter(|volume| !has(&volume.node)).map(line).collect()
}
