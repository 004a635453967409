use std::process::Command;

use super::*;

const CHILD: &str = "STORE_TORTURE_CHILD";

/// The other process: does nothing unless a run below starts it.
#[test]
fn child_process() {
    let Ok(spec) = std::env::var(CHILD) else { return };
    if let Err(what) = child(&spec) {
        eprintln!("{what}");
        std::process::exit(1);
    }
}

fn command(spec: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test's program"));
    command.args(["--exact", "torture::tests::child_process", "--nocapture"]).env(CHILD, spec);
    command
}

fn torture(runs: u64, seed: u64, no_sync: bool) -> Result<Report, String> {
    let dir = tempfile::tempdir().expect("a folder");
    run(&Torture { runs, seed, no_sync, command: &command, dir: dir.path().into(), progress: &|_| {} })
}

#[test]
fn twenty_runs_lose_nothing() {
    let report = torture(22, 0, false).unwrap_or_else(|what| panic!("{what}"));
    assert_eq!(report.runs, 22);
    let missed: Vec<_> = report.points.iter().filter(|(_, n)| **n == 0).collect();
    assert!(missed.is_empty(), "points that ended no life: {missed:?} of {report:?}");
    let tally = report.tally;
    assert!(tally.resumed > 50 && tally.relisted > 0 && tally.snapshots > 20 && tally.acknowledged > 2000, "{tally:?}");
}

#[test]
fn without_syncs_it_fails_and_names_what_is_lost() {
    let what = torture(20, 0, true).expect_err("a disk that does not sync must be noticed");
    assert!(what.contains("--no-sync") && what.contains("seed ") && what.contains("acknowledged write"), "{what}");
}

#[test]
fn a_seed_fails_alike_again() {
    let first = torture(20, 0, true).expect_err("it fails");
    let seed = first.split("seed ").nth(1).and_then(|s| s.split(',').next()).and_then(|s| s.parse().ok());
    let again = (0..5).find_map(|_| torture(1, seed.expect("a seed"), true).err());
    assert!(again.is_some_and(|what| what.contains("seed ")), "{first}");
}
