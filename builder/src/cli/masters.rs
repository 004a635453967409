//! `kimg scale masters N`: from one master to several that share etcd, and back.
//!
//! More: the store moves to etcd with another image of the one master; `cluster.toml` gets the others, and the masters that
//! are there an image that knows them; then they join, one after the other. What is done already is seen from `cluster.toml`
//! and from the VMs, so that the same command goes on wherever it was ended.
//! Fewer: a roll whose last masters leave etcd and are removed; then `cluster.toml` is without them.

mod at_provider;

use super::roll::{self, RollArgs};
use super::scale::{self, ScaleArgs};
use super::{image, vm};
use crate::client::node::Refused;
use crate::config::{FILE_NAME, Settings, edit};
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::local::state::State;
use crate::local::{down, up};
use crate::node::members::Masters;
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::roll::members::{self, Members};
use anyhow::{Context, Result, bail};
use node_api::StoreEngine;
use node_metadata::Role;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a new master may take to be a member of etcd once its node is Ready, with KVM; see
/// [`crate::local::Accel::patience`].
const JOIN_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(500);

/// What there may be.
///
/// # Errors
/// Bad input.
pub(super) fn check(count: usize) -> Result<()> {
    if ![1, 3, 5].contains(&count) {
        return input::bad(format!(
            "{count} masters cannot be had: etcd goes on while more than half of them are there, so that it is 1, 3 or 5"
        ));
    }
    Ok(())
}

pub(super) fn run(args: &ScaleArgs, settings: &Settings) -> Result<ExitCode> {
    let masters = names(settings);
    if settings.provider.is_some() && args.count >= masters.len() {
        return at_provider::grow(args, settings);
    }
    if args.count < masters.len() {
        return shrink(args, settings, &masters[args.count..]);
    }
    let change = Change::of(settings, args.count)?;
    if change.is_nothing() {
        println!("{FILE_NAME} names {} master{}", masters.len(), if masters.len() == 1 { "" } else { "s" });
        if !args.dry_run {
            vm::up(&vm::UpArgs { components: args.components.clone(), yes: args.yes }, settings)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", change.text(settings));
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
        return input::bad("nothing was changed; --yes says yes in advance");
    }
    grow(args, settings, &change)
}

fn names(settings: &Settings) -> Vec<String> {
    settings.nodes_of(Role::Master).map(|node| node.entry.name.clone()).collect()
}

/// What is to be done for more masters.
#[derive(Debug)]
struct Change {
    /// The file with the store in etcd, where it is not.
    engine: Option<(String, Settings)>,
    /// The file with all masters, where it is not.
    nodes: Option<(String, Settings)>,
    /// Those that are still to be made.
    missing: Vec<String>,
    /// VMs were made already.
    runs: bool,
}

impl Change {
    /// Found before anything is touched.
    fn of(settings: &Settings, count: usize) -> Result<Change> {
        let masters = names(settings);
        let embedded = settings.store == node_metadata::StoreEngine::Embedded;
        let engine = match embedded && count > 1 {
            false => None,
            true => {
                let text = edit::with_store(&settings.text, "etcd");
                let all = settings.nodes.iter().map(|node| node.entry.name.clone()).collect();
                let (_, new) = scale::edited(settings, &text, all, "say store = \"etcd\"")?;
                if new.store == node_metadata::StoreEngine::Embedded {
                    return input::bad(format!("{FILE_NAME}: write store = \"etcd\" there, above all tables"));
                }
                Some((text, new))
            }
        };
        let from = engine.as_ref().map_or(settings, |(_, new)| new);
        let nodes = if count > masters.len() { Some(with_more(from, count)?) } else { None };
        let all = names(nodes.as_ref().map_or(from, |(_, new)| new));
        let has_disk = |name: &String| settings.run_dir().join(name).join("disk.raw").exists();
        let runs = !State::load(&settings.run_dir())?.vms.is_empty();
        Ok(Change { engine, nodes, missing: all.into_iter().filter(|name| !has_disk(name)).collect(), runs })
    }

    fn is_nothing(&self) -> bool {
        self.engine.is_none() && self.nodes.is_none() && (self.missing.is_empty() || !self.runs)
    }

    fn text(&self, settings: &Settings) -> String {
        let mut lines = Vec::new();
        let there =
            names(settings).into_iter().filter(|name| !self.missing.contains(name)).collect::<Vec<_>>().join(", ");
        if self.engine.is_some() {
            lines.push(format!("{FILE_NAME} says store = \"etcd\""));
        }
        if self.engine.is_some() && self.runs {
            lines.push(format!(
                "{there}: another image, and its store moves to etcd; the API is away for some seconds, pods run on"
            ));
        }
        if self.nodes.is_some() {
            lines.push(format!("{FILE_NAME} gets {}, with their addresses", self.missing.join(", ")));
        }
        if self.runs {
            let gap = if there.contains(',') { "" } else { "; the API is away for some seconds, pods run on" };
            lines.push(format!("{there}: an image that knows {}{gap}", self.missing.join(", ")));
        }
        let size = settings.local.master;
        lines.push(format!(
            "{}: made one after the other, and each joins etcd before the next; {} MiB of memory and up to {} MiB of disk each",
            self.missing.join(", "),
            size.memory_mib,
            size.disk_mib
        ));
        lines.join("\n")
    }
}

/// The file with so many masters, each with its address.
fn with_more(settings: &Settings, count: usize) -> Result<(String, Settings)> {
    let all: Vec<String> = settings.nodes.iter().map(|node| node.entry.name.clone()).collect();
    let masters = names(settings);
    let last = masters.last().context("cluster.toml names no master")?;
    let mut text = settings.text.clone();
    for node in settings.nodes_of(Role::Master).filter(|node| node.unaddressed) {
        text = edit::with_address(&text, &node.entry.name, node.local_address.into());
    }
    let used: Vec<IpAddr> = settings
        .nodes
        .iter()
        .flat_map(|node| node.entry.addresses.iter().copied().chain([node.local_address.into()]))
        .collect();
    let network = settings.local.network;
    let free = network.hosts().skip(9).map(IpAddr::V4).filter(|address| !used.contains(address));
    let more = count - masters.len();
    let new: Vec<(String, Option<IpAddr>)> =
        scale::new_names(&all, Some(last), more, "master-").into_iter().zip(free.map(Some)).collect();
    if new.len() < more {
        return input::bad(format!("{network} has no address left for {more} masters; write a wider local.network"));
    }
    text = edit::with_masters(&text, &new, last);
    let wanted = all.iter().cloned().chain(new.iter().map(|(name, _)| name.clone())).collect();
    let (_, grown) = scale::edited(settings, &text, wanted, "add masters")?;
    // Whoever has an address keeps it.
    let moved = settings
        .nodes
        .iter()
        .find(|node| grown.node(&node.entry.name).map_or(true, |now| now.local_address != node.local_address));
    match moved {
        Some(node) => input::bad(format!(
            "with more masters {} would have another address; write `addresses` for each node in {FILE_NAME} first",
            node.entry.name
        )),
        None if grown.nodes_of(Role::Master).count() != count => input::bad(format!(
            "kimg cannot add masters to {FILE_NAME}; write them there, each as a [[nodes]] table with role and addresses"
        )),
        None => Ok((text, grown)),
    }
}

fn grow(args: &ScaleArgs, settings: &Settings, change: &Change) -> Result<ExitCode> {
    let path = settings.dir.join(FILE_NAME);
    let mut settings = settings.clone();
    if !change.runs {
        // Nobody is there who could be moved: they begin together.
        if let Some((text, new)) = change.nodes.as_ref().or(change.engine.as_ref()) {
            scale::write(&path, text, &settings.text)?;
            settings = new.clone();
        }
        vm::up(&vm::UpArgs { components: args.components.clone(), yes: true }, &settings)?;
        return Ok(ExitCode::SUCCESS);
    }
    let known = names(&settings);
    if let Some((text, new)) = &change.engine {
        scale::write(&path, text, &settings.text)?;
        settings = new.clone();
    }
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    if let [only] = known.as_slice() {
        let masters = Masters::new(&settings, &secrets);
        // One whose image has etcd goes at once to the image that knows all.
        if !masters.has_etcd(only)? && !replaced(args, &settings, &[])? {
            return Ok(ExitCode::FAILURE);
        }
        in_etcd(&masters, only)?;
    }
    if let Some((text, new)) = &change.nodes {
        scale::write(&path, text, &settings.text)?;
        settings = new.clone();
    }
    if !replaced(args, &settings, &change.missing)? {
        return Ok(ExitCode::FAILURE);
    }
    let masters = Masters::new(&settings, &secrets);
    let there: Vec<String> = names(&settings).into_iter().filter(|name| !change.missing.contains(name)).collect();
    if let [only] = there.as_slice() {
        in_etcd(&masters, only)?;
    }
    let progress = Progress::new();
    let images = image::ensure_images(&settings, args.components.as_deref(), &progress)?;
    let patience = down::patience(&State::load(&settings.run_dir())?);
    let members = settings.members();
    up::up_by_masters(&settings, &images, &progress, &|name| {
        let own = members.get(name).with_context(|| format!("{name} has no address"))?;
        joined(&masters, own, JOIN_LIMIT * patience).with_context(|| format!("{name} does not join the other masters"))
    })?;
    println!("cluster {} has {} masters, here and in {FILE_NAME}", settings.name, members.len());
    println!(
        "workers find them by the API; `kimg roll workers` gives them the image that knows all from its first moment"
    );
    next(&format!("{} status{}", program(), dir_flag(&settings)));
    Ok(ExitCode::SUCCESS)
}

/// Builds what is to be built, and puts it under the masters that are there; whether all went well.
fn replaced(args: &ScaleArgs, settings: &Settings, later: &[String]) -> Result<bool> {
    image::ensure_images(settings, args.components.as_deref(), &Progress::new())?;
    let roll = RollArgs { nodes: vec!["master".into()], leave_out: later.to_vec(), ..args.roll() };
    roll::replace(&roll, settings)
}

/// Sees to it that a single master's store is in the etcd of its image, which others can join.
fn in_etcd(masters: &Masters<'_>, master: &str) -> Result<()> {
    match masters.list() {
        Ok(_) => Ok(()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(Refused::is_conflict) => {
            println!("{master}: {}", masters.move_store(master, StoreEngine::Etcd)?);
            Ok(())
        }
        Err(error) => Err(error.context("asking whether the store is in etcd")),
    }
}

/// Waits until a member is one that counts.
fn joined(masters: &dyn Members, name: &str, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let lacks = match masters.list() {
            Ok(list) => members::lacks(&list, name),
            Err(error) => Some(format!("{error:#}")),
        };
        match lacks {
            None => return Ok(()),
            Some(why) if begun.elapsed() > limit => bail!("{why}, and that for {} s", limit.as_secs()),
            Some(_) => std::thread::sleep(POLL),
        }
    }
}

/// The last ones go first.
fn shrink(args: &ScaleArgs, settings: &Settings, gone: &[String]) -> Result<ExitCode> {
    let gone: Vec<String> = gone.iter().rev().cloned().collect();
    let Some(journal) = scale::removed(args, settings, &gone)? else { return Ok(ExitCode::SUCCESS) };
    let settings = scale::forget(settings, &journal)?;
    // It may name one that is gone.
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    match settings.provider {
        Some(_) => at_provider::stay(&settings)?,
        None => drop(up::write_kubeconfig(&settings, &secrets)?),
    }
    let left = settings.nodes_of(Role::Master).count();
    let dir = dir_flag(&settings);
    if left != args.count {
        println!("not all masters have left; `kimg scale masters {}{dir}` goes on", args.count);
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "cluster {} has {left} master{}, here and in {FILE_NAME}",
        settings.name,
        if left == 1 { "" } else { "s" }
    );
    println!("`kimg build all{dir}` and `kimg roll{dir}` put images under the nodes that know no more of the others");
    next(&format!("{} status{dir}", program()));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const TEXT: &str = "\
name = \"demo\" # mine

[[nodes]]
name = \"master-1\"
role = \"master\"
[nodes.labels]
disk = \"ssd\"

[[nodes]]
name = \"w1\"
role = \"worker\"
";

    fn settings(dir: &std::path::Path, text: &str) -> Settings {
        std::fs::write(dir.join(FILE_NAME), text).expect("written");
        config::load(dir).expect("valid")
    }

    #[test]
    fn the_file_gets_etcd_and_masters_with_addresses_and_nobody_moves() {
        let dir = tempfile::tempdir().expect("dir");
        let before = settings(dir.path(), TEXT);
        let change = Change::of(&before, 3).expect("a change");
        let (_, etcd) = change.engine.as_ref().expect("moves");
        assert_eq!((etcd.store, etcd.nodes.len()), (node_metadata::StoreEngine::Etcd, 2));
        let (text, all) = change.nodes.as_ref().expect("more");
        assert!(text.starts_with("name = \"demo\" # mine\nstore = \"etcd\"\n"), "{text}");
        assert!(text.contains("name = \"master-1\"\naddresses = [\"10.77.0.10\"]\nrole = \"master\"\n"), "{text}");
        assert!(
            text.contains("name = \"master-2\"\nrole = \"master\"\naddresses = [\"10.77.0.12\"]\n[nodes.labels]\n"),
            "{text}"
        );
        assert_eq!(all.node("w1").expect("w1").local_address, before.node("w1").expect("w1").local_address);
        assert_eq!(all.members().len(), 3);
        assert!(change.text(&before).contains("master-2, master-3"), "{}", change.text(&before));
        // Where it is so already, it is gone on with.
        let after = settings(dir.path(), text);
        let change = Change::of(&after, 3).expect("a change");
        assert!(change.engine.is_none() && change.nodes.is_none() && change.is_nothing());
        assert_eq!(names(&after).len(), change.missing.len());
        let five = Change::of(&after, 5).expect("a change").nodes.expect("more");
        assert_eq!(five.1.members()["master-5"], "10.77.0.15");
    }

    #[test]
    fn what_cannot_be_is_said_before_anything_is_done() {
        let dir = tempfile::tempdir().expect("dir");
        for count in [0, 2, 4, 6] {
            let error = check(count).expect_err("refused");
            assert!(error.is::<input::BadInput>() && error.to_string().contains("1, 3 or 5"), "{error}");
        }
        check(3).expect("fine");
        let inline = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let error = Change::of(&settings(dir.path(), inline), 3).expect_err("by hand");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("by hand"), "{error}");
    }
}
