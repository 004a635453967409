//! Signs certificate requests with the cluster's CA.

use std::path::Path;

use anyhow::{Context, bail};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::der;
use super::request::Request;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Certificates begin a little earlier than now, for clocks that are behind; short-lived ones by less.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
const SHORTEST_SECS: i64 = 600;

const OID_KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const OID_EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const OID_BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const OID_AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];
const OID_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
const TRUE: [u8; 3] = [0x01, 0x01, 0xff];

pub fn is_ours(signer: &str) -> bool {
    [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY].contains(&signer)
}

/// The CA.
pub struct Issuer {
    key: KeyPair,
    /// DER of its subject.
    name: Vec<u8>,
    key_identifier: Option<Vec<u8>>,
    not_after: i64,
    longest_secs: i64,
}

impl Issuer {
    pub fn load(certificate: &Path, key: &Path, longest_secs: u64) -> anyhow::Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("reading signing CA file {}", path.display()))
        };
        let (certificate_pem, key_pem) = (read(certificate)?, read(key)?);
        let key_pair = private_key(&key_pem).with_context(|| format!("reading the key {}", key.display()))?;
        let (_, block) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes())
            .with_context(|| format!("parsing certificate {}", certificate.display()))?;
        let (_, x509) = x509_parser::certificate::X509Certificate::from_der(&block.contents)
            .with_context(|| format!("parsing certificate {}", certificate.display()))?;
        if x509.public_key().raw != key_pair.subject_public_key_info() {
            bail!("{} is not the key of {}", key.display(), certificate.display());
        }
        let key_identifier = x509.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            name: x509.subject().as_raw().to_vec(),
            not_after: x509.validity().not_after.timestamp(),
            key_identifier,
            key: key_pair,
            longest_secs: i64::try_from(longest_secs).unwrap_or(i64::MAX),
        })
    }

    /// The certificate for the request, as PEM.
    pub fn sign(
        &self,
        spec: &CertificateSigningRequestSpec,
        request: &Request,
        now: Timestamp,
    ) -> anyhow::Result<String> {
        check(spec, request)?;
        let wanted = spec.expiration_seconds.map_or(self.longest_secs, |s| i64::from(s).max(SHORTEST_SECS));
        let end = (now.as_second() + wanted.min(self.longest_secs)).min(self.not_after);
        let backdate = BACKDATE.min(SignedDuration::from_secs(self.longest_secs / 10));
        let begin = now.checked_sub(backdate).context("the clock is at the beginning of time")?;
        let end = Timestamp::from_second(end).context("the certificate would end after the end of time")?;
        let mut serial: [u8; 16] = rand::random();
        // Positive, and never zero.
        serial[0] = serial[0] & 0x7f | 0x40;

        let algorithm = self.algorithm()?;
        let body = der::sequence(&[
            &der::tagged(0xa0, &der::integer(&[2])),
            &der::integer(&serial),
            &algorithm,
            &self.name,
            &der::sequence(&[&der::time(begin), &der::time(end)]),
            &request.subject,
            &request.public_key,
            &der::tagged(0xa3, &self.extensions(spec, request)),
        ]);
        let signature = self.key.sign(&body).context("using the CA's key")?;
        let certificate = der::sequence(&[&body, &algorithm, &der::bits(&signature, 0)]);
        Ok(pem(&certificate))
    }

    fn algorithm(&self) -> anyhow::Result<Vec<u8>> {
        let used = self.key.algorithm();
        let null: &[u8] = &[5, 0];
        let (numbers, parameters): (&[u64], &[u8]) = if *used == rcgen::PKCS_ECDSA_P256_SHA256 {
            (&[1, 2, 840, 10045, 4, 3, 2], &[])
        } else if *used == rcgen::PKCS_ECDSA_P384_SHA384 {
            (&[1, 2, 840, 10045, 4, 3, 3], &[])
        } else if *used == rcgen::PKCS_ED25519 {
            (&[1, 3, 101, 112], &[])
        } else if *used == rcgen::PKCS_RSA_SHA256 {
            (&[1, 2, 840, 113549, 1, 1, 11], null)
        } else {
            bail!("the signing CA's key is of a kind that cannot sign here; use P-256, P-384, Ed25519 or RSA")
        };
        Ok(der::sequence(&[&der::oid(numbers), parameters]))
    }

    fn extensions(&self, spec: &CertificateSigningRequestSpec, request: &Request) -> Vec<u8> {
        let usages = spec.usages.as_deref().unwrap_or_default();
        let mut all = Vec::new();
        all.extend(extension(OID_KEY_USAGE, true, &key_usage(usages)));
        let extended: Vec<u8> = usages.iter().filter_map(|u| extended_usage(u)).flat_map(|n| der::oid(&n)).collect();
        if !extended.is_empty() {
            all.extend(extension(OID_EXTENDED_KEY_USAGE, false, &der::tagged(der::SEQUENCE, &extended)));
        }
        all.extend(extension(OID_BASIC_CONSTRAINTS, true, &der::sequence(&[])));
        if let Some(id) = &self.key_identifier {
            all.extend(extension(OID_AUTHORITY_KEY, false, &der::sequence(&[&der::tagged(0x80, id)])));
        }
        if !request.names.is_empty() {
            all.extend(extension(OID_ALTERNATIVE_NAME, false, &request.names));
        }
        der::tagged(der::SEQUENCE, &all)
    }
}

/// Algorithm of an RSA key; and of keys on P-256 and P-384, with the curve.
const RSA: (&[u64], Option<&[u64]>) = (&[1, 2, 840, 113549, 1, 1, 1], None);
const EC: [(&[u64], Option<&[u64]>); 2] = [
    (&[1, 2, 840, 10045, 2, 1], Some(&[1, 2, 840, 10045, 3, 1, 7])),
    (&[1, 2, 840, 10045, 2, 1], Some(&[1, 3, 132, 0, 34])),
];

/// The first private key of a PEM file: in PKCS#8, or in the older forms, PKCS#1 (RSA) and SEC1 (EC).
fn private_key(pem: &str) -> anyhow::Result<KeyPair> {
    let blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes());
    let block = blocks.filter_map(Result::ok).find(|b| b.label.ends_with("PRIVATE KEY"));
    let found = block.and_then(|block| {
        let forms = match block.label.as_str() {
            "RSA PRIVATE KEY" => vec![pkcs8(RSA, &block.contents)],
            // The curve need not be in it: only the right one fits.
            "EC PRIVATE KEY" => EC.map(|curve| pkcs8(curve, &block.contents)).to_vec(),
            _ => vec![block.contents],
        };
        forms.into_iter().find_map(|form| KeyPair::try_from(form).ok())
    });
    found.context(
        "it must be P-256, P-384, Ed25519 or RSA of 2048 bits or more, in PEM and not encrypted; this makes one of \
         another form fit: openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW",
    )
}

/// The older form of a key in the newer one.
fn pkcs8((kind, curve): (&[u64], Option<&[u64]>), key: &[u8]) -> Vec<u8> {
    let parameters = curve.map_or(vec![5, 0], der::oid);
    let algorithm = der::sequence(&[&der::oid(kind), &parameters]);
    der::sequence(&[&der::integer(&[0]), &algorithm, &der::octets(key)])
}

fn extension(oid: &[u64], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &TRUE } else { &[] };
    der::sequence(&[&der::oid(oid), critical, &der::octets(value)])
}

/// Bits of the key usage extension, in the order of the standard.
const KEY_USAGES: [&str; 9] = [
    "digital signature",
    "content commitment",
    "key encipherment",
    "data encipherment",
    "key agreement",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
];

fn key_usage(usages: &[String]) -> Vec<u8> {
    let mut bits: u16 = 0;
    for usage in usages {
        let usage = if usage == "signing" { "digital signature" } else { usage.as_str() };
        if let Some(bit) = KEY_USAGES.iter().position(|u| *u == usage) {
            bits |= 0x8000 >> bit;
        }
    }
    let bytes = bits.to_be_bytes();
    let used = if bits & 0xff == 0 { &bytes[..1] } else { &bytes[..] };
    let unused = if used.len() == 1 { used[0].trailing_zeros().min(7) } else { used[1].trailing_zeros().min(7) };
    der::bits(used, unused as u8)
}

fn extended_usage(usage: &str) -> Option<Vec<u64>> {
    let last = match usage {
        "server auth" => 1,
        "client auth" => 2,
        "code signing" => 3,
        "email protection" | "s/mime" => 4,
        "ipsec end system" => 5,
        "ipsec tunnel" => 6,
        "ipsec user" => 7,
        "timestamping" => 8,
        "ocsp signing" => 9,
        _ => return None,
    };
    Some(vec![1, 3, 6, 1, 5, 5, 7, 3, last])
}

/// What each signer refuses, whoever approved.
fn check(spec: &CertificateSigningRequestSpec, request: &Request) -> anyhow::Result<()> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let only = |allowed: &[&str], needed: &str| -> anyhow::Result<()> {
        if let Some(other) = usages.iter().find(|u| !allowed.contains(&u.as_str())) {
            bail!("usage {other:?} is not signed by {}", spec.signer_name);
        }
        if !usages.iter().any(|u| u == needed) {
            bail!("{} signs only what has the usage {needed:?}", spec.signer_name);
        }
        Ok(())
    };
    let is_node = request.organizations == ["system:nodes"] && request.common_name.starts_with("system:node:");
    match spec.signer_name.as_str() {
        CLIENT => {
            if request.organizations.iter().any(|o| o == "system:masters") {
                bail!("{CLIENT} signs nothing for the group system:masters");
            }
            only(&["digital signature", "key encipherment", "client auth"], "client auth")
        }
        KUBELET_CLIENT => {
            if !is_node {
                bail!("the subject must be O=system:nodes, CN=system:node:NAME");
            }
            if !request.names.is_empty() {
                bail!("a kubelet's client certificate has no alternative names");
            }
            only(&["digital signature", "key encipherment", "client auth"], "client auth")
        }
        KUBELET_SERVING => {
            if !is_node {
                bail!("the subject must be O=system:nodes, CN=system:node:NAME");
            }
            if request.other_names > 0 || (request.dns_names.is_empty() && request.addresses.is_empty()) {
                bail!("a kubelet's serving certificate has at least one DNS name or IP address, and no other names");
            }
            only(&["digital signature", "key encipherment", "server auth"], "server auth")
        }
        _ => Ok(()),
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, SanType};
    use x509_parser::prelude::X509Certificate;

    fn issuer(folder: &Path) -> Issuer {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let certificate = params.self_signed(&key).unwrap();
        let (c, k) = (folder.join("ca.crt"), folder.join("ca.key"));
        // In a rotation the one that signs comes first.
        let other = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(&c, certificate.pem() + &other.pem()).unwrap();
        std::fs::write(&k, key.serialize_pem()).unwrap();
        Issuer::load(&c, &k, 1000).unwrap()
    }

    #[test]
    fn certificate_carries_subject_names_and_usages() {
        let folder = std::env::temp_dir().join(format!("kimg-issue-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let issuer = issuer(&folder);
        let ca_pem = std::fs::read(folder.join("ca.crt")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:w1");
        params.subject_alt_names = vec![SanType::IpAddress("10.0.0.1".parse().unwrap())];
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = Request::parse(pem.as_bytes()).unwrap();
        assert_eq!(request.common_name, "system:node:w1");
        let spec = CertificateSigningRequestSpec {
            signer_name: KUBELET_SERVING.into(),
            usages: Some(vec!["digital signature".into(), "server auth".into()]),
            ..CertificateSigningRequestSpec::default()
        };
        let now = Timestamp::now();
        let pem = issuer.sign(&spec, &request, now).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&block.contents).unwrap();
        let (_, ca_block) = x509_parser::pem::parse_x509_pem(&ca_pem).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca_block.contents).unwrap();
        certificate.verify_signature(Some(ca.public_key())).unwrap();
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.server_auth);
        assert!(certificate.key_usage().unwrap().unwrap().value.digital_signature());
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert_eq!(certificate.validity().not_after.timestamp(), now.as_second() + 1000);
    }

    fn pem_of(kind: &str, der: &[u8]) -> String {
        pem(der).replace("CERTIFICATE", kind)
    }

    #[test]
    fn the_cas_key_in_every_form() {
        use rsa::pkcs1::EncodeRsaPrivateKey;
        use rsa::pkcs8::EncodePrivateKey;
        let rsa = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let mut pairs = vec![(
            pem_of("PRIVATE KEY", rsa.to_pkcs8_der().unwrap().as_bytes()),
            pem_of("RSA PRIVATE KEY", rsa.to_pkcs1_der().unwrap().as_bytes()),
        )];
        let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
        for (kind, (_, curve)) in kinds.into_iter().zip(EC) {
            let key = KeyPair::generate_for(kind).unwrap().serialize_der();
            // SEC1 begins with the number 1 and the secret; then OpenSSL writes the curve, and also before it.
            let body = &key[key.windows(4).position(|w| w == [2, 1, 1, 4]).unwrap()..];
            let (secret, public) = body.split_at(5 + usize::from(body[4]));
            let curve = der::oid(curve.unwrap());
            let openssl = der::sequence(&[secret, &der::tagged(0xa0, &curve), public]);
            let new = pem_of("PRIVATE KEY", &key);
            pairs.push((new.clone(), pem_of("EC PARAMETERS", &curve) + &pem_of("EC PRIVATE KEY", &openssl)));
            pairs.push((new, pem_of("EC PRIVATE KEY", &der::sequence(&[body]))));
        }
        for (new, old) in pairs {
            let (new, old) = (private_key(&new).unwrap(), private_key(&old).unwrap());
            assert_eq!(new.subject_public_key_info(), old.subject_public_key_info());
            assert!(old.sign(b"x").is_ok());
        }
        for bad in ["nonsense", &pem_of("ENCRYPTED PRIVATE KEY", &[0x30, 0]), &pem_of("EC PRIVATE KEY", &[0x30, 0])] {
            let Err(error) = private_key(bad) else { panic!("{bad} was taken") };
            assert!(error.to_string().contains("openssl pkcs8 -topk8 -nocrypt -in"), "{error}");
        }
    }

    #[test]
    fn nobody_becomes_master_by_request() {
        let request = Request { organizations: vec!["system:masters".into()], ..Request::default() };
        let spec = CertificateSigningRequestSpec {
            signer_name: CLIENT.into(),
            usages: Some(vec!["client auth".into()]),
            ..CertificateSigningRequestSpec::default()
        };
        assert!(check(&spec, &request).is_err());
    }
}
