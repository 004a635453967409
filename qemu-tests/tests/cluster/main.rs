//! Tests on a cluster of real VMs. One cluster is shared by all tests that leave it whole;
//! the tests that break machines come last.

mod example;
mod joining;
mod kubectl;
mod network;
mod nodes;
mod outside;
mod platforms;
mod resilience;
mod security;
mod store;
mod volumes;

use qemu_tests::suite::{self, Suite, Test};
use std::process::ExitCode;

/// In the order in which they run.
fn tests() -> Vec<Test> {
    [
        nodes::TESTS,
        example::TESTS,
        network::TESTS,
        volumes::TESTS,
        kubectl::TESTS,
        outside::TESTS,
        joining::TESTS,
        platforms::TESTS,
        security::TESTS,
        store::TESTS,
        resilience::TESTS,
    ]
    .concat()
}

/// Tests of the long set: `cargo test` counts them as ignored, `make test-long PART=cluster` runs them.
const LONG: &[&str] = &[
    "every_service_may_be_killed",
    "every_vm_may_be_rebooted",
    "the_store_is_snapshot_checked_and_restored",
    "a_hetzner_server_wakes_up_and_joins",
    "a_droplet_wakes_up_and_joins",
    "an_ec2_instance_wakes_up_and_joins",
];

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
spare-ports = 2
"#;

fn main() -> ExitCode {
    suite::main(Suite { name: "shared", cluster: CLUSTER, tests: tests(), long: LONG, end: joining::end })
}
