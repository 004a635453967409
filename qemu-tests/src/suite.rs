//! A test binary whose tests share one cluster: brought up by the first test that needs it, ended after the last.
//! Flags are cargo test's own (a filter, `--list`, …).
//!
//! `KIMG_TESTS_KEEP=1` leaves the VMs running. A failed test leaves a bundle in `target/qemu-tests/failures/`.

use crate::{Cluster, Result, bundle, tools};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The exit code of a part that could not be run here, and has said why.
pub const SKIPPED: u8 = 77;

/// What a part's exit code, which is that of its program or of its only test binary, says of it.
pub fn result_of(code: Option<i32>) -> &'static str {
    match code {
        Some(0) => "passed",
        Some(code) if code == i32::from(SKIPPED) => "skipped",
        _ => "failed",
    }
}

/// A test's name and what it does.
pub type Test = (&'static str, fn(&Cluster) -> Result);

/// Tests and their cluster.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Name of the cluster's folder.
    pub name: &'static str,
    /// Its `cluster.toml`.
    pub cluster: String,
    /// In the order in which they run.
    pub tests: Vec<Test>,
    /// Those of the long set: `cargo test` counts them as ignored, `make test-long` runs them.
    pub long: &'static [&'static str],
    /// Ends what the tests have started beside the cluster.
    pub end: fn(),
}

fn root() -> PathBuf {
    tools::workspace().join("target/qemu-tests")
}

#[derive(Debug, Default)]
struct Shared {
    /// A failure to come up fails every test with the same sentence.
    cluster: OnceLock<std::result::Result<Cluster, String>>,
    took: Mutex<Vec<(&'static str, Duration)>>,
    failed: Mutex<Vec<(&'static str, String)>>,
}

impl Shared {
    fn get(&self, suite: &Suite) -> std::result::Result<&Cluster, Failed> {
        let up = || {
            Cluster::up(&root().join(suite.name), &suite.cluster)
                .map_err(|e| format!("the cluster does not come up: {e:#}"))
        };
        self.cluster.get_or_init(up).as_ref().map_err(|e| Failed::from(e.as_str()))
    }
}

/// Runs the tests that the command line asks for.
pub fn main(suite: Suite) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests share one cluster, and two cores carry no more.
    arguments.test_threads = Some(1);
    let (shared, suite) = (Arc::new(Shared::default()), Arc::new(suite));
    let trials = suite
        .tests
        .iter()
        .map(|(name, test)| {
            let (shared, suite, name, test) = (shared.clone(), suite.clone(), *name, *test);
            let long = suite.long.contains(&name);
            Trial::test(name, move || run(&shared, &suite, name, test)).with_ignored_flag(long)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    (suite.end)();
    for (name, took) in shared.took.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        eprintln!("{:6.1} s  {name}", took.as_secs_f64());
    }
    // Again at the end, where whoever sees no more than the last lines finds it.
    for (name, why) in shared.failed.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        eprintln!("{name}: {why}");
    }
    if let Some(Err(why)) = shared.cluster.get() {
        eprintln!("{why}");
    }
    if let Some(Ok(cluster)) = shared.cluster.get() {
        eprintln!("the VMs were Ready after {:.1} s", cluster.up_took.as_secs_f64());
        if std::env::var_os("KIMG_TESTS_KEEP").is_none()
            && let Err(error) = cluster.down()
        {
            eprintln!("the cluster does not go down: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

fn run(
    shared: &Shared,
    suite: &Suite,
    name: &'static str,
    test: fn(&Cluster) -> Result,
) -> std::result::Result<(), Failed> {
    let cluster = shared.get(suite)?;
    let start = Instant::now();
    let result = test(cluster);
    shared.took.lock().unwrap_or_else(PoisonError::into_inner).push((name, start.elapsed()));
    result.map_err(|error| {
        // Said at once: the summary comes only after the last test.
        eprintln!("{error:#}");
        shared.failed.lock().unwrap_or_else(PoisonError::into_inner).push((name, format!("{error:#}")));
        let kept = match bundle::write(cluster, &root().join("failures"), name) {
            Ok(dir) => format!("bundle: {}", dir.display()),
            Err(e) => format!("no bundle could be written: {e}"),
        };
        Failed::from(format!("{error:#}\n{kept}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_skipped_is_not_green() {
        let said = [Some(0), Some(77), Some(1), Some(101), None].map(result_of);
        assert_eq!(said, ["passed", "skipped", "failed", "failed", "failed"]);
    }
}
