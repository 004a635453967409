//! Linode, of Akamai (`linode`).
//! <https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api>

use super::http::{Service, network_error};
use super::platform::Method;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{NetworkConfigError, NetworkPlan, NicPlan, address_with_netmask};
use crate::userdata::Scalar;
use serde::Deserialize;

const BASES: [&str; 2] = ["http://169.254.169.254", "http://[fd00:a9fe:a9fe::1]"];
/// Public interfaces have such hardware addresses, those of VLANs others; metadata names none.
const PUBLIC_MACS: &str = "f2:3*";
/// The data centre's private network, whose addresses the metadata gives as single hosts.
const PRIVATE_NETWORK: &str = "192.168.128.0/17";

/// The source.
pub(super) struct Linode;

#[derive(Deserialize)]
struct Instance {
    id: Scalar,
    label: Option<String>,
    region: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Network {
    ipv4: Ipv4,
    ipv6: Ipv6,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipv4 {
    public: Vec<String>,
    private: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipv6 {
    slaac: Option<String>,
}

impl Source for Linode {
    fn name(&self) -> &'static str {
        "linode"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        matches!(platform.dmi("sys_vendor").as_deref(), Some("Linode" | "Akamai"))
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        Service::first(platform, &BASES, |service| self.read_from(service)).map(Some)
    }

    /// Of `metadata.user_data` in the API's description, before it is base64.
    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 65535, as_base64: false })
    }
}

impl Linode {
    fn read_from(&self, service: Service<'_>) -> Result<Found, SourceError> {
        let token = token(&service)?;
        let json = service.with_header("Metadata-Token", &token).with_header("Accept", "application/json");
        let instance: Instance = json.root_json("/v1/instance")?;
        let network: Network = json.json("/v1/network")?.unwrap_or_default();
        let id = instance.id.to_string();
        let outside = network.ipv4.public.iter().chain(network.ipv6.slaac.as_ref());
        Ok(Found {
            provider_id: Some(format!("linode://{id}")),
            instance_id: Some(id),
            hostname: instance.label,
            user_data: user_data(json.get("/v1/user-data")?),
            region: instance.region,
            instance_type: instance.kind,
            external_addresses: addresses(outside.map(String::as_str)),
            network: plan(&network).map_err(network_error)?,
            ..Found::of(self)
        })
    }
}

/// The token comes as bare text, or as a list of one.
fn token(service: &Service<'_>) -> Result<String, SourceError> {
    let answer = service.send_with(Method::Put, "/v1/token", ("Metadata-Token-Expiry-Seconds", "300"))?;
    if answer.status != 200 {
        return Err(SourceError::Absent(format!("the metadata server gives no token and answers {}", answer.status)));
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let listed = serde_json::from_str::<Vec<String>>(&text).ok().and_then(|list| list.into_iter().next());
    Ok(listed.unwrap_or_else(|| text.trim().to_owned()))
}

/// The server wraps what the user gave into base64; what the user gave may be packed itself.
fn user_data(raw: Option<Vec<u8>>) -> Option<Vec<u8>> {
    let raw = raw.filter(|raw| !raw.trim_ascii().is_empty())?;
    Some(crate::encoding::from_base64(&raw).unwrap_or(raw))
}

fn plan(network: &Network) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    if network.ipv4.private.is_empty() {
        return Ok(None);
    }
    let mut public = NicPlan { mac: Some(PUBLIC_MACS.to_owned()), dhcp4: true, ..NicPlan::default() };
    for given in &network.ipv4.private {
        let own = address_with_netmask(given, None)?;
        let lan: ipnet::IpNet =
            PRIVATE_NETWORK.parse().map_err(|_| NetworkConfigError("the private network".to_owned()))?;
        let whole = own.prefix_len() == own.max_prefix_len() && lan.contains(&own.addr());
        public.addresses.push(if whole { address_with_netmask(&own.addr().to_string(), Some("17"))? } else { own });
    }
    let others = NicPlan { name: Some("*".to_owned()), optional: true, ..NicPlan::default() };
    Ok(Some(NetworkPlan { nics: vec![public, others], ..NetworkPlan::default() }))
}
