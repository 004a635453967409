//! Whether the VMs that `kimg up` starts work together with those that run, and with the store that they find.

use super::state::{State, Vm};
use super::up::ImageFile;
use crate::client::block_on;
use crate::config::{NodeSettings, Settings};
use crate::input;
use crate::node::Target;
use crate::roll::copy::LocalCopy;
use crate::roll::skew::{self, Level, Stand};
use anyhow::{Context, Result};
use node_api::{NodeStatus, Release, path};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a node may take to say what it is.
const ASK: Duration = Duration::from_secs(5);

/// What is started gets the image that is built here, and a disk that is there its store.
///
/// # Errors
/// Bad input: what would not work together.
pub(super) fn check(
    settings: &Settings,
    state: &State,
    images: &BTreeMap<Role, ImageFile>,
    wanted: &[&NodeSettings],
) -> Result<()> {
    let runs = |name: &str| state.vms.get(name).is_some_and(Vm::running);
    let (running, starting): (Vec<&NodeSettings>, Vec<&NodeSettings>) =
        wanted.iter().copied().partition(|node| runs(&node.entry.name));
    if starting.is_empty() {
        return Ok(());
    }
    let stand = |node: &NodeSettings, level: Option<Level>| {
        Some(Stand { node: node.entry.name.clone(), master: node.entry.role == Role::Master, level: level? })
    };
    let now: Vec<Stand> = running.iter().filter_map(|node| stand(node, level(settings, &node.entry.name))).collect();
    let (masters, workers): (Vec<&NodeSettings>, Vec<&NodeSettings>) =
        starting.into_iter().partition(|node| node.entry.role == Role::Master);
    // One that goes on with its image is what it was, whatever others have become.
    let changes = |node: &&&NodeSettings| {
        let (vm, image) = (state.vms.get(&node.entry.name), images.get(&node.entry.role));
        vm.map(|vm| &vm.image) != image.map(|image| &image.id)
    };
    let starting = masters.iter().chain(&workers).filter(changes);
    let gets: Vec<Stand> = starting.filter_map(|node| stand(node, Level::this())).collect();
    skew::check(&now, &gets).or_else(input::bad)?;
    let last = LocalCopy::of(&settings.run_dir()).read()?;
    let Some(store) = last.and_then(|kept| kept.journal.store) else { return Ok(()) };
    for name in masters.iter().map(|node| &node.entry.name) {
        if state.vms.get(name).is_some_and(|vm| !vm.new_disk && !vm.awaits_backup) {
            skew::check_store(name, Some(&Release::this()), &store).or_else(input::bad)?;
        }
    }
    Ok(())
}

/// The level of a node that runs; none where it does not answer.
fn level(settings: &Settings, name: &str) -> Option<Level> {
    let target = Target { node: Some(name.to_owned()), ..Target::default() };
    let asked = async {
        let client = target.client(settings)?;
        tokio::time::timeout(ASK, client.get::<NodeStatus>(path::STATUS)).await.context("asking the node")?
    };
    skew::level_of(block_on(asked).ok()?.states.as_ref())
}
