//! Sealed secrets: `KIMGSEAL1`, a 12-byte nonce, and the ChaCha20-Poly1305 ciphertext of a tar.
//!
//! The nonce is the start of HMAC-SHA256(key, plaintext): the same secrets and key give the same bytes,
//! and two different plaintexts under one key never share a nonce. The magic is authenticated.

use base64::Engine;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use ring::hmac;

/// First bytes of a sealed file.
pub const SEAL_MAGIC: &[u8] = b"KIMGSEAL1";
const NONCE_LENGTH: usize = 12;

/// A seal key: 32 bytes.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(…)")
    }
}

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    /// The text is no key.
    #[error("the seal key is not 32 bytes in base64; take the line that `kimg seed` printed for this node")]
    BadKey,
    /// Not a sealed file.
    #[error("the sealed secrets do not begin with KIMGSEAL1; build the image again")]
    BadMagic,
    /// Wrong key or changed bytes.
    #[error("the seal key does not open this image's secrets; use the key of the cluster that built the image")]
    WrongKey,
    /// Encryption refused, which only a plaintext beyond 256 GiB can cause.
    #[error("the secrets are too large to be sealed")]
    TooLarge,
}

impl SealKey {
    /// From raw bytes.
    pub fn new(bytes: [u8; 32]) -> SealKey {
        SealKey(bytes)
    }

    /// From the base64 text in user-data.
    pub fn from_base64(text: &str) -> Result<SealKey, SealError> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).map_err(|_| SealError::BadKey)?;
        bytes.try_into().map(SealKey).map_err(|_| SealError::BadKey)
    }

    /// What the key is called where it may be read: the beginning of its SHA-256.
    pub fn id(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The base64 text for user-data.
    pub fn to_base64(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.0)
    }
}

const FILE: &str = "secrets";
const END: &str = ".sealed";

/// File of CONFIG with what is sealed: of the key that user-data has, or beside it of another one.
pub fn sealed_file(beside: Option<&SealKey>) -> String {
    beside.map_or_else(|| format!("{FILE}{END}"), |key| format!("{FILE}-{}{END}", key.id()))
}

/// Whether a file of CONFIG is sealed.
pub fn is_sealed_file(name: &str) -> bool {
    name == sealed_file(None) || seal_of(name).is_some()
}

/// The key of which a file beside the first one is.
pub fn seal_of(name: &str) -> Option<String> {
    Some(name.strip_prefix(FILE)?.strip_prefix('-')?.strip_suffix(END)?.to_owned())
}

/// Seals `plaintext`. The same input gives the same bytes.
pub fn seal(key: &SealKey, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0), plaintext);
    let nonce = tag.as_ref().get(..NONCE_LENGTH).ok_or(SealError::TooLarge)?;
    let payload = Payload { msg: plaintext, aad: SEAL_MAGIC };
    let ciphertext = cipher(key).encrypt(Nonce::from_slice(nonce), payload).map_err(|_| SealError::TooLarge)?;
    let mut sealed = Vec::with_capacity(SEAL_MAGIC.len() + NONCE_LENGTH + ciphertext.len());
    sealed.extend_from_slice(SEAL_MAGIC);
    sealed.extend_from_slice(nonce);
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

/// Opens what [`seal`] made.
pub fn unseal(key: &SealKey, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let rest = sealed.strip_prefix(SEAL_MAGIC).ok_or(SealError::BadMagic)?;
    let (nonce, ciphertext) = rest.split_at_checked(NONCE_LENGTH).ok_or(SealError::BadMagic)?;
    let payload = Payload { msg: ciphertext, aad: SEAL_MAGIC };
    cipher(key).decrypt(Nonce::from_slice(nonce), payload).map_err(|_| SealError::WrongKey)
}

fn cipher(key: &SealKey) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(&key.0.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_only() {
        let key = SealKey::new([7; 32]);
        let sealed = seal(&key, b"secret").unwrap();
        assert_eq!(sealed, seal(&key, b"secret").unwrap(), "sealing is deterministic");
        assert_eq!(unseal(&key, &sealed).unwrap(), b"secret");
        assert_eq!(unseal(&SealKey::new([8; 32]), &sealed), Err(SealError::WrongKey));
        let mut changed = sealed.clone();
        changed[20] ^= 1;
        changed[25] ^= 1;
        assert_eq!(unseal(&key, &changed), Err(SealError::WrongKey));
        assert_eq!(unseal(&key, b"KIMGSEAL1abc"), Err(SealError::BadMagic));
        assert_eq!(unseal(&key, b"nothing"), Err(SealError::BadMagic));
    }

    #[test]
    fn files_say_which_key_opens_them() {
        let key = SealKey::new([9; 32]);
        let (first, beside) = (sealed_file(None), sealed_file(Some(&key)));
        assert_eq!((first.as_str(), beside.clone()), ("secrets.sealed", format!("secrets-{}.sealed", key.id())));
        assert_eq!((seal_of(&first), seal_of(&beside)), (None, Some(key.id())));
        assert!(is_sealed_file(&first) && is_sealed_file(&beside) && !is_sealed_file("cluster.json"));
    }

    #[test]
    fn keys_travel_as_base64() {
        let key = SealKey::from_base64(&SealKey::new([9; 32]).to_base64()).unwrap();
        assert_eq!(key.0, [9; 32]);
        assert_eq!(SealKey::from_base64("AAAA").unwrap_err(), SealError::BadKey);
        assert_eq!(SealKey::from_base64("***").unwrap_err(), SealError::BadKey);
    }
}
