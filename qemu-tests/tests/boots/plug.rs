//! The plug is pulled for real, under load: nothing that the API server has acknowledged may be lost.
//!
//! What this proves: everything between a 2xx answer and the disk (store, file system, virtio, QEMU) waits for the
//! disk's flush. The counter-test runs the same load and the same check on a disk that answers flushes without
//! doing them; in the long set it runs on an honest disk with an API server that was built without fsync. The check
//! has to find losses in both. That the store calls fsync in the right places is proved by its own tests on a disk in
//! memory (`store::fault`).

use crate::Test;
use anyhow::{Context, ensure};
use http::Method;
use kimg::client::{Https, block_on};
use qemu_tests::load::{History, Load, losses};
use qemu_tests::nbd::Flushes;
use qemu_tests::{Bench, Machine, Result, tools, wait};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

const NODE: &str = "master-1";
const NAMESPACE: &str = "load";
/// Writes of one round before the plug is pulled: some moment among these.
const WRITES: std::ops::Range<usize> = 10..150;
/// Writes that a lying disk may lose.
const WRITES_TO_LOSE: usize = 30;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("plug::nothing_acknowledged_is_lost_in_2_power_cuts", false, |bench| cuts(bench, 2)),
        Test::new("plug::a_disk_that_ignores_flushes_is_noticed", false, lying_disk),
        Test::new("plug::nothing_acknowledged_is_lost_in_20_power_cuts", true, |bench| cuts(bench, 20)),
        Test::new("plug::a_build_without_fsync_is_noticed", true, |_| build_without_fsync()),
    ]
}

/// `KIMG_TESTS_SEED` repeats a run as far as the moments and the lost sectors go.
fn seed() -> Result<u64> {
    match std::env::var("KIMG_TESTS_SEED") {
        Ok(text) => text.parse().with_context(|| format!("KIMG_TESTS_SEED is '{text}' and not a number")),
        Err(_) => Ok(rand::rng().random()),
    }
}

fn cuts(bench: &Bench, count: usize) -> Result {
    let seed = seed()?;
    eprintln!("power cuts with KIMG_TESTS_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut history = History::default();
    bench
        .with(&format!("plug-{count}"), NODE, |machine| {
            for round in 0..count {
                let api = on_again(machine, &mut history).with_context(|| format!("before cut {round}"))?;
                let load = Load::start(&api, NAMESPACE, round);
                let moment = dice.random_range(WRITES);
                written(machine, &load, moment)?;
                let loss = machine.pull_plug(|server| server.plug(dice.random()))?;
                let before = history.acknowledged;
                let last = load.end(&mut history)?;
                eprintln!(
                    "cut {round}: {} writes acknowledged, {} of {} unsafe sectors lost; the writers ended with: {last}",
                    history.acknowledged - before,
                    loss.lost_sectors,
                    loss.unsafe_sectors
                );
                if round % 4 == 3 {
                    cut_while_it_boots(machine, &mut dice)?;
                }
            }
            on_again(machine, &mut history).context("after the last cut")?;
            Ok(())
        })
        .with_context(|| format!("KIMG_TESTS_SEED={seed}"))
}

/// Boots from the served disk and compares with what was acknowledged.
fn on_again(machine: &mut Machine<'_>, history: &mut History) -> Result<Https> {
    machine.serve_disk()?;
    machine.start()?;
    let api = machine.api_ready()?;
    if history.acknowledged == 0 {
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        let answer = block_on(api.send(Method::POST, "/api/v1/namespaces", Some(&namespace)))?;
        ensure!(answer.status.is_success(), "the namespace was not made: {answer:?}");
        return Ok(api);
    }
    let lost = losses(&api, NAMESPACE, history)?;
    ensure!(
        lost.is_empty(),
        "of {} acknowledged writes, {} are wrong:\n{}",
        history.acknowledged,
        lost.len(),
        lost.join("\n")
    );
    Ok(api)
}

fn written(machine: &mut Machine<'_>, load: &Load, count: usize) -> Result {
    let waited = machine
        .until(&format!("{count} acknowledged writes"), 60, |_| Ok((load.acknowledged() >= count).then_some(())));
    waited.with_context(|| format!("{} were acknowledged", load.acknowledged()))
}

/// The journal's replay and the store's recovery may be cut short too.
fn cut_while_it_boots(machine: &mut Machine<'_>, dice: &mut StdRng) -> Result {
    machine.serve_disk()?;
    machine.start()?;
    let length = wait::scale(dice.random_range(1..8));
    let start = Instant::now();
    machine.until("a moment in the boot", 60, |_| Ok((start.elapsed() > length).then_some(())))?;
    let loss = machine.pull_plug(|server| server.plug(dice.random()))?;
    eprintln!(
        "cut {} s into a boot: {} of {} unsafe sectors lost",
        length.as_secs(),
        loss.lost_sectors,
        loss.unsafe_sectors
    );
    Ok(())
}

fn lying_disk(bench: &Bench) -> Result {
    let mut history = History::default();
    bench.with("plug-lying-disk", NODE, |machine| {
        let api = on_again(machine, &mut history)?;
        let load = Load::start(&api, NAMESPACE, 0);
        written(machine, &load, 1)?;
        machine.server()?.set_flushes(Flushes::Ignored);
        let honest = load.acknowledged();
        written(machine, &load, honest + WRITES_TO_LOSE)?;
        let loss = machine.pull_plug(|server| server.plug_with_full_cache())?;
        load.end(&mut history)?;
        noticed(machine, &mut history, loss.lost_sectors)
    })
}

fn build_without_fsync() -> Result {
    let components = components_without_fsync()?;
    let bench = Bench::build(&crate::root().join("without-fsync"), &crate::cluster_toml(), Some(&components))?;
    let mut history = History::default();
    bench.with("plug-without-fsync", NODE, |machine| {
        let api = on_again(machine, &mut history)?;
        let load = Load::start(&api, NAMESPACE, 0);
        written(machine, &load, WRITES_TO_LOSE)?;
        let loss = machine.pull_plug(|server| server.plug_with_full_cache())?;
        load.end(&mut history)?;
        noticed(machine, &mut history, loss.lost_sectors)
    })
}

/// Builds the control plane into a folder of its own, so that no image of anything else can take it by mistake.
fn components_without_fsync() -> Result<PathBuf> {
    let target = tools::workspace().join("target/without-fsync");
    let status = Command::new("cargo")
        .args(["build", "--release", "--quiet", "--workspace", "--bin", "kimg-control"])
        .args(["--features", "kimg-control/without-fsync", "--target-dir"])
        .arg(&target)
        .current_dir(tools::workspace())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the control plane without fsync cannot be built");
    let release = "x86_64-unknown-linux-gnu/release";
    for program in ["kimg-node", "kimg-stage1", "example-web"] {
        let usual = tools::workspace().join("target").join(release).join(program);
        std::fs::copy(&usual, target.join(release).join(program))
            .with_context(|| format!("copying {}", usual.display()))?;
    }
    Ok(target.join(release))
}

/// The check that finds nothing wrong on an honest disk must find lost writes now.
fn noticed(machine: &mut Machine<'_>, history: &mut History, lost_sectors: usize) -> Result {
    let Err(error) = on_again(machine, history) else {
        anyhow::bail!("{lost_sectors} sectors were lost and the check has noticed nothing")
    };
    let text = format!("{error:#}");
    ensure!(text.contains("was acknowledged as"), "it fails, and not because of lost writes: {text}");
    Ok(())
}
