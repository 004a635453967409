//! A node's first process, in the initramfs ([`stage1`]) and on the root ([`main`]).
//!
//! PID 1 never panics and never ends: whatever fails becomes a sentence on the console and the node API.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests may panic")
)]

pub mod api;
pub mod boot;
pub mod console;
pub mod disk;
pub mod firewall;
pub mod handover;
mod kernel_log;
pub mod kernel_modules;
pub mod kernel_settings;
pub mod logs;
pub mod machine;
pub mod modprobe;
pub mod mounts;
pub mod network;
pub mod pki;
pub mod platform;
pub mod services;
pub mod stage1;
pub mod tracing_setup;

use std::ffi::OsString;
use std::process::ExitCode;

/// Entry point of `init`.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    if std::process::id() == 1 {
        return boot::main();
    }
    tracing_setup::to_standard_error();
    tracing::error!("init is PID 1 of a kimg node and cannot be started by hand");
    ExitCode::from(2)
}

/// Entry point of `master-pki`.
pub fn master_pki_main(_args: Vec<OsString>) -> ExitCode {
    tracing_setup::to_standard_error();
    pki::master_main()
}

/// Entry point of `modprobe`.
pub fn modprobe_main(args: Vec<OsString>) -> ExitCode {
    modprobe::main(args.get(1..).unwrap_or_default())
}
