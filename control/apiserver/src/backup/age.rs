//! Encryption to a public key, in the format of age (C2SP specification `age`, version 1, X25519 recipients): whoever
//! holds the other half reads it with age itself, too.

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bech32::primitives::decode::CheckedHrpstring;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{agreement, hkdf, hmac};

/// Bytes of plaintext in each piece but the last.
pub(super) const PIECE: usize = 64 << 10;
const TAG: usize = 16;
const VERSION: &str = "age-encryption.org/v1";

/// A public key, as `age1…` spells it.
#[derive(Clone, Debug)]
pub(super) struct Recipient([u8; 32]);

impl Recipient {
    pub(super) fn parse(text: &str) -> anyhow::Result<Recipient> {
        let what = "it is no public key of age (age1…)";
        let checked = CheckedHrpstring::new::<bech32::Bech32>(text.trim()).ok().context(what)?;
        let key: Vec<u8> = checked.byte_iter().collect();
        match (checked.hrp().to_lowercase().as_str(), key.try_into()) {
            ("age", Ok(key)) => Ok(Recipient(key)),
            _ => bail!(what),
        }
    }
}

/// A file that is being encrypted.
#[derive(Debug)]
pub(super) struct Sealer {
    key: LessSafeKey,
    pieces: u64,
}

impl Sealer {
    /// Begins a file; gives what stands before its first piece.
    pub(super) fn start(recipient: &Recipient) -> anyhow::Result<(Vec<u8>, Sealer)> {
        let file_key: [u8; 16] = random()?;
        let mut head = format!("{VERSION}\n{}---", stanza(recipient, &file_key)?);
        let mac_key = hmac::Key::new(hmac::HMAC_SHA256, &derive(&file_key, b"", b"header")?);
        head.push_str(&format!(" {}\n", STANDARD_NO_PAD.encode(hmac::sign(&mac_key, head.as_bytes()))));
        let nonce: [u8; 16] = random()?;
        let key = cipher(&derive(&file_key, &nonce, b"payload")?)?;
        let mut head = head.into_bytes();
        head.extend_from_slice(&nonce);
        Ok((head, Sealer { key, pieces: 0 }))
    }

    /// Encrypts a piece in place: [`PIECE`] bytes, or what is left for the last one.
    pub(super) fn seal(&mut self, piece: &mut Vec<u8>, last: bool) -> anyhow::Result<()> {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.pieces.to_be_bytes());
        nonce[11] = u8::from(last);
        self.pieces += 1;
        let sealed = self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), piece);
        sealed.ok().context("a piece is too large to be encrypted")
    }

    /// The size of what `plain` bytes become, without the beginning.
    pub(super) fn sealed_size(plain: u64) -> u64 {
        plain + plain.div_ceil(PIECE as u64).max(1) * TAG as u64
    }
}

/// The file's key, wrapped for its reader.
fn stanza(recipient: &Recipient, file_key: &[u8; 16]) -> anyhow::Result<String> {
    let what = "agreeing on a key";
    let private = agreement::EphemeralPrivateKey::generate(&agreement::X25519, &SystemRandom::new()).ok();
    let private = private.context(what)?;
    let share = private.compute_public_key().ok().context(what)?;
    let theirs = agreement::UnparsedPublicKey::new(&agreement::X25519, recipient.0);
    let salt = [share.as_ref(), &recipient.0].concat();
    let wrap =
        agreement::agree_ephemeral(private, &theirs, |shared| derive(shared, &salt, b"age-encryption.org/v1/X25519"));
    let wrap = cipher(&wrap.ok().context(what)??)?;
    let mut body = file_key.to_vec();
    wrap.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body).ok().context(what)?;
    Ok(format!("-> X25519 {}\n{}\n", STANDARD_NO_PAD.encode(share), STANDARD_NO_PAD.encode(body)))
}

fn cipher(key: &[u8; 32]) -> anyhow::Result<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).map(LessSafeKey::new).ok().context("taking a key")
}

/// HKDF-SHA-256.
fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    let info = [info];
    let expanded = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    expanded.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).ok().context("deriving a key")?;
    Ok(key)
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok().context("the kernel gives no random numbers")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_keys_of_age_are_taken() {
        let good = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        assert!(Recipient::parse(&format!("{good}\n")).is_ok());
        for bad in ["", "age1", &good[..60], &good.replace('q', "p"), "AGE-SECRET-KEY-1"] {
            assert!(Recipient::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_size_is_known_before() {
        let recipient = Recipient([9; 32]);
        for plain in [0usize, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let (_, mut sealer) = Sealer::start(&recipient).unwrap();
            let data = vec![7; plain];
            let mut pieces: Vec<&[u8]> = data.chunks(PIECE).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            let count = pieces.len();
            let sealed: usize = pieces
                .iter()
                .enumerate()
                .map(|(i, piece)| {
                    let mut piece = piece.to_vec();
                    sealer.seal(&mut piece, i + 1 == count).unwrap();
                    piece.len()
                })
                .sum();
            assert_eq!(sealed as u64, Sealer::sealed_size(plain as u64), "{plain}");
        }
    }
}
