//! Tests on a cluster of real VMs. One cluster is shared by all tests that leave it whole;
//! the tests that break machines come last.

mod example;
mod joining;
mod kubectl;
mod network;
mod nodes;
mod outside;
mod platforms;
mod registry;
mod resilience;
mod security;
mod status_page;
mod store;
mod volumes;

use qemu_tests::cluster::settings;
use qemu_tests::suite::{self, Suite, Test};
use qemu_tests::tools;
use std::process::ExitCode;

/// In the order in which they run.
fn tests() -> Vec<Test> {
    [
        nodes::TESTS,
        resilience::FIRST,
        example::TESTS,
        network::TESTS,
        volumes::TESTS,
        registry::TESTS,
        kubectl::TESTS,
        outside::TESTS,
        joining::TESTS,
        platforms::TESTS,
        security::TESTS,
        status_page::TESTS,
        store::TESTS,
        resilience::TESTS,
    ]
    .concat()
}

/// Tests of the long set: `cargo test` counts them as ignored, `make test-long PART=cluster` runs them.
const LONG: &[&str] = &[
    "what_leaked_is_taken_back_and_the_node_runs_on",
    "every_service_may_be_killed",
    "every_vm_may_be_rebooted",
    "the_store_is_snapshot_checked_and_restored",
    "a_worker_s_backup_brings_the_store_back",
    "a_lost_master_is_healed_and_pods_run_on",
    "everything_is_lost_and_a_copy_elsewhere_brings_it_back",
    "a_vultr_instance_wakes_up_and_joins",
    "an_upcloud_server_wakes_up_and_joins",
    "an_oracle_instance_wakes_up_and_joins",
    "an_azure_machine_wakes_up_and_joins",
    "an_openstack_server_wakes_up_and_joins",
    "a_linode_wakes_up_and_joins",
    "a_scaleway_instance_wakes_up_and_joins",
    "an_exoscale_instance_wakes_up_and_joins",
    "a_google_machine_wakes_up_and_joins",
    "an_openstack_server_without_ipv4_metadata_wakes_up_and_joins",
    "a_droplet_wakes_up_and_joins",
    "an_ec2_instance_wakes_up_and_joins",
    "a_hetzner_server_without_ipv4_metadata_wakes_up_and_joins",
    "a_server_whose_metadata_are_slow_to_come_wakes_up_and_joins",
    "a_server_that_is_plugged_in_late_wakes_up_and_joins",
];

fn main() -> ExitCode {
    let busybox = match tools::busybox() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let more = "[metadata]\nallow = [\"closed/trusted\"]\n[backup]\nevery = 60\n[registry]\nsize = 256\n[status]\npage = true\n";
    let more = format!("{more}{}", nodes::own_component(&busybox));
    let cluster = settings("shared", 2, &more, "node-ports = [30080]\nspare-ports = 2");
    suite::main(Suite { name: "shared", cluster, tests: tests(), long: LONG, end: joining::end })
}
