//! Real clients against a real API server process: kubectl of two Debian releases, kube-rs, client-go, the Python
//! and the JavaScript client, and a browser. No VM. Every test has a server of its own.
//!
//! What a client needs is fetched into `target/tools/`, pinned and once. Where it cannot be had here, its tests
//! are skipped with the reason, and counted.

mod backup;
mod browser;
mod kube_rs;
mod kubectl;
mod program;
mod toolchain;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use qemu_tests::Result;
use qemu_tests::apiserver::Apiserver;
use std::process::ExitCode;
use std::sync::Arc;
use toolchain::Language;

type Test = (&'static str, fn(&mut Apiserver) -> Result);

/// The tests of a client that is a program in `qemu-tests/clients/`; each name is a check that the program knows.
const PROGRAMS: &[(Language, &[&str])] = &[
    (
        Language::Python,
        &[
            "create_update_conflict",
            "patches",
            "apply",
            "delete",
            "pagination",
            "watch_through_a_restart",
            "informer_through_a_restart",
            "dynamic_client",
        ],
    ),
    (
        Language::JavaScript,
        &[
            "create_update_conflict",
            "patches",
            "apply",
            "delete",
            "pagination",
            "watch_through_a_restart",
            "informer_through_a_restart",
            "generic_client",
        ],
    ),
    (
        Language::Go,
        &[
            "create_update_conflict",
            "patches",
            "apply",
            "delete",
            "pagination",
            "watch_through_a_restart",
            "typed_informer",
            "dynamic_informer",
            "metadata_informer",
            "lists_by_watches",
            "informer_through_a_restart",
            "watch_list",
            "leader_election",
            "protobuf",
        ],
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (name, test) in [kubectl::TESTS, kube_rs::TESTS, backup::TESTS].concat() {
        let run = move || test(&mut server()?).map_err(said);
        trials.push(Trial::test(name, run));
    }
    trials.push(browser::trial());
    for (language, checks) in PROGRAMS {
        let tools = Arc::new(toolchain::Tools::new(*language));
        let tests: Vec<Trial> = checks.iter().map(|check| trial(&tools, check)).collect();
        // Fetching and building goes on beside the tests of the other clients.
        if !arguments.list && tests.iter().any(|t| !arguments.is_filtered_out(t)) {
            std::thread::spawn(move || tools.ready().is_ok());
        }
        trials.extend(tests);
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn server() -> std::result::Result<Apiserver, Failed> {
    Apiserver::start(&[]).map_err(said)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn said(error: anyhow::Error) -> Failed {
    // Said at once: the summary comes only after the last test.
    eprintln!("{error:#}");
    Failed::from(format!("{error:#}"))
}

fn trial(tools: &Arc<toolchain::Tools>, check: &'static str) -> Trial {
    let tools = tools.clone();
    let name = format!("{}_{check}", tools.language().name());
    Trial::ignorable_test(name, move || {
        let command = match tools.ready() {
            Ok(command) => command,
            Err(toolchain::Lacking::Unavailable(reason)) => {
                eprintln!("skipped: {reason}");
                return Ok(Completion::ignored_with(reason));
            }
            Err(toolchain::Lacking::Broken(reason)) => return Err(Failed::from(reason.as_str())),
        };
        program::run(command, check, &mut server()?).map_err(said)?;
        Ok(Completion::Completed)
    })
}
