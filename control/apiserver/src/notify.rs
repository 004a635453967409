//! systemd's notification protocol: readiness and a one-line status.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends a message to `$NOTIFY_SOCKET`, if there is one.
pub fn send(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = deliver(&path, message) {
        tracing::warn!("telling the supervisor {message:?} failed: {error}");
    }
}

fn deliver(path: &std::ffi::OsStr, message: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => socket.send_to_addr(message.as_bytes(), &SocketAddr::from_abstract_name(name)?)?,
        None => socket.send_to(message.as_bytes(), path)?,
    };
    Ok(())
}
