//! `kimg roll`: puts a new image under the nodes of a running cluster, a few at a time, without losing a request.
//!
//! The parts: [`plan`], [`spares`], [`skew`], [`gone`], [`drain`], [`journal`] and [`lock`] decide, do no I/O and are given the time; [`api`] asks the
//! API server; [`engine`] does what was decided, step by step, on [`crate::machines::Machines`].
//!
//! What a node goes through; each step is in the journal (a ConfigMap in kube-system) before anything of it is done, so
//! that whoever finds the journal goes on from there:
//! ```text
//! Waiting → Leaving → Draining → Replacing → Booting ⇄ Settling → Returning → Recovering → Done
//!              │          │          │          │                                │
//!              └──────────┴→ Skipped └──────────┴────────────→ Failed ←──────────┘
//! ```
//! A master has no pods: while it is Leaving a backup of its store is made, and then it is replaced. From then on until
//! its API server answers again the journal is written to this machine only ([`copy`]).
//! One of several masters goes as a worker does, where the others' etcd does without it ([`members`]), and they serve on.
//! Where a worker's claims are copied ([`volumes`]), that is done while it is Replacing, before its machine ends; the new
//! one has them back while it is Returning, before pods come to it.
//! Spares come before the workers go, and once all are there they begin again, to leave ([`journal::Journal::release_spares`]).
//! A node that fails lets those that are under way come to their end, and no other begins.
//! What is done in a step may be done twice: the process may have ended between the deed and the next entry.

pub mod api;
pub mod begin;
pub mod copy;
pub mod drain;
pub mod engine;
#[cfg(test)]
pub(crate) mod fake;
pub mod gone;
pub mod journal;
pub mod lock;
#[cfg(test)]
mod master_tests;
pub mod members;
#[cfg(test)]
mod members_tests;
pub mod plan;
pub mod skew;
pub mod spares;
#[cfg(test)]
mod spares_tests;
#[cfg(test)]
pub(crate) mod tests;
pub mod volumes;
#[cfg(test)]
pub(crate) mod volumes_tests;

use jiff::Timestamp;
use std::time::Duration;

/// Time as the engine sees it.
pub trait Clock {
    /// Now.
    fn now(&self) -> Timestamp;
    /// Lets time pass.
    fn sleep(&self, time: Duration);
}

/// The machine's clock.
#[derive(Debug)]
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
