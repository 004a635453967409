//! Client certificates: who a verified chain belongs to.
//!
//! The TLS layer asks for a certificate and proves that the client holds its
//! key; whether a CA of ours signed it is decided here, once a connection, so
//! that the client CA and the front-proxy CA can never be taken for each other
//! and a bad certificate gets a 401 with a body instead of a broken handshake.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::AuthnError;
use crate::request::UserInfo;

/// What a connection's certificate says about its other end.
#[derive(Debug, Clone, Default)]
pub enum Peer {
    /// No certificate was shown.
    #[default]
    None,
    /// Signed by the client CA.
    Client { user: UserInfo, fingerprint: String, not_before: i64, not_after: i64 },
    /// Signed by the front-proxy CA: may speak for others with X-Remote-* headers.
    FrontProxy { common_name: String, not_after: i64 },
    /// Shown, but not signed by any CA of ours, or out of date.
    Rejected(String),
}

/// Decides by which CA a chain was signed.
pub struct PeerVerifier {
    client: Option<Arc<dyn ClientCertVerifier>>,
    front_proxy: Option<Arc<dyn ClientCertVerifier>>,
}

impl PeerVerifier {
    /// Takes the two sets of CA certificates; an empty set trusts nobody.
    pub fn new(client: &[CertificateDer<'_>], front_proxy: &[CertificateDer<'_>]) -> Result<Self, String> {
        Ok(Self { client: verifier(client)?, front_proxy: verifier(front_proxy)? })
    }

    /// Classifies the chain a client presented (leaf first), once a connection.
    pub fn classify(&self, chain: &[CertificateDer<'_>]) -> Peer {
        let Some((leaf, rest)) = chain.split_first() else { return Peer::None };
        let now = UnixTime::now();
        let signed_by = |ca: &Option<Arc<dyn ClientCertVerifier>>| match ca {
            Some(ca) => ca.verify_client_cert(leaf, rest, now).map(|_| ()).map_err(|e| e.to_string()),
            None => Err("no such CA".to_string()),
        };
        let Named { user: subject, fingerprint, not_before, not_after } = match named(leaf) {
            Ok(parsed) => parsed,
            Err(e) => return Peer::Rejected(e),
        };
        if signed_by(&self.front_proxy).is_ok() {
            return Peer::FrontProxy { common_name: subject.name, not_after };
        }
        match signed_by(&self.client) {
            Ok(()) if subject.name.is_empty() => Peer::Rejected("client certificate has no common name".into()),
            Ok(()) => Peer::Client { user: subject, fingerprint, not_before, not_after },
            Err(e) => Peer::Rejected(format!("client certificate of {:?}: {e}", subject.name)),
        }
    }
}

fn verifier(cas: &[CertificateDer<'_>]) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    if cas.is_empty() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(ca.clone().into_owned()).map_err(|e| format!("CA certificate cannot be used: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| format!("CA certificates cannot be used: {e}"))?;
    Ok(Some(built))
}

/// What a leaf says.
struct Named {
    user: UserInfo,
    /// SHA-256 of its DER, hex.
    fingerprint: String,
    not_before: i64,
    not_after: i64,
}

/// The user a leaf's subject names (CN and every O), and the rest.
fn named(leaf: &CertificateDer<'_>) -> Result<Named, String> {
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|e| format!("client certificate is unreadable: {e}"))?;
    let text = |attr: &x509_parser::x509::AttributeTypeAndValue<'_>| attr.as_str().unwrap_or_default().to_string();
    let name = cert.subject().iter_common_name().next().map(text).unwrap_or_default();
    let groups: Vec<String> = cert.subject().iter_organization().map(text).filter(|g| !g.is_empty()).collect();
    let mut user = UserInfo::authenticated(name, groups);
    let fingerprint = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(leaf));
    let id = format!("X509SHA256={fingerprint}");
    user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![id]);
    let validity = cert.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Ok(Named { user, fingerprint, not_before, not_after })
}

/// Refuses a certificate that ran out while its connection lived on.
pub fn check_not_after(not_after: i64, now: i64) -> Result<(), AuthnError> {
    if now > not_after { Err(AuthnError::refused("client certificate has expired")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    fn ca(name: &str) -> (Issuer<'static, KeyPair>, CertificateDer<'static>) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.self_signed(&key).expect("ca").der().clone();
        (Issuer::new(params, key), cert)
    }

    fn leaf(issuer: &Issuer<'_, KeyPair>, cn: &str, org: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.distinguished_name.push(DnType::OrganizationName, org);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&key, issuer).expect("leaf").der().clone()
    }

    #[test]
    fn the_two_cas_are_never_confused() {
        let (client, client_der) = ca("client");
        let (proxy, proxy_der) = ca("proxy");
        let (stranger, _) = ca("stranger");
        let verifier = PeerVerifier::new(&[client_der], &[proxy_der]).expect("verifier");
        match verifier.classify(&[leaf(&client, "system:node:w1", "system:nodes")]) {
            Peer::Client { user, .. } => assert_eq!(user.node_name(), Some("w1")),
            other => panic!("{other:?}"),
        }
        assert!(matches!(verifier.classify(&[leaf(&proxy, "front", "x")]), Peer::FrontProxy { .. }));
        assert!(matches!(verifier.classify(&[leaf(&stranger, "admin", "system:masters")]), Peer::Rejected(_)));
        assert!(matches!(verifier.classify(&[]), Peer::None));
    }

    #[test]
    fn two_front_proxy_cas_are_in_trust_until_one_goes() {
        let ((old, old_der), (new, new_der)) = (ca("proxy"), ca("proxy"));
        let (before, after) = (leaf(&old, "front", "x"), leaf(&new, "front", "x"));
        let proxy = |verifier: &PeerVerifier, leaf: &CertificateDer<'static>| {
            matches!(verifier.classify(std::slice::from_ref(leaf)), Peer::FrontProxy { .. })
        };
        let both = PeerVerifier::new(&[], &[new_der.clone(), old_der]).expect("verifier");
        assert!(proxy(&both, &before) && proxy(&both, &after));
        let one = PeerVerifier::new(&[], &[new_der]).expect("verifier");
        assert!(!proxy(&one, &before) && proxy(&one, &after));
    }
}
