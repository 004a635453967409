//! `kimg.lock`: the exact packages that images are made of and with. Commit it.

use crate::cache::{self, hash};
use crate::image::recipe;
use crate::input::{self, BadInput};
use crate::packages::index::Offer;
use crate::packages::{self, resolve, version};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::Path;

/// File name, in the cluster directory.
pub const FILE: &str = "kimg.lock";
const VERSION: u32 = 1;
/// A few hundred packages take some tens of KiB.
const MOST_BYTES: u64 = 16 << 20;

/// The lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of the format.
    pub version: u32,
    /// Debian release.
    pub release: String,
    /// Architecture.
    pub architecture: String,
    /// All packages, sorted by name.
    #[serde(rename = "package")]
    pub packages: Vec<LockedPackage>,
}

/// One locked package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Package name.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// Suite that offered it.
    pub suite: String,
    /// Bytes of the .deb.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Its path below the archive root.
    pub path: String,
    /// The packages that come along with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends: Vec<String>,
}

impl Lock {
    /// Reads `kimg.lock` of a cluster directory.
    pub fn read(dir: &Path) -> Result<Lock> {
        let path = dir.join(FILE);
        if !path.exists() {
            return input::bad(format!("there is no {}; make it with `kimg lock`", path.display()));
        }
        let text = input::text(&path, MOST_BYTES)?;
        let lock: Lock = toml::from_str(&text).or_else(|error| {
            let line =
                error.span().and_then(|at| text.get(..at.start)).map_or(1, |before| before.matches('\n').count() + 1);
            input::bad(format!(
                "{}:{line} is not as `kimg lock` writes it; make it again with `kimg lock`",
                path.display()
            ))
        })?;
        if lock.version != VERSION || lock.release != packages::RELEASE {
            return input::bad(format!(
                "{} is of another version of kimg; make it again with `kimg lock`",
                path.display()
            ));
        }
        if let Some(package) = lock.packages.iter().find(|package| !hash::is_sha256(&package.sha256)) {
            return input::bad(format!(
                "{}: the sum of {} is no SHA-256; make it again with `kimg lock`",
                path.display(),
                package.name
            ));
        }
        Ok(lock)
    }

    /// A lock file of these packages.
    pub fn of(packages: Vec<LockedPackage>) -> Lock {
        Lock { version: VERSION, release: packages::RELEASE.into(), architecture: "amd64".into(), packages }
    }

    /// Writes it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        cache::write_atomic(&dir.join(FILE), self.to_text()?.as_bytes())
    }

    fn to_text(&self) -> Result<String> {
        let body = toml::to_string(self).context("writing the lock file")?;
        Ok(format!("# The exact Debian packages of this cluster's images. Made by `kimg lock`; commit it.\n{body}"))
    }

    /// The package of this name.
    pub fn package(&self, name: &str) -> Result<&LockedPackage> {
        self.packages.iter().find(|p| p.name == name).ok_or_else(|| {
            BadInput(format!("{FILE} has no package {name}; bring it up to date with `kimg lock`")).into()
        })
    }

    /// These packages and all that come along with them, sorted by name.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<&LockedPackage>> {
        let mut found = BTreeSet::new();
        let mut queue: Vec<&str> = names.to_vec();
        while let Some(name) = queue.pop() {
            let package = self.package(name)?;
            if found.insert(package.name.as_str()) {
                queue.extend(package.depends.iter().map(String::as_str));
            }
        }
        found.into_iter().map(|name| self.package(name)).collect()
    }
}

/// Resolves the packages of all recipes, and `more`, against what the mirrors offer.
pub fn make(offers: &[Offer], more: Vec<resolve::Wish>) -> Result<Lock> {
    let mut wishes = recipe::all_wishes()?;
    wishes.extend(more);
    let catalog = resolve::Catalog::new(offers);
    let chosen = resolve::resolve(&catalog, &wishes)?;
    let packages = chosen
        .into_values()
        .map(|choice| LockedPackage {
            name: choice.offer.name,
            version: choice.offer.version,
            suite: choice.offer.suite,
            size: choice.offer.size,
            sha256: choice.offer.sha256,
            path: choice.offer.path,
            depends: choice.depends,
        })
        .collect();
    Ok(Lock::of(packages))
}

/// What changed between two locks, one line each.
pub fn changes(old: Option<&Lock>, new: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    let empty = Vec::new();
    let old = old.map_or(&empty, |l| &l.packages);
    for package in &new.packages {
        match old.iter().find(|p| p.name == package.name) {
            None => lines.push(format!("+ {} {}", package.name, package.version)),
            Some(was) if was.version != package.version => {
                lines.push(format!("~ {} {} → {}", package.name, was.version, package.version));
            }
            Some(was) if was.sha256 != package.sha256 => {
                lines.push(format!("~ {} {} (other content)", package.name, package.version))
            }
            Some(_) => {}
        }
    }
    for package in old.iter().filter(|p| !new.packages.iter().any(|n| n.name == p.name)) {
        lines.push(format!("- {} {}", package.name, package.version));
    }
    lines
}

/// What the security archive has newer than the lock file, one line each. A point release takes security's versions
/// over and may have later ones, so that what a new lock file would name need not be the security archive's.
pub fn security_updates(lock: &Lock, offers: &[Offer]) -> Vec<String> {
    let secure: Vec<Offer> = offers.iter().filter(|offer| offer.suite.ends_with("-security")).cloned().collect();
    let catalog = resolve::Catalog::new(&secure);
    let newer = |package: &LockedPackage| {
        let offer = catalog.newest(&package.name)?;
        (version::compare(&offer.version, &package.version) == Ordering::Greater)
            .then(|| format!("{} {} → {}", package.name, package.version, offer.version))
    };
    lock.packages.iter().filter_map(newer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, depends: &[&str]) -> LockedPackage {
        LockedPackage {
            name: name.into(),
            version: version.into(),
            suite: "trixie".into(),
            size: 1,
            sha256: "00".repeat(32),
            path: format!("pool/{name}.deb"),
            depends: depends.iter().map(|s| s.to_string()).collect(),
        }
    }

    fn lock(packages: Vec<LockedPackage>) -> Lock {
        Lock { version: VERSION, release: "trixie".into(), architecture: "amd64".into(), packages }
    }

    #[test]
    fn it_reads_what_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        let written = lock(vec![package("crun", "1.21-1", &["libc6"]), package("libc6", "2.41", &[])]);
        written.write(dir.path()).unwrap();
        assert_eq!(Lock::read(dir.path()).unwrap(), written);
        let names: Vec<&str> = written.closure(&["crun"]).unwrap().iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["crun", "libc6"]);
        assert!(written.closure(&["x"]).unwrap_err().to_string().contains("kimg lock"));
    }

    #[test]
    fn a_missing_lock_file_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Lock::read(dir.path()).unwrap_err().to_string().contains("`kimg lock`"));
        std::fs::write(dir.path().join(FILE), "version = 1\ngarbage\n").unwrap();
        let error = Lock::read(dir.path()).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("kimg.lock:2 is not as"), "{error}");
    }

    #[test]
    fn only_newer_versions_of_the_security_archive_press() {
        let old = lock(vec![package("a", "1.9", &[]), package("b", "1", &[]), package("c", "2", &[])]);
        let offer = |suite: &str, name: &str, version: &str| {
            let text =
                format!("Package: {name}\nVersion: {version}\nArchitecture: all\nSize: 1\nSHA256: 00\nFilename: x");
            crate::packages::index::parse_packages(suite, &text).unwrap().remove(0)
        };
        let mut offers = vec![
            offer("trixie-security", "a", "1.10"),
            offer("trixie", "b", "2"),
            offer("trixie-security", "c", "1"),
            offer("trixie-security", "d", "1"),
        ];
        assert_eq!(security_updates(&old, &offers), ["a 1.9 → 1.10"]);
        // The next point release has it, too, or a later one.
        offers.push(offer("trixie", "a", "1.10"));
        assert_eq!(security_updates(&old, &offers), ["a 1.9 → 1.10"]);
        offers.insert(0, offer("trixie", "a", "1.11"));
        assert_eq!(security_updates(&old, &offers), ["a 1.9 → 1.10"]);
    }

    #[test]
    fn changes_are_told() {
        let old = lock(vec![package("a", "1", &[]), package("b", "1", &[])]);
        let new = lock(vec![package("a", "2", &[]), package("c", "1", &[])]);
        assert_eq!(changes(Some(&old), &new), ["~ a 1 → 2", "+ c 1", "- b 1"]);
    }
}
