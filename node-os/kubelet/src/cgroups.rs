//! cgroup v2: one group a QoS class, one a pod; the runtime makes one a container below.

use crate::container::resources;
use crate::pods::{qos, spec};
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::path::{Path, PathBuf};

/// Groups of pods below this root.
#[derive(Debug, Clone)]
pub struct Cgroups {
    mount: PathBuf,
}

/// What pods together may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes; 0: no limit.
    pub memory: i64,
    /// Thousandths of a cpu.
    pub cpu_milli: i64,
}

const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

impl Cgroups {
    /// The groups below `mount`, if a cgroup v2 hierarchy is mounted there.
    pub fn new(mount: &Path) -> Option<Cgroups> {
        mount.join("cgroup.controllers").exists().then(|| Cgroups { mount: mount.to_path_buf() })
    }

    /// Makes the groups of the QoS classes.
    pub fn prepare(&self, limits: Limits) -> io::Result<()> {
        self.delegate(&self.mount);
        for group in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            let path = self.mount.join(group);
            make(&path)?;
            self.delegate(&path);
        }
        let root = self.mount.join("kubepods");
        if limits.memory > 0 {
            set(&root, "memory.max", &limits.memory.to_string());
        }
        set(&root, "cpu.weight", &weight(resources::shares(limits.cpu_milli)).to_string());
        set(&self.mount.join("kubepods/besteffort"), "cpu.weight", "1");
        Ok(())
    }

    /// Lets groups below `path` use the controllers that are there.
    fn delegate(&self, path: &Path) {
        let available = std::fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        for controller in CONTROLLERS.iter().filter(|c| available.split_whitespace().any(|a| a == **c)) {
            set(path, "cgroup.subtree_control", &format!("+{controller}"));
        }
    }

    /// Path of a pod's group below the root, as the runtime takes it.
    pub fn pod_path(pod: &Pod) -> String {
        let uid = spec::uid(pod);
        match qos::class(pod) {
            qos::Class::Guaranteed => format!("/kubepods/pod{uid}"),
            qos::Class::Burstable => format!("/kubepods/burstable/pod{uid}"),
            qos::Class::BestEffort => format!("/kubepods/besteffort/pod{uid}"),
        }
    }

    /// Makes a pod's group with the pod's limits, or brings them up to date.
    pub fn apply(&self, pod: &Pod) -> io::Result<()> {
        let path = self.mount.join(Self::pod_path(pod).trim_start_matches('/'));
        make(&path)?;
        self.delegate(&path);
        let request = qos::pod_total(pod, "cpu", false).unwrap_or(0);
        set(&path, "cpu.weight", &weight(resources::shares(request)).to_string());
        let cpu = match qos::pod_total(pod, "cpu", true) {
            Some(limit) if limit > 0 => format!("{} {}", resources::quota(limit), resources::PERIOD),
            _ => format!("max {}", resources::PERIOD),
        };
        set(&path, "cpu.max", &cpu);
        let memory = match qos::pod_total(pod, "memory", true) {
            Some(limit) if limit > 0 => (limit / 1000).to_string(),
            _ => "max".into(),
        };
        set(&path, "memory.max", &memory);
        Ok(())
    }

    /// Removes a pod's group, whatever its class was, and ends what is left in it.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            let path = self.mount.join(class).join(format!("pod{uid}"));
            if path.exists() {
                set(&path, "cgroup.kill", "1");
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Uids of the pods that have a group.
    pub fn pods(&self) -> Vec<String> {
        let classes = ["kubepods", "kubepods/burstable", "kubepods/besteffort"];
        let entries = classes.iter().filter_map(|c| std::fs::read_dir(self.mount.join(c)).ok()).flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("pod").map(String::from)).collect()
    }

    /// A group's directory.
    pub fn path(&self, group: &str) -> PathBuf {
        self.mount.join(group.trim_start_matches('/'))
    }
}

/// cpu.weight for cpu.shares.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn make(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A knob that the kernel does not have or refuses is worth a line, not a failed pod.
fn set(path: &Path, file: &str, value: &str) {
    if let Err(error) = std::fs::write(path.join(file), value) {
        tracing::debug!("cgroup {}: writing {value:?} to {file}: {error}", path.display());
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // The kernel needs a moment to reap what was killed.
    for _ in 0..20 {
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(25));
            }
            Err(error) => return Err(error),
        }
    }
    std::fs::remove_dir(path)
}

/// Figures of one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Nanoseconds of cpu used.
    pub cpu_ns: u64,
    /// Bytes in use.
    pub memory: u64,
    /// Bytes that cannot be reclaimed easily.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Reads a group's figures.
pub fn figures(path: &Path) -> io::Result<Figures> {
    let cpu = std::fs::read_to_string(path.join("cpu.stat"))?;
    let stat = std::fs::read_to_string(path.join("memory.stat")).unwrap_or_default();
    // The root group has no memory.current.
    let memory = number(path, "memory.current").unwrap_or_else(|| keyed(&stat, "anon") + keyed(&stat, "file"));
    Ok(Figures {
        cpu_ns: keyed(&cpu, "usage_usec") * 1000,
        memory,
        working_set: memory.saturating_sub(keyed(&stat, "inactive_file")),
        rss: keyed(&stat, "anon"),
        faults: keyed(&stat, "pgfault"),
        major_faults: keyed(&stat, "pgmajfault"),
        pids: number(path, "pids.current").unwrap_or(0),
    })
}

fn number(path: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(path.join(file)).ok()?.trim().parse().ok()
}

fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_figures() {
        for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected);
        }
        assert_eq!(keyed("usage_usec 12\nuser_usec 3", "usage_usec"), 12);
        assert_eq!(keyed("anon_thp 1\nanon 2", "anon"), 2);
    }

    #[test]
    fn paths_follow_the_class() {
        let pod: Pod = serde_yaml_ng::from_str("{metadata: {uid: u}, spec: {containers: [{name: a}]}}").unwrap();
        assert_eq!(Cgroups::pod_path(&pod), "/kubepods/besteffort/podu");
    }
}
