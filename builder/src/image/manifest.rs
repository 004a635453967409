//! `manifest.json` beside each image: what it is made of, and the sum of every file.

use super::components::Component;
use super::output::Format;
use super::sources::Sources;
use crate::cache::{self, hash};
use crate::input;
use anyhow::{Context, Result};
use node_metadata::Role;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// File name.
pub const FILE: &str = "manifest.json";
/// Bytes of a manifest at most; one has some hundred kilobytes.
pub const MOST_BYTES: u64 = 16 << 20;

/// The manifest of one role's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// kimg's version.
    pub version: String,
    /// What the image's programs read and write; none: it is of before releases stated that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<node_api::Release>,
    /// Cluster.
    pub cluster: String,
    /// Role.
    pub role: Role,
    /// Verity root hash, hex.
    pub root_hash: String,
    /// Kernel release.
    pub kernel: String,
    /// The kernel's command line.
    pub command_line: String,
    /// How the secrets are carried: `none`, `plain` or `sealed`.
    pub secrets: String,
    /// SHA-256 of the certificate that the kernel is signed for, hex; none where it is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<String>,
    /// Hash of all inputs.
    pub inputs: String,
    /// Bytes of each partition's content.
    pub partitions: BTreeMap<String, u64>,
    /// Debian packages in the image.
    pub packages: BTreeMap<String, String>,
    /// Own executables in the image.
    pub components: Vec<Component>,
    /// Files beside this one.
    pub files: BTreeMap<String, FileSum>,
    /// What it takes to make the image again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
}

/// Size and sum of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileSum {
    /// Bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

impl FileSum {
    /// Of a file.
    pub fn of(path: &Path) -> Result<FileSum> {
        let size = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
        Ok(FileSum { size, sha256: hash::hex_of_file(path)? })
    }

    /// Of a file that is read only where it has changed since the last time ([`hash::hex_of_file_remembered`]).
    pub fn remembered(path: &Path, sums: &Path) -> Result<FileSum> {
        let size = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
        Ok(FileSum { size, sha256: hash::hex_of_file_remembered(path, sums)? })
    }
}

impl Manifest {
    /// Reads the manifest in `dir`; none where there is none or an unreadable one, which a build replaces.
    pub fn read(dir: &Path) -> Option<Manifest> {
        Manifest::parse(&input::bytes(&dir.join(FILE), MOST_BYTES).ok()?).ok()
    }

    /// The manifest in `dir`, where there is one as kimg writes it.
    ///
    /// # Errors
    /// [`input::BadInput`]: what is there may not be read. It is not missing, and a build would not mend it.
    pub fn known(dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(FILE);
        if input::is_there(&path)? && path.is_file() {
            drop(input::open(&path)?);
        }
        Ok(Manifest::read(dir))
    }

    /// The manifest of an image that should be there.
    ///
    /// # Errors
    /// [`input::BadInput`]: there is none, or it cannot be looked at.
    pub fn of_image(dir: &Path) -> Result<Manifest> {
        match Manifest::known(dir)? {
            Some(known) => Ok(known),
            None => input::bad(format!("there is no image in {}; build it with `kimg build all`", dir.display())),
        }
    }

    /// Reads the text of a manifest, which may come from anybody: what becomes part of a path is a plain name, and what
    /// is taken for a sum is one.
    ///
    /// # Errors
    /// [`input::BadInput`] when it is none of kimg's.
    pub fn parse(text: &[u8]) -> Result<Manifest> {
        let manifest: Manifest =
            serde_json::from_slice(text).or_else(|_| input::bad("it is no manifest of an image"))?;
        let sources = manifest.sources.iter();
        let files = sources.clone().flat_map(|sources| &sources.files);
        let packages = sources.flat_map(|sources| &sources.packages);
        let mut sums = std::iter::once(&manifest.root_hash)
            .chain(manifest.files.values().map(|sum| &sum.sha256))
            .chain(manifest.components.iter().map(|component| &component.sha256))
            .chain(files.clone().map(|file| &file.sum.sha256))
            .chain(packages.map(|package| &package.sha256));
        let components = manifest.components.iter().map(|component| &component.name);
        let mut names = manifest.files.keys().chain(components).chain(files.map(|file| &file.name));
        let is_name = |name: &String| Path::new(name).file_name() == Some(name.as_ref());
        if !sums.all(|sum| hash::is_sha256(sum)) || !names.all(is_name) {
            return input::bad("the manifest is not as kimg writes it: a file's name or sum is none");
        }
        Ok(manifest)
    }

    /// Writes it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("writing the manifest")?;
        text.push(b'\n');
        cache::write_atomic(&dir.join(FILE), &text)
    }

    /// Whether the files that it names are all there, the disk among them, and are what it says. `sums` is the memory of
    /// [`FileSum::remembered`].
    ///
    /// # Errors
    /// One cannot be read, or its sum not be remembered.
    pub fn is_complete(&self, dir: &Path, sums: &Path) -> Result<bool> {
        for (name, sum) in &self.files {
            if !hash::is_file_of(&dir.join(name), &sum.sha256, sums)? {
                return Ok(false);
            }
        }
        Ok(self.files.contains_key(Format::Raw.file()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The text of a manifest in which this is otherwise than it should be.
    fn text(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let sum = "12".repeat(32);
        let mut manifest = json!({
            "version": "1", "cluster": "demo", "role": "master", "root-hash": sum, "kernel": "", "command-line": "",
            "secrets": "none", "inputs": "", "partitions": {}, "packages": {},
            "components": [{"name": "kimg-node", "sha256": sum, "size": 1}],
            "files": {"disk.raw": {"size": 1, "sha256": sum}},
            "sources": {"cluster-toml": "", "packages": [],
                        "files": [{"written": "a", "name": "a", "mode": 33188, "size": 1, "sha256": sum}]},
        });
        change(&mut manifest);
        manifest.to_string().into_bytes()
    }

    #[test]
    fn sums_are_sums_and_no_name_is_a_place_elsewhere() {
        Manifest::parse(&text(|_| ())).unwrap();
        for (place, value) in [
            ("/root-hash", "\u{e9}"),
            ("/components/0/sha256", "\u{e9}"),
            ("/components/0/name", "../kimg-node"),
            ("/files/disk.raw/sha256", "12"),
            ("/sources/files/0/name", "../a"),
            ("/sources/files/0/name", "/a"),
            ("/sources/files/0/sha256", "/home/x"),
        ] {
            let error = Manifest::parse(&text(|m| *m.pointer_mut(place).unwrap() = value.into())).unwrap_err();
            assert!(error.is::<input::BadInput>() && error.to_string().contains("not as kimg writes it"), "{place}");
        }
        let outside = text(|m| m["files"] = json!({"/disk.raw": {"size": 1, "sha256": "12".repeat(32)}}));
        assert!(Manifest::parse(&outside).is_err());
        assert!(Manifest::parse(b"{}").unwrap_err().is::<input::BadInput>());
    }

    #[test]
    fn an_image_is_whole_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, sums) = (dir.path().join("disk.raw"), dir.path().join("sums"));
        std::fs::write(&disk, "disk").unwrap();
        let mut manifest = Manifest::parse(&text(|_| ())).unwrap();
        manifest.files = [("disk.raw".into(), FileSum::remembered(&disk, &sums).unwrap())].into();
        assert!(manifest.is_complete(dir.path(), &sums).unwrap());
        // As long as before. Times are as fine as the kernel's clock.
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(&disk, "dusk").unwrap();
        assert!(!manifest.is_complete(dir.path(), &sums).unwrap());
        manifest.files.clear();
        assert!(!manifest.is_complete(dir.path(), &sums).unwrap(), "without a disk");
    }

    #[test]
    fn what_may_not_be_read_is_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let said = || {
            let error = Manifest::of_image(dir.path()).unwrap_err();
            assert!(error.is::<input::BadInput>());
            error.to_string()
        };
        assert!(said().contains("there is no image in"));
        // No user can follow it.
        std::os::unix::fs::symlink(FILE, dir.path().join(FILE)).unwrap();
        assert!(said().contains("cannot be read: "));
    }

    #[test]
    fn what_may_never_end_is_no_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        assert!(Manifest::read(dir.path()).is_none());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(Manifest::read(dir.path()).is_none());
        std::fs::remove_file(&path).unwrap();
        // Sparse: nothing of it is read.
        std::fs::File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(Manifest::read(dir.path()).is_none());
    }
}
