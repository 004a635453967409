//! Keys, and how each provider seals with them.
//!
//! A sealed value is `k8s:enc:PROVIDER:v1:NAME:`, a nonce and the cipher's output, so that the
//! key that it needs can be told without any key.  The name that the value has in the store is
//! bound to it: values cannot be swapped in the files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use crypto_secretbox::XSalsa20Poly1305;
use rand::RngCore;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// First bytes of every sealed value.
const SEALED: &str = "k8s:enc:";
const XNONCE: usize = 24;
const GCM_NONCE: usize = 12;

enum Algorithm {
    XChaCha(XChaCha20Poly1305),
    Gcm(Box<LessSafeKey>),
    Secretbox(XSalsa20Poly1305),
}

/// One key with its provider and name.
pub struct Key {
    id: String,
    algorithm: Algorithm,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Key {
    /// The key of a key file: 32 bytes, raw or as base64 or hexadecimal text.  It is named by its
    /// own digest.
    pub fn from_file(content: &[u8]) -> Result<Key, String> {
        let raw = read_key(content).ok_or("the encryption key must be 32 bytes, raw, in base64 or in hexadecimal")?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &raw);
        let name: String = digest.as_ref().iter().take(4).map(|b| format!("{b:02x}")).collect();
        let aead = XChaCha20Poly1305::new_from_slice(&raw).map_err(|e| e.to_string())?;
        Ok(Key { id: id("xchacha20poly1305", &name)?, algorithm: Algorithm::XChaCha(aead) })
    }

    /// Upstream's `aesgcm`: 16 or 32 bytes.
    pub fn aesgcm(name: &str, secret: &[u8]) -> Result<Key, String> {
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            n => return Err(format!("an aesgcm key has 16 or 32 bytes, this one has {n}")),
        };
        let key = UnboundKey::new(algorithm, secret).map_err(|e| e.to_string())?;
        Ok(Key { id: id("aesgcm", name)?, algorithm: Algorithm::Gcm(Box::new(LessSafeKey::new(key))) })
    }

    /// Upstream's `secretbox`: 32 bytes.
    pub fn secretbox(name: &str, secret: &[u8]) -> Result<Key, String> {
        let aead = XSalsa20Poly1305::new_from_slice(secret)
            .map_err(|_| format!("a secretbox key has 32 bytes, this one has {}", secret.len()))?;
        Ok(Key { id: id("secretbox", name)?, algorithm: Algorithm::Secretbox(aead) })
    }

    /// `PROVIDER:v1:NAME`.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let prefix = format!("{SEALED}{}:", self.id);
        let size = match self.algorithm {
            Algorithm::Gcm(_) => GCM_NONCE,
            Algorithm::XChaCha(_) | Algorithm::Secretbox(_) => XNONCE,
        };
        let mut out = prefix.into_bytes();
        let at = out.len();
        out.resize(at + size, 0);
        rand::rng().fill_bytes(&mut out[at..]);
        let failed = |_| "sealing failed".to_string();
        match &self.algorithm {
            Algorithm::XChaCha(aead) => {
                let payload = Payload { msg: plain, aad: name.as_bytes() };
                let body = aead.encrypt(XNonce::from_slice(&out[at..]), payload).map_err(failed)?;
                out.extend_from_slice(&body);
            }
            Algorithm::Secretbox(aead) => {
                let nonce = crypto_secretbox::Nonce::clone_from_slice(&out[at..]);
                let body = aead.encrypt(&nonce, &bind(name, plain)[..]).map_err(failed)?;
                out.extend_from_slice(&body);
            }
            Algorithm::Gcm(key) => {
                let nonce = Nonce::try_assume_unique_for_key(&out[at..]).map_err(|e| e.to_string())?;
                let mut body = plain.to_vec();
                key.seal_in_place_append_tag(nonce, Aad::from(name.as_bytes()), &mut body)
                    .map_err(|e| e.to_string())?;
                out.extend_from_slice(&body);
            }
        }
        Ok(out)
    }

    /// `body` is what follows the prefix.
    pub(super) fn open(&self, name: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let wrong = || format!("the key {} does not fit, or the value was changed", self.id);
        let split = |size: usize| body.split_at_checked(size).ok_or("the sealed value is too short");
        match &self.algorithm {
            Algorithm::XChaCha(aead) => {
                let (nonce, body) = split(XNONCE)?;
                let payload = Payload { msg: body, aad: name.as_bytes() };
                aead.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| wrong())
            }
            Algorithm::Secretbox(aead) => {
                let (nonce, body) = split(XNONCE)?;
                let bound = aead.decrypt(crypto_secretbox::Nonce::from_slice(nonce), body).map_err(|_| wrong())?;
                unbind(name, bound).ok_or_else(wrong)
            }
            Algorithm::Gcm(key) => {
                let (nonce, body) = split(GCM_NONCE)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|e| e.to_string())?;
                let mut body = body.to_vec();
                let len = key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut body).map_err(|_| wrong())?.len();
                body.truncate(len);
                Ok(body)
            }
        }
    }
}

/// The id of the key that a value was sealed with, and what follows; None: it is plain.
pub(super) fn parse(value: &[u8]) -> Option<(&str, &[u8])> {
    let rest = value.strip_prefix(SEALED.as_bytes())?;
    let mut colons = rest.iter().enumerate().filter(|(_, b)| **b == b':').map(|(i, _)| i);
    let end = colons.nth(2)?;
    Some((std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
}

/// Whether a value says that it is sealed.
pub(super) fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(SEALED.as_bytes())
}

fn id(provider: &str, name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(':') {
        return Err(format!("a key's name must not be empty and must have no colon: {name:?}"));
    }
    Ok(format!("{provider}:v1:{name}"))
}

/// Secretbox knows no associated data, so the name goes inside.
fn bind(name: &str, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + name.len() + plain.len());
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(plain);
    out
}

fn unbind(name: &str, mut bound: Vec<u8>) -> Option<Vec<u8>> {
    let head = bind(name, b"");
    bound.starts_with(&head).then(|| bound.split_off(head.len()))
}

fn read_key(key: &[u8]) -> Option<Vec<u8>> {
    if key.len() == 32 {
        return Some(key.to_vec());
    }
    let text = std::str::from_utf8(key).ok()?.trim();
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()).collect();
    }
    let raw = STANDARD.decode(text).ok()?;
    (raw.len() == 32).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_seals_and_binds_to_the_name() {
        let keys = [
            Key::from_file(&[7; 32]).unwrap(),
            Key::aesgcm("a", &[7; 16]).unwrap(),
            Key::aesgcm("a", &[7; 32]).unwrap(),
            Key::secretbox("s", &[7; 32]).unwrap(),
        ];
        for key in keys {
            let sealed = key.seal("/core/secrets/a/b", b"hush").unwrap();
            assert!(!sealed.windows(4).any(|w| w == b"hush"));
            assert_ne!(sealed, key.seal("/core/secrets/a/b", b"hush").unwrap(), "a nonce of its own");
            let (id, body) = parse(&sealed).unwrap();
            assert_eq!(id, key.id());
            assert_eq!(key.open("/core/secrets/a/b", body).unwrap(), b"hush");
            assert!(key.open("/core/secrets/a/c", body).is_err(), "{id}: another name");
            let mut changed = body.to_vec();
            *changed.last_mut().unwrap() ^= 1;
            assert!(key.open("/core/secrets/a/b", &changed).is_err(), "{id}: a changed value");
            assert!(key.open("/core/secrets/a/b", &body[..3]).is_err(), "{id}: a short value");
        }
    }

    #[test]
    fn keys_of_the_wrong_size_or_name_are_refused() {
        assert!(Key::from_file(b"short").is_err());
        assert!(Key::from_file(&b"00".repeat(32)).is_ok());
        assert!(Key::aesgcm("a", &[7; 24]).unwrap_err().contains("24"));
        assert!(Key::secretbox("a", &[7; 16]).unwrap_err().contains("16"));
        assert!(Key::secretbox("a:b", &[7; 32]).is_err() && Key::secretbox("", &[7; 32]).is_err());
    }

    #[test]
    fn secretbox_is_the_known_cipher() {
        // NaCl's own test vector (tests/secretbox.c), first 8 bytes of the output.
        let key = hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = hex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let message = hex(concat!(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc",
            "e5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb31",
            "0e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde",
            "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f93776384864",
            "5e0705"
        ));
        let aead = XSalsa20Poly1305::new_from_slice(&key).unwrap();
        let sealed = aead.encrypt(crypto_secretbox::Nonce::from_slice(&nonce), &message[..]).unwrap();
        assert_eq!(sealed[..8], hex("f3ffc7703f9400e5")[..]);
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }
}
