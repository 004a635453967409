//! NoCloud by a drive: a FAT or ISO 9660 file system with the label `cidata`.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>

use super::nocloud::Documents;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, kernel_line};
use crate::drive::Drive;

const LABEL: &str = "cidata";

/// The source.
pub(super) struct NoCloudDrive;

impl Source for NoCloudDrive {
    fn name(&self) -> &'static str {
        "nocloud"
    }

    fn detect(&self, _platform: &dyn Platform) -> bool {
        true
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        for (name, device) in platform.devices() {
            let Some(drive) = Drive::open(device.as_ref()).filter(|drive| drive.has_label(LABEL)) else { continue };
            let read = |file: &str| {
                drive.read(file).map_err(|error| SourceError::Unusable(format!("{file} on the drive {name}: {error}")))
            };
            let documents = Documents {
                meta_data: read("meta-data")?,
                user_data: read("user-data")?,
                network_config: read("network-config")?,
            };
            let mut found = documents.into_found(self.name())?;
            let (hostname, instance_id) = kernel_line::overrides(platform);
            found.hostname = hostname.or(found.hostname);
            found.instance_id = instance_id.or(found.instance_id);
            return Ok(Some(found));
        }
        Ok(None)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}
