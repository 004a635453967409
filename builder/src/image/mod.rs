//! The image pipeline: from packages, components and settings to bootable disks.

pub mod build;
pub mod cmd;
pub mod components;
pub mod contents;
pub mod cpio;
pub mod diff;
pub mod elf;
pub mod glob;
pub mod initramfs;
pub mod inspect;
pub mod installer;
pub mod kernel;
pub mod leave;
pub mod manifest;
pub mod modules;
pub mod output;
pub mod provenance;
pub mod reader;
pub mod recipe;
pub mod root;
pub mod sources;
pub mod squashfs;
#[cfg(test)]
pub(crate) mod testing;
pub mod toolbox;
pub mod tree;
pub mod treemap;
pub mod unpack;
pub mod verity;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until nobody else in this process does something that takes a hundred MiB or more: assembles and packs a root,
/// lays out a disk, collects its papers, packs a disk, or makes a medium of it. Both images are made at once, and shall
/// be in 512 MiB.
fn much_memory() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
