//! Programs and tool chains out of packages of any suite, for tests that drive them. They are verified
//! like every package, but not locked: nothing of them goes into an image.

use super::index::Offer;
use super::{Mirrors, archive_of, deb, offers_of, store, version};
use crate::cache::download;
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Writes the file `/path` of the newest `package` in `suite` to `to`, executable. The program
/// must need no more than the host's C library.
///
/// # Errors
/// No mirror gives the suite, or the package does not hold the file.
pub fn fetch_program(suite: &str, package: &str, path: &str, to: &Path) -> Result<()> {
    let source = Source::open(suite)?;
    extract(&source.fetch(package)?, path, to)
}

/// Unpacks those files of the newest `packages` in `suite` for which `wanted` is true below `to`,
/// which is there in full or not at all: a tool chain that tests build programs with.
///
/// # Errors
/// No mirror gives the suite or a package, or `to` cannot be written.
pub fn fetch_tree(suite: &str, packages: &[&str], wanted: impl Fn(&str) -> bool, to: &Path) -> Result<()> {
    let source = Source::open(suite)?;
    let temporary = to.with_extension("new");
    if temporary.exists() {
        fs::remove_dir_all(&temporary).with_context(|| format!("removing {}", temporary.display()))?;
    }
    for package in packages {
        for (path, entry) in deb::unpack(&source.fetch(package)?, &deb::Budget::default(), &wanted)? {
            let place = temporary.join(path.trim_start_matches('/'));
            put(&place, &entry).with_context(|| format!("writing {}", place.display()))?;
        }
    }
    fs::rename(&temporary, to).with_context(|| format!("writing {}", to.display()))
}

fn put(place: &Path, entry: &deb::Entry) -> Result<()> {
    if let Some(dir) = place.parent() {
        fs::create_dir_all(dir)?;
    }
    match entry {
        deb::Entry::File(mode, bytes) => {
            fs::write(place, bytes)?;
            fs::set_permissions(place, Permissions::from_mode(*mode))?;
        }
        deb::Entry::Link(target) => symlink(target, place)?,
        deb::Entry::Dir(_) => fs::create_dir_all(place)?,
    }
    Ok(())
}

/// A suite's offers, and where to get them.
struct Source {
    suite: String,
    mirrors: Mirrors,
    client: ureq::Agent,
    offers: Vec<Offer>,
}

impl Source {
    fn open(suite: &str) -> Result<Source> {
        let mirrors = Mirrors::default();
        let client = download::client();
        let offers = offers_of(&client, &mirrors, suite, jiff::Timestamp::now())?;
        Ok(Source { suite: suite.to_owned(), mirrors, client, offers })
    }

    /// Where the newest version of the package now lies.
    fn fetch(&self, package: &str) -> Result<PathBuf> {
        let newest = self
            .offers
            .iter()
            .filter(|o| o.name == package)
            .max_by(|a, b| version::compare(&a.version, &b.version))
            .with_context(|| format!("{} has no package {package}", self.suite))?;
        let mut failures = Vec::new();
        for root in self.mirrors.candidates(archive_of(&self.suite))? {
            let url = format!("{root}/{}", newest.path);
            let bar = indicatif::ProgressBar::hidden();
            match store()?.fetch(&self.client, &url, &newest.sha256, newest.size, &bar) {
                Ok(deb) => return Ok(deb),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("fetching {package}:\n  {}", failures.join("\n  "))
    }
}

fn extract(package: &Path, path: &str, to: &Path) -> Result<()> {
    let files = deb::unpack(package, &deb::Budget::default(), |name| name == path)?;
    let Some(deb::Entry::File(_, bytes)) = files.get(path) else {
        bail!("{} holds no file {path}", package.display());
    };
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let temporary = to.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&temporary)
        .with_context(|| format!("writing {}", temporary.display()))?;
    file.write_all(bytes).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, to).with_context(|| format!("writing {}", to.display()))
}
