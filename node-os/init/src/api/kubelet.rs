//! Pods, containers and images: the kubelet knows them and answers on its local socket with the node API's types.

use super::server::{Body, Refusal, typed};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::UnixStream;

const SOCKET: &str = "/run/kimg/kubelet.sock";
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 8 << 20;

/// Passes a question on.
pub(super) async fn ask(target: &str) -> Result<Response<Body>, Refusal> {
    let unavailable = |why: String| Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("the kubelet of this node does not answer: {why}"));
    match tokio::time::timeout(PATIENCE, fetch(target)).await {
        Ok(Ok(bytes)) => Ok(typed("application/json", Full::new(bytes).boxed_unsync())),
        Ok(Err(error)) => Err(unavailable(format!("{error:#}"))),
        Err(_) => Err(unavailable("it took too long".to_owned())),
    }
}

async fn fetch(target: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(SOCKET).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // Its end shows in the answer.
        let _ = connection.await;
    });
    let request = Request::get(target).header("host", "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}
