//! What is done with claims whose data is copied from the old machine to the new one, by way of this one.

use super::{BACKUP_PATIENCE, Book, Engine, Held, Killed};
use crate::client::node::Refused;
use crate::input::BadInput;
use crate::roll::journal::{Copied, DataAt, Entry, Step};
use crate::roll::plan::Node;
use crate::roll::volumes::Copies;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

impl Engine<'_> {
    pub(super) fn copies(&self) -> Copies {
        Copies::of(self.copy.path().parent().unwrap_or(Path::new(".")))
    }

    /// A node whose data is here takes no pods until it has it back, unless somebody lets it.
    pub(super) fn check_untouched(&self, entry: &Entry, node: &Node) -> Result<()> {
        if !entry.is_carried() || node.cordoned {
            return Ok(());
        }
        Err(Held(format!(
            "somebody let {0} take pods again while the data of its claims ({1}) is on this machine, so pods may have written \
             more there, which would be lost: look at it, and `kubectl cordon {0}` has `kimg roll` go on with what is in {2}",
            entry.node,
            entry.copy.iter().map(|one| one.claim.as_str()).collect::<Vec<_>>().join(", "),
            self.copies().dir(&entry.node).display()
        ))
        .into())
    }

    /// Copies the volumes of a drained node to this machine, while its own is there; none where that is done. What it said
    /// it is then waited for.
    pub(super) fn carry_off(
        &mut self,
        book: &mut Book,
        index: usize,
        entry: &Entry,
        node: Option<&Node>,
    ) -> Result<Option<Option<String>>> {
        match entry.data {
            _ if entry.copy.is_empty() => return Ok(None),
            // Of the old machine there may be nothing left.
            DataAt::Here => return self.check_kept(entry).map(|()| None),
            DataAt::Old | DataAt::New => {}
        }
        let limit = Duration::from_secs(book.journal.rules.timeout_secs);
        let claims: Vec<&str> = entry.copy.iter().map(|one| one.claim.as_str()).collect();
        let user = self.kube.user_of(&entry.node, &claims)?;
        let (why, limit) = match user {
            Some(pod) => (format!("pod {pod} still uses a claim that is to be copied"), limit),
            None => match self.fetch_all(entry) {
                Ok(()) => {
                    book.journal.nodes[index].data = DataAt::Here;
                    return self.save(book, &format!("kept:{}", entry.node)).map(|()| None);
                }
                Err(error) if error.is::<Killed>() => return Err(error),
                Err(error) if error.is::<BadInput>() => (format!("{error:#}"), Duration::ZERO),
                Err(error) => (format!("{error:#}"), BACKUP_PATIENCE),
            },
        };
        if entry.lasted(self.clock.now()) < limit {
            return Ok(Some(Some(format!("{}: {why}", entry.node))));
        }
        self.uncordon(node)?;
        // What was copied is there still.
        self.copies().forget(&entry.node)?;
        let why = format!("it was not touched, as its claims could not be copied: {why}");
        self.give_up(book, index, Step::Failed, why).map(Some)
    }

    fn fetch_all(&self, entry: &Entry) -> Result<()> {
        let (name, copies) = (&entry.node, self.copies());
        for Copied { claim, volume, .. } in &entry.copy {
            (self.say)(&format!("{name}: claim {claim} is copied to this machine"));
            let fetched = copies.keep(name, volume, |to| self.volumes.fetch(name, volume, to, &|| self.beat()));
            fetched.with_context(|| format!("copying claim {claim}"))?;
            (self.failpoint)(&format!("fetched:{name}"))?;
        }
        // It took its time.
        self.hold_lock()
    }

    /// The lock is kept while something takes its time; whoever has taken it all the same is heard of afterwards.
    fn beat(&self) {
        if let Err(error) = self.hold_lock() {
            tracing::debug!("the lock is not renewed: {error:#}");
        }
    }

    /// Whether all that was copied is here. Nothing is done without it, and nothing is given up by itself.
    fn check_kept(&self, entry: &Entry) -> Result<()> {
        self.kept(entry).map(drop)
    }

    /// The copies that are to be given, with their sums.
    fn kept<'e>(&self, entry: &'e Entry) -> Result<Vec<(&'e Copied, String)>> {
        let (name, copies) = (&entry.node, self.copies());
        let wanted = entry.copy.iter().filter(|one| !one.lost);
        let sum = |one: &'e Copied| {
            let path = copies.path(name, &one.volume);
            let why = match copies.sum(name, &one.volume) {
                Ok(Some(sum)) => return Ok((one, sum)),
                Ok(None) => "is not here".to_owned(),
                Err(error) => format!("cannot be used ({error:#})"),
            };
            Err(Held(format!(
                "{name} takes no pods: the copy of claim {} {why}, and the machine that it was made from may be gone. Go on \
                 with `kimg roll` where it was begun, which has {}; or give the claim up with `kimg roll --lose-data {}`",
                one.claim,
                path.display(),
                one.claim
            ))
            .into())
        };
        wanted.map(sum).collect()
    }

    /// Gives a new node the data of its claims before pods come to it, and only then forgets the copies.
    pub(super) fn hand_over(&mut self, book: &mut Book, index: usize, entry: &Entry) -> Result<()> {
        let name = &entry.node;
        if entry.is_carried() {
            let kept = self.kept(entry)?;
            for one in entry.copy.iter().filter(|one| one.lost) {
                self.kube.delete_claim(&one.claim)?;
            }
            for (one, sum) in kept {
                self.give(name, one, &sum).map_err(|error| refusal(name, one, error))?;
                (self.failpoint)(&format!("given:{name}"))?;
            }
            self.hold_lock()?;
            book.journal.nodes[index].data = DataAt::New;
            self.save(book, &format!("handed-over:{name}"))?;
        }
        self.copies().forget(name)?;
        (self.failpoint)(&format!("forgotten:{name}"))
    }

    fn give(&self, node: &str, one: &Copied, sum: &str) -> Result<()> {
        let there = self.volumes.list(node)?;
        if there.iter().any(|known| known.name == one.volume && known.copy_of.as_deref() == Some(sum)) {
            return Ok(());
        }
        (self.say)(&format!("{node}: gets the data of claim {}", one.claim));
        let copy = self.copies().open(node, &one.volume)?;
        self.volumes.give(node, &one.volume, copy, &|| self.beat())
    }
}

/// What the node refuses is not asked for again and again; whatever it is, its data is here.
fn refusal(node: &str, one: &Copied, error: anyhow::Error) -> anyhow::Error {
    if error.is::<BadInput>() || error.is::<Refused>() {
        return Held(format!(
            "{node} takes no pods: it does not take the copy of claim {}, which stays on this machine: {error:#}. `kimg roll` \
             tries again, `kimg roll --rollback` goes back with it",
            one.claim
        ))
        .into();
    }
    error.context(format!("giving {node} the data of claim {}", one.claim))
}
