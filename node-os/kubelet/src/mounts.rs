//! Mounts below the kubelet's directories.

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::io;
use std::path::{Path, PathBuf};

/// A line of mountinfo, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Mounts below it are seen by others.
    pub shared: bool,
    /// File system.
    pub kind: String,
}

/// All mounts of this process, in the order they were made.
pub fn list() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = left.split(' ');
            let point = PathBuf::from(unescape(fields.nth(4)?));
            let shared = fields.any(|f| f.starts_with("shared:"));
            Some(Mount { point, shared, kind: right.split(' ').next()?.to_string() })
        })
        .collect()
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut result = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                result.push(byte);
                at += 4;
            }
            None => {
                result.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&result).into_owned()
}

/// Whether something is mounted exactly there.
pub fn is_mount_point(path: &Path) -> bool {
    list().is_ok_and(|mounts| mounts.iter().any(|m| m.point == path))
}

/// Mounts a tmpfs, unless one is there.
pub fn tmpfs(path: &Path, size: Option<u64>) -> io::Result<()> {
    if is_mount_point(path) {
        return Ok(());
    }
    let size = size.map(|s| format!(",size={s}")).unwrap_or_default();
    let data = std::ffi::CString::new(format!("mode=0777{size}")).map_err(io::Error::other)?;
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, data.as_c_str())?;
    Ok(())
}

/// Binds `source` to `target`, with what is mounted below it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind_recursive(source, target)?)
}

/// Unmounts all that is mounted at `root` or below, innermost first.
pub fn unmount_below(root: &Path) -> io::Result<()> {
    let mut points: Vec<PathBuf> = list()?.into_iter().map(|m| m.point).filter(|p| p.starts_with(root)).collect();
    points.reverse();
    for point in points {
        match rustix::mount::unmount(&point, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(rustix::io::Errno::BUSY) => rustix::mount::unmount(&point, UnmountFlags::DETACH)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes `path` a mount of its own whose later mounts containers see, as volumes with
/// mount propagation need.
pub fn make_shared(path: &Path) -> io::Result<()> {
    let mounts = list()?;
    let own = mounts.iter().rev().find(|m| m.point == path);
    if own.is_some_and(|m| m.shared) {
        return Ok(());
    }
    if own.is_none() {
        rustix::mount::mount_bind_recursive(path, path)?;
    }
    rustix::mount::mount_change(path, MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    Ok(())
}

/// Size, free and inode figures of the file system that holds `path`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes that an ordinary user may still write.
    pub available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Asks the file system that holds `path`.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Usage {
        capacity: stat.f_blocks * stat.f_frsize,
        available: stat.f_bavail * stat.f_frsize,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let text = "36 35 98:0 /mnt1 /mnt2\\040x rw,noatime master:1 - ext3 /dev/root rw\n\
                    37 35 0:1 / /a rw shared:7 - tmpfs tmpfs rw\nbroken\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].point.to_str(), mounts[0].shared), (Some("/mnt2 x"), false));
        assert_eq!((mounts[1].kind.as_str(), mounts[1].shared), ("tmpfs", true));
    }
}
