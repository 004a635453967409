//! Reading what is encrypted to the cluster's backup key, in the format of age (C2SP specification `age`, version 1,
//! X25519 recipients), and making such keys. `age -d -i secrets/backup.key` reads the same files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use std::io::{self, BufRead, Read, Write};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

/// First line of every such file.
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";
const PRIVATE: &str = "age-secret-key-";
const PUBLIC: &str = "age";
/// Bytes of plaintext in each piece but the last, and of what authenticates it.
const PIECE: usize = 64 << 10;
const TAG: usize = 16;
/// A line of a header is shorter, and so is the header.
const MOST_LINE: u64 = 1024;
const MOST_LINES: usize = 64;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// The text is no private key.
    #[error("it is no private key of age (AGE-SECRET-KEY-1…)")]
    BadKey,
    /// Not a file of age.
    #[error("it is no file that age encrypted")]
    BadHeader,
    /// Of another key, or the header was changed.
    #[error("it was encrypted to another key than this cluster's secrets/backup.key, or its beginning is damaged")]
    WrongKey,
    /// The rest was changed or is cut short.
    #[error("it is damaged after {0} bytes, or cut short there")]
    Damaged(u64),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A private key.
pub struct Identity([u8; 32]);

impl Identity {
    /// A fresh one.
    pub fn generate() -> Identity {
        Identity(rand::random())
    }

    /// From `AGE-SECRET-KEY-1…`; lines with `#` are comments.
    ///
    /// # Errors
    /// The text is something else.
    pub fn parse(text: &str) -> Result<Identity, AgeError> {
        let line =
            text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')).ok_or(AgeError::BadKey)?;
        let checked = CheckedHrpstring::new::<Bech32>(line).map_err(|_| AgeError::BadKey)?;
        let bytes: Vec<u8> = checked.byte_iter().collect();
        match (checked.hrp().to_lowercase() == PRIVATE, bytes.try_into()) {
            (true, Ok(key)) => Ok(Identity(key)),
            _ => Err(AgeError::BadKey),
        }
    }

    /// `AGE-SECRET-KEY-1…`
    ///
    /// # Errors
    /// It cannot be spelled.
    pub fn to_text(&self) -> Result<String, AgeError> {
        Ok(spell(PRIVATE, &self.0)?.to_uppercase())
    }

    /// The public half, `age1…`.
    ///
    /// # Errors
    /// It cannot be spelled.
    pub fn recipient(&self) -> Result<String, AgeError> {
        spell(PUBLIC, &self.public())
    }

    /// The secret number.
    pub fn secret(&self) -> &[u8; 32] {
        &self.0
    }

    fn public(&self) -> [u8; 32] {
        x25519(self.0, X25519_BASEPOINT_BYTES)
    }

    /// The file's key out of one stanza; None: it is for somebody else.
    fn unwrap(&self, share: &str, body: &str) -> Option<[u8; 16]> {
        let share: [u8; 32] = STANDARD_NO_PAD.decode(share).ok()?.try_into().ok()?;
        let mut body = STANDARD_NO_PAD.decode(body).ok().filter(|b| b.len() == 32)?;
        let shared = x25519(self.0, share);
        if shared == [0; 32] {
            return None;
        }
        let salt = [share, self.public()].concat();
        let key = cipher(&derive(&shared, &salt, b"age-encryption.org/v1/X25519")?)?;
        let plain = key.open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body).ok()?;
        (&*plain).try_into().ok()
    }
}

/// Decrypts a file; gives the bytes written. What was written before an error is authentic, and not all.
///
/// # Errors
/// It is no such file, of another key, damaged or cut short; or `to` takes no more.
pub fn decrypt(identity: &Identity, mut from: impl BufRead, mut to: impl Write) -> Result<u64, AgeError> {
    let file_key = read_header(identity, &mut from)?;
    let mut nonce = [0; 16];
    from.read_exact(&mut nonce).map_err(|_| AgeError::Damaged(0))?;
    let key = derive(&file_key, &nonce, b"payload").and_then(|key| cipher(&key)).ok_or(AgeError::WrongKey)?;
    let (mut written, mut count) = (0u64, 0u64);
    loop {
        let mut piece = Vec::with_capacity(PIECE + TAG);
        from.by_ref().take((PIECE + TAG) as u64).read_to_end(&mut piece)?;
        let last = from.fill_buf()?.is_empty();
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&count.to_be_bytes());
        nonce[11] = u8::from(last);
        let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut piece);
        let plain = opened.map_err(|_| AgeError::Damaged(written))?;
        if plain.is_empty() && count > 0 {
            return Err(AgeError::Damaged(written));
        }
        to.write_all(plain)?;
        written += plain.len() as u64;
        count += 1;
        if last {
            return Ok(written);
        }
    }
}

/// Reads a line onto the end of `head`; gives it without its end.
fn line(from: &mut impl BufRead, head: &mut Vec<u8>) -> Result<String, AgeError> {
    let begin = head.len();
    from.by_ref().take(MOST_LINE).read_until(b'\n', head)?;
    let text = std::str::from_utf8(&head[begin..]).map_err(|_| AgeError::BadHeader)?;
    text.strip_suffix('\n').map(str::to_owned).ok_or(AgeError::BadHeader)
}

/// Reads up to the payload; gives the file's key.
fn read_header(identity: &Identity, from: &mut impl BufRead) -> Result<[u8; 16], AgeError> {
    let mut head = Vec::new();
    line(from, &mut head)?;
    if head != MAGIC {
        return Err(AgeError::BadHeader);
    }
    let mut file_key: Option<[u8; 16]> = None;
    let mut stanza = None;
    for _ in 0..MOST_LINES {
        let begin = head.len();
        let text = line(from, &mut head)?;
        if let Some(mac) = text.strip_prefix("--- ") {
            let file_key = file_key.ok_or(AgeError::WrongKey)?;
            let key = derive(&file_key, b"", b"header").ok_or(AgeError::WrongKey)?;
            let mac = STANDARD_NO_PAD.decode(mac).map_err(|_| AgeError::BadHeader)?;
            let said = &head[..begin + "---".len()];
            hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), said, &mac).map_err(|_| AgeError::WrongKey)?;
            return Ok(file_key);
        }
        match (text.strip_prefix("-> X25519 "), stanza.take()) {
            (Some(share), _) => stanza = Some(share.to_owned()),
            (None, Some(share)) => file_key = file_key.or(identity.unwrap(&share, &text)),
            (None, None) => {}
        }
    }
    Err(AgeError::BadHeader)
}

fn spell(hrp: &str, bytes: &[u8]) -> Result<String, AgeError> {
    let hrp = Hrp::parse(hrp).map_err(|_| AgeError::BadKey)?;
    bech32::encode::<Bech32>(hrp, bytes).map_err(|_| AgeError::BadKey)
}

fn cipher(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new)
}

/// HKDF-SHA-256.
fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    let info = [info];
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    extracted.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).ok()?;
    Some(key)
}

/// A file to read in tests: the side that encrypts is the API server's.
#[cfg(test)]
pub(crate) fn encrypt(identity: &Identity, plain: &[u8]) -> Vec<u8> {
    let (file_key, ephemeral) = ([7u8; 16], [9u8; 32]);
    let sealed = |key: &[u8; 32], nonce: [u8; 12], plain: &[u8]| {
        let mut body = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        cipher(key).expect("a key").seal_in_place_append_tag(nonce, Aad::empty(), &mut body).expect("sealed");
        body
    };
    let share = x25519(ephemeral, X25519_BASEPOINT_BYTES);
    let salt = [share, identity.public()].concat();
    let wrap = derive(&x25519(ephemeral, identity.public()), &salt, b"age-encryption.org/v1/X25519").expect("a key");
    let body = STANDARD_NO_PAD.encode(sealed(&wrap, [0; 12], &file_key));
    let mut file = [MAGIC, format!("-> X25519 {}\n{body}\n---", STANDARD_NO_PAD.encode(share)).as_bytes()].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &derive(&file_key, b"", b"header").expect("a key"));
    let mac = STANDARD_NO_PAD.encode(hmac::sign(&key, &file));
    file.extend(format!(" {mac}\n").bytes());
    let nonce = [3u8; 16];
    file.extend(nonce);
    let mut last = [0; 12];
    last[11] = 1;
    file.extend(sealed(&derive(&file_key, &nonce, b"payload").expect("a key"), last, plain));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spelled_as_age_spells_them() {
        let identity = Identity::generate();
        let text = identity.to_text().expect("text");
        let recipient = identity.recipient().expect("text");
        assert!(text.starts_with("AGE-SECRET-KEY-1") && recipient.starts_with("age1"));
        let read = Identity::parse(&format!("# made for a test\n\n{text}\n")).expect("key");
        assert_eq!(read.secret(), identity.secret());
        for bad in ["", "AGE-SECRET-KEY-1", &text[..40], recipient.as_str()] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_file_of_age_is_refused() {
        let identity = Identity::generate();
        let long = [MAGIC, &vec![b'x'; 5000]].concat();
        let endless = [MAGIC, "-> X25519 a\nb\n".repeat(100).as_bytes()].concat();
        for bad in [&b""[..], b"KIMG-STORE-LOG-2", MAGIC, &long, &endless, b"age-encryption.org/v1\n--- xx\n"] {
            assert!(decrypt(&identity, bad, Vec::new()).is_err());
        }
    }
}
