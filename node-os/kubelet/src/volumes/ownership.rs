//! fsGroup: volumes belong to the pod's group and new files in them do, too.

use crate::pods::spec;
use k8s_openapi::api::core::v1::Pod;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

fn settings(pod: &Pod) -> Option<(u32, bool)> {
    let context = spec::of(pod).security_context.as_ref()?;
    let group = u32::try_from(context.fs_group?).ok()?;
    Some((group, context.fs_group_change_policy.as_deref() == Some("OnRootMismatch")))
}

/// Gives a writable volume to the pod's group, unless its root shows that this was done.
pub fn apply_once(pod: &Pod, path: &Path) -> Result<(), String> {
    let Some((group, on_mismatch)) = settings(pod) else { return Ok(()) };
    let root = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let matches = root.gid() == group && root.mode() & 0o2070 == 0o2070;
    let empty = std::fs::read_dir(path).map_or(true, |mut d| d.next().is_none());
    if matches && (on_mismatch || empty) {
        return Ok(());
    }
    walk(path, group, 0o660).map_err(|e| format!("giving {} to group {group}: {e}", path.display()))
}

/// Gives a payload volume to the pod's group, for reading.
pub fn apply_payload(pod: &Pod, path: &Path) -> Result<(), String> {
    let Some((group, _)) = settings(pod) else { return Ok(()) };
    walk(path, group, 0o440).map_err(|e| format!("giving {} to group {group}: {e}", path.display()))
}

fn walk(path: &Path, group: u32, bits: u32) -> std::io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let bits = if metadata.is_dir() { bits | 0o2110 } else { bits };
    let mode = metadata.mode() & 0o7777 | bits;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            walk(&entry?.path(), group, bits & 0o660)?;
        }
    }
    Ok(())
}
