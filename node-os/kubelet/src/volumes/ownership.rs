//! fsGroup: volumes belong to the pod's group and new files in them do, too.

use crate::pods::spec;
use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Folders below each other in a volume that is given to a group: each takes stack and a descriptor.
const DEEPEST: usize = 500;

fn settings(pod: &Pod) -> Option<(u32, bool)> {
    let context = spec::of(pod).security_context.as_ref()?;
    let group = u32::try_from(context.fs_group?).ok()?;
    Some((group, context.fs_group_change_policy.as_deref() == Some("OnRootMismatch")))
}

/// Gives a writable volume to the pod's group, unless its root shows that this was done.
pub async fn apply_once(pod: &Pod, path: &Path) -> Result<(), String> {
    let Some((group, on_mismatch)) = settings(pod) else { return Ok(()) };
    let root = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let matches = root.gid() == group && root.mode() & 0o2070 == 0o2070;
    let empty = std::fs::read_dir(path).map_or(true, |mut d| d.next().is_none());
    if matches && (on_mismatch || empty) {
        return Ok(());
    }
    // It may hold a million files, and the kubelet has one thread.
    let whole = path.to_owned();
    let walked = tokio::task::spawn_blocking(move || walk(&whole, group, 0o660)).await;
    walked.map_err(io::Error::from).flatten().map_err(|e| format!("giving {} to group {group}: {e}", path.display()))
}

/// Gives a payload volume to the pod's group, for reading.
pub fn apply_payload(pod: &Pod, path: &Path) -> Result<(), String> {
    let Some((group, _)) = settings(pod) else { return Ok(()) };
    walk(path, group, 0o440).map_err(|e| format!("giving {} to group {group}: {e}", path.display()))
}

/// Another pod may write to the volume meanwhile: what was looked at is what is changed, and no link is followed.
fn walk(path: &Path, group: u32, bits: u32) -> io::Result<()> {
    give(CWD, path, group, bits, DEEPEST)
}

fn give(parent: impl AsFd, name: &Path, group: u32, bits: u32, levels: usize) -> io::Result<()> {
    let Some(levels) = levels.checked_sub(1) else {
        return Err(io::Error::other(format!("folders are nested more than {DEEPEST} levels deep")));
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::chownat(&file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    let found = rustix::fs::fstat(&file)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if kind == FileType::Symlink {
        return Ok(());
    }
    let bits = if kind == FileType::Directory { bits | 0o2110 } else { bits };
    let itself = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    std::fs::set_permissions(&itself, Permissions::from_mode(found.st_mode & 0o7777 | bits))?;
    if kind == FileType::Directory {
        for entry in std::fs::read_dir(&itself)? {
            give(&file, Path::new(&entry?.file_name()), group, bits & 0o660, levels)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_given_to_its_group_and_what_links_lead_to_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, outside) = (directory.path().join("volume"), directory.path().join("outside"));
        let own = rustix::process::getegid().as_raw();
        let make = |path: &Path, mode: u32| {
            std::fs::write(path, "").unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        make(&volume.join("a/file"), 0o600);
        make(&outside, 0o600);
        std::os::unix::fs::symlink(&outside, volume.join("a/link")).unwrap();
        walk(&volume, own, 0o660).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&volume.join("a/file")), 0o660);
        assert_eq!(mode(&volume.join("a/b")) & 0o2770, 0o2770);
        assert_eq!(mode(&outside), 0o600);
        assert_eq!(std::fs::metadata(volume.join("a/b")).unwrap().gid(), own);
        walk(&volume.join("a/link"), own, 0o660).unwrap();
        assert_eq!(mode(&outside), 0o600);
        std::fs::create_dir_all(volume.join("d/".repeat(DEEPEST))).unwrap();
        assert!(walk(&volume, own, 0o660).unwrap_err().to_string().contains("deep"));
    }
}
