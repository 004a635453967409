//! The certificates on this node.

use node_api::Certificate;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use x509_parser::extensions::GeneralName;

const FOLDERS: [&str; 4] = ["/run/kimg/config/pki", "/run/kimg/pki", "/var/lib/kimg/pki", "/var/lib/kimg/node-api"];

/// All of them, by file.
pub fn all() -> Vec<Certificate> {
    let mut files: Vec<PathBuf> = FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "crt"))
        .collect();
    files.sort();
    files.iter().filter_map(|path| read(path)).collect()
}

/// Whose certificate it is.
pub(super) fn subject(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.subject().to_string())
}

fn read(path: &Path) -> Option<Certificate> {
    let pem = std::fs::read(path).ok()?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let certificate = block.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let sans = names.map(|names| names.value.general_names.iter().filter_map(name).collect()).unwrap_or_default();
    let date = |seconds| jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default();
    Some(Certificate {
        file: path.display().to_string(),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        sans,
        not_before: date(certificate.validity().not_before.timestamp()),
        not_after: date(certificate.validity().not_after.timestamp()),
        sha256: Sha256::digest(&block.contents).iter().map(|byte| format!("{byte:02x}")).collect(),
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
