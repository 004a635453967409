//! What a Debian package says of itself: its source, who maintains it, and its copyright file.

use crate::cache;
use crate::lock::{Lock, LockedPackage};
use crate::packages::{self, deb, index};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of what is kept in the user's cache.
const KEPT: &str = "about-1";
const DOC: &str = "/usr/share/doc/";

/// What a package says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct About {
    /// Source package.
    pub source: String,
    /// Its version.
    pub source_version: String,
    /// Who maintains it, name and address.
    pub maintainer: String,
    /// Where its authors are, if it says so.
    pub homepage: Option<String>,
    /// Its copyright file, or the package whose it shares.
    pub copyright: Copyright,
}

/// A copyright file, or whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copyright {
    /// The text.
    Text(String),
    /// The documents' folder is a link to that of another package.
    Of(String),
}

/// What fetched packages say, kept in the user's cache by content.
///
/// # Errors
/// A package cannot be read, or has no copyright file.
pub fn about(package: &LockedPackage) -> Result<About> {
    let kept = cache::user_dir()?.join(KEPT).join(&package.sha256);
    if let Some(about) = std::fs::read(&kept).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return Ok(about);
    }
    let about = read(&package.name, &packages::path_of(package)?)
        .with_context(|| format!("reading what {} {} says of itself", package.name, package.version))?;
    cache::write_atomic(&kept, &serde_json::to_vec(&about).context("writing what a package says")?)?;
    Ok(about)
}

fn read(name: &str, path: &Path) -> Result<About> {
    let control = deb::control(path)?;
    let stanza = index::stanzas(&control).into_iter().next().context("its control file is empty")?;
    let field = |key: &str| stanza.get(key).cloned();
    let version = field("Version").context("its control file has no Version")?;
    // `Source: NAME (VERSION)`, each only where it differs from the package's own.
    let source = field("Source").unwrap_or_else(|| name.to_string());
    let (source, source_version) = match source.split_once(" (") {
        Some((source, rest)) => (source.to_string(), rest.trim_end_matches(')').to_string()),
        None => (source, version),
    };
    let folder = format!("{DOC}{name}");
    let file = format!("{folder}/copyright");
    let files = deb::unpack(path, &deb::Budget::default(), |path| path == folder || path == file)?;
    let copyright = match (files.get(&file), files.get(&folder)) {
        (Some(deb::Entry::File(_, bytes)), _) => Copyright::Text(String::from_utf8_lossy(bytes).into_owned()),
        (Some(deb::Entry::Link(target)), _) => Copyright::Of(owner(target, 2)?),
        (None, Some(deb::Entry::Link(target))) => Copyright::Of(owner(target, 1)?),
        _ => bail!("it has no file {file}"),
    };
    let maintainer = field("Maintainer").context("its control file has no Maintainer")?;
    Ok(About { source, source_version, maintainer, homepage: field("Homepage"), copyright })
}

/// `gcc-14-base` or `../gcc-14-base/copyright`: the package is the `nth` last part.
fn owner(target: &str, nth: usize) -> Result<String> {
    let part = target.trim_end_matches('/').rsplit('/').nth(nth - 1);
    part.map(str::to_string).with_context(|| format!("its documents are a link to {target}"))
}

/// The copyright text of each package, links followed.
///
/// # Errors
/// A package shares the file of one that the lock file does not have.
pub fn copyrights(lock: &Lock, packages: &[&LockedPackage]) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for package in packages {
        let mut current = (*package).clone();
        // gcc's libraries share the file of gcc-N-base; a chain of links is short, a circle is a fault.
        let mut text = None;
        for _ in 0..4 {
            match about(&current)?.copyright {
                Copyright::Text(found) => {
                    text = Some(found);
                    break;
                }
                Copyright::Of(other) => {
                    current = lock
                        .package(&other)
                        .with_context(|| format!("the copyright file of {} is that of {other}", package.name))?
                        .clone();
                }
            }
        }
        let text =
            text.with_context(|| format!("the links to the copyright file of {} go in a circle", package.name))?;
        texts.insert(package.name.clone(), text);
    }
    Ok(texts)
}

/// Packages beyond these whose copyright files they share.
pub fn sharers(lock: &Lock, packages: &[&LockedPackage]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for package in packages {
        if let Copyright::Of(other) = about(package)?.copyright {
            names.push(
                lock.package(&other)
                    .map(|p| p.name.clone())
                    .with_context(|| format!("the copyright file of {} is that of {other}", package.name))?,
            );
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Short names of the licences in a machine-readable copyright file (DEP 5), in order; none where it is prose.
pub fn licence_names(copyright: &str) -> Vec<String> {
    let mut names = Vec::new();
    if copyright.starts_with("Format:") {
        let lines = copyright.lines().filter_map(|line| line.strip_prefix("License:"));
        names.extend(lines.map(|name| name.trim().to_string()).filter(|name| !name.is_empty()));
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::deb::testing::{deb, tar_of};

    fn package(control: &str, files: &[(&str, &str)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let members = [("control.tar", tar_of(&[("./control", control)])), ("data.tar", tar_of(files))];
        let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        std::fs::write(file.path(), deb(&members)).unwrap();
        file
    }

    #[test]
    fn control_and_copyright_are_read() {
        let control = "Package: libgcc-s1\nSource: gcc-14 (14.2.0-19)\nVersion: 14.2.0-19+b1\n\
                       Maintainer: Debian GCC Maintainers <debian-gcc@lists.debian.org>\nHomepage: http://gcc.gnu.org/\n";
        let file = package(control, &[("./usr/share/doc/libgcc-s1", "-> gcc-14-base")]);
        let about = read("libgcc-s1", file.path()).unwrap();
        assert_eq!((about.source.as_str(), about.source_version.as_str()), ("gcc-14", "14.2.0-19"));
        assert_eq!(about.copyright, Copyright::Of("gcc-14-base".into()));
        assert_eq!(about.homepage.as_deref(), Some("http://gcc.gnu.org/"));

        let control = "Package: crun\nVersion: 1.21-1\nMaintainer: A <a@example.org>\n";
        let file = package(control, &[("./usr/share/doc/crun/copyright", "Format: x\nLicense: GPL-2+\n")]);
        let about = read("crun", file.path()).unwrap();
        assert_eq!((about.source.as_str(), about.source_version.as_str()), ("crun", "1.21-1"));
        assert_eq!(about.copyright, Copyright::Text("Format: x\nLicense: GPL-2+\n".into()));
    }

    #[test]
    fn a_package_without_a_copyright_file_is_refused() {
        let file = package("Package: a\nVersion: 1\nMaintainer: A <a@example.org>\n", &[("./usr/bin/a", "x")]);
        assert!(read("a", file.path()).unwrap_err().to_string().contains("/usr/share/doc/a/copyright"));
        let file = package("", &[("./usr/share/doc/a/copyright", "x")]);
        assert!(read("a", file.path()).is_err());
    }

    #[test]
    fn licences_are_named_where_a_file_says_them() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
                    Files: *\nLicense: GPL-2+\n text\n\nFiles: b\nLicense: Expat\n\nLicense: GPL-2+\n long\n";
        assert_eq!(licence_names(text), ["Expat", "GPL-2+"]);
        assert!(licence_names("License: this is prose").is_empty());
    }
}
