//! Exoscale (`exoscale`).
//! <https://community.exoscale.com/product/compute/instances/how-to/cloud-init/>

use super::http::Service;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};

/// The source.
pub(super) struct Exoscale;

impl Source for Exoscale {
    fn name(&self) -> &'static str {
        "exoscale"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("product_name").is_some_and(|name| name.starts_with("Exoscale"))
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    /// The addresses come by DHCP and router advertisements; no hardware address is named.
    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let service = Service::new(platform, "http://169.254.169.254/1.0");
        let get = |key: &str| service.text(&format!("/meta-data/{key}"));
        let id = service.root_text("/meta-data/instance-id")?;
        Ok(Some(Found {
            provider_id: Some(format!("exoscale://{id}")),
            instance_id: Some(id),
            hostname: get("local-hostname")?,
            user_data: service.get("/user-data")?.filter(|raw| !raw.is_empty()),
            // What the platform calls a zone its controllers call a region.
            region: get("availability-zone")?,
            instance_type: get("service-offering")?.map(|kind| kind.to_ascii_lowercase().replace(' ', ".")),
            external_addresses: addresses(get("public-ipv4")?.as_deref()),
            ..Found::of(self)
        }))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}
