//! systemd's notification protocol, the client's side: a datagram with `KEY=VALUE` lines
//! to the socket that `$NOTIFY_SOCKET` names. Without that variable nothing is sent,
//! so that a component can be run by hand.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

/// Name of the variable that holds the socket's path.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The supervisor's socket, which is there for this process alone.
static SOCKET: OnceLock<UnixDatagram> = OnceLock::new();

/// The component serves now.
pub fn ready() {
    send("READY=1");
}

/// The component serves now, and what it does in one sentence.
pub fn ready_with_status(sentence: &str) {
    send(&format!("READY=1\nSTATUS={}", one_line(sentence)));
}

/// What the component does or waits for, in one sentence.
pub fn status(sentence: &str) {
    send(&format!("STATUS={}", one_line(sentence)));
}

/// The component is on its way out by its own will.
pub fn stopping() {
    send("STOPPING=1");
}

/// Opens the way to the supervisor, for who gives up the right to do so.
pub fn open() {
    send("");
}

/// Sends raw notification lines. A failure is logged, never fatal: the supervisor's time-out tells.
pub fn send(lines: &str) {
    if let Err(error) = try_send(lines) {
        tracing::warn!("cannot notify the supervisor: {error}");
    }
}

fn try_send(lines: &str) -> std::io::Result<()> {
    if let Some(socket) = SOCKET.get() {
        return socket.send(lines.as_bytes()).map(drop);
    }
    let Some(path) = std::env::var_os(SOCKET_VARIABLE) else { return Ok(()) };
    let bytes = path.as_bytes();
    let address = match bytes.split_first() {
        None => return Ok(()),
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        Some(_) => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    SOCKET.get_or_init(|| socket).send(lines.as_bytes()).map(drop)
}

fn one_line(sentence: &str) -> String {
    sentence.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_status_is_one_line() {
        assert_eq!(super::one_line("a\nb\rc"), "a b c");
    }
}
