//! A certificate request, taken apart.

use std::net::IpAddr;

use anyhow::{Context, bail};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::prelude::FromDer;

/// What a request asks for. Its signature has been checked.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// DER of the subject, as it goes into the certificate.
    pub subject: Vec<u8>,
    /// DER of the public key.
    pub public_key: Vec<u8>,
    /// DER of the value of the subject alternative name extension, empty where there is none.
    pub names: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// URIs, mail addresses and other names.
    pub other_names: usize,
}

impl Request {
    pub fn parse(pem: &[u8]) -> anyhow::Result<Self> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem).context("spec.request is no PEM")?;
        if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
            bail!("spec.request holds {:?} instead of a CERTIFICATE REQUEST", block.label);
        }
        let (_, csr) =
            X509CertificationRequest::from_der(&block.contents).context("spec.request is no certificate request")?;
        if csr.verify_signature().is_err() {
            bail!("spec.request is not signed by its own key");
        }
        let info = &csr.certification_request_info;
        let texts =
            |oid| info.subject.iter_by_oid(oid).filter_map(|a| a.as_str().ok().map(str::to_owned)).collect::<Vec<_>>();
        let mut request = Self {
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            common_name: texts(&OID_X509_COMMON_NAME).pop().unwrap_or_default(),
            organizations: texts(&OID_X509_ORGANIZATION_NAME),
            ..Self::default()
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                request.take_names(&names.general_names)?;
            }
        }
        Ok(request)
    }

    fn take_names(&mut self, names: &[GeneralName<'_>]) -> anyhow::Result<()> {
        use crate::certificates::der;
        let mut content = Vec::new();
        for name in names {
            match name {
                GeneralName::DNSName(dns) => {
                    content.extend(der::tagged(0x82, dns.as_bytes()));
                    self.dns_names.push((*dns).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    content.extend(der::tagged(0x87, bytes));
                    self.addresses.push(address(bytes)?);
                }
                GeneralName::RFC822Name(mail) => {
                    content.extend(der::tagged(0x81, mail.as_bytes()));
                    self.other_names += 1;
                }
                GeneralName::URI(uri) => {
                    content.extend(der::tagged(0x86, uri.as_bytes()));
                    self.other_names += 1;
                }
                other => bail!("spec.request asks for a name of a kind that is not signed: {other:?}"),
            }
        }
        self.names = der::tagged(der::SEQUENCE, &content);
        Ok(())
    }
}

fn address(bytes: &[u8]) -> anyhow::Result<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(four));
    }
    if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(sixteen));
    }
    bail!("spec.request has an IP address of {} bytes", bytes.len())
}
