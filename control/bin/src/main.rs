//! One executable for the control plane: which component runs is said by the name it is
//! called by, or by the first argument.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

type Main = fn(Vec<OsString>) -> ExitCode;

const COMPONENTS: [(&str, Main); 3] = [
    ("kube-apiserver", kube_apiserver::main),
    ("kube-controller-manager", kube_controller_manager::main),
    ("kube-scheduler", kube_scheduler::main),
];

fn component(name: &OsString) -> Option<Main> {
    let name = Path::new(name).file_name()?;
    COMPONENTS.iter().find(|(known, _)| name == *known).map(|(_, main)| *main)
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if let Some(main) = args.first().and_then(component) {
        return main(args);
    }
    if args.len() > 1
        && let Some(main) = component(&args[1])
    {
        args.remove(0);
        return main(args);
    }
    let names: Vec<&str> = COMPONENTS.iter().map(|(name, _)| *name).collect();
    eprintln!("usage: kimg-control COMPONENT [FLAGS]; components: {}", names.join(", "));
    ExitCode::from(2)
}
