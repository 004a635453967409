//! The certificates on this node.

use crate::services::table::STATUS_PAGE;
use node_api::Certificate;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;

const FOLDERS: [&str; 5] =
    ["/run/kimg/config/pki", "/run/kimg/pki", STATUS_PAGE, "/var/lib/kimg/pki", "/var/lib/kimg/node-api"];

/// All of them, by file.
pub fn all() -> Vec<Certificate> {
    let mut files: Vec<PathBuf> = FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "crt"))
        .collect();
    files.sort();
    files.iter().flat_map(|path| read(path)).collect()
}

/// Whose certificate it is.
pub(super) fn subject(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.subject().to_string())
}

/// Each of a file: authorities in a rotation are two.
fn read(path: &Path) -> Vec<Certificate> {
    let Ok(pem) = std::fs::read(path) else { return Vec::new() };
    Pem::iter_from_buffer(&pem).filter_map(|block| certificate(path, &block.ok()?)).collect()
}

fn certificate(path: &Path, block: &Pem) -> Option<Certificate> {
    let certificate = block.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let sans = names.map(|names| names.value.general_names.iter().filter_map(name).collect()).unwrap_or_default();
    let date = |seconds| jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default();
    let authority = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.as_ref()?.0),
        _ => None,
    });
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Certificate {
        file: path.display().to_string(),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        sans,
        not_before: date(certificate.validity().not_before.timestamp()),
        not_after: date(certificate.validity().not_after.timestamp()),
        sha256: hex(&Sha256::digest(&block.contents)),
        authority_key_id: hex(authority.unwrap_or_default()),
    })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| std::net::Ipv4Addr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    #[test]
    fn each_of_a_bundle_is_told_and_who_signed_a_leaf() {
        let dir = tempfile::tempdir().unwrap();
        let authority = || {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            (certificate.pem(), params.key_identifier(&key), Issuer::new(params, key))
        };
        let ((old, _, _), (new, id, issuer)) = (authority(), authority());
        let mut params = CertificateParams::default();
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let at = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let both = at("ca.crt", format!("{new}{old}"));
        assert_eq!(both.len(), 2);
        assert!(both[0].sha256 != both[1].sha256 && both[0].file == both[1].file);
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(at("leaf.crt", leaf.pem())[0].authority_key_id, id);
        assert!(at("nothing.crt", "x".into()).is_empty());
    }
}
