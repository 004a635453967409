//! Debian packages: where they come from, which are needed, and what is in them.

pub mod apt;
pub mod deb;
pub mod index;
mod program;
pub mod release;
pub mod resolve;
#[cfg(test)]
pub(crate) mod testing;
pub mod version;

pub use program::{fetch_program, fetch_tree};

use crate::cache::download::{self, Missing, Store};
use crate::cache::{self, hash};
use crate::lock::{Lock, LockedPackage};
use crate::progress::Progress;
use crate::web::without_password;
use anyhow::{Context, Result, anyhow, bail};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The Debian release that images are made of.
pub const RELEASE: &str = "trixie";
const COMPONENT: &str = "main";
/// InRelease files are around 150 KiB, the release's Packages.xz around 10 MiB.
const RELEASE_LIMIT: u64 = 4 << 20;
const INDEX_LIMIT: u64 = 64 << 20;
/// How many files are fetched at once.
const PARALLEL: usize = 4;

/// Mirrors that the operator chose; what is not given is learned from the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// Archive root of the release and its updates.
    pub main: Option<String>,
    /// Archive root of the security suite.
    pub security: Option<String>,
}

/// The two archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Archive {
    Main,
    Security,
}

fn archive_of(suite: &str) -> Archive {
    if suite.ends_with("-security") { Archive::Security } else { Archive::Main }
}

/// The suites, in the order in which they are read.
pub fn suites() -> [String; 3] {
    [RELEASE.to_string(), format!("{RELEASE}-updates"), format!("{RELEASE}-security")]
}

impl Mirrors {
    fn candidates(&self, archive: Archive) -> Result<Vec<String>> {
        let (given, key) = match archive {
            Archive::Main => (&self.main, "mirror"),
            Archive::Security => (&self.security, "security-mirror"),
        };
        if let Some(uri) = given {
            return Ok(vec![uri.trim_end_matches('/').to_string()]);
        }
        let mut found = apt::candidates(&apt::host_sources());
        if let Some(main) = self.main.as_deref().and_then(|m| m.trim_end_matches('/').strip_suffix("/debian")) {
            found.security.insert(0, format!("{main}/debian-security"));
        }
        let list = match archive {
            Archive::Main => found.main,
            Archive::Security => found.security,
        };
        if list.is_empty() {
            bail!(
                "this host has no apt sources to take a Debian mirror from; write `{key} = \"http://…\"` under [packages] in cluster.toml"
            );
        }
        Ok(list)
    }
}

/// Reads the offers of all suites from the mirrors, verified from the signature down.
pub fn offers(mirrors: &Mirrors, now: jiff::Timestamp, progress: &Progress) -> Result<Vec<index::Offer>> {
    let client = download::client();
    let mut all = Vec::new();
    for suite in suites() {
        let bar = progress.step(&format!("reading the package list of {suite}"));
        all.extend(offers_of(&client, mirrors, &suite, now)?);
        bar.finish_and_clear();
    }
    Ok(all)
}

/// The archive root of this host's apt sources that gives a suite.
///
/// # Errors
/// There are no sources, or none of them gives the suite.
pub fn mirror_of(suite: &str) -> Result<String> {
    Ok(mirror_and_offers(&download::client(), &Mirrors::default(), suite, jiff::Timestamp::now())?.0)
}

fn offers_of(client: &ureq::Agent, mirrors: &Mirrors, suite: &str, now: jiff::Timestamp) -> Result<Vec<index::Offer>> {
    Ok(mirror_and_offers(client, mirrors, suite, now)?.1)
}

fn mirror_and_offers(
    client: &ureq::Agent,
    mirrors: &Mirrors,
    suite: &str,
    now: jiff::Timestamp,
) -> Result<(String, Vec<index::Offer>)> {
    let mut failures = Vec::new();
    for root in mirrors.candidates(archive_of(suite))? {
        match offers_from(client, &root, suite, now) {
            Ok(offers) => return Ok((root, offers)),
            Err(error) => failures.push(format!("{}: {error:#}", without_password(&root))),
        }
    }
    bail!("no mirror gave the suite {suite}:\n  {}", failures.join("\n  "))
}

fn offers_from(client: &ureq::Agent, root: &str, suite: &str, now: jiff::Timestamp) -> Result<Vec<index::Offer>> {
    let base = format!("{root}/dists/{suite}");
    let signed = download::get(client, &format!("{base}/InRelease"), RELEASE_LIMIT)?;
    let release = release::verify(std::str::from_utf8(&signed).context("InRelease is not text")?, suite, now)?;
    let path = format!("{COMPONENT}/binary-amd64/Packages.xz");
    let (sha256, size) =
        release.files.get(&path).with_context(|| format!("the Release file of {suite} lists no {path}"))?;
    let by_hash = format!("{base}/{COMPONENT}/binary-amd64/by-hash/SHA256/{sha256}");
    let packed = download::get(client, &by_hash, INDEX_LIMIT)
        .or_else(|_| download::get(client, &format!("{base}/{path}"), INDEX_LIMIT))?;
    if packed.len() as u64 != *size || hash::hex_of(&packed) != *sha256 {
        bail!(
            "{path} of {suite} is not the file that the Release file names; the mirror is being updated, run `kimg lock` again later"
        );
    }
    let mut text = String::new();
    liblzma::read::XzDecoder::new(&packed[..])
        .read_to_string(&mut text)
        .with_context(|| format!("unpacking {path}"))?;
    index::parse_packages(suite, &text)
}

/// The store of downloaded packages.
pub fn store() -> Result<Store> {
    Ok(Store::new(&cache::user_dir()?.join("packages"), &cache::sums_dir()?))
}

/// Makes sure that all these packages are in the store; fetches several at once.
pub fn fetch(lock: &Lock, names: &[&str], mirrors: &Mirrors, progress: &Progress) -> Result<()> {
    let store = store()?;
    let mut missing: Vec<&LockedPackage> = Vec::new();
    for name in names {
        let package = lock.package(name)?;
        if !store.has(&package.sha256, package.size)? {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let size: u64 = missing.iter().map(|package| package.size).sum();
    progress.line(&format!("fetching {} packages, {} MiB", missing.len(), size.div_ceil(1 << 20)));
    let client = download::client();
    let next = AtomicUsize::new(0);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PARALLEL.min(missing.len()))
            .map(|_| {
                scope.spawn(|| {
                    while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        fetch_one(&client, &store, package, mirrors, progress)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(anyhow!("a download thread stopped")))).collect()
    });
    results.into_iter().collect()
}

fn fetch_one(
    client: &ureq::Agent,
    store: &Store,
    package: &LockedPackage,
    mirrors: &Mirrors,
    progress: &Progress,
) -> Result<()> {
    let bar = progress.bytes(&package.name, package.size);
    let mut failures = Vec::new();
    let mut gone = true;
    for root in mirrors.candidates(archive_of(&package.suite))? {
        let url = format!("{root}/{}", package.path);
        match store.fetch(client, &url, &package.sha256, package.size, &bar) {
            Ok(_) => {
                bar.finish_and_clear();
                return Ok(());
            }
            Err(error) => {
                gone &= error.is::<Missing>();
                failures.push(format!("{error:#}"));
            }
        }
    }
    bar.finish_and_clear();
    let failures = failures.join("\n  ");
    if gone {
        bail!(
            "the mirror no longer has {} {} which kimg.lock names:\n  {failures}\nTake the current versions with `kimg lock`, or set `mirror` in cluster.toml to an archive that keeps old versions, or copy {} from a machine that has built this before",
            package.name,
            package.version,
            store.path(&package.sha256).display()
        );
    }
    bail!("fetching {} {}:\n  {failures}", package.name, package.version)
}

/// Where the .deb of a locked package lies, which [`fetch`] has made sure of.
pub fn path_of(package: &LockedPackage) -> Result<PathBuf> {
    checked(&store()?.path(&package.sha256), package, &cache::sums_dir()?)
}

/// The file, whose content is what the lock file says; one that is not is removed, so that the next run fetches it.
fn checked(path: &Path, package: &LockedPackage, sums: &Path) -> Result<PathBuf> {
    if !path.exists() {
        bail!("the package {} is not in the cache; run `kimg build` with a network connection", package.name);
    }
    let found = hash::hex_of_file_remembered(path, sums)?;
    if found != package.sha256 {
        std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        bail!(
            "{} {} in the cache was altered (SHA-256 {found}, kimg.lock says {}); it has been removed, run the build again",
            package.name,
            package.version,
            package.sha256
        );
    }
    Ok(path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_package_is_removed_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "whole").unwrap();
        let package = LockedPackage {
            name: "crun".into(),
            version: "1.21-1".into(),
            suite: RELEASE.into(),
            size: 5,
            sha256: hash::hex_of(b"whole"),
            path: "pool/crun.deb".into(),
            depends: Vec::new(),
        };
        let checked = || checked(&path, &package, &dir.path().join("sums"));
        assert_eq!(checked().unwrap(), path);
        // Of the same length. Times are as fine as the kernel's clock.
        std::fs::write(&path, "whale").unwrap();
        std::fs::File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let error = checked().unwrap_err().to_string();
        assert!(error.contains("crun 1.21-1") && error.contains("altered"), "{error}");
        assert!(!path.exists());
        assert!(checked().unwrap_err().to_string().contains("network"));
    }
}
