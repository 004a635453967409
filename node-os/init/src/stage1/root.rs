//! Finding the root among all disks, and opening it through dm-verity.

use super::cmdline::RootHash;
use super::superblock;
use crate::disk::gpt::Table;
use crate::disk::scan::{Disk, disks};
use anyhow::{Context, Result, bail};
use node_sys::mount::{Options, mount};
use node_sys::verity::Verity;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the disks are looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// Without a root after this time the late modules are loaded.
const LATE_AFTER: Duration = Duration::from_millis(1500);
/// How long a disk that was never used waits for one that was.
const SETTLE: Duration = Duration::from_millis(200);
/// Controllers of slow machines need so long at most.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const STATE_PARTITION: u32 = 6;
const EXT4_MAGIC_AT: u64 = 1024 + 56;

/// The disk with the root, and its two partitions.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) disk: Disk,
    pub(super) data: u32,
    pub(super) hashes: u32,
}

/// Waits for a disk with both partitions of `hash`.
pub(super) fn find(hash: &RootHash, load_late: impl FnOnce(), say: impl Fn(&str)) -> Result<Root> {
    let start = Instant::now();
    let mut load_late = Some(load_late);
    let mut settled = false;
    loop {
        if let Some(root) = choose(candidates(hash)) {
            if settled || has_state(&root.disk) {
                return Ok(root);
            }
            // A first boot, or a fresh disk that was faster than the one in use: let the others appear.
            settled = true;
            std::thread::sleep(SETTLE);
            continue;
        }
        if start.elapsed() > LATE_AFTER
            && let Some(load) = load_late.take()
        {
            say("no disk with this image's root yet; trying the drivers of AHCI and IDE disks");
            load();
        }
        if start.elapsed() > GIVE_UP_AFTER {
            let seen: Vec<String> = disks().into_iter().map(|disk| disk.name).collect();
            let seen = if seen.is_empty() { "no disk at all".to_owned() } else { seen.join(", ") };
            bail!(
                "no disk carries the root with hash {} (partitions {} and {}); found: {seen}. \
                 Attach the disk that this kernel was started from",
                hash.hex,
                hash.root,
                hash.verity
            );
        }
        std::thread::sleep(POLL);
    }
}

/// A disk with both partitions of `hash` that is there now; with `used` only one that has been booted before.
pub(super) fn present(hash: &RootHash, used: bool) -> Option<Root> {
    choose(candidates(hash)).filter(|root| !used || has_state(&root.disk))
}

fn candidates(hash: &RootHash) -> Vec<Root> {
    disks().into_iter().filter_map(|disk| candidate(disk, hash)).collect()
}

fn candidate(disk: Disk, hash: &RootHash) -> Option<Root> {
    let table: Table = disk.table().ok()?;
    let data = table.by_id(hash.root)?.number;
    let hashes = table.by_id(hash.verity)?.number;
    let there = [data, hashes].iter().all(|number| disk.partition(*number).exists());
    there.then_some(Root { disk, data, hashes })
}

/// Of several disks with the same image, the one that has already been used wins: a second, fresh disk of the
/// same make then changes nothing, whatever order the machine shows them in.
fn choose(candidates: Vec<Root>) -> Option<Root> {
    let mut candidates = candidates;
    let used = candidates.iter().position(|root| has_state(&root.disk)).unwrap_or(0);
    if used < candidates.len() { Some(candidates.swap_remove(used)) } else { None }
}

fn has_state(disk: &Disk) -> bool {
    let mut magic = [0u8; 2];
    let read =
        File::open(disk.partition(STATE_PARTITION)).and_then(|file| file.read_exact_at(&mut magic, EXT4_MAGIC_AT));
    read.is_ok() && magic == [0x53, 0xef]
}

/// Sets up verity and mounts the root at `target`.
pub(super) fn open(root: &Root, hash: &RootHash, target: &Path) -> Result<()> {
    let device = root.disk.partition(root.hashes);
    let mut bytes = [0u8; superblock::LENGTH];
    File::open(&device)
        .and_then(|file| file.read_exact_at(&mut bytes, 0))
        .with_context(|| format!("cannot read the verity partition {}", device.display()))?;
    let superblock = superblock::parse(&bytes)?;
    let verity = Verity {
        name: "root",
        data_device: &root.disk.partition_device_number(root.data)?,
        hash_device: &root.disk.partition_device_number(root.hashes)?,
        block_size: superblock.block_size,
        data_blocks: superblock.data_blocks,
        hash_start: 1,
        algorithm: &superblock.algorithm,
        root_digest: &hash.hex,
        salt: &superblock.salt,
    };
    let (_, minor) = node_sys::verity::open(&verity)?;
    let verified = PathBuf::from(format!("/dev/dm-{minor}"));
    let read_only = Options { read_only: true, ..Options::PLAIN };
    mount(&verified.to_string_lossy(), target, "squashfs", read_only, "")
        .context("the verified root cannot be mounted; the image is damaged, write it to the disk again")?;
    // Only now: a halted kernel could not have said the sentence above.
    Ok(node_sys::verity::halt_on_corruption(&verity)?)
}
