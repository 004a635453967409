//! Torture: stores that are cut off, by a kill or by a pulled plug, at random moments and at each
//! named [`Point`], while clients write and watchers follow; and the proof, from what all of them
//! were told, that nothing acknowledged was lost, no revision went back, and every watch went on
//! without gap or repeat.
//!
//! A run's seed fixes the load, the moments and what a disk loses.  It does not fix how threads
//! take turns, so a failure that rests on that may need several runs of its seed.

mod check;
#[cfg(test)]
mod check_tests;
mod history;
mod kill;
pub(crate) mod load;
mod plug;
mod register;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use crate::{Entry, Point};
use history::{Answer, Call, Event};
use load::OBSERVERS;

pub use check::{Tally, check};
pub use history::{Event as HistoryEvent, Memory, Recorder};
pub use kill::child;
pub use load::{Load, Resume, run as run_load};

/// Lives of a store in one run; each but the last ends with a cut.
const LIVES: usize = 4;

/// When a life is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// When a point is met for the so-manieth time.
    At(Point, u64),
    /// At some moment: calls of the disk, or half milliseconds.
    Moment(u64),
}

/// What one run was.
#[derive(Default)]
struct Outcome {
    events: Vec<Event>,
    cuts: Vec<Cut>,
    failure: Option<String>,
}

/// What is to be done.
pub struct Torture<'a> {
    pub runs: u64,
    /// Seed of the first run; the next ones count on from it.
    pub seed: u64,
    /// Makes every sync do nothing; then this must fail.
    pub no_sync: bool,
    /// Starts a child process, given the text of what it is to do: it calls [`child`] with it.
    pub command: &'a dyn Fn(&str) -> Command,
    /// Where the directories of the kills are made.
    pub dir: PathBuf,
    /// Told after each run.
    pub progress: &'a dyn Fn(u64),
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    pub runs: u64,
    pub tally: Tally,
    /// How often each point ended a life, and in all how many random moments did.
    pub points: BTreeMap<&'static str, u64>,
    pub moments: u64,
    pub plug_time: Duration,
    pub kill_time: Duration,
}

/// Does it; the error names the seed that shows it again.
pub fn run(torture: &Torture<'_>) -> Result<Report, String> {
    let mut report = Report { points: Point::ALL.iter().map(|(_, name)| (*name, 0)).collect(), ..Report::default() };
    for n in 0..torture.runs {
        let seed = torture.seed.wrapping_add(n);
        // Every point has its turn, and so do runs of random moments alone.
        let (point, _) = Point::ALL[(seed % Point::ALL.len() as u64) as usize];
        let point = (seed / Point::ALL.len() as u64 % 3 != 2).then_some(point);
        let told = |kind: &str, what: String| {
            let sync = if torture.no_sync { " --no-sync" } else { "" };
            format!(
                "seed {seed}, {kind}: {what}\nto see it again: kube-apiserver store torture --runs 1 --seed {seed}{sync}"
            )
        };
        let begun = Instant::now();
        report.take(plug::run(seed, point, torture.no_sync)).map_err(|what| told("pulled plug", what))?;
        report.plug_time += begun.elapsed();
        if !torture.no_sync {
            let begun = Instant::now();
            let dir = torture.dir.join(format!("torture-{}-{seed}", std::process::id()));
            std::fs::create_dir_all(&dir).map_err(|e| format!("making {}: {e}", dir.display()))?;
            let outcome = kill::run(seed, point, &dir, torture.command);
            let taken = report.take(outcome);
            taken.map_err(|what| told("killed process", format!("{what}\nthe store is in {}", dir.display())))?;
            std::fs::remove_dir_all(&dir).map_err(|e| format!("removing {}: {e}", dir.display()))?;
            report.kill_time += begun.elapsed();
        }
        report.runs += 1;
        (torture.progress)(n + 1);
    }
    Ok(report)
}

impl Report {
    fn take(&mut self, outcome: Outcome) -> Result<(), String> {
        if let Some(failure) = outcome.failure {
            return Err(failure);
        }
        let tally = check(&outcome.events)?;
        for cut in &outcome.cuts {
            match cut {
                Cut::At(point, _) => *self.points.entry(point.name()).or_default() += 1,
                Cut::Moment(_) => self.moments += 1,
            }
        }
        let sum = &mut self.tally;
        sum.operations += tally.operations;
        sum.acknowledged += tally.acknowledged;
        sum.unknown += tally.unknown;
        sum.seen += tally.seen;
        sum.snapshots += tally.snapshots;
        sum.resumed += tally.resumed;
        sum.relisted += tally.relisted;
        Ok(())
    }
}

fn choose_cut(rng: &mut StdRng, point: Option<Point>) -> Cut {
    match point {
        Some(point) => Cut::At(point, rng.random_range(1..=often(point))),
        None if rng.random_bool(0.5) => {
            let (point, _) = Point::ALL[rng.random_range(0..Point::ALL.len())];
            Cut::At(point, rng.random_range(1..=often(point)))
        }
        // A short life shows what the one before has left half done.
        None if rng.random_bool(0.3) => Cut::Moment(rng.random_range(1..30)),
        None => Cut::Moment(rng.random_range(1..400)),
    }
}

/// The life that is to end at `point`: a new store's own point is met in the first one only,
/// others in the later ones, too.
fn target_life(point: Option<Point>) -> usize {
    usize::from(point.is_some_and(|p| p != Point::OpenCreate))
}

/// About how often a point is met in a life.
fn often(point: Point) -> u64 {
    match point {
        // What comes in while a picture is written is luck; so is how often there is any of it.
        Point::OpenCreate | Point::OpenCut | Point::CompactionSync => 1,
        Point::CommitAppend | Point::CommitSync | Point::CommitShow | Point::CommitAnswer | Point::CommitAnswered => 30,
        _ => 3,
    }
}

/// Watches of the next life: each goes on where it was, or where a bookmark was, or from some
/// time before, which may be kept no longer.
fn next_watches(events: &[Event], rng: &mut StdRng) -> Vec<Resume> {
    let bookmark = events.iter().rev().find_map(|event| match event {
        Event::Bookmark { revision, .. } => Some(*revision),
        _ => None,
    });
    let at = |watcher: u64| {
        events.iter().rev().find_map(|event| match event {
            Event::Seen { watcher: w, revision, .. } if *w == watcher => Some(*revision),
            Event::Watching { watcher: w, after, .. } if *w == watcher => Some(*after),
            _ => None,
        })
    };
    (1..=3)
        .map(|watcher| {
            debug_assert!(watcher < OBSERVERS, "their numbers are their own");
            let last = at(watcher).unwrap_or(1);
            let after = match bookmark {
                Some(bookmark) if rng.random_bool(0.3) => bookmark,
                _ if rng.random_bool(0.2) => rng.random_range(1..=last),
                _ => last,
            };
            Resume { watcher, prefix: if watcher == 1 { "/".into() } else { load::PREFIX.into() }, after }
        })
        .collect()
}

/// Every snapshot that has its name is whole, and those that were answered have it.
fn verify_snapshots(
    events: &mut Vec<Event>,
    present: impl Fn(&str) -> bool,
    read: impl Fn(&str) -> Result<(Vec<Entry>, u64), String>,
) -> Result<(), String> {
    let held: Vec<u64> = of(events, |event| matches!(event, Event::Snapshot { .. }));
    let answered: Vec<u64> = of(events, |event| matches!(event, Event::Return { answer: Answer::Written(_), .. }));
    let asked: Vec<u64> = of(events, |event| matches!(event, Event::Call { call: Call::Snapshot, .. }));
    for op in asked.into_iter().filter(|op| !held.contains(op)) {
        let name = load::snapshot_name(op);
        if present(&name) {
            let (entries, revision) = read(&name).map_err(|what| format!("snapshot {op} is not whole: {what}"))?;
            events.push(load::snapshot_event(op, &entries, revision));
        } else if answered.contains(&op) {
            return Err(format!("snapshot {op} was answered, and is not there"));
        }
    }
    Ok(())
}

fn of(events: &[Event], wanted: impl Fn(&Event) -> bool) -> Vec<u64> {
    let op = |event: &Event| match event {
        Event::Call { op, .. } | Event::Return { op, .. } | Event::Snapshot { op, .. } => Some(*op),
        _ => None,
    };
    events.iter().filter(|e| wanted(e)).filter_map(op).collect()
}
