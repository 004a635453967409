//! The folder of a worker's copies.

use anyhow::{Context, Result};
use node_api::Backup;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Every copy begins so.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";
const PART: &str = "incoming.part";

/// Copies in a folder.
#[derive(Debug)]
pub struct Keep {
    dir: PathBuf,
}

impl Keep {
    /// Makes the folder if need be.
    pub fn open(dir: &Path) -> Result<Keep> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making {}", dir.display()))?;
        Ok(Keep { dir: dir.to_owned() })
    }

    /// What is there, oldest first.
    pub fn list(&self) -> Result<Vec<Backup>> {
        let what = || format!("reading {}", self.dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(what)? {
            let entry = entry.with_context(what)?;
            let size = entry.metadata().with_context(what)?.len();
            found.extend(entry.file_name().to_str().and_then(|name| Backup::of_file(name, size)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Begins a copy.
    pub fn begin(&self) -> Result<Incoming> {
        let path = self.dir.join(PART);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        Ok(Incoming {
            file: file.with_context(|| format!("creating {}", path.display()))?,
            path,
            head: Vec::new(),
            bytes: 0,
        })
    }

    /// Removes copies.
    pub fn remove(&self, gone: &[Backup]) -> Result<()> {
        gone.iter()
            .map(|b| self.dir.join(b.name()))
            .try_for_each(|path| fs::remove_file(&path).with_context(|| format!("removing {}", path.display())))
    }
}

/// A copy that is coming in; dropped, it is gone.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: PathBuf,
    head: Vec<u8>,
    bytes: u64,
}

impl Incoming {
    /// Adds a piece.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        if self.head.len() < MAGIC.len() {
            let more = (MAGIC.len() - self.head.len()).min(piece.len());
            self.head.extend_from_slice(&piece[..more]);
        }
        self.bytes += piece.len() as u64;
        self.file.write_all(piece).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Makes it durable, and gives it its name.
    pub fn end(self, taken_unix_ms: u64, revision: u64, length: Option<u64>) -> Result<Backup> {
        anyhow::ensure!(self.head == MAGIC, "what the API server sent is no encrypted backup");
        anyhow::ensure!(
            length.is_none_or(|length| length == self.bytes),
            "the backup was cut off after {} bytes; it is taken again",
            self.bytes
        );
        let backup = Backup { taken_unix_ms, revision, bytes: self.bytes };
        let to = self.path.with_file_name(backup.name());
        let named = self.file.sync_all().and_then(|()| fs::rename(&self.path, &to));
        let named = named.and_then(|()| File::open(to.parent().unwrap_or(Path::new("."))).and_then(|d| d.sync_all()));
        named.with_context(|| format!("naming {}", to.display()))?;
        Ok(backup)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Once it has its name, there is nothing.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_whole_gets_a_name() {
        let dir = std::env::temp_dir().join(format!("kimg-backup-{}", std::process::id()));
        let keep = Keep::open(&dir).unwrap();
        let bring = |pieces: &[&[u8]], length: Option<u64>| {
            let mut incoming = keep.begin().unwrap();
            pieces.iter().for_each(|piece| incoming.write(piece).unwrap());
            incoming.end(5000, 9, length)
        };
        assert!(bring(&[b"age-encryption.org/v2\n"], None).is_err());
        assert!(bring(&[b"age-encr"], None).is_err());
        assert!(bring(&[b"age-encryption.org/v1\n", b"xx"], Some(25)).is_err());
        assert!(keep.list().unwrap().is_empty() && fs::read_dir(&dir).unwrap().next().is_none());
        let backup = bring(&[b"age-encryption", b".org/v1\nxx"], Some(24)).unwrap();
        fs::write(dir.join("notes"), "x").unwrap();
        assert_eq!(keep.list().unwrap(), vec![backup.clone()]);
        keep.remove(&[backup]).unwrap();
        assert!(keep.list().unwrap().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
