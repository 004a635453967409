//! The documents of NoCloud, wherever they lie: `meta-data`, `user-data`, `network-config`.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>

use super::http::network_error;
use super::{Found, SourceError, addresses};
use crate::network_config;
use crate::userdata::Scalar;
use serde::Deserialize;

/// The documents as they came.
#[derive(Default)]
pub(super) struct Documents {
    pub(super) meta_data: Option<Vec<u8>>,
    pub(super) user_data: Option<Vec<u8>>,
    pub(super) network_config: Option<Vec<u8>>,
}

/// What a `meta-data` document holds; the keys below the first three are those that others (Talos) know too.
#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct MetaData {
    pub(super) instance_id: Option<Scalar>,
    pub(super) local_hostname: Option<String>,
    pub(super) hostname: Option<String>,
    provider_id: Option<String>,
    region: Option<String>,
    zone: Option<String>,
    instance_type: Option<String>,
    public_ipv4: Option<String>,
    public_ipv6: Option<String>,
}

impl MetaData {
    pub(super) fn parse(raw: &[u8]) -> Result<MetaData, SourceError> {
        const LIMIT: usize = 64 * 1024;
        let text = crate::encoding::decode(raw, LIMIT)
            .map_err(|error| SourceError::Unusable(format!("meta-data is unreadable: {error}")))?;
        if text.trim().is_empty() {
            return Ok(MetaData::default());
        }
        serde_yaml_ng::from_str(&text).map_err(|error| SourceError::Unusable(format!("meta-data is wrong: {error}")))
    }

    pub(super) fn into_found(self, source: &str) -> Found {
        Found {
            source: source.to_owned(),
            instance_id: self.instance_id.map(|id| id.to_string()),
            hostname: self.local_hostname.or(self.hostname),
            provider_id: self.provider_id,
            region: self.region,
            zone: self.zone,
            instance_type: self.instance_type,
            external_addresses: addresses([self.public_ipv4, self.public_ipv6].iter().flatten().map(String::as_str)),
            ..Found::default()
        }
    }
}

impl Documents {
    pub(super) fn into_found(self, source: &str) -> Result<Found, SourceError> {
        let mut found = MetaData::parse(&self.meta_data.unwrap_or_default())?.into_found(source);
        found.user_data = self.user_data;
        if let Some(raw) = self.network_config.filter(|raw| !raw.trim_ascii().is_empty()) {
            found.network = Some(network_config::parse(&raw).map_err(network_error)?);
        }
        Ok(found)
    }
}
