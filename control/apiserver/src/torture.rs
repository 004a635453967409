//! `kube-apiserver store torture`: cuts stores off, again and again, and proves that they lose nothing.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use store::Point;
use store::torture::{Report, Torture};

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many runs; each is a store that is cut off several times by a pulled plug, and one
    /// whose process is killed.
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// Seed of the first run.
    #[arg(long)]
    seed: Option<u64>,
    /// Makes every sync do nothing; then the command must fail.
    #[arg(long)]
    no_sync: bool,
    /// Only lists the named points at which stores are cut off.
    #[arg(long)]
    points: bool,
    /// Where the stores of killed processes lie; those of a failure stay there.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
}

/// Gives what there is to say.
pub(crate) fn run(args: &Args) -> anyhow::Result<String> {
    if args.points {
        let names: Vec<&str> = Point::ALL.iter().map(|(_, name)| *name).collect();
        return Ok(names.join("\n"));
    }
    let program = std::env::current_exe().context("finding this program")?;
    let command = |spec: &str| {
        let mut command = Command::new(&program);
        command.arg0("kube-apiserver").args(["store", "torture-child", spec]);
        command
    };
    let shows = std::io::stderr().is_terminal();
    let progress = |done: u64| {
        if shows {
            eprint!("\r{done} of {} runs", args.runs);
        }
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    let torture = Torture {
        runs: args.runs,
        seed,
        no_sync: args.no_sync,
        command: &command,
        dir: args.dir.clone(),
        progress: &progress,
    };
    let done = store::torture::run(&torture);
    if shows {
        eprintln!();
    }
    done.map(|report| describe(&report, seed)).map_err(anyhow::Error::msg)
}

fn describe(report: &Report, seed: u64) -> String {
    let tally = &report.tally;
    let mut out = format!(
        "{} runs from seed {seed}: nothing acknowledged was lost\n\
         {} operations, {} acknowledged writes, {} left open by a cut\n\
         {} changes seen by watchers; {} watches went on, {} began anew after a compaction; {} snapshots held\n\
         pulled plugs took {:.1?}, killed processes {:.1?}\n\
         lives ended at random moments: {}\n",
        report.runs,
        tally.operations,
        tally.acknowledged,
        tally.unknown,
        tally.seen,
        tally.resumed,
        tally.relisted,
        tally.snapshots,
        report.plug_time,
        report.kill_time,
        report.moments,
    );
    for (point, count) in &report.points {
        out.push_str(&format!("lives ended at {point}: {count}\n"));
    }
    out.truncate(out.trim_end().len());
    out
}
