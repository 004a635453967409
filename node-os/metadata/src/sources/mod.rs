//! Data sources: where a platform keeps what it knows of a machine. One file per source.
//!
//! A source reads through [`Platform`] only: it says what to fetch and what the answers mean, and whoever implements
//! [`Platform`] does the I/O, with its patience. So a source is tested without a machine and without a network.
//!
//! To add one:
//! 1. its file here, with a `pub(super) struct` that implements [`Source`], and its line in [`all`], in the order in
//!    which sources are asked (what needs no network first);
//! 2. recorded answers and what is expected of them in `tests/fixtures/NAME/`;
//! 3. its row in `docs/platforms.md` (a test compares the table with [`all`]).

mod azure;
mod azure_ready;
mod config_drive;
mod digitalocean;
mod ec2;
mod exoscale;
mod fw_cfg;
mod gcp;
mod hetzner;
mod http;
mod kernel_line;
mod linode;
mod nocloud;
mod nocloud_drive;
mod openstack;
mod openstack_documents;
mod oracle;
mod platform;
mod scaleway;
mod servers;
mod upcloud;
mod vmware;
mod vultr;

pub use platform::{Answer, Method, Platform, Reach, Request, SourceError};
pub use servers::{SERVERS_V4, SERVERS_V6, WIRE_SERVER, is_server};

use crate::network_config::NetworkPlan;
use serde::Serialize;
use std::net::IpAddr;

/// A place where metadata may be.
pub trait Source: Send + Sync {
    /// Its name, as `node.json`, the console, `kimg seed --for` and `docs/platforms.md` show it.
    fn name(&self) -> &'static str;
    /// Whether this machine may have it, by DMI and the kernel's line: costs no time and never asks the network.
    fn detect(&self, platform: &dyn Platform) -> bool;
    /// Ways to its server, the best first; none when it needs no network.
    fn reach(&self, platform: &dyn Platform) -> &'static [Reach];
    /// What it says; `Ok(None)`: it is not on this machine.
    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError>;
    /// The most bytes of user-data that the provider takes; `None` where no source for a figure was found.
    fn user_data_limit(&self) -> Option<UserDataLimit>;
    /// Tells the platform that this machine has come up, where it must be told; the others have nothing to do.
    fn report_ready(&self, platform: &dyn Platform) -> Result<(), SourceError> {
        let _ = platform;
        Ok(())
    }
}

/// A provider's limit of user-data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserDataLimit {
    /// Bytes.
    pub bytes: usize,
    /// They are counted after base64.
    pub as_base64: bool,
}

/// What a source found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// The source's name.
    pub source: String,
    /// Changes when the machine is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Host name that the platform gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// User-data as it came.
    #[serde(skip)]
    pub user_data: Option<Vec<u8>>,
    /// What the network is to be; `None`: DHCP everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPlan>,
    /// `spec.providerID` of the Node, in the form of the provider's own controllers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// The label `topology.kubernetes.io/region`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The label `topology.kubernetes.io/zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The label `node.kubernetes.io/instance-type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Addresses under which the machine is reached from outside, whether it knows of them or not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external_addresses: Vec<IpAddr>,
}

impl Found {
    fn of(source: &dyn Source) -> Found {
        Found { source: source.name().to_owned(), ..Found::default() }
    }
}

/// All sources in the order in which they are asked.
pub fn all() -> Vec<Box<dyn Source>> {
    vec![
        Box::new(kernel_line::KernelLine),
        Box::new(fw_cfg::FwCfg),
        Box::new(nocloud_drive::NoCloudDrive),
        Box::new(config_drive::ConfigDrive),
        Box::new(vmware::VMware),
        Box::new(digitalocean::DigitalOcean),
        Box::new(linode::Linode),
        Box::new(hetzner::Hetzner),
        Box::new(vultr::Vultr),
        Box::new(scaleway::Scaleway),
        Box::new(upcloud::UpCloud),
        Box::new(exoscale::Exoscale),
        Box::new(oracle::Oracle),
        Box::new(azure::Azure),
        Box::new(gcp::Gcp),
        Box::new(ec2::Ec2),
        Box::new(openstack::OpenStack),
    ]
}

/// The source of that name.
pub fn by_name(name: &str) -> Option<Box<dyn Source>> {
    all().into_iter().find(|source| source.name() == name)
}

/// An address list of which the unusable ones are left out: they only label the node.
fn addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut list: Vec<IpAddr> = Vec::new();
    for text in texts {
        let bare = text.split('/').next().unwrap_or_default().trim();
        if let Ok(address) = bare.parse::<IpAddr>()
            && !address.is_unspecified()
            && !list.contains(&address)
        {
            list.push(address);
        }
    }
    list
}
