//! What this machine offers to metadata sources: DMI, the kernel's line, drives, what the hypervisor hands over, and HTTP.

pub mod http;
#[cfg(test)]
mod tests;

pub use http::{Client, Patience};

use crate::disk::scan::block_devices;
use node_metadata::ReadAt;
use node_metadata::sources::{Answer, Platform, Request, SourceError};
use std::fs::File;
use std::io::Read;

const FIRMWARE_FILES: &str = "/sys/firmware/qemu_fw_cfg/by_name";
/// No document is larger.
const MOST_BYTES: u64 = 256 * 1024;

/// The real machine, without the disk it was booted from.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Kernel name of the disk with the root; its partitions are no metadata drives.
    pub own_disk: String,
    /// Asks metadata servers.
    pub client: Client,
}

impl Platform for Machine {
    fn dmi(&self, name: &str) -> Option<String> {
        // A name from a URL must not lead elsewhere.
        if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return None;
        }
        std::fs::read_to_string(format!("/sys/class/dmi/id/{name}")).ok().map(|text| text.trim().to_owned())
    }

    fn kernel_line(&self) -> String {
        std::fs::read_to_string("/proc/cmdline").unwrap_or_default()
    }

    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
        block_devices()
            .into_iter()
            .filter(|name| {
                !name.starts_with(&self.own_disk)
                    && !["loop", "ram", "dm-", "zram"].iter().any(|kind| name.starts_with(kind))
            })
            .filter_map(|name| {
                let file = File::open(format!("/dev/{name}")).ok()?;
                Some((name, Box::new(Drive(file)) as Box<dyn ReadAt>))
            })
            .collect()
    }

    fn firmware_file(&self, name: &str) -> Option<Vec<u8>> {
        let file = File::open(format!("{FIRMWARE_FILES}/{name}/raw")).ok()?;
        let mut content = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut content).ok()?;
        Some(content)
    }

    fn guest_info(&self, key: &str) -> Option<Vec<u8>> {
        node_sys::guest_info::get(key).unwrap_or_else(|error| {
            tracing::warn!("the hypervisor does not hand over {key}: {error}");
            None
        })
    }

    fn send(&self, request: &Request) -> Result<Answer, SourceError> {
        self.client.send(request)
    }
}

/// A block device that may carry metadata.
struct Drive(File);

impl ReadAt for Drive {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buffer, offset)
    }
}
