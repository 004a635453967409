//! `kimg pki show`: what stands in a certificate, as text or as cfssl-certinfo's JSON.

use crate::input;
use crate::logs::line::harmless;
use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::path::Path;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::x509::X509Name;

/// A distinguished name.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Name {
    /// CN
    #[serde(skip_serializing_if = "String::is_empty")]
    pub common_name: String,
    /// First O
    #[serde(skip_serializing_if = "String::is_empty")]
    pub organization: String,
    /// Every value in order.
    pub names: Vec<String>,
    #[serde(skip)]
    full: String,
}

impl Name {
    /// As one text: `O=…, CN=…`.
    pub fn text(&self) -> &str {
        &self.full
    }
}

/// A certificate, field names as cfssl-certinfo has them.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// Whom it speaks for.
    pub subject: Name,
    /// Who signed it.
    pub issuer: Name,
    /// Serial number, decimal.
    pub serial_number: String,
    /// Names and addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sans: Vec<String>,
    /// Start, RFC 3339.
    pub not_before: String,
    /// End, RFC 3339.
    pub not_after: String,
    /// Signature algorithm.
    pub sigalg: String,
    /// Key usages, extended ones included.
    pub usages: Vec<String>,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// Hex with colons.
    pub authority_key_id: String,
    /// Hex with colons.
    pub subject_key_id: String,
    /// The certificate.
    pub pem: String,
    #[serde(skip)]
    days_left: i64,
}

/// All certificates of a PEM file or a kubeconfig.
pub fn read(path: &Path) -> Result<Vec<Info>> {
    let text = input::bytes(path, input::SMALL)?;
    let blocks = std::iter::once(text.clone()).chain(embedded(&String::from_utf8_lossy(&text)));
    let mut found = Vec::new();
    for block in blocks {
        let Some(more) = certificates_of_pem(&block) else {
            return input::bad(format!("{} holds a damaged certificate", path.display()));
        };
        found.extend(more);
    }
    if found.is_empty() {
        let what = "name a PEM file (-----BEGIN CERTIFICATE-----) or a kubeconfig";
        return input::bad(format!("{} holds no certificate; {what}", path.display()));
    }
    Ok(found)
}

/// The base64 values of `…-certificate-data` and `certificate-authority-data` of a kubeconfig.
fn embedded(text: &str) -> Vec<Vec<u8>> {
    text.lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(key, _)| key.ends_with("certificate-data") || key.ends_with("authority-data"))
        .filter_map(|(_, value)| STANDARD.decode(value.trim().trim_matches('"')).ok())
        .collect()
}

/// None where one cannot be read.
fn certificates_of_pem(bytes: &[u8]) -> Option<Vec<Info>> {
    let mut found = Vec::new();
    // Without a BEGIN the reader has no blocks; what it cannot read after one is damaged.
    for pem in Pem::iter_from_buffer(bytes) {
        let pem = match pem {
            Ok(pem) => pem,
            Err(_) if !bytes.windows(11).any(|part| part == b"-----BEGIN ") => break,
            Err(_) => return None,
        };
        if pem.label == "CERTIFICATE" {
            let certificate = pem.parse_x509().ok()?;
            found.push(info(&certificate, &pem.contents));
        }
    }
    Some(found)
}

fn info(certificate: &X509Certificate<'_>, der: &[u8]) -> Info {
    let validity = certificate.validity();
    let (usages, ids, sans, is_ca) = extensions(certificate);
    Info {
        subject: name(certificate.subject()),
        issuer: name(certificate.issuer()),
        serial_number: certificate.serial.to_string(),
        sans,
        not_before: rfc3339(validity.not_before.timestamp()),
        not_after: rfc3339(validity.not_after.timestamp()),
        sigalg: signature(&certificate.signature_algorithm.algorithm.to_id_string()),
        usages,
        is_ca,
        authority_key_id: ids.0,
        subject_key_id: ids.1,
        pem: pem_text(der),
        days_left: (validity.not_after.timestamp() - jiff::Timestamp::now().as_second()) / 86400,
    }
}

fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

fn signature(oid: &str) -> String {
    match oid {
        "1.2.840.10045.4.3.2" => "ECDSAWithSHA256",
        "1.2.840.10045.4.3.3" => "ECDSAWithSHA384",
        "1.2.840.113549.1.1.11" => "SHA256WithRSA",
        "1.3.101.112" => "Ed25519",
        other => other,
    }
    .to_string()
}

fn name(name: &X509Name<'_>) -> Name {
    let text = |value: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        value.and_then(|v| v.as_str().ok()).unwrap_or_default().to_string()
    };
    Name {
        common_name: text(name.iter_common_name().next()),
        organization: text(name.iter_organization().next()),
        names: name.iter_attributes().filter_map(|a| a.as_str().ok()).map(str::to_string).collect(),
        full: name.to_string(),
    }
}

fn extensions(certificate: &X509Certificate<'_>) -> (Vec<String>, (String, String), Vec<String>, bool) {
    let mut usages = Vec::new();
    let mut ids = (String::new(), String::new());
    let mut sans = Vec::new();
    let mut is_ca = false;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => {
                usages.extend(usage.to_string().split(", ").map(str::to_string));
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let known = [(usage.server_auth, "Server Auth"), (usage.client_auth, "Client Auth")];
                usages.extend(known.iter().filter(|(on, _)| *on).map(|(_, name)| name.to_string()));
                usages.extend(usage.other.iter().map(|oid| oid.to_id_string()));
            }
            ParsedExtension::BasicConstraints(constraints) => is_ca = constraints.ca,
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                ids.0 = id.key_identifier.as_ref().map(|k| colons(k.0)).unwrap_or_default();
            }
            ParsedExtension::SubjectKeyIdentifier(id) => ids.1 = colons(id.0),
            ParsedExtension::SubjectAlternativeName(names) => {
                sans.extend(names.general_names.iter().map(general_name));
            }
            _ => {}
        }
    }
    (usages, ids, sans, is_ca)
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_string(),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
            (_, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
            _ => hex::encode(bytes),
        },
        GeneralName::URI(uri) => (*uri).to_string(),
        GeneralName::RFC822Name(mail) => (*mail).to_string(),
        other => other.to_string(),
    }
}

fn colons(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02X}")).collect();
    hex.join(":")
}

fn pem_text(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let lines: Vec<&str> =
        (0..encoded.len()).step_by(64).map(|start| &encoded[start..encoded.len().min(start + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Certificates as a table, each with the file that it stands in.
pub fn table(found: &[(String, Info)]) -> String {
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(file, info)| {
            let cells = [file, &info.subject.full, &info.not_before, &info.not_after, &left(info)];
            cells.map(ToString::to_string).to_vec()
        })
        .collect();
    crate::table::render(&["FILE", "SUBJECT", "NOT BEFORE", "NOT AFTER", "LEFT"], &rows)
}

fn left(info: &Info) -> String {
    match info.days_left {
        days if days < 0 => "EXPIRED".to_string(),
        0 => "less than a day".to_string(),
        days => format!("{days} days"),
    }
}

/// The readable form.
pub fn text(info: &Info) -> String {
    let mut lines = vec![
        format!("  subject     {}", info.subject.full),
        format!("  issuer      {}", info.issuer.full),
        format!("  serial      {}", info.serial_number),
        format!("  valid       {} to {} (left: {})", info.not_before, info.not_after, left(info)),
        format!("  usage       {}{}", info.usages.join(", "), if info.is_ca { " (authority)" } else { "" }),
        format!("  signature   {}", info.sigalg),
    ];
    if !info.sans.is_empty() {
        lines.push(format!("  names       {}", info.sans.join(", ")));
    }
    // Whoever made the certificate wrote what stands in it.
    lines.iter().map(|line| harmless(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_a_readable_certificate_are_mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.crt");
        let cases = [
            ("# Notes\n", "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a damaged certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "a damaged certificate"),
        ];
        for (text, said) in cases {
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err();
            assert!(error.is::<input::BadInput>() && error.to_string().contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_clusters_certificates_make_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("secrets");
        crate::pki::Secrets::ensure(&place, "demo").unwrap();
        let info = read(&place.join("cluster-ca.crt")).unwrap().remove(0);
        let text = table(&[("cluster-ca.crt".into(), info)]);
        assert!(text.contains("CN=demo cluster-ca") && text.contains(" days"), "{text}");
    }

    #[test]
    fn a_certificate_steers_no_terminal() {
        let mut params = rcgen::CertificateParams::new(vec!["a\u{1b}[2J.example".to_string()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "x\n\u{1b}]0;title\u{7}\u{202e}");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let info = certificates_of_pem(certificate.pem().as_bytes()).unwrap().remove(0);
        let shown = text(&info);
        assert!(!shown.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{shown:?}");
        assert_eq!(shown.lines().count(), 7, "{shown}");
        assert!(shown.contains("CN=x\\n\\u{1b}]0;title"), "{shown}");
        assert!(!table(&[("f".into(), info)]).contains('\u{1b}'));
    }
}
