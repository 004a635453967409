//! An earlier release of kimg, from this repository's history: a cluster that it made gets the current images and goes
//! back to its own, while somebody writes.
//!
//! `earlier` names the commit. It is built once, in a work tree of its own below `target/earlier/`.

use anyhow::{Context, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use qemu_tests::cluster::{run_in, settings};
use qemu_tests::suite::SKIPPED;
use qemu_tests::writes::Writer;
use qemu_tests::{Cluster, Result, bundle, tools};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const EARLIER: &str = include_str!("earlier");
/// What `make build` makes there.
const PROGRAMS: [&str; 5] = ["kimg", "kimg-node", "kimg-control", "kimg-stage1", "example-web"];
const NAME: &str = "an_earlier_release_rolls_forth_and_back_and_loses_no_write";

static IS_SKIPPED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let test = || run().map_err(|error| format!("{error:#}").into());
    let conclusion = libtest_mimic::run(&arguments, vec![Trial::test(NAME, test).with_ignored_flag(true)]);
    if IS_SKIPPED.load(Relaxed) { ExitCode::from(SKIPPED) } else { conclusion.exit_code() }
}

fn run() -> Result {
    let commit = EARLIER.trim();
    if !git(&["cat-file", "-e", &format!("{commit}^{{commit}}")])? {
        return skip(&format!(
            "{commit}, the earlier release, is not in this clone's history (`git fetch --unshallow`)"
        ));
    }
    let kimg = earlier(commit).context("building the earlier release")?;
    let root = tools::workspace().join("target/qemu-tests");
    let cluster = Cluster::up_by(kimg, &root.join("release"), &settings("release", 1, "", ""))?;
    let result = forth_and_back(&cluster);
    if let Err(error) = &result {
        eprintln!("{error:#}");
        eprintln!("bundle: {}", bundle::write(&cluster, &root.join("failures"), NAME)?.display());
    }
    cluster.down()?;
    result
}

fn forth_and_back(cluster: &Cluster) -> Result {
    cluster.kimg(&["build", "all"])?.success()?;
    let writer = Writer::start(cluster)?;
    let forth = cluster.kimg(&["roll", "--yes", "--settle", "3"])?;
    ensure!(forth.ok && forth.out.contains("replaced: master-1, worker-1"), "{}", forth.all());
    let status = cluster.kimg(&["node", "--node", "worker-1", "status"])?.success()?;
    ensure!(status.contains("states      Kubernetes API "), "{status}");
    let finish = cluster.kimg(&["roll", "--finish", "--dry-run"])?.success()?;
    ensure!(finish.contains("nothing is to be raised"), "{finish}");
    let back = cluster.kimg(&["roll", "--rollback", "--yes", "--settle", "3"])?;
    // Also when a roll has failed: what was written says most.
    let writes = writer.stop()?;
    ensure!(back.ok && back.out.contains("replaced: worker-1, master-1"), "{}", back.all());
    writes.check_all_there(cluster)?;
    cluster.all_ready()
}

/// The `kimg` of a commit, with its components beside it.
fn earlier(commit: &str) -> Result<PathBuf> {
    let tree = tools::workspace().join("target/earlier").join(commit.get(..12).context("no commit")?);
    let name = tree.display().to_string();
    if !tree.join("Cargo.toml").is_file() && !git(&["worktree", "add", "--force", "--detach", &name, commit])? {
        bail!("git makes no work tree in {name}");
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--workspace"]).args(PROGRAMS.iter().flat_map(|name| ["--bin", name]));
    // It has folders and settings of its own.
    let ours = std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CARGO_"));
    for (key, _) in ours {
        cargo.env_remove(key);
    }
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        cargo.env("CARGO_HOME", home);
    }
    ensure!(cargo.current_dir(&tree).status().context("starting cargo")?.success(), "cargo build failed in {name}");
    Ok(tree.join("target/x86_64-unknown-linux-gnu/release/kimg"))
}

fn git(args: &[&str]) -> Result<bool> {
    Ok(run_in(&tools::workspace(), Path::new("git").to_owned(), args, None)?.ok)
}

/// Says why it cannot be run here, also to the suite.
fn skip(why: &str) -> Result {
    eprintln!("skipped: {why}");
    IS_SKIPPED.store(true, Relaxed);
    if let Some(file) = std::env::var_os("KIMG_TESTS_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).open(file).context("opening the list of skips")?;
        writeln!(file, "{NAME}: {why}").context("writing the list of skips")?;
    }
    Ok(())
}
