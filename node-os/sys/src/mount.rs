//! Mounting, with errors that name source, target and type.

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::path::Path;

/// Options of a mount point.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// No writes.
    pub read_only: bool,
    /// Devices, programs and set-user-id bits mean nothing here.
    pub no_exec: bool,
    /// Device nodes and set-user-id bits mean nothing here.
    pub no_suid_no_dev: bool,
}

impl Options {
    /// For kernel file systems: no devices, no programs.
    pub const KERNEL: Options = Options { read_only: false, no_exec: true, no_suid_no_dev: true };
    /// Plain.
    pub const PLAIN: Options = Options { read_only: false, no_exec: false, no_suid_no_dev: false };

    fn flags(self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOEXEC, self.no_exec);
        flags.set(MountFlags::NOSUID | MountFlags::NODEV, self.no_suid_no_dev);
        flags
    }
}

/// Mounts `source` of type `kind` on `target`, which is made when it is missing and can be.
pub fn mount(source: &str, target: &Path, kind: &str, options: Options, data: &str) -> io::Result<()> {
    if !target.exists() {
        // On a read-only root this fails, and the mount's own error then tells what is missing.
        let _ = std::fs::create_dir_all(target);
    }
    let data = CString::new(data).map_err(|_| io::Error::other("mount options hold a NUL byte"))?;
    rustix::mount::mount(source, target, kind, options.flags(), data.as_c_str())
        .map_err(|error| explain(error, &format!("mount {source} ({kind})"), target))
}

/// Shows the directory or file `source` at `target` too.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(source, target)
        .map_err(|error| explain(error, &format!("bind {}", source.display()), target))
}

/// Moves a mount point.
pub fn move_mount(source: &Path, target: &Path) -> io::Result<()> {
    rustix::mount::mount_move(source, target)
        .map_err(|error| explain(error, &format!("move {}", source.display()), target))
}

/// Lets mounts below `target` appear in other mount namespaces, as kubelet's volumes need.
pub fn make_shared(target: &Path) -> io::Result<()> {
    rustix::mount::mount_change(target, MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(|error| explain(error, "make shared", target))
}

/// Turns a mount point read-only.
pub fn remount_read_only(target: &Path) -> io::Result<()> {
    rustix::mount::mount_remount(target, MountFlags::RDONLY, c"")
        .map_err(|error| explain(error, "remount read-only", target))
}

/// Unmounts; `lazily` leaves open files working.
pub fn unmount(target: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(target, flags).map_err(|error| explain(error, "unmount", target))
}

fn explain(error: rustix::io::Errno, what: &str, target: &Path) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("cannot {what} at {}: {error}", target.display()))
}
