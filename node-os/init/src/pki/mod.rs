//! Certificates that PID 1's side makes: a master's leaf certificates and kubeconfigs (`kimg-node master-pki`),
//! and the self-signed one of a node API before the node has joined.

mod issue;
mod master;
mod self_signed;

pub use master::main as master_main;
pub use self_signed::{Identity, load_or_make};

use anyhow::{Context, Result};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file whole or not at all, with its mode from the start.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    let new = path.with_extension("new");
    // A left-over of an interrupted run may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).with_context(context)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(context)?;
    fs::rename(&new, path).with_context(context)
}
