//! What all parts of PID 1 share: the node's status, its boot timeline, its logs, and the way to end it.
//! Everything runs on one thread, so plain cells do.

use crate::logs::Logs;
use node_api::{BootStep, BootTimeline, NodeStatus};
use node_sys::machine::{Ending, uptime};
use std::cell::RefCell;
use std::rc::Rc;
use tokio::sync::{Notify, mpsc};

/// What somebody asks PID 1 to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Stop all services and end the machine.
    End(Ending),
    /// Start one service anew.
    Restart(String),
    /// Open the sealed secrets with this base64 key.
    Unseal(String),
}

/// Shared state; cheap to clone.
pub type Shared = Rc<Machine>;

/// See the module.
#[derive(Debug)]
pub struct Machine {
    status: RefCell<NodeStatus>,
    timeline: RefCell<BootTimeline>,
    services: RefCell<Vec<node_api::Service>>,
    /// Logs of all services and of PID 1.
    pub logs: Logs,
    /// Something that the console shows is different now.
    pub changed: Notify,
    commands: mpsc::UnboundedSender<Command>,
    /// A seal key that came over the node API.
    pub seal_key: RefCell<Option<String>>,
    /// Tells whoever waits for metadata or a key to look again.
    pub look_again: Notify,
}

/// Why the node waits.
#[derive(Debug, Clone, Copy)]
pub struct Wait<'a> {
    /// What for.
    pub waits_for: &'a str,
    /// Why.
    pub why: &'a str,
    /// What the operator can do.
    pub hint: &'a str,
}

impl Machine {
    /// New, with the end for commands.
    pub fn new(logs: Logs) -> (Shared, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let machine = Machine {
            status: RefCell::default(),
            timeline: RefCell::default(),
            services: RefCell::default(),
            logs,
            changed: Notify::new(),
            commands,
            seal_key: RefCell::default(),
            look_again: Notify::new(),
        };
        (Rc::new(machine), receiver)
    }

    /// A copy of the status, with the clocks of now.
    pub fn status(&self) -> NodeStatus {
        let mut status = self.status.borrow().clone();
        status.uptime_ms = now_ms();
        status.now_unix_ms = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        status
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut NodeStatus)) {
        change(&mut self.status.borrow_mut());
        self.changed.notify_one();
    }

    /// The node is in this stage now, and waits for nothing special.
    pub fn stage(&self, stage: &str) {
        self.update(|status| {
            status.stage = stage.to_owned();
            status.waits_for.clear();
            status.why.clear();
            status.hint.clear();
        });
    }

    /// The node waits.
    pub fn waits(&self, stage: &str, wait: Wait<'_>) {
        let before = self.status.borrow().why.clone();
        if before != wait.why && !wait.why.is_empty() {
            tracing::warn!("{stage}: waits for {}: {}", wait.waits_for, wait.why);
        }
        self.update(|status| {
            status.stage = stage.to_owned();
            status.waits_for = wait.waits_for.to_owned();
            status.why = wait.why.to_owned();
            status.hint = wait.hint.to_owned();
        });
    }

    /// Something is not as it should be, and the node goes on.
    pub fn warn(&self, sentence: String) {
        tracing::warn!("{sentence}");
        self.update(|status| {
            if !status.warnings.contains(&sentence) {
                status.warnings.push(sentence);
            }
        });
    }

    /// The timeline so far.
    pub fn timeline(&self) -> BootTimeline {
        self.timeline.borrow().clone()
    }

    /// When the initramfs began.
    pub fn set_init_time(&self, ms: u64) {
        self.timeline.borrow_mut().init_ms = ms;
    }

    /// Notes a step that began earlier.
    pub fn step_at(&self, name: &str, start_ms: u64, end_ms: Option<u64>) {
        let step = BootStep { name: name.to_owned(), start_ms, end_ms, note: String::new() };
        self.timeline.borrow_mut().steps.push(step);
    }

    /// A step begins.
    pub fn begin(&self, name: &str) {
        self.step_at(name, now_ms(), None);
    }

    /// The last open step of that name ends.
    pub fn end(&self, name: &str, note: &str) {
        let mut timeline = self.timeline.borrow_mut();
        let open = timeline.steps.iter_mut().rev().find(|step| step.name == name && step.end_ms.is_none());
        if let Some(step) = open {
            step.end_ms = Some(now_ms());
            step.note = note.to_owned();
        }
    }

    /// What the services do.
    pub fn services(&self) -> Vec<node_api::Service> {
        self.services.borrow().clone()
    }

    /// The supervisor says what the services do.
    pub fn set_services(&self, services: Vec<node_api::Service>) {
        if *self.services.borrow() != services {
            *self.services.borrow_mut() = services;
            self.changed.notify_one();
        }
    }

    /// Whether this node is one of the cluster's: its task that brings certificates is done.
    pub fn has_joined(&self) -> bool {
        let services = self.services.borrow();
        let mut tasks = services.iter().filter(|service| ["join", "master-pki"].contains(&service.name.as_str()));
        tasks.any(|task| task.state == node_api::ServiceState::Done)
    }

    /// Asks for something.
    pub fn command(&self, command: Command) {
        // The receiver lives as long as PID 1.
        let _ = self.commands.send(command);
    }
}

/// Milliseconds since power-on.
pub fn now_ms() -> u64 {
    u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX)
}
