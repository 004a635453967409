//! Kernel settings (sysctl) and limits that a node's components expect.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Path below `/proc/sys`, value, each with its reason.
const SETTINGS: &[(&str, &str)] = &[
    // Containers ask for memory that they never touch.
    ("vm/overcommit_memory", "1"),
    // Search engines and databases in pods map many files.
    ("vm/max_map_count", "262144"),
    // A kernel that has lost its way must not go on as a node.
    ("kernel/panic_on_oops", "1"),
    // Only firmware, which may check signatures, starts a kernel. This cannot be taken back.
    ("kernel/kexec_load_disabled", "1"),
    // One key ring a container.
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
    // Every pod may have its watchers.
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "524288"),
    ("net/core/somaxconn", "4096"),
    // A packet to a service leaves through another interface than its answer comes in by.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Answers to connections that began before a reboot must not be dropped as invalid.
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
];

/// Soft and hard limit of open files; services inherit both.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };

/// Sets all of them; what the kernel refuses comes back as sentences.
pub fn apply() -> Vec<String> {
    let mut faults = Vec::new();
    for (name, value) in SETTINGS {
        let path = format!("/proc/sys/{name}");
        // A setting of a module that is not loaded is not there, and not missed.
        if std::path::Path::new(&path).exists()
            && let Err(error) = std::fs::write(&path, value)
        {
            faults.push(format!("cannot set {path} to {value}: {error}"));
        }
    }
    if let Err(error) = setrlimit(Resource::Nofile, OPEN_FILES) {
        faults.push(format!("cannot raise the limit of open files: {error}"));
    }
    faults
}
