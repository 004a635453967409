//! A node's data volume: a disk that outlives the machine, told by user-data (`data-volume`). A worker's is for the volumes
//! of pods, a master's for its store ([`super::store`]).
//!
//! It is known by the UUID of its file system, which follows from the names of cluster and node. A blank disk of its size
//! becomes it, where there is one; nothing else is ever written to. It may be attached before the machine starts or while it
//! waits.

use super::scan::{self, Disk};
use super::state;
use super::store::{self, StoreVolume};
use crate::kernel_modules;
use crate::machine::{Shared, Wait};
use anyhow::{Context, Result};
use node_api::copy::LOCAL_PATH as MOUNT_POINT;
use node_metadata::{Node, Role};
use node_sys::mount::{self, Options};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const LABEL: &str = "kimg-data";
const EXT4_UUID_AT: u64 = 1024 + 104;
const EVERY: Duration = Duration::from_secs(2);
/// Where file systems, RAIDs and partition tables begin, or have their second beginning: offset (from the end where it is
/// below nothing) and length.
const BEGINNINGS: [(i64, usize); 3] = [(0, 4 << 20), (64 << 20, 64 << 10), (-(1 << 20), 1 << 20)];
const ATTACH: &str =
    "attach it to this machine; a new one must be blank, and one that was cut off while it was made is not";
const REPAIR: &str =
    "do not put a blank one in its place; power the node off, and repair it with e2fsck at another machine";

/// The volume is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotThere(String);

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// This node's volume.
    Own,
    /// Another node's.
    Others,
    /// Nothing, and it is as large as the volume is to be.
    Nothing,
    /// Something else.
    Else,
}

/// What a volume is for.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// A master's store.
    master: bool,
    /// That begins when somebody says what with.
    waits: bool,
    /// Its size.
    gb: NonZeroU32,
}

/// Does not return before the volume of this cluster's node is mounted, which has so many GB. `root` is the disk that
/// carries the root.
pub async fn mounted(machine: &Shared, cluster: &str, node: &Node, gb: NonZeroU32, root: &str) {
    let uuid = uuid(cluster, &node.name);
    let needs = Needs { master: node.role == Role::Master, waits: node.await_backup, gb };
    machine.stage("data volume");
    machine.begin("data volume");
    loop {
        let (uuid, root) = (uuid.clone(), root.to_owned());
        let done = tokio::task::spawn_blocking(move || prepare(&uuid, needs, &root)).await;
        match done.unwrap_or_else(|error| Err(anyhow::anyhow!("its preparation was interrupted: {error}"))) {
            Ok(note) => return machine.end("data volume", &note),
            Err(error) => {
                let why = format!("{error:#}");
                let hint = if error.is::<NotThere>() { ATTACH } else { REPAIR };
                machine.waits("data volume", Wait { waits_for: "its data volume", why: &why, hint });
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The UUID of a node's volume (RFC 9562, version 8).
fn uuid(cluster: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("kimg data volume of {cluster}/{node}"));
    let mut bytes: Vec<u8> = digest.into_iter().take(16).collect();
    for (at, keeps, version) in [(6, 0x0f, 0x80), (8, 0x3f, 0x80)] {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *byte & keeps | version;
        }
    }
    written(&bytes)
}

fn written(bytes: &[u8]) -> String {
    let hex = |(at, byte)| format!("{}{byte:02x}", if [4, 6, 8, 10].contains(&at) { "-" } else { "" });
    bytes.iter().enumerate().map(hex).collect()
}

fn prepare(uuid: &str, needs: Needs, root: &str) -> Result<String> {
    // What this disk began with is the current store, whatever a volume holds that it was told of since.
    if let Some(path) = store::on_disk().filter(|_| needs.master) {
        return Ok(format!("none: {} is on this disk, and `kimg roll` moves it", path.display()));
    }
    // Its controller may have come with it.
    if let Ok(mut index) = kernel_modules::Index::read() {
        let names = kernel_modules::for_devices(&index);
        for fault in index.load(&names.iter().map(String::as_str).collect::<Vec<_>>()) {
            tracing::debug!("{fault}");
        }
    }
    let disks = scan::disks().into_iter().filter(|disk| disk.name != root && !disk.is_read_only());
    let seen: Vec<(String, Holds)> = disks.map(|disk| (disk.name.clone(), holds(&disk, uuid, needs.gb))).collect();
    let (name, new) = choose(&seen)?;
    let device = Disk { name }.device();
    let text = device.to_string_lossy();
    if new {
        state::make(&text, &["-L", LABEL, "-U", uuid])?;
    }
    let grown = !new && state::check(&device)?;
    let options = Options { no_suid_no_dev: true, ..Options::PLAIN };
    let target = Path::new(if needs.master { store::VOLUME } else { MOUNT_POINT });
    mount::mount(&text, target, "ext4", options, "errors=remount-ro")?;
    let closed = needs.master && show_store(needs.waits).inspect_err(|_| drop(mount::unmount(target, true)))?;
    let note = if new {
        "made"
    } else if grown {
        "file system grown"
    } else {
        "found"
    };
    let closed =
        if closed { "; its store is another disk's, and closed until kimg says who goes on with it" } else { "" };
    Ok(format!("{text} {note}{closed}"))
}

fn show_store(waits: bool) -> Result<bool> {
    StoreVolume::mounted()?.context("the data volume is not mounted")?.show(waits)
}

fn holds(disk: &Disk, uuid: &str, gb: NonZeroU32) -> Holds {
    let device = disk.device();
    if !state::is_ext4(&device) {
        return match is_about(disk.size(), gb) && is_empty(disk).unwrap_or(false) {
            true => Holds::Nothing,
            false => Holds::Else,
        };
    }
    let mut found = [0u8; 16];
    let read = File::open(&device).and_then(|file| file.read_exact_at(&mut found, EXT4_UUID_AT));
    match (read, state::label(&device).as_deref()) {
        (Ok(()), _) if written(&found) == uuid => Holds::Own,
        (Ok(()), Some(LABEL)) => Holds::Others,
        _ => Holds::Else,
    }
}

/// A GB has 10⁹ or 2³⁰ bytes, as the provider likes.
fn is_about(size: u64, gb: NonZeroU32) -> bool {
    let gb = u64::from(gb.get());
    (gb * 950_000_000..=gb * (1100 << 20)).contains(&size)
}

/// Better a node that waits than data that is gone.
fn is_empty(disk: &Disk) -> Result<bool> {
    let device = disk.device();
    let file = File::open(&device).with_context(|| format!("cannot open {}", device.display()))?;
    for (offset, length) in BEGINNINGS {
        let at = if offset < 0 { disk.size().saturating_add_signed(offset) } else { offset.unsigned_abs() };
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).with_context(|| format!("cannot read {}", device.display()))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The disk that is the volume, and whether it is to be made.
///
/// # Errors
/// None is, or it is not known which.
fn choose(seen: &[(String, Holds)]) -> Result<(String, bool), NotThere> {
    let names = |kind: Holds| -> Vec<&str> {
        seen.iter().filter(|(_, holds)| *holds == kind).map(|(name, _)| name.as_str()).collect()
    };
    let several = |what: &str, names: &[&str]| {
        NotThere(format!("{} are {what}, and it has one; detach what is not it", names.join(" and ")))
    };
    match (names(Holds::Own).as_slice(), names(Holds::Nothing).as_slice()) {
        ([own], _) => Ok(((*own).to_owned(), false)),
        ([], [blank]) => Ok(((*blank).to_owned(), true)),
        ([], []) => Err(NotThere(match names(Holds::Others).first() {
            Some(other) => format!("{other} is the data volume of another node"),
            None if names(Holds::Else).is_empty() => "no disk is attached but its own".to_owned(),
            None => format!(
                "{} is neither its volume nor blank and as large as that is to be, and is left alone",
                names(Holds::Else).join(", ")
            ),
        })),
        ([], blank) => Err(several("blank disks", blank)),
        (own, _) => Err(several("this node's data volume", own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_disk_is_taken_only_where_no_other_is_meant() {
        use Holds::{Else, Nothing, Others, Own};
        let taken = |kinds: &[Holds]| {
            let seen: Vec<_> = kinds.iter().enumerate().map(|(n, kind)| (format!("d{n}"), *kind)).collect();
            choose(&seen).map_err(|error| error.to_string())
        };
        for (kinds, wanted) in [
            (&[Own][..], Ok(("d0", false))),
            (&[Nothing, Own, Else, Others], Ok(("d1", false))),
            (&[Else, Nothing], Ok(("d1", true))),
            (&[Others, Nothing], Ok(("d1", true))),
            (&[], Err("no disk is attached")),
            (&[Else], Err("d0 is neither")),
            (&[Else, Others], Err("d1 is the data volume of another node")),
            (&[Nothing, Nothing], Err("d0 and d1 are blank disks")),
            (&[Own, Nothing, Own], Err("d0 and d2 are this node's")),
        ] {
            match (taken(kinds), wanted) {
                (Ok(found), Ok((name, new))) => assert_eq!(found, (name.to_owned(), new), "{kinds:?}"),
                (Err(said), Err(words)) => assert!(said.contains(words), "{kinds:?}: {said}"),
                (found, _) => panic!("{kinds:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_gb_is_of_either_kind() {
        let gb = |gb| NonZeroU32::new(gb).unwrap();
        assert!(is_about(20 << 30, gb(20)) && is_about(20_000_000_000, gb(20)) && is_about(2 << 30, gb(2)));
        assert!(!is_about(16 << 30, gb(20)) && !is_about(25 << 30, gb(20)) && !is_about(1 << 20, gb(1)));
        assert!(is_about(u64::from(u32::MAX) << 30, gb(u32::MAX)));
    }

    #[test]
    fn each_node_of_each_cluster_has_another_volume() {
        let own = uuid("shop", "worker-1");
        assert_eq!(own, uuid("shop", "worker-1"));
        assert!(own != uuid("shop", "worker-2") && own != uuid("shopworker", "-1"), "{own}");
        let parts: Vec<usize> = own.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{own}");
        assert!(own.as_bytes()[14] == b'8' && b"89ab".contains(&own.as_bytes()[19]), "{own}");
    }
}
