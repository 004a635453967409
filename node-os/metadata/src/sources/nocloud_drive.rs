//! NoCloud by a drive: a FAT or ISO 9660 file system with the label `cidata`.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>

use super::{Found, Platform, Source, kernel_line, parse_meta_data};
use crate::fat::Fat;
use crate::iso9660::Iso;
use crate::read_at::ReadAt;
use std::collections::BTreeMap;

const LABEL: &str = "cidata";
const FILES: [&str; 3] = ["meta-data", "user-data", "network-config"];
/// More than any of the documents may have; the parsers have their own, smaller limits.
const MOST_BYTES: usize = 64 * 1024;

/// The source.
pub(super) struct NoCloudDrive;

impl Source for NoCloudDrive {
    fn name(&self) -> &'static str {
        "nocloud"
    }

    fn needs_network(&self, _platform: &dyn Platform) -> bool {
        false
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, String> {
        for (name, device) in platform.devices() {
            let Some(mut files) =
                seed_files(device.as_ref()).map_err(|error| format!("the metadata drive {name}: {error}"))?
            else {
                continue;
            };
            let (instance_id, hostname) = parse_meta_data(&files.remove("meta-data").unwrap_or_default())?;
            let (line_hostname, line_id) = kernel_line::overrides(platform);
            return Ok(Some(Found {
                source: self.name().to_owned(),
                instance_id: line_id.or(instance_id),
                hostname: line_hostname.or(hostname),
                user_data: files.remove("user-data"),
                network_config: files
                    .remove("network-config")
                    .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
                provider_id: None,
            }));
        }
        Ok(None)
    }
}

/// The seed's files when the device has the label, `None` when it has another or no known file system.
fn seed_files(device: &dyn ReadAt) -> std::io::Result<Option<BTreeMap<String, Vec<u8>>>> {
    if let Some(iso) = Iso::open(device).filter(|iso| iso.label().eq_ignore_ascii_case(LABEL)) {
        return iso.files(&FILES, MOST_BYTES).map(Some);
    }
    match Fat::open(device).filter(|fat| fat.label().eq_ignore_ascii_case(LABEL)) {
        Some(fat) => fat.files(&FILES, MOST_BYTES).map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakePlatform;
    use super::*;

    #[test]
    fn devices_without_the_label_are_passed_over() {
        let platform =
            FakePlatform { devices: vec![("vda", vec![0; 4096]), ("sr0", Vec::new())], ..FakePlatform::default() };
        assert_eq!(NoCloudDrive.read(&platform).unwrap(), None);
    }
}
