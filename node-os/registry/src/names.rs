//! What a repository, a tag and a digest are, by the grammar of the OCI distribution specification.

use std::fmt;

/// With its tag a name is the name of a file.
const LONGEST_REPOSITORY: usize = 120;
const LONGEST_TAG: usize = 128;

/// The SHA-256 of some content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Of `sha256:` and 64 hex digits; other algorithms are not taken.
    pub fn parse(text: &str) -> Option<Digest> {
        Digest::of_hex(text.strip_prefix("sha256:")?)
    }

    /// Of the 64 hex digits alone.
    pub fn of_hex(hex: &str) -> Option<Digest> {
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (hex.len() == 64 && hex.bytes().all(digit)).then(|| Digest(hex.to_owned()))
    }

    /// Of content.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_sum(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
    }

    /// Of a sum.
    pub fn from_sum(sum: &[u8]) -> Digest {
        Digest(sum.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The hex digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Of a tag, or a digest.
    pub fn parse(text: &str) -> Option<Reference> {
        if text.contains(':') {
            return Digest::parse(text).map(Reference::Digest);
        }
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let tag =
            !text.is_empty() && text.len() <= LONGEST_TAG && text.chars().all(fine) && !text.starts_with(['.', '-']);
        tag.then(|| Reference::Tag(text.to_owned()))
    }
}

/// Whether this names a repository. What passes has no empty part, no `..` and no upper case.
pub fn is_repository(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || "._-".contains(c))
    };
    text.len() <= LONGEST_REPOSITORY && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        for good in ["web", "team/web", "a.b/c_d/e-f1"] {
            assert!(is_repository(good), "{good}");
        }
        let long = "a".repeat(LONGEST_REPOSITORY + 1);
        for bad in ["", "/web", "web/", "a//b", "a/../b", "..", ".a", "Web", "a b", "a+b", "a:b", "a\0", &long] {
            assert!(!is_repository(bad), "{bad:?}");
        }
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Reference::parse(&digest), Digest::parse(&digest).map(Reference::Digest));
        assert_eq!(Reference::parse("v1.0_a-B"), Some(Reference::Tag("v1.0_a-B".into())));
        let (upper, other) = (digest.to_uppercase(), digest.replace("256", "512"));
        for bad in ["", ".", "..", "-a", "a/b", "a:b", "sha256:00", "a\n", &upper, &other] {
            assert_eq!(Reference::parse(bad), None, "{bad:?}");
        }
        assert_eq!(
            Digest::of(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
