//! The journal of a roll: what is to be done with each node, and how far it is. It is all that a roll remembers.

use super::skew::Known;
use crate::input;
use anyhow::Result;
use jiff::Timestamp;
use node_api::{StoreEngine, StoreFormat};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Raised when a `kimg` of before could not go on with what this one writes.
pub const VERSION: u32 = 5;

/// Whether this `kimg` reads a journal of that version, which stands in `place`.
///
/// # Errors
/// Bad input: a newer one wrote it.
pub fn check_version(version: u64, place: &str) -> Result<()> {
    if version > u64::from(VERSION) {
        return input::bad(format!(
            "{place} was written by a newer kimg (version {version}, and this one reads up to {VERSION}); nothing was changed: \
             go on with that one (`kimg version` tells which one this is)"
        ));
    }
    Ok(())
}

/// A roll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// [`VERSION`] of the `kimg` that wrote it.
    pub version: u32,
    /// When it began.
    pub started: Timestamp,
    /// It goes back to the images of before.
    pub back: bool,
    /// How it is done.
    pub rules: Rules,
    /// Workloads that were whole when it began, `Kind namespace/name`: they must be so again after each node.
    pub whole: Vec<String>,
    /// The nodes, in the order in which they are replaced.
    pub nodes: Vec<Entry>,
    /// How it stands.
    pub outcome: Outcome,
    /// What the store was written in when it began, or since `kimg roll --finish`, where its master said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreFormat>,
}

/// How a roll is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    /// Nodes that may be away at a time, once the first has been replaced.
    pub max_unavailable: usize,
    /// How long a new node must stay Ready, seconds.
    pub settle_secs: u64,
    /// How long a drain may take, and workloads to be whole again, seconds.
    pub timeout_secs: u64,
    /// How long a new node may take to be Ready, seconds.
    pub ready_secs: u64,
    /// What happens when a drain takes longer.
    pub on_blocked: OnBlocked,
}

/// What happens when a drain does not end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnBlocked {
    /// The node takes pods again, and the roll stops
    Stop,
    /// It is waited for on and on
    Wait,
    /// The node takes pods again and keeps its image; the next one follows
    Skip,
    /// The pods are deleted, against their disruption budgets
    Force,
}

/// A node of a roll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its name.
    pub node: String,
    /// It is a master: it goes alone, and has no pods; where it is the only one, the API server with the journal is away
    /// meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub master: bool,
    /// It is there for the time of the roll: it comes before the other workers go, and leaves at the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spare: bool,
    /// Its name in the etcd that several masters share, and serve from meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Where the store of a single master goes with the image that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreEngine>,
    /// It was moved to etcd.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
    /// The image that it had.
    pub from: String,
    /// What is known of that, for the way back.
    #[serde(default, skip_serializing_if = "Known::is_empty")]
    pub before: Known,
    /// The image that it gets; empty: it leaves the cluster.
    pub to: String,
    /// Its data stays.
    pub keep_data: bool,
    /// Claims that are given up, `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lose: Vec<String>,
    /// Claims whose volumes are copied to the new machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copy: Vec<Copied>,
    /// Where their data is.
    #[serde(default, skip_serializing_if = "DataAt::is_old")]
    pub data: DataAt,
    /// How far it is.
    pub step: Step,
    /// Since when.
    pub since: Timestamp,
    /// The boot that the node reported from before it was replaced; none where it never did, and of a master, which
    /// tells its boot itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// The first half of the bootstrap token that is out for it; the secret half is never here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Why it was skipped or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A claim whose volume is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    /// `namespace/name`.
    pub claim: String,
    /// The volume's folder on the node.
    pub volume: String,
    /// It was given up since it left the old machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

/// Where the data is that is copied from one machine to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DataAt {
    /// With the old machine.
    #[default]
    Old,
    /// On the machine that rolls, and nowhere else for sure: the old one may be gone.
    Here,
    /// With the new machine, which pods may write to.
    New,
}

impl DataAt {
    fn is_old(&self) -> bool {
        *self == DataAt::Old
    }
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Its turn has not come.
    Waiting,
    /// It takes no new pods, and its address leaves the load balancers; of a master a backup is made.
    Leaving,
    /// Its pods are evicted.
    Draining,
    /// The machine is made anew.
    Replacing,
    /// The new machine is waited for.
    Booting,
    /// It is Ready, and watched for a while.
    Settling,
    /// It takes pods again.
    Returning,
    /// Workloads that were whole become so again.
    Recovering,
    /// It runs the image that it was to get.
    Done,
    /// It was left as it was.
    Skipped,
    /// The roll ended with it.
    Failed,
}

impl Step {
    /// Whether something is being done with the node.
    pub fn is_active(self) -> bool {
        self > Step::Waiting && self < Step::Done
    }

    /// Whether the machine may have been touched, so that the image under it is no longer surely the old one.
    pub fn touched(self) -> bool {
        (self >= Step::Replacing && self <= Step::Done) || self == Step::Failed
    }

    /// Whether the journal may say `next` after this.
    pub fn leads_to(self, next: Step) -> bool {
        use Step::{
            Booting, Done, Draining, Failed, Leaving, Recovering, Replacing, Returning, Settling, Skipped, Waiting,
        };
        match self {
            Waiting => matches!(next, Leaving | Returning),
            // A node that does not answer has nothing that could be drained, nor has a master.
            Leaving => matches!(next, Draining | Replacing | Skipped | Failed),
            Draining => matches!(next, Replacing | Skipped | Failed),
            // One that leaves the cluster is done then.
            Replacing => matches!(next, Booting | Done | Failed),
            Booting => matches!(next, Settling | Failed),
            Settling => matches!(next, Booting | Returning | Failed),
            Returning => matches!(next, Recovering | Failed),
            Recovering => matches!(next, Done | Failed),
            Done | Skipped | Failed => false,
        }
    }
}

/// How a roll stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It goes on, or was interrupted.
    Running,
    /// All nodes are replaced or skipped.
    Done,
    /// It ended with a node that failed.
    Stopped,
}

impl Journal {
    /// Goes on to a step.
    ///
    /// # Panics
    /// The step does not follow: a fault of the engine, which must not reach the cluster.
    pub fn enter(&mut self, index: usize, step: Step, now: Timestamp) {
        let entry = &mut self.nodes[index];
        assert!(entry.step.leads_to(step), "{:?} does not lead to {step:?}", entry.step);
        (entry.step, entry.since) = (step, now);
    }

    /// Ends with a node, for a reason.
    pub fn give_up(&mut self, index: usize, step: Step, why: String, now: Timestamp) {
        self.enter(index, step, now);
        self.nodes[index].why = Some(why);
    }

    /// What time passed while nobody worked on it counts for nothing.
    pub fn resume(&mut self, now: Timestamp) {
        for entry in self.nodes.iter_mut().filter(|entry| entry.step.is_active()) {
            entry.since = now;
        }
    }

    /// Which nodes are under way.
    pub fn active(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| self.nodes[*i].step.is_active()).collect()
    }

    /// The first node that failed.
    pub fn failed(&self) -> Option<&Entry> {
        self.nodes.iter().find(|entry| entry.step == Step::Failed)
    }

    /// The master that is on its way, if it is.
    pub fn active_master(&self) -> Option<usize> {
        self.active().into_iter().find(|i| self.nodes[*i].master)
    }

    /// The nodes that may begin now: one master alone, the first worker alone, and after it as many as may be away. `away`
    /// are nodes that are not there for other reasons.
    pub fn may_begin(&self, away: usize) -> Vec<usize> {
        if self.failed().is_some() || self.active_master().is_some() {
            return Vec::new();
        }
        // A master proves nothing of the workers' image, and a spare nothing of what becomes of a node that had another.
        let proven = self.nodes.iter().any(|entry| entry.step == Step::Done && !entry.master && !entry.spare);
        let most = if proven { self.rules.max_unavailable } else { 1 };
        let active = self.active().len();
        let free = most.saturating_sub(active + away);
        let mut waiting = (0..self.nodes.len()).filter(|i| self.nodes[*i].step == Step::Waiting).peekable();
        if waiting.peek().is_some_and(|first| self.nodes[*first].member.is_some()) {
            // Whether the others do without it, their etcd says; who else is away does not matter to it.
            return waiting.take(usize::from(active == 0)).collect();
        }
        if waiting.peek().is_some_and(|first| self.nodes[*first].master) {
            return waiting.take(if active == 0 { free.min(1) } else { 0 }).collect();
        }
        let others_are_active = self.nodes.iter().any(|entry| entry.step.is_active() && !entry.spare);
        match waiting.peek().map(|first| &self.nodes[*first]) {
            // Nobody is away for one that comes.
            Some(first) if first.comes() && others_are_active => return Vec::new(),
            Some(first) if first.comes() => return waiting.take_while(|i| self.nodes[*i].comes()).collect(),
            // Until the others are there, it stands in for one of them.
            Some(first) if first.spare && others_are_active => return Vec::new(),
            Some(first) if first.spare => return waiting.take_while(|i| self.nodes[*i].spare).take(free).collect(),
            _ if self.nodes.iter().any(|entry| entry.step.is_active() && entry.comes()) => return Vec::new(),
            _ => {}
        }
        // One that is away itself frees its own place.
        waiting.take_while(|i| !self.nodes[*i].master && !self.nodes[*i].spare).take(free).collect()
    }

    /// Once all others are there: spares that came leave again. Whether there are any.
    pub fn release_spares(&mut self, now: Timestamp) -> bool {
        if self.failed().is_some() {
            return false;
        }
        let came: Vec<&mut Entry> =
            self.nodes.iter_mut().filter(|entry| entry.comes() && entry.step == Step::Done).collect();
        let any = !came.is_empty();
        for entry in came {
            entry.from = std::mem::take(&mut entry.to);
            (entry.step, entry.since) = (Step::Waiting, now);
            (entry.boot, entry.token) = (String::new(), None);
        }
        any
    }

    /// Whether it makes the cluster smaller; that the spares of a roll leave does not.
    pub fn removes(&self) -> bool {
        self.nodes.iter().any(|entry| entry.leaves() && !entry.spare)
    }

    /// Whether it puts no other image under any node: broken ones are made anew.
    pub fn heals(&self) -> bool {
        let heals = |entry: &Entry| entry.from == entry.to || entry.from == crate::machines::NO_IMAGE;
        self.nodes.iter().all(|entry| heals(entry) && !entry.leaves() && !entry.spare)
    }

    /// The outcome once nothing is under way and nothing may begin.
    pub fn conclusion(&self) -> Outcome {
        if self.failed().is_some() { Outcome::Stopped } else { Outcome::Done }
    }
}

impl Entry {
    /// Whether it is removed from the cluster, instead of made anew.
    pub fn leaves(&self) -> bool {
        self.to.is_empty()
    }

    /// Whether the only copy of its claims' data is with whoever rolls.
    pub fn is_carried(&self) -> bool {
        self.data == DataAt::Here && !self.copy.is_empty()
    }

    /// Whether it is a spare that is made before the other workers go.
    pub fn comes(&self) -> bool {
        self.spare && !self.leaves()
    }

    /// Whether the API is away while it is.
    pub fn is_alone(&self) -> bool {
        self.master && self.member.is_none()
    }

    /// How long it has been in its step.
    pub fn lasted(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.since)).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A roll of nodes `n0`, `n1`, …, which are at these steps.
    pub(in crate::roll) fn journal(max_unavailable: usize, steps: &[Step]) -> Journal {
        let now = Timestamp::UNIX_EPOCH;
        let entry = |(number, step): (usize, &Step)| Entry {
            node: format!("n{number}"),
            master: false,
            spare: false,
            member: None,
            store: None,
            moved: false,
            from: "old".into(),
            before: Known::default(),
            to: "new".into(),
            keep_data: false,
            lose: Vec::new(),
            copy: Vec::new(),
            data: DataAt::Old,
            step: *step,
            since: now,
            boot: String::new(),
            token: None,
            why: None,
        };
        Journal {
            version: VERSION,
            started: now,
            back: false,
            rules: Rules {
                max_unavailable,
                settle_secs: 1,
                timeout_secs: 1,
                ready_secs: 1,
                on_blocked: OnBlocked::Stop,
            },
            whole: Vec::new(),
            nodes: steps.iter().enumerate().map(entry).collect(),
            outcome: Outcome::Running,
            store: None,
        }
    }

    #[test]
    fn the_first_goes_alone_and_a_failure_ends_it() {
        use Step::{Booting, Done, Draining, Failed, Skipped, Waiting};
        let cases: [(&str, &[Step], usize, &[usize]); 9] = [
            ("the first alone", &[Waiting, Waiting, Waiting], 0, &[0]),
            ("the first is under way", &[Booting, Waiting, Waiting], 0, &[]),
            ("after it two at a time", &[Done, Waiting, Waiting], 0, &[1, 2]),
            ("one more beside the one under way", &[Done, Draining, Waiting], 0, &[2]),
            ("another node is away", &[Done, Waiting, Waiting], 1, &[1]),
            ("as many are away as may be", &[Done, Waiting, Waiting], 2, &[]),
            ("one that was skipped proves nothing", &[Skipped, Waiting, Waiting], 0, &[1]),
            ("a failure", &[Failed, Waiting, Waiting], 0, &[]),
            ("a failure beside one under way", &[Done, Failed, Booting], 0, &[]),
        ];
        for (what, steps, away, begin) in cases {
            assert_eq!(journal(2, steps).may_begin(away), begin, "{what}");
        }
    }

    #[test]
    fn a_master_goes_alone_and_proves_nothing_of_workers() {
        use Step::{Booting, Done, Returning, Waiting};
        let cases: [(&str, &[Step], usize, &[usize]); 6] = [
            ("the master first", &[Waiting, Waiting, Waiting], 0, &[0]),
            ("the master is under way", &[Booting, Waiting, Waiting], 0, &[]),
            ("after it one worker", &[Done, Waiting, Waiting], 0, &[1]),
            ("after that two", &[Done, Done, Waiting, Waiting], 0, &[2, 3]),
            ("it waits for all others", &[Waiting, Returning, Waiting], 0, &[]),
            ("it waits for who is away", &[Waiting, Waiting, Waiting], 1, &[]),
        ];
        for (what, steps, away, begin) in cases {
            let mut journal = journal(2, steps);
            journal.nodes[0].master = true;
            assert_eq!(journal.may_begin(away), begin, "{what}");
        }
        let mut last = journal(2, &[Done, Waiting, Waiting]);
        last.nodes[2].master = true;
        assert_eq!(last.may_begin(0), [1], "not with a worker");
    }

    #[test]
    fn steps_follow_each_other() {
        let way = [
            Step::Waiting,
            Step::Leaving,
            Step::Draining,
            Step::Replacing,
            Step::Booting,
            Step::Settling,
            Step::Returning,
            Step::Recovering,
            Step::Done,
        ];
        for pair in way.windows(2) {
            assert!(pair[0].leads_to(pair[1]), "{pair:?}");
        }
        // Nothing leads back before the machine was made anew, and nothing out of an end.
        for (at, step) in way.iter().enumerate() {
            for earlier in &way[..at] {
                let again = (*step, *earlier) == (Step::Settling, Step::Booting);
                assert_eq!(step.leads_to(*earlier), again, "{step:?} {earlier:?}");
            }
            for end in [Step::Done, Step::Skipped, Step::Failed] {
                assert!(!end.leads_to(*step));
            }
            // What was touched is not said to be as it was.
            assert!(!(step.touched() && step.leads_to(Step::Skipped)), "{step:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut written = journal(1, &[Step::Waiting, Step::Settling]);
        written.nodes[1].token = Some("abcdef".into());
        let text = serde_json::to_string(&written).expect("text");
        assert_eq!(serde_json::from_str::<Journal>(&text).expect("journal"), written);
        let later = Timestamp::from_second(100).expect("time");
        written.resume(later);
        assert_eq!((written.nodes[0].since, written.nodes[1].since), (Timestamp::UNIX_EPOCH, later));
    }
}
