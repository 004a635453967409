//! One build at a time in one folder.

use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long who has just taken the lock may take to write its number.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held while a build runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct BuildLock {
    _file: File,
}

impl BuildLock {
    /// Takes the lock `path`, or says who has it. Its folder is made where it is missing, and closed to others: images
    /// for local VMs hold the cluster's keys in clear.
    pub fn take(path: &Path) -> Result<BuildLock> {
        if let Some(folder) = path.parent() {
            super::private_dir(folder)?;
        }
        let mut file = super::open_private(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another kimg{} is building in {}; wait until it is done, or build in another --dir",
                    owner(&mut file).map(|pid| format!(" (process {pid})")).unwrap_or_default(),
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

/// Who has the lock. Who took it only now writes so in a moment, and until then the file names who had it before.
fn owner(file: &mut File) -> Option<u32> {
    let begin = Instant::now();
    loop {
        let mut text = String::new();
        // Only for the message.
        let pid =
            file.rewind().and_then(|()| file.read_to_string(&mut text)).ok().and_then(|_| text.trim().parse().ok());
        if let Some(pid) = pid.filter(|pid: &u32| Path::new("/proc").join(pid.to_string()).exists()) {
            return Some(pid);
        }
        if begin.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_lock_that_is_a_link_harms_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("build/.lock"));
        fs::write(&victim, "kept").unwrap();
        fs::create_dir(dir.path().join("build")).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let error = format!("{:#}", BuildLock::take(&path).unwrap_err());
        assert!(error.contains("must be a plain file"), "{error}");
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
        fs::remove_file(&path).unwrap();
        BuildLock::take(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join("build"))), (0o600, 0o700));
    }

    #[test]
    fn who_takes_it_only_now_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        // Of a process that is gone: numbers end far below.
        fs::write(&path, format!("{}\n", u32::MAX)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.try_lock().unwrap();
        let late = path.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            fs::write(late, format!("{}\n", std::process::id())).unwrap();
        });
        let error = BuildLock::take(&path).unwrap_err().to_string();
        writer.join().unwrap();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

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
