//! Pod addresses of this node: one file for each that is in use, named by the address.

use crate::STATE_DIR;
use crate::config::{Failure, PortMapping, code};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Who holds an address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) address: Ipv4Addr,
    pub(crate) owner: String,
    pub(crate) port_mappings: Vec<PortMapping>,
}

fn fail(doing: &str, path: &std::path::Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(code::IO, format!("{doing} {}", path.display()), error)
}

/// Held while addresses are given out; released when dropped.
fn lock() -> Result<File, Failure> {
    let dir = PathBuf::from(STATE_DIR);
    fs::create_dir_all(&dir).map_err(|e| fail("making", &dir, e))?;
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| fail("opening", &path, e))?;
    file.lock().map_err(|e| fail("locking", &path, e))?;
    Ok(file)
}

/// Takes the next free address after the last one given, so that an address rests before it is used again.
pub(crate) fn reserve(cidr: &Ipv4Net, owner: &str, ports: &[PortMapping]) -> Result<Ipv4Addr, Failure> {
    let _lock = lock()?;
    let taken = all()?;
    if let Some(record) = taken.iter().find(|r| r.owner == owner) {
        // The runtime asks again for what it already has.
        return Ok(record.address);
    }
    if let Some(port) = ports.iter().find(|p| taken.iter().any(|r| r.port_mappings.iter().any(|o| clash(o, p)))) {
        return Err(Failure::new(
            code::NETWORK,
            "portMappings",
            format!("host port {} is taken by another pod", port.host_port),
        ));
    }
    let used: Vec<Ipv4Addr> = taken.iter().map(|r| r.address).collect();
    let last_file = PathBuf::from(STATE_DIR).join("last");
    let last = fs::read_to_string(&last_file).ok().and_then(|t| t.trim().parse().ok());
    let address = next_free(cidr, last, &used).ok_or_else(|| {
        Failure::new(code::TRY_LATER, "pod addresses", format!("all addresses of {cidr} are in use on this node"))
    })?;
    let record = Record { address, owner: owner.to_owned(), port_mappings: ports.to_vec() };
    let text = serde_json::to_string(&record).map_err(|e| Failure::new(code::IO, "writing the address", e))?;
    let path = record_path(address);
    fs::write(&path, text).map_err(|e| fail("writing", &path, e))?;
    fs::write(&last_file, address.to_string()).map_err(|e| fail("writing", &last_file, e))?;
    Ok(address)
}

fn clash(a: &PortMapping, b: &PortMapping) -> bool {
    a.host_port == b.host_port && a.protocol_number() == b.protocol_number()
}

/// The first two addresses are the node's own, the last is the broadcast address.
fn next_free(cidr: &Ipv4Net, last: Option<Ipv4Addr>, used: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let first = u32::from(cidr.network()).checked_add(2)?;
    let end = u32::from(cidr.broadcast());
    let count = end.checked_sub(first)?;
    let start = last.map(u32::from).filter(|l| (first..end).contains(l)).map_or(0, |l| l - first + 1);
    (0..count).map(|i| Ipv4Addr::from(first + (start + i) % count)).find(|a| !used.contains(a))
}

fn record_path(address: Ipv4Addr) -> PathBuf {
    PathBuf::from(STATE_DIR).join(format!("{address}.json"))
}

/// All addresses in use.
pub(crate) fn all() -> Result<Vec<Record>, Failure> {
    let dir = PathBuf::from(STATE_DIR);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail("reading", &dir, error)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| fail("reading", &dir, e))?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| fail("reading", &path, e))?;
        match serde_json::from_str(&text) {
            Ok(record) => out.push(record),
            // Cut off while it was written: it never reached a pod.
            Err(_) => fs::remove_file(&path).map_err(|e| fail("removing", &path, e))?,
        }
    }
    Ok(out)
}

/// What one container's interface holds.
pub(crate) fn of_owner(owner: &str) -> Result<Vec<Record>, Failure> {
    Ok(all()?.into_iter().filter(|r| r.owner == owner).collect())
}

/// Gives an address back.
pub(crate) fn release(record: &Record) -> Result<(), Failure> {
    let _lock = lock()?;
    let path = record_path(record.address);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail("removing", &path, error)),
        _ => Ok(()),
    }
}

/// Whether another pod could get an address.
pub(crate) fn usable(cidr: &Ipv4Net) -> Result<(), Failure> {
    let _lock = lock()?;
    let used: Vec<Ipv4Addr> = all()?.iter().map(|r| r.address).collect();
    next_free(cidr, None, &used)
        .map(|_| ())
        .ok_or_else(|| Failure::new(50, "pod addresses", format!("all addresses of {cidr} are in use on this node")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_round() {
        let cidr: Ipv4Net = "10.200.1.0/29".parse().expect("a CIDR");
        let ip = |d| Ipv4Addr::new(10, 200, 1, d);
        for (last, used, expected) in [
            (None, vec![], Some(ip(2))),
            (Some(ip(2)), vec![ip(2)], Some(ip(3))),
            (Some(ip(6)), vec![ip(6)], Some(ip(2))),
            (Some(ip(3)), vec![ip(2), ip(3), ip(4), ip(5), ip(6)], None),
            (Some(Ipv4Addr::new(10, 9, 9, 9)), vec![ip(2)], Some(ip(3))),
        ] {
            assert_eq!(next_free(&cidr, last, &used), expected, "last {last:?}, used {used:?}");
        }
    }

    #[test]
    fn a_tiny_range_gives_nothing() {
        let cidr: Ipv4Net = "10.0.0.0/32".parse().expect("a CIDR");
        assert_eq!(next_free(&cidr, None, &[]), None);
    }
}
