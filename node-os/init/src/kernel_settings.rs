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

/// Connections that the kernel tracks, and its table. Left alone it takes 7 000 on a machine of 1 GB; a connection is
/// remembered for two minutes after its end, so that 60 new ones a second would fill that, and the others be dropped.
const TRACKED: &str = "net/netfilter/nf_conntrack_max";
const TRACKED_BUCKETS: &str = "net/netfilter/nf_conntrack_buckets";
/// As many as upstream's kube-proxy (`--conntrack-min`).
const MOST_TRACKED: u64 = 131_072;
/// Bytes that a tracked connection may take, with its extensions for NAT and events.
const TRACKED_SIZE: u64 = 512;
/// Share of the memory that they have when there are as many as may be.
const TRACKED_SHARE: u64 = 8;

/// Sets all of them; what the kernel refuses comes back as sentences.
pub fn apply() -> Vec<String> {
    let mut faults = Vec::new();
    for (name, value) in SETTINGS {
        set(name, value, &mut faults);
    }
    let memory = rustix::system::sysinfo();
    let tracked = tracked(memory.totalram.saturating_mul(memory.mem_unit.into()));
    // A machine with much memory may have more by itself.
    if number(TRACKED).is_some_and(|now| now < tracked) {
        set(TRACKED_BUCKETS, &(tracked / 4).to_string(), &mut faults);
        set(TRACKED, &tracked.to_string(), &mut faults);
    }
    if let Err(error) = setrlimit(Resource::Nofile, OPEN_FILES) {
        faults.push(format!("cannot raise the limit of open files: {error}"));
    }
    faults
}

fn set(name: &str, value: &str, faults: &mut Vec<String>) {
    let path = format!("/proc/sys/{name}");
    // A setting of a module that is not loaded is not there, and not missed.
    if std::path::Path::new(&path).exists()
        && let Err(error) = std::fs::write(&path, value)
    {
        faults.push(format!("cannot set {path} to {value}: {error}"));
    }
}

fn number(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

/// How many connections a machine with so many bytes of memory tracks.
fn tracked(memory: u64) -> u64 {
    (memory / TRACKED_SHARE / TRACKED_SIZE).min(MOST_TRACKED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_tracks_many_connections_in_little_memory() {
        assert_eq!(tracked(1 << 30), 131_072);
        assert_eq!(tracked(256 << 20), 65_536);
        assert_eq!(tracked(64 << 30), 131_072);
    }
}
