//! When services start, start again and stop. Pure: events and the clock go in, actions come out.
//!
//! ```text
//! Waiting → Starting → Ready ──ends──► BackOff ──pause──► Starting
//!              └──task ends well──► Done (and again, if it is to be, without leaving Done)
//!                                               Stopping → Stopped (on the way to the end of the machine)
//! ```

use super::{Kind, Spec};
use node_api::{Service, ServiceState};
use node_sys::process::Ending;
use std::collections::BTreeSet;

/// After which a task that failed when it was done again gets its next try, at the latest.
const NEXT_TRY_MS: u64 = 60_000;
/// How long it may take then.
const AGAIN_MS: u64 = 120_000;
const FIRST_PAUSE_MS: u64 = 250;
const MOST_PAUSE_MS: u64 = 15_000;
/// A process that ran so long starts over with the shortest pause.
const GOOD_RUN_MS: u64 = 60_000;
/// After so long without readiness it is worth a warning.
const SLOW_START_MS: u64 = 120_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process of this service is there.
    Started(usize, u32),
    /// It could not be started.
    NotStarted(usize, String),
    /// It said READY.
    Ready(usize),
    /// It said what it does.
    Status(usize, String),
    /// A process has ended.
    Ended(u32, Ending),
    /// Somebody wants it to start anew.
    Restart(String),
    /// All must end; nothing starts again.
    StopAll,
    /// Time has passed.
    Tick,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start the service with this number.
    Start(usize),
    /// Ask this process to end.
    Terminate(usize, u32),
    /// End this process.
    Kill(usize, u32),
    /// Tell the operator.
    Log(String),
    /// A step of the boot: the service was started.
    Began(usize),
    /// The service is ready for the first time.
    FirstReady(usize),
}

#[derive(Debug)]
struct Entry {
    spec: Spec,
    state: ServiceState,
    pid: Option<u32>,
    since_ms: u64,
    restarts: u32,
    status: String,
    last_exit: String,
    ready_once: bool,
    pause_ms: u64,
    due_ms: u64,
    warned: bool,
}

/// All services.
#[derive(Debug)]
pub struct Core {
    entries: Vec<Entry>,
    stopping: bool,
}

impl Core {
    /// From their table.
    pub fn new(specs: Vec<Spec>) -> Core {
        let entry = |spec| Entry {
            spec,
            state: ServiceState::Waiting,
            pid: None,
            since_ms: 0,
            restarts: 0,
            status: String::new(),
            last_exit: String::new(),
            ready_once: false,
            pause_ms: FIRST_PAUSE_MS,
            due_ms: 0,
            warned: false,
        };
        Core { entries: specs.into_iter().map(entry).collect(), stopping: false }
    }

    /// The service with this number.
    pub fn spec(&self, index: usize) -> Option<&Spec> {
        self.entries.get(index).map(|entry| &entry.spec)
    }

    /// Takes an event, and gives what to do.
    pub fn step(&mut self, event: Event, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Started(index, pid) => {
                self.with(index, |entry| entry.pid = Some(pid));
                if self.spec(index).is_some_and(|spec| spec.kind == Kind::Component) {
                    return self.step(Event::Ready(index), now_ms);
                }
            }
            Event::NotStarted(index, why) => self.with(index, |entry| {
                actions.push(Action::Log(format!("{} cannot be started: {why}", entry.spec.name)));
                entry.last_exit = why;
                if entry.state == ServiceState::Done { entry.later(now_ms, NEXT_TRY_MS) } else { entry.pause(now_ms) }
            }),
            Event::Ready(index) => self.with(index, |entry| {
                if entry.state == ServiceState::Starting {
                    entry.enter(ServiceState::Ready, now_ms);
                    if !entry.ready_once {
                        actions.push(Action::FirstReady(index));
                    }
                    entry.ready_once = true;
                }
            }),
            Event::Status(index, text) => self.with(index, |entry| entry.status = text),
            Event::Ended(pid, ending) => self.ended(pid, ending, now_ms, &mut actions),
            Event::Restart(name) => self.restart(&name, &mut actions),
            Event::StopAll => self.stopping = true,
            Event::Tick => {}
        }
        if self.stopping {
            self.stop(now_ms, &mut actions);
        } else {
            self.start(now_ms, &mut actions);
            self.warn(now_ms, &mut actions);
        }
        actions
    }

    fn with(&mut self, index: usize, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.get_mut(index) {
            change(entry);
        }
    }

    fn ended(&mut self, pid: u32, ending: Ending, now_ms: u64, actions: &mut Vec<Action>) {
        let stopping = self.stopping;
        let Some((index, entry)) = self.entries.iter_mut().enumerate().find(|(_, entry)| entry.pid == Some(pid)) else {
            return;
        };
        let ran_ms = now_ms.saturating_sub(entry.since_ms);
        entry.pid = None;
        if entry.spec.kind == Kind::Task && ending == Ending::Code(0) {
            entry.enter(ServiceState::Done, now_ms);
            entry.later(now_ms, u64::MAX);
            if !entry.ready_once {
                actions.push(Action::FirstReady(index));
            }
            entry.ready_once = true;
            return;
        }
        entry.last_exit = ending.to_string();
        if entry.state == ServiceState::Done {
            // What it did at first is there, and counts until it is done anew.
            actions.push(Action::Log(format!("{} has ended with {ending}; it is tried again", entry.spec.name)));
            entry.later(now_ms, NEXT_TRY_MS);
            return;
        }
        if stopping || entry.state == ServiceState::Stopping {
            let next = if stopping { ServiceState::Stopped } else { ServiceState::BackOff };
            entry.enter(next, now_ms);
            entry.due_ms = now_ms;
            return;
        }
        if ran_ms > GOOD_RUN_MS {
            entry.pause_ms = FIRST_PAUSE_MS;
        }
        actions.push(Action::Log(format!(
            "{} has ended with {ending}; it starts again in {} ms",
            entry.spec.name, entry.pause_ms
        )));
        entry.pause(now_ms);
    }

    fn restart(&mut self, name: &str, actions: &mut Vec<Action>) {
        for (index, entry) in self.entries.iter_mut().enumerate().filter(|(_, entry)| entry.spec.name == name) {
            match entry.pid {
                Some(pid) => {
                    entry.state = ServiceState::Stopping;
                    actions.push(Action::Terminate(index, pid));
                }
                None => {
                    entry.state = ServiceState::Waiting;
                    entry.due_ms = 0;
                }
            }
        }
    }

    fn start(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let ready: BTreeSet<&'static str> =
            self.entries.iter().filter(|entry| entry.ready_once).map(|entry| entry.spec.name).collect();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.is_due_again() && now_ms >= entry.due_ms {
                // When it is late, until it has ended.
                entry.due_ms = now_ms + AGAIN_MS;
                actions.push(Action::Start(index));
            } else if let (ServiceState::Done, Some(pid)) = (entry.state, entry.pid)
                && now_ms >= entry.due_ms
            {
                entry.due_ms = u64::MAX;
                let seconds = AGAIN_MS / 1000;
                actions.push(Action::Log(format!("{} does not end after {seconds} s, and is ended", entry.spec.name)));
                actions.push(Action::Kill(index, pid));
            }
            let may = match entry.state {
                ServiceState::Waiting => entry.spec.needs.iter().all(|need| ready.contains(need)),
                ServiceState::BackOff => now_ms >= entry.due_ms,
                _ => false,
            };
            if may {
                if entry.state == ServiceState::BackOff {
                    entry.restarts += 1;
                } else {
                    actions.push(Action::Began(index));
                }
                entry.warned = false;
                entry.enter(ServiceState::Starting, now_ms);
                actions.push(Action::Start(index));
            }
        }
    }

    fn warn(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        for entry in self.entries.iter_mut().filter(|entry| entry.state == ServiceState::Starting && !entry.warned) {
            if now_ms.saturating_sub(entry.since_ms) > SLOW_START_MS {
                entry.warned = true;
                let said = if entry.status.is_empty() { "it says nothing" } else { &entry.status };
                actions.push(Action::Log(format!(
                    "{} is not ready after {} s: {said}",
                    entry.spec.name,
                    SLOW_START_MS / 1000
                )));
            }
        }
    }

    /// Ends what nobody running needs any more, and kills what does not end in its time.
    fn stop(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let needed: BTreeSet<&'static str> = self
            .entries
            .iter()
            .filter(|entry| entry.pid.is_some())
            .flat_map(|entry| entry.spec.needs.iter().copied())
            .collect();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            match (entry.pid, entry.state) {
                (None, ServiceState::Stopped | ServiceState::Done) => {}
                (None, _) => entry.enter(ServiceState::Stopped, now_ms),
                (Some(pid), ServiceState::Stopping) => {
                    if now_ms.saturating_sub(entry.since_ms) > entry.spec.grace_s * 1000 && !entry.warned {
                        entry.warned = true;
                        actions.push(Action::Kill(index, pid));
                    }
                }
                (Some(pid), _) if !needed.contains(entry.spec.name) => {
                    entry.warned = false;
                    entry.enter(ServiceState::Stopping, now_ms);
                    actions.push(Action::Terminate(index, pid));
                }
                (Some(_), _) => {}
            }
        }
    }

    /// True when no process is left.
    pub fn all_ended(&self) -> bool {
        self.entries.iter().all(|entry| entry.pid.is_none())
    }

    /// What keeps the node from running: services that are neither ready nor done.
    pub fn waits_for(&self) -> Vec<&'static str> {
        let is_up = |entry: &&Entry| matches!(entry.state, ServiceState::Ready | ServiceState::Done);
        let services = self.entries.iter().filter(|entry| entry.spec.kind != Kind::Component);
        services.filter(|entry| !is_up(entry)).map(|entry| entry.spec.name).collect()
    }

    /// When the next pause ends.
    pub fn next_due_ms(&self) -> Option<u64> {
        let due = self.entries.iter().filter(|entry| entry.state == ServiceState::BackOff || entry.is_due_again());
        due.map(|entry| entry.due_ms).min()
    }

    /// For the node API; memory is filled in by the caller.
    pub fn describe(&self) -> Vec<Service> {
        let shown = |entry: &Entry| Service {
            name: entry.spec.name.to_owned(),
            state: entry.state,
            pid: entry.pid,
            since_ms: entry.since_ms,
            restarts: entry.restarts,
            status: entry.status.clone(),
            last_exit: entry.last_exit.clone(),
            needs: entry.spec.needs.iter().map(|need| (*need).to_owned()).collect(),
            memory: 0,
        };
        self.entries.iter().map(shown).collect()
    }
}

impl Entry {
    fn enter(&mut self, state: ServiceState, now_ms: u64) {
        self.state = state;
        self.since_ms = now_ms;
    }

    /// Whether it is done, and to be done again.
    fn is_due_again(&self) -> bool {
        self.state == ServiceState::Done && self.spec.again_s.is_some() && self.pid.is_none()
    }

    /// When it is done again, where it is.
    fn later(&mut self, now_ms: u64, at_most_ms: u64) {
        let pause_ms = self.spec.again_s.unwrap_or(0).saturating_mul(1000).min(at_most_ms);
        self.due_ms = now_ms.saturating_add(pause_ms);
    }

    fn pause(&mut self, now_ms: u64) {
        self.enter(ServiceState::BackOff, now_ms);
        self.due_ms = now_ms + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(MOST_PAUSE_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &'static str, needs: &[&'static str], kind: Kind) -> Spec {
        Spec {
            name,
            command: vec![name.into()],
            program: name.into(),
            environment: vec![],
            needs: needs.to_vec(),
            kind,
            oom_score: 0,
            memory_max: None,
            grace_s: 5,
            again_s: None,
            user: None,
        }
    }

    fn core() -> Core {
        Core::new(vec![
            spec("pki", &[], Kind::Task),
            spec("server", &["pki"], Kind::Daemon),
            spec("client", &["server"], Kind::Daemon),
        ])
    }

    fn started(actions: &[Action]) -> Vec<usize> {
        actions
            .iter()
            .filter_map(|action| if let Action::Start(index) = action { Some(*index) } else { None })
            .collect()
    }

    #[test]
    fn a_task_is_done_again_and_nobody_waits_for_it() {
        let mut core = Core::new(vec![
            Spec { again_s: Some(600), ..spec("pki", &[], Kind::Task) },
            spec("server", &["pki"], Kind::Daemon),
        ]);
        core.step(Event::Tick, 0);
        core.step(Event::Started(0, 10), 1);
        assert_eq!(started(&core.step(Event::Ended(10, Ending::Code(0)), 1000)), [1]);
        core.step(Event::Started(1, 11), 1000);
        core.step(Event::Ready(1), 1000);
        assert_eq!(core.next_due_ms(), Some(601_000));
        assert!(started(&core.step(Event::Tick, 600_999)).is_empty());
        assert_eq!(started(&core.step(Event::Tick, 601_000)), [0]);
        core.step(Event::Started(0, 12), 601_001);
        assert!(core.waits_for().is_empty(), "all is up");
        assert!(core.step(Event::Tick, 720_000).is_empty(), "it is at work");
        let late = core.step(Event::Tick, 721_000);
        assert!(
            matches!(late.as_slice(), [Action::Log(text), Action::Kill(0, 12)] if text.contains("pki")),
            "{late:?}"
        );
        assert!(core.step(Event::Tick, 8_999_999).is_empty(), "once is enough");
        // What it did before is there still.
        let said = core.step(Event::Ended(12, Ending::Code(1)), 9_000_000);
        assert!(matches!(said.as_slice(), [Action::Log(text)] if text.contains("pki")), "{said:?}");
        assert!(core.waits_for().is_empty());
        assert_eq!(started(&core.step(Event::Tick, 9_060_000)), [0]);
        core.step(Event::NotStarted(0, "no memory".into()), 9_060_000);
        assert_eq!(started(&core.step(Event::Tick, 9_120_000)), [0]);
        core.step(Event::Started(0, 13), 9_120_000);
        core.step(Event::Ended(13, Ending::Code(0)), 9_121_000);
        assert_eq!((core.next_due_ms(), core.describe()[0].restarts), (Some(9_721_000), 0));
        let ends = core.step(Event::StopAll, 9_122_000);
        assert_eq!(ends, [Action::Terminate(1, 11)]);
        core.step(Event::Ended(11, Ending::Code(0)), 9_123_000);
        assert!(started(&core.step(Event::Tick, 99_000_000)).is_empty(), "nothing starts on the way to the end");
        assert!(core.all_ended());
    }

    #[test]
    fn dependencies_decide_the_order() {
        let mut core = core();
        assert_eq!(started(&core.step(Event::Tick, 0)), [0]);
        core.step(Event::Started(0, 10), 1);
        assert_eq!(started(&core.step(Event::Ended(10, Ending::Code(0)), 2)), [1]);
        core.step(Event::Started(1, 11), 3);
        assert!(started(&core.step(Event::Tick, 4)).is_empty());
        assert_eq!(started(&core.step(Event::Ready(1), 5)), [2]);
        core.step(Event::Started(2, 12), 6);
        core.step(Event::Ready(2), 7);
        assert!(core.waits_for().is_empty());
    }

    #[test]
    fn what_ends_starts_again_after_growing_pauses() {
        let mut core = Core::new(vec![spec("a", &[], Kind::Daemon)]);
        let mut now = 0;
        let mut pauses = Vec::new();
        for pid in 1..10 {
            core.step(Event::Started(0, pid), now);
            core.step(Event::Ended(pid, Ending::Code(1)), now);
            let due = core.next_due_ms().unwrap();
            pauses.push(due - now);
            assert!(started(&core.step(Event::Tick, due - 1)).is_empty());
            assert_eq!(started(&core.step(Event::Tick, due)), [0]);
            now = due;
        }
        assert_eq!(&pauses[..3], [250, 500, 1000]);
        assert_eq!(pauses.last(), Some(&MOST_PAUSE_MS));
        core.step(Event::Started(0, 99), now);
        core.step(Event::Ended(99, Ending::Signal(9)), now + GOOD_RUN_MS + 1);
        assert_eq!(core.next_due_ms(), Some(now + GOOD_RUN_MS + 1 + FIRST_PAUSE_MS), "a good run is rewarded");
        assert_eq!(core.describe()[0].last_exit, "signal 9");
    }

    #[test]
    fn a_component_is_ready_as_it_starts_and_the_node_does_not_wait_for_it() {
        let mut core = Core::new(vec![spec("server", &[], Kind::Daemon), spec("own", &[], Kind::Component)]);
        core.step(Event::Tick, 0);
        core.step(Event::NotStarted(1, "no such program".into()), 0);
        core.step(Event::Started(0, 10), 0);
        assert_eq!(core.waits_for(), ["server"]);
        core.step(Event::Ready(0), 0);
        assert_eq!((core.waits_for().len(), core.describe()[1].state), (0, ServiceState::BackOff));
        assert_eq!(started(&core.step(Event::Tick, FIRST_PAUSE_MS)), [1]);
        assert_eq!(core.step(Event::Started(1, 11), FIRST_PAUSE_MS), [Action::FirstReady(1)]);
        assert_eq!(core.describe()[1].state, ServiceState::Ready);
        core.step(Event::Ended(11, Ending::Signal(9)), FIRST_PAUSE_MS);
        assert_eq!(core.next_due_ms(), Some(3 * FIRST_PAUSE_MS), "it starts again, and later each time");
        assert!(core.waits_for().is_empty());
    }

    #[test]
    fn a_failed_task_is_tried_again_and_others_processes_do_not_matter() {
        let mut core = core();
        core.step(Event::Tick, 0);
        core.step(Event::Started(0, 10), 1);
        assert!(core.step(Event::Ended(77, Ending::Code(1)), 2).is_empty());
        core.step(Event::Ended(10, Ending::Code(2)), 2);
        assert_eq!(core.describe()[0].state, ServiceState::BackOff);
        assert_eq!(started(&core.step(Event::Tick, 1000)), [0]);
    }

    #[test]
    fn the_end_goes_backwards_and_kills_in_time() {
        let mut core = core();
        for (index, pid) in [(0, 10), (1, 11), (2, 12)] {
            core.step(Event::Tick, 0);
            core.step(Event::Started(index, pid), 0);
            core.step(Event::Ready(index), 0);
            core.step(if index == 0 { Event::Ended(10, Ending::Code(0)) } else { Event::Tick }, 0);
        }
        assert_eq!(core.step(Event::StopAll, 100), [Action::Terminate(2, 12)]);
        assert_eq!(core.step(Event::Tick, 200), []);
        assert_eq!(core.step(Event::Tick, 5200), [Action::Kill(2, 12)]);
        assert_eq!(core.step(Event::Ended(12, Ending::Signal(9)), 5300), [Action::Terminate(1, 11)]);
        assert!(!core.all_ended());
        core.step(Event::Ended(11, Ending::Code(0)), 5400);
        assert!(core.all_ended());
        assert!(started(&core.step(Event::Tick, 99_999)).is_empty(), "nothing starts again");
    }

    #[test]
    fn restarting_by_hand() {
        let mut core = Core::new(vec![spec("a", &[], Kind::Daemon)]);
        core.step(Event::Tick, 0);
        core.step(Event::Started(0, 5), 0);
        assert_eq!(core.step(Event::Restart("a".into()), 1), [Action::Terminate(0, 5)]);
        assert_eq!(started(&core.step(Event::Ended(5, Ending::Code(0)), 2)), [0]);
    }
}
