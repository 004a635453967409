//! Debian's security tracker against the source packages of an image.
//!
//! The tracker's file (<https://security-tracker.debian.org/tracker/data/json>) has some 60 MB: it is read as a stream,
//! and only what is said of the image's own packages is looked at. What it says is shown on terminals, so no more than
//! names, versions and plain words are taken from it.

use crate::input::BadInput;
use crate::packages::version;
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;

/// Where the file is to be had.
pub const URL: &str = "https://security-tracker.debian.org/tracker/data/json";

/// A source package of which something is in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// As the tracker calls it.
    pub name: String,
    /// Version.
    pub version: String,
    /// Name of the Debian release that it is from.
    pub release: String,
}

/// A vulnerability that an image has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// Source package.
    pub source: String,
    /// Version in the image.
    pub installed: String,
    /// The Debian release whose state it is.
    pub release: String,
    /// Its number, mostly of CVE.
    pub name: String,
    /// What to expect.
    #[serde(flatten)]
    pub fix: Fix,
    /// How urgent Debian finds it.
    pub urgency: String,
}

impl Finding {
    /// Whether newer packages do not have it.
    pub fn is_fixed(&self) -> bool {
        matches!(self.fix, Fix::Fixed { .. })
    }
}

/// What the release has against a vulnerability.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "status", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Fix {
    /// A version without it.
    Fixed {
        /// The first such version.
        fixed_version: String,
    },
    /// Nothing yet.
    Open {
        /// `postponed` or `ignored`, where Debian makes no advisory.
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// Whether the release is affected is not known.
    Undetermined,
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fix::Fixed { fixed_version } => f.write_str(fixed_version),
            Fix::Open { reason } if reason.is_empty() => f.write_str("none"),
            Fix::Open { reason } => write!(f, "none ({reason})"),
            Fix::Undetermined => f.write_str("undetermined"),
        }
    }
}

/// What affects `sources`, by the tracker's file; in order of source packages and names.
///
/// # Errors
/// [`BadInput`] when the file is none of the tracker's, or says nothing of a release. It names no file.
pub fn findings(tracker: impl Read, sources: &BTreeSet<Source>) -> Result<Vec<Finding>, BadInput> {
    let mut search = Search { sources, found: BTreeSet::new(), releases: BTreeSet::new() };
    let mut json = serde_json::Deserializer::from_reader(tracker);
    Packages(&mut search)
        .deserialize(&mut json)
        .and_then(|()| json.end())
        .map_err(|error| BadInput(format!("is not what the security tracker gives: {error}; take it from {URL}")))?;
    // Every release has known vulnerabilities: of one of which nothing is said, nothing is known.
    match sources.iter().find(|source| !search.releases.contains(&source.release)) {
        Some(source) => Err(BadInput(format!(
            "says nothing of Debian {}, from which {} {} is; take it from {URL}",
            source.release, source.name, source.version
        ))),
        None => Ok(search.found.into_iter().collect()),
    }
}

struct Search<'a> {
    sources: &'a BTreeSet<Source>,
    found: BTreeSet<Finding>,
    /// Releases of which the tracker has been seen to say something.
    releases: BTreeSet<String>,
}

/// The whole file: what is known of each source package.
struct Packages<'s, 'a>(&'s mut Search<'a>);

impl<'de> DeserializeSeed<'de> for Packages<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Packages<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("source packages")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let own: Vec<&Source> = self.0.sources.iter().filter(|source| source.name == name).collect();
            if own.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Package { search: self.0, sources: &own })?;
            }
        }
        Ok(())
    }
}

/// What is known of one source package, which an image may have in several versions.
struct Package<'s, 'a> {
    search: &'s mut Search<'a>,
    sources: &'s [&'a Source],
}

impl<'de> DeserializeSeed<'de> for Package<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Package<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vulnerabilities of a source package")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some((name, entry)) = map.next_entry::<String, Entry>()? {
            let name = word(name).map_err(serde::de::Error::custom)?;
            for source in self.sources {
                let Some(state) = entry.releases.get(&source.release) else { continue };
                self.search.releases.insert(source.release.clone());
                if let Some(fix) = state.affects(&source.version).map_err(serde::de::Error::custom)? {
                    let urgency = state.urgency.clone().unwrap_or_else(|| "not yet assigned".into());
                    self.search.found.insert(Finding {
                        source: source.name.clone(),
                        installed: source.version.clone(),
                        release: source.release.clone(),
                        name: name.clone(),
                        fix,
                        urgency: word(urgency).map_err(serde::de::Error::custom)?,
                    });
                }
            }
        }
        Ok(())
    }
}

/// A vulnerability, as the tracker describes it.
#[derive(serde::Deserialize)]
struct Entry {
    releases: BTreeMap<String, State>,
}

/// How it stands in a release.
#[derive(serde::Deserialize)]
struct State {
    status: String,
    fixed_version: Option<String>,
    urgency: Option<String>,
    nodsa_reason: Option<String>,
}

impl State {
    /// What there is against it, where it affects a version.
    fn affects(&self, installed: &str) -> Result<Option<Fix>, String> {
        match (self.status.as_str(), &self.fixed_version) {
            // A release that never had it is said to be resolved in version 0.
            ("resolved", Some(fixed)) if version::compare(installed, fixed) == Ordering::Less => {
                Ok(Some(Fix::Fixed { fixed_version: word(fixed.clone())? }))
            }
            ("resolved", Some(_)) => Ok(None),
            ("resolved", None) => Err("a vulnerability is resolved in no version".into()),
            ("open", _) => {
                let reason = word(self.nodsa_reason.clone().unwrap_or_default())?;
                Ok(Some(Fix::Open { reason }))
            }
            ("undetermined", _) => Ok(Some(Fix::Undetermined)),
            (other, _) => Err(format!("'{}' is no status of a vulnerability", word(other.into())?)),
        }
    }
}

/// A name, a version or some words: nothing that a terminal would obey.
fn word(text: String) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    if plain && text.len() <= 200 { Ok(text) } else { Err("a name or version has signs that none has".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACKER: &str = r#"{
      "bash": {"CVE-2019-1": {"releases": {"trixie": {"status": "nonsense that nobody asked for"}}}},
      "crun": {
        "CVE-2025-1": {"scope": "local", "debianbug": 7, "description": "a \u001b[31m red one", "releases": {
          "bookworm": {"status": "open", "repositories": {"bookworm": "1.8-1"}, "urgency": "high"},
          "trixie": {"status": "resolved", "repositories": {"trixie": "1.21-1", "trixie-security": "1.21-1+deb13u1"},
                     "fixed_version": "1.21-1+deb13u1", "urgency": "medium"}}},
        "CVE-2025-2": {"releases": {"trixie": {"status": "resolved", "fixed_version": "1.9-1", "urgency": "low"}}},
        "CVE-2025-3": {"releases": {"trixie": {"status": "resolved", "fixed_version": "0", "urgency": "low"}}},
        "CVE-2025-4": {"releases": {"trixie": {"status": "open", "urgency": "unimportant", "nodsa": "Minor issue",
                                               "nodsa_reason": "postponed"}}},
        "CVE-2025-5": {"releases": {"trixie": {"status": "open", "urgency": null, "nodsa_reason": ""}}},
        "CVE-2025-6": {"releases": {"sid": {"status": "open", "urgency": "high"}}},
        "TEMP-0000000-ABCDEF": {"releases": {"trixie": {"status": "undetermined", "urgency": "not yet assigned"}}}
      },
      "glibc": {"CVE-2025-7": {"releases": {
        "bookworm": {"status": "resolved", "fixed_version": "2.36-9+deb12u9", "urgency": "high"},
        "trixie": {"status": "resolved", "fixed_version": "2.41-12+deb13u1", "urgency": "high"}}}}
    }"#;

    fn source(name: &str, version: &str, release: &str) -> Source {
        Source { name: name.into(), version: version.into(), release: release.into() }
    }

    fn check(tracker: &str, sources: &[Source]) -> Result<Vec<String>, String> {
        let found = findings(tracker.as_bytes(), &sources.iter().cloned().collect()).map_err(|error| error.0)?;
        Ok(found.iter().map(|f| format!("{} {} {}: {}, {}", f.source, f.installed, f.name, f.fix, f.urgency)).collect())
    }

    #[test]
    fn what_affects_the_version_is_found_and_nothing_else() {
        let found = check(TRACKER, &[source("crun", "1.21-1", "trixie"), source("jq", "1.7-1", "trixie")]).unwrap();
        assert_eq!(
            found,
            [
                "crun 1.21-1 CVE-2025-1: 1.21-1+deb13u1, medium",
                "crun 1.21-1 CVE-2025-4: none (postponed), unimportant",
                "crun 1.21-1 CVE-2025-5: none, not yet assigned",
                "crun 1.21-1 TEMP-0000000-ABCDEF: undetermined, not yet assigned",
            ]
        );
        let fixed = check(TRACKER, &[source("crun", "1.21-1+deb13u1", "trixie")]).unwrap();
        assert_eq!(fixed.len(), 3, "{fixed:?}");
    }

    #[test]
    fn programs_read_status_and_version() {
        let sources = [source("crun", "1.21-1", "trixie")].into();
        let json = serde_json::to_value(findings(TRACKER.as_bytes(), &sources).unwrap()).unwrap();
        let expected = serde_json::json!({
            "source": "crun", "installed": "1.21-1", "release": "trixie", "name": "CVE-2025-1",
            "status": "fixed", "fixed-version": "1.21-1+deb13u1", "urgency": "medium",
        });
        assert_eq!(json[0], expected);
        assert_eq!((&json[1]["status"], &json[1]["reason"]), (&"open".into(), &"postponed".into()));
        assert_eq!((&json[2]["status"], json[2].get("reason")), (&"open".into(), None));
    }

    #[test]
    fn each_version_is_held_against_its_own_release() {
        let both = [source("glibc", "2.36-9+deb12u9", "bookworm"), source("glibc", "2.41-12", "trixie")];
        assert_eq!(check(TRACKER, &both).unwrap(), ["glibc 2.41-12 CVE-2025-7: 2.41-12+deb13u1, high"]);
    }

    #[test]
    fn what_the_tracker_never_gave_is_refused() {
        let open = |name: &str, rest: &str| {
            format!(r#"{{"crun": {{"{name}": {{"releases": {{"trixie": {{"status": "open"{rest}}}}}}}}}}}"#)
        };
        let crun = [source("crun", "1.21-1", "trixie")];
        assert_eq!(check(&open("CVE-1", ""), &crun).unwrap().len(), 1);
        let deep = format!(r#"{{"crun": {}"#, r#"{"a":"#.repeat(100_000));
        let skipped = format!(r#"{{"bash": {}"#, "[".repeat(100_000));
        for (tracker, said) in [
            ("", "EOF while parsing"),
            ("[]", "invalid type: sequence"),
            ("{}", "says nothing of Debian trixie, from which crun 1.21-1 is"),
            (TRACKER.trim_end().trim_end_matches('}'), "EOF while parsing"),
            (&format!("{TRACKER}{{"), "trailing characters"),
            (r#"{"crun": 7}"#, "vulnerabilities of a source package"),
            (r#"{"crun": {"CVE-1": {}}}"#, "missing field `releases`"),
            (&open("CVE-1", "").replace("open", "\\u001b[2J"), "signs that none has"),
            (&open("CVE-1", "").replace("open", "shut"), "'shut' is no status"),
            (&open("CVE-1", "").replace("open", "resolved"), "resolved in no version"),
            (&open("CVE-\\u001b[2J", ""), "signs that none has"),
            (&open("CVE-1", r#", "urgency": "\u0007""#), "signs that none has"),
            (&open("CVE-1", r#", "nodsa_reason": ["x"]"#), "invalid type"),
            (&deep, "EOF while parsing"),
            (&skipped, "EOF while parsing"),
        ] {
            let error = check(tracker, &crun).unwrap_err();
            assert!(error.contains(said) && error.contains(URL), "{said}: {error}");
        }
    }
}
