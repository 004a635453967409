//! UpCloud (`upcloud`). The service is off for custom images unless it was turned on for the server.
//! <https://developers.upcloud.com/1.3/8-servers/#metadata-service>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{NetworkConfigError, NetworkPlan, NicPlan, RoutePlan, address_with_netmask};
use serde::Deserialize;
use std::net::IpAddr;

/// The source.
pub(super) struct UpCloud;

#[derive(Deserialize)]
struct MetaData {
    instance_id: String,
    hostname: Option<String>,
    region: Option<String>,
    user_data: Option<String>,
    #[serde(default)]
    network: Network,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Network {
    interfaces: Vec<Interface>,
    dns: Vec<String>,
}

#[derive(Deserialize)]
struct Interface {
    mac: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    ip_addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    family: Option<String>,
    #[serde(default)]
    dhcp: bool,
    #[serde(default)]
    floating: bool,
    gateway: Option<String>,
    network: Option<String>,
}

impl Source for UpCloud {
    fn name(&self) -> &'static str {
        "upcloud"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("sys_vendor").as_deref() == Some("UpCloud")
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let service = Service::new(platform, "http://169.254.169.254/metadata");
        let meta: MetaData = service.root_json("/v1.json")?;
        let user_data = match meta.user_data {
            Some(text) => Some(text.into_bytes()),
            None => service.get("/v1/user_data")?,
        };
        let public = meta.network.interfaces.iter().filter(|nic| nic.is_public());
        let outside = public.flat_map(|nic| &nic.ip_addresses).map(|own| own.address.as_str());
        Ok(Some(Found {
            provider_id: Some(format!("upcloud:////{}", meta.instance_id)),
            external_addresses: addresses(outside),
            network: plan(&meta.network).map_err(network_error)?,
            instance_id: Some(meta.instance_id),
            hostname: meta.hostname,
            user_data: user_data.filter(|raw| !raw.is_empty()),
            // The provider's controllers know nothing larger than a zone and name it twice.
            region: meta.region.clone(),
            zone: meta.region,
            ..Found::of(self)
        }))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
    }
}

impl Interface {
    fn is_public(&self) -> bool {
        self.kind.as_deref() == Some("public")
    }
}

fn plan(network: &Network) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let mut plan = NetworkPlan::default();
    for interface in &network.interfaces {
        let mut nic = NicPlan::with_mac(&interface.mac)?;
        for own in &interface.ip_addresses {
            add(&mut nic, own, interface.is_public())?;
        }
        plan.nics.push(nic);
    }
    for server in &network.dns {
        plan.dns.extend(server.trim().parse::<IpAddr>().ok());
    }
    Ok(Some(plan).filter(|plan| !plan.nics.is_empty()))
}

fn add(nic: &mut NicPlan, own: &Address, is_public: bool) -> Result<(), NetworkConfigError> {
    let is_ipv6 = own.family.as_deref() == Some("IPv6");
    if own.dhcp {
        // IPv6 addresses come by router advertisement.
        if is_ipv6 {
            nic.accept_ra = Some(true)
        } else {
            nic.dhcp4 = true
        }
        return Ok(());
    }
    let prefix = own.network.as_deref().and_then(|network| network.split('/').nth(1)).filter(|_| !own.floating);
    nic.addresses.push(address_with_netmask(&own.address, prefix)?);
    let gateway = own.gateway.as_deref().filter(|gateway| is_public && !own.floating && !gateway.is_empty());
    if let Some(gateway) = gateway {
        let via = gateway.parse().map_err(|_| NetworkConfigError(format!("{gateway:?} is no gateway")))?;
        nic.routes.push(RoutePlan::default_by(via, None));
    }
    Ok(())
}
