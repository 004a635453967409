//! Google Compute Engine (`gcp`).
//! <https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{Dhcp6, NetworkConfigError, NetworkPlan, NicPlan};
use serde::Deserialize;

const BASES: [&str; 2] = ["http://169.254.169.254/computeMetadata/v1", "http://[fd20:ce::254]/computeMetadata/v1"];
/// Metric of the first interface's routes; the others follow.
const FIRST_METRIC: u32 = 100;

/// The source.
pub(super) struct Gcp;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    mac: String,
    mtu: Option<u32>,
    #[serde(default)]
    ipv6: Vec<String>,
    #[serde(default)]
    access_configs: Vec<AccessConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AccessConfig {
    external_ip: Option<String>,
}

impl Source for Gcp {
    fn name(&self) -> &'static str {
        "gcp"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        matches!(platform.dmi("product_name").as_deref(), Some("Google Compute Engine" | "Google"))
            || platform.dmi("product_serial").is_some_and(|serial| serial.starts_with("GoogleCloud-"))
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        Service::first(platform, &BASES, |service| self.read_from(service)).map(Some)
    }

    /// A value of the metadata may have 256 KiB.
    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 256 * 1024, as_base64: false })
    }
}

impl Gcp {
    fn read_from(&self, service: Service<'_>) -> Result<Found, SourceError> {
        let service = service.with_header("Metadata-Flavor", "Google");
        let id = service.root_text("/instance/id")?;
        let project = service.text("/project/project-id")?;
        let name = service.text("/instance/name")?;
        let zone = last_part(service.text("/instance/zone")?);
        let interfaces: Vec<Interface> =
            service.json("/instance/network-interfaces/?recursive=true&alt=json")?.unwrap_or_default();
        let outside =
            interfaces.iter().flat_map(|nic| &nic.access_configs).filter_map(|config| config.external_ip.as_deref());
        let provider_id = match (&project, &zone, &name) {
            (Some(project), Some(zone), Some(name)) => Some(format!("gce://{project}/{zone}/{name}")),
            _ => None,
        };
        Ok(Found {
            instance_id: Some(id),
            hostname: service.text("/instance/hostname")?.or(name),
            user_data: user_data(&service)?,
            network: plan(&interfaces).map_err(network_error)?,
            provider_id,
            region: zone.as_deref().and_then(|zone| zone.rsplit_once('-')).map(|(region, _)| region.to_owned()),
            zone,
            instance_type: last_part(service.text("/instance/machine-type")?),
            external_addresses: addresses(outside),
            ..Found::of(self)
        })
    }
}

fn user_data(service: &Service<'_>) -> Result<Option<Vec<u8>>, SourceError> {
    let Some(raw) = service.get("/instance/attributes/user-data")? else { return Ok(None) };
    let encoding = service.text("/instance/attributes/user-data-encoding")?;
    let decoded = if encoding.as_deref() == Some("base64") { crate::encoding::from_base64(&raw) } else { None };
    Ok(Some(decoded.unwrap_or(raw)))
}

/// Names come with the path of what they belong to: `projects/1/zones/europe-west3-a`.
fn last_part(path: Option<String>) -> Option<String> {
    path.and_then(|path| path.rsplit('/').next().map(str::to_owned)).filter(|part| !part.is_empty())
}

/// DHCP gives the addresses; the others of the interface are routed to it and need not be on it.
fn plan(interfaces: &[Interface]) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let mut plan = NetworkPlan::default();
    for (metric, interface) in (FIRST_METRIC..).zip(interfaces) {
        let mut nic = NicPlan {
            dhcp4: true,
            dhcp_metric: Some(metric),
            mtu: interface.mtu.filter(|mtu| (576..=65535).contains(mtu)),
            ..NicPlan::with_mac(&interface.mac)?
        };
        if !interface.ipv6.is_empty() {
            (nic.dhcp6, nic.accept_ra) = (Some(Dhcp6::Stateful), Some(true));
        }
        plan.nics.push(nic);
    }
    Ok(Some(plan).filter(|plan| !plan.nics.is_empty()))
}
