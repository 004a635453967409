//! Who may read: a client whose certificate the cluster's authority gave to a node.

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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
pub(crate) struct Tls(TlsAcceptor);

impl Tls {
    /// With the certificate and its key, and the authority of the nodes' certificates.
    pub(crate) fn read(certificate: &Path, key: &Path, authority: &Path) -> Result<Tls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in read_certificates(authority)? {
            roots.add(root).with_context(|| format!("{} holds no usable authority", authority.display()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .with_context(|| format!("using {}", authority.display()))?;
        let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading {}", key.display()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(read_certificates(certificate)?, private)
            .with_context(|| format!("using {}", certificate.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    /// The connection, if a node is at its other end.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let stream = self.0.accept(stream).await?;
        let (_, session) = stream.get_ref();
        // The same authority signs for the operator and for components, too.
        if session.peer_certificates().and_then(|chain| chain.first()).is_some_and(is_node) {
            return Ok(stream);
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the client is no node"))
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
