//! The node API's TLS: whom it lets in, and what it shows: its own certificate first, and the cluster's once it is there.

use crate::machine::Shared;
use crate::pki::{Identity, load_or_make};
use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

const CLIENT_CA: &str = "/run/kimg/config/pki/node-api-ca.crt";
const OWN_FOLDER: &str = "/var/lib/kimg/node-api";
/// Certificates that the cluster's CA signed for this node: a master's, a worker's.
const SIGNED: [&str; 2] = ["/run/kimg/pki/node-api", "/var/lib/kimg/pki/kubelet-server"];
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// The acceptor of the moment.
#[derive(Clone)]
pub(super) struct Tls {
    current: std::rc::Rc<RefCell<TlsAcceptor>>,
}

impl Tls {
    /// Starts with the certificate that is there, and goes with the times.
    pub(super) fn start(machine: &Shared, keep: bool) -> Result<Tls> {
        let own = load_or_make(keep.then_some(Path::new(OWN_FOLDER)))?;
        // A signed certificate that cannot be used must not keep the node unreachable.
        let signed = signed_identity().and_then(|signed| Some((acceptor(machine, &signed).ok()?, signed)));
        let (first, shown) = match signed {
            Some(pair) => pair,
            None => (acceptor(machine, &own)?, own),
        };
        let tls = Tls { current: std::rc::Rc::new(RefCell::new(first)) };
        tokio::task::spawn_local(follow(machine.clone(), tls.clone(), shown));
        Ok(tls)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.borrow().clone()
    }
}

/// Takes a new certificate into use without a restart.
async fn follow(machine: Shared, tls: Tls, mut shown: Identity) {
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        let Some(signed) = signed_identity().filter(|signed| *signed != shown) else { continue };
        match acceptor(&machine, &signed) {
            Ok(next) => {
                *tls.current.borrow_mut() = next;
                shown = signed;
            }
            Err(error) => machine.warn(format!("the node API goes on with its old certificate: {error:#}")),
        }
    }
}

fn signed_identity() -> Option<Identity> {
    SIGNED.iter().find_map(|stem| {
        let certificate = std::fs::read_to_string(format!("{stem}.crt")).ok()?;
        let key = std::fs::read_to_string(format!("{stem}.key")).ok()?;
        Some(Identity { certificate, key })
    })
}

fn acceptor(machine: &Shared, identity: &Identity) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(CLIENT_CA).with_context(|| format!("cannot read {CLIENT_CA}"))? {
        roots.add(certificate.with_context(|| format!("{CLIENT_CA} holds no certificate"))?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .with_context(|| format!("{CLIENT_CA} cannot be used"))?;
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<std::result::Result<Vec<_>, _>>()
        .context("the node API's certificate is unreadable")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("the node API's key is unreadable")?;
    let first = chain.first().context("the node API's certificate is empty")?;
    let fingerprint: String = Sha256::digest(first).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("the node API's certificate and key do not belong together")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    machine.update(|status| status.fingerprint = fingerprint);
    Ok(TlsAcceptor::from(Arc::new(config)))
}
