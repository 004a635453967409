//! A VM made anew from another image, with its name, addresses and ports: one step of `kimg roll`.

use super::accel::Accel;
use super::interrupt::Interrupt;
use super::state::{self, State, Vm};
use super::up::{self, ImageFile, Starter};
use super::{disk, down, switch};
use crate::config::{NodeSettings, Settings};
use crate::machines::{Data, Ended};
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::seed::token::BootstrapToken;
use anyhow::{Context, Result};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Ends the VM, puts the image under its disk (or makes a new disk) and starts it with a seed that says what it begins with.
/// A spare's is made where there is none.
/// The VM has ended before its disk is touched, and its disk has one name: a master's store never has two writers.
/// Called again after an interruption, it begins anew and comes to the same.
///
/// # Errors
/// The VM cannot be ended or started, or there is no room for the disk.
pub fn rebuild(
    settings: &Settings,
    secrets: &Secrets,
    node: &NodeSettings,
    image: &ImageFile,
    token: Option<&BootstrapToken>,
    data: Data,
    progress: &Progress,
) -> Result<Ended> {
    let (run_dir, _lock) = state::lock(settings)?;
    let name = &node.entry.name;
    let mut state = State::load(&run_dir)?;
    let accel = if state.accel == "kvm" { Accel::Kvm } else { Accel::Tcg };
    let patience = down::patience(&state);
    let several = state.vms.values().filter(|vm| vm.role == Role::Master).count() > 1;
    if node.spare && !state.vms.contains_key(name) {
        // It comes with the roll, and goes with it.
        state.vms.insert(name.clone(), Vm::new(node.entry.role, &image.id));
        switch::ensure(&run_dir, settings, &mut state)?;
    }
    let vm =
        state.vms.get_mut(name).with_context(|| format!("{name} is no VM on this machine; start it with `kimg up`"))?;
    // Without room the old machine would end for nothing.
    let used = |path: &Path| std::fs::metadata(path).map_or(0, |known| (known.blocks() * 512) >> 20);
    let (new, old) = (used(&image.path), used(&run_dir.join(name).join("disk.raw")));
    let needed = match data {
        Data::Stays => new + old,
        Data::Goes => new.saturating_sub(old),
        Data::JoinsEtcd | Data::AwaitsBackup => new,
    };
    disk::check_space(&run_dir, needed)?;
    let ended = down::stop(&run_dir, secrets, name, vm, patience)?;
    vm.process = None;
    vm.token = token.map(ToString::to_string);
    let api_port = vm.api_port;
    let disk_file = run_dir.join(name).join("disk.raw");
    vm.awaits_backup = data == Data::AwaitsBackup || (data == Data::Stays && vm.awaits_backup);
    // Also where its data is to stay: where it is not there, no other cluster is begun.
    vm.joins_etcd = vm.role == Role::Master && several && data != Data::AwaitsBackup;
    vm.new_disk |= vm.joins_etcd;
    match data {
        Data::Stays => renew_disk(vm, image, &disk_file)?,
        Data::Goes => down::remove_file(&disk_file)?,
        Data::JoinsEtcd | Data::AwaitsBackup => set_aside(&disk_file)?,
    }
    state.save(&run_dir)?;
    let state = Mutex::new(state);
    let images = BTreeMap::from([(node.entry.role, image.clone())]);
    let interrupt = Interrupt::default();
    let starter =
        Starter { settings, secrets, images: &images, accel, run_dir: &run_dir, state: &state, interrupt: &interrupt };
    starter.ensure(node, &progress.step(&format!("{name}: starting")))?;
    let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(vm) = state.vms.get_mut(name) {
        // Whoever asked for this sees to it that the node joins.
        vm.new_disk = false;
    }
    state.save(&run_dir)?;
    if state.vms.get(name).is_some_and(|vm| vm.api_port != api_port) {
        // Somebody else has taken the port meanwhile.
        up::write_kubeconfig(settings, secrets)?;
    }
    Ok(ended)
}

/// Ends a master's VM, and sets its disk aside: with the next one it joins the others.
///
/// # Errors
/// It cannot be ended.
pub fn retire(settings: &Settings, secrets: &Secrets, name: &str) -> Result<()> {
    let (run_dir, _lock) = state::lock(settings)?;
    let mut state = State::load(&run_dir)?;
    let patience = down::patience(&state);
    let Some(vm) = state.vms.get_mut(name) else { return Ok(()) };
    down::stop(&run_dir, secrets, name, vm, patience)?;
    vm.process = None;
    (vm.joins_etcd, vm.new_disk) = (true, true);
    set_aside(&run_dir.join(name).join("disk.raw"))?;
    state.save(&run_dir)
}

/// What is on a disk that nobody wants may still be the only copy of something.
fn set_aside(disk_file: &Path) -> Result<()> {
    if !disk_file.exists() {
        return Ok(());
    }
    let aside = disk_file.with_file_name(format!("disk-until-{}.raw", jiff::Timestamp::now().as_second()));
    std::fs::rename(disk_file, &aside).with_context(|| format!("naming {}", aside.display()))
}

/// Also where the image is the one that the disk was made from: what is broken may be the disk.
fn renew_disk(vm: &mut Vm, image: &ImageFile, disk_file: &Path) -> Result<()> {
    if disk_file.exists() {
        disk::remove_leftovers(disk_file.parent().context("a disk lies in a folder")?)?;
        disk::replace_image(&image.path, disk_file)?;
        vm.turn_to(&image.id);
    }
    Ok(())
}
