//! Names of images: `registry.example.com:5000/team/web:1`, completed as the container runtime completes them.

use super::registry::credentials;
use crate::input;
use anyhow::Result;
use std::fmt;

/// A name taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `host[:port]` of the registry.
    pub authority: String,
    /// Repository on it.
    pub repository: String,
    /// Tag; `latest` where neither tag nor digest is given.
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

impl Reference {
    /// Takes a name apart; `web` becomes `docker.io/library/web:latest`.
    ///
    /// # Errors
    /// It is no name by the grammar of the OCI distribution specification.
    pub fn parse(text: &str) -> Result<Reference> {
        let wrong = |why: &str| -> Result<Reference> {
            let way_out = "write REGISTRY/NAME:TAG, e.g. registry.example.com/web:1";
            input::bad(format!("'{text}' is no image name: {why}; {way_out}"))
        };
        no_password(text)?;
        if text.starts_with(super::source::ON_DISK) {
            return wrong(
                "oci: stands before a layout or an archive of this machine, as a base; an image called oci has its \
                 registry before it",
            );
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_string())),
            None => (text, None),
        };
        if digest.as_deref().is_some_and(|d| !is_digest(d)) {
            return wrong("what stands behind @ is no digest, which is sha256: and 64 hex digits");
        }
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_string())),
            _ => (name, None),
        };
        if tag.as_deref().is_some_and(|t| !is_tag(t)) {
            return wrong("a tag has up to 128 letters, digits, '.', '_' and '-'");
        }
        let (authority, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_string()),
            Some(_) => ("docker.io", path.to_string()),
            None => ("docker.io", format!("library/{path}")),
        };
        let host = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
        let part = |p: &str| {
            !p.is_empty()
                && p.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
                && p.starts_with(|c: char| c.is_ascii_alphanumeric())
                && p.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        if path.is_empty() || !authority.chars().all(host) || !repository.split('/').all(part) {
            return wrong("a repository has lower-case letters, digits, '.', '_', '-' and '/'");
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_string()) } else { tag };
        Ok(Reference { authority: authority.to_string(), repository, tag, digest })
    }

    /// What the registry is asked for: the digest where there is one.
    pub fn target(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// Registry and repository.
    pub fn place(&self) -> String {
        format!("{}/{}", self.authority, self.repository)
    }

    /// The same repository under another tag.
    ///
    /// # Errors
    /// It is no tag.
    pub fn with_tag(&self, tag: &str) -> Result<Reference> {
        if !is_tag(tag) {
            let why = format!("'{tag}' is no tag; a tag has up to 128 letters, digits, '.', '_' and '-'");
            return input::bad(why);
        }
        Ok(Reference { tag: Some(tag.to_string()), digest: None, ..self.clone() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.authority, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Refuses `user:password@…`, and does not repeat it: errors end in logs.
///
/// # Errors
/// Something stands before an `@` that no digest follows.
pub fn no_password(text: &str) -> Result<()> {
    match text.split_once('@') {
        Some((_, rest)) if !rest.starts_with("sha256:") => input::bad(format!(
            "an image name has no user and password in it, and behind @ stands a digest only, which is sha256: and 64 \
             hex digits; for a password set {}, {} and {}, or log in with `docker login`, `skopeo login` or `oras login`",
            credentials::REGISTRY,
            credentials::USERNAME,
            credentials::PASSWORD
        )),
        _ => Ok(()),
    }
}

/// `sha256:` and 64 lower-case hex digits; other algorithms are not checked by kimg and so not taken.
pub fn is_digest(text: &str) -> bool {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.strip_prefix("sha256:").is_some_and(|h| h.len() == 64 && h.bytes().all(hex))
}

fn is_tag(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.len() <= 128 && text.chars().all(fine) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_the_runtime_does() {
        for (short, full) in [
            ("web", "docker.io/library/web:latest"),
            ("example/web:1", "docker.io/example/web:1"),
            ("kimg.local/pause:1", "kimg.local/pause:1"),
            ("localhost/web", "localhost/web:latest"),
            ("docker.io/library/oci:1", "docker.io/library/oci:1"),
            ("registry:5000/web", "registry:5000/web:latest"),
            ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), full);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = Reference::parse(&format!("r.example/web:1@{digest}")).unwrap();
        assert_eq!(pinned.target(), digest);
        assert_eq!(Reference::parse(&format!("r.example/web@{digest}")).unwrap().tag, None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in
            ["", "a b", "a/B:1", "web:", "web:-1", "web@sha256:1", "r.example/", "r.example//a", "https://r.example/a"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
        let error = Reference::parse("oci:layout").unwrap_err().to_string();
        assert!(error.contains("of this machine"), "{error}");
        let pinned = format!("u:s3cr3t@r.example/web@sha256:{}", "a".repeat(64));
        for bad in ["u:s3cr3t@r.example/web:1", "u:s3cr3t@r.example", "https://u:s3c@s3cr3t@r.example/web", &pinned] {
            let error = Reference::parse(bad).unwrap_err().to_string();
            assert!(error.contains("no user and password") && !error.contains("s3c"), "{error}");
        }
    }
}
