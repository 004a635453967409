//! DigitalOcean (`digitalocean`).
//! <https://docs.digitalocean.com/reference/api/metadata/>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{NetworkConfigError, NetworkPlan, NicPlan, RoutePlan, address_with_netmask};
use crate::userdata::Scalar;
use serde::Deserialize;
use std::net::IpAddr;

/// The source.
pub(super) struct DigitalOcean;

#[derive(Deserialize)]
struct MetaData {
    droplet_id: Scalar,
    hostname: Option<String>,
    region: Option<String>,
    user_data: Option<String>,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    interfaces: Interfaces,
}

#[derive(Deserialize, Default)]
struct Dns {
    #[serde(default)]
    nameservers: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Interfaces {
    public: Vec<Interface>,
    private: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    mac: String,
    ipv4: Option<Ipv4>,
    anchor_ipv4: Option<Ipv4>,
    ipv6: Option<Ipv6>,
}

#[derive(Deserialize)]
struct Ipv4 {
    ip_address: String,
    netmask: String,
    gateway: Option<String>,
}

#[derive(Deserialize)]
struct Ipv6 {
    ip_address: String,
    cidr: u8,
    gateway: Option<String>,
}

impl Source for DigitalOcean {
    fn name(&self) -> &'static str {
        "digitalocean"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        is_here(platform)
    }

    /// Images that are not custom ones are served no DHCP.
    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::LinkLocal, Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let meta: MetaData = Service::new(platform, "http://169.254.169.254").root_json("/metadata/v1.json")?;
        let public = meta.interfaces.public.first();
        let own = [
            public.and_then(|nic| nic.ipv4.as_ref()).map(|ipv4| ipv4.ip_address.as_str()),
            public.and_then(|nic| nic.ipv6.as_ref()).map(|ipv6| ipv6.ip_address.as_str()),
        ];
        let id = meta.droplet_id.to_string();
        Ok(Some(Found {
            provider_id: Some(format!("digitalocean://{id}")),
            instance_id: Some(id),
            external_addresses: addresses(own.into_iter().flatten()),
            network: network(&meta).map_err(network_error)?,
            hostname: meta.hostname,
            user_data: meta.user_data.filter(|text| !text.is_empty()).map(String::into_bytes),
            region: meta.region,
            ..Found::of(self)
        }))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 64 * 1024, as_base64: false })
    }
}

pub(super) fn is_here(platform: &dyn Platform) -> bool {
    platform.dmi("sys_vendor").as_deref() == Some("DigitalOcean")
}

fn network(meta: &MetaData) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let mut plan = NetworkPlan::default();
    let public = meta.interfaces.public.iter().map(|nic| (nic, true));
    for (interface, is_public) in public.chain(meta.interfaces.private.iter().map(|nic| (nic, false))) {
        plan.nics.push(nic(interface, is_public)?);
    }
    for server in &meta.dns.nameservers {
        plan.dns.extend(server.trim().parse::<IpAddr>().ok());
    }
    Ok(Some(plan).filter(|plan| !plan.nics.is_empty()))
}

/// Only the public interface leads out; the gateways of the others are not for the default route.
fn nic(interface: &Interface, is_public: bool) -> Result<NicPlan, NetworkConfigError> {
    let mut nic = NicPlan::with_mac(&interface.mac)?;
    let mut gateways = Vec::new();
    for ipv4 in [&interface.ipv4, &interface.anchor_ipv4].into_iter().flatten() {
        nic.addresses.push(address_with_netmask(&ipv4.ip_address, Some(&ipv4.netmask))?);
    }
    gateways.extend(interface.ipv4.as_ref().and_then(|ipv4| ipv4.gateway.as_deref()));
    if let Some(ipv6) = &interface.ipv6 {
        nic.addresses.push(address_with_netmask(&ipv6.ip_address, Some(&ipv6.cidr.to_string()))?);
        gateways.extend(ipv6.gateway.as_deref());
    }
    for gateway in gateways.into_iter().filter(|gateway| is_public && !gateway.is_empty()) {
        let via = gateway.parse().map_err(|_| NetworkConfigError(format!("{gateway:?} is no gateway")))?;
        nic.routes.push(RoutePlan::default_by(via, None));
    }
    nic.dhcp4 = nic.addresses.is_empty();
    Ok(nic)
}
