//! Who may read: a client whose certificate the cluster's authority gave to a node.

use anyhow::{Context, Result};
use node_client::CertificateFile;
use node_client::revoked::{Guarded, Refused, Revoked, Shown};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Group of every node's client certificate.
const NODES: &str = "system:nodes";

/// What is shown and who is let in.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    revoked: Arc<Revoked>,
}

impl Tls {
    /// With the certificate and its key, the authority of the nodes' certificates, and what of them was
    /// taken back.
    pub(crate) fn read(certificate: &Path, key: &Path, authority: &Path, revoked: Arc<Revoked>) -> Result<Tls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in read_certificates(authority)? {
            roots.add(root).with_context(|| format!("{} holds no usable authority", authority.display()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .with_context(|| format!("using {}", authority.display()))?;
        let shown = CertificateFile::new(certificate, key);
        // A broken file shows at the start.
        shown.load()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), revoked })
    }

    /// The connection, if a node is at its other end.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<Guarded<TlsStream<TcpStream>>> {
        let stream = self.acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        let denied = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        // The same authority signs for the operator and for components, too.
        let node = session.peer_certificates().and_then(|chain| chain.first()).filter(|first| is_node(first));
        let Some(shown) = node.and_then(|certificate| Shown::of(certificate)) else {
            return denied("the client is no node");
        };
        match self.revoked.check(&shown) {
            Ok(()) => Ok(Guarded::new(stream, &self.revoked, Some(shown))),
            Err(Refused::TakenBack(why) | Refused::Unread(why)) => {
                tracing::info!("a node is not let in: {why}");
                denied(&why)
            }
        }
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading {}", path.display()))
}

fn is_node(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    parsed.subject().iter_organization().any(|group| group.as_str() == Ok(NODES))
}
