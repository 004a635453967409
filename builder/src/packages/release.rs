//! `InRelease`: the signed list of a suite's index files, checked with the archive keys compiled in.

use anyhow::{Context, Result, bail};
use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use std::collections::BTreeMap;

/// Debian's archive signing keys of the releases 12 and 13 (public, from debian-archive-keyring).
const KEYS: [&[u8]; 6] = [
    include_bytes!("../../keys/debian-archive-trixie-automatic.gpg"),
    include_bytes!("../../keys/debian-archive-trixie-security-automatic.gpg"),
    include_bytes!("../../keys/debian-archive-trixie-stable.gpg"),
    include_bytes!("../../keys/debian-archive-bookworm-automatic.gpg"),
    include_bytes!("../../keys/debian-archive-bookworm-security-automatic.gpg"),
    include_bytes!("../../keys/debian-archive-bookworm-stable.gpg"),
];

/// A verified Release file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Codename it says of itself, e.g. `trixie-security`.
    pub codename: String,
    /// `Valid-Until`, where given.
    valid_until: Option<jiff::Timestamp>,
    /// Index file → (SHA-256, size).
    pub files: BTreeMap<String, (String, u64)>,
}

impl Release {
    fn check(&self, suite: &str, now: jiff::Timestamp) -> Result<()> {
        if self.codename != suite {
            bail!("the Release file is that of {}, not of {suite}", self.codename);
        }
        if let Some(until) = self.valid_until
            && until < now
        {
            bail!(
                "the Release file of {suite} was valid until {until} only; the mirror is out of date, or this host's clock is wrong; of a snapshot, write its moment as `snapshot` under [packages] in cluster.toml"
            );
        }
        Ok(())
    }
}

/// Reads an InRelease file, which must be signed, that of `suite`, and still valid.
pub fn verify(armored: &str, suite: &str, now: jiff::Timestamp) -> Result<Release> {
    let release = parse(&verified_text(armored)?)?;
    release.check(suite, now)?;
    Ok(release)
}

fn keys() -> Result<Vec<SignedPublicKey>> {
    let keys =
        KEYS.iter().map(|bytes| SignedPublicKey::from_bytes(*bytes).context("reading a compiled-in archive key"));
    #[cfg(test)]
    let keys = keys.chain([Ok(super::testing::KEY.to_public_key())]);
    keys.collect()
}

fn verified_text(armored: &str) -> Result<String> {
    let (message, _) = CleartextSignedMessage::from_string(armored).context("the answer is no signed Release file")?;
    for key in keys()? {
        if message.verify(&key).is_ok() || key.public_subkeys.iter().any(|sub| message.verify(&sub.key).is_ok()) {
            return Ok(message.signed_text());
        }
    }
    bail!("the Release file is not signed by a Debian archive key of release 12 or 13; use an official mirror")
}

fn parse(text: &str) -> Result<Release> {
    let stanza = super::index::stanzas(text).into_iter().next().context("the Release file is empty")?;
    let mut files = BTreeMap::new();
    for line in stanza.get("SHA256").context("the Release file lists no SHA256 sums")?.lines() {
        let mut words = line.split_whitespace();
        if let (Some(hash), Some(size), Some(path)) = (words.next(), words.next(), words.next()) {
            files.insert(path.to_string(), (hash.to_string(), size.parse().unwrap_or(0)));
        }
    }
    let valid_until = match stanza.get("Valid-Until") {
        Some(text) => Some(parse_date(text)?),
        None => None,
    };
    Ok(Release { codename: stanza.get("Codename").cloned().unwrap_or_default(), valid_until, files })
}

fn parse_date(text: &str) -> Result<jiff::Timestamp> {
    let text = text.trim().trim_end_matches("UTC").trim();
    jiff::fmt::strtime::parse("%a, %d %b %Y %H:%M:%S", text)
        .and_then(|t| t.to_datetime())
        .and_then(|d| d.to_zoned(jiff::tz::TimeZone::UTC))
        .map(|z| z.timestamp())
        .with_context(|| format!("reading the date '{text}' of the Release file"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{KEY, new_key, signed};
    use super::*;

    const TEXT: &str = "Codename: trixie\nValid-Until: Thu, 26 Nov 2026 02:12:54 UTC\nSHA256:\n aa 12 main/x\n";

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    /// The error of a file that is asked for in time.
    fn refused(armored: &str) -> String {
        verify(armored, "trixie", at("2026-11-26T00:00:00Z")).unwrap_err().to_string()
    }

    #[test]
    fn what_a_known_key_signed_is_taken() {
        let release = verify(&signed(TEXT, &KEY), "trixie", at("2026-11-26T02:12:54Z")).unwrap();
        assert_eq!(release.files["main/x"], ("aa".to_string(), 12));
    }

    #[test]
    fn an_unsigned_file_is_refused() {
        assert_eq!(refused("Origin: Debian\n"), "the answer is no signed Release file");
        assert_eq!(refused(TEXT), "the answer is no signed Release file");
    }

    #[test]
    fn an_altered_file_and_that_of_a_foreign_key_are_refused() {
        let by = |key| signed(TEXT, key);
        let good = by(&KEY);
        for (from, to) in
            [(" aa 12", " ab 12"), (" aa 12", " aa 13"), ("02:12:54", "03:12:54"), ("trixie\n", "trixie\nSuite: x\n")]
        {
            let altered = good.replacen(from, to, 1);
            assert_ne!(altered, good);
            assert!(refused(&altered).contains("not signed by a Debian archive key"), "{to}");
        }
        assert!(refused(&by(&new_key())).contains("not signed by a Debian archive key"));
        // Nothing that stands around the signed text is read.
        let more = TEXT.replace(" aa", " bb");
        for around in
            [format!("{}{good}", signed(&more, &new_key())), format!("{more}\n{good}"), format!("{good}\n{more}")]
        {
            if let Ok(taken) = verify(&around, "trixie", at("2026-11-26T00:00:00Z")) {
                assert_eq!(taken.files["main/x"].0, "aa");
            }
        }
    }

    /// The layout of RFC 4880 is right, and the signature says nothing of ours.
    #[test]
    fn a_signature_that_is_none_is_refused() {
        let text = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nCodename: trixie\n\
                    -----BEGIN PGP SIGNATURE-----\n\niHUEABYKAB0WIQQ=\n-----END PGP SIGNATURE-----\n";
        assert!(refused(text).starts_with("the"));
    }

    #[test]
    fn an_old_release_file_and_that_of_another_suite_are_refused() {
        let verify = |suite, moment| verify(&signed(TEXT, &KEY), suite, at(moment));
        let error = verify("trixie", "2026-11-26T02:12:55Z").unwrap_err().to_string();
        assert!(error.contains("valid until 2026-11-26T02:12:54Z") && error.contains("snapshot"), "{error}");
        let error = verify("trixie-security", "2026-01-01T00:00:00Z").unwrap_err().to_string();
        assert!(error.contains("that of trixie, not of trixie-security"), "{error}");
    }

    #[test]
    fn sums_and_dates_are_read() {
        let release = parse(TEXT).unwrap();
        assert_eq!(release.files["main/x"], ("aa".to_string(), 12));
        assert_eq!(release.valid_until.unwrap().to_string(), "2026-11-26T02:12:54Z");
    }
}
