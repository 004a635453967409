//! The service manager's notification protocol: datagrams to `$NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the service does its work from now on.
pub fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={status}"));
}

/// One sentence on what the service does or waits for.
pub fn status(status: &str) {
    send(&format!("STATUS={status}"));
}

/// Says that the service has begun to stop.
pub fn stopping() {
    send("STOPPING=1");
}

fn send(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send_to(&path.to_string_lossy(), message) {
        tracing::warn!("notifying {} failed: {error}", path.to_string_lossy());
    }
}

fn send_to(path: &str, message: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A leading @ stands for the abstract namespace.
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
        None => SocketAddr::from_pathname(path)?,
    };
    socket.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_reaches_the_socket() {
        let path = std::env::temp_dir().join(format!("kimg-notify-{}", std::process::id()));
        let receiver = UnixDatagram::bind(&path).unwrap();
        send_to(path.to_str().unwrap(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let length = receiver.recv(&mut buffer).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
