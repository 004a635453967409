//! Signing and verifying JSON web tokens with the cluster's service-account keys.
//!
//! New tokens are signed with the one private key (P-256: ES256, RSA: RS256);
//! every public key that was given is accepted, so that keys can be rotated.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// DER in front of the 65 bytes of an uncompressed P-256 point.
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// DER between the length of a P-256 key in PKCS#8 and its SEC1 form.
const P256_PKCS8_HEAD: [u8; 24] = [
    0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// DER between the length of a SubjectPublicKeyInfo and its BIT STRING, for RSA.
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

const NO_PUBLIC: &str = "it holds neither public keys in PEM (BEGIN PUBLIC KEY) nor a private one; this makes one of RSA's \
                         older form fit: openssl rsa -RSAPublicKey_in -pubout -in KEY -out NEW; and this takes one out of \
                         a certificate: openssl x509 -noout -pubkey -in CERTIFICATE";

/// Why a key could not be used or a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// The key file cannot be used.
    #[error("service-account key: {0}")]
    Key(String),
    /// The token is not a compact JWS.
    #[error("token is malformed: {0}")]
    Malformed(&'static str),
    /// The token is signed by nobody we know.
    #[error("token's signature does not match any service-account key")]
    Signature,
}

enum Private {
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

enum Public {
    /// Uncompressed point.
    Ec(Vec<u8>),
    /// DER of RSAPublicKey, modulus, exponent.
    Rsa { pkcs1: Vec<u8>, n: Vec<u8>, e: Vec<u8> },
}

struct PublicEntry {
    kid: String,
    key: Public,
}

/// The private key and all accepted public keys.
pub struct Keys {
    private: Private,
    kid: String,
    public: Vec<PublicEntry>,
    rng: SystemRandom,
}

impl Keys {
    /// Takes the signing key (PEM: PKCS#8, PKCS#1 or SEC1).
    pub fn from_pem(private_pem: &[u8]) -> Result<Self, JwtError> {
        let rng = SystemRandom::new();
        let (private, spki) = load_private(private_pem, &rng)?;
        let own = public_entry(&spki)?;
        Ok(Self { private, kid: own.kid.clone(), public: vec![own], rng })
    }

    /// Takes further keys that tokens are checked with (PEM: any number of public ones, or a private one, whose public
    /// half is taken).
    pub fn accept(&mut self, pem: &[u8]) -> Result<(), JwtError> {
        let items: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(pem).collect();
        let mut items = items.map_err(|e| JwtError::Key(format!("a public key is not PEM: {e}")))?;
        if items.is_empty() {
            let private = load_private(pem, &self.rng).map_err(|_| JwtError::Key(NO_PUBLIC.into()))?;
            items.push(private.1.into());
        }
        for item in items {
            let entry = public_entry(&item)?;
            if self.public.iter().all(|p| p.kid != entry.kid) {
                self.public.push(entry);
            }
        }
        Ok(())
    }

    /// The algorithm new tokens are signed with.
    pub fn algorithm(&self) -> &'static str {
        match self.private {
            Private::Ec(_) => "ES256",
            Private::Rsa(_) => "RS256",
        }
    }

    /// All algorithms in use, for the discovery document.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut out: Vec<_> = self.public.iter().map(|p| p.key.algorithm()).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// Signs claims into a compact token.
    pub fn sign(&self, claims: &Value) -> Result<String, JwtError> {
        let header = json!({"alg": self.algorithm(), "kid": self.kid});
        let mut token = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature = match &self.private {
            Private::Ec(key) => key
                .sign(&self.rng, token.as_bytes())
                .map_err(|_| JwtError::Key("signing failed".into()))?
                .as_ref()
                .to_vec(),
            Private::Rsa(key) => {
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &self.rng, token.as_bytes(), &mut out)
                    .map_err(|_| JwtError::Key("signing failed".into()))?;
                out
            }
        };
        token.push('.');
        token.push_str(&B64.encode(signature));
        Ok(token)
    }

    /// Checks the signature and returns the claims; dates and audience are the caller's.
    pub fn verify(&self, token: &str) -> Result<Value, JwtError> {
        let (signed, sig) = token.rsplit_once('.').ok_or(JwtError::Malformed("not three parts"))?;
        let (header, payload) = signed.split_once('.').ok_or(JwtError::Malformed("not three parts"))?;
        let header = decode_json(header)?;
        let alg = header["alg"].as_str().unwrap_or_default();
        let kid = header["kid"].as_str();
        let sig = B64.decode(sig).map_err(|_| JwtError::Malformed("signature is not base64url"))?;
        let known = self
            .public
            .iter()
            .filter(|p| p.key.algorithm() == alg && kid.is_none_or(|k| k == p.kid))
            .any(|p| p.key.verify(signed.as_bytes(), &sig));
        if !known {
            return Err(JwtError::Signature);
        }
        decode_json(payload)
    }

    /// The key set document of `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.public.iter().map(PublicEntry::jwk).collect();
        json!({"keys": keys})
    }
}

impl Public {
    fn algorithm(&self) -> &'static str {
        match self {
            Public::Ec(_) => "ES256",
            Public::Rsa { .. } => "RS256",
        }
    }

    fn verify(&self, message: &[u8], sig: &[u8]) -> bool {
        match self {
            Public::Ec(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, sig).is_ok()
            }
            Public::Rsa { pkcs1, .. } => {
                UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, pkcs1).verify(message, sig).is_ok()
            }
        }
    }
}

impl PublicEntry {
    fn jwk(&self) -> Value {
        match &self.key {
            Public::Ec(point) => json!({
                "use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256",
                "x": B64.encode(&point[1..33]), "y": B64.encode(&point[33..65]),
            }),
            Public::Rsa { n, e, .. } => json!({
                "use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256", "n": B64.encode(n), "e": B64.encode(e),
            }),
        }
    }
}

fn decode_json(part: &str) -> Result<Value, JwtError> {
    let bytes = B64.decode(part).map_err(|_| JwtError::Malformed("not base64url"))?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed("not JSON"))
}

/// A private key, and its public half as SubjectPublicKeyInfo.
fn load_private(pem: &[u8], rng: &SystemRandom) -> Result<(Private, Vec<u8>), JwtError> {
    let unusable = |why: &dyn std::fmt::Display| {
        JwtError::Key(format!(
            "it must be P-256 or RSA of 2048 bits or more, in PEM and not encrypted ({why}); this makes one of another \
             form fit: openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW"
        ))
    };
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|e| match e {
        rustls_pki_types::pem::Error::NoItemsFound => unusable(&"there is no such key in the file"),
        e => unusable(&e),
    })?;
    let ec = |pkcs8: &[u8]| EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, rng);
    let (ec, rsa) = match &der {
        PrivateKeyDer::Pkcs8(key) => (ec(key.secret_pkcs8_der()).ok(), RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())),
        PrivateKeyDer::Pkcs1(key) => (None, RsaKeyPair::from_der(key.secret_pkcs1_der())),
        PrivateKeyDer::Sec1(key) => {
            let body = [&P256_PKCS8_HEAD[..], &der_tlv(0x04, key.secret_sec1_der())].concat();
            let key = ec(&der_tlv(0x30, &body)).map_err(|e| unusable(&e))?;
            return Ok(ec_half(key));
        }
        _ => return Err(unusable(&"its form is not known")),
    };
    if let Some(key) = ec {
        return Ok(ec_half(key));
    }
    let key = rsa.map_err(|e| unusable(&e))?;
    let spki = rsa_spki(key.public_key().as_ref());
    Ok((Private::Rsa(Box::new(key)), spki))
}

fn ec_half(key: EcdsaKeyPair) -> (Private, Vec<u8>) {
    let spki = [&P256_SPKI_PREFIX[..], key.public_key().as_ref()].concat();
    (Private::Ec(Box::new(key)), spki)
}

fn rsa_spki(pkcs1: &[u8]) -> Vec<u8> {
    let mut bits = vec![0];
    bits.extend_from_slice(pkcs1);
    let mut body = RSA_ALGORITHM.to_vec();
    body.extend(der_tlv(0x03, &bits));
    der_tlv(0x30, &body)
}

fn der_tlv(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = body.len();
    if len < 0x80 {
        out.push(len as u8);
    } else {
        let bytes = len.to_be_bytes();
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    out.extend_from_slice(body);
    out
}

fn public_entry(spki: &[u8]) -> Result<PublicEntry, JwtError> {
    let bad = |what: &str| JwtError::Key(format!("a public key {what}"));
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| bad("is not a SubjectPublicKeyInfo"))?;
    let raw = info.subject_public_key.data.to_vec();
    let key = match info.parsed() {
        Ok(ParsedKey::EC(_)) if raw.len() == 65 && raw[0] == 4 => Public::Ec(raw),
        Ok(ParsedKey::RSA(rsa)) => {
            Public::Rsa { n: strip_zeros(rsa.modulus), e: strip_zeros(rsa.exponent), pkcs1: raw.clone() }
        }
        _ => return Err(bad("is neither P-256 nor RSA")),
    };
    Ok(PublicEntry { kid: B64.encode(Sha256::digest(spki)), key })
}

fn strip_zeros(bytes: &[u8]) -> Vec<u8> {
    let skip = bytes.iter().take_while(|b| **b == 0).count();
    bytes[skip..].to_vec()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn keys_of(private: &[u8], public: &[&[u8]]) -> Result<Keys, JwtError> {
        let mut keys = Keys::from_pem(private)?;
        public.iter().try_for_each(|pem| keys.accept(pem))?;
        Ok(keys)
    }

    pub(crate) fn test_keys() -> Keys {
        let key = rcgen::KeyPair::generate().expect("key");
        keys_of(key.serialize_pem().as_bytes(), &[key.public_key_pem().as_bytes()]).expect("keys")
    }

    #[test]
    fn signs_and_verifies() {
        let keys = test_keys();
        assert_eq!(keys.public.len(), 1, "the key's own public half is not listed twice");
        let token = keys.sign(&json!({"sub": "x"})).expect("sign");
        assert_eq!(keys.verify(&token).expect("verify")["sub"], "x");
        assert!(test_keys().verify(&token).is_err(), "another key");
        let mut forged = token.clone();
        forged.insert(forged.find('.').unwrap_or(0) + 5, 'A');
        assert!(keys.verify(&forged).is_err(), "changed payload");
        for bad in ["", "a", "a.b", "a.b.c", "....", "e30.e30.e30"] {
            assert!(keys.verify(bad).is_err(), "{bad}");
        }
        assert_eq!(keys.jwks()["keys"][0]["kty"], "EC");
    }

    fn pem(kind: &str, der: &[u8]) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("ASCII")).collect();
        format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
    }

    #[test]
    fn keys_in_every_form() {
        use rsa::pkcs1::EncodeRsaPrivateKey;
        use rsa::pkcs8::EncodePrivateKey;
        let rsa = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("key");
        let (pkcs1, rsa_pkcs8) = (rsa.to_pkcs1_der().expect("DER"), rsa.to_pkcs8_der().expect("DER"));
        let ec_pkcs8 = rcgen::KeyPair::generate().expect("key").serialize_der();
        // SEC1 stands in PKCS#8 after two lengths and the head; OpenSSL writes the curve before it.
        let sec1 = &ec_pkcs8[3 + P256_PKCS8_HEAD.len() + 2..];
        let parameters = pem("EC PARAMETERS", &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]);
        let pairs = [
            ("RS256", pem("RSA PRIVATE KEY", pkcs1.as_bytes()), pem("PRIVATE KEY", rsa_pkcs8.as_bytes())),
            ("ES256", parameters + &pem("EC PRIVATE KEY", sec1), pem("PRIVATE KEY", &ec_pkcs8)),
        ];
        for (algorithm, old, new) in pairs {
            let old_keys = keys_of(old.as_bytes(), &[]).expect("old form");
            let token = old_keys.sign(&json!({"sub": "x"})).expect("sign");
            assert_eq!(old_keys.algorithm(), algorithm);
            // The same key, and also where only tokens are checked with it.
            assert!(keys_of(new.as_bytes(), &[]).expect("PKCS#8").verify(&token).is_ok());
            let other = rcgen::KeyPair::generate().expect("key").serialize_pem();
            let checking = keys_of(other.as_bytes(), &[old.as_bytes()]).expect("keys");
            assert!(checking.verify(&token).is_ok(), "{algorithm}");
        }
        let other_curve = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("key");
        for bad in [other_curve.serialize_pem(), "nonsense".into(), pem("ENCRYPTED PRIVATE KEY", &[0x30, 0])] {
            let Err(error) = keys_of(bad.as_bytes(), &[]) else { panic!("{bad} was taken") };
            assert!(error.to_string().contains("openssl pkcs8 -topk8 -nocrypt -in"), "{error}");
        }
        let good = rcgen::KeyPair::generate().expect("key").serialize_pem();
        for bad in ["nonsense".into(), pem("CERTIFICATE", &[0x30, 0])] {
            let Err(error) = keys_of(good.as_bytes(), &[bad.as_bytes()]) else { panic!("{bad} was taken") };
            assert!(error.to_string().contains("holds neither public keys"), "{error}");
        }
    }

    #[test]
    fn der_lengths() {
        assert_eq!(der_tlv(0x30, &[0; 3])[..2], [0x30, 3]);
        assert_eq!(der_tlv(0x30, &[0; 300])[..4], [0x30, 0x82, 1, 44]);
    }
}
