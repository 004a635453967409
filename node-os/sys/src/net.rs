//! Small socket helpers that the standard library does not offer.

use std::os::fd::AsRawFd;

/// Makes sure that one message of `bytes` fits into the socket's send buffer,
/// beyond the system's limit where the process may.
pub(crate) fn grow_send_buffer(socket: &impl AsRawFd, bytes: usize) -> std::io::Result<()> {
    if bytes < 128 * 1024 {
        return Ok(());
    }
    let size = i32::try_from(bytes).unwrap_or(i32::MAX);
    for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
        // SAFETY: the pointer and length describe the local i32.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if rc == 0 {
            return Ok(());
        }
    }
    Err(std::io::Error::last_os_error())
}
