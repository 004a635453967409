//! The load: clients that write, compare and read a few keys, and watchers that follow them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{Answer, Call, Event, Listed, Recorder, name_of, payload};
use crate::{Change, Entry, Expect, Observer, Store, StoreError};

/// All keys are below this.
pub const PREFIX: &str = "/t/";
/// Watchers from here on are observers.
pub const OBSERVERS: u64 = 1000;
/// How long a watcher may take to see what was written before the load ended.
const CATCH_UP: Duration = Duration::from_secs(20);
/// Pause of a client that gets errors.
const BACK_OFF: Duration = Duration::from_millis(20);

/// A watch that goes on after a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    pub watcher: u64,
    pub prefix: String,
    pub after: u64,
}

/// What a load is made of.
#[derive(Clone, Debug)]
pub struct Load {
    pub seed: u64,
    /// Operations get numbers from here on; no two loads of one history may share any.
    pub first_op: u64,
    pub clients: usize,
    pub operations: usize,
    pub keys: usize,
    pub watches: Vec<Resume>,
    /// Where snapshots go, by the number of their operation; none without it.
    pub snapshots: Option<PathBuf>,
    /// Errors in a row after which a client ends.
    pub patience: usize,
}

/// Where snapshot `op` is.
pub fn snapshot_name(op: u64) -> String {
    format!("snapshot-{op}")
}

struct Client<'a> {
    store: Arc<dyn Store>,
    recorder: &'a dyn Recorder,
    ops: &'a AtomicU64,
}

impl Client<'_> {
    fn call(&self, call: Call) -> u64 {
        let op = self.ops.fetch_add(1, Ordering::Relaxed);
        self.recorder.record(Event::Call { op, call });
        op
    }

    fn answer(&self, op: u64, answer: Answer) -> Answer {
        self.recorder.record(Event::Return { op, answer: answer.clone() });
        answer
    }

    fn written(&self, op: u64, done: Result<u64, StoreError>) -> Answer {
        let answer = match done {
            Ok(revision) => Answer::Written(revision),
            Err(StoreError::Mismatch) => Answer::Mismatch,
            Err(_) => Answer::Unknown,
        };
        self.answer(op, answer)
    }

    async fn put(&self, key: &str, expect: Expect, filler: usize) -> Answer {
        let op = self.ops.fetch_add(1, Ordering::Relaxed);
        let value = format!("v{op}");
        self.recorder.record(Event::Call { op, call: Call::Put { key: key.into(), value: value.clone(), expect } });
        self.written(op, self.store.put(key, payload(&value, filler), expect, None).await)
    }

    async fn delete(&self, key: &str, expect: Expect) -> Answer {
        let op = self.call(Call::Delete { key: key.into(), expect });
        self.written(op, self.store.delete(key, expect).await)
    }

    async fn get(&self, key: &str) -> Answer {
        let op = self.call(Call::Get { key: key.into() });
        let answer = match self.store.get(key).await {
            Ok(found) => Answer::Found(found.map(|e| (name_of(&e.value, e.revision), e.revision))),
            Err(_) => Answer::Unknown,
        };
        self.answer(op, answer)
    }

    async fn list(&self, prefix: &str) -> Answer {
        let op = self.call(Call::List { prefix: prefix.into() });
        let answer = match self.store.range(prefix, "", 0).await {
            Ok((entries, revision)) => Answer::Listed { entries: listed(&entries), revision },
            Err(_) => Answer::Unknown,
        };
        self.answer(op, answer)
    }

    /// Reads a key and replaces what it has, or makes it.
    async fn swap(&self, key: &str, filler: usize) -> Answer {
        match self.get(key).await {
            Answer::Found(Some((_, revision))) => self.put(key, Expect::At(revision), filler).await,
            Answer::Found(None) => self.put(key, Expect::Absent, filler).await,
            other => other,
        }
    }

    async fn run(&self, load: &Load, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut errors = 0;
        for _ in 0..load.operations {
            let key = format!("{PREFIX}{}", rng.random_range(0..load.keys));
            let filler = if rng.random_bool(0.05) { 6000 } else { rng.random_range(0..700) };
            let answer = match rng.random_range(0..100) {
                0..45 => self.swap(&key, filler).await,
                45..60 => self.put(&key, Expect::Any, filler).await,
                60..68 => self.put(&key, Expect::Absent, filler).await,
                68..76 => self.delete(&key, Expect::Any).await,
                76..92 => self.get(&key).await,
                _ => self.list(PREFIX).await,
            };
            if self.recorder.is_over() {
                return;
            }
            errors = if answer == Answer::Unknown { errors + 1 } else { 0 };
            if errors > 0 {
                if errors >= load.patience {
                    return;
                }
                tokio::time::sleep(BACK_OFF).await;
            }
            // Reads come back at once; the others are to have a turn.
            tokio::task::yield_now().await;
        }
    }

    /// Makes snapshots and forgets changes, now and then.
    async fn keep_house(&self, load: &Load, done: &AtomicU64) {
        let mut rng = StdRng::seed_from_u64(load.seed ^ 0x5eed);
        while done.load(Ordering::Relaxed) < load.clients as u64 && !self.recorder.is_over() {
            if let Some(dir) = &load.snapshots {
                let op = self.call(Call::Snapshot);
                let made = self.store.snapshot(dir.join(snapshot_name(op))).await;
                self.written(op, made);
            }
            if rng.random_bool(0.05) {
                let revision = self.store.revision().saturating_sub(rng.random_range(0..200));
                // Nothing rests on it: if it fails, the changes stay.
                drop(self.store.compact(revision).await);
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..6))).await;
        }
    }
}

fn listed(entries: &[Entry]) -> Vec<Listed> {
    entries.iter().map(|e| (e.key.to_string(), name_of(&e.value, e.revision), e.revision)).collect()
}

/// Entries of a picture as a history has them.
pub fn snapshot_event(op: u64, entries: &[Entry], revision: u64) -> Event {
    Event::Snapshot { op, entries: listed(entries), revision }
}

struct Following {
    watcher: u64,
    recorder: Arc<dyn Recorder>,
    ops: Arc<AtomicU64>,
}

impl Following {
    fn see(&self, change: &Change) {
        self.recorder.record(Event::Seen {
            watcher: self.watcher,
            key: change.key.to_string(),
            revision: change.revision,
            value: change.value.as_deref().map(|v| name_of(v, change.revision)),
        });
    }
}

impl Observer for Following {
    fn load(&self, entries: Vec<Entry>, revision: u64) {
        // A picture of its revision, which may be behind what others have seen by now.
        let op = self.ops.fetch_add(1, Ordering::Relaxed);
        self.recorder.record(snapshot_event(op, &entries, revision));
        self.recorder.record(Event::Watching { watcher: self.watcher, prefix: PREFIX.into(), after: revision });
    }

    fn apply(&self, changes: &[Change], revision: u64) {
        changes.iter().for_each(|change| self.see(change));
        self.recorder.record(Event::Bookmark { watcher: self.watcher, revision });
    }
}

/// Follows changes until `upto` is told and reached; false: it was not in time.
async fn follow(
    store: Arc<dyn Store>,
    resume: Resume,
    following: Following,
    mut upto: tokio::sync::watch::Receiver<Option<u64>>,
) -> bool {
    let Resume { watcher, prefix, mut after } = resume;
    let recorder = following.recorder.clone();
    let mut deadline = None;
    loop {
        let mut changes = match store.watch(&prefix, after) {
            Ok(changes) => changes,
            Err(StoreError::Compacted { asked, kept }) => {
                recorder.record(Event::Compacted { watcher, asked, kept });
                let client = Client { store: store.clone(), recorder: recorder.as_ref(), ops: &following.ops };
                let Answer::Listed { revision, .. } = client.list(&prefix).await else { return recorder.is_over() };
                after = revision;
                continue;
            }
            Err(_) => return recorder.is_over(),
        };
        recorder.record(Event::Watching { watcher, prefix: prefix.clone(), after });
        loop {
            let end = *upto.borrow_and_update();
            if end.is_some_and(|end| after >= end) || recorder.is_over() {
                return true;
            }
            if end.is_some() {
                deadline.get_or_insert_with(|| tokio::time::Instant::now() + CATCH_UP);
            }
            let wait = deadline.unwrap_or_else(|| tokio::time::Instant::now() + CATCH_UP);
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => {
                        following.see(&change);
                        after = change.revision;
                    }
                    // The engine lost sight of some changes, or is gone; the watch begins again.
                    None => {
                        tokio::time::sleep(BACK_OFF).await;
                        break;
                    }
                },
                _ = upto.changed() => {}
                () = tokio::time::sleep_until(wait) => {
                    if deadline.is_some() {
                        return false;
                    }
                }
            }
        }
    }
}

/// Runs a load on engines of one store: clients and watchers are dealt out among them.  The
/// error says what a watcher has not got.
pub async fn run(stores: &[Arc<dyn Store>], load: &Load, recorder: Arc<dyn Recorder>) -> Result<(), String> {
    let ops = Arc::new(AtomicU64::new(load.first_op));
    let store = |n: usize| stores[n % stores.len()].clone();
    recorder.record(Event::Opened { revision: store(0).revision() });
    let client = |n| Client { store: store(n), recorder: recorder.as_ref(), ops: ops.as_ref() };
    client(0).list(PREFIX).await;
    for (n, store) in stores.iter().enumerate() {
        let watcher = OBSERVERS + load.first_op + n as u64;
        store.attach(PREFIX, Arc::new(Following { watcher, recorder: recorder.clone(), ops: ops.clone() }));
    }
    let (end, upto) = tokio::sync::watch::channel(None);
    let followers: Vec<_> = load
        .watches
        .iter()
        .enumerate()
        .map(|(n, resume)| {
            let following = Following { watcher: resume.watcher, recorder: recorder.clone(), ops: ops.clone() };
            tokio::spawn(follow(store(n), resume.clone(), following, upto.clone()))
        })
        .collect();
    let done = AtomicU64::new(0);
    let clients = (0..load.clients).map(|n| {
        let (client, done) = (client(n), &done);
        async move {
            client.run(load, load.seed.wrapping_mul(31).wrapping_add(n as u64)).await;
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
    let house = client(0);
    futures::join!(futures::future::join_all(clients), house.keep_house(load, &done));
    // A write of its own, so that every watcher has something to reach.
    let last = match client(0).put(&format!("{PREFIX}last"), Expect::Any, 0).await {
        Answer::Written(revision) => revision,
        _ => 0,
    };
    end.send_replace(Some(last));
    for (follower, resume) in followers.into_iter().zip(&load.watches) {
        if !follower.await.unwrap_or(false) && !recorder.is_over() {
            return Err(format!("watch {} has not seen revision {last} after {CATCH_UP:?}", resume.watcher));
        }
    }
    Ok(())
}
