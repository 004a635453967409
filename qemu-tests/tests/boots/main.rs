//! Tests on single VMs: every firmware and bus, damaged and doubled disks, pulled plugs; and one cluster with
//! little memory, and one that sends its logs away. One VM or cluster at a time. Flags are cargo test's own (a filter, `--list`, …).
//!
//! The name's first word is the part of the long set: `boot`, `plug`, `memory`. A failed test leaves consoles and
//! logs in `target/qemu-tests/boots/machines/NAME/`, or a bundle in `target/qemu-tests/failures/`.

mod boot;
mod disks;
mod installer;
mod logs;
mod memory;
mod networks;
mod plug;
mod secure;
mod sources;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use qemu_tests::cluster::settings;
use qemu_tests::{Bench, Result, tools};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A test, and in which set it is.
struct Test {
    name: String,
    /// Only in the long set: `cargo test` counts it as ignored.
    long: bool,
    run: Box<dyn FnOnce(&Bench) -> Result + Send>,
}

impl Test {
    fn new(name: impl Into<String>, long: bool, run: impl FnOnce(&Bench) -> Result + Send + 'static) -> Test {
        Test { name: name.into(), long, run: Box::new(run) }
    }
}

/// A test cannot be made on this machine, for this reason: `cargo test` counts it as ignored.
#[derive(Debug)]
struct Skipped(String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Skipped {}

fn root() -> PathBuf {
    tools::workspace().join("target/qemu-tests")
}

/// The worker's root is the one of the shared cluster, so that it is built once. The kernels are signed: that
/// must not matter to a firmware which does not ask.
fn cluster_toml() -> String {
    settings("boots", 1, "[image]\nsecure-boot = true\n", "worker = { disk = 2048 }")
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A machine has one CPU: two fill two cores, and with more a time-out would mean nothing.
    arguments.test_threads = Some(2);
    let bench: Arc<OnceLock<std::result::Result<Bench, String>>> = Arc::default();
    let tests = [
        boot::tests(),
        disks::tests(),
        sources::tests(),
        networks::tests(),
        installer::tests(),
        plug::tests(),
        memory::tests(),
        logs::tests(),
        secure::tests(),
    ];
    let trials = tests
        .into_iter()
        .flatten()
        .map(|test| {
            let bench = bench.clone();
            let name = test.name.clone();
            Trial::ignorable_test(test.name, move || {
                let built = bench.get_or_init(|| {
                    Bench::build(&root().join("boots"), &cluster_toml(), None)
                        .map_err(|error| format!("the images cannot be built: {error:#}"))
                });
                let bench = built.as_ref().map_err(|error| Failed::from(error.as_str()))?;
                let start = Instant::now();
                let result = (test.run)(bench);
                eprintln!("{:6.1} s  {name}", start.elapsed().as_secs_f64());
                let Err(error) = result else { return Ok(Completion::Completed) };
                if let Some(Skipped(reason)) = error.downcast_ref() {
                    eprintln!("skipped: {reason}");
                    return Ok(Completion::ignored_with(reason));
                }
                // Said at once: the summary comes only after the last test.
                eprintln!("{error:#}");
                Err(Failed::from(format!("{error:#}")))
            })
            .with_ignored_flag(test.long)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
