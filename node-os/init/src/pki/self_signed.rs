//! The node API's own key and certificate, used until one of the cluster's authority is there.

use super::issue::{Leaf, Usage, parameters};
use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use std::path::Path;
use time::{Duration, OffsetDateTime};

/// A key with its certificate chain, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Certificates.
    pub certificate: String,
    /// Key.
    pub key: String,
}

/// The identity kept in `folder`, made when it is not there: its fingerprint must outlive a reboot.
/// Without a folder it is made for this boot only.
pub fn load_or_make(folder: Option<&Path>) -> Result<Identity> {
    if let Some(folder) = folder
        && let (Ok(certificate), Ok(key)) =
            (std::fs::read_to_string(folder.join("self.crt")), std::fs::read_to_string(folder.join("self.key")))
        && KeyPair::from_pem(&key).is_ok()
    {
        return Ok(Identity { certificate, key });
    }
    let identity = make()?;
    if let Some(folder) = folder {
        super::write(&folder.join("self.key"), identity.key.as_bytes(), 0o600)?;
        super::write(&folder.join("self.crt"), identity.certificate.as_bytes(), 0o644)?;
    }
    Ok(identity)
}

fn make() -> Result<Identity> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make the node API's key")?;
    let leaf = Leaf {
        common_name: "kimg node API".to_owned(),
        organization: None,
        usage: Usage::Server,
        names: vec!["localhost".to_owned()],
        addresses: Vec::new(),
    };
    let mut params = parameters(&leaf)?;
    params.use_authority_key_identifier_extension = false;
    // The clock may not be right yet; whoever trusts this certificate does it by its fingerprint.
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = OffsetDateTime::now_utc() + Duration::days(36500);
    let certificate = params.self_signed(&key).context("cannot sign the node API's certificate")?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}
