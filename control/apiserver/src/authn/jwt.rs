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
/// DER between the length of a SubjectPublicKeyInfo and its BIT STRING, for RSA.
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

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
    /// Takes the signing key (PKCS#8 PEM) and further public keys (SPKI PEM, any number in each).
    pub fn from_pem(private_pem: &[u8], public_pems: &[&[u8]]) -> Result<Self, JwtError> {
        let rng = SystemRandom::new();
        let der = PrivateKeyDer::from_pem_slice(private_pem)
            .map_err(|e| JwtError::Key(format!("the signing key is not PEM: {e}")))?;
        let PrivateKeyDer::Pkcs8(pkcs8) = &der else {
            return Err(JwtError::Key("the signing key must be PKCS#8 (BEGIN PRIVATE KEY)".into()));
        };
        let (private, spki) = load_private(pkcs8.secret_pkcs8_der(), &rng)?;
        let own = public_entry(&spki)?;
        let kid = own.kid.clone();
        let mut public = vec![own];
        for pem in public_pems {
            for item in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
                let item = item.map_err(|e| JwtError::Key(format!("a public key is not PEM: {e}")))?;
                let entry = public_entry(&item)?;
                if public.iter().all(|p| p.kid != entry.kid) {
                    public.push(entry);
                }
            }
        }
        Ok(Self { private, kid, public, rng })
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

fn load_private(pkcs8: &[u8], rng: &SystemRandom) -> Result<(Private, Vec<u8>), JwtError> {
    if let Ok(key) = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, rng) {
        let mut spki = P256_SPKI_PREFIX.to_vec();
        spki.extend_from_slice(key.public_key().as_ref());
        return Ok((Private::Ec(Box::new(key)), spki));
    }
    let key = RsaKeyPair::from_pkcs8(pkcs8)
        .map_err(|e| JwtError::Key(format!("the signing key is neither P-256 nor RSA: {e}")))?;
    let spki = rsa_spki(key.public_key().as_ref());
    Ok((Private::Rsa(Box::new(key)), spki))
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

    pub(crate) fn test_keys() -> Keys {
        let key = rcgen::KeyPair::generate().expect("key");
        Keys::from_pem(key.serialize_pem().as_bytes(), &[key.public_key_pem().as_bytes()]).expect("keys")
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

    #[test]
    fn der_lengths() {
        assert_eq!(der_tlv(0x30, &[0; 3])[..2], [0x30, 3]);
        assert_eq!(der_tlv(0x30, &[0; 300])[..4], [0x30, 0x82, 1, 44]);
    }
}
