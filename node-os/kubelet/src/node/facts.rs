//! What the machine is.

use std::collections::BTreeMap;
use std::path::Path;

/// Facts that do not change while the kubelet runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system that holds pods' volumes.
    pub disk: u64,
    /// Kernel release.
    pub kernel: String,
    /// PRETTY_NAME of os-release.
    pub os_image: String,
    /// amd64, arm64, …
    pub architecture: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// SMBIOS uuid.
    pub system_uuid: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
}

/// Reads the facts; what cannot be read stays empty.
pub fn read(root_dir: &Path) -> Facts {
    let text = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_string()).unwrap_or_default();
    let uname = rustix::system::uname();
    let machine_id = text("/etc/machine-id");
    let uuid = text("/sys/class/dmi/id/product_uuid");
    // The root directory is made later; its file system is that of the first directory that exists.
    let existing = root_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    Facts {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: meminfo(&text("/proc/meminfo")).get("MemTotal").copied().unwrap_or(0),
        disk: crate::mounts::usage(existing).map_or(0, |u| u.capacity),
        kernel: uname.release().to_string_lossy().into_owned(),
        os_image: pretty_name(&text("/etc/os-release")).unwrap_or_else(|| "Linux".into()),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_string(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid.to_lowercase() },
        machine_id,
        boot_id: text("/proc/sys/kernel/random/boot_id"),
    }
}

/// meminfo in bytes.
pub fn meminfo(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, rest) = line.split_once(':')?;
            let value: u64 = rest.split_whitespace().next()?.parse().ok()?;
            Some((key.to_string(), value * 1024))
        })
        .collect()
}

fn pretty_name(text: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        assert_eq!(meminfo("MemTotal:  100 kB\nX: y\n")["MemTotal"], 102_400);
        assert_eq!(pretty_name("ID=kimg\nPRETTY_NAME=\"kimg 0.1\"").as_deref(), Some("kimg 0.1"));
    }
}
