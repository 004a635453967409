//! Amazon EC2 (`ec2`), by version 2 of its metadata service: with a token.
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>

use super::http::{Service, network_error};
use super::platform::Method;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit, addresses};
use crate::network_config::{Dhcp6, NetworkConfigError, NetworkPlan, NicPlan, address_with_netmask};

const BASES: [&str; 2] = ["http://169.254.169.254", "http://[fd00:ec2::254]"];
const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token";
const TOKEN_LIFE: (&str, &str) = ("X-aws-ec2-metadata-token-ttl-seconds", "21600");
/// No machine has more interfaces.
const MOST_INTERFACES: usize = 64;
/// Metric of the first interface's routes; the others follow.
const FIRST_METRIC: u32 = 100;

/// The source.
pub(super) struct Ec2;

impl Source for Ec2 {
    fn name(&self) -> &'static str {
        "ec2"
    }

    /// The UUID begins with `ec2`, or does so once the bytes of its first group are swapped.
    fn detect(&self, platform: &dyn Platform) -> bool {
        let uuid = platform.dmi("product_uuid").unwrap_or_default().to_ascii_lowercase();
        let group = uuid.split('-').next().unwrap_or_default();
        let tail = group.get(4..).unwrap_or_default();
        let swapped = tail.len() == 4 && tail.starts_with('2') && tail.ends_with("ec");
        let vendor = platform.dmi("sys_vendor").unwrap_or_default();
        uuid.starts_with("ec2") || (swapped && vendor == "Xen") || vendor == "Amazon EC2"
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let found = Service::first(platform, &BASES, |service| match self.read_from(service) {
            // The token has run out meanwhile, or the service was started anew.
            Err(SourceError::Refused { url, status: 401 }) => {
                let base = BASES.iter().find(|base| url.starts_with(*base)).copied().unwrap_or_default();
                self.read_from(Service::new(platform, base))
            }
            outcome => outcome,
        });
        found.map(Some)
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(UserDataLimit { bytes: 16 * 1024, as_base64: false })
    }
}

impl Ec2 {
    fn read_from(&self, service: Service<'_>) -> Result<Found, SourceError> {
        let service = with_token(service)?;
        let get = |key: &str| service.text(&format!("/latest/meta-data/{key}"));
        let id = service.root_text("/latest/meta-data/instance-id")?;
        let zone = get("placement/availability-zone")?;
        let outside = [get("public-ipv4")?, get("ipv6")?];
        Ok(Found {
            provider_id: zone.as_ref().map(|zone| format!("aws:///{zone}/{id}")),
            instance_id: Some(id),
            hostname: get("local-hostname")?.or(get("hostname")?),
            user_data: service.get("/latest/user-data")?.filter(|raw| !raw.is_empty()),
            region: get("placement/region")?,
            zone,
            instance_type: get("instance-type")?,
            external_addresses: addresses(outside.iter().flatten().map(String::as_str)),
            network: plan(&service)?,
            ..Found::of(self)
        })
    }
}

/// Twins of this service at other clouds know no tokens; a service that is turned off forbids them.
fn with_token(service: Service<'_>) -> Result<Service<'_>, SourceError> {
    let answer = service.send_with(Method::Put, "/latest/api/token", TOKEN_LIFE)?;
    match answer.status {
        200 => {
            let token = String::from_utf8_lossy(&answer.body).trim().to_owned();
            Ok(service.with_header(TOKEN_HEADER, &token))
        }
        403 => Err(SourceError::Absent("the instance metadata service is turned off for this machine".to_owned())),
        _ => Ok(service),
    }
}

/// Each interface has its first address by DHCP; further ones are added.
fn plan(service: &Service<'_>) -> Result<Option<NetworkPlan>, SourceError> {
    let folder = "/latest/meta-data/network/interfaces/macs/";
    let macs = service.text(folder)?.unwrap_or_default();
    let mut nics = Vec::new();
    for mac in macs.lines().map(|line| line.trim().trim_end_matches('/')).take(MOST_INTERFACES) {
        let key = |key: &str| service.text(&format!("{folder}{mac}/{key}"));
        let number: u32 = key("device-number")?.and_then(|number| number.parse().ok()).unwrap_or(u32::MAX);
        let card: u32 = key("network-card")?.and_then(|number| number.parse().ok()).unwrap_or(0);
        let addresses = key("local-ipv4s")?.unwrap_or_default();
        let subnet = key("subnet-ipv4-cidr-block")?.unwrap_or_default();
        let ipv6 = key("ipv6s")?.is_some();
        let nic = nic(mac, &addresses, &subnet, ipv6).map_err(network_error)?;
        nics.push(((card, number), nic));
    }
    nics.sort_by_key(|(order, _)| *order);
    let numbered = (FIRST_METRIC..).zip(nics);
    let nics: Vec<NicPlan> = numbered.map(|(metric, (_, nic))| NicPlan { dhcp_metric: Some(metric), ..nic }).collect();
    Ok(Some(NetworkPlan { nics, ..NetworkPlan::default() }).filter(|plan| !plan.nics.is_empty()))
}

fn nic(mac: &str, addresses: &str, subnet: &str, ipv6: bool) -> Result<NicPlan, NetworkConfigError> {
    let prefix = subnet.split('/').nth(1);
    let mut nic = NicPlan { dhcp4: !addresses.is_empty(), ..NicPlan::with_mac(mac)? };
    for further in addresses.lines().skip(1) {
        nic.addresses.push(address_with_netmask(further, prefix)?);
    }
    if ipv6 {
        (nic.dhcp6, nic.accept_ra) = (Some(Dhcp6::Stateful), Some(true));
    }
    Ok(nic)
}
