//! Supervised processes: [`table`] says which, [`core`] decides when, [`runtime`] does it.

pub mod core;
pub mod runtime;
pub mod table;

/// One service of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Name, also of its log and its control group.
    pub name: &'static str,
    /// Program and arguments; the first argument is argv[0].
    pub command: Vec<String>,
    /// Program file when it is not argv[0].
    pub program: String,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Services that must have been ready once before this one starts.
    pub needs: Vec<&'static str>,
    /// What it is.
    pub kind: Kind,
    /// `oom_score_adj`: the lower, the later the kernel ends it.
    pub oom_score: i32,
    /// Most memory in bytes, where it is limited.
    pub memory_max: Option<u64>,
    /// How long it may take to end by itself.
    pub grace_s: u64,
    /// Seconds after which a task that is done is done again.
    pub again_s: Option<u64>,
    /// User and group of what runs without privileges, in a folder of its own; root otherwise.
    pub user: Option<u32>,
}

/// What a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs for ever and tells when it is ready.
    Daemon,
    /// Ends when its work is done.
    Task,
    /// Runs for ever, says nothing of itself, and nothing waits for it: the operator's own.
    Component,
}
