//! Oracle Cloud Infrastructure (`oracle`).
//! <https://docs.oracle.com/iaas/Content/Compute/Tasks/gettingmetadata.htm>

use super::http::{Service, network_error};
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit};
use crate::network_config::{NetworkConfigError, NetworkPlan, NicPlan, address_with_netmask};
use serde::Deserialize;

const BASES: [&str; 2] = ["http://169.254.169.254/opc/v2", "http://[fd00:c1::a9fe:a9fe]/opc/v2"];
/// What the platform's network carries.
const MTU: u32 = 9000;

/// The source.
pub(super) struct Oracle;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Instance {
    id: String,
    hostname: Option<String>,
    display_name: Option<String>,
    shape: Option<String>,
    region: Option<String>,
    canonical_region_name: Option<String>,
    availability_domain: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    user_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vnic {
    mac_addr: String,
    private_ip: Option<String>,
    subnet_cidr_block: Option<String>,
}

impl Source for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn detect(&self, platform: &dyn Platform) -> bool {
        platform.dmi("chassis_asset_tag").as_deref() == Some("OracleCloud.com")
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

impl Oracle {
    fn read_from(&self, service: Service<'_>) -> Result<Found, SourceError> {
        let service = service.with_header("Authorization", "Bearer Oracle");
        let instance: Instance = service.root_json("/instance/")?;
        let vnics: Vec<Vnic> = service.json("/vnics/")?.unwrap_or_default();
        let user_data = instance.metadata.user_data.filter(|text| !text.is_empty()).map(String::into_bytes);
        Ok(Found {
            provider_id: Some(format!("oci://{}", instance.id)),
            instance_id: Some(instance.id),
            hostname: instance.hostname.or(instance.display_name),
            user_data: user_data.map(|raw| crate::encoding::from_base64(&raw).unwrap_or(raw)),
            region: instance.canonical_region_name.or(instance.region),
            // `EMIr:PHX-AD-1`: the first part differs from tenant to tenant.
            zone: instance.availability_domain.and_then(|domain| domain.rsplit(':').next().map(str::to_owned)),
            instance_type: instance.shape,
            network: plan(&vnics).map_err(network_error)?,
            ..Found::of(self)
        })
    }
}

/// DHCP is served to the first interface only.
fn plan(vnics: &[Vnic]) -> Result<Option<NetworkPlan>, NetworkConfigError> {
    let mut plan = NetworkPlan::default();
    for (at, vnic) in vnics.iter().enumerate() {
        let mut nic = NicPlan { mtu: Some(MTU), ..NicPlan::with_mac(&vnic.mac_addr)? };
        match (at, &vnic.private_ip) {
            (0, _) => nic.dhcp4 = true,
            (_, Some(own)) => {
                let prefix = vnic.subnet_cidr_block.as_deref().and_then(|block| block.split('/').nth(1));
                nic.addresses.push(address_with_netmask(own, prefix)?);
            }
            (_, None) => {}
        }
        plan.nics.push(nic);
    }
    Ok(Some(plan).filter(|plan| !plan.nics.is_empty()))
}
