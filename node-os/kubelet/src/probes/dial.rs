//! Connections that the kubelet opens because a pod says so. It has the node's own network, so what no pod may reach
//! it must not reach for one either: the metadata server, whose answers are the node's alone. By whatever name or
//! way of writing a pod gives it, the address that the connection would go to decides.

use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Connects to the first address of `host` that answers. An error is a sentence without the address asked for.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(|e| format!("lookup {host}: {e}"))?.collect();
    if let Some(server) = addresses.iter().find(|address| node_metadata::sources::is_server(address.ip())) {
        return Err(format!(
            "{} is a metadata server, which no pod may reach; leave `host` out to ask the pod itself",
            server.ip()
        ));
    }
    let mut last = format!("lookup {host}: no such host");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("connect: {error}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metadata_servers_are_refused_however_they_are_written() {
        for host in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::ffff:a9fe:a9fe",
            "0xa9fea9fe",
            "169.254.42.42",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::a9fe:a9fe",
        ] {
            let error = connect(host, 80).await.unwrap_err();
            assert!(error.contains("metadata server"), "{host}: {error}");
        }
    }

    #[tokio::test]
    async fn others_are_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(connect("127.0.0.1", port).await.is_ok());
        drop(listener);
        let error = connect("127.0.0.1", port).await.unwrap_err();
        assert!(error.starts_with("connect: "), "{error}");
    }
}
