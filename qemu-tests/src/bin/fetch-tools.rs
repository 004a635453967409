//! Brings programs that tests drive into `target/tools/`; names as arguments, all without.

use qemu_tests::tools;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names.extend(["etcd".into(), "rsyslog".into()]);
    }
    for name in names {
        let fetched = match name.as_str() {
            "etcd" => tools::etcd(),
            "rsyslog" => tools::rsyslog(),
            other => {
                eprintln!("there is no tool {other:?}; known: etcd, rsyslog");
                return ExitCode::from(2);
            }
        };
        match fetched {
            Ok(path) => println!("{}", path.display()),
            Err(error) => {
                eprintln!("{error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
