//! Client certificates that the operator's machine issues: for kubectl, for the node API, for others by hand.

use super::authority::{Authority, BACKDATED, random_serial};
use super::secrets::Secrets;
use anyhow::{Context, Result};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use time::{Duration, OffsetDateTime};

/// The API's client certificates are valid so long before they are made, as the cluster's own signer has it
/// (`control/controllers/src/certificates/issue.rs`): "all until now" is the same time for both.
pub const CLIENT_BACKDATED: Duration = Duration::minutes(5);
/// A kept certificate with less than this left is issued again.
const RENEW_BEFORE: Duration = Duration::days(30);
/// Life of the operator's own certificates.
pub const OPERATOR_LIFE: Duration = Duration::days(365);
/// `system:masters` passes every authorisation: it lives for hours only.
pub const BREAK_GLASS_LIFE: Duration = Duration::hours(4);

/// Who a client certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Common name: the user.
    pub user: String,
    /// Organisations: the groups.
    pub groups: Vec<String>,
}

impl Subject {
    /// The administrator, by RBAC.
    pub fn admin() -> Subject {
        Subject { user: "kubernetes-admin".into(), groups: vec!["kimg:cluster-admins".into()] }
    }

    /// The administrator past RBAC.
    pub fn break_glass() -> Subject {
        Subject { user: "kubernetes-break-glass".into(), groups: vec!["system:masters".into()] }
    }

    /// The operator towards node APIs.
    pub fn node_operator() -> Subject {
        Subject { user: "kimg-operator".into(), groups: Vec::new() }
    }
}

/// A client certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// Certificate, PEM.
    pub certificate: String,
    /// Private key, PKCS#8 PEM.
    pub key: String,
}

/// Issues a client certificate.
pub fn issue(secrets: &Secrets, authority: Authority, subject: &Subject, life: Duration) -> Result<ClientCertificate> {
    let issuer = authority.issuer(secrets)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making a key")?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, subject.user.as_str());
    if let Some((first, more)) = subject.groups.split_first() {
        name.push(DnType::OrganizationName, first.as_str());
        // rcgen holds one value of each attribute type; a second group goes under the same
        // attribute, written as its number.
        if let Some(second) = more.first() {
            name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), second.as_str());
        }
        anyhow::ensure!(
            more.len() < 2,
            "a certificate carries two groups at the most; bind the others to the user {} instead",
            subject.user
        );
    }
    params.distinguished_name = name;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    let now = OffsetDateTime::now_utc();
    // A node whose clock is wrong must be reached all the same.
    params.not_before = now - if authority == Authority::Cluster { CLIENT_BACKDATED } else { BACKDATED };
    params.not_after = now + life;
    let certificate =
        params.signed_by(&key, &issuer).with_context(|| format!("signing a certificate for {}", subject.user))?;
    Ok(ClientCertificate { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The certificate kept in `secrets/STEM.{crt,key}`, issued where it is missing or nears its end.
pub fn kept(secrets: &Secrets, authority: Authority, stem: &str, subject: &Subject) -> Result<ClientCertificate> {
    let (certificate_file, key_file) = (format!("{stem}.crt"), format!("{stem}.key"));
    if let (Ok(certificate), Ok(key)) = (secrets.read(&certificate_file), secrets.read(&key_file))
        && matches(&certificate, &key)
    {
        return Ok(ClientCertificate { certificate, key });
    }
    let issued = issue(secrets, authority, subject, OPERATOR_LIFE)?;
    secrets.write(&key_file, issued.key.as_bytes())?;
    secrets.write(&certificate_file, issued.certificate.as_bytes())?;
    Ok(issued)
}

/// The operator's certificate for node APIs.
pub fn node_operator(secrets: &Secrets) -> Result<ClientCertificate> {
    kept(secrets, Authority::NodeApi, "node-api-client", &Subject::node_operator())
}

/// The administrator's certificate for the API.
pub fn admin(secrets: &Secrets) -> Result<ClientCertificate> {
    kept(secrets, Authority::Cluster, "admin", &Subject::admin())
}

/// Whether a kept pair belongs together and lives long enough.
fn matches(certificate: &str, key: &str) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else {
        return false;
    };
    let (Ok(parsed), Ok(key)) = (pem.parse_x509(), KeyPair::from_pem(key)) else {
        return false;
    };
    let end = parsed.validity().not_after.timestamp();
    let enough = OffsetDateTime::now_utc() + RENEW_BEFORE;
    end > enough.unix_timestamp() && parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
}
