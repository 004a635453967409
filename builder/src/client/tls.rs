//! Whom `kimg` trusts, and the certificate it shows.

use crate::input::BadInput;
use crate::pki::ClientCertificate;
use anyhow::{Context, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Trust in `ca`'s servers, showing `client`. With `fingerprint`, the server whose certificate has
/// that SHA-256 (hex, colons allowed) is trusted too: a node that has not joined signs for itself.
pub fn config(ca: &str, client: &ClientCertificate, fingerprint: Option<&str>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context("reading the cluster's CA")?).context("reading the cluster's CA")?;
    }
    let authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .context("reading the cluster's CA")?;
    let pinned = fingerprint.map(parse_fingerprint).transpose()?;
    let chain = CertificateDer::pem_slice_iter(client.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("reading the client certificate")?;
    let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).context("reading the client key")?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { authority, pinned, provider }))
        .with_client_auth_cert(chain, key)
        .context("using the client certificate")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// SHA-256 of a certificate as browsers show it.
pub fn fingerprint(certificate: &[u8]) -> String {
    let pairs: Vec<String> = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

fn parse_fingerprint(text: &str) -> Result<[u8; 32]> {
    let plain: String = text.trim().trim_start_matches("SHA256:").chars().filter(|c| *c != ':').collect();
    hex::decode(&plain).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        BadInput(format!("`{text}` is no SHA-256 fingerprint; copy the 64 hex digits from the node's console")).into()
    })
}

#[derive(Debug)]
struct Verifier {
    authority: Arc<WebPkiServerVerifier>,
    pinned: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.pinned.is_some_and(|pinned| pinned == <[u8; 32]>::from(Sha256::digest(end_entity))) {
            return Ok(ServerCertVerified::assertion());
        }
        self.authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
