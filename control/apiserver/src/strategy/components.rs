//! `componentstatuses`: whether scheduler, controller-manager and store answer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::state::AppState;

const PATIENCE: Duration = Duration::from_secs(3);

/// All component statuses, in upstream's order.
pub async fn list(_state: &Arc<AppState>) -> Vec<Value> {
    let (controllers, scheduler) = tokio::join!(probe(10257), probe(10259));
    // The store lives in this process: that it answers this request says that it is there.
    vec![status("controller-manager", controllers), status("scheduler", scheduler), status("store-0", Ok("ok".into()))]
}

fn status(name: &str, result: Result<String, String>) -> Value {
    let condition = match result {
        Ok(message) => json!({"type": "Healthy", "status": "True", "message": message}),
        Err(error) => json!({"type": "Healthy", "status": "False", "message": "", "error": error}),
    };
    json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition]})
}

/// Asks /healthz on a loopback port, in clear or with TLS; the answer's first line decides.
async fn probe(port: u16) -> Result<String, String> {
    let ask = async {
        match healthz_tls(port).await {
            Ok(answer) => Ok(answer),
            Err(_) => healthz(port).await,
        }
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(answer)) => judge(&answer),
        Ok(Err(e)) => Err(format!("Get \"https://127.0.0.1:{port}/healthz\": {e}")),
        Err(_) => Err(format!("Get \"https://127.0.0.1:{port}/healthz\": no answer within {} s", PATIENCE.as_secs())),
    }
}

fn judge(answer: &str) -> Result<String, String> {
    let first = answer.lines().next().unwrap_or_default();
    if first.split_whitespace().nth(1) == Some("200") { Ok("ok".into()) } else { Err(first.to_string()) }
}

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";

async fn healthz(port: u16) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(REQUEST).await?;
    read_some(&mut stream).await
}

async fn healthz_tls(port: u16) -> std::io::Result<String> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let config = crate::streaming::tls::unverified().map_err(std::io::Error::other)?;
    let name = rustls_pki_types::ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
    stream.write_all(REQUEST).await?;
    read_some(&mut stream).await
}

async fn read_some(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut buffer = vec![0; 256];
    let n = stream.read(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_decides() {
        assert!(judge("HTTP/1.1 200 OK\r\n\r\nok").is_ok());
        assert_eq!(judge("HTTP/1.1 500 Oops\r\n"), Err("HTTP/1.1 500 Oops".into()));
        assert!(judge("").is_err());
    }
}
