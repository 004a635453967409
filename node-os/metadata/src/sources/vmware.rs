//! VMware (`vmware`): values that the hypervisor keeps for the guest, `guestinfo.metadata` and `guestinfo.userdata`, each
//! with its `.encoding`.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/vmware.html>

use super::http::network_error;
use super::nocloud::MetaData;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit};
use crate::network_config;
use serde_yaml_ng::Value;

const LIMIT: usize = 64 * 1024;

/// The source.
pub(super) struct VMware;

impl Source for VMware {
    fn name(&self) -> &'static str {
        "vmware"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("sys_vendor").is_some_and(|vendor| vendor.starts_with("VMware"))
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let meta_data = value(platform, "metadata");
        let user_data = value(platform, "userdata");
        if meta_data.is_none() && user_data.is_none() {
            return Ok(None);
        }
        let meta_data = meta_data.unwrap_or_default();
        let mut found = MetaData::parse(&meta_data)?.into_found(self.name());
        found.network = network(&meta_data)?;
        found.provider_id =
            found.provider_id.or_else(|| platform.dmi("product_serial").and_then(|serial| uuid(&serial)));
        found.user_data = user_data;
        Ok(Some(found))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}

/// A value that is set; `---` stands for one that was taken away again.
fn value(platform: &dyn Platform, key: &str) -> Option<Vec<u8>> {
    let raw = platform.guest_info(&format!("guestinfo.{key}"))?;
    let trimmed = raw.trim_ascii();
    let is_set = !trimmed.is_empty() && trimmed != b"---";
    // Which encoding it has shows in the bytes; the key `.encoding` says the same.
    is_set.then_some(raw)
}

/// The network stands in the metadata, in clear or packed as `network.encoding` says.
fn network(meta_data: &[u8]) -> Result<Option<network_config::NetworkPlan>, SourceError> {
    let text = crate::encoding::decode(meta_data, LIMIT)
        .map_err(|error| SourceError::Unusable(format!("guestinfo.metadata is unreadable: {error}")))?;
    let document: Value = serde_yaml_ng::from_str(&text)
        .map_err(|error| SourceError::Unusable(format!("guestinfo.metadata is wrong: {error}")))?;
    match document.get("network") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(packed)) => network_config::parse(packed.as_bytes()).map(Some).map_err(network_error),
        Some(inline) => network_config::from_value(inline).map(Some).map_err(network_error),
    }
}

/// The serial number `VMware-42 1a 2b 3c …-…` holds the machine's UUID in the order that vSphere writes it; DMI's own
/// UUID has the bytes of its first groups swapped.
fn uuid(serial: &str) -> Option<String> {
    let hex: String = serial.strip_prefix("VMware-")?.chars().filter(char::is_ascii_hexdigit).collect();
    let hex = Some(hex.to_ascii_lowercase()).filter(|hex| hex.len() == 32)?;
    let parts = [hex.get(..8)?, hex.get(8..12)?, hex.get(12..16)?, hex.get(16..20)?, hex.get(20..)?];
    Some(format!("vsphere://{}", parts.join("-")))
}
