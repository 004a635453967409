//! A node's first process, in the initramfs ([`stage1`]) and on the root ([`main`]).
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests may panic"))]

pub mod disk;
pub mod handover;
pub mod stage1;
