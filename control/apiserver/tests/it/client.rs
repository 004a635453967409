//! The server under test, and the little client that drives it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use kube_apiserver::{Config, Server};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tempfile::TempDir;

/// A server, and an administrator's credentials.
pub struct Cluster {
    pub server: Option<Server>,
    dir: TempDir,
    tls: Arc<rustls::ClientConfig>,
    stranger: Arc<rustls::ClientConfig>,
    authority: Option<Arc<Issuer<'static, KeyPair>>>,
    port: u16,
}

/// A CA, and its certificate.
pub fn ca() -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), Issuer::new(params, key))
}

pub fn leaf(ca: &Issuer<'static, KeyPair>, name: &str, group: Option<&str>, names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

/// The server's flags for a folder of certificates and store.
pub fn arguments(dir: &Path, port: u16) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    vec![
        "kube-apiserver".to_string(),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        format!("--client-ca-file={}", path("ca.crt")),
        format!("--tls-cert-file={}", path("server.crt")),
        format!("--tls-private-key-file={}", path("server.key")),
        format!("--store-dir={}", path("store")),
    ]
}

/// The server's settings for a folder of certificates and store.
pub fn config(dir: &Path) -> Config {
    <Config as clap::Parser>::try_parse_from(arguments(dir, 0)).unwrap()
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body, if the answer has this code.
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Code and reason of a failure.
    pub fn failure(&self) -> (u16, String) {
        (self.code, self.json()["reason"].as_str().unwrap_or("").to_string())
    }
}

impl Cluster {
    pub async fn start() -> Cluster {
        Cluster::start_with(|_| ()).await
    }

    /// A server with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let (ca_pem, issuer) = ca();
        let (server_crt, server_key) = leaf(&issuer, "kube-apiserver", None, &["127.0.0.1", "localhost"]);
        let (admin_crt, admin_key) = leaf(&issuer, "admin", Some("system:masters"), &[]);
        for (name, text) in [("ca.crt", &ca_pem), ("server.crt", &server_crt), ("server.key", &server_key)] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let stranger = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let chain = vec![CertificateDer::from_pem_slice(admin_crt.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(admin_key.as_bytes()).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let (tls, stranger, authority) = (Arc::new(tls), Arc::new(stranger), Some(Arc::new(issuer)));
        let mut cluster = Cluster { server: None, dir, tls, stranger, authority, port: 0 };
        cluster.begin_with(change).await;
        cluster
    }

    /// Starts the server on the store as it is.
    pub async fn begin(&mut self) {
        self.begin_with(|_| ()).await;
    }

    /// Starts the server on the store as it is, with other settings.
    pub async fn begin_with(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = config(self.dir.path());
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        self.port = server.address.port();
        self.server = Some(server);
    }

    /// The folder of certificates and store, for a server in a process of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Talks to the server at this port from now on.
    pub fn use_port(&mut self, port: u16) {
        self.port = port;
    }

    /// A client of another server of the same cluster.
    pub fn at(&self, port: u16) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let (tls, stranger, authority) = (self.tls.clone(), self.stranger.clone(), self.authority.clone());
        Cluster { server: None, dir, tls, stranger, authority, port }
    }

    /// The same client once more.
    pub fn at_same_port(&self) -> Cluster {
        self.at(self.port)
    }

    /// Another client of the same server, and the SHA-256 of its certificate, which is valid from `from` (Unix seconds).
    pub fn client(&self, name: &str, group: &str, from: i64) -> (Cluster, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = std::time::SystemTime::UNIX_EPOCH.into();
        params.not_before += std::time::Duration::from_secs(from as u64);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, self.authority.as_deref().unwrap()).unwrap();
        let der = certificate.der().clone();
        let fingerprint = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&der));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.path().join("ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![der], PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
            .unwrap();
        (Cluster { tls: Arc::new(tls), ..self.at(self.port) }, fingerprint)
    }

    /// An administrator with a certificate of this authority, who trusts those of this PEM.
    pub fn admin_of(&self, authority: &Issuer<'static, KeyPair>, trusts: &str) -> Cluster {
        let (certificate, key) = leaf(authority, "admin", Some("system:masters"), &[]);
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(trusts.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        Cluster { tls: Arc::new(tls), ..self.at(self.port) }
    }

    /// The client that `self` becomes when its file of a certificate changes to that of `renewed`: what TLS remembers of
    /// the server stays.
    pub fn renewed_to(&self, renewed: &Cluster) -> (Cluster, impl FnOnce() + use<>) {
        let file = Arc::new(File(Mutex::new(self.tls.client_auth_cert_resolver.clone())));
        let mut tls = rustls::ClientConfig::clone(&self.tls);
        tls.client_auth_cert_resolver = file.clone();
        let next = renewed.tls.client_auth_cert_resolver.clone();
        (Cluster { tls: Arc::new(tls), ..self.at(self.port) }, move || *file.0.lock().unwrap() = next)
    }

    /// Ends the server in order.
    pub async fn end(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        self.try_raw(method, path, headers, body).await.unwrap()
    }

    /// [`Cluster::raw`] of a server that may be gone.
    pub async fn try_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> std::io::Result<http::Response<Incoming>> {
        self.try_raw_as(&self.tls, method, path, headers, body).await
    }

    async fn try_raw_as(
        &self,
        tls: &Arc<rustls::ClientConfig>,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> std::io::Result<http::Response<Incoming>> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        let stream = tokio_rustls::TlsConnector::from(tls.clone())
            .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Full::new(body.into())).unwrap()).await.map_err(std::io::Error::other)
    }

    pub async fn send(&self, method: &str, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        self.send_with(method, path, &[("content-type", content_type)], body).await
    }

    pub async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.raw(method, path, headers, body).await;
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { code, headers, body: response.into_body().collect().await.unwrap().to_bytes() }
    }

    /// Announces a body of `length` bytes and sends `sent` of them.
    pub async fn stall(
        &self,
        path: &str,
        length: usize,
        sent: usize,
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        self.stall_with("", path, length, sent).await
    }

    /// The same with another header, a whole line.
    pub async fn stall_with(
        &self,
        header: &str,
        path: &str,
        length: usize,
        sent: usize,
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        use tokio::io::AsyncWriteExt as _;
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{header}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; sent]).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// What somebody without a certificate is answered.
    pub async fn get_as_stranger(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let response = self.try_raw_as(&self.stranger, "GET", path, headers, "").await.unwrap();
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { code, headers, body: response.into_body().collect().await.unwrap().to_bytes() }
    }

    /// What the administrator is answered in the name of somebody else.
    pub async fn send_as(&self, user: &str, method: &str, path: &str) -> Answer {
        self.send_with(method, path, &[("impersonate-user", user)], "").await
    }

    /// GET over HTTP/2.
    pub async fn get_h2(&self, path: &str) -> (u16, Bytes) {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            http::Request::builder().uri(format!("https://localhost{path}")).body(Full::new(Bytes::new())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        (code, response.into_body().collect().await.unwrap().to_bytes())
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "").await
    }

    pub async fn post(&self, path: &str, object: Value) -> Answer {
        self.send("POST", path, "application/json", object.to_string()).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send("PUT", path, "application/json", object.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: Value) -> Answer {
        self.send("PATCH", path, &format!("application/{kind}"), patch.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "", "").await
    }

    /// A watch; its events come from [`Events::next`].
    pub async fn watch(&self, path: &str) -> Events {
        let response = self.raw("GET", path, &[], "").await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), buffer: Vec::new() }
    }
}

/// A certificate as a file has it: another one from one moment to the next.
#[derive(Debug)]
struct File(Mutex<Arc<dyn rustls::client::ResolvesClientCert>>);

impl rustls::client::ResolvesClientCert for File {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.lock().unwrap().resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A watch's events.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// Type and object of the next event; None at the end of the stream.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        self.read().await.map(Result::unwrap)
    }

    /// The same; None also where the connection breaks.
    pub async fn try_next(&mut self) -> Option<(String, Value)> {
        self.read().await?.ok()
    }

    async fn read(&mut self) -> Option<Result<(String, Value), hyper::Error>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Some(Ok((event["type"].as_str().unwrap().to_string(), event["object"].take())));
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.frame())
                .await
                .expect("an event in time")?;
            match frame {
                Ok(frame) => self.buffer.extend_from_slice(frame.data_ref().unwrap()),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Type and name of the next event.
    pub async fn brief(&mut self) -> (String, String) {
        let (kind, object) = self.next().await.expect("an event");
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_string();
        (kind, name)
    }
}
