//! The machines of a cluster's nodes, at whoever runs them. What exists is asked of the provider; there is no file of ours.
//!
//! Images are known by the SHA-256 of the raw disk, or the beginning of it, which a provider keeps with the image (its name
//! or a tag) and with each machine made of it.
//! Where workers are not rebuilt in place, [`Machines::end`] deletes one, and [`Machines::rebuild`] creates another of
//! its name. So it is at the providers of [`crate::cloud`], which all have [`crate::cloud::machines`] in common.

pub mod local;

use crate::local::up::ImageFile;
use crate::seed::token::BootstrapToken;
use anyhow::Result;

/// Stands for the image of a machine that is not there.
pub const NO_IMAGE: &str = "none";

/// A machine as its provider describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The node that it is.
    pub node: String,
    /// SHA-256 of the image that its disk was made from.
    pub image: String,
    /// Whether it runs.
    pub running: bool,
    /// Whether a worker's data can outlive [`Machines::rebuild`]. A master's store does, in whichever way.
    pub keeps_data: bool,
    /// Whether that is on a data volume, which the next machine has in any case.
    pub on_volume: bool,
}

/// What a machine is made anew from.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// Which node it is.
    pub node: &'a str,
    /// Which image, as [`Machine::image`].
    pub image: &'a str,
    /// What it joins with; none: a master, which needs nobody's leave.
    pub token: Option<&'a BootstrapToken>,
    /// What becomes of its data.
    pub data: Data,
}

/// What becomes of a machine's data (STATE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// It stays, as it was when the old machine ended.
    Stays,
    /// The disk is new.
    Goes,
    /// The disk is new, and the master on it serves nothing until a backup is restored; a disk that is there is set
    /// aside where the provider can.
    AwaitsBackup,
    /// The disk is new, and the master on it joins the etcd of the other masters.
    JoinsEtcd,
}

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, or it did not run.
    Clean,
    /// It did not power off in time.
    Forced,
}

/// A provider of machines.
pub trait Machines {
    /// All machines of the cluster.
    fn list(&self) -> Result<Vec<Machine>>;

    /// Makes an image that was built here one that machines can be made from.
    fn offer(&mut self, image: &ImageFile) -> Result<()>;

    /// Whether machines can be made from the image.
    fn holds(&self, image: &str) -> Result<bool>;

    /// Whether the machines of these nodes can be made anew, asked before anybody agrees to it.
    ///
    /// # Errors
    /// Bad input: what is in the way.
    fn check(&self, _nodes: &[&str]) -> Result<()> {
        Ok(())
    }

    /// Ends the old machine for good, and says how, where making the new one is another thing that takes its time; else
    /// [`Machines::rebuild`] does both. What the new one needs is there, or nothing is touched.
    fn end(&mut self, _order: &Order<'_>) -> Result<Option<Ended>> {
        Ok(None)
    }

    /// Stops a machine, puts another image under it and starts it again; its name stays. Returns when the old
    /// machine has surely ended (and how) and the new one is started, and does not wait for it to boot. Called again
    /// after it was interrupted, it comes to the same.
    fn rebuild(&mut self, order: &Order<'_>) -> Result<Ended>;

    /// Ends a machine, and removes it with all that is on its disk. One that is gone is no error.
    fn remove(&mut self, node: &str) -> Result<Ended>;

    /// The boot that a machine is in, as its node says it; none while it does not answer.
    fn boot(&self, node: &str) -> Option<String>;

    /// What the machine shows: the last lines of its console, where the provider has one.
    fn console(&self, node: &str) -> Vec<String>;

    /// The kernel's last words, where it has panicked again and again since the machine was started, and that is known.
    fn panics(&self, _node: &str) -> Option<String> {
        None
    }

    /// Removes what only a roll that is over needed, where nobody else may need it.
    fn tidy(&self) -> Result<()> {
        Ok(())
    }
}
