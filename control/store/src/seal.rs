//! Encryption of what lies on disk.  In memory values are plain: the server needs them so.

use base64::Engine as _;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::RngCore;

const NONCE: usize = 24;

/// Encrypts the values below some prefixes with one key; the key's name in the store is
/// bound to the value, so that values cannot be swapped on disk.
pub struct Cipher {
    aead: XChaCha20Poly1305,
    prefixes: Vec<String>,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher").field("prefixes", &self.prefixes).finish_non_exhaustive()
    }
}

impl Cipher {
    /// `key` is 32 raw bytes, or their base64 or hexadecimal text; `prefixes` say what is sealed.
    pub fn new(key: &[u8], prefixes: Vec<String>) -> Result<Cipher, String> {
        let raw = read_key(key).ok_or("the encryption key must be 32 bytes, raw, in base64 or in hexadecimal")?;
        let aead = XChaCha20Poly1305::new_from_slice(&raw).map_err(|e| e.to_string())?;
        Ok(Cipher { aead, prefixes })
    }

    pub(crate) fn covers(&self, key: &str) -> bool {
        self.prefixes.iter().any(|p| key.starts_with(p.as_str()))
    }

    pub(crate) fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = vec![0u8; NONCE];
        rand::rng().fill_bytes(&mut out);
        let nonce = XNonce::clone_from_slice(&out);
        let sealed =
            self.aead.encrypt(&nonce, Payload { msg: plain, aad: key.as_bytes() }).map_err(|e| e.to_string())?;
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    pub(crate) fn open(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let (nonce, body) = sealed.split_at_checked(NONCE).ok_or("the value is too short")?;
        let payload = Payload { msg: body, aad: key.as_bytes() };
        self.aead
            .decrypt(XNonce::from_slice(nonce), payload)
            .map_err(|_| "the key does not fit, or the value was changed".to_string())
    }
}

fn read_key(key: &[u8]) -> Option<Vec<u8>> {
    if key.len() == 32 {
        return Some(key.to_vec());
    }
    let text = std::str::from_utf8(key).ok()?.trim();
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()).collect();
    }
    let raw = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    (raw.len() == 32).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_and_binds_to_the_key() {
        let cipher = Cipher::new(&[7; 32], vec!["/core/secrets/".into()]).unwrap();
        assert!(cipher.covers("/core/secrets/a/b") && !cipher.covers("/core/pods/a/b"));
        let sealed = cipher.seal("/core/secrets/a/b", b"hush").unwrap();
        assert_eq!(cipher.open("/core/secrets/a/b", &sealed).unwrap(), b"hush");
        assert!(cipher.open("/core/secrets/a/c", &sealed).is_err());
        assert!(Cipher::new(b"short", vec![]).is_err());
        assert!(Cipher::new(&b"00".repeat(32), vec![]).is_ok());
    }
}
