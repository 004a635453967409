//! What is done with masters: a single one with its store, while the API is away; one of several, while the others serve.

use super::{BACKUP_PATIENCE, Book, Engine, Killed, Pace};
use crate::client::node::Refused;
use crate::input::BadInput;
use crate::machines::{Data, Order, local::short};
use crate::roll::journal::{Entry, Step};
use crate::roll::members;
use crate::roll::plan::Node;
use anyhow::Result;
use node_api::StoreEngine;
use std::time::Duration;

impl Engine<'_> {
    pub(super) fn await_api(&mut self, book: &mut Book, index: usize, entry: &Entry, pace: &mut Pace) -> Result<()> {
        if entry.store == Some(StoreEngine::Etcd) && entry.step == Step::Booting && !entry.moved {
            // Until then its API server opens neither store.
            pace.unmoved = self.move_store(&entry.node, StoreEngine::Etcd).err().map(|error| format!("{error:#}"));
            if pace.unmoved.is_none() {
                book.journal.nodes[index].moved = true;
                self.save(book, &format!("moved:{}", entry.node))?;
            }
        }
        if let Some(why) = self.panics(entry) {
            return self.give_up(book, index, Step::Failed, why).map(drop);
        }
        if !self.overdue(book, entry, pace) {
            let sentence = self.boots(&entry.node);
            self.say_now_and_then(&entry.node, &sentence, pace);
            return Ok(());
        }
        let error = pace.unheard.take().unwrap_or_default();
        let state = match pace.unmoved.take() {
            Some(why) => format!("its store is not moved to etcd ({why})"),
            None => format!("its API server does not answer ({error})"),
        };
        let why = self.not_back(book, entry, &state);
        self.give_up(book, index, Step::Failed, why).map(drop)
    }

    pub(super) fn move_store(&self, node: &str, to: StoreEngine) -> Result<()> {
        let said = self.members.move_store(node, to)?;
        (self.say)(&format!("{node}: {said}"));
        Ok(())
    }

    /// A fresh backup, before the store's only machine is touched.
    pub(super) fn back_up(&mut self, book: &mut Book, index: usize, entry: &Entry) -> Result<Option<String>> {
        match (self.backup)() {
            Ok(said) => (self.say)(&said),
            Err(error) if error.is::<Killed>() => return Err(error),
            // On the way back the master may be what keeps it from being made.
            Err(error) if book.journal.back => (self.say)(&format!("{}: no backup: {error:#}", entry.node)),
            Err(error) if entry.lasted(self.clock.now()) < BACKUP_PATIENCE => {
                return Ok(Some(format!("{}: no backup yet: {error:#}", entry.node)));
            }
            Err(error) => {
                let why = format!("it was not touched, as no backup of its store could be made: {error:#}");
                return self.give_up(book, index, Step::Failed, why);
            }
        }
        self.go(book, index, Step::Replacing)
    }

    /// Waits where the other masters' etcd needs this one, and gives it up in the end; none where it may go.
    pub(super) fn hold_for_etcd(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
    ) -> Result<Option<Option<String>>> {
        let Some(name) = &entry.member else { return Ok(None) };
        let why = match self.members.list() {
            Ok(list) => members::needed(&list, name, entry.leaves()),
            Err(error) => Some(format!("etcd could not be asked whether it does without it: {error:#}")),
        };
        let Some(why) = why else { return Ok(None) };
        let limit = Duration::from_secs(book.journal.rules.timeout_secs);
        if entry.lasted(self.clock.now()) < limit {
            return Ok(Some(Some(format!("{} waits: {why}", entry.node))));
        }
        self.uncordon(node)?;
        self.give_up(book, index, Step::Failed, format!("{why}, and that for {} s", limit.as_secs())).map(Some)
    }

    /// One of several masters: the others serve on, and its etcd goes on with its data, or joins theirs where it has none.
    pub(super) fn replace_member(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
    ) -> Result<Option<String>> {
        if let Some(held) = self.hold_for_etcd(book, index, entry, node)? {
            return Ok(held);
        }
        if entry.leaves() {
            return self.remove(book, index, entry);
        }
        let name = &entry.node;
        (self.say)(&format!("{name}: stops, and starts from image {}; the other masters serve", short(&entry.to)));
        let data = if entry.keep_data { Data::Stays } else { Data::JoinsEtcd };
        if let Err(error) = self.rebuild(&Order { node: name, image: &entry.to, token: None, data }, false)? {
            if error.is::<Killed>() {
                return Err(error);
            }
            let why = format!("its machine could not be made anew: {error:#}");
            return self.give_up(book, index, Step::Failed, why);
        }
        (self.failpoint)(&format!("rebuilt:{name}"))?;
        self.go(book, index, Step::Booting)
    }

    /// Why one of several masters is not back, whose node is Ready.
    pub(super) fn lacks(&self, entry: &Entry) -> Option<String> {
        let name = entry.member.as_ref()?;
        let looked = self.members.list().map(|list| members::lacks(&list, name));
        match looked.and_then(|lacks| self.members.serves(&entry.node).map(|()| lacks)) {
            Ok(lacks) => lacks,
            Err(error) => Some(format!("{error:#}")),
        }
    }

    /// The same machine with the same STATE: the old one has ended when the new one starts, so that the store has one
    /// writer at a time, and what was acknowledged is there.
    pub(super) fn replace_master(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        pace: &mut Pace,
    ) -> Result<()> {
        let name = &entry.node;
        if entry.store == Some(StoreEngine::Embedded)
            && let Err(error) = self.move_store(name, StoreEngine::Embedded)
        {
            let answered = error.is::<Refused>() || error.is::<BadInput>();
            if !answered && entry.lasted(self.clock.now()) < BACKUP_PATIENCE {
                return Ok(());
            }
            // Where no API server serves, and nobody knows of a move, the store is where the old image looks for it.
            if answered && (!book.apart || entry.moved) {
                let why = format!("it was not touched, as its store could not be moved: {error:#}");
                return self.give_up(book, index, Step::Failed, why).map(drop);
            }
            (self.say)(&format!("{name}: its store stays where it is: {error:#}"));
        }
        (self.say)(&format!("{name}: stops, and starts from image {}; the API is away", short(&entry.to)));
        let begun = self.clock.now();
        if let Err(error) =
            self.rebuild(&Order { node: name, image: &entry.to, token: None, data: Data::Stays }, false)?
        {
            if error.is::<Killed>() {
                return Err(error);
            }
            // The old machine may run on, and the journal of the cluster is then the one to write.
            book.apart = self.kube.check_ready().is_err();
            let why = format!("its machine could not be made anew: {error:#}");
            return self.give_up(book, index, Step::Failed, why).map(drop);
        }
        (pace.silent, book.apart) = (Some(begun), true);
        (self.failpoint)(&format!("rebuilt:{name}"))?;
        self.enter(book, index, Step::Booting)
    }

    /// The first node that shows as Ready and whose Lease has not been renewed since the API is there again. Only what
    /// changes counts: clocks differ.
    pub(super) fn unrenewed(&self, nodes: &[Node], pace: &mut Pace) -> Result<Option<String>> {
        let now = self.kube.renewals()?;
        let first = pace.renewals.get_or_insert_with(|| now.clone());
        let silent = |node: &&Node| node.ready && first.get(&node.name) == now.get(&node.name);
        if let Some(node) = nodes.iter().find(silent) {
            pace.renewed = None;
            return Ok(Some(format!("{} has not renewed its Lease since the API is there again", node.name)));
        }
        pace.renewed.get_or_insert_with(|| self.clock.now());
        Ok(None)
    }
}
