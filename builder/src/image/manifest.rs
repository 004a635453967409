//! `manifest.json` beside each image: what it is made of, and the sum of every file.

use super::components::Component;
use super::sources::Sources;
use crate::cache;
use anyhow::{Context, Result};
use node_metadata::Role;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// File name.
pub const FILE: &str = "manifest.json";

/// The manifest of one role's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// kimg's version.
    pub version: String,
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
        Ok(FileSum { size, sha256: cache::hash::hex_of_file(path)? })
    }
}

impl Manifest {
    /// Reads the manifest in `dir`; none where there is none or an unreadable one, which a build replaces.
    pub fn read(dir: &Path) -> Option<Manifest> {
        let text = std::fs::read(dir.join(FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("writing the manifest")?;
        text.push(b'\n');
        cache::write_atomic(&dir.join(FILE), &text)
    }

    /// Whether the files that it names are all there.
    pub fn is_complete(&self, dir: &Path) -> bool {
        self.files.iter().all(|(name, sum)| std::fs::metadata(dir.join(name)).is_ok_and(|m| m.len() == sum.size))
    }
}
