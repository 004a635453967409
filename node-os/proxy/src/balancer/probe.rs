//! Looks at one API server: `GET /readyz` over TLS, on a connection that is kept.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

use super::servers::Seen;

/// A server that answers later is not one to go to.
const PATIENCE: Duration = Duration::from_secs(1);

/// TLS toward the API servers, as nobody.
pub fn tls(authority: &Path) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let named = || format!("--certificate-authority {}", authority.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).with_context(named)? {
        roots.add(certificate.with_context(named)?).with_context(named)?;
    }
    anyhow::ensure!(!roots.is_empty(), "{} has no certificate", named());
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(tls))
}

/// Who looks at one server.
pub struct Probe {
    server: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    kept: Option<http1::SendRequest<Empty<Bytes>>>,
}

impl Probe {
    /// Nothing is connected yet.
    pub fn new(server: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Probe {
        Probe { server, tls, kept: None }
    }

    /// Looks once.
    pub async fn look(&mut self) -> Seen {
        let kept = self.kept.take();
        let asked = async {
            if let Some(mut kept) = kept
                && let Ok(code) = ask(&mut kept, "/readyz").await
            {
                return Ok((code, kept));
            }
            // What was kept may have been closed, as idle connections are, and by a server that began anew.
            let mut new = connect(self.server, &self.tls).await?;
            let code = ask(&mut new, "/readyz").await?;
            anyhow::Ok((code, new))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok((code, connection))) => {
                self.kept = Some(connection);
                // One that asks who we are is there, too.
                if code < 500 { Seen::Ready } else { Seen::NotReady }
            }
            Ok(Err(error)) => {
                tracing::debug!("{}: {error:#}", self.server);
                Seen::Nothing
            }
            Err(_) => Seen::Nothing,
        }
    }
}

/// Connects; the server shows the name that all clients of the balancer ask for.
pub async fn connect(
    server: SocketAddr,
    tls: &Arc<rustls::ClientConfig>,
) -> anyhow::Result<http1::SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(server).await?;
    let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, stream).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// The code of the answer.
pub async fn ask(connection: &mut http1::SendRequest<Empty<Bytes>>, path: &str) -> anyhow::Result<u16> {
    connection.ready().await?;
    let request = http::Request::get(path).header("host", "127.0.0.1").body(Empty::new())?;
    let response = connection.send_request(request).await?;
    let code = response.status().as_u16();
    // It is kept for the next question only if this answer is read to its end.
    http_body_util::Limited::new(response.into_body(), 64 << 10)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
    Ok(code)
}
