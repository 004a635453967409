//! One program out of one package of any suite, for tests that drive it. It is verified like
//! every package, but not locked: nothing of it goes into an image.

use super::{Mirrors, archive_of, deb, offers_of, store, version};
use crate::cache::download;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes the file `/path` of the newest `package` in `suite` to `to`, executable. The program
/// must need no more than the host's C library.
///
/// # Errors
/// No mirror gives the suite, or the package does not hold the file.
pub fn fetch_program(suite: &str, package: &str, path: &str, to: &Path) -> Result<()> {
    let mirrors = Mirrors::default();
    let client = download::client();
    let offers = offers_of(&client, &mirrors, suite, jiff::Timestamp::now())?;
    let newest = offers
        .iter()
        .filter(|o| o.name == package)
        .max_by(|a, b| version::compare(&a.version, &b.version))
        .with_context(|| format!("{suite} has no package {package}"))?;
    let mut failures = Vec::new();
    for root in mirrors.candidates(archive_of(suite))? {
        let url = format!("{root}/{}", newest.path);
        let bar = indicatif::ProgressBar::hidden();
        match store()?.fetch(&client, &url, &newest.sha256, newest.size, &bar) {
            Ok(deb) => return extract(&deb, path, to),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    bail!("fetching {package}:\n  {}", failures.join("\n  "))
}

fn extract(package: &Path, path: &str, to: &Path) -> Result<()> {
    let files = deb::unpack(package, |name| name == path)?;
    let Some(deb::Entry::File(_, bytes)) = files.get(path) else {
        bail!("{} holds no file {path}", package.display());
    };
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let temporary = to.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&temporary)
        .with_context(|| format!("writing {}", temporary.display()))?;
    file.write_all(bytes).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, to).with_context(|| format!("writing {}", to.display()))
}
