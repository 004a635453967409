//! Results of build steps, stored under the hash of their inputs.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How many results of one kind are kept: two roles of some clusters, and what they were before the last changes.
const KEEP: usize = 12;
/// Younger results are never swept: another build may be about to use them.
const KEEP_AT_LEAST: Duration = Duration::from_secs(600);

/// A folder of step results.
#[derive(Debug, Clone)]
pub struct Steps {
    dir: PathBuf,
    /// One lock for each result, so that threads that want the same one make it once.
    running: Arc<Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>>,
}

impl Steps {
    /// Opens (and makes) the folder.
    pub fn open(dir: &Path) -> Result<Steps> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        super::sweep(dir);
        Ok(Steps { dir: dir.to_path_buf(), running: Arc::default() })
    }

    /// Where the result `kind` of inputs `key` is or will be.
    pub fn path(&self, kind: &str, key: &str) -> PathBuf {
        self.dir.join(format!("{kind}-{key}"))
    }

    /// The result of a step: the stored one, or what `make` writes to the path it is given.
    pub fn result(&self, kind: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(kind, key);
        let own = self.running.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default().clone();
        let _alone = own.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            touch(&path);
            return Ok(path);
        }
        let temporary = super::temporary_beside(&path)?;
        let made = make(&temporary)
            .and_then(|()| fs::rename(&temporary, &path).with_context(|| format!("storing {}", path.display())));
        if made.is_err() {
            // The error of the step is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        made?;
        self.prune(kind);
        Ok(path)
    }

    /// Like [`Steps::result`] for a small result held in memory.
    pub fn bytes(&self, kind: &str, key: &str, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let path = self.result(kind, key, |path| {
            fs::write(path, make()?).with_context(|| format!("writing {}", path.display()))
        })?;
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Removes the oldest results of a kind.
    fn prune(&self, kind: &str) {
        let prefix = format!("{kind}-");
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut found: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        found.sort();
        found.reverse();
        for (time, path) in found.into_iter().skip(KEEP) {
            if time.elapsed().is_ok_and(|age| age > KEEP_AT_LEAST) {
                // A result that stays takes space and nothing else.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Marks a result as used, so that pruning takes others first.
fn touch(path: &Path) {
    if let Ok(file) = fs::File::options().append(true).open(path) {
        // Only the order of pruning depends on it.
        let _ = file.set_modified(SystemTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_want_the_same_result_make_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::open(dir.path()).unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let make = || {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                        Ok(b"a".to_vec())
                    };
                    assert_eq!(steps.bytes("x", "1", make).unwrap(), b"a");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_step_runs_once_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::open(dir.path()).unwrap();
        assert!(steps.bytes("x", "1", || anyhow::bail!("no")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(steps.bytes("x", "1", || Ok(b"a".to_vec())).unwrap(), b"a");
        assert_eq!(steps.bytes("x", "1", || panic!("a stored result is made again")).unwrap(), b"a");
    }
}
