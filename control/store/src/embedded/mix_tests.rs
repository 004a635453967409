//! The bounds of the log under every mix of writes: updates, growth, removal, hot keys, large
//! values, churn.  The long form is a part of the long set.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::DirDisk;

enum Write {
    Put(String, usize),
    Delete(String),
}

/// What writes of one phase are like.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Update,
    Grow,
    Remove,
    Hot,
    Large,
    Churn,
}

const PHASES: [Phase; 8] =
    [Phase::Grow, Phase::Update, Phase::Remove, Phase::Update, Phase::Large, Phase::Hot, Phase::Grow, Phase::Churn];

struct Mix {
    rng: StdRng,
    /// Live keys with the revision of their last write, and their place among the names.
    live: HashMap<String, (u64, usize)>,
    names: Vec<String>,
    next: u64,
    most: usize,
}

impl Mix {
    fn pick(&mut self, phase: Phase, taken: &HashMap<String, ()>) -> Option<Write> {
        self.next += 1;
        let fresh = format!("/mix/{:07}", self.next);
        let size = self.rng.random_range(100..1900);
        let name = match self.names.len() {
            0 => return Some(Write::Put(fresh, size)),
            len => self.names[self.rng.random_range(0..len)].clone(),
        };
        let write = match phase {
            Phase::Grow if self.names.len() < self.most => Write::Put(fresh, size),
            Phase::Grow | Phase::Update => Write::Put(name, size),
            Phase::Remove if self.names.len() > self.most / 50 => Write::Delete(name),
            Phase::Remove => Write::Put(name, size),
            Phase::Hot => Write::Put(self.names[self.rng.random_range(0..self.names.len().min(20))].clone(), size),
            Phase::Large => Write::Put(name, if self.rng.random_bool(0.01) { 200_000 } else { 50 }),
            Phase::Churn if self.rng.random_bool(0.5) => Write::Delete(name),
            Phase::Churn => Write::Put(fresh, size),
        };
        let (Write::Put(key, _) | Write::Delete(key)) = &write;
        (!taken.contains_key(key)).then_some(write)
    }

    fn chunk(&mut self, phase: Phase, size: usize) -> Vec<Write> {
        let mut taken = HashMap::new();
        let mut writes = Vec::with_capacity(size);
        for _ in 0..size {
            if let Some(write) = self.pick(phase, &taken) {
                let (Write::Put(key, _) | Write::Delete(key)) = &write;
                taken.insert(key.clone(), ());
                writes.push(write);
            }
        }
        writes
    }

    fn took(&mut self, write: &Write, revision: u64) {
        match write {
            Write::Put(key, _) => {
                let at = self.live.get(key).map_or(self.names.len(), |(_, at)| *at);
                if self.live.insert(key.clone(), (revision, at)).is_none() {
                    self.names.push(key.clone());
                }
            }
            Write::Delete(key) => {
                let (_, at) = self.live.remove(key).expect("what is removed was live");
                self.names.swap_remove(at);
                if let Some(moved) = self.names.get(at) {
                    self.live.get_mut(moved).expect("it is live").1 = at;
                }
            }
        }
    }
}

/// Makes `updates` writes in a directory, so many at one time; gives what the engine counted.
fn mix(dir: &Path, updates: u64, at_once: usize, keys: usize, min_log_bytes: u64) -> Counters {
    let options = Options { min_log_bytes, ..Options::default() };
    let open = || Embedded::open(Arc::new(DirDisk::open(dir).unwrap()), options.clone()).unwrap();
    let store = open();
    let mut mix = Mix { rng: StdRng::seed_from_u64(1), live: HashMap::new(), names: Vec::new(), next: 0, most: keys };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut done, mut worst) = (0, 0.0f64);
    let begun = Instant::now();
    while done < updates {
        // Each phase comes several times.
        let phase = PHASES[(done * 3 * PHASES.len() as u64 / updates) as usize % PHASES.len()];
        let writes = mix.chunk(phase, at_once);
        let live = store.live_bytes();
        let asked = writes.iter().map(|write| match write {
            Write::Put(key, size) => store.put(key, Stamped::plain(vec![b'm'; *size]), Expect::Any, None),
            Write::Delete(key) => store.delete(key, Expect::Any),
        });
        let answers = runtime.block_on(futures::future::join_all(asked));
        for (write, revision) in writes.iter().zip(answers) {
            mix.took(write, revision.unwrap());
            done += 1;
        }
        let size = std::fs::metadata(dir.join(LOG)).unwrap().len();
        // The last batch may have made the live set smaller; then the next one waits for a rewriting.
        let allowed = min_log_bytes.max(2 * live.max(store.live_bytes()));
        assert!(size <= allowed, "{phase:?} after {done}: the log has {size} bytes, {allowed} are allowed");
        worst = worst.max(size as f64 / allowed as f64);
        let counters = store.counters().unwrap();
        assert!(counters.history <= 4096 && counters.history_bytes <= 4 << 20, "{counters:?}");
    }
    let (counters, live) = (store.counters().unwrap(), store.live_bytes());
    println!(
        "{done} writes in {:.1?}: {:.3} syncs a batch, {:.3} a write; {:.2} bytes written for each one \
         acknowledged; the log at most {:.0} % of what is allowed, {} times written anew; {live} bytes live, {} in the log",
        begun.elapsed(),
        counters.syncs as f64 / counters.batches as f64,
        counters.syncs as f64 / counters.writes as f64,
        counters.written_bytes as f64 / counters.acknowledged_bytes as f64,
        worst * 100.0,
        counters.rewrites,
        counters.log_bytes,
    );
    drop(store);
    let (entries, _) = runtime.block_on(open().range("/mix/", "", 0)).unwrap();
    assert_eq!(entries.len(), mix.live.len());
    assert!(
        entries.iter().all(|e| mix.live.get(&*e.key).is_some_and(|(at, _)| *at == e.revision)),
        "all is there as it was answered"
    );
    counters
}

fn within_bounds(counters: &Counters) {
    let syncs = counters.syncs as f64 / counters.batches as f64;
    let bytes = counters.written_bytes as f64 / counters.acknowledged_bytes as f64;
    assert!(syncs <= 1.2, "{syncs} syncs a batch: {counters:?}");
    assert!(bytes <= 3.0, "{bytes} bytes written for each one acknowledged: {counters:?}");
}

#[test]
fn every_mix_stays_within_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    within_bounds(&mix(dir.path(), 40_000, 256, 3_000, 2 << 20));
}

#[test]
#[ignore = "ten million updates; in the long set"]
fn ten_million_updates_stay_within_their_bounds() {
    let dir = tempfile::tempdir().unwrap();
    within_bounds(&mix(dir.path(), 10_000_000, 1000, 40_000, 8 << 20));
}
