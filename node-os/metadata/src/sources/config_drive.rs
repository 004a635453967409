//! A config drive: a FAT or ISO 9660 file system with the label `config-2`, as OpenStack, DigitalOcean, OVH, KubeVirt and
//! others attach it.
//! <https://docs.openstack.org/nova/latest/user/metadata.html>

use super::openstack_documents::{Documents, FOLDER};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit};
use crate::drive::Drive;
use serde::Deserialize;

const LABEL: &str = "config-2";
/// Dated twins of the folder, the newest first, for drives without `latest`.
const VERSIONS: [&str; 8] =
    ["2018-08-27", "2017-02-22", "2016-10-06", "2016-06-30", "2015-10-15", "2013-10-17", "2013-04-04", "2012-08-10"];

/// The source.
pub(super) struct ConfigDrive;

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Ec2MetaData {
    instance_type: Option<String>,
    public_ipv4: Option<String>,
}

impl Source for ConfigDrive {
    fn name(&self) -> &'static str {
        "config-drive"
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
            return self.read_drive(platform, &name, &drive).map(Some);
        }
        Ok(None)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}

impl ConfigDrive {
    fn read_drive(&self, platform: &dyn Platform, name: &str, drive: &Drive<'_>) -> Result<Found, SourceError> {
        let read = |file: &str| {
            drive.read(file).map_err(|error| SourceError::Unusable(format!("{file} on the drive {name}: {error}")))
        };
        let dated = VERSIONS.iter().map(|version| format!("openstack/{version}"));
        for folder in std::iter::once(FOLDER.to_owned()).chain(dated) {
            let Some(meta_data) = read(&format!("{folder}/meta_data.json"))? else { continue };
            let documents = Documents {
                meta_data,
                network_data: read(&format!("{folder}/network_data.json"))?,
                user_data: read(&format!("{folder}/user_data"))?,
            };
            let mut found = documents.into_found(self.name())?;
            if let Some(raw) = read("ec2/latest/meta-data.json")? {
                // The twin only adds; what is wrong in it does not spoil the rest.
                let ec2: Ec2MetaData = serde_json::from_slice(&raw).unwrap_or_default();
                found.instance_type = ec2.instance_type;
                found.external_addresses = super::addresses(ec2.public_ipv4.as_deref());
            }
            found.provider_id = provider_id(platform, &found);
            return Ok(found);
        }
        Err(SourceError::Unusable(format!(
            "the drive {name} has the label {LABEL} and no openstack/latest/meta_data.json"
        )))
    }
}

/// The drive's form is OpenStack's whoever made it: whose machine this is says DMI.
fn provider_id(platform: &dyn Platform, found: &Found) -> Option<String> {
    if super::digitalocean::is_here(platform) {
        return platform.dmi("product_serial").map(|id| format!("digitalocean://{id}"));
    }
    found.provider_id.clone().filter(|_| super::openstack::is_here(platform))
}
