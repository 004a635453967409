//! The kernel's interfaces that a node uses: the only crate with `unsafe`.
//!
//! One file per interface. Nothing here decides anything: callers say what they want,
//! and get an error that names the device, file or call that refused.
#![allow(unsafe_code, reason = "ioctls and raw system calls live here, so that they live nowhere else")]

pub mod block;
pub mod conntrack;
pub mod guest_info;
pub mod machine;
pub mod module;
pub mod mount;
mod net;
pub mod netns;
pub mod nft;
pub mod nft_dump;
pub mod notify;
pub mod process;
pub mod switch_root;
pub mod tcp;
pub mod verity;
