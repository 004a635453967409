//! What a cluster does by other settings than the usual ones, which its images hold, so that it is a cluster of its own.

mod certificates;
mod overlay;

use qemu_tests::cluster::settings;
use qemu_tests::suite::{self, Suite};
use std::process::ExitCode;

fn main() -> ExitCode {
    let tests: Vec<suite::Test> = vec![
        ("host_gw_needs_no_tunnel_on_an_honest_network", overlay::honest),
        ("host_gw_fails_where_the_network_drops_foreign_sources", overlay::provider),
        ("short_lived_certificates_are_renewed_and_nobody_notices", certificates::renewed),
    ];
    let general = format!("overlay = \"host-gw\"\ncertificate-life = {}\n[status]\npage = true", certificates::life());
    suite::main(Suite {
        name: "settings",
        cluster: settings("settings", 2, &general, ""),
        tests,
        long: &[],
        end: || (),
    })
}
