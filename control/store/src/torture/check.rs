//! Whether a history is one that the store's promises allow.
//!
//! Revisions order all writes, so most can be told without a search: each answered or seen write
//! has a revision of its own, later ones have higher ones, and every list, snapshot and watch
//! must be what the writes up to its revision make it.  What revisions cannot tell, whether
//! refusals and reads of one key fit the moments at which they were given, [`super::register`]
//! finds out key by key.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::history::{Answer, Call, Event, Listed};
use super::register::{Act, Done, Operation, linearize};

/// What a history was found to have in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub operations: usize,
    pub acknowledged: usize,
    pub unknown: usize,
    pub seen: usize,
    pub snapshots: usize,
    /// Watches that went on where they had been, and those that had to begin anew.
    pub resumed: usize,
    pub relisted: usize,
}

/// Checks a history; the error says what is wrong in it.
pub fn check(events: &[Event]) -> Result<Tally, String> {
    let facts = Facts::gather(events)?;
    facts.pictures(events)?;
    facts.watches(events)?;
    facts.keys(events)?;
    Ok(facts.tally)
}

/// A write whose revision is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    key: String,
    value: Option<String>,
    answered: bool,
}

impl Write {
    fn describe(&self, revision: u64) -> String {
        let how = if self.answered { "the acknowledged write" } else { "the write that was seen" };
        match &self.value {
            Some(value) => format!("{how} of {value} to {} at revision {revision}", self.key),
            None => format!("{} (removal) of {} at revision {revision}", how, self.key),
        }
    }
}

#[derive(Default)]
struct Facts {
    calls: HashMap<u64, (usize, Call)>,
    answers: HashMap<u64, (usize, Answer)>,
    /// Values and who put them.
    values: HashMap<String, u64>,
    writes: BTreeMap<u64, Write>,
    /// Highest revision known before each operation's call.
    floors: HashMap<u64, u64>,
    tally: Tally,
}

impl Facts {
    /// One pass in order: who said what, and that no revision goes back or is given twice.
    fn gather(events: &[Event]) -> Result<Facts, String> {
        let mut facts = Facts::default();
        let mut newest = 0;
        // Writes whose outcome nobody has heard: each may have made a revision above the newest known.
        let mut unheard: u64 = 0;
        for (place, event) in events.iter().enumerate() {
            match event {
                Event::Call { op, call } => {
                    facts.floors.insert(*op, newest);
                    unheard += u64::from(matches!(call, Call::Put { .. } | Call::Delete { .. }));
                    if let Call::Put { value, .. } = call {
                        facts.values.insert(value.clone(), *op);
                    }
                    facts.calls.insert(*op, (place, call.clone()));
                    facts.tally.operations += 1;
                }
                Event::Return { op, answer } => {
                    facts.answered(*op, answer, &mut newest)?;
                    facts.answers.insert(*op, (place, answer.clone()));
                    let call = facts.calls.get(op).map(|(_, call)| call);
                    if *answer != Answer::Unknown && matches!(call, Some(Call::Put { .. } | Call::Delete { .. })) {
                        unheard = unheard.saturating_sub(1);
                    }
                }
                Event::Opened { revision } => {
                    if *revision < newest {
                        let gone = || facts.writes.range(revision + 1..).rev();
                        let lost = gone().find(|(_, w)| w.answered).or_else(|| gone().next());
                        let lost = lost.map(|(r, w)| w.describe(*r));
                        let lost = lost.map_or(String::new(), |w| format!(": {w} is lost"));
                        return Err(format!("the store's revision went back from {newest} to {revision}{lost}"));
                    }
                    newest = *revision;
                }
                Event::Seen { key, revision, value, .. } => {
                    facts.tally.seen += 1;
                    facts.know(*revision, key, value.as_deref(), false)?;
                    newest = newest.max(*revision);
                }
                Event::Snapshot { entries, .. } => {
                    facts.tally.snapshots += 1;
                    for (key, value, revision) in entries {
                        facts.know(*revision, key, Some(value), false)?;
                    }
                }
                Event::Bookmark { revision, .. } => newest = newest.max(*revision),
                Event::Compacted { asked, kept, .. } => {
                    facts.tally.relisted += 1;
                    if asked >= kept || *kept > newest + unheard {
                        return Err(format!(
                            "a watch from {asked} was refused as compacted up to {kept}, at revision {newest}"
                        ));
                    }
                }
                // A first life's watches begin at the store's first revision.
                Event::Watching { after, .. } if *after > 1 => facts.tally.resumed += 1,
                Event::Crash | Event::Watching { .. } => {}
            }
        }
        facts.tally.unknown =
            facts.tally.operations - facts.answers.values().filter(|(_, a)| *a != Answer::Unknown).count();
        Ok(facts)
    }

    fn answered(&mut self, op: u64, answer: &Answer, newest: &mut u64) -> Result<(), String> {
        let Some((_, call)) = self.calls.get(&op).cloned() else {
            return Err(format!("operation {op} was answered and never called"));
        };
        let floor = self.floors.get(&op).copied().unwrap_or_default();
        match answer {
            Answer::Written(revision) => {
                let (key, value) = match &call {
                    Call::Put { key, value, .. } => (key, Some(value.as_str())),
                    Call::Delete { key, .. } => (key, None),
                    Call::Snapshot | Call::Get { .. } | Call::List { .. } => return Ok(()),
                };
                if *revision <= floor {
                    return Err(format!(
                        "operation {op} on {key} got revision {revision}, though {floor} had been given out before"
                    ));
                }
                self.tally.acknowledged += 1;
                self.know(*revision, key, value, true)?;
                *newest = (*newest).max(*revision);
            }
            Answer::Found(Some((value, revision))) => {
                if let Call::Get { key } = &call {
                    self.know(*revision, key, Some(value), false)?;
                }
                *newest = (*newest).max(*revision);
            }
            Answer::Listed { entries, revision } => {
                if *revision < floor {
                    return Err(format!("a list is of revision {revision}, though {floor} was known before it began"));
                }
                for (key, value, revision) in entries {
                    self.know(*revision, key, Some(value), false)?;
                }
                *newest = (*newest).max(*revision);
            }
            Answer::Found(None) | Answer::Mismatch | Answer::Unknown => {}
        }
        Ok(())
    }

    /// Notes a write; every value must have been put, to this key, before it is met.
    fn know(&mut self, revision: u64, key: &str, value: Option<&str>, answered: bool) -> Result<(), String> {
        if let Some(value) = value {
            let put = self.values.get(value).and_then(|op| self.calls.get(op));
            let to = put.and_then(|(_, call)| if let Call::Put { key, .. } = call { Some(key.as_str()) } else { None });
            if to != Some(key) {
                return Err(format!("{key} has the value {value} at revision {revision}, which nobody had put there"));
            }
        }
        let write = Write { key: key.into(), value: value.map(str::to_string), answered };
        if let Some(known) = self.writes.get_mut(&revision) {
            if (&known.key, &known.value) != (&write.key, &write.value) {
                return Err(format!(
                    "revision {revision} was given twice: {} and {}",
                    known.describe(revision),
                    write.describe(revision)
                ));
            }
            known.answered |= answered;
            return Ok(());
        }
        self.writes.insert(revision, write);
        Ok(())
    }

    /// Every list and snapshot is what the writes up to its revision make it.
    fn pictures(&self, events: &[Event]) -> Result<(), String> {
        for (place, event) in events.iter().enumerate() {
            match event {
                Event::Return { op, answer: Answer::Listed { entries, revision } } => {
                    let Some((_, Call::List { prefix })) = self.calls.get(op) else { continue };
                    self.picture(prefix, entries, *revision, place, &format!("list {op}"))?;
                }
                Event::Snapshot { op, entries, revision } => {
                    let answered = match self.answers.get(op) {
                        Some((_, Answer::Written(revision))) => Some(*revision),
                        _ => None,
                    };
                    if answered.is_some_and(|r| r != *revision) {
                        return Err(format!("snapshot {op} was said to be of {answered:?} and is of {revision}"));
                    }
                    let floor = self.floors.get(op).copied().unwrap_or_default();
                    if *revision < floor {
                        return Err(format!(
                            "snapshot {op} is of revision {revision}, though {floor} was known before"
                        ));
                    }
                    self.picture("", entries, *revision, place, &format!("snapshot {op}"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn picture(&self, prefix: &str, entries: &[Listed], revision: u64, place: usize, what: &str) -> Result<(), String> {
        if entries.windows(2).any(|w| w[0].0 >= w[1].0) {
            return Err(format!("{what} is out of order"));
        }
        let mut wanted: BTreeMap<&str, (u64, &Write)> = BTreeMap::new();
        for (at, write) in self.writes.range(..=revision).filter(|(_, w)| w.key.starts_with(prefix)) {
            wanted.insert(&write.key, (*at, write));
        }
        let found: HashMap<&str, u64> = entries.iter().map(|(key, _, at)| (key.as_str(), *at)).collect();
        for (key, (at, write)) in &wanted {
            let has = found.get(key);
            let right = match (&write.value, has) {
                (Some(_), Some(has)) => has == at,
                (None, None) => true,
                (Some(_), None) => self.unknown_removal(key, place),
                (None, Some(_)) => false,
            };
            if !right {
                let has = has.map_or("without the key".to_string(), |at| format!("with the key as of {at}"));
                return Err(format!("{} is lost: {what} of revision {revision} is {has}", write.describe(*at)));
            }
        }
        match entries.iter().find(|(_, _, at)| *at > revision) {
            Some((key, _, at)) => Err(format!("{what} of revision {revision} has {key} as of {at}")),
            None => Ok(()),
        }
    }

    /// Whether a removal that nobody knows the outcome of may have happened before `place`.
    fn unknown_removal(&self, wanted: &str, place: usize) -> bool {
        self.calls.iter().any(|(op, (called, call))| {
            let open = !matches!(self.answers.get(op), Some((_, answer)) if *answer != Answer::Unknown);
            open && *called < place && matches!(call, Call::Delete { key, .. } if key == wanted)
        })
    }

    /// Watches are ordered, unique and whole, and so are their bookmarks.
    fn watches(&self, events: &[Event]) -> Result<(), String> {
        struct Open {
            prefix: String,
            after: u64,
            upto: u64,
            seen: HashSet<u64>,
        }
        let mut open: HashMap<u64, Open> = HashMap::new();
        let close = |watcher: u64, watch: Open| {
            let missing = self
                .writes
                .range(watch.after + 1..watch.upto + 1)
                .find(|(r, w)| w.key.starts_with(&watch.prefix) && !watch.seen.contains(*r));
            missing.map_or(Ok(()), |(revision, write)| {
                Err(format!("watch {watcher} after {} missed {}", watch.after, write.describe(*revision)))
            })
        };
        for event in events {
            match event {
                Event::Watching { watcher, prefix, after } => {
                    if let Some(before) = open.remove(watcher) {
                        close(*watcher, before)?;
                    }
                    let watch = Open { prefix: prefix.clone(), after: *after, upto: *after, seen: HashSet::new() };
                    open.insert(*watcher, watch);
                }
                Event::Seen { watcher, key, revision, .. } => {
                    let Some(watch) = open.get_mut(watcher) else {
                        return Err(format!("watch {watcher} saw something before it began"));
                    };
                    if *revision <= watch.upto {
                        return Err(format!("watch {watcher} saw revision {revision} after {}", watch.upto));
                    }
                    if !key.starts_with(&watch.prefix) {
                        return Err(format!("watch {watcher} of {} saw {key}", watch.prefix));
                    }
                    watch.upto = *revision;
                    watch.seen.insert(*revision);
                }
                Event::Bookmark { watcher, revision } => {
                    let Some(watch) = open.get_mut(watcher) else { continue };
                    if *revision < watch.upto {
                        return Err(format!("watch {watcher} was told {revision} after it saw {}", watch.upto));
                    }
                    watch.upto = *revision;
                }
                _ => {}
            }
        }
        open.into_iter().try_for_each(|(watcher, watch)| close(watcher, watch))
    }

    /// Each key is linearizable.
    fn keys(&self, events: &[Event]) -> Result<(), String> {
        let crashes: Vec<usize> =
            events.iter().enumerate().filter(|(_, e)| **e == Event::Crash).map(|(place, _)| place).collect();
        let mut calls: Vec<(&u64, &(usize, Call))> = self.calls.iter().collect();
        calls.sort_by_key(|(_, (place, _))| *place);
        let all: HashSet<&str> = self.calls.values().filter_map(|(_, call)| key_of(call)).collect();
        let mut by_key: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
        for (op, (called, call)) in calls {
            let answer = self.answers.get(op);
            // What is not answered before the store is gone has happened by then, or never will.
            let end = crashes.get(crashes.partition_point(|c| c < called)).copied().unwrap_or(usize::MAX);
            let returned = match answer {
                Some((place, answer)) if *answer != Answer::Unknown => *place,
                _ => end,
            };
            let answer = answer.map_or(&Answer::Unknown, |(_, answer)| answer);
            let mut add = |key, act| {
                let operation = Operation { op: *op, called: *called, returned, act };
                by_key.entry(key).or_default().push(operation);
            };
            if let (Call::List { prefix }, Answer::Listed { entries, .. }) = (call, answer) {
                for key in all.iter().filter(|k| k.starts_with(prefix.as_str())) {
                    let found = entries.iter().find(|(k, _, _)| k == key);
                    add(*key, Act::Read(found.map(|(_, value, at)| (self.number(value), *at))));
                }
            } else if let (Some(key), Some(act)) = (key_of(call), self.act(call, answer)) {
                add(key, act);
            }
        }
        for (key, operations) in by_key {
            linearize(&operations).map_err(|stuck| {
                let next: Vec<String> = stuck.next.iter().map(|op| self.describe(*op)).collect();
                format!(
                    "no order explains what was told of {key}: after {} of {} operations none of these fits: {}",
                    stuck.placed,
                    operations.len(),
                    next.join("; ")
                )
            })?;
        }
        Ok(())
    }

    fn number(&self, value: &str) -> u32 {
        self.values.get(value).map_or(u32::MAX, |op| *op as u32)
    }

    fn act(&self, call: &Call, answer: &Answer) -> Option<Act> {
        let done = |value: Option<&str>| match answer {
            Answer::Written(revision) => Some(Done::At(*revision)),
            Answer::Mismatch => Some(Done::Refused),
            Answer::Unknown => {
                let read = value.and_then(|v| self.writes.iter().find(|(_, w)| w.value.as_deref() == Some(v)));
                Some(Done::Unknown(read.map(|(revision, _)| *revision)))
            }
            Answer::Found(_) | Answer::Listed { .. } => None,
        };
        match (call, answer) {
            (Call::Put { value, expect, .. }, _) => {
                Some(Act::Put { value: self.number(value), expect: *expect, done: done(Some(value))? })
            }
            (Call::Delete { expect, .. }, _) => Some(Act::Delete { expect: *expect, done: done(None)? }),
            (Call::Get { .. }, Answer::Found(found)) => {
                Some(Act::Read(found.as_ref().map(|(value, at)| (self.number(value), *at))))
            }
            _ => None,
        }
    }

    fn describe(&self, op: u64) -> String {
        let call = self.calls.get(&op).map(|(_, call)| Event::Call { op, call: call.clone() }.to_string());
        let answer = self.answers.get(&op).map(|(_, a)| Event::Return { op, answer: a.clone() }.to_string());
        format!("{} -> {}", call.unwrap_or_default(), answer.unwrap_or_else(|| "no answer".into()))
    }
}

fn key_of(call: &Call) -> Option<&str> {
    match call {
        Call::Put { key, .. } | Call::Delete { key, .. } | Call::Get { key } => Some(key),
        Call::List { .. } | Call::Snapshot => None,
    }
}
