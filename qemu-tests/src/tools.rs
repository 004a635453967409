//! Programs that the tests drive: this workspace's own `kimg`, and real kubectl from Debian's packages.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A version of kubectl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubectl {
    /// Debian bookworm's.
    V1_20,
    /// Debian trixie's.
    V1_32,
}

impl Kubectl {
    fn suite(self) -> &'static str {
        match self {
            Kubectl::V1_20 => "bookworm",
            Kubectl::V1_32 => "trixie",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Kubectl::V1_20 => "kubernetes-client",
            Kubectl::V1_32 => "kubectl",
        }
    }
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The `kimg` that `make build` left.
pub fn kimg() -> PathBuf {
    workspace().join("target/release/kimg")
}

static FETCH: Mutex<()> = Mutex::new(());

/// A real kubectl; fetched and unpacked once into `target/tools/`.
///
/// # Errors
/// The package cannot be had.
pub fn kubectl(version: Kubectl) -> Result<PathBuf> {
    let program = workspace().join("target/tools").join(format!("kubectl-{}", version.suite()));
    let _one_at_a_time = FETCH.lock().map_err(|_| anyhow::anyhow!("fetching kubectl failed in another test"))?;
    if !program.exists() {
        kimg::packages::fetch_program(version.suite(), version.package(), "/usr/bin/kubectl", &program)
            .with_context(|| format!("fetching kubectl from Debian {}", version.suite()))?;
    }
    Ok(program)
}

/// Debian trixie's etcd server; fetched once into `target/tools/`.
///
/// # Errors
/// The package cannot be had.
pub fn etcd() -> Result<PathBuf> {
    let program = workspace().join("target/tools/etcd");
    if !program.exists() {
        kimg::packages::fetch_program("trixie", "etcd-server", "/usr/bin/etcd", &program)
            .context("fetching etcd-server from Debian trixie")?;
    }
    Ok(program)
}
