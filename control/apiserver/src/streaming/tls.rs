//! TLS towards kubelets and towards addresses in the cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;

use crate::config::Config;

/// When the certificate towards kubelets was written.
pub fn changed(config: &Config) -> Option<SystemTime> {
    std::fs::metadata(config.kubelet_client_certificate.as_ref()?).and_then(|meta| meta.modified()).ok()
}

/// The client towards kubelets; None where no certificate is set.
pub fn kubelet(config: &Config) -> anyhow::Result<Option<Arc<ClientConfig>>> {
    let (Some(cert), Some(key)) = (&config.kubelet_client_certificate, &config.kubelet_client_key) else {
        return Ok(None);
    };
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("--kubelet-client-key {}", key.display()))?;
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = match &config.kubelet_certificate_authority {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates(path)? {
                roots.add(ca).with_context(|| format!("--kubelet-certificate-authority {}", path.display()))?;
            }
            builder.with_root_certificates(roots).with_client_auth_cert(chain, key)
        }
        None => {
            builder.dangerous().with_custom_certificate_verifier(Unverified::new()).with_client_auth_cert(chain, key)
        }
    };
    Ok(Some(Arc::new(config.context("the kubelet client certificate and its key do not fit together")?)))
}

/// The client towards an aggregated API server; it shows `--proxy-client-cert-file`, which is read anew, as it may have
/// been renewed, and trusts `authority` (PEM) alone, or with `insecure` whoever answers.
pub fn aggregated(config: &Config, authority: Option<&[u8]>, insecure: bool) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match authority {
        _ if insecure => builder.dangerous().with_custom_certificate_verifier(Unverified::new()),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for ca in CertificateDer::pem_slice_iter(pem) {
                roots.add(ca.context("its caBundle")?).context("its caBundle")?;
            }
            builder.with_root_certificates(roots)
        }
        None => anyhow::bail!("it has neither a caBundle nor insecureSkipTLSVerify, so that nobody can be trusted"),
    };
    let (Some(cert), Some(key)) = (&config.proxy_client_cert_file, &config.proxy_client_key_file) else {
        anyhow::bail!("this server has no certificate to show (--proxy-client-cert-file, --proxy-client-key-file)");
    };
    let read =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("--proxy-client-key-file {}", key.display()))?;
    let config = builder.with_client_auth_cert(certificates(cert)?, read);
    Ok(Arc::new(config.context("the proxy client certificate and its key do not fit together")?))
}

/// A client that trusts whoever answers: for proxying to pods and services, as upstream does.
pub fn unverified() -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(Unverified::new()).with_no_client_auth()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(|iter| iter.collect());
    read.with_context(|| format!("certificates {}", path.display()))
}

#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl Unverified {
    fn new() -> Arc<Self> {
        Arc::new(Self(provider()))
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
