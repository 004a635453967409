//! The image pipeline: from packages, components and settings to bootable disks.

pub mod build;
pub mod cmd;
pub mod components;
pub mod cpio;
pub mod elf;
pub mod glob;
pub mod initramfs;
pub mod inspect;
pub mod kernel;
pub mod manifest;
pub mod modules;
pub mod output;
pub mod recipe;
pub mod root;
pub mod squashfs;
pub mod toolbox;
pub mod tree;
pub mod unpack;
pub mod verity;
