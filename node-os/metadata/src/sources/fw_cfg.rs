//! QEMU's fw_cfg: the documents of NoCloud as files that the command line of the virtual machine hands over,
//! `-fw_cfg name=opt/kimg/user-data,file=…`, likewise `meta-data` and `network-config`.
//! <https://www.qemu.org/docs/master/specs/fw_cfg.html>

use super::nocloud::Documents;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit};

const FOLDER: &str = "opt/kimg";

/// The source.
pub(super) struct FwCfg;

impl Source for FwCfg {
    fn name(&self) -> &'static str {
        "fw-cfg"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        file(platform, "user-data").is_some() || file(platform, "meta-data").is_some()
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        if !self.detect(platform) {
            return Ok(None);
        }
        let documents = Documents {
            meta_data: file(platform, "meta-data"),
            user_data: file(platform, "user-data"),
            network_config: file(platform, "network-config"),
        };
        documents.into_found(self.name()).map(Some)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}

fn file(platform: &dyn Platform, name: &str) -> Option<Vec<u8>> {
    platform.firmware_file(&format!("{FOLDER}/{name}"))
}
