//! Vultr (`vultr`).
//! <https://docs.vultr.com/vultr-metadata-api>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{NetworkConfigError, NetworkPlan, NicPlan, address_with_netmask};
use serde::Deserialize;
use serde_json::Value;

/// Private networks carry no larger packets.
const PRIVATE_MTU: u32 = 1450;

/// The source.
pub(super) struct Vultr;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData {
    instance_v2_id: Option<String>,
    instanceid: Option<String>,
    hostname: Option<String>,
    #[serde(default)]
    region: Region,
    /// Text, or an empty list.
    user_data: Option<Value>,
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize, Default)]
struct Region {
    regioncode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Interface {
    mac: String,
    network_type: Option<String>,
    #[serde(default)]
    unconfigured: Value,
    ipv4: Option<Ipv4>,
    ipv6: Option<Ipv6>,
}

#[derive(Deserialize)]
struct Ipv4 {
    address: Option<String>,
    netmask: Option<String>,
}

#[derive(Deserialize)]
struct Ipv6 {
    address: Option<String>,
}

impl Source for Vultr {
    fn name(&self) -> &'static str {
        "vultr"
    }

    /// Machines without a hypervisor have another maker's name.
    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("sys_vendor").as_deref() == Some("Vultr")
            || platform.kernel_line().split_ascii_whitespace().any(|word| word == "vultr")
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let service = Service::new(platform, "http://169.254.169.254");
        let meta: MetaData = service.root_json("/v1.json")?;
        let Some(id) = meta.instance_v2_id.or(meta.instanceid).filter(|id| !id.is_empty()) else {
            return Err(service.wrong("/v1.json", &"it has no instance-v2-id"));
        };
        let user_data = match meta.user_data {
            Some(Value::String(text)) => Some(text.into_bytes()),
            Some(_) => None,
            None => service.get("/latest/user-data")?,
        };
        let public = meta.interfaces.iter().filter(|nic| nic.is_public());
        let outside: Vec<&str> = public
            .flat_map(|nic| {
                [
                    nic.ipv4.as_ref().and_then(|ipv4| ipv4.address.as_deref()),
                    nic.ipv6.as_ref().and_then(|ipv6| ipv6.address.as_deref()),
                ]
            })
            .flatten()
            .collect();
        Ok(Some(Found {
            provider_id: Some(format!("vultr://{id}")),
            instance_id: Some(id),
            external_addresses: addresses(outside),
            network: plan(&meta.interfaces).map_err(network_error)?,
            hostname: meta.hostname.filter(|name| !name.is_empty()),
            user_data: user_data.filter(|raw| !raw.is_empty()),
            region: meta.region.regioncode.map(|code| code.to_ascii_lowercase()),
            ..Found::of(self)
        }))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}

impl Interface {
    fn is_public(&self) -> bool {
        self.network_type.as_deref() == Some("public")
    }
}

fn plan(interfaces: &[Interface]) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let mut plan = NetworkPlan::default();
    for (at, interface) in interfaces.iter().enumerate() {
        let mut nic = NicPlan::with_mac(&interface.mac)?;
        if interface.is_public() || (at == 0 && interface.network_type.is_none()) {
            nic.dhcp4 = true;
            nic.accept_ra = Some(true);
        } else {
            let own =
                interface.ipv4.as_ref().and_then(|ipv4| Some((ipv4.address.as_deref()?, ipv4.netmask.as_deref())));
            let Some((address, netmask)) = own.filter(|(address, _)| !address.is_empty()) else { continue };
            if interface.unconfigured == Value::Bool(true) {
                continue;
            }
            nic.addresses.push(address_with_netmask(address, netmask)?);
            nic.mtu = Some(PRIVATE_MTU);
        }
        plan.nics.push(nic);
    }
    Ok(Some(plan).filter(|plan| !plan.nics.is_empty()))
}
