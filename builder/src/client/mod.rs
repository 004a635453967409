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
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an ordinary answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// What is read at one time of what is sent.
const PIECE: usize = 64 << 10;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// `host:port` to connect to.
    target: String,
    /// Name or address that the server's certificate must hold.
    server_name: String,
}

/// A server, or several that are as good as one (API servers of several masters), and how it is trusted.
#[derive(Clone)]
pub struct Https {
    /// The first is asked first, and is the one that answered last. Clones share what was learnt.
    places: Arc<Mutex<Vec<Place>>>,
    /// Trust and the client's certificate.
    tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for Https {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Https").field("places", &self.places()).finish_non_exhaustive()
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
    /// At `target` (`host:port`), with a certificate for `server_name`.
    pub fn new(target: String, server_name: String, tls: Arc<rustls::ClientConfig>) -> Https {
        Https { places: Arc::new(Mutex::new(vec![Place { target, server_name }])), tls }
    }

    /// The same, which may be found there too.
    #[must_use]
    pub fn or(self, target: String, server_name: String) -> Https {
        self.lock().push(Place { target, server_name });
        self
    }

    /// `host:port` of the one that is asked first.
    pub fn target(&self) -> String {
        self.lock().first().map(|place| place.target.clone()).unwrap_or_default()
    }

    /// Name or address that its certificate must hold.
    pub fn server_name(&self) -> String {
        self.lock().first().map(|place| place.server_name.clone()).unwrap_or_default()
    }

    /// From now on it may be found at these targets only; the one that answered last stays the first.
    pub fn look_at(&self, targets: Vec<String>) {
        let server_name = self.server_name();
        let mut places = self.lock();
        places.retain(|place| targets.contains(&place.target));
        for target in targets {
            if !places.iter().any(|place| place.target == target) {
                places.push(Place { target, server_name: server_name.clone() });
            }
        }
    }

    fn places(&self) -> Vec<Place> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is asked first from now on, or last: no answer is better than that of another one.
    fn put(&self, target: &str, first: bool) {
        let mut places = self.lock();
        if let Some(at) = places.iter().position(|place| place.target == target) {
            let place = places.remove(at);
            let to = if first { 0 } else { places.len() };
            places.insert(to, place);
        }
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<Answer> {
        let exchange = async {
            let (target, response) = self.open(method, path, body).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.with_context(|| format!("reading the answer of {target}"))?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        match tokio::time::timeout(ANSWER_LIMIT, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                let target = self.target();
                self.put(&target, false);
                bail!("{target} did not answer within {} s", ANSWER_LIMIT.as_secs())
            }
        }
    }

    /// Sends a request and hands each piece of the answer to `sink` as it comes.
    /// Returns the status; the body of a failure is returned whole and not given to `sink`.
    pub async fn stream(&self, path: &str, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<Answer> {
        let (target, mut response) = self.open(Method::GET, path, None).await?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            return Ok(Answer { status, headers, body });
        }
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.with_context(|| format!("reading the answer of {target}"))?;
            if let Some(data) = frame.data_ref() {
                sink(data)?;
            }
        }
        Ok(Answer { status, headers, body: Bytes::new() })
    }

    /// POSTs bytes, and reads the whole answer; takes as long as it takes.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<Answer> {
        self.post(path, Full::new(body)).await
    }

    /// The same with what is read meanwhile, which need not fit into memory. What cannot be read ends the request.
    pub async fn post_all(&self, path: &str, from: impl Read + Send + 'static) -> Result<Answer> {
        let pieces = futures::stream::unfold(from, |mut from| async move {
            let mut piece = vec![0; PIECE];
            match from.read(&mut piece) {
                Ok(0) => None,
                Ok(read) => {
                    piece.truncate(read);
                    Some((Ok(Frame::data(Bytes::from(piece))), from))
                }
                Err(error) => Some((Err(error), from)),
            }
        });
        self.post(path, StreamBody::new(Box::pin(pieces))).await
    }

    async fn post<B>(&self, path: &str, body: B) -> Result<Answer>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (target, response) = self.exchange(Method::POST, path, "application/octet-stream", body).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await;
        let body = body.with_context(|| format!("reading the answer of {target}"))?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<(String, http::Response<Incoming>)> {
        let (kind, bytes) = match body {
            // The one kind of patch that is written like the object itself.
            Some(json) if method == Method::PATCH => {
                ("application/merge-patch+json", serde_json::to_vec(json).context("writing a request")?)
            }
            Some(json) => ("application/json", serde_json::to_vec(json).context("writing a request")?),
            None => ("", Vec::new()),
        };
        self.exchange(method, path, kind, Full::new(Bytes::from(bytes))).await
    }

    /// The certificate with which the server proves that it is who it should be.
    pub async fn certificate(&self) -> Result<Vec<u8>> {
        let (target, stream) = self.connect().await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(chain.first().with_context(|| format!("{target} shows no certificate"))?.to_vec())
    }

    /// To the first that takes the connection.
    async fn connect(&self) -> Result<(String, TlsStream<TcpStream>)> {
        let mut failed: Option<anyhow::Error> = None;
        for (number, place) in self.places().into_iter().enumerate() {
            match self.connect_to(&place).await {
                Ok(stream) => {
                    if number > 0 {
                        self.put(&place.target, true);
                    }
                    return Ok((place.target, stream));
                }
                Err(error) => {
                    failed = Some(match failed {
                        Some(before) => anyhow::anyhow!("{before:#}; {error:#}"),
                        None => error,
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| anyhow::anyhow!("nothing says where the server is")))
    }

    async fn connect_to(&self, place: &Place) -> Result<TlsStream<TcpStream>> {
        let Place { target, server_name } = place;
        let connection = async {
            let stream = TcpStream::connect(target).await.with_context(|| format!("connecting to {target}"))?;
            let name = ServerName::try_from(server_name.clone())
                .with_context(|| format!("{server_name} is no server name"))?;
            TlsConnector::from(self.tls.clone())
                .connect(name, stream)
                .await
                .with_context(|| format!("speaking TLS with {target}"))
        };
        match tokio::time::timeout(CONNECT_LIMIT, connection).await {
            Ok(stream) => stream,
            Err(_) => bail!("{target} did not take a connection within {} s", CONNECT_LIMIT.as_secs()),
        }
    }

    async fn exchange<B>(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: B,
    ) -> Result<(String, http::Response<Incoming>)>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (target, stream) = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("speaking HTTP with {target}"))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &target)
            .header("accept", "application/json")
            .header("user-agent", concat!("kimg/", env!("CARGO_PKG_VERSION")));
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let request = request.body(body).context("writing a request")?;
        let sent = sender.send_request(request).await.with_context(|| format!("asking {target}"));
        if sent.is_err() {
            self.put(&target, false);
        }
        Ok((target, sent?))
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
