//! Pods that wait for a node.
//!
//! ```text
//!            pop                    no node
//! active ──────────► in the cycle ──────────► parked ──(an event that may help, or 5 min)──┐
//!   ▲                     │ failed                                                         │
//!   └────── backing off ◄─┴────────────────────────────────────────────────────────────────┘
//! ```
//!
//! No I/O; the clock is an argument, in milliseconds of any steady clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::reason::Plugin;
use crate::snapshot::PodInfo;

const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 10_000;
/// A parked pod is tried again after this long, whatever happens.
const PATIENCE_MS: u64 = 300_000;

/// What changed in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    NodeAdded,
    NodeChanged,
    /// A pod that had a node is gone, or has ended.
    PodRemoved,
    /// A pod got a node, or its labels changed there.
    PodPlaced,
    Storage,
}

impl Event {
    /// Whether the event may change this plugin's mind.
    fn may_help(self, plugin: Plugin) -> bool {
        use Plugin::*;
        match self {
            Self::NodeAdded => true,
            Self::NodeChanged => plugin != NodePorts,
            Self::PodRemoved => matches!(
                plugin,
                NodePorts | NodeResourcesFit | PodTopologySpread | InterPodAffinity | VolumeRestrictions
            ),
            Self::PodPlaced => matches!(plugin, PodTopologySpread | InterPodAffinity),
            Self::Storage => matches!(plugin, VolumeBinding | VolumeRestrictions),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// By priority, then by time of arrival.
    Active(Reverse<i32>, u64),
    BackingOff(u64, u64),
    Parked,
    InCycle,
}

struct Entry {
    pod: Arc<PodInfo>,
    attempts: u32,
    arrived: u64,
    place: Place,
    parked_at: u64,
    plugins: BTreeSet<Plugin>,
    /// An event came while the pod was in the cycle.
    moved: bool,
}

#[derive(Default)]
pub struct SchedulingQueue {
    entries: HashMap<String, Entry>,
    active: BTreeMap<(Reverse<i32>, u64), String>,
    backing_off: BTreeMap<(u64, u64), String>,
    counter: u64,
}

/// How many pods stand where.
#[derive(Debug, PartialEq, Eq)]
pub struct Depths {
    pub active: usize,
    pub backing_off: usize,
    pub parked: usize,
}

impl SchedulingQueue {
    /// Adds a pod, or takes in its new form; `changed` says whether the change may make it fit.
    pub fn upsert(&mut self, pod: Arc<PodInfo>, changed: bool) {
        let uid = pod.uid().to_owned();
        match self.entries.get_mut(&uid) {
            Some(entry) => {
                let urgent = entry.pod.priority != pod.priority;
                entry.pod = pod;
                entry.moved |= changed && entry.place == Place::InCycle;
                let parked = entry.place == Place::Parked;
                let active = matches!(entry.place, Place::Active(..));
                if (changed && parked) || (urgent && active) {
                    self.activate(&uid);
                }
            }
            None => {
                self.counter += 1;
                let entry = Entry {
                    pod,
                    attempts: 0,
                    arrived: self.counter,
                    place: Place::Parked,
                    parked_at: 0,
                    plugins: BTreeSet::new(),
                    moved: false,
                };
                self.entries.insert(uid.clone(), entry);
                self.activate(&uid);
            }
        }
    }

    fn unlink(&mut self, uid: &str) {
        match self.entries.get(uid).map(|e| e.place.clone()) {
            Some(Place::Active(priority, at)) => drop(self.active.remove(&(priority, at))),
            Some(Place::BackingOff(due, at)) => drop(self.backing_off.remove(&(due, at))),
            _ => {}
        }
    }

    fn activate(&mut self, uid: &str) {
        self.unlink(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let place = (Reverse(entry.pod.priority), entry.arrived);
        entry.place = Place::Active(place.0, place.1);
        self.active.insert(place, uid.to_owned());
    }

    fn back_off(&mut self, uid: &str, since: u64, now: u64) {
        let Some(entry) = self.entries.get(uid) else { return };
        let doubled = FIRST_PAUSE_MS << entry.attempts.saturating_sub(1).min(10);
        let due = since + doubled.min(LONGEST_PAUSE_MS);
        if due <= now {
            return self.activate(uid);
        }
        self.unlink(uid);
        self.counter += 1;
        let counter = self.counter;
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::BackingOff(due, counter);
            self.backing_off.insert((due, counter), uid.to_owned());
        }
    }

    pub fn remove(&mut self, uid: &str) {
        self.unlink(uid);
        self.entries.remove(uid);
    }

    /// The pod whose turn it is.
    pub fn pop(&mut self, now: u64) -> Option<Arc<PodInfo>> {
        self.wake(now);
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InCycle;
        entry.attempts += 1;
        entry.moved = false;
        Some(entry.pod.clone())
    }

    /// When the next pod is due that is not active now.
    pub fn next_due(&self) -> Option<u64> {
        let parked = self.entries.values().filter(|e| e.place == Place::Parked).map(|e| e.parked_at + PATIENCE_MS);
        self.backing_off.keys().next().map(|(due, _)| *due).into_iter().chain(parked).min()
    }

    fn wake(&mut self, now: u64) {
        while let Some(((due, _), _)) = self.backing_off.first_key_value() {
            if *due > now {
                break;
            }
            if let Some((_, uid)) = self.backing_off.pop_first() {
                self.activate(&uid);
            }
        }
        let tired: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, e)| e.place == Place::Parked && e.parked_at + PATIENCE_MS <= now)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in tired {
            self.activate(&uid);
        }
    }

    /// No node fits: the pod waits for an event that may help.
    pub fn park(&mut self, uid: &str, plugins: BTreeSet<Plugin>, now: u64) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.plugins = plugins;
        entry.parked_at = now;
        if entry.moved {
            return self.back_off(uid, now, now);
        }
        entry.place = Place::Parked;
    }

    /// Something went wrong: the pod is tried again after a pause.
    pub fn retry(&mut self, uid: &str, now: u64) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.parked_at = now;
        }
        self.back_off(uid, now, now);
    }

    /// Wakes the parked pods that the event may help.
    pub fn happened(&mut self, event: Event, now: u64) {
        let mut helped: Vec<(String, u64)> = Vec::new();
        for (uid, entry) in &mut self.entries {
            match entry.place {
                Place::InCycle => entry.moved = true,
                Place::Parked if entry.plugins.is_empty() || entry.plugins.iter().any(|p| event.may_help(*p)) => {
                    helped.push((uid.clone(), entry.parked_at));
                }
                _ => {}
            }
        }
        for (uid, since) in helped {
            self.back_off(&uid, since, now);
        }
    }

    pub fn depths(&self) -> Depths {
        Depths {
            active: self.active.len(),
            backing_off: self.backing_off.len(),
            parked: self.entries.values().filter(|e| e.place == Place::Parked).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = (*fake::pod(name, "1")).clone();
        pod.spec.get_or_insert_default().priority = Some(priority);
        PodInfo::new(Arc::new(pod))
    }

    #[test]
    fn priority_goes_before_arrival() {
        let mut queue = SchedulingQueue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0)] {
            queue.upsert(pod(name, priority), false);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(0)).map(|p| p.uid().to_owned()).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn parked_pods_wake_by_events_that_may_help() {
        let mut queue = SchedulingQueue::default();
        queue.upsert(pod("a", 0), false);
        queue.pop(0).unwrap();
        queue.park("a", [Plugin::NodeResourcesFit].into(), 0);
        queue.happened(Event::PodPlaced, 5_000);
        assert_eq!(queue.depths(), Depths { active: 0, backing_off: 0, parked: 1 });
        queue.happened(Event::PodRemoved, 500);
        assert_eq!(queue.depths(), Depths { active: 0, backing_off: 1, parked: 0 });
        assert!(queue.pop(999).is_none());
        assert!(queue.pop(1_000).is_some());
        // The second pause is twice as long.
        queue.park("a", [Plugin::NodeResourcesFit].into(), 2_000);
        queue.happened(Event::NodeAdded, 2_000);
        assert_eq!(queue.next_due(), Some(4_000));
    }

    #[test]
    fn an_event_during_the_cycle_is_not_lost() {
        let mut queue = SchedulingQueue::default();
        queue.upsert(pod("a", 0), false);
        queue.pop(0).unwrap();
        queue.happened(Event::NodeAdded, 0);
        queue.park("a", [Plugin::NodeAffinity].into(), 0);
        assert_eq!(queue.depths().backing_off, 1);
    }

    #[test]
    fn patience_ends() {
        let mut queue = SchedulingQueue::default();
        queue.upsert(pod("a", 0), false);
        queue.pop(0).unwrap();
        queue.park("a", [Plugin::NodeAffinity].into(), 0);
        assert!(queue.pop(PATIENCE_MS - 1).is_none());
        assert!(queue.pop(PATIENCE_MS).is_some());
    }
}
