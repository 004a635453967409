//! `kimg cache export` and `import`: everything that images are made of in one tar, for the day on which a mirror no
//! longer has it or there is no network. Each file stands under its SHA-256, and is checked when it is taken in.

use super::hash;
use crate::input;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Which store a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// Debian packages.
    Packages,
    /// Programs, container images and manifests of clusters.
    Blobs,
}

impl Store {
    fn folder(self) -> &'static str {
        match self {
            Store::Packages => "packages",
            Store::Blobs => "blobs",
        }
    }
}

/// A file that goes into a bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    /// Where it is kept.
    pub store: Store,
    /// Its SHA-256, hex.
    pub sha256: String,
    /// Where it lies now.
    pub path: PathBuf,
}

/// Where a blob is kept, whether it is there or not.
///
/// # Errors
/// The user has no cache folder.
pub fn blob(sha256: &str) -> Result<PathBuf> {
    Ok(super::user_dir()?.join(Store::Blobs.folder()).join(sha256))
}

/// Writes a bundle, whole or not at all; the same files give the same bytes.
///
/// # Errors
/// A file is not what its sum says, or `out` cannot be written.
pub fn export(materials: &[Material], out: &Path) -> Result<u64> {
    let temporary = super::temporary_beside(out)?;
    let write = || -> Result<u64> {
        let mut archive = tar::Builder::new(File::create(&temporary)?);
        let mut sorted: Vec<&Material> = materials.iter().collect();
        sorted.sort();
        sorted.dedup_by(|a, b| a.store == b.store && a.sha256 == b.sha256);
        for material in sorted {
            let found = hash::hex_of_file(&material.path)?;
            ensure!(
                found == material.sha256,
                "{} has SHA-256 {found} and should have {}; remove it, and run `kimg build` again",
                material.path.display(),
                material.sha256
            );
            let file = File::open(&material.path).with_context(|| format!("opening {}", material.path.display()))?;
            let mut header = tar::Header::new_gnu();
            header.set_size(file.metadata()?.len());
            header.set_mode(0o644);
            header.set_mtime(0);
            let name = format!("{}/{}", material.store.folder(), material.sha256);
            archive.append_data(&mut header, name, file)?;
        }
        let file = archive.into_inner()?;
        // It is kept for the day on which nothing else is left.
        file.sync_all()?;
        let size = file.metadata()?.len();
        fs::rename(&temporary, out)?;
        Ok(size)
    };
    write().with_context(|| format!("writing {}", out.display())).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })
}

/// Takes in a bundle below `cache`; what is there already and whole stays. Gives the number of files that were new.
///
/// # Errors
/// The file is no bundle, is damaged, or the cache cannot be written; files before the damage stay, as each is whole.
pub fn import(bundle: &Path, cache: &Path) -> Result<usize> {
    let read = || -> Result<usize> {
        // What a tar's reader says of it is about blocks.
        let damaged = |_| input::BadInput("it is no bundle, or is damaged; export it anew".into());
        let mut archive = tar::Archive::new(input::open(bundle)?);
        let (mut new, mut seen) = (0, 0);
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            if !entry.header().entry_type().is_file() {
                return input::bad("it holds more than files");
            }
            let name = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
            let sha256 = [Store::Packages, Store::Blobs]
                .iter()
                .find_map(|store| name.strip_prefix(store.folder())?.strip_prefix('/'))
                .filter(|sha256| hash::is_sha256(sha256));
            let Some(sha256) = sha256 else {
                return input::bad(format!("it holds {name}, which no export of kimg holds"));
            };
            seen += 1;
            let target = cache.join(&name);
            if !target.exists() || hash::hex_of_file(&target)? != sha256 {
                take(&mut entry, sha256, &target)?;
                new += 1;
            }
        }
        if seen == 0 {
            return input::bad("it is empty");
        }
        Ok(new)
    };
    read().with_context(|| format!("reading the bundle {}", bundle.display()))
}

fn take(entry: &mut impl Read, sha256: &str, target: &Path) -> Result<()> {
    let temporary = super::temporary_beside(target)?;
    let mut write = || -> Result<()> {
        std::io::copy(entry, &mut File::create(&temporary)?)?;
        let found = hash::hex_of_file(&temporary)?;
        if found != sha256 {
            return input::bad(format!("{sha256} has SHA-256 {found}: the bundle is damaged"));
        }
        fs::rename(&temporary, target)?;
        Ok(())
    };
    write().with_context(|| format!("storing {}", target.display())).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material(dir: &Path, store: Store, content: &[u8]) -> Material {
        let sha256 = hash::hex_of(content);
        let path = dir.join(&sha256);
        fs::write(&path, content).unwrap();
        Material { store, sha256, path }
    }

    #[test]
    fn what_was_exported_is_taken_in_once() {
        let dir = tempfile::tempdir().unwrap();
        let materials = [material(dir.path(), Store::Packages, b"deb"), material(dir.path(), Store::Blobs, b"program")];
        let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
        export(&materials, &one).unwrap();
        export(&[materials[1].clone(), materials[0].clone(), materials[0].clone()], &two).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let cache = dir.path().join("cache");
        assert_eq!(import(&one, &cache).unwrap(), 2);
        assert_eq!(fs::read(cache.join("packages").join(hash::hex_of(b"deb"))).unwrap(), b"deb");
        assert_eq!(import(&one, &cache).unwrap(), 0);
    }

    #[test]
    fn damage_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle.tar");
        export(&[material(dir.path(), Store::Blobs, b"program")], &bundle).unwrap();
        let whole = fs::read(&bundle).unwrap();
        let cache = dir.path().join("cache");
        let mut altered = whole.clone();
        altered[513] ^= 1;
        for (bytes, says) in [
            (altered, "the bundle is damaged"),
            (whole[..514].to_vec(), "reading the bundle"),
            (b"no tar".to_vec(), "reading the bundle"),
            (vec![0; 1024], "it is empty"),
        ] {
            fs::write(&bundle, bytes).unwrap();
            let error = import(&bundle, &cache).unwrap_err();
            assert!(error.chain().any(|e| e.is::<input::BadInput>()), "{error:#}");
            assert!(format!("{error:#}").contains(says), "{error:#}");
            let left: Vec<_> = fs::read_dir(cache.join("blobs")).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, "blobs/../../etc", &b"x"[..]).unwrap_err();
        tar.append_data(&mut header, "etc/passwd", &b"x"[..]).unwrap();
        fs::write(&bundle, tar.into_inner().unwrap()).unwrap();
        assert!(format!("{:#}", import(&bundle, &cache).unwrap_err()).contains("etc/passwd"));
    }

    #[test]
    fn a_file_that_changed_is_not_exported() {
        let dir = tempfile::tempdir().unwrap();
        let one = material(dir.path(), Store::Blobs, b"program");
        fs::write(&one.path, b"other").unwrap();
        let out = dir.path().join("bundle.tar");
        assert!(format!("{:#}", export(&[one], &out).unwrap_err()).contains("should have"));
        assert!(!out.exists());
    }
}
