//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction.

use base64::Engine as _;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Attributes, Operation};
use crate::authn::view::str_at;
use crate::authz::Query;
use crate::error::Result;

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

/// Checks a write of a request or of its approval or status.
pub fn check(at: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    if at.info.group != GROUP || at.info.resource != REQUESTS {
        return Ok(());
    }
    match (at.operation, at.info.subresource.as_str()) {
        (Operation::Create, "") => subject_restriction(at, new),
        (Operation::Update, "approval") => signer_permission(at, "approve", old.unwrap_or(new)),
        (Operation::Update, "status") if signs(new, old) => signer_permission(at, "sign", old.unwrap_or(new)),
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
