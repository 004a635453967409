//! What TCP knows of a connection (`tcp(7)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were written and that the other side has not acknowledged.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes one int, and the descriptor is open as long as it is borrowed.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } == 0 {
        return Ok(usize::try_from(bytes).unwrap_or(0));
    }
    Err(io::Error::last_os_error())
}
