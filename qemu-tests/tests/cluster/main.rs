//! Tests on a cluster of real VMs. One cluster is shared by all tests that leave it whole;
//! the tests that break machines come last. Flags are cargo test's own (a filter, `--list`, …).
//!
//! `KIMG_TESTS_KEEP=1` leaves the VMs running. A failed test leaves a bundle in `target/qemu-tests/failures/`.

mod example;
mod joining;
mod kubectl;
mod network;
mod nodes;
mod resilience;
mod security;
mod volumes;

use libtest_mimic::{Arguments, Failed, Trial};
use qemu_tests::{Cluster, Result, bundle, tools};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

type Test = (&'static str, fn(&Cluster) -> Result);

/// In the order in which they run.
fn tests() -> Vec<Test> {
    [
        nodes::TESTS,
        example::TESTS,
        network::TESTS,
        volumes::TESTS,
        kubectl::TESTS,
        security::TESTS,
        joining::TESTS,
        resilience::TESTS,
    ]
    .concat()
}

/// Tests of the long set: `cargo test` counts them as ignored, `make test-long PART=cluster` runs them.
const LONG: &[&str] = &["every_service_may_be_killed", "every_vm_may_be_rebooted"];

fn root() -> PathBuf {
    tools::workspace().join("target/qemu-tests")
}

/// Three nodes as the demo has them.
const CLUSTER: &str = r#"name = "shared"
secrets = "plain"

[[nodes]]
name = "master-1"
role = "master"
addresses = ["10.77.0.10"]

[[nodes]]
name = "worker-1"
role = "worker"
addresses = ["10.77.0.11"]
labels = { disk = "ssd" }

[[nodes]]
name = "worker-2"
role = "worker"
addresses = ["10.77.0.12"]

[image.worker]
images = ["../../../images/examples/toolbox", "../../../images/examples/web"]

[local]
node-ports = [30080]
"#;

/// Brought up by the first test that needs it; a failure to come up fails every test with the same sentence.
#[derive(Debug, Default)]
struct Shared(OnceLock<std::result::Result<Cluster, String>>);

impl Shared {
    fn get(&self) -> std::result::Result<&Cluster, Failed> {
        let up =
            || Cluster::up(&root().join("shared"), CLUSTER).map_err(|e| format!("the cluster does not come up: {e:#}"));
        self.0.get_or_init(up).as_ref().map_err(|e| Failed::from(e.as_str()))
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests share one cluster, and two cores carry no more.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Shared::default());
    let trials = tests()
        .into_iter()
        .map(|(name, test)| {
            let shared = shared.clone();
            Trial::test(name, move || run(&shared, name, test)).with_ignored_flag(LONG.contains(&name))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(Ok(cluster)) = shared.0.get() {
        eprintln!("three VMs were Ready after {:.1} s", cluster.up_took.as_secs_f64());
        if std::env::var_os("KIMG_TESTS_KEEP").is_none()
            && let Err(error) = cluster.down()
        {
            eprintln!("the cluster does not go down: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

fn run(shared: &Shared, name: &str, test: fn(&Cluster) -> Result) -> std::result::Result<(), Failed> {
    let cluster = match shared.get() {
        Ok(cluster) => cluster,
        Err(failed) => return Err(failed),
    };
    test(cluster).map_err(|error| {
        // Said at once: the summary comes only after the last test.
        eprintln!("{error:#}");
        let kept = match bundle::write(cluster, &root().join("failures"), name) {
            Ok(dir) => format!("bundle: {}", dir.display()),
            Err(e) => format!("no bundle could be written: {e}"),
        };
        Failed::from(format!("{error:#}\n{kept}"))
    })
}
