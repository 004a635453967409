//! Bootstrap tokens, `id.secret`: good for one join of one node within the hour.

use rand::Rng;
use std::time::Duration;

/// The longest a token may live.
pub const LIFE: Duration = Duration::from_secs(3600);

/// A bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    /// Six characters; names the Secret.
    pub id: String,
    /// Sixteen characters.
    pub secret: String,
}

impl std::fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BootstrapToken({}.…)", self.id)
    }
}

impl std::fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl BootstrapToken {
    /// A fresh one.
    pub fn random() -> BootstrapToken {
        BootstrapToken { id: random_text(6), secret: random_text(16) }
    }

    /// Reads `id.secret`.
    pub fn parse(text: &str) -> Option<BootstrapToken> {
        let (id, secret) = text.trim().split_once('.')?;
        let ok = |part: &str, length: usize| {
            part.len() == length && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        (ok(id, 6) && ok(secret, 16)).then(|| BootstrapToken { id: id.into(), secret: secret.into() })
    }
}

fn random_text(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_upstreams_form() {
        let token = BootstrapToken::random();
        assert_eq!(BootstrapToken::parse(&token.to_string()), Some(token));
        assert_eq!(BootstrapToken::parse("abc.def"), None);
        assert_eq!(BootstrapToken::parse("ABCDEF.0123456789abcdef"), None);
    }
}
