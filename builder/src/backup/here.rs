//! Copies that `kimg` itself keeps in the cluster's folder: one before each roll, encrypted as those of workers are.

use super::{age, identity};
use crate::client::{Https, block_on};
use crate::config::Settings;
use crate::pki::Secrets;
use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use node_api::Backup;
use std::io::{BufReader, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The API server's path, and its header with the snapshot's revision.
const PATH: &str = "/kimg/backup";
const REVISION: &str = "kimg-revision";
/// How long one may take to come.
const LIMIT: Duration = Duration::from_secs(120);
/// As many as workers keep of the newest.
const KEPT: usize = 6;

/// Where they are.
pub fn dir(settings: &Settings) -> PathBuf {
    settings.dir.join("backups")
}

/// What [`make`] would do.
pub fn intent(settings: &Settings) -> String {
    format!("an encrypted backup of the store goes to {}", crate::hint::shown(&dir(settings)))
}

/// Fetches a copy of the store, reads it through as a restore would, and keeps it; says what came of it. No file: this
/// master's image makes none.
///
/// # Errors
/// It could not be fetched, read or written: there is none then.
pub fn make(settings: &Settings, secrets: &Secrets, api: &Https) -> Result<(String, Option<PathBuf>)> {
    let dir = dir(settings);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("making {}", dir.display()))?;
    let mut file =
        tempfile::NamedTempFile::new_in(&dir).with_context(|| format!("making a file in {}", dir.display()))?;
    let writing = || format!("writing into {}", dir.display());
    let fetched = async {
        let fetch = api.stream(PATH, |piece| file.write_all(piece).with_context(writing));
        tokio::time::timeout(LIMIT, fetch).await.with_context(|| format!("it took more than {} s", LIMIT.as_secs()))?
    };
    let answer = block_on(fetched).context("fetching a backup from the API server")?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(("there is no backup: this master's image makes none".to_owned(), None));
    }
    if !answer.status.is_success() {
        bail!("the API server makes no backup: {}", crate::client::kube::sentence(&answer));
    }
    let revision = answer.headers.get(REVISION).and_then(|value| value.to_str().ok()?.parse().ok());
    let revision = revision.context("the API server does not say the backup's revision")?;
    file.as_file().sync_all().with_context(writing)?;
    let bytes = file.stream_position().with_context(writing)?;
    file.rewind().with_context(writing)?;
    age::decrypt(&secrets.backup_key()?, BufReader::new(file.as_file()), std::io::sink())
        .context("reading the backup that the API server made")?;
    let backup = Backup { taken_unix_ms: super::now_ms(), revision, bytes };
    let path = dir.join(backup.name());
    file.persist(&path).with_context(|| format!("naming {}", path.display()))?;
    tidy(&dir)?;
    Ok((format!("backup of the store: {}", crate::hint::shown(&path)), Some(path)))
}

/// The copies that are here.
///
/// # Errors
/// The folder cannot be read.
pub fn list(settings: &Settings) -> Result<Vec<Backup>> {
    list_in(&dir(settings))
}

pub(super) fn list_in(dir: &Path) -> Result<Vec<Backup>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("reading {}", dir.display()))?,
    };
    let one = |entry: std::fs::DirEntry| {
        // A link's own; what is no file is no copy, and may never end.
        let known = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Backup::of_file(entry.file_name().to_str()?, known.len())
    };
    let mut found: Vec<Backup> = entries.flatten().filter_map(one).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Removes all but the newest ones.
fn tidy(dir: &Path) -> Result<()> {
    let (mut all, now) = (list_in(dir)?, super::now_ms());
    // What a wrong clock has dated ahead is nobody's newest, or each new one would go at once.
    all.sort_by_key(|backup| super::is_ahead(backup, now));
    for old in all.iter().skip(KEPT) {
        let path = dir.join(old.name());
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Decrypts one of them.
///
/// # Errors
/// It is gone, damaged, or of another cluster.
pub fn read(settings: &Settings, backup: &Backup) -> Result<Vec<u8>> {
    let path = dir(settings).join(backup.name());
    let file = crate::input::open(&path)?;
    let mut plain = Vec::new();
    age::decrypt(&identity(settings)?, BufReader::new(file), &mut plain)
        .with_context(|| format!("reading {}", path.display()))?;
    ensure!(!plain.is_empty(), "{} is empty", path.display());
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay() {
        let dir = tempfile::tempdir().expect("dir");
        for second in 1..=9 {
            std::fs::write(dir.path().join(format!("{second}-7.age")), "x").expect("written");
        }
        std::fs::write(dir.path().join("mine"), "x").expect("written");
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("20-7.age")).expect("link");
        std::fs::create_dir(dir.path().join("21-7.age")).expect("folder");
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("22-7.age"), 0o600.into()).expect("pipe");
        tidy(dir.path()).expect("tidied");
        let kept: Vec<u64> = list_in(dir.path()).expect("list").iter().map(|b| b.taken_unix_ms / 1000).collect();
        assert_eq!(kept, [9, 8, 7, 6, 5, 4]);
        assert!(dir.path().join("mine").exists());
        assert!(list_in(&dir.path().join("nowhere")).expect("none").is_empty());
    }

    #[test]
    fn what_is_dated_ahead_does_not_push_out_the_newest() {
        let dir = tempfile::tempdir().expect("dir");
        let ahead = (1..=9).map(|second| 9_000_000_000_u64 + second);
        for second in ahead.chain([7]) {
            std::fs::write(dir.path().join(format!("{second}-7.age")), "x").expect("written");
        }
        tidy(dir.path()).expect("tidied");
        let kept: Vec<u64> = list_in(dir.path()).expect("list").iter().map(|b| b.taken_unix_ms / 1000).collect();
        assert_eq!((kept.len(), kept.contains(&7)), (KEPT, true), "{kept:?}");
    }
}
