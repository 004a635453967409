//! How a roll begins, goes on, goes back and ends: lock, journal, engine.

use super::Clock;
use super::api::Kube;
use super::copy::{Kept, LocalCopy};
use super::engine::{Book, Engine, Killed};
use super::journal::{Copied, DataAt, Entry, Journal, Outcome, Step};
use super::lock::{Holder, Verdict};
use super::plan::{self, Node};
use super::skew::Known;
use crate::machines::{Machine, Machines, NO_IMAGE};
use anyhow::{Result, bail};
use jiff::Timestamp;
use node_api::StoreEngine;
use std::collections::BTreeMap;
use std::time::Duration;

const POLL: Duration = Duration::from_secs(2);

/// Takes the lock; waits for one whose holder may be dead.
///
/// # Errors
/// Its holder lives.
pub fn take_lock(
    kube: Kube<'_>,
    me: &Holder,
    clock: &dyn Clock,
    stop: &dyn Fn() -> bool,
    say: &dyn Fn(&str),
) -> Result<()> {
    let (mut first, mut told) = (None, false);
    loop {
        match kube.take_lock(me, &mut first, clock.now())? {
            Verdict::Take | Verdict::Mine => return Ok(()),
            Verdict::Held(holder) => bail!("{holder} rolls this cluster; wait for its end, or end it there"),
            Verdict::Wait(holder, left) => {
                if !told {
                    say(&format!(
                        "{holder} has the lock and may be dead; it is taken over in {} s at most",
                        left.as_secs()
                    ));
                    told = true;
                }
            }
        }
        if stop() {
            bail!(super::engine::Stop);
        }
        clock.sleep(POLL);
    }
}

/// The journal of the last roll, from where it is newer: the cluster or this machine.
pub fn last(kube: Kube<'_>, copy: &LocalCopy) -> Result<Option<Book>> {
    let Some((journal, version)) = kube.journal()? else { return Ok(None) };
    let journal = match copy.read()? {
        Some(kept) if kept.version == version => kept.journal,
        _ => journal,
    };
    Ok(Some(Book { journal, version, apart: false }))
}

/// The same while no API server answers; none where the last roll is not why: it has not touched the master, or has gone
/// on to workers since, whose kubelets must be no newer than their API server.
pub fn last_without_api(copy: &LocalCopy) -> Result<Option<Book>> {
    let Some(Kept { journal, version }) = copy.read()? else { return Ok(None) };
    let touched = journal.nodes.iter().any(|entry| entry.is_alone() && entry.step.touched());
    let gone_on = !journal.back && journal.nodes.iter().any(|entry| !entry.master && entry.step != Step::Waiting);
    Ok((touched && !gone_on).then_some(Book { journal, version, apart: true }))
}

/// The way back for the master alone, which needs no API server. Workers have the image that they had ([`last_without_api`]).
pub fn back_without_api(last: &Journal, machines: &[Machine], now: Timestamp) -> Option<Journal> {
    let entry = last.nodes.iter().find(|entry| entry.is_alone())?;
    // One that was between two images when it went back has no image of before but the one that it was to get.
    let between = (entry.from == NO_IMAGE).then(|| entry.to.clone());
    let from = images_before(last, machines).remove(&entry.node).or(between)?;
    let has = machines.iter().find(|machine| machine.node == entry.node).map(|machine| machine.image.clone());
    let master = Entry {
        from: has.unwrap_or_default(),
        before: Known::default(),
        to: from,
        keep_data: true,
        store: entry.store.map(plan::other_engine),
        step: Step::Replacing,
        since: now,
        why: None,
        ..entry.clone()
    };
    // Whoever waits for its data is not forgotten, and keeps the image that it has.
    let waits = last.nodes.iter().filter(|entry| !entry.master && entry.is_carried()).map(|entry| Entry {
        to: machines
            .iter()
            .find(|m| m.node == entry.node && m.image != NO_IMAGE)
            .map_or(&entry.to, |m| &m.image)
            .clone(),
        step: Step::Waiting,
        since: now,
        why: None,
        ..entry.clone()
    });
    let nodes = std::iter::once(master).chain(waits).collect();
    Some(Journal { started: now, back: true, nodes, outcome: Outcome::Running, ..last.clone() })
}

/// Writes the journal of a new roll over the one of the last, and takes back the tokens that one has left.
pub fn write(kube: Kube<'_>, journal: Journal) -> Result<Book> {
    let last = kube.journal()?;
    let left = last.iter().flat_map(|(last, _)| &last.nodes).filter(|entry| entry.step != Step::Done);
    for id in left.filter_map(|entry| entry.token.as_ref()) {
        kube.delete_token(id)?;
    }
    let version = kube.save(&journal, last.as_ref().map(|(_, version)| version.as_str()))?;
    Ok(Book { journal, version, apart: false })
}

/// Runs the engine to an end and gives the lock back, unless a failpoint ended it.
pub fn run(engine: &mut Engine<'_>, book: &mut Book) -> Result<Outcome> {
    book.journal.resume(engine.clock.now());
    // From here on it is as new as what the cluster has.
    engine.copy.write(&book.journal, &book.version)?;
    (engine.failpoint)("copied")?;
    let result = engine.run(book);
    // While the API server is away, the lock is left to whoever goes on or back.
    if !book.apart && !result.as_ref().is_err_and(|error| error.is::<Killed>()) {
        let released = engine.kube.release_lock(&engine.me);
        if result.is_ok() {
            released?;
        }
    }
    result
}

/// Nodes whose claims' data is with whoever rolled last, since that did not come to its end.
pub fn carried(last: &Journal) -> BTreeMap<String, Vec<Copied>> {
    let waits = last.nodes.iter().filter(|entry| entry.is_carried());
    waits.map(|entry| (entry.node.clone(), entry.copy.clone())).collect()
}

/// The claims whose volumes a roll has copied: on the way back they are again.
pub fn copied(last: &Journal) -> Vec<String> {
    last.nodes.iter().flat_map(|entry| &entry.copy).map(|copied| copied.claim.clone()).collect()
}

/// Gives claims up whose volumes were to be copied by a roll that is under way.
pub fn give_up(journal: &mut Journal, claims: &[String]) {
    for entry in journal.nodes.iter_mut().filter(|entry| entry.data != DataAt::New) {
        if entry.step > Step::Replacing {
            let given_up = entry.copy.iter_mut().filter(|one| claims.contains(&one.claim));
            given_up.for_each(|one| one.lost = true);
        } else {
            // They are deleted before the machine is made anew.
            let given_up = entry.copy.extract_if(.., |one| claims.contains(&one.claim));
            entry.lose.extend(given_up.map(|one| one.claim));
        }
    }
}

/// The images that a journal's nodes had, where their machines have others now, or none that runs, or lack their data.
pub fn images_before(journal: &Journal, machines: &[Machine]) -> BTreeMap<String, String> {
    let has = |entry: &&Entry| {
        let machine = machines.iter().find(|machine| machine.node == entry.node);
        machine.is_some_and(|machine| machine.image != entry.from || !machine.running || entry.is_carried())
    };
    // A spare has no way back: it leaves.
    let nodes = journal.nodes.iter().filter(|entry| !entry.spare);
    nodes.filter(has).map(|entry| (entry.node.clone(), entry.from.clone())).collect()
}

/// Where the stores of a journal's masters go with the images of before.
pub fn stores_before(journal: &Journal) -> BTreeMap<String, StoreEngine> {
    let moved = journal.nodes.iter().filter_map(|entry| Some((entry.node.clone(), plan::other_engine(entry.store?))));
    moved.collect()
}

/// The nodes that a roll has left on their way: their machines may be down while the API server still shows them Ready.
pub fn unsettled(journal: &Journal) -> Vec<String> {
    let on_the_way = journal.nodes.iter().filter(|entry| entry.step.touched() && entry.step != Step::Done);
    on_the_way.map(|entry| entry.node.clone()).collect()
}

/// Adds to a roll back the nodes that the last one had taken from the cluster without touching their machines: they only
/// have to return. So has one that failed as its machine could not be made anew, where it is still kept from pods.
pub fn take_along(back: &mut Journal, last: &Journal, machines: &[Machine], nodes: &[Node]) {
    for entry in &last.nodes {
        let known = back.nodes.iter().any(|known| known.node == entry.node);
        let as_it_was = machines.iter().any(|m| m.node == entry.node && m.image == entry.from && m.running);
        let kept_away = || nodes.iter().any(|node| node.name == entry.node && node.cordoned_by_roll);
        let returns = entry.step.is_active() || entry.step == Step::Failed && kept_away();
        if !known && returns && as_it_was {
            back.nodes.push(Entry {
                to: entry.from.clone(),
                lose: Vec::new(),
                copy: Vec::new(),
                data: DataAt::Old,
                step: Step::Returning,
                boot: String::new(),
                why: None,
                ..entry.clone()
            });
        }
    }
}

/// Nodes that had left, and that `kimg up` has made anew meanwhile, leave once more: cluster.toml names them until the end.
pub fn leave_again(journal: &mut Journal, machines: &[Machine]) {
    let is_there = |machine: &&Machine| machine.running || machine.image != NO_IMAGE;
    let is_back = |entry: &&mut Entry| {
        let mut there = machines.iter().filter(is_there);
        entry.leaves() && entry.step == Step::Done && there.any(|machine| machine.node == entry.node)
    };
    journal.nodes.iter_mut().filter(is_back).for_each(|entry| entry.step = Step::Waiting);
}

/// The images that the images of a rollback are taken from must be there before anything is touched.
pub fn check_held(machines: &dyn Machines, images: &BTreeMap<String, String>) -> Result<()> {
    for (node, image) in images {
        if !machines.holds(image)? {
            bail!(
                "there is no way back for {node}: its image {} is kept no more; build it again (`kimg build worker \
                 --from-manifest`, or as cluster.toml was), then `kimg roll`",
                crate::machines::local::short(image)
            );
        }
    }
    Ok(())
}
