//! Microsoft Azure (`azure`). A machine that does not report ready is marked as failed: see `azure_ready`.
//! <https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses, azure_ready};
use crate::drive::Drive;
use crate::network_config::{Dhcp6, NetworkConfigError, NetworkPlan, NicPlan, address_with_netmask};
use serde::Deserialize;

const ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
const INSTANCE: &str = "/metadata/instance?api-version=2021-08-01&extended=true";
/// For regions that know no newer one.
const OLD_INSTANCE: &str = "/metadata/instance?api-version=2019-06-01";
const USER_DATA: &str = "/metadata/instance/compute/userData?api-version=2021-01-01&format=text";
const LOAD_BALANCER: &str = "/metadata/loadbalancer?api-version=2020-10-01";
/// Metric of the first interface's routes; the others follow.
const FIRST_METRIC: u32 = 100;

/// The source.
pub(super) struct Azure;

#[derive(Deserialize)]
struct Instance {
    compute: Compute,
    #[serde(default)]
    network: Network,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compute {
    name: Option<String>,
    vm_id: Option<String>,
    vm_size: Option<String>,
    location: Option<String>,
    zone: Option<String>,
    resource_id: Option<String>,
    #[serde(default)]
    os_profile: OsProfile,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct OsProfile {
    computer_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Network {
    interface: Vec<Interface>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    mac_address: String,
    #[serde(default)]
    ipv4: Addresses,
    #[serde(default)]
    ipv6: Addresses,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Addresses {
    ip_address: Vec<Address>,
    subnet: Vec<Subnet>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Address {
    private_ip_address: String,
    public_ip_address: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Subnet {
    prefix: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LoadBalancer {
    loadbalancer: PublicAddresses,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PublicAddresses {
    public_ip_addresses: Vec<Frontend>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Frontend {
    frontend_ip_address: String,
}

impl Source for Azure {
    fn name(&self) -> &'static str {
        "azure"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("chassis_asset_tag").as_deref() == Some(ASSET_TAG)
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let service = Service::new(platform, "http://169.254.169.254").with_header("Metadata", "true");
        let instance: Instance = match service.root_json(INSTANCE) {
            Err(SourceError::Refused { status: 400, .. }) => service.root_json(OLD_INSTANCE)?,
            outcome => outcome?,
        };
        let compute = instance.compute;
        let region = compute.location.map(|location| location.to_ascii_lowercase());
        let zone = compute.zone.filter(|zone| !zone.is_empty());
        let user_data = service.get(USER_DATA)?.filter(|raw| !raw.trim_ascii().is_empty());
        Ok(Some(Found {
            instance_id: compute.vm_id.or_else(|| platform.dmi("product_uuid")),
            hostname: compute.os_profile.computer_name.filter(|name| !name.is_empty()).or(compute.name),
            user_data: match user_data {
                Some(raw) => Some(crate::encoding::from_base64(&raw).unwrap_or(raw)),
                None => custom_data(platform)?,
            },
            provider_id: compute.resource_id.as_deref().and_then(provider_id),
            // The provider's controllers name a zone by its region, so that no two regions share one.
            zone: region.as_ref().zip(zone).map(|(region, zone)| format!("{region}-{zone}")),
            region,
            instance_type: compute.vm_size,
            external_addresses: outside(&service, &instance.network),
            network: plan(&instance.network).map_err(network_error)?,
            ..Found::of(self)
        }))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 65_535, as_base64: false })
    }

    fn report_ready(&self, platform: &dyn Platform) -> Result<(), SourceError> {
        azure_ready::report(platform)
    }
}

/// The resource's id with its group's name in small letters, as the provider's controllers write it.
fn provider_id(resource: &str) -> Option<String> {
    let marker = "/resourceGroups/";
    let at = resource.find(marker)? + marker.len();
    let (before, rest) = resource.split_at_checked(at)?;
    let (group, after) = rest.split_once('/')?;
    Some(format!("azure://{before}{}/{after}", group.to_ascii_lowercase()))
}

/// Behind a standard load balancer the machine's own document names no public address.
fn outside(service: &Service<'_>, network: &Network) -> Vec<std::net::IpAddr> {
    let all = network.interface.iter().flat_map(|nic| nic.ipv4.ip_address.iter().chain(&nic.ipv6.ip_address));
    let own = addresses(all.map(|address| address.public_ip_address.as_str()));
    if !own.is_empty() {
        return own;
    }
    // Without a load balancer the answer is an error, which says no more than that.
    let balancer: LoadBalancer = service.json(LOAD_BALANCER).ok().flatten().unwrap_or_default();
    addresses(balancer.loadbalancer.public_ip_addresses.iter().map(|front| front.frontend_ip_address.as_str()))
}

fn plan(network: &Network) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let mut plan = NetworkPlan::default();
    for (metric, interface) in (FIRST_METRIC..).zip(&network.interface) {
        let mut nic = NicPlan { dhcp4: true, dhcp_metric: Some(metric), ..NicPlan::with_mac(&interface.mac_address)? };
        let prefix = interface.ipv4.subnet.first().map(|subnet| subnet.prefix.as_str());
        // DHCP gives the first address only.
        for further in interface.ipv4.ip_address.iter().skip(1) {
            nic.addresses.push(address_with_netmask(&further.private_ip_address, prefix)?);
        }
        if !interface.ipv6.ip_address.is_empty() {
            (nic.dhcp6, nic.accept_ra) = (Some(Dhcp6::Stateful), Some(true));
        }
        plan.nics.push(nic);
    }
    Ok(Some(plan).filter(|plan| !plan.nics.is_empty()))
}

/// Custom data, the older way: `ovf-env.xml` on the drive that the platform attaches at the first boot.
fn custom_data(platform: &dyn Platform) -> Result<Option<Vec<u8>>, SourceError> {
    for (name, device) in platform.devices() {
        let Some(drive) = Drive::open(device.as_ref()) else { continue };
        let document = drive
            .read("ovf-env.xml")
            .map_err(|error| SourceError::Unusable(format!("ovf-env.xml on the drive {name}: {error}")))?;
        let Some(document) = document else { continue };
        let text = String::from_utf8_lossy(&document).into_owned();
        let data = azure_ready::element(&text, "CustomData").filter(|data| !data.trim().is_empty());
        return Ok(data.map(|data| crate::encoding::from_base64(data.as_bytes()).unwrap_or_else(|| data.into())));
    }
    Ok(None)
}
