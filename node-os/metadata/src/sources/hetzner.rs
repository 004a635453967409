//! Hetzner Cloud (`hetzner`).
//! <https://docs.hetzner.cloud/reference/cloud#description/server-metadata>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{self, NetworkConfigError, NetworkPlan, NicPlan};
use crate::userdata::Scalar;
use serde::Deserialize;
use serde_yaml_ng::Value;

const BASES: [&str; 2] = ["http://169.254.169.254/hetzner/v1", "http://[fe80::a9fe:a9fe%25nic]/hetzner/v1"];

/// The source.
pub(super) struct Hetzner;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData {
    instance_id: Scalar,
    hostname: Option<String>,
    public_ipv4: Option<String>,
    availability_zone: Option<String>,
    network_config: Option<Value>,
}

#[derive(Deserialize)]
struct PrivateNetwork {
    mac_address: String,
}

impl Source for Hetzner {
    fn name(&self) -> &'static str {
        "hetzner"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("sys_vendor").as_deref() == Some("Hetzner")
    }

    /// Servers without a public address reach it over the link only.
    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::LinkLocal, Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        Service::first(platform, &BASES, |service| self.read_from(platform, &service)).map(Some)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 32 * 1024, as_base64: false })
    }
}

impl Hetzner {
    fn read_from(&self, platform: &dyn Platform, service: &Service<'_>) -> Result<Found, SourceError> {
        let meta: MetaData = service
            .yaml("/metadata")?
            .ok_or_else(|| SourceError::Absent("the metadata server has no /hetzner/v1/metadata".to_owned()))?;
        let id = meta.instance_id.to_string();
        if let Some(serial) = platform.dmi("product_serial").filter(|serial| !serial.is_empty() && *serial != id) {
            let why = format!("the metadata server speaks of the server {id}, and this is {serial}");
            return Err(SourceError::Unusable(why));
        }
        let private: Vec<PrivateNetwork> = service.yaml("/metadata/private-networks")?.unwrap_or_default();
        let plan = plan(meta.network_config.as_ref(), &private).map_err(network_error)?;
        let outside: Vec<String> = plan
            .iter()
            .flat_map(|plan| &plan.nics)
            .flat_map(|nic| &nic.addresses)
            .map(|own| own.addr().to_string())
            .collect();
        Ok(Found {
            provider_id: Some(format!("hcloud://{id}")),
            instance_id: Some(id),
            hostname: meta.hostname,
            user_data: service.get("/userdata")?.filter(|raw| !raw.is_empty()),
            // The provider's own controllers name the location a region, not the network zone that metadata calls so.
            region: meta.availability_zone.as_deref().and_then(|zone| zone.split('-').next()).map(str::to_owned),
            zone: meta.availability_zone,
            external_addresses: addresses(meta.public_ipv4.iter().chain(&outside).map(String::as_str)),
            network: plan,
            ..Found::of(self)
        })
    }
}

/// Private networks are not in the network configuration; their servers answer DHCP.
fn plan(config: Option<&Value>, private: &[PrivateNetwork]) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let Some(config) = config.filter(|config| !config.is_null()) else { return Ok(None) };
    let mut plan = network_config::from_value(config)?;
    for network in private {
        plan.nics.push(NicPlan { dhcp4: true, ..NicPlan::with_mac(&network.mac_address)? });
    }
    Ok(Some(plan))
}
