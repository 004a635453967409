//! Results of build steps, stored under the hash of their inputs.

use super::hash;
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

/// What the name of a result's SHA-256 ends with, which lies beside it and is as old as the last use of the result.
const SUM: &str = ".sha256";

/// A folder of step results.
#[derive(Debug, Clone)]
pub struct Steps {
    dir: PathBuf,
    /// Where the sums of unchanged files are remembered.
    memory: PathBuf,
    /// One lock for each result, so that threads that want the same one make it once.
    running: Arc<Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>>,
}

impl Steps {
    /// Opens (and makes) the folder; `memory` is that of [`hash::hex_of_file_remembered`].
    pub fn open(dir: &Path, memory: &Path) -> Result<Steps> {
        // As private as a cluster's images: the files of `[image.files]` are in it.
        super::private_dir(dir)?;
        super::sweep(dir);
        hash::forget_gone(memory);
        Ok(Steps { dir: dir.to_path_buf(), memory: memory.to_path_buf(), running: Arc::default() })
    }

    /// A place beside the results for what a step works with.
    pub fn work(&self) -> Result<PathBuf> {
        super::temporary_beside(&self.dir.join("work"))
    }

    /// The result `kind` of inputs `key`, where it is there and as it was made: a file that was cut or altered since
    /// is none.
    ///
    /// # Errors
    /// It cannot be read, or its sum not be remembered.
    pub fn known(&self, kind: &str, key: &str) -> Result<Option<PathBuf>> {
        let path = self.path(kind, key);
        let Ok(sum) = fs::read_to_string(sum_of(&path)) else { return Ok(None) };
        Ok(hash::is_file_of(&path, &sum, &self.memory)?.then_some(path))
    }

    /// The result of a step: the stored one, or what `make` writes to the path it is given.
    pub fn result(&self, kind: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(kind, key);
        let own = self.running.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default().clone();
        let _alone = own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = self.known(kind, key)? {
            touch(&sum_of(&path));
            return Ok(path);
        }
        let temporary = super::temporary_beside(&path)?;
        let made = make(&temporary).and_then(|()| {
            let sum = hash::hex_of_file(&temporary)?;
            super::write_atomic(&sum_of(&path), sum.as_bytes())?;
            super::store(&temporary, &path)?;
            hash::remember(&path, &sum, &self.memory)
        });
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

    fn path(&self, kind: &str, key: &str) -> PathBuf {
        self.dir.join(format!("{kind}-{key}"))
    }

    /// Removes the oldest results of a kind.
    fn prune(&self, kind: &str) {
        let prefix = format!("{kind}-");
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let used = |path: &Path| fs::metadata(sum_of(path)).or_else(|_| fs::metadata(path)).ok()?.modified().ok();
        let mut found: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
            .filter(|(name, _)| name.starts_with(&prefix) && !name.ends_with(SUM))
            .filter_map(|(_, path)| Some((used(&path)?, path)))
            .collect();
        found.sort();
        found.reverse();
        for (time, path) in found.into_iter().skip(KEEP) {
            if time.elapsed().is_ok_and(|age| age > KEEP_AT_LEAST) {
                // A result that stays takes space and nothing else.
                let _ = fs::remove_file(&path);
                let _ = fs::remove_file(sum_of(&path));
            }
        }
    }
}

fn sum_of(result: &Path) -> PathBuf {
    let mut name = result.as_os_str().to_os_string();
    name.push(SUM);
    name.into()
}

/// Marks a result as used, so that pruning takes others first.
fn touch(sum: &Path) {
    if let Ok(file) = fs::File::options().append(true).open(sum) {
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
        let steps = Steps::open(&dir.path().join("steps"), &dir.path().join("sums")).unwrap();
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
        let steps = Steps::open(&dir.path().join("steps"), &dir.path().join("sums")).unwrap();
        assert!(steps.bytes("x", "1", || anyhow::bail!("no")).is_err());
        assert_eq!(fs::read_dir(&steps.dir).unwrap().count(), 0);
        assert_eq!(steps.bytes("x", "1", || Ok(b"a".to_vec())).unwrap(), b"a");
        assert_eq!(steps.bytes("x", "1", || panic!("a stored result is made again")).unwrap(), b"a");
    }

    #[test]
    fn a_result_that_was_altered_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::open(&dir.path().join("steps"), &dir.path().join("sums")).unwrap();
        let get = |content: &[u8]| steps.bytes("x", "1", || Ok(content.to_vec())).unwrap();
        assert_eq!(get(b"whole"), b"whole");
        let path = steps.known("x", "1").unwrap().unwrap();
        for (altered, remade) in [(&b""[..], b"1"), (b"who", b"2"), (b"whale", b"3")] {
            fs::write(&path, altered).unwrap();
            assert_eq!(steps.known("x", "1").unwrap(), None);
            assert_eq!(get(remade), remade);
            assert_eq!(get(b"not again"), remade);
        }
        // Of a kimg that kept no sums.
        fs::remove_file(sum_of(&path)).unwrap();
        assert_eq!(get(b"new"), b"new");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_with_its_sum() {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::open(&dir.path().join("steps"), &dir.path().join("sums")).unwrap();
        let keys: Vec<String> = (0..KEEP).map(|n| n.to_string()).collect();
        for key in &keys {
            steps.bytes("x", key, || Ok(key.clone().into_bytes())).unwrap();
            let file = fs::File::options().append(true).open(sum_of(&steps.path("x", key))).unwrap();
            file.set_modified(SystemTime::now() - 2 * KEEP_AT_LEAST).unwrap();
        }
        steps.bytes("x", "0", || panic!("it is there")).unwrap();
        steps.bytes("x", "last", || Ok(Vec::new())).unwrap();
        let there = |key| steps.known("x", key).unwrap().is_some();
        assert!(there("0") && !there("1"));
        assert_eq!(fs::read_dir(&steps.dir).unwrap().count(), 2 * KEEP);
    }
}
