//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction.

use base64::Engine as _;
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Attributes, Operation};
use crate::authn::view::str_at;
use crate::authz::Query;
use crate::error::{ApiError, Cause, Result};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";

/// Who a request is for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

/// Reads the PKCS#10 request of a CertificateSigningRequest; the error is a sentence's tail.
pub fn request_of(csr: &Value) -> Result<Subject, String> {
    let encoded = str_at(csr, "/spec/request");
    let pem = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|_| "must be base64".to_string())?;
    let (_, block) =
        x509_parser::pem::parse_x509_pem(&pem).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_string())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".into());
    }
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| format!("is not a PKCS#10 request: {e}"))?;
    let subject = &request.certification_request_info.subject;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_string();
    Ok(Subject {
        common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
    })
}

/// What is wrong with the certificates of a CertificateSigningRequest, in upstream's words.
fn certificate_fault(csr: &Value) -> Option<String> {
    let encoded = str_at(csr, "/status/certificate");
    if encoded.is_empty() {
        return None;
    }
    let none = || Some("must contain one or more CERTIFICATE PEM blocks".to_string());
    let Ok(pem) = base64::engine::general_purpose::STANDARD.decode(encoded) else { return none() };
    // No line of base64 has a colon; the reader below takes such a line for damage.
    let mut within = false;
    for line in String::from_utf8_lossy(&pem).lines() {
        within = line.starts_with("-----BEGIN ") || (within && !line.starts_with("-----END "));
        if within && line.contains(':') {
            return Some("no PEM block headers are permitted".into());
        }
    }
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(&pem) {
        let Ok(block) = block else { return none() };
        if block.label != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        let mut rest = block.contents.as_slice();
        if rest.is_empty() {
            return Some("found CERTIFICATE PEM block containing 0 certificates".into());
        }
        while !rest.is_empty() {
            match X509Certificate::from_der(rest) {
                Ok((after, _)) => rest = after,
                Err(error) => return Some(format!("x509: malformed certificate: {error}")),
            }
        }
        blocks += 1;
    }
    if blocks == 0 { none() } else { None }
}

/// Refuses a status whose certificates are none; one that was stored so may stay.
fn certificate_is_sound(new: &Value, old: Option<&Value>) -> Result<()> {
    let Some(fault) = certificate_fault(new).filter(|_| old.is_none_or(|old| certificate_fault(old).is_none())) else {
        return Ok(());
    };
    let cause = Cause::invalid("status.certificate", &"<certificate data>".into(), &fault);
    Err(ApiError::invalid(GROUP, "CertificateSigningRequest", str_at(new, "/metadata/name"), vec![cause]))
}

/// Checks a write of a request or of its approval or status.
pub fn check(at: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    if at.info.group != GROUP || at.info.resource != REQUESTS {
        return Ok(());
    }
    match (at.operation, at.info.subresource.as_str()) {
        (Operation::Create, "") => subject_restriction(at, new),
        (Operation::Update, "approval") => signer_permission(at, "approve", old.unwrap_or(new)),
        (Operation::Update, "status") => {
            if signs(new, old) {
                signer_permission(at, "sign", old.unwrap_or(new))?;
            }
            certificate_is_sound(new, old)
        }
        _ => Ok(()),
    }
}

fn signs(new: &Value, old: Option<&Value>) -> bool {
    let failed = |o: &Value| {
        o.pointer("/status/conditions")
            .and_then(Value::as_array)
            .map_or(0, |c| c.iter().filter(|c| c["type"] == "Failed").count())
    };
    let certificate = |o: &Value| str_at(o, "/status/certificate").to_string();
    old.is_none_or(|old| certificate(old) != certificate(new) || failed(old) != failed(new))
}

fn signer_permission(at: &Attributes<'_>, verb: &str, csr: &Value) -> Result<()> {
    let signer = str_at(csr, "/spec/signerName");
    let wildcard = format!("{}/*", signer.split('/').next().unwrap_or_default());
    let may = |name: &str| {
        let query = Query {
            verb,
            group: GROUP,
            version: "*",
            resource: "signers",
            name,
            is_resource: true,
            ..Query::empty(at.user)
        };
        at.state.authz.allowed(at.view(), &query)
    };
    if may(signer) || may(&wildcard) {
        return Ok(());
    }
    Err(at.forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

fn subject_restriction(at: &Attributes<'_>, new: &Value) -> Result<()> {
    if str_at(new, "/spec/signerName") != "kubernetes.io/kube-apiserver-client" {
        return Ok(());
    }
    // Unreadable requests are validation's to refuse.
    let masters = request_of(new).is_ok_and(|s| s.organizations.iter().any(|o| o == "system:masters"));
    if masters {
        let detail = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
        return Err(at.forbidden(detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_holds_certificates_only() {
        let key = rcgen::KeyPair::generate().expect("key");
        let pem = rcgen::CertificateParams::default().self_signed(&key).expect("certificate").pem();
        let csr = |text: &str| {
            let data = base64::engine::general_purpose::STANDARD.encode(text);
            json!({"metadata": {"name": "c"}, "status": {"certificate": data}})
        };
        let block = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}-----END {label}-----\n");
        for fine in ["", &pem, &format!("{pem}{pem}"), &format!("a comment: here\n{pem}")] {
            assert_eq!(certificate_fault(&csr(fine)), None, "{fine}");
        }
        let second = format!("{pem}{}", block("CERTIFICATE", "AAAA\n"));
        for (bad, said) in [
            ("hello", "must contain one or more CERTIFICATE PEM blocks"),
            (&pem[..pem.len() / 2], "must contain one or more CERTIFICATE PEM blocks"),
            (&key.serialize_pem()[..], "only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\""),
            (&pem.replacen("-----\n", "-----\na: b\n\n", 1)[..], "no PEM block headers are permitted"),
            (&block("CERTIFICATE", "")[..], "containing 0 certificates"),
            (&second[..], "x509: malformed certificate"),
        ] {
            let error = certificate_is_sound(&csr(bad), None).expect_err(bad).to_string();
            assert!(error.contains("status.certificate: Invalid value: \"<certificate data>\": "), "{error}");
            assert!(error.contains(said), "{bad}: {error}");
            // What an older server took does not keep its conditions from being written.
            assert!(certificate_is_sound(&csr(bad), Some(&csr(bad))).is_ok());
        }
    }

    #[test]
    fn reads_requests() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:w1");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        let pem = params.serialize_request(&key).expect("request").pem().expect("pem");
        let csr = |text: &str| json!({"spec": {"request": base64::engine::general_purpose::STANDARD.encode(text)}});
        let subject = request_of(&csr(&pem)).expect("subject");
        assert_eq!(subject.common_name, "system:node:w1");
        assert_eq!(subject.organizations, ["system:nodes"]);
        for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(request_of(&csr(bad)).is_err(), "{bad}");
        }
    }
}
