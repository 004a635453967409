//! The API client: a kube client whose certificate is read again when the file changes,
//! so that a renewed certificate needs neither a restart nor a new client.

use anyhow::{Context, Result};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tower::ServiceBuilder;

/// How long an API call may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(330);

/// A certificate and key on disk, read again when the certificate's time stamp changes.
#[derive(Debug)]
pub struct CertificateFile {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<Option<(SystemTime, Arc<CertifiedKey>)>>,
}

impl CertificateFile {
    /// The pair at these paths; nothing is read yet.
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        CertificateFile { certificate: certificate.into(), key: key.into(), loaded: Mutex::new(None) }
    }

    /// The pair as it is on disk now; the last good one when reading fails.
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        let mut loaded = crate::lock(&self.loaded);
        let changed = std::fs::metadata(&self.certificate).and_then(|m| m.modified()).ok();
        let stale = match (&*loaded, changed) {
            (Some((time, _)), Some(now)) => *time != now,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if stale {
            match load_pair(&self.certificate, &self.key) {
                Ok(pair) => *loaded = Some((changed.unwrap_or(SystemTime::UNIX_EPOCH), Arc::new(pair))),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        loaded.as_ref().map(|(_, pair)| pair.clone())
    }
}

fn load_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .with_context(|| format!("reading certificate {}", certificate.display()))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("reading certificate {}", certificate.display()))?;
    let key_der = PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading key {}", key.display()))?;
    let pair = CertifiedKey::from_der(chain, key_der, &rustls::crypto::ring::default_provider())
        .with_context(|| format!("{} does not belong to {}", key.display(), certificate.display()))?;
    Ok(pair)
}

impl ResolvesClientCert for CertificateFile {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for CertificateFile {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

/// A client as the kubeconfig at `path` says.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client> {
    let kubeconfig =
        kube::config::Kubeconfig::read_from(path).with_context(|| format!("reading kubeconfig {}", path.display()))?;
    let pair = kubeconfig.auth_infos.first().and_then(|named| named.auth_info.as_ref()).and_then(|auth| {
        Some(Arc::new(CertificateFile::new(auth.client_certificate.clone()?, auth.client_key.clone()?)))
    });
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .with_context(|| format!("kubeconfig {} is not complete", path.display()))?;
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(Duration::from_secs(30));
    build(config, pair)
}

/// A client of `config`, with a client certificate that follows its file.
pub fn build(config: kube::Config, pair: Option<Arc<CertificateFile>>) -> Result<kube::Client> {
    let mut tls = config.rustls_client_config().context("setting up TLS to the API server")?;
    if let Some(pair) = pair {
        tls.client_auth_cert_resolver = pair;
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(4)
        .build::<_, Body>(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context("API credentials")?)
        .map_err(tower::BoxError::from)
        .service(transport);
    Ok(kube::Client::new(service, config.default_namespace))
}

/// A sentence about a failed API call, without the noise around it.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => crate::chain(other),
    }
}

/// A call that is given up after a while: a sign of life that hangs on a dead connection is none.
pub async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
}

/// The HTTP code of a refused call.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_given_up() {
        let late = within(Duration::from_millis(1), std::future::pending::<Result<(), _>>()).await;
        assert!(explain(&late.expect_err("late")).contains("elapsed"));
        within(Duration::from_secs(60), std::future::ready(Ok(()))).await.expect("in time");
    }
}
