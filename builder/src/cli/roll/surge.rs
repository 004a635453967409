//! `--max-surge`: spare workers, which stand in `cluster.toml` for the time of a roll.
//!
//! They are written there before the roll begins, which makes them, and are taken out when it has removed them. Whoever
//! finds them there otherwise, because something ended in between, does away with them.

use super::{Command, Place, RollArgs, at_place};
use crate::cli::scale;
use crate::config::{self, FILE_NAME, Settings, edit};
use crate::input;
use crate::machines::{Machines, NO_IMAGE};
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::roll::begin;
use crate::roll::copy::LocalCopy;
use crate::roll::journal::Outcome;
use crate::roll::plan::Amount;
use crate::roll::spares;
use anyhow::{Context, Result};
use std::net::IpAddr;

/// A cluster as a roll needs it.
pub(super) struct Grown {
    pub(super) settings: Settings,
    /// How many spares stand in for workers.
    pub(super) surge: usize,
    /// `cluster.toml` as it was read, and with the spares that it lacks.
    text: Option<(String, String)>,
}

/// Finds out what a roll needs; nothing is changed yet.
///
/// # Errors
/// Bad input: what was asked for is wrong, or cannot be had.
pub(super) fn grown(args: &RollArgs, settings: &Settings) -> Result<Grown> {
    let spare = |name: &&String| settings.spares().any(|node| node.entry.name == **name);
    if let Some(name) = args.nodes.iter().find(spare) {
        return input::bad(format!(
            "{name} is a spare, which a roll removes at its end; name the nodes that are to stay"
        ));
    }
    let surge = args.max_surge.filter(|surge| !matches!(surge, Amount::Number(0) | Amount::Percent(0)));
    if surge.is_none() && matches!(args.max_unavailable, Some(Amount::Number(0))) {
        return input::bad(
            "--max-unavailable 0 without --max-surge lets no node go; say --max-surge 1, or leave it out",
        );
    }
    if !args.dry_run && (surge.is_some() || settings.spares().next().is_some()) {
        scale::check_writable(settings)?;
    }
    let as_it_is = |surge| Grown { settings: settings.clone(), surge, text: None };
    if surge.is_none() {
        return Ok(as_it_is(0));
    }
    let replaced = at_place(settings, |secrets, place, machines| replaced(args, settings, secrets, place, machines))?;
    let lasting: Vec<&str> = settings.lasting_workers().map(|node| node.entry.name.as_str()).collect();
    let surge = spares::surge(surge, lasting.len(), replaced);
    let more = surge.saturating_sub(settings.spares().count());
    let (Some(last), true) = (lasting.last(), more > 0) else { return Ok(as_it_is(surge)) };
    let (text, grown) = with_more(settings, last, more)?;
    Ok(Grown { settings: grown, surge, text: Some((settings.text.clone(), text)) })
}

/// How many workers a new roll would replace; none where it goes on with one, or the cluster is not fit for one.
fn replaced(
    args: &RollArgs,
    settings: &Settings,
    secrets: &Secrets,
    place: &Place<'_>,
    machines: &mut dyn Machines,
) -> Result<usize> {
    let copy = LocalCopy::of(&settings.run_dir());
    let command = Command { args, settings, secrets, place, copy: &copy, surge: 0, progress: Progress::hidden() };
    let kube = command.kube();
    if kube.check_ready().is_err() {
        return Ok(0);
    }
    if begin::last(kube, &copy)?.is_some_and(|last| last.journal.outcome == Outcome::Running) {
        return Ok(0);
    }
    let (wish, _) = command.wish()?;
    let plan = command.make(&wish, &machines.list()?)?;
    Ok(plan.nodes.iter().filter(|item| !item.is_master() && !item.spare).count())
}

/// The file with more spares, which are like the last worker.
fn with_more(settings: &Settings, last: &str, more: usize) -> Result<(String, Settings)> {
    let all: Vec<String> = settings.nodes.iter().map(|node| node.entry.name.clone()).collect();
    let names = scale::new_names(&all, Some(last), more, "worker-");
    // A written address moves nobody who has the next free one.
    let used: Vec<IpAddr> = settings.nodes.iter().map(|node| node.local_address.into()).collect();
    let written: Vec<IpAddr> = settings.nodes.iter().flat_map(|node| node.entry.addresses.iter().copied()).collect();
    let free = settings.local.network.hosts().skip(9).map(IpAddr::V4);
    let mut free = free.filter(|address| !used.contains(address) && !written.contains(address));
    let at_provider = settings.provider.is_some();
    let spare = |name: &String| (name.clone(), if at_provider { None } else { free.next() });
    let spares: Vec<(String, Option<IpAddr>)> = names.iter().map(spare).collect();
    let after =
        all.iter().rfind(|name| settings.nodes_of(node_metadata::Role::Worker).any(|node| node.entry.name == **name));
    let text = edit::with_spares(&settings.text, &spares, after.context("there is no worker")?, last);
    let wanted = all.iter().chain(&names).cloned().collect();
    let (_, grown) = scale::edited(settings, &text, wanted, &format!("add the spare {}", names.join(", ")))?;
    if let (None, Some(fault)) = (&grown.provider, &grown.local.fault) {
        return Err(fault.clone().into());
    }
    if grown.spares().count() != settings.spares().count() + more {
        return input::bad(format!(
            "kimg cannot add spares to {FILE_NAME}; write each node there as a [[nodes]] table"
        ));
    }
    Ok((text, grown))
}

impl Grown {
    /// From here on the spares are the cluster's, whoever goes on.
    pub(super) fn write(&self) -> Result<()> {
        match &self.text {
            Some((read, text)) => scale::write(&self.settings.dir.join(FILE_NAME), text, read),
            None => Ok(()),
        }
    }
}

impl Command<'_> {
    /// Takes the spares out of `cluster.toml` of which nothing is there any more, unless a roll still needs them, and says
    /// which are left.
    pub(super) fn settle_spares(&self, machines: &dyn Machines) -> Result<()> {
        let written = config::load(&self.settings.dir)?;
        if written.spares().next().is_none() {
            return Ok(());
        }
        let kube = self.kube();
        // Where the API server does not answer, nobody knows, and the next roll does it.
        let (Ok(last), Ok(nodes)) = (begin::last(kube, self.copy), kube.nodes()) else { return Ok(()) };
        if last.is_some_and(|last| last.journal.outcome == Outcome::Running) {
            return Ok(());
        }
        let listed = machines.list()?;
        let is_there = |name: &String| {
            let made = |machine: &&crate::machines::Machine| machine.running || machine.image != NO_IMAGE;
            nodes.iter().any(|node| node.name == *name)
                || listed.iter().filter(made).any(|machine| machine.node == *name)
        };
        let names = written.spares().map(|node| node.entry.name.clone());
        let gone: Vec<String> = names.filter(|name| !is_there(name)).collect();
        let left = scale::take_out(&written, gone)?;
        if let Some(sentence) = left.spares_left().filter(|_| !self.args.json) {
            println!("{sentence}");
        }
        Ok(())
    }

    /// What spares are beside the others, before anybody agrees to them.
    pub(super) fn spare_notes(&self) -> Vec<String> {
        if self.settings.provider.is_some() {
            return self.place.prices.clone();
        }
        let size = self.settings.local.worker;
        vec![format!(
            "a spare is another VM on this machine, of {} MiB of memory and up to {} MiB of disk",
            size.memory_mib, size.disk_mib
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &std::path::Path, more: &str, address: &str) -> Settings {
        let node = |name: &str, role: &str| format!("[[nodes]]\nname = \"{name}\"\nrole = \"{role}\"\n{address}");
        let nodes = [node("w-1", "worker"), node("w-2", "worker"), node("m", "master").replace(address, "")].concat();
        std::fs::write(dir.join(FILE_NAME), format!("name = \"demo\"\n{more}{nodes}")).expect("written");
        config::load(dir).expect("valid")
    }

    #[test]
    fn spares_come_behind_the_last_worker_and_move_nobody() {
        let dir = tempfile::tempdir().expect("dir");
        let before = settings(dir.path(), "", "labels = { disk = \"ssd\" }\n");
        let (text, grown) = with_more(&before, "w-2", 2).expect("room");
        let spares: Vec<&str> = grown.spares().map(|node| node.entry.name.as_str()).collect();
        assert_eq!((spares, grown.lasting_workers().count()), (vec!["w-3", "w-4"], 2), "{text}");
        for node in &before.nodes {
            let now = grown.node(&node.entry.name).expect("known");
            assert_eq!((now.local_address, &now.entry), (node.local_address, &node.entry));
        }
        for spare in grown.spares() {
            assert!(!spare.unaddressed && spare.entry.labels == before.nodes[0].entry.labels, "{spare:?}");
        }
        // Another one behind those that a roll has left.
        let (text, more) = with_more(&grown, "w-2", 1).expect("room");
        assert_eq!(more.spares().count(), 3, "{text}");
        let moved = |node: &&crate::config::NodeSettings| {
            more.node(&node.entry.name).is_ok_and(|now| now.local_address != node.local_address)
        };
        assert_eq!(grown.nodes.iter().filter(moved).count(), 0, "{text}");
        let provider = "[provider]\nname = \"hetzner\"\nregion = \"nbg1\"\ntype = \"cx23\"\n";
        let (text, grown) = with_more(&settings(dir.path(), provider, "data-gb = 20\n"), "w-2", 1).expect("room");
        assert!(grown.spares().all(|node| node.unaddressed && node.data_gb.is_none()), "{text}");
        // No room for it in the network.
        let narrow = settings(dir.path(), "local = { network = \"10.77.0.0/28\" }\n", "");
        let error = with_more(&narrow, "w-2", 4).expect_err("no room");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("add the spare"), "{error:#}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anybody_is_asked() {
        let dir = tempfile::tempdir().expect("dir");
        let before = settings(dir.path(), "", "");
        let (text, grown) = with_more(&before, "w-2", 1).expect("room");
        std::fs::write(dir.path().join(FILE_NAME), text).expect("written");
        let none = RollArgs { max_unavailable: Some(Amount::Number(0)), ..RollArgs::plain() };
        let named = RollArgs { nodes: vec!["w-3".into()], ..RollArgs::plain() };
        for (args, says) in [(none, "say --max-surge 1"), (named, "w-3 is a spare")] {
            let error = super::grown(&args, &grown).err().expect("refused");
            assert!(error.is::<input::BadInput>() && error.to_string().contains(says), "{error:#}");
        }
        let file = dir.path().join(FILE_NAME);
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).expect("read-only");
        let error = super::grown(&RollArgs::plain(), &grown).err().expect("read-only");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("chmod u+w"), "{error:#}");
        // Without spares nobody writes there.
        let plain = super::grown(&RollArgs::plain(), &before).expect("as ever");
        assert!(plain.surge == 0 && plain.text.is_none());
    }
}
