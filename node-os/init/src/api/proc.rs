//! What `/proc` says: memory, sockets, file systems, processes.

use node_api::{Disk, Process, Socket};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

const TCP_STATES: [&str; 12] = [
    "?",
    "ESTABLISHED",
    "SYN-SENT",
    "SYN-RECEIVED",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "CLOSED",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
];
/// Kernel ticks a second, as user space sees them.
const TICKS: u64 = 100;
/// File systems that are shown; kernel interfaces are not.
const REAL: [&str; 6] = ["ext4", "squashfs", "tmpfs", "overlay", "vfat", "xfs"];

/// A value of `/proc/meminfo` in bytes.
pub fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Sockets of the node's own network namespace.
pub fn sockets() -> Vec<Socket> {
    let owners = socket_owners();
    let mut sockets = Vec::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/1/net/{protocol}")).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(|line| socket(protocol, line, &owners)));
    }
    sockets
}

fn socket(protocol: &str, line: &str, owners: &BTreeMap<u64, String>) -> Option<Socket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let state = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let inode: u64 = fields.get(9)?.parse().ok()?;
    let state = if protocol.starts_with("udp") { "" } else { TCP_STATES.get(state).copied().unwrap_or("?") };
    Some(Socket {
        protocol: protocol.to_owned(),
        state: state.to_owned(),
        local: endpoint(fields.get(1)?)?,
        remote: endpoint(fields.get(2)?)?,
        process: owners.get(&inode).cloned().unwrap_or_default(),
    })
}

/// `0100007F:1A0B`: each group of four bytes stands in the machine's order.
fn endpoint(text: &str) -> Option<String> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(format!("{}:{port}", Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(format!("[{}]:{port}", Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}

fn socket_owners() -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    for pid in pids() {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.entry(inode).or_insert_with(|| format!("{}/{pid}", name_of(pid)));
            }
        }
    }
    owners
}

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn command_of(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

fn name_of(pid: u32) -> String {
    let command = command_of(pid);
    let first = command.split(' ').next().unwrap_or_default();
    first.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Mounted file systems and block devices.
pub fn disks() -> Vec<Disk> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut disks: Vec<Disk> = mounts.lines().filter_map(mounted).collect();
    for name in crate::disk::scan::block_devices() {
        let device = format!("/dev/{name}");
        let skipped = ["ram", "loop", "dm-"].iter().any(|kind| name.starts_with(kind));
        if !skipped && !disks.iter().any(|disk| disk.device == device) {
            let sectors = fs::read_to_string(format!("/sys/class/block/{name}/size")).unwrap_or_default();
            let size = sectors.trim().parse::<u64>().unwrap_or(0) * 512;
            disks.push(Disk { device, size, ..Disk::default() });
        }
    }
    disks
}

fn mounted(line: &str) -> Option<Disk> {
    let mut fields = line.split(' ');
    let (device, mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if !REAL.contains(&kind) || mount.contains("/kubelet/pods/") || mount.contains("/io.containerd.") {
        return None;
    }
    let stat = rustix::fs::statvfs(Path::new(mount)).ok()?;
    Some(Disk {
        device: device.to_owned(),
        mount: mount.to_owned(),
        kind: kind.to_owned(),
        size: stat.f_blocks.saturating_mul(stat.f_frsize),
        used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// All processes with their memory; kernel threads are left out.
pub fn processes() -> Vec<Process> {
    pids().into_iter().filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let command = command_of(pid);
    if command.is_empty() {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Some(Process {
        pid,
        parent: u32::try_from(number(1)).unwrap_or(0),
        command,
        pss_kib: meminfo(&rollup, "Pss") / 1024,
        rss_kib: meminfo(&rollup, "Rss") / 1024,
        cgroup: group.trim().strip_prefix("0::").unwrap_or_default().to_owned(),
        cpu_ms: (number(11) + number(12)) * 1000 / TICKS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(meminfo("MemTotal:   10 kB\nMemFree: 5 kB\n", "MemFree"), 5120);
        assert_eq!(endpoint("0100007F:1A0B").unwrap(), "127.0.0.1:6667");
        assert_eq!(endpoint("00000000000000000000000001000000:0016").unwrap(), "[::1]:22");
        assert_eq!(endpoint("zz"), None);
        assert!(!processes().is_empty() && processes().iter().any(|process| process.pss_kib > 0));
    }
}
