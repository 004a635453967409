//! HTTPS with a client certificate: what `kimg` speaks to API servers and to node APIs.
//!
//! One connection for each request: commands ask little, and a node that reboots leaves no stale connection.

pub mod kube;
pub mod node;
pub mod tls;

#[cfg(test)]
pub(crate) mod tests;

use anyhow::{Context, Result, bail};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an ordinary answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A server and how it is trusted.
#[derive(Clone)]
pub struct Https {
    /// `host:port` to connect to.
    pub target: String,
    /// Name or address that the server's certificate must hold.
    pub server_name: String,
    /// Trust and the client's certificate.
    pub tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for Https {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Https").field("target", &self.target).field("server_name", &self.server_name).finish()
    }
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Https {
    /// Sends a request and reads the whole answer.
    pub async fn send(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<Answer> {
        let exchange = async {
            let response = self.open(method, path, body).await?;
            let (parts, body) = response.into_parts();
            let body =
                body.collect().await.with_context(|| format!("reading the answer of {}", self.target))?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        match tokio::time::timeout(ANSWER_LIMIT, exchange).await {
            Ok(answer) => answer,
            Err(_) => bail!("{} did not answer within {} s", self.target, ANSWER_LIMIT.as_secs()),
        }
    }

    /// Sends a request and hands each piece of the answer to `sink` as it comes.
    /// Returns the status; the body of a failure is returned whole and not given to `sink`.
    pub async fn stream(&self, path: &str, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<Answer> {
        let mut response = self.open(Method::GET, path, None).await?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            return Ok(Answer { status, headers, body });
        }
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.with_context(|| format!("reading the answer of {}", self.target))?;
            if let Some(data) = frame.data_ref() {
                sink(data)?;
            }
        }
        Ok(Answer { status, headers, body: Bytes::new() })
    }

    /// POSTs bytes, and reads the whole answer; takes as long as it takes.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<Answer> {
        let response = self.exchange(Method::POST, path, "application/octet-stream", body).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await;
        let body = body.with_context(|| format!("reading the answer of {}", self.target))?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<http::Response<Incoming>> {
        let (kind, bytes) = match body {
            // The one kind of patch that is written like the object itself.
            Some(json) if method == Method::PATCH => {
                ("application/merge-patch+json", serde_json::to_vec(json).context("writing a request")?)
            }
            Some(json) => ("application/json", serde_json::to_vec(json).context("writing a request")?),
            None => ("", Vec::new()),
        };
        self.exchange(method, path, kind, Bytes::from(bytes)).await
    }

    /// The certificate with which the server proves that it is who it should be.
    pub async fn certificate(&self) -> Result<Vec<u8>> {
        let stream = self.connect().await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(chain.first().with_context(|| format!("{} shows no certificate", self.target))?.to_vec())
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let connection = async {
            let stream =
                TcpStream::connect(&self.target).await.with_context(|| format!("connecting to {}", self.target))?;
            let name = ServerName::try_from(self.server_name.clone())
                .with_context(|| format!("{} is no server name", self.server_name))?;
            TlsConnector::from(self.tls.clone())
                .connect(name, stream)
                .await
                .with_context(|| format!("speaking TLS with {}", self.target))
        };
        match tokio::time::timeout(CONNECT_LIMIT, connection).await {
            Ok(stream) => stream,
            Err(_) => bail!("{} did not take a connection within {} s", self.target, CONNECT_LIMIT.as_secs()),
        }
    }

    async fn exchange(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<http::Response<Incoming>> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("speaking HTTP with {}", self.target))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.target)
            .header("accept", "application/json")
            .header("user-agent", concat!("kimg/", env!("CARGO_PKG_VERSION")));
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let request = request.body(Full::new(body)).context("writing a request")?;
        sender.send_request(request).await.with_context(|| format!("asking {}", self.target))
    }
}

/// Runs a future to its end on a small runtime of its own.
pub fn block_on<T>(future: impl std::future::Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?
        .block_on(future)
}
