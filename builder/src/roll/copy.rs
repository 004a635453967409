//! The journal on this machine: while the master is replaced, the one in the cluster cannot be reached.
//!
//! Each entry is written to the cluster first and then here, with the version that it has there; while the API is away
//! only here. So where both versions are the same, this one is as new or newer; else the cluster's is.

use super::journal::Journal;
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
        // A newer kimg may write what this one cannot read, and that is nothing to be removed.
        let version = serde_json::from_slice::<Value>(&bytes).ok().and_then(|kept| kept["journal"]["version"].as_u64());
        if version.is_some_and(|version| version > u64::from(super::journal::VERSION)) {
            return input::bad(format!("{} was written by a newer kimg; use that one", self.0.display()));
        }
        let Ok(kept) = serde_json::from_slice(&bytes) else {
            return input::bad(format!("{} is not as this kimg writes it; remove it", self.0.display()));
        };
        Ok(Some(kept))
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
    use crate::input::BadInput;

    #[test]
    fn what_a_newer_kimg_wrote_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let copy = LocalCopy::of(dir.path());
        for (text, advice) in [
            (
                r#"{"journal": {"version": 99, "steps": {}}, "version": "7"}"#,
                "was written by a newer kimg; use that one",
            ),
            (r#"{"journal": {"version": 1}}"#, "is not as this kimg writes it; remove it"),
        ] {
            std::fs::write(dir.path().join("roll.json"), text).expect("a file");
            let error = copy.read().expect_err(text);
            assert!(error.is::<BadInput>() && error.to_string().ends_with(advice), "{error:#}");
        }
    }
}
