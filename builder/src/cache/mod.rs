//! What is kept between runs, per user: downloaded packages and unpacked tools (addressed by content),
//! and the results of build steps (addressed by the hash of their inputs, so that clusters share them).

pub mod bundle;
pub mod download;
pub mod hash;
pub mod lockfile;
pub mod steps;

use crate::input;
use anyhow::{Context, Result};
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps the threads of one process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The per-user cache folder: `$XDG_CACHE_HOME/kimg`, else `~/.cache/kimg`.
pub fn user_dir() -> Result<PathBuf> {
    user_dir_of(&|name| std::env::var_os(name))
}

fn user_dir_of(env: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    for (name, below) in [("XDG_CACHE_HOME", "kimg"), ("HOME", ".cache/kimg")] {
        let Some(dir) = env(name).filter(|dir| !dir.is_empty()).map(PathBuf::from) else { continue };
        // Each working directory would have a cache of its own.
        if dir.is_relative() {
            return input::bad(format!("{name} is {}; it must be an absolute path", dir.display()));
        }
        return Ok(dir.join(below));
    }
    input::bad("neither XDG_CACHE_HOME nor HOME is set; set one, so that downloads can be kept")
}

/// Where the sums of files that were read once are remembered ([`hash::hex_of_file_remembered`]).
pub fn sums_dir() -> Result<PathBuf> {
    Ok(user_dir()?.join("sums"))
}

/// Makes a folder that is its owner's alone; one that is there and open to others is closed to them. A link is not
/// followed: in a folder that came from somebody else it may lead to any of the user's own.
///
/// # Errors
/// [`input::BadInput`] where a link stands in its place; it cannot be made, or is another user's.
pub fn private_dir(dir: &Path) -> Result<()> {
    let make = || -> std::io::Result<()> {
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // What is opened is what is changed, whatever its name stands for by then.
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed();
        let folder = fs::File::options().read(true).custom_flags(flags).open(dir)?;
        let mut permissions = folder.metadata()?.permissions();
        if permissions.mode() & 0o077 != 0 {
            permissions.set_mode(0o700);
            folder.set_permissions(permissions)?;
        }
        Ok(())
    };
    make().or_else(|error| match fs::read_link(dir) {
        Ok(target) => input::bad(format!(
            "{} is a link to {}, and kimg writes what is private into folders of its own only; remove the link",
            dir.display(),
            target.display()
        )),
        Err(_) => Err(error).with_context(|| format!("making {} a folder of yours alone", dir.display())),
    })
}

/// Opens a file, such as a lock or a log, that is its owner's alone; what it holds stays. In a folder of somebody
/// else's its name may be a link to a file of the user's: that is not opened.
///
/// # Errors
/// It cannot be made, or is a link.
pub fn open_private(path: &Path) -> Result<fs::File> {
    fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .with_context(|| format!("opening {}, which must be a plain file", path.display()))
}

/// Writes a file whole or not at all: under another name first, then renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = name_beside(path)?;
    let write = || -> Result<()> {
        fs::File::create(&temporary)?.write_all(bytes)?;
        store(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display())).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })
}

/// Renames a file that has been written. Its bytes go to the disk before its name does: otherwise a power failure
/// leaves an empty file that looks whole.
pub fn store(temporary: &Path, path: &Path) -> Result<()> {
    let store = || fs::File::open(temporary)?.sync_all().and_then(|()| fs::rename(temporary, path));
    store().with_context(|| format!("storing {}", path.display()))
}

/// A name in the same folder, so that a rename onto `path` is atomic. Creates the folder. What interrupted runs left
/// under such names is removed: it may be as large as the whole.
pub fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let temporary = name_beside(path)?;
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
        let begin = format!(".{}.", name.to_string_lossy());
        sweep_those(folder, &|left| {
            let rest = left.strip_prefix(&begin)?.strip_suffix(".tmp")?;
            rest.split_once('.')
                .filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
                .map(|(_, pid)| pid)
        });
    }
    Ok(temporary)
}

fn name_beside(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let name = path.file_name().context("a file needs a name")?.to_string_lossy();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{name}.{number}.{}.tmp", std::process::id()));
    // Of an earlier process with this number; or a link, in a folder of somebody else's, to a file of the user's.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => fs::remove_dir_all(&temporary),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
    .with_context(|| format!("removing {}", temporary.display()))?;
    Ok(temporary)
}

/// Removes what interrupted runs left in `folder`: temporary files of processes that are gone.
pub fn sweep(folder: &Path) {
    sweep_those(folder, &|name| name.strip_suffix(".tmp")?.rsplit('.').next());
}

/// `pid` gives the process whose temporary file has this name.
fn sweep_those(folder: &Path, pid: &dyn Fn(&str) -> Option<&str>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if pid(&name).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // A file that cannot be removed does no harm: its name is never read.
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_folder_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&open).unwrap();
        private_dir(&dir.path().join("a/new")).unwrap();
        assert_eq!((mode(&open), mode(&dir.path().join("a/new"))), (0o700, 0o700));
    }

    #[test]
    fn a_link_is_no_private_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (other, link) = (dir.path().join("other"), dir.path().join("build"));
        fs::create_dir(&other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        for target in [other.as_path(), &dir.path().join("nowhere")] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            let error = private_dir(&link).unwrap_err();
            assert!(error.is::<input::BadInput>(), "{error:#}");
            let error = error.to_string();
            assert!(error.contains(&format!("{} is a link to {}", link.display(), target.display())), "{error}");
            fs::remove_file(&link).unwrap();
        }
        assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_cache_has_one_place() {
        let of = |xdg: &'static str, home: &'static str| {
            user_dir_of(&move |name| Some(if name == "HOME" { home } else { xdg }.into()))
        };
        assert_eq!(of("/c", "/h").unwrap(), Path::new("/c/kimg"));
        assert_eq!(of("", "/h").unwrap(), Path::new("/h/.cache/kimg"));
        for (xdg, home, says) in [("rel", "/h", "XDG_CACHE_HOME is rel"), ("", "h", "HOME is h"), ("", "", "neither")] {
            let error = of(xdg, home).unwrap_err();
            assert!(error.is::<input::BadInput>() && error.to_string().contains(says), "{error:#}");
        }
    }

    #[test]
    fn what_an_interrupted_run_left_is_removed_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        // No process has such a number.
        let gone = format!(".x.tar.0.{}.tmp", u32::MAX);
        let kept =
            [format!(".x.tar.7.{}.tmp", std::process::id()), format!(".y.tar.0.{}.tmp", u32::MAX), ".x.tar.tmp".into()];
        kept.iter().chain([&gone]).for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        fs::create_dir(dir.path().join(format!(".x.tar.1.{}.tmp", u32::MAX))).unwrap();
        temporary_beside(&dir.path().join("x.tar")).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let mut kept = kept.to_vec();
        left.sort();
        kept.sort();
        assert_eq!(left, kept);
    }

    #[test]
    fn what_lies_under_a_temporary_name_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        // The next numbers of this process; other tests take some of them.
        let next = COUNTER.load(Ordering::Relaxed);
        let name = |n| dir.path().join(format!(".x.{n}.{}.tmp", std::process::id()));
        (next..next + 1000).for_each(|n| std::os::unix::fs::symlink(&victim, name(n)).unwrap());
        write_atomic(&dir.path().join("x"), b"new").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"new");
    }
}
