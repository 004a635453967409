//! The end: services in the reverse of their order, then all other processes, then the file systems.

use super::clock;
use crate::disk::store;
use crate::machine::{Shared, now_ms};
use crate::services::core::Event;
use crate::services::runtime::Supervisor;
use node_sys::machine::Ending;
use node_sys::{mount, process};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

/// All services together; single ones are killed earlier.
const SERVICES_MS: u64 = 75_000;
/// Containers and whatever else is left.
const OTHERS_MS: u64 = 5_000;

const MARKER: &str = "/run/kimg/shutdown";

/// Ends everything, and the machine.
pub(super) async fn end(machine: &Shared, supervisor: Option<Rc<Supervisor>>, ending: Ending) {
    let what = match ending {
        Ending::Reboot => "reboot",
        Ending::PowerOff => "power off",
    };
    tracing::info!("{what}: services are stopped");
    // The kubelet tells by this file whether it is only restarted or its pods must end too.
    if let Err(error) = std::fs::write(MARKER, what) {
        tracing::warn!("cannot write {MARKER}: {error}");
    }
    machine.stage(what);
    if let Some(supervisor) = supervisor {
        supervisor.tell(Event::StopAll);
        let deadline = now_ms() + SERVICES_MS;
        while now_ms() < deadline && machine.services().iter().any(|service| service.pid.is_some()) {
            sleep(Duration::from_millis(50)).await;
        }
    }
    clock::save();
    machine.logs.close();
    for at_once in [false, true] {
        note("cannot end the last processes", process::signal_all(at_once));
        wait_for_processes().await;
    }
    unmount_all();
    if let Err(error) = node_sys::machine::end(ending) {
        crate::console::print(&format!("kimg: the kernel refuses to {what}: {error}. Reset the machine.\n"));
    }
}

/// Waits until no process but PID 1 and kernel threads is there, a bounded time.
async fn wait_for_processes() {
    let deadline = now_ms() + OTHERS_MS;
    while now_ms() < deadline && others() {
        while let Ok(Some(_)) = process::reap() {}
        sleep(Duration::from_millis(20)).await;
    }
}

fn others() -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).any(|name| {
        // Kernel threads have no command line.
        name.bytes().all(|byte| byte.is_ascii_digit())
            && name != "1"
            && std::fs::read(format!("/proc/{name}/cmdline")).is_ok_and(|line| !line.is_empty())
    })
}

/// What lies on a disk is unmounted, the innermost first; what cannot be is made read-only.
fn unmount_all() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets: Vec<String> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape).collect();
    for target in targets.iter().rev().filter(|target| {
        ["/var", "/state", "/run/containerd", "/run/netns", store::VOLUME].iter().any(|root| is_below(target, root))
    }) {
        if mount::unmount(Path::new(target), false).is_err() {
            note("a file system stays in use", mount::unmount(Path::new(target), true));
        }
    }
    // Gone already in the good case.
    let _ = mount::remount_read_only(Path::new("/state"));
}

fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

fn note(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{what}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_count() {
        assert!(is_below("/var/lib", "/var") && is_below("/var", "/var") && !is_below("/various", "/var"));
        assert_eq!(unescape("/a\\040b"), "/a b");
    }
}
