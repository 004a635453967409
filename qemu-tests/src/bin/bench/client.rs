//! A client that costs little: one request at a time on a TLS connection, HTTP/1.1 or HTTP/2.

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kimg::pki::ClientCertificate;
use qemu_tests::apiserver::Apiserver;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::sync::Arc;

/// The protocol spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
        }
    }
}

/// How to connect to a server, as its administrator or somebody else.
#[derive(Clone)]
pub struct Client {
    tls: Arc<rustls::ClientConfig>,
    port: u16,
    protocol: Protocol,
}

/// A request that can be made again.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Call {
    pub fn new(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Call {
        Call { method, path: path.into(), content_type: "application/json", body: body.into() }
    }

    pub fn get(path: impl Into<String>) -> Call {
        Call::new(Method::GET, path, Bytes::new())
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// An open connection.
pub struct Connection(Sender);

impl Client {
    pub fn new(server: &Apiserver, protocol: Protocol) -> Result<Client> {
        Client::of(server, protocol, &server.admin)
    }

    /// As the one whom the certificate names.
    pub fn of(server: &Apiserver, protocol: Protocol, who: &ClientCertificate) -> Result<Client> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(server.ca.as_bytes()).context("reading the CA")?)?;
        let chain = CertificateDer::from_pem_slice(who.certificate.as_bytes()).context("reading PEM")?;
        let key = PrivateKeyDer::from_pem_slice(who.key.as_bytes()).context("reading PEM")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![chain], key)?;
        let alpn: &[u8] = if protocol == Protocol::Http2 { b"h2" } else { b"http/1.1" };
        tls.alpn_protocols = vec![alpn.to_vec()];
        Ok(Client { tls: Arc::new(tls), port: server.port(), protocol })
    }

    pub async fn connect(&self) -> Result<Connection> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await.context("TLS")?;
        let stream = TokioIo::new(stream);
        Ok(Connection(match self.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        }))
    }
}

impl Connection {
    /// The head of the answer; the body is still to come.
    pub async fn open(&mut self, call: &Call) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(call.method.clone())
            .uri(match &self.0 {
                Sender::Http1(_) => call.path.clone(),
                Sender::Http2(_) => format!("https://127.0.0.1{}", call.path),
            })
            .header("host", "127.0.0.1")
            .header("content-type", call.content_type)
            .body(Full::new(call.body.clone()))?;
        Ok(match &mut self.0 {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// Makes the call and reads all of the answer; gives its size. What is not 2xx is an error.
    pub async fn call(&mut self, call: &Call) -> Result<usize> {
        let response = self.open(call).await?;
        let status = response.status();
        let mut body = response.into_body();
        let (mut size, mut head) = (0, Vec::new());
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref() {
                size += data.len();
                if !status.is_success() {
                    head.extend_from_slice(data);
                }
            }
        }
        if !status.is_success() {
            bail!("{} {}: {status} {}", call.method, call.path, String::from_utf8_lossy(&head));
        }
        Ok(size)
    }

    /// Makes the call and gives the answer's bytes.
    pub async fn fetch(&mut self, call: &Call) -> Result<Bytes> {
        let response = self.open(call).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{} {}: {status}", call.method, call.path);
        Ok(bytes)
    }
}
