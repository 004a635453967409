//! The crates in the programs that images carry, as they were when kimg was built (`build.rs`): kimg and the programs
//! come from one workspace and one `Cargo.lock`.

use anyhow::{Result, bail};
use std::collections::BTreeSet;

/// A crate.
pub struct Crate {
    /// Name.
    pub name: &'static str,
    /// Version.
    pub version: &'static str,
    /// SPDX expression as its Cargo.toml says it.
    pub licence: &'static str,
    /// SHA-256 of its archive in the registry, hex; empty for own crates.
    pub checksum: &'static str,
    /// Whether it is one of this workspace.
    pub own: bool,
    /// Programs that it is in.
    pub programs: &'static [&'static str],
    /// Name and version of what it is linked from.
    pub depends: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, (usize, usize))],
}

include!(concat!(env!("OUT_DIR"), "/crates.rs"));
static LICENCES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/licences"));

/// All crates of all programs, in order of names and versions.
pub fn all() -> &'static [Crate] {
    CRATES
}

/// Version of the Rust standard library.
pub fn rust_version() -> &'static str {
    RUST_VERSION
}

impl Crate {
    /// Its licence files: name and text.
    pub fn licence_files(&self) -> impl Iterator<Item = (&'static str, &'static [u8])> {
        self.files.iter().map(|(name, place)| (*name, text(*place)))
    }

    /// Its licence in the syntax of SPDX 2.3: older crates separate by `/` what they may be used under.
    pub fn expression(&self) -> String {
        self.licence.replace('/', " OR ").split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Licence files of the standard library.
pub fn rust_licence_files() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    RUST_FILES.iter().map(|(name, place)| (*name, text(*place)))
}

fn text((start, end): (usize, usize)) -> &'static [u8] {
    LICENCES.get(start..end).unwrap_or_default()
}

/// Refuses a program of another build: the places that its panics name tell which crates it was made of.
///
/// # Errors
/// It names a crate in a version that this kimg does not know.
pub fn check(program: &str, bytes: &[u8]) -> Result<()> {
    let known: BTreeSet<String> = CRATES.iter().map(|c| format!("{}-{}", c.name, c.version)).collect();
    const MARK: &[u8] = b"/registry/src/";
    let (mut at, mut any) = (0, false);
    while let Some(found) = memchr::memmem::find(&bytes[at..], MARK) {
        at += found + MARK.len();
        // Next come the registry's own folder and the crate's.
        let mut parts = bytes[at..].split(|byte| *byte == b'/');
        let folder = parts.nth(1).and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default();
        any |= known.contains(folder);
        let is_name = folder.len() < 100 && folder.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c));
        if is_name && folder.contains('-') && !known.contains(folder) {
            bail!(
                "{program} was built with {folder}, which this kimg does not know, so the SBOM would be wrong; build kimg and the programs together (`make build`)"
            );
        }
    }
    if !any {
        bail!(
            "{program} names none of the crates that it was made of, so nobody knows whether the SBOM is its own; build it with `make build`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_crates_are_known_with_licence_and_sum() {
        for program in ["kimg-node", "kimg-control", "kimg-stage1"] {
            assert!(CRATES.iter().any(|c| !c.own && c.programs.contains(&program)), "{program}");
        }
        for c in CRATES {
            assert!(!c.licence.is_empty(), "{} {} declares no licence", c.name, c.version);
            assert_eq!(c.checksum.len(), if c.own { 0 } else { 64 }, "{} {}", c.name, c.version);
            for (name, version) in c.depends {
                assert!(CRATES.iter().any(|d| d.name == *name && d.version == *version), "{name} {version}");
            }
        }
        let tokio = CRATES.iter().find(|c| c.name == "tokio").expect("nodes run on tokio");
        let (_, text) = tokio.licence_files().next().expect("it ships its licence");
        assert!(String::from_utf8_lossy(text).contains("Permission is hereby granted"));
        assert!(!CRATES.iter().any(|c| c.name == "libtest-mimic"), "a crate of tests only");
    }

    #[test]
    fn programs_of_another_build_are_refused() {
        let tokio = CRATES.iter().find(|c| c.name == "tokio").unwrap();
        let names = |version: &str| format!("\0/x/registry/src/index-1/tokio-{version}/src/lib.rs\0").into_bytes();
        check("kimg-node", &names(tokio.version)).unwrap();
        let error = check("kimg-node", &names("0.0.1")).unwrap_err().to_string();
        assert!(error.contains("tokio-0.0.1") && error.contains("make build"), "{error}");
        let others = [&names(tokio.version)[..], b"/rust/deps/hashbrown-0.15.2/src/x.rs /registry/src/"].concat();
        check("kimg-node", &others).unwrap();
        assert!(check("kimg-node", b"\0/vendor/tokio-1/src/lib.rs\0").is_err(), "nothing is known of it");
    }
}
