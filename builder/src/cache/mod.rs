//! What is kept between runs, per user: downloaded packages and unpacked tools (addressed by content),
//! and the results of build steps (addressed by the hash of their inputs, so that clusters share them).

pub mod bundle;
pub mod download;
pub mod hash;
pub mod lockfile;
pub mod steps;

use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps the threads of one process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The per-user cache folder: `$XDG_CACHE_HOME/kimg`, else `~/.cache/kimg`.
pub fn user_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(dir).join("kimg"));
    }
    let home = std::env::var_os("HOME")
        .filter(|d| !d.is_empty())
        .context("neither XDG_CACHE_HOME nor HOME is set; set one, so that downloads can be kept")?;
    Ok(PathBuf::from(home).join(".cache/kimg"))
}

/// Where the sums of files that were read once are remembered ([`hash::hex_of_file_remembered`]).
pub fn sums_dir() -> Result<PathBuf> {
    Ok(user_dir()?.join("sums"))
}

/// Writes a file whole or not at all: under another name first, then renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path)?;
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display())).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })
}

/// A name in the same folder, so that a rename onto `path` is atomic. Creates the folder.
pub fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let name = path.file_name().context("a file needs a name")?.to_string_lossy();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    Ok(folder.join(format!(".{name}.{number}.{}.tmp", std::process::id())))
}

/// Removes what interrupted runs left in `folder`: temporary files of processes that are gone.
pub fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_suffix(".tmp").and_then(|n| n.rsplit('.').next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            // A file that cannot be removed does no harm: its name is never read.
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
}
