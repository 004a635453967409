//! TLS, HTTP/1.1 and HTTP/2 on one port.

use std::io::{ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CipherSuite, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use crate::config::Config;
use crate::error::ApiError;
use crate::pipeline::{self, Connection};
use crate::state::AppState;

/// How long open requests may go on when the server ends.
const GRACE: Duration = Duration::from_secs(4);
/// A client must have shaken hands within this.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Takes any client certificate whose key the client proves to have.  Which CA signed it,
/// and what that means, authentication decides: a bad certificate is a 401, not a broken
/// connection, and CA files can change while the server runs.
#[derive(Debug)]
struct AnyClient(Arc<rustls::crypto::CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // The check of the key's proof would only say that it cannot be done.
        is_v3(cert).map_err(|why| rustls::Error::General(format!("the client's certificate: {why}")))?;
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Refuses the certificates of X.509 before version 3, which rustls does not take.
fn is_v3(cert: &CertificateDer<'_>) -> Result<(), String> {
    match X509Certificate::from_der(cert) {
        Ok((_, cert)) if cert.version() != X509Version::V3 => Err(format!(
            "it is an X.509 certificate of version {}, and 3 is needed: one that is signed with extensions, as \
             extendedKeyUsage",
            cert.version().0 + 1
        )),
        // What cannot be read at all is said by whoever reads on.
        _ => Ok(()),
    }
}

/// What is worth a line of a failed handshake: why a client's certificate cannot be used, which the client is not told.
fn about_certificate(error: &std::io::Error) -> Option<&rustls::Error> {
    let error = error.get_ref()?.downcast_ref()?;
    matches!(error, rustls::Error::General(_) | rustls::Error::InvalidCertificate(_)).then_some(error)
}

/// The serving certificate as the files have it now.
pub fn tls(config: &Config) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let mut provider = rustls::crypto::ring::default_provider();
    // The cheapest one first, as Go's servers have it (crypto/tls, `defaultCipherSuitesTLS13`).
    provider.cipher_suites.sort_by_key(|known| known.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let chain: Vec<_> = CertificateDer::pem_file_iter(&config.tls_cert_file)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading --tls-cert-file {}", config.tls_cert_file.display()))?;
    for cert in chain.iter().take(1) {
        is_v3(cert)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("--tls-cert-file {}", config.tls_cert_file.display()))?;
    }
    let key = PrivateKeyDer::from_pem_file(&config.tls_private_key_file)
        .with_context(|| format!("reading --tls-private-key-file {}", config.tls_private_key_file.display()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_single_cert(chain, key)
        .with_context(|| {
            format!(
                "{} and {} do not fit each other",
                config.tls_cert_file.display(),
                config.tls_private_key_file.display()
            )
        })?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tls.ignore_client_order = true;
    // A resumed session has the certificate of its first connection, whatever the client's file holds by now: renewed
    // clients would go on as who they were, until that ends or is taken back. Go's clients resume nothing by default.
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    Ok(Arc::new(tls))
}

/// Serves until `stop` turns true, then lets open requests end for a while.
pub async fn serve(
    state: Arc<AppState>,
    listener: TcpListener,
    mut tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, remote)) => {
                let acceptor = TlsAcceptor::from(tls.borrow_and_update().clone());
                connections.spawn(connection(state.clone(), acceptor, stream, remote, stop.clone()));
            }
            Err(error) => {
                tracing::warn!("a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all_ended).await.is_err() {
        tracing::info!("some requests were cut off at the end");
    }
}

/// A connection that carries nothing more, in either direction, once its client's certificate was taken back: watches,
/// logs, exec and what else goes on without a new request. One that was taken back before is let in, and gets its 401.
struct Guarded {
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    state: Arc<AppState>,
    chain: Arc<[CertificateDer<'static>]>,
    /// Revision of the ConfigMaps at the last look.
    looked_at: u64,
    let_in: bool,
}

impl Guarded {
    fn new(
        stream: tokio_rustls::server::TlsStream<TcpStream>,
        state: Arc<AppState>,
        chain: Arc<[CertificateDer<'static>]>,
    ) -> Guarded {
        let looked_at = state.config_maps.last_change();
        let let_in = chain.is_empty() || state.authn.is_taken_back(&state.registry, &chain);
        Guarded { stream, state, chain, looked_at, let_in }
    }

    fn check(&mut self) -> std::io::Result<()> {
        if self.let_in {
            return Ok(());
        }
        let now = self.state.config_maps.last_change();
        if now == self.looked_at {
            return Ok(());
        }
        if self.state.authn.is_taken_back(&self.state.registry, &self.chain) {
            return Err(std::io::Error::new(ErrorKind::PermissionDenied, "the client's certificate was taken back"));
        }
        self.looked_at = now;
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Bytes that the headers of a request may take over HTTP/2.
const HEADERS: u32 = 256 << 10;

async fn connection(
    state: Arc<AppState>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%remote, "no TCP_NODELAY: {error}");
    }
    // What a connection needs for a moment is boxed, so that it does not take its memory for good: a
    // thousand watches on connections of their own are a thousand times that.
    let stream = match Box::pin(tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return match about_certificate(&error) {
                Some(why) => tracing::warn!(%remote, "TLS handshake failed: {why}"),
                None => tracing::debug!(%remote, "TLS handshake failed: {error}"),
            };
        }
        Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
    };
    let peer_certificates: Arc<[CertificateDer<'static>]> =
        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let stream = Guarded::new(stream, state.clone(), peer_certificates.clone());
    let connection = Arc::new(Connection { remote, peer_certificates });
    let service = service_fn(move |request| {
        let (state, connection) = (state.clone(), connection.clone());
        Box::pin(async move {
            let answer = AssertUnwindSafe(pipeline::serve(state, connection, request)).catch_unwind().await;
            Ok::<_, std::convert::Infallible>(answer.unwrap_or_else(|_| {
                tracing::error!("a request's handler panicked");
                pipeline::failure(&ApiError::internal("the request could not be handled"))
            }))
        })
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        // Who acts for people of many groups names them all.
        .max_header_list_size(HEADERS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut serving = Box::pin(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%remote, "connection ended: {error}");
            }
            return;
        }
        _ = stop.wait_for(|stop| *stop) => {}
    }
    serving.as_mut().graceful_shutdown();
    if let Err(error) = serving.await {
        tracing::debug!(%remote, "connection ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Self-signed, as `openssl x509 -req -signkey` makes it.
    const V1: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBGDCBvwIUByZhD1HkoJIqHki7L+6SwckmKhowCgYIKoZIzj0EAwIwDjEMMAoG\n\
A1UEAwwDb2xkMCAXDTI2MTEyNzA3MjEwMloYDzIxMjYxMTAzMDcyMTAyWjAOMQww\n\
CgYDVQQDDANvbGQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATZnkgmeWpk0MA3\n\
9rFAlqk7Eatw6T4s6VE3DQCYaLoRwMHJJs7XSKJgeEHPPSRltDUmUT9dcdYjtuET\n\
sGX2shCvMAoGCCqGSM49BAMCA0gAMEUCIQDZQ88lR9LN2GC/uqlN327qUirq3Y2F\n\
wLxhSnSVhzyGLgIgSpy9pd64ATkOjNHyYjVpAXckBG+WYdoICtL+KavP+/c=\n\
-----END CERTIFICATE-----\n\
";

    #[test]
    fn certificates_without_extensions_are_refused_by_their_version() {
        use clap::Parser as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.crt");
        std::fs::write(&path, V1).unwrap();
        let cert = format!("--tls-cert-file={}", path.display());
        let config = Config::parse_from(["kube-apiserver", &cert, "--tls-private-key-file=k"]);
        let why = format!("{:#}", tls(&config).unwrap_err());
        assert!(why.contains("server.crt") && why.contains("of version 1, and 3 is needed"), "{why}");

        let cert = CertificateDer::from_pem_slice(V1.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let why = AnyClient(provider).verify_client_cert(&cert, &[], UnixTime::now()).unwrap_err();
        let failed = std::io::Error::other(why);
        assert!(about_certificate(&failed).unwrap().to_string().contains("of version 1"));
        assert!(about_certificate(&std::io::Error::other("cut off")).is_none());
    }
}
