//! One executable for the control plane: which component runs is said by the name it is
//! called by, or by the first argument.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

type Main = fn(Vec<OsString>) -> ExitCode;

const COMPONENTS: [(&str, Main); 4] = [
    ("kube-apiserver", kube_apiserver::main),
    ("kube-controller-manager", kube_controller_manager::main),
    ("kube-scheduler", kube_scheduler::main),
    (kimg_status::NAME, kimg_status::main),
];

/// What makes the C library's allocator give memory back: few arenas, and large buffers in
/// maps of their own.  It reads them at its start only.
const ALLOCATOR: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "131072")];
/// Bytes at the heap's end that are kept for the next allocation.
const TRIM: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "131072");
/// The API server keeps more: with little, half of what a list costs went to page faults.
const TRIM_OF_SERVER: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "4194304");

fn component(name: &OsStr) -> Option<Main> {
    let name = Path::new(name).file_name()?;
    COMPONENTS.iter().find(|(known, _)| name == *known).map(|(_, main)| *main)
}

/// Runs this program again, in the same process, with the allocator's settings.
fn tune(args: &[OsString]) {
    let Some((name, rest)) = args.split_first() else {
        return;
    };
    if std::env::var_os(ALLOCATOR[0].0).is_some() {
        return;
    }
    let is_server = |arg: &OsString| Path::new(arg).file_name() == Some(OsStr::new(COMPONENTS[0].0));
    let trim = if args.iter().take(2).any(is_server) { TRIM_OF_SERVER } else { TRIM };
    let error = Command::new("/proc/self/exe").arg0(name).args(rest).envs(ALLOCATOR).envs([trim]).exec();
    eprintln!("running with more memory than needed: {error}");
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    tune(&args);
    if let Some(main) = args.first().and_then(|a| component(a)) {
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
