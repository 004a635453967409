//! Network namespaces.

use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::os::fd::AsFd;
use std::path::Path;

/// Moves the calling thread into a fresh, empty network namespace.
/// The thread must end afterwards: it does not come back.
///
/// # Errors
/// The process may not (it needs `CAP_SYS_ADMIN`).
pub fn isolate_thread() -> std::io::Result<()> {
    // SAFETY: only the network namespace of this thread changes; no file descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Moves the calling thread into the network namespace that `path` names (e.g. `/proc/PID/ns/net`).
/// The thread must end afterwards, or go back in the same way.
///
/// # Errors
/// The path does not name a network namespace, or the process may not enter it.
pub fn enter(path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::open(path)?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
}
