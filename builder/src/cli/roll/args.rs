//! The arguments of `kimg roll`.

use crate::roll::journal::OnBlocked;
use crate::roll::plan::Amount;
use std::path::PathBuf;

const SETTLE_SECS: u64 = 10;
const DRAIN_SECS: u64 = 300;

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 all chosen nodes have the new image (or were skipped as --on-blocked says); \
1 the cluster is not fit for it, or the roll stopped; 2 a mistake, or a decision that is missing; 130 interrupted.\n\n\
An interrupted roll goes on with the next `kimg roll`. How it works: docs/how-to/roll.md")]
pub(in crate::cli) struct RollArgs {
    /// `workers`, `master`, or names of nodes [default: all nodes]
    #[arg(value_name = "NODE")]
    pub(in crate::cli) nodes: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(in crate::cli) yes: bool,
    /// Print the plan (with --dry-run) or the outcome as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
    /// Raise the store's format to the newest that the masters write; there is no way back to images of before then
    #[arg(long, conflicts_with_all = ["nodes", "rollback"])]
    pub(in crate::cli) finish: bool,
    /// Go back to the images that the nodes of the last roll had
    #[arg(long, conflicts_with = "nodes")]
    pub(in crate::cli) rollback: bool,
    /// Workers that may be missing at a time after the first one: a number, or a percentage of all (rounded down) [default: 1,
    /// with --max-surge 0]
    #[arg(long, value_name = "N|N%", value_parser = Amount::or_none)]
    pub(in crate::cli) max_unavailable: Option<Amount>,
    /// Spare workers that are made for the time of the roll, and stand in for those that are away: a number, or a percentage
    /// of all workers (rounded up)
    #[arg(long, value_name = "N|N%", value_parser = Amount::or_none, conflicts_with_all = ["rollback", "finish"])]
    pub(in crate::cli) max_surge: Option<Amount>,
    /// How long a new node must stay Ready, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = SETTLE_SECS)]
    pub(in crate::cli) settle: u64,
    /// How long a drain may take, and after it workloads to be whole again, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_SECS)]
    pub(in crate::cli) timeout: u64,
    /// How long a new node may take to be Ready, seconds [default: 90, with emulation 450, at a provider 600]
    #[arg(long, value_name = "SECONDS")]
    pub(in crate::cli) ready_timeout: Option<u64>,
    /// What to do with a node that is not drained in time
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    pub(in crate::cli) on_blocked: OnBlocked,
    /// Keep the data of all nodes (STATE), not only of those that hold bound local volumes
    #[arg(long)]
    pub(in crate::cli) keep_data: bool,
    /// Give up the local volume of this claim; may be repeated
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(in crate::cli) lose_data: Vec<String>,
    /// Copy the local volume of this claim to the new machine, where the machine keeps nothing itself; may be repeated
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(in crate::cli) copy_data: Vec<String>,
    /// Give up pods that no controller starts again
    #[arg(long)]
    pub(in crate::cli) lose_pods: bool,
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(in crate::cli) components: Option<PathBuf>,
    /// End at once at this point of the journal, as if killed; for tests
    #[arg(long, hide = true, value_name = "POINT")]
    pub(in crate::cli) fail_at: Option<String>,
    /// Masters of cluster.toml that are still to be made
    #[arg(skip)]
    pub(in crate::cli) leave_out: Vec<String>,
}

impl RollArgs {
    /// What `kimg roll` does where nothing is said, without a question: for other commands that replace nodes.
    pub(in crate::cli) fn plain() -> RollArgs {
        RollArgs {
            nodes: Vec::new(),
            dry_run: false,
            yes: true,
            json: false,
            finish: false,
            rollback: false,
            max_unavailable: None,
            max_surge: None,
            settle: SETTLE_SECS,
            timeout: DRAIN_SECS,
            ready_timeout: None,
            on_blocked: OnBlocked::Stop,
            keep_data: false,
            lose_data: Vec::new(),
            copy_data: Vec::new(),
            lose_pods: false,
            components: None,
            fail_at: None,
            leave_out: Vec::new(),
        }
    }
}
