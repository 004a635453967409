//! Runs in which the plug is pulled: the engine on a disk that then loses a random subset of what
//! was not synced, or the process alone goes and the next one finds all that was written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{Answer, Event, Memory};
use super::load::{self, Load};
use super::{Cut, LIVES, Outcome, choose_cut, next_watches, target_life, verify_snapshots};
use crate::embedded::load_picture;
use crate::{Embedded, FaultDisk, Options, Point, Pull, Store};

/// Settings under which everything happens often.
pub(super) fn options() -> Options {
    Options {
        history: 100_000,
        history_bytes: 64 << 20,
        history_age: Duration::from_secs(3600),
        min_log_bytes: 16 << 10,
        ..Options::default()
    }
}

/// A sync takes up to this, so that more than one thing is going on at a time.
const LATENCY: Duration = Duration::from_micros(300);
const SNAPSHOTS: &str = "/snapshots";

/// One run: a store through several lives, each ended by a cut.
pub(super) fn run(seed: u64, point: Option<Point>, no_sync: bool) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut outcome = Outcome::default();
    let mut disk = FaultDisk::new();
    disk.set_latency(LATENCY);
    if no_sync {
        disk.ignore_sync();
    }
    for life in 0..LIVES {
        let cut = (life + 1 < LIVES).then(|| choose_cut(&mut rng, point.filter(|_| life == target_life(point))));
        match cut {
            Some(Cut::At(point, nth)) => disk.pull_at(Pull::At(point, nth)),
            Some(Cut::Moment(moment)) => disk.pull_at(Pull::Calls(moment)),
            None => {}
        }
        let seen = disk.clone();
        let recorder = Arc::new(Memory::new(move || seen.is_dead()));
        let load = Load {
            seed: rng.random(),
            first_op: 1 + life as u64 * 1_000_000,
            clients: 4,
            operations: 40,
            keys: 6,
            watches: next_watches(&outcome.events, &mut rng),
            snapshots: Some(PathBuf::from(SNAPSHOTS)),
            patience: 1,
        };
        let lived = live(&disk, &load, recorder.clone());
        outcome.events.extend(recorder.take());
        if let Err(what) = lived {
            outcome.failure = Some(format!("{what}{}", last_acknowledged(&outcome.events)));
            return outcome;
        }
        let Some(cut) = cut else { break };
        if disk.is_dead() {
            outcome.cuts.push(cut);
        } else {
            // The point was not reached: the plug goes out now.
            disk.pull();
            outcome.cuts.push(Cut::Moment(0));
        }
        outcome.events.push(Event::Crash);
        disk = if !no_sync && rng.random_bool(0.4) { disk.kill() } else { disk.plug(rng.random()) };
        if no_sync {
            // What is lost is to be seen in the store itself.
            continue;
        }
        let found = disk.names();
        let present = |name: &str| found.contains(&format!("{SNAPSHOTS}/{name}"));
        let opened = crate::io::Disk::beside(&disk, Path::new(SNAPSHOTS)).map_err(|e| e.to_string());
        let read = |name: &str| match &opened {
            Ok(disk) => load_picture(disk.as_ref(), name).map_err(|e| e.to_string()),
            Err(error) => Err(error.clone()),
        };
        if let Err(what) = verify_snapshots(&mut outcome.events, present, read) {
            outcome.failure = Some(what);
            return outcome;
        }
    }
    outcome
}

/// What is lost with a store that does not open.
fn last_acknowledged(events: &[Event]) -> String {
    let answered = events.iter().rev().find_map(|event| match event {
        Event::Return { op, answer: Answer::Written(revision) } => Some((*op, *revision)),
        _ => None,
    });
    let called = |wanted: u64| events.iter().find(|e| matches!(e, Event::Call { op, .. } if *op == wanted));
    answered.and_then(|(op, revision)| Some((called(op)?, revision))).map_or(String::new(), |(call, revision)| {
        format!("; lost with it is the acknowledged write at revision {revision} ({call}), and all before it")
    })
}

fn live(
    disk: &FaultDisk,
    load: &Load,
    recorder: Arc<Memory<impl Fn() -> bool + Send + Sync + 'static>>,
) -> Result<(), String> {
    let store = match Embedded::open(Arc::new(disk.clone()), options()) {
        Ok(store) => Arc::new(store),
        Err(_) if disk.is_dead() => return Ok(()),
        Err(error) => return Err(format!("the store does not open: {error}")),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    let shared: Arc<dyn Store> = store.clone();
    let lived = runtime.block_on(load::run(&[shared], load, recorder));
    // Those who still follow hold the store; they go with the runtime.
    drop(runtime);
    store.close();
    lived?;
    match store.failure() {
        Some(what) if !disk.is_dead() => Err(format!("the store failed with the plug in: {what}")),
        _ => Ok(()),
    }
}
