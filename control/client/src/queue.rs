//! A work queue: each key at most once waiting and at most once in work, failures with growing pauses.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Keys of work to do.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// Waiting, or to be queued again when the work on it ends.
    dirty: HashSet<T>,
    working: HashSet<T>,
    /// By time, then by order of arrival.
    later: BTreeMap<(Instant, u64), T>,
    /// When each key in `later` is due, so that only the earliest time counts.
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    counter: u64,
    added: u64,
    retried: u64,
}

/// Figures for the metrics page.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub depth: usize,
    pub added: u64,
    pub retried: u64,
}

impl<T: Hash + Eq + Clone + Send> Default for Queue<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                dirty: HashSet::new(),
                working: HashSet::new(),
                later: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                counter: 0,
                added: 0,
                retried: 0,
            }),
            wake: Notify::new(),
        }
    }
}

impl<T: Hash + Eq + Clone + Send> Queue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn add(&self, key: T) {
        self.state().add(key);
        self.wake.notify_one();
    }

    /// Adds the key when the time is over, unless it is due earlier already.
    pub fn add_after(&self, key: T, pause: Duration) {
        if pause.is_zero() {
            return self.add(key);
        }
        let mut state = self.state();
        let at = Instant::now() + pause;
        if let Some(known) = state.due.get(&key).copied() {
            if known.0 <= at {
                return;
            }
            state.later.remove(&known);
        }
        state.counter += 1;
        let place = (at, state.counter);
        state.later.insert(place, key.clone());
        state.due.insert(key, place);
        drop(state);
        self.wake.notify_one();
    }

    /// The next key; whoever takes it calls `done` or `failed`.
    pub async fn take(&self) -> T {
        loop {
            let due = {
                let mut state = self.state();
                state.wake_due(Instant::now());
                if let Some(key) = state.waiting.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if !state.waiting.is_empty() {
                        // More than one worker may sleep on a single notification.
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.later.first_key_value().map(|((at, _), _)| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    pub fn done(&self, key: &T) {
        let mut state = self.state();
        state.failures.remove(key);
        state.end(key);
        drop(state);
        self.wake.notify_one();
    }

    /// Ends the work on the key and tries it again after a pause that doubles each time.
    pub fn failed(&self, key: &T) -> Duration {
        let pause = {
            let mut state = self.state();
            let count = state.failures.entry(key.clone()).or_insert(0);
            let pause = FIRST_PAUSE.saturating_mul(1 << (*count).min(12)).min(LONGEST_PAUSE);
            *count += 1;
            state.retried += 1;
            state.end(key);
            pause
        };
        self.add_after(key.clone(), pause);
        pause
    }

    pub fn figures(&self) -> Figures {
        let state = self.state();
        Figures { depth: state.waiting.len(), added: state.added, retried: state.retried }
    }
}

impl<T: Hash + Eq + Clone> State<T> {
    fn add(&mut self, key: T) {
        self.added += 1;
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.waiting.push_back(key);
        }
    }

    fn end(&mut self, key: &T) {
        self.working.remove(key);
        if self.dirty.contains(key) {
            self.waiting.push_back(key.clone());
        }
    }

    fn wake_due(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_in_work_waits_for_its_end() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.take().await, "a");
        queue.add("a");
        assert_eq!(queue.figures().depth, 0);
        queue.done(&"a");
        assert_eq!(queue.take().await, "a");
    }

    #[tokio::test]
    async fn pauses_double_and_the_earliest_counts() {
        let queue = Queue::default();
        queue.add("a");
        queue.take().await;
        assert_eq!(queue.failed(&"a"), FIRST_PAUSE);
        queue.add_after("a", Duration::from_secs(60));
        let begin = Instant::now();
        assert_eq!(queue.take().await, "a");
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!(queue.failed(&"a"), FIRST_PAUSE * 2);
    }
}
