//! Does what the journal says, node by node, and writes it there first.

mod masters;
mod volumes;

use super::Clock;
use super::api::{Evicted, Kube, Overtaken};
use super::copy::LocalCopy;
use super::drain::{self, Blocked, Next};
use super::journal::{DataAt, Entry, Journal, OnBlocked, Outcome, Step};
use super::lock::{Holder, Verdict};
use super::members::Members;
use super::plan::Node;
use super::volumes::Volumes;
use crate::machines::{Data, Ended, Machine, Machines, NO_IMAGE, Order, local::short};
use crate::seed::token::BootstrapToken;
use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(500);
/// For how long clients may go on with an address that has left the load balancers before the node's pods are told to end.
const QUIET: Duration = Duration::from_secs(3);
/// How long an address may stay in load balancers that are not the cluster's own.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);
/// How long the API server may be silent: a master that starts anew.
const API_PATIENCE: Duration = Duration::from_secs(180);
/// A node that is not Ready for so long has nobody who could end its pods in order; a kubelet that starts anew has.
const DOWN: Duration = Duration::from_secs(60);
/// How long it is tried to have a backup of the store before its master is replaced.
const BACKUP_PATIENCE: Duration = Duration::from_secs(30);
/// How often a line says what is waited for.
const SAY: Duration = Duration::from_secs(30);
/// From a node's first word to an API server that was away until all that watches on that node has found it again: the
/// longest pause between two attempts, and a dead connection that is noticed.
const CATCH_UP: Duration = Duration::from_secs(10);

/// A place where a test ends the process; `Err` is what the process is then to say.
pub type Failpoint<'a> = &'a dyn Fn(&str) -> Result<()>;

/// The process ends here, as if it were killed: nothing is tidied up.
#[derive(Debug, thiserror::Error)]
#[error("ended at the failpoint {0}")]
pub struct Killed(pub String);

/// The user wants an end; the journal says where to go on.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; the journal says where to go on")]
pub struct Stop;

/// Another node is away for too long; the roll ends, and can go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Held(pub String);

/// What is not worth a place in the journal.
#[derive(Debug, Default)]
struct Pace {
    /// When something was said last about each node.
    said: BTreeMap<String, Timestamp>,
    /// Since when no node may begin.
    held: Option<Timestamp>,
    /// Since when nodes are not Ready that are to leave.
    down: BTreeMap<String, Timestamp>,
    /// When the master was told to stop that has not answered since.
    silent: Option<Timestamp>,
    /// Why the API server did not answer, last.
    unheard: Option<String>,
    /// When nodes began to boot, however often they were Ready since.
    booting: BTreeMap<String, Timestamp>,
    /// The nodes' renewals as they were when the API was there again, and when all had changed.
    renewals: Option<BTreeMap<String, String>>,
    renewed: Option<Timestamp>,
    /// Why the master's store was not moved with its image, last.
    unmoved: Option<String>,
}

/// What a roll works on and with.
pub struct Engine<'a> {
    /// The API server.
    pub kube: Kube<'a>,
    /// The masters' stores.
    pub members: &'a dyn Members,
    /// The nodes' local volumes.
    pub volumes: &'a dyn Volumes,
    /// The machines.
    pub machines: &'a mut dyn Machines,
    /// The journal while the API server is away.
    pub copy: &'a LocalCopy,
    /// Makes a backup of the store, and says where.
    pub backup: &'a dyn Fn() -> Result<String>,
    /// Keeps the last logs of a node that is to be replaced, and says where.
    pub keep_logs: &'a dyn Fn(&str) -> Result<String>,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Who rolls; holds the lock.
    pub me: Holder,
    /// Whether the user wants an end.
    pub stop: &'a dyn Fn() -> bool,
    /// Where tests end it.
    pub failpoint: Failpoint<'a>,
    /// Where lines about what happens go.
    pub say: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Engine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("me", &self.me).finish_non_exhaustive()
    }
}

/// The journal and the version that was written last.
#[derive(Debug)]
pub struct Book {
    /// The journal.
    pub journal: Journal,
    /// The resourceVersion of what the cluster has of it.
    pub version: String,
    /// The API server is away, as the master is being replaced: it is written to this machine only.
    pub apart: bool,
}

impl Engine<'_> {
    /// Rolls until all nodes are done or one has failed. The journal is in the cluster already, and the lock is held.
    ///
    /// # Errors
    /// [`Stop`], [`Overtaken`], and what keeps the API server from answering for minutes.
    pub fn run(&mut self, book: &mut Book) -> Result<Outcome> {
        let mut heard = self.clock.now();
        let mut pace = Pace::default();
        loop {
            if (self.stop)() {
                return Err(Stop.into());
            }
            match self.round(book, &mut pace) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => heard = self.clock.now(),
                Err(error) if error.is::<Killed>() || error.is::<Overtaken>() || error.is::<Held>() => {
                    return Err(error);
                }
                // The same request is made again in the next round.
                Err(error) if since(heard, self.clock.now()) > API_PATIENCE => {
                    return Err(error.context(format!("nothing could be done for {} s", API_PATIENCE.as_secs())));
                }
                Err(error) => tracing::debug!("trying again: {error:#}"),
            }
            self.clock.sleep(POLL);
        }
    }

    /// One look at the cluster, and a step with each node that can go on.
    fn round(&mut self, book: &mut Book, pace: &mut Pace) -> Result<Option<Outcome>> {
        let Some(nodes) = self.look(book, pace)? else { return self.round_without_api(book, pace) };
        for index in book.journal.active() {
            self.advance(book, index, &nodes, pace)?;
        }
        let away = away(&book.journal, &nodes);
        self.check_held(book, &away, pace)?;
        for index in book.journal.may_begin(away.len()) {
            self.enter(book, index, Step::Leaving)?;
        }
        if !book.journal.active().is_empty() || !book.journal.may_begin(0).is_empty() {
            return Ok(None);
        }
        let before = book.journal.clone();
        if book.journal.release_spares(self.clock.now()) {
            self.save_or_restore(book, before, "spares")?;
            return Ok(None);
        }
        book.journal.outcome = book.journal.conclusion();
        self.save(book, "end")?;
        Ok(Some(book.journal.outcome))
    }

    /// The lock and the nodes; none where the API server is away for the roll's own reason.
    fn look(&self, book: &mut Book, pace: &mut Pace) -> Result<Option<Vec<Node>>> {
        match self.hold_lock().and_then(|()| self.kube.nodes()) {
            Ok(nodes) => {
                book.apart = false;
                if let Some(since_when) = pace.silent.take() {
                    (self.say)(&format!(
                        "the API answers again; it was away for {} s",
                        since(since_when, self.clock.now()).as_secs()
                    ));
                }
                Ok(Some(nodes))
            }
            Err(error) if error.is::<Overtaken>() || !awaits_api(book) => Err(error),
            Err(error) => {
                pace.unheard = Some(format!("{error:#}"));
                book.apart = true;
                Ok(None)
            }
        }
    }

    /// One step with the master whose API server does not answer. No other node is under way.
    fn round_without_api(&mut self, book: &mut Book, pace: &mut Pace) -> Result<Option<Outcome>> {
        if let Some(index) = book.journal.active_master() {
            let entry = book.journal.nodes[index].clone();
            match entry.step {
                Step::Replacing => self.replace_master(book, index, &entry, pace)?,
                Step::Settling => self.enter(book, index, Step::Booting)?,
                _ => self.await_api(book, index, &entry, pace)?,
            }
        }
        if book.journal.failed().is_none() {
            return Ok(None);
        }
        book.journal.outcome = book.journal.conclusion();
        self.save(book, "end")?;
        Ok(Some(book.journal.outcome))
    }

    /// Whether a node boots for too long. One that was Ready in between has the time to settle besides, and no more: it
    /// could go on for ever.
    fn overdue(&self, book: &Book, entry: &Entry, pace: &mut Pace) -> bool {
        let first = *pace.booting.entry(entry.node.clone()).or_insert(entry.since);
        let rules = &book.journal.rules;
        let secs = if first == entry.since { rules.ready_secs } else { rules.ready_secs + rules.settle_secs };
        since(first, self.clock.now()) >= Duration::from_secs(secs)
    }

    /// Nodes that are none of the roll's may keep it from going on, for as long as a drain may take.
    fn check_held(&self, book: &Book, away: &[String], pace: &mut Pace) -> Result<()> {
        let now = self.clock.now();
        let journal = &book.journal;
        let held =
            journal.active().is_empty() && journal.may_begin(away.len()).len() < journal.may_begin(0).len().min(1);
        if !held {
            pace.held = None;
            return Ok(());
        }
        let begun = *pace.held.get_or_insert(now);
        let sentence = format!("{} is not Ready, and no other node may be away", away.join(", "));
        if since(begun, now) > Duration::from_secs(journal.rules.timeout_secs) {
            return Err(Held(format!("{sentence}; `kimg roll` goes on once it is back")).into());
        }
        self.say_now_and_then("", &sentence, pace);
        Ok(())
    }

    fn say_now_and_then(&self, about: &str, sentence: &str, pace: &mut Pace) {
        let now = self.clock.now();
        if pace.said.get(about).is_none_or(|last| since(*last, now) > SAY) {
            (self.say)(sentence);
            pace.said.insert(about.to_string(), now);
        }
    }

    fn hold_lock(&self) -> Result<()> {
        match self.kube.take_lock(&self.me, &mut None, self.clock.now())? {
            Verdict::Mine => Ok(()),
            _ => Err(Overtaken("another `kimg roll` has taken the lock; this one ends".into()).into()),
        }
    }

    fn advance(&mut self, book: &mut Book, index: usize, nodes: &[Node], pace: &mut Pace) -> Result<()> {
        let entry = book.journal.nodes[index].clone();
        let node = nodes.iter().find(|node| node.name == entry.node);
        let down = self.is_down(&entry, node, pace);
        let waits_for = match entry.step {
            Step::Leaving if entry.is_alone() => self.back_up(book, index, &entry)?,
            Step::Leaving => self.leave(book, index, &entry, node, down)?,
            Step::Draining => self.drain(book, index, &entry, node, down)?,
            Step::Replacing if entry.is_alone() => {
                self.replace_master(book, index, &entry, pace)?;
                None
            }
            Step::Replacing if entry.member.is_some() => self.replace_member(book, index, &entry, node)?,
            Step::Replacing => self.replace(book, index, &entry, node)?,
            Step::Booting => self.wait_ready(book, index, &entry, node, pace)?,
            Step::Settling => self.settle(book, index, &entry, node)?,
            Step::Returning => self.bring_back(book, index, &entry, node)?,
            Step::Recovering => self.recover(book, index, &entry, nodes, pace)?,
            Step::Waiting | Step::Done | Step::Skipped | Step::Failed => None,
        };
        if let Some(sentence) = waits_for
            && entry.lasted(self.clock.now()) > SAY / 6
        {
            self.say_now_and_then(&entry.node, &sentence, pace);
        }
        Ok(())
    }

    /// Whether nobody is there who could end a node's pods in order.
    fn is_down(&self, entry: &Entry, node: Option<&Node>, pace: &mut Pace) -> bool {
        match node {
            None => true,
            Some(node) if node.ready => {
                pace.down.remove(&entry.node);
                false
            }
            Some(_) => {
                let now = self.clock.now();
                // Asked once: providers count what they are asked.
                let first = || if self.is_off(entry) { now.checked_sub(DOWN).unwrap_or(now) } else { now };
                since(*pace.down.entry(entry.node.clone()).or_insert_with(first), now) >= DOWN
            }
        }
    }

    /// Whether the machine of a node that is to leave is known not to run: it does not come back by being waited for.
    fn is_off(&self, entry: &Entry) -> bool {
        let asked = matches!(entry.step, Step::Leaving | Step::Draining);
        let off = |machines: Vec<Machine>| machines.iter().any(|known| known.node == entry.node && !known.running);
        asked && self.machines.list().is_ok_and(off)
    }

    /// No new pods, and out of the load balancers' addresses.
    fn leave(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
        down: bool,
    ) -> Result<Option<String>> {
        if let Some(held) = self.hold_for_etcd(book, index, entry, node)? {
            return Ok(held);
        }
        let Some(node) = node else { return self.go(book, index, Step::Replacing) };
        self.check_untouched(entry, node)?;
        if !node.cordoned {
            self.kube.cordon(&node.name)?;
            (self.failpoint)(&format!("cordoned:{}", node.name))?;
        }
        if down {
            // Nobody is there who could end its pods in order.
            return self.go(book, index, Step::Replacing);
        }
        let lasted = entry.lasted(self.clock.now());
        let balanced = self.kube.balanced_at(&node.addresses)?;
        if lasted < QUIET || (!balanced.is_empty() && lasted < LEAVE_LIMIT) {
            return Ok(balanced.first().map(|s| format!("{}: Service {s} still sends requests to it", node.name)));
        }
        if let Some(service) = balanced.first() {
            (self.say)(&format!("{}: Service {service} keeps its address; going on", node.name));
        }
        self.go(book, index, Step::Draining)
    }

    fn drain(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
        down: bool,
    ) -> Result<Option<String>> {
        let (name, rules) = (&entry.node, book.journal.rules.clone());
        if down {
            return self.go(book, index, Step::Replacing);
        }
        let pods = self.kube.pods_on(name)?;
        let leaving: Vec<_> = pods.into_iter().filter(drain::Pod::must_leave).collect();
        let mut blocked = Vec::new();
        let mut ending = Vec::new();
        for pod in &leaving {
            if pod.ending {
                ending.push(Blocked { pod: pod.key(), said: None });
            } else if let Evicted::Refused(said) = self.kube.evict(pod)? {
                blocked.push(Blocked { pod: pod.key(), said: Some(said) });
            }
            (self.failpoint)(&format!("evicted:{name}"))?;
        }
        // What a budget keeps is more worth saying than what takes its time.
        blocked.append(&mut ending);
        let limit = Duration::from_secs(rules.timeout_secs);
        match drain::next(leaving.len(), entry.lasted(self.clock.now()), limit, rules.on_blocked) {
            Next::Gone => self.go(book, index, Step::Replacing),
            Next::Evict => Ok((!blocked.is_empty()).then(|| drain::sentence(name, &blocked))),
            Next::Overdue(OnBlocked::Force) => {
                for pod in &leaving {
                    self.kube.delete_pod(pod)?;
                }
                // What does not come to its end now ends with the machine.
                let over = entry.lasted(self.clock.now()) > limit * 2;
                if over { self.go(book, index, Step::Replacing) } else { Ok(Some(drain::sentence(name, &blocked))) }
            }
            Next::Overdue(what) => {
                let step = if what == OnBlocked::Skip { Step::Skipped } else { Step::Failed };
                let why = format!("{} for {} s", drain::sentence(name, &blocked), rules.timeout_secs);
                self.uncordon(node)?;
                self.give_up(book, index, step, why)
            }
        }
    }

    /// The inner error is the provider's, the outer one what kept the engine from asking it. Gives the boot that the node
    /// reported from last before its machine ended, where it was asked between that and the next one. `is_new`: there was
    /// none that could say anything.
    fn rebuild(&mut self, order: &Order<'_>, is_new: bool) -> Result<Result<Option<String>>> {
        let name = order.node;
        match (self.keep_logs)(name) {
            Ok(said) => (self.say)(&format!("{name}: {said}")),
            Err(_) if is_new => {}
            // A broken node may have nothing more to say, and is replaced for that.
            Err(error) => (self.say)(&format!("{name}: its last logs are not kept: {error:#}")),
        }
        let mut boot = None;
        match self.machines.end(order) {
            Ok(None) => {}
            Ok(Some(ended)) => {
                self.tell(name, ended);
                (self.failpoint)(&format!("ended:{name}"))?;
                // It took its time.
                self.hold_lock()?;
                boot = Some(self.reported_boot(name)?);
            }
            Err(error) => return Ok(Err(error)),
        }
        Ok(self.machines.rebuild(order).map(|ended| {
            self.tell(name, ended);
            boot
        }))
    }

    fn tell(&self, node: &str, ended: Ended) {
        if ended == Ended::Forced {
            (self.say)(&format!("{node}: its machine did not power off in time, and was ended"));
        }
    }

    /// The boot that the API server shows of a node.
    fn reported_boot(&self, node: &str) -> Result<String> {
        let nodes = self.kube.nodes()?;
        Ok(nodes.into_iter().find(|known| known.name == node).map(|known| known.boot).unwrap_or_default())
    }

    /// The node leaves the cluster for good: first its machine, with the keys that it joined by, then what the API server
    /// knows of it, which the machine would only say again.
    fn remove(&mut self, book: &mut Book, index: usize, entry: &Entry) -> Result<Option<String>> {
        let name = &entry.node;
        let claims = self.kube.local_claims()?;
        if let Some(claim) = claims.iter().find(|claim| claim.node == *name && !entry.lose.contains(&claim.claim)) {
            let why = format!(
                "claim {0} was bound there since the plan was made: move it, or give it up with `--lose-data {0}`",
                claim.claim
            );
            return self.give_up(book, index, Step::Failed, why);
        }
        for claim in &entry.lose {
            self.kube.delete_claim(claim)?;
        }
        if let Some(member) = &entry.member {
            // First: a member that is only gone would still count for the majority.
            self.members.remove(member)?;
            (self.failpoint)(&format!("member-removed:{name}"))?;
        }
        match (self.keep_logs)(name) {
            Ok(said) => (self.say)(&format!("{name}: {said}")),
            Err(error) => (self.say)(&format!("{name}: its last logs are not kept: {error:#}")),
        }
        (self.say)(&format!("{name}: its machine is removed"));
        match self.machines.remove(name) {
            Ok(ended) => self.tell(name, ended),
            Err(error) if error.is::<Killed>() => return Err(error),
            Err(error) => {
                let why = format!("its machine could not be removed: {error:#}");
                return self.give_up(book, index, Step::Failed, why);
            }
        }
        (self.failpoint)(&format!("removed:{name}"))?;
        self.copies().forget(name)?;
        // It took its time.
        self.hold_lock()?;
        self.kube.delete_node(name)?;
        (self.failpoint)(&format!("node-deleted:{name}"))?;
        self.go(book, index, Step::Done)
    }

    fn replace(&mut self, book: &mut Book, index: usize, entry: &Entry, node: Option<&Node>) -> Result<Option<String>> {
        if entry.leaves() {
            return self.remove(book, index, entry);
        }
        let name = &entry.node;
        // A claim that was bound since the plan was made is in no decision: its node keeps its data.
        let claims = self.kube.local_claims()?;
        let decided = |claim: &String| entry.lose.contains(claim) || entry.copy.iter().any(|one| one.claim == *claim);
        let bound = claims.iter().find(|claim| claim.node == *name && !decided(&claim.claim));
        if let Some(claim) = bound.filter(|_| !entry.copy.is_empty() && entry.data == DataAt::Old) {
            self.uncordon(node)?;
            let why = format!("claim {} was bound there since the plan was made; roll anew", claim.claim);
            return self.give_up(book, index, Step::Failed, why);
        }
        if let Some(waits_for) = self.carry_off(book, index, entry, node)? {
            return Ok(waits_for);
        }
        let bound = bound.filter(|_| entry.copy.is_empty());
        let keep_data = entry.keep_data || bound.is_some();
        if let Some(claim) = bound.filter(|_| !entry.keep_data) {
            let listed = self.machines.list()?;
            if !listed.iter().any(|machine| machine.node == *name && machine.keeps_data) {
                let why = format!("claim {} was bound there since the plan was made; roll anew", claim.claim);
                return self.give_up(book, index, Step::Failed, why);
            }
            book.journal.nodes[index].keep_data = true;
        }
        for claim in &entry.lose {
            self.kube.delete_claim(claim)?;
        }
        if let Some(id) = &entry.token {
            self.kube.delete_token(id)?;
        }
        let token = BootstrapToken::random();
        book.journal.nodes[index].token = Some(token.id.clone());
        self.save(book, &format!("token:{name}"))?;
        self.kube.create_token(&token, name)?;
        (self.failpoint)(&format!("token-made:{name}"))?;
        let does = if entry.from == NO_IMAGE { "is made" } else { "stops, and starts" };
        (self.say)(&format!("{name}: {does} from image {}", short(&entry.to)));
        let data = if keep_data { Data::Stays } else { Data::Goes };
        let order = Order { node: name, image: &entry.to, token: Some(&token), data };
        let asked = match self.rebuild(&order, entry.from == NO_IMAGE)? {
            Ok(asked) => asked,
            Err(error) if error.is::<Killed>() => return Err(error),
            Err(error) => {
                let why = format!("its machine could not be made anew: {error:#}");
                return self.give_up(book, index, Step::Failed, why);
            }
        };
        (self.failpoint)(&format!("rebuilt:{name}"))?;
        // What the node says until now is of the old machine, or of one that an interrupted attempt has started: asked
        // before the new one can have booted.
        let boot = match asked {
            Some(boot) => boot,
            None => self.reported_boot(name)?,
        };
        book.journal.nodes[index].boot = boot;
        self.go(book, index, Step::Booting)
    }

    fn wait_ready(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
        pace: &mut Pace,
    ) -> Result<Option<String>> {
        // Noted also where it is Ready at once.
        let overdue = self.overdue(book, entry, pace);
        let ready = node.is_some_and(|node| node.ready && self.in_new_boot(entry, node) == Some(true));
        let lacks = if ready { self.lacks(entry) } else { None };
        if ready && lacks.is_none() {
            return self.go(book, index, Step::Settling);
        }
        if let Some(why) = self.panics(entry) {
            return self.give_up(book, index, Step::Failed, why);
        }
        if !overdue {
            return Ok(Some(lacks.map_or_else(|| self.boots(&entry.node), |why| format!("{}: {why}", entry.node))));
        }
        let why = match node {
            _ if lacks.is_some() => self.not_back(book, entry, &lacks.unwrap_or_default()),
            Some(node) if entry.master || node.boot != entry.boot => {
                self.not_back(book, entry, &format!("it has joined and is not Ready: {}", node.reason))
            }
            _ => self.not_back(book, entry, "it has not joined"),
        };
        self.give_up(book, index, Step::Failed, why)
    }

    /// What a machine that boots shows.
    fn boots(&self, node: &str) -> String {
        let line = self.machines.console(node).pop().unwrap_or_default();
        format!("{node}: boots: {}", line.trim())
    }

    /// Why it is no use to wait for a machine.
    fn panics(&self, entry: &Entry) -> Option<String> {
        let said = self.machines.panics(&entry.node)?;
        Some(format!("image {} does not boot, its kernel ends again and again: {said}", short(&entry.to)))
    }

    /// Why a node that boots is given up.
    fn not_back(&self, book: &Book, entry: &Entry, state: &str) -> String {
        let console = self.machines.console(&entry.node);
        let console: Vec<String> = console.iter().map(|line| format!("  {line}")).collect();
        format!(
            "{state}, {} s after it was started from image {}{CONSOLE}\n{}",
            book.journal.rules.ready_secs,
            short(&entry.to),
            console.join("\n")
        )
    }

    /// Whether the node reports from a boot after it was replaced; none where that is not known.
    fn in_new_boot(&self, entry: &Entry, node: &Node) -> Option<bool> {
        match entry.master {
            // What the API server shows of its own node right after its start is of the boot before.
            true => self.machines.boot(&entry.node).map(|boot| boot == node.boot),
            false => Some(node.boot != entry.boot),
        }
    }

    fn settle(&mut self, book: &mut Book, index: usize, entry: &Entry, node: Option<&Node>) -> Result<Option<String>> {
        // A busy node that does not say its boot at once has not booted again.
        if node.is_none_or(|node| !node.ready || self.in_new_boot(entry, node) == Some(false)) {
            return self.go(book, index, Step::Booting);
        }
        if entry.lasted(self.clock.now()) < Duration::from_secs(book.journal.rules.settle_secs) {
            return Ok(None);
        }
        self.go(book, index, Step::Returning)
    }

    fn bring_back(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
    ) -> Result<Option<String>> {
        if let Some(id) = &entry.token {
            self.kube.delete_token(id)?;
        }
        (self.failpoint)(&format!("token-deleted:{}", entry.node))?;
        self.hand_over(book, index, entry)?;
        self.uncordon(node)?;
        self.go(book, index, Step::Recovering)
    }

    /// What was whole before is whole again: pods that fail on the new image are no success. After a master all nodes have
    /// heard of it again too: what they do not know yet, such as where a Service's pods are, would fail requests once the
    /// next node goes.
    fn recover(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        nodes: &[Node],
        pace: &mut Pace,
    ) -> Result<Option<String>> {
        let found = self.kube.workloads()?;
        let lame = book.journal.whole.iter().find_map(|name| {
            let (ready, wanted) = found.get(name)?;
            (ready < wanted).then(|| format!("{name} has {ready} of {wanted} pods ready"))
        });
        let silent = if entry.is_alone() { self.unrenewed(nodes, pace)? } else { None };
        // A master that was on its way out may have left etcd, with its machine as it was.
        let Some(lacks) = lame.or(silent).or_else(|| self.lacks(entry)) else {
            let renewed = pace.renewed.unwrap_or(entry.since);
            if entry.is_alone() && since(renewed, self.clock.now()) < CATCH_UP {
                return Ok(None);
            }
            return self.go(book, index, Step::Done);
        };
        let limit = book.journal.rules.timeout_secs;
        if entry.lasted(self.clock.now()) < Duration::from_secs(limit) {
            return Ok(Some(format!("{}: {lacks}", entry.node)));
        }
        let why = format!("{lacks}, {limit} s after {} came back with image {}", entry.node, short(&entry.to));
        self.give_up(book, index, Step::Failed, why)
    }

    /// Takes back what the roll has done, and no more.
    fn uncordon(&self, node: Option<&Node>) -> Result<()> {
        match node {
            Some(node) if node.cordoned_by_roll => {
                self.kube.uncordon(&node.name)?;
                (self.failpoint)(&format!("uncordoned:{}", node.name))
            }
            _ => Ok(()),
        }
    }

    fn go(&mut self, book: &mut Book, index: usize, step: Step) -> Result<Option<String>> {
        self.enter(book, index, step).map(|()| None)
    }

    fn enter(&mut self, book: &mut Book, index: usize, step: Step) -> Result<()> {
        let before = book.journal.clone();
        book.journal.enter(index, step, self.clock.now());
        let entry = &book.journal.nodes[index];
        let what = match step {
            Step::Leaving | Step::Draining | Step::Returning if entry.master => None,
            Step::Leaving => Some("takes no new pods, and leaves the load balancers"),
            Step::Draining => Some("its pods are evicted"),
            Step::Settling => Some("Ready; watched for a while"),
            Step::Returning => Some("takes pods again"),
            Step::Done => Some("done"),
            _ => None,
        };
        if let Some(what) = what {
            (self.say)(&format!("{}: {what}", entry.node));
        }
        self.save_or_restore(book, before, &format!("{step:?}:{}", book.journal.nodes[index].node).to_lowercase())
    }

    fn give_up(&mut self, book: &mut Book, index: usize, step: Step, why: String) -> Result<Option<String>> {
        let before = book.journal.clone();
        (self.say)(&format!("{}: {}", before.nodes[index].node, without_console(&why)));
        book.journal.give_up(index, step, why, self.clock.now());
        self.save_or_restore(book, before, &format!("{step:?}:{}", book.journal.nodes[index].node).to_lowercase())?;
        Ok(None)
    }

    /// A step that could not be written has not begun.
    fn save_or_restore(&self, book: &mut Book, before: Journal, point: &str) -> Result<()> {
        let saved = self.save(book, point);
        if saved.is_err() {
            book.journal = before;
        }
        saved
    }

    fn save(&self, book: &mut Book, point: &str) -> Result<()> {
        (self.failpoint)(&format!("before-{point}"))?;
        if !book.apart {
            book.version = self.kube.save(&book.journal, Some(&book.version)).context("writing the journal")?;
            (self.failpoint)(&format!("half-{point}"))?;
        }
        self.copy.write(&book.journal, &book.version)?;
        (self.failpoint)(point)
    }
}

/// Whether the roll itself may be why no API server answers. Before the master is replaced, and once it is back for a
/// while, that has another reason.
fn awaits_api(book: &Book) -> bool {
    let master = book.journal.nodes.iter().find(|entry| entry.is_alone());
    match master.map(|entry| entry.step) {
        Some(Step::Replacing | Step::Booting | Step::Settling) => true,
        Some(Step::Failed) => book.apart,
        _ => false,
    }
}

/// Nodes that are not there and are not the roll's doing; those that wait for their turn do not count.
fn away(journal: &Journal, nodes: &[Node]) -> Vec<String> {
    let ours = |name: &str| {
        let entry = journal.nodes.iter().find(|entry| entry.node == name);
        entry.is_some_and(|entry| entry.step.is_active() || entry.step == Step::Waiting)
    };
    nodes.iter().filter(|node| !node.ready && !ours(&node.name)).map(|node| node.name.clone()).collect()
}

/// What stands before the last lines of a console.
const CONSOLE: &str = "; its console says:";

/// Why a node was given up, as it is said at once: its console is shown in the end.
fn without_console(why: &str) -> &str {
    why.split_once(CONSOLE).map_or(why, |(why, _)| why)
}

fn since(past: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(past)).unwrap_or_default()
}
