//! The journal on this machine: while the master is replaced, the one in the cluster cannot be reached.
//!
//! Each entry is written to the cluster first and then here, with the version that it has there; while the API is away
//! only here. So where both versions are the same, this one is as new or newer; else the cluster's is.

use super::journal::{self, Journal};
use crate::input;
use crate::pki::secrets::write_private;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A journal takes some hundred bytes for each node.
const MOST_BYTES: u64 = 16 << 20;

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The journal.
    pub journal: Journal,
    /// The resourceVersion of the one in the cluster that it follows.
    pub version: String,
}

/// The file `roll.json` in a cluster's `run/`.
#[derive(Debug)]
pub struct LocalCopy(PathBuf);

impl LocalCopy {
    /// In this folder, which must be there once something is written.
    pub fn of(run_dir: &Path) -> LocalCopy {
        LocalCopy(run_dir.join("roll.json"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What was written last.
    ///
    /// # Errors
    /// It cannot be read, or is not as `kimg` writes it.
    pub fn read(&self) -> Result<Option<Kept>> {
        if !input::is_there(&self.0)? {
            return Ok(None);
        }
        let bytes = input::bytes(&self.0, MOST_BYTES)?;
        // First: what a newer one writes need not be readable besides, and may be all that knows of a node's data.
        let version = serde_json::from_slice::<Value>(&bytes).ok().and_then(|kept| kept["journal"]["version"].as_u64());
        if let Some(version) = version {
            journal::check_version(version, &self.0.display().to_string())?;
        }
        match serde_json::from_slice(&bytes) {
            Ok(kept) => Ok(Some(kept)),
            Err(_) => input::bad(format!("{} is not as this kimg writes it; remove it", self.0.display())),
        }
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, journal: &Journal, version: &str) -> Result<()> {
        let kept = Kept { journal: journal.clone(), version: version.to_owned() };
        write_private(&self.0, &serde_json::to_vec_pretty(&kept).context("writing the journal")?)
    }

    /// One roll at a time on this machine, also while there is no Lease to be had; it ends with the returned file.
    ///
    /// # Errors
    /// Another one is under way.
    pub fn lock(&self) -> Result<File> {
        let path = self.0.with_extension("lock");
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => bail!("another `kimg roll` works on this cluster; wait for its end"),
            Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_kimg_wrote_is_left_to_it() {
        let dir = tempfile::tempdir().expect("dir");
        let copy = LocalCopy::of(dir.path());
        let newer = journal::VERSION + 1;
        let texts = [
            (format!(r#"{{"journal": {{"version": {newer}, "nodes": "in another way"}}}}"#), "go on with that one"),
            (r#"{"journal": {"version": 1}}"#.to_owned(), "remove it"),
            ("{".to_owned(), "remove it"),
        ];
        for (text, way) in texts {
            std::fs::write(copy.path(), &text).expect("written");
            let error = copy.read().expect_err("refused");
            assert!(error.is::<input::BadInput>() && error.to_string().contains(way), "{text}: {error}");
        }
    }
}
