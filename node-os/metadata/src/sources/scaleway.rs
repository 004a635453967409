//! Scaleway Instances (`scaleway`).
//! <https://www.scaleway.com/en/docs/instances/how-to/use-boot-modes/> and its API's user-data pages.

use super::http::Service;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use serde::Deserialize;

const BASES: [&str; 2] = ["http://169.254.42.42", "http://[fd00:42::42]"];

/// The source.
pub(super) struct Scaleway;

#[derive(Deserialize)]
struct Conf {
    id: String,
    hostname: Option<String>,
    name: Option<String>,
    commercial_type: Option<String>,
    zone: Option<String>,
    #[serde(default)]
    location: Location,
    public_ip: Option<PublicAddress>,
    #[serde(default)]
    public_ips_v4: Vec<PublicAddress>,
    #[serde(default)]
    public_ips_v6: Vec<PublicAddress>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Location {
    zone_id: Option<String>,
}

#[derive(Deserialize)]
struct PublicAddress {
    address: Option<String>,
}

impl Source for Scaleway {
    fn name(&self) -> &'static str {
        "scaleway"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("sys_vendor").as_deref() == Some("Scaleway")
            || platform.kernel_line().split_ascii_whitespace().any(|word| word == "scaleway")
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        Service::first(platform, &BASES, |service| self.read_from(service)).map(Some)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}

impl Scaleway {
    /// The addresses come by DHCP and router advertisements; no hardware address is named.
    fn read_from(&self, service: Service<'_>) -> Result<Found, SourceError> {
        let conf: Conf = service.root_json("/conf?format=json")?;
        let zone = conf.zone.or(conf.location.zone_id).filter(|zone| !zone.is_empty());
        let outside = conf.public_ip.iter().chain(&conf.public_ips_v4).chain(&conf.public_ips_v6);
        let external_addresses = addresses(outside.filter_map(|ip| ip.address.as_deref()));
        // Only an administrator of the machine may read it, which a low port shows.
        let user_data = service.with_low_port().get("/user_data/cloud-init")?.filter(|raw| !raw.is_empty());
        Ok(Found {
            provider_id: zone.as_ref().map(|zone| format!("scaleway://instance/{zone}/{}", conf.id)),
            instance_id: Some(conf.id),
            hostname: conf.hostname.or(conf.name),
            user_data,
            // fr-par-1 is a zone of fr-par.
            region: zone.as_deref().and_then(|zone| zone.rsplit_once('-')).map(|(region, _)| region.to_owned()),
            zone,
            instance_type: conf.commercial_type,
            external_addresses,
            ..Found::of(self)
        })
    }
}
