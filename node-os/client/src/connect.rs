//! The API client of a component: its certificate is that of the files, also after they were renewed.
//!
//! A connection is whose certificate opened it, and the API server refuses one that has ended. So a new certificate gets
//! connections of its own; what is under way on those of before ends on them.

use anyhow::Context;
use http::{Request, Response};
use kube::client::Body;
use kube::config::Kubeconfig;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime};
use tower::Service;

/// Connects with a kubeconfig, waiting for the file: it appears once the node has joined.
///
/// # Errors
/// The file is there and cannot be used.
pub async fn connect(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    while !kubeconfig.exists() {
        node_sys::notify::status(&format!(
            "waits for {}, which is written when this node has joined",
            kubeconfig.display()
        ));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let parsed = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let user = parsed.auth_infos.first().and_then(|named| named.auth_info.as_ref());
    let certificate = user.and_then(|user| user.client_certificate.as_ref()).map(PathBuf::from);
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &Default::default())
        .await
        .with_context(|| format!("using {}", kubeconfig.display()))?;
    // A watch ends by the server's clock; a dead server is noticed by `api-balancer`, through which all connections go.
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(320));
    let seen = certificate.as_deref().and_then(stamp);
    let client = kube::Client::try_from(config.clone())
        .with_context(|| format!("connecting as {} says", kubeconfig.display()))?;
    Ok(match certificate {
        Some(certificate) => kube::Client::new(Following { config, certificate, seen, client }, "default"),
        None => client,
    })
}

fn stamp(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Sends by the client of the certificate that is there.
struct Following {
    config: kube::Config,
    certificate: PathBuf,
    seen: Option<SystemTime>,
    client: kube::Client,
}

impl Following {
    fn follow(&mut self) {
        let Some(now) = stamp(&self.certificate).filter(|now| self.seen != Some(*now)) else { return };
        // Right between a new key and its certificate they do not fit; the next request finds both.
        match kube::Client::try_from(self.config.clone()) {
            Ok(client) => (self.client, self.seen) = (client, Some(now)),
            Err(error) => {
                tracing::warn!("going on with the certificate of before {}: {error}", self.certificate.display())
            }
        }
    }
}

impl Service<Request<Body>> for Following {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = kube::Result<Response<Body>>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<kube::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.follow();
        let client = self.client.clone();
        Box::pin(async move { client.send(request).await })
    }
}

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
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = stamp(&self.certificate);
        let stale = match (&*loaded, changed) {
            (Some((time, _)), Some(now)) => *time != now,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if stale {
            match self.load() {
                Ok(pair) => *loaded = Some((changed.unwrap_or(SystemTime::UNIX_EPOCH), Arc::new(pair))),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        loaded.as_ref().map(|(_, pair)| pair.clone())
    }

    /// The pair, read now.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not belong together.
    pub fn load(&self) -> anyhow::Result<CertifiedKey> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .with_context(|| format!("reading certificate {certificate}"))?
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("reading certificate {certificate}"))?;
        let private = PrivateKeyDer::from_pem_file(&self.key).with_context(|| format!("reading key {key}"))?;
        CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider())
            .with_context(|| format!("{key} does not belong to {certificate}"))
    }
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
