//! The STATE partition: grown to the end of the disk, made ext4 at the first boot, checked and mounted.

use super::scan::Disk;
use anyhow::{Context, Result, bail, ensure};
use node_sys::mount::{self, Options};
use node_sys::process::{self, Ending};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// Number of the partition.
pub const NUMBER: u32 = 6;
/// Where it is mounted.
pub const MOUNT_POINT: &str = "/state";
const VAR: &str = "/state/var";
const EXT4_MAGIC_AT: u64 = 1024 + 56;
const EXT4_LABEL_AT: u64 = 1024 + 120;
/// Options that make a journaling file system fast to make and sound when the power goes.
const MKFS_OPTIONS: &[&str] = &["-q", "-F", "-m", "1", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];

/// Folders of `/var` that components expect.
const FOLDERS: [&str; 13] = [
    "lib/kimg/pki",
    "lib/kimg/store",
    "lib/kimg/local-path",
    "lib/kubelet",
    "lib/containerd",
    "lib/cni",
    "log/kimg",
    "log/pods",
    "log/containers",
    "tmp",
    "lib/kimg/node-api",
    "lib/kubernetes/libexec",
    "lib/kubernetes/etc",
];

/// Those of them that are root's alone: own components are users of the node.
const PRIVATE: [&str; 3] = ["lib/kimg", "lib/kubelet", "log/kimg"];

/// Makes STATE ready and mounts it, `/var` included. Says what it did.
pub fn prepare(disk: &Disk) -> Result<String> {
    let mut notes = Vec::new();
    if grow(disk).context("cannot grow STATE to the end of the disk")? {
        notes.push("partition grown");
    }
    let device = disk.partition(NUMBER);
    let name = device.to_string_lossy().into_owned();
    if !is_ext4(&device) {
        ensure!(
            is_blank(&device)?,
            "{name} holds something that is no ext4 file system; it is left alone. Write the image to an empty disk"
        );
        make(&name, &["-L", "kimg-state"])?;
        notes.push("made");
    } else if check(&device)? {
        notes.push("file system grown");
    }
    let options = Options { no_suid_no_dev: false, ..Options::PLAIN };
    mount::mount(&name, Path::new(MOUNT_POINT), "ext4", options, "errors=remount-ro")?;
    fs::create_dir_all(VAR).with_context(|| format!("cannot make {VAR}"))?;
    mount::bind(Path::new(VAR), Path::new("/var"))?;
    // What is written there is of network namespaces that ended with the last boot, and is not written durably.
    let gone = Path::new("/var/lib/cni");
    if gone.exists() {
        fs::remove_dir_all(gone).with_context(|| format!("cannot remove {}", gone.display()))?;
    }
    for folder in FOLDERS {
        let path = Path::new("/var").join(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    for folder in PRIVATE {
        let path = Path::new("/var").join(folder);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    }
    link("/run", Path::new("/var/run"))?;
    Ok(notes.join(", "))
}

fn link(target: &str, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::os::unix::fs::symlink(target, at).with_context(|| format!("cannot link {} to {target}", at.display()))
}

fn grow(disk: &Disk) -> Result<bool> {
    let table = disk.table()?;
    let sector = disk.sector_size();
    let Some((writes, partition)) = table.grow(NUMBER, disk.size() / sector)? else { return Ok(false) };
    let device = disk.device();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&device)
        .with_context(|| format!("cannot open {}", device.display()))?;
    for write in writes {
        file.write_all_at(&write.bytes, write.offset)
            .with_context(|| format!("cannot write the partition table of {}", device.display()))?;
        // Each part is on the disk before the next is begun, so that one valid table is there at any time.
        file.sync_data()?;
    }
    node_sys::block::resize_partition(
        &file,
        NUMBER,
        partition.first * sector,
        (partition.last + 1 - partition.first) * sector,
    )?;
    Ok(true)
}

/// Makes a file system, by these options besides.
pub(super) fn make(device: &str, options: &[&str]) -> Result<()> {
    run("/usr/sbin/mkfs.ext4", &[MKFS_OPTIONS, options, &[device]].concat(), &[0])
}

/// Checks a file system, and says whether it was grown to the size of its device.
pub(super) fn check(device: &Path) -> Result<bool> {
    let name = device.to_string_lossy();
    if !is_smaller_than_device(device)? {
        return run("/usr/sbin/e2fsck", &["-p", &name], &[0, 1]).map(|()| false);
    }
    run("/usr/sbin/e2fsck", &["-f", "-p", &name], &[0, 1])?;
    run("/usr/sbin/resize2fs", &[&name], &[0]).map(|()| true)
}

pub(super) fn is_ext4(device: &Path) -> bool {
    let mut magic = [0u8; 2];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut magic, EXT4_MAGIC_AT));
    read.is_ok() && magic == [0x53, 0xef]
}

/// Only an empty beginning is formatted: better a node that waits than data that is gone.
pub(super) fn is_blank(device: &Path) -> Result<bool> {
    let mut start = vec![0u8; 64 * 1024];
    let file = File::open(device).with_context(|| format!("cannot open {}", device.display()))?;
    file.read_exact_at(&mut start, 0).with_context(|| format!("cannot read {}", device.display()))?;
    Ok(start.iter().all(|byte| *byte == 0))
}

fn is_smaller_than_device(device: &Path) -> Result<bool> {
    let mut file = File::open(device).with_context(|| format!("cannot open {}", device.display()))?;
    let mut superblock = [0u8; 1024];
    file.read_exact_at(&mut superblock, 1024)?;
    let number =
        |at: usize| superblock.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes);
    let block = 1024u64 << number(24).min(6);
    let used = u64::from(number(4)) * block;
    // A tail smaller than a block group is not worth a resize at each boot.
    Ok(node_sys::block::size(&mut file)? > used + (128 << 20))
}

pub(super) fn label(device: &Path) -> Option<String> {
    let mut bytes = [0u8; 16];
    File::open(device).and_then(|file| file.read_exact_at(&mut bytes, EXT4_LABEL_AT)).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

fn run(program: &str, arguments: &[&str], good: &[i32]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    match process::run(&mut command).with_context(|| format!("cannot run {program}"))? {
        (Ending::Code(code), _) if good.contains(&code) => Ok(()),
        (ending, said) => {
            let said = String::from_utf8_lossy(&said);
            bail!("{program} {} ended with {ending}: {}", arguments.join(" "), said.trim())
        }
    }
}
