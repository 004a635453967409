//! OpenStack's documents, on a config drive or over HTTP: `meta_data.json`, `network_data.json`, `user_data`.
//! <https://docs.openstack.org/nova/latest/user/metadata.html>

use super::http::network_error;
use super::{Found, SourceError};
use crate::network_config::openstack;
use serde::Deserialize;

/// Where the documents lie below a drive's root or a server's address.
pub(super) const FOLDER: &str = "openstack/latest";

#[derive(Deserialize)]
struct MetaData {
    uuid: String,
    hostname: Option<String>,
    name: Option<String>,
    availability_zone: Option<String>,
}

/// The documents as they came.
pub(super) struct Documents {
    pub(super) meta_data: Vec<u8>,
    pub(super) network_data: Option<Vec<u8>>,
    pub(super) user_data: Option<Vec<u8>>,
}

impl Documents {
    pub(super) fn into_found(self, source: &str) -> Result<Found, SourceError> {
        let meta: MetaData = serde_json::from_slice(&self.meta_data)
            .map_err(|error| SourceError::Unusable(format!("meta_data.json is wrong: {error}")))?;
        let network = match self.network_data.filter(|raw| !raw.trim_ascii().is_empty()) {
            Some(raw) => Some(openstack::parse(&raw).map_err(network_error)?).filter(|plan| !plan.nics.is_empty()),
            None => None,
        };
        Ok(Found {
            source: source.to_owned(),
            provider_id: Some(format!("openstack:///{}", meta.uuid)),
            instance_id: Some(meta.uuid),
            hostname: meta.hostname.or(meta.name),
            user_data: self.user_data,
            network,
            zone: meta.availability_zone,
            ..Found::default()
        })
    }
}
