//! One build at a time in one folder.

use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Held while a build runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct BuildLock {
    _file: File,
}

impl BuildLock {
    /// Takes the lock `path`, or says who has it.
    pub fn take(path: &Path) -> Result<BuildLock> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut owner);
                bail!(
                    "another kimg{} is building in {}; wait until it is done, or build in another --dir",
                    if owner.trim().is_empty() { String::new() } else { format!(" (process {})", owner.trim()) },
                    path.parent().unwrap_or(path).display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(BuildLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_builds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build/.lock");
        let held = BuildLock::take(&path).unwrap();
        let error = BuildLock::take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        BuildLock::take(&path).unwrap();
    }
}
