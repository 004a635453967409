//! Issuing a leaf certificate from one of the cluster's authorities.

use anyhow::{Context, Result};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use std::net::IpAddr;
use std::path::Path;
use time::{Duration, OffsetDateTime};

/// A node's clock may be a little behind; what lives shortly begins less early.
const BACKDATED: Duration = Duration::hours(1);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// A server's.
    Server,
    /// A client's.
    Client,
    /// Of one that is both.
    Both,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) common_name: String,
    pub(super) organization: Option<String>,
    pub(super) usage: Usage,
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
}

/// One of the cluster's authorities.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Authority {
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Authority> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let pem = read(certificate)?;
        let key_pair =
            KeyPair::from_pem(&read(key)?).with_context(|| format!("{} holds no usable key", key.display()))?;
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .with_context(|| format!("{} holds no certificate", certificate.display()))?;
        let parsed = block.parse_x509().with_context(|| format!("{} holds no certificate", certificate.display()))?;
        let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).context("a CA's dates are out of range");
        let not_before = time(parsed.validity().not_before.timestamp())?;
        let not_after = time(parsed.validity().not_after.timestamp())?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key_pair)
            .with_context(|| format!("{} cannot sign with {}", certificate.display(), key.display()))?;
        Ok(Authority { issuer, not_before, not_after })
    }

    /// A certificate (PEM) that lives so long.
    pub(super) fn issue(&self, leaf: &Leaf, key: &KeyPair, life: Duration) -> Result<String> {
        let mut params = parameters(leaf)?;
        let now = OffsetDateTime::now_utc();
        // A leaf outside its CA's time would be refused by every client.
        params.not_before = (now - BACKDATED.min(life / 10)).max(self.not_before);
        params.not_after = (now + life).min(self.not_after);
        let certificate = params
            .signed_by(key, &self.issuer)
            .with_context(|| format!("cannot sign the certificate of {}", leaf.common_name))?;
        Ok(certificate.pem())
    }
}

pub(super) fn fresh_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}

/// Whether less than three tenths of a certificate's life are left; also where it is none.
pub(super) fn is_due(pem: &[u8], now: i64) -> bool {
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(pem) else { return true };
    let Ok(parsed) = block.parse_x509() else { return true };
    let (begin, end) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    now >= begin.saturating_add(end.saturating_sub(begin) / 10 * 7)
}

pub(super) fn parameters(leaf: &Leaf) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    if let Some(organization) = &leaf.organization {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, leaf.common_name.as_str());
    params.distinguished_name = name;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match leaf.usage {
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    for name in &leaf.names {
        let name = name.as_str().try_into().with_context(|| format!("{name:?} cannot stand in a certificate"))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(leaf.addresses.iter().copied().map(SanType::IpAddress));
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// 16 random bytes, positive.
fn serial() -> Result<SerialNumber> {
    let mut bytes = [0u8; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::BasicConstraints;

    #[test]
    fn a_certificate_is_due_when_three_tenths_are_left() {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.not_before = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(1_001_000).unwrap();
        let pem = params.self_signed(&fresh_key().unwrap()).unwrap().pem();
        let due = |now| is_due(pem.as_bytes(), now);
        assert_eq!([1_000_000, 1_000_699, 1_000_700, 2_000_000].map(due), [false, false, true, true]);
        assert!(is_due(b"", 0) && is_due(&pem.as_bytes()[..pem.len() / 2], 0), "what is torn is made anew");
    }

    #[test]
    fn the_first_of_a_bundle_signs() {
        let folder = std::env::temp_dir().join(format!("kimg-bundle-{}", std::process::id()));
        let (crt, key_file) = (folder.join("ca.crt"), folder.join("ca.key"));
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let now = params.self_signed(&key).unwrap();
        // While another authority comes, the one before stands behind it.
        let before = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        super::super::write(&crt, (now.pem() + &before.pem()).as_bytes(), 0o644).unwrap();
        super::super::write(&key_file, key.serialize_pem().as_bytes(), 0o600).unwrap();
        let leaf = Leaf {
            common_name: "a".into(),
            organization: None,
            usage: Usage::Client,
            names: vec![],
            addresses: vec![],
        };
        let life = Duration::days(1);
        let pem = Authority::read(&crt, &key_file).unwrap().issue(&leaf, &fresh_key().unwrap(), life).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        for (authority, signed) in [(now, true), (before, false)] {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
            let at = rustls::pki_types::UnixTime::now();
            let verdict = clients.build().unwrap().verify_client_cert(&block.contents.clone().into(), &[], at);
            assert_eq!(verdict.is_ok(), signed);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
