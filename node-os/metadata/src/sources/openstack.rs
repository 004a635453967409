//! OpenStack over HTTP (`openstack`), in IPv4 or over the link in IPv6.
//! <https://docs.openstack.org/nova/latest/user/metadata.html>

use super::http::Service;
use super::openstack_documents::{Documents, FOLDER};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};

const BASES: [&str; 2] = ["http://169.254.169.254", "http://[fe80::a9fe:a9fe%25nic]"];
const PRODUCTS: [&str; 2] = ["OpenStack Nova", "OpenStack Compute"];
/// Clouds made of OpenStack that say so in this field only.
const ASSET_TAGS: [&str; 6] = [
    "OpenStack Nova",
    "OpenStack Compute",
    "OpenTelekomCloud",
    "SAP CCloud VM",
    "HUAWEICLOUD",
    "Samsung Cloud Platform",
];

/// The source.
pub(super) struct OpenStack;

impl Source for OpenStack {
    fn name(&self) -> &'static str {
        "openstack"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        is_here(platform)
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp, Reach::LinkLocal]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        Service::first(platform, &BASES, |service| self.read_from(&service)).map(Some)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 65_535, as_base64: true })
    }
}

impl OpenStack {
    fn read_from(&self, service: &Service<'_>) -> Result<Found, SourceError> {
        let path = |file: &str| format!("/{FOLDER}/{file}");
        let Some(meta_data) = service.get(&path("meta_data.json"))? else {
            return Err(SourceError::Absent("the metadata server has no meta_data.json of OpenStack".to_owned()));
        };
        let documents = Documents {
            meta_data,
            network_data: service.get(&path("network_data.json"))?,
            user_data: service.get(&path("user_data"))?.filter(|raw| !raw.is_empty()),
        };
        let mut found = documents.into_found(self.name())?;
        // Floating addresses and the flavour are known to the twin of EC2's service only, where there is one.
        let twin = |key: &str| service.text(&format!("/latest/meta-data/{key}")).unwrap_or_default();
        found.external_addresses = addresses(twin("public-ipv4").as_deref());
        found.instance_type = twin("instance-type");
        Ok(found)
    }
}

pub(super) fn is_here(platform: &dyn Platform) -> bool {
    let is_one_of = |name: &str, list: &[&str]| platform.dmi(name).is_some_and(|value| list.contains(&value.as_str()));
    is_one_of("product_name", &PRODUCTS) || is_one_of("chassis_asset_tag", &ASSET_TAGS)
}
