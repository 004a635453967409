//! The certificate authorities of a cluster, one for each circle of trust.

use super::secrets::Secrets;
use super::successor;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// Certificates are valid a little before they are made: a node's clock may be behind.
pub const BACKDATED: Duration = Duration::hours(1);
const CA_LIFE: Duration = Duration::days(3650);

/// An authority; whom it vouches for is never vouched for by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// API servers, kubelets and all clients of the API.
    Cluster,
    /// Those whose `X-Remote-*` headers the API server believes.
    FrontProxy,
    /// etcd members and their client, the API server.
    Etcd,
    /// Operators who may use the node API.
    NodeApi,
}

impl Authority {
    /// All of them.
    pub const ALL: [Authority; 4] = [Authority::Cluster, Authority::FrontProxy, Authority::Etcd, Authority::NodeApi];

    /// File name without its end, and part of the subject.
    pub fn stem(self) -> &'static str {
        match self {
            Authority::Cluster => "cluster-ca",
            Authority::FrontProxy => "front-proxy-ca",
            Authority::Etcd => "etcd-ca",
            Authority::NodeApi => "node-api-ca",
        }
    }

    /// Name of the certificate's file.
    pub fn certificate_file(self) -> String {
        format!("{}.crt", self.stem())
    }

    /// Name of the key's file.
    pub fn key_file(self) -> String {
        format!("{}.key", self.stem())
    }

    /// Reads the key and prepares to sign with it.
    pub fn issuer(self, secrets: &Secrets) -> Result<Issuer<'static, KeyPair>> {
        let key = secrets.key(&self.key_file())?;
        let pem = secrets.read(&self.certificate_file())?;
        Issuer::from_ca_cert_pem(&pem, key).or_else(|_| secrets.damaged(&self.certificate_file(), "certificate"))
    }

    /// Makes key and certificate where they are missing. The key comes first, so that an
    /// interruption between the two leaves a key that the next run goes on with.
    ///
    /// # Errors
    /// Bad input: the two do not belong together, or cannot be read.
    pub(super) fn ensure(self, secrets: &Secrets, cluster: &str) -> Result<()> {
        successor::resume(secrets, self)?;
        if !secrets.path(&self.key_file()).exists() {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                .with_context(|| format!("making {}", self.key_file()))?;
            secrets.write(&self.key_file(), key.serialize_pem().as_bytes())?;
        }
        if !secrets.path(&self.certificate_file()).exists() {
            let key = secrets.key(&self.key_file())?;
            let certificate = self_signed_params(cluster, self.stem())
                .self_signed(&key)
                .with_context(|| format!("signing {}", self.certificate_file()))?;
            secrets.write(&self.certificate_file(), certificate.pem().as_bytes())?;
        }
        self.check_pair(secrets)
    }

    /// An image with a certificate of another key would sign what nobody believes.
    fn check_pair(self, secrets: &Secrets) -> Result<()> {
        let key = secrets.key(&self.key_file())?.subject_public_key_info();
        let pem = secrets.read(&self.certificate_file())?;
        let certified = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok().and_then(|(_, block)| {
            let certificate = block.parse_x509().ok()?;
            Some(certificate.public_key().raw.to_vec())
        });
        match certified {
            None => secrets.damaged(&self.certificate_file(), "certificate"),
            Some(certified) if certified == key => Ok(()),
            Some(_) => secrets.no_pair(&self.certificate_file(), &self.key_file()),
        }
    }
}

/// A certificate that vouches for itself; `stem` is the name of its file, and part of the subject.
pub(super) fn self_signed_params(cluster: &str, stem: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, format!("kimg cluster {cluster}"));
    name.push(DnType::CommonName, format!("{cluster} {stem}"));
    params.distinguished_name = name;
    // A leaf is signed by the authority itself: no intermediate may come between.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(random_serial());
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + CA_LIFE;
    params
}

/// A positive random serial number of 16 bytes.
pub fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x01;
    SerialNumber::from_slice(&bytes)
}
