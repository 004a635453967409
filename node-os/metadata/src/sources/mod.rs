//! Data sources: where a platform keeps what it knows of a machine. One file per source.
//!
//! A source reads through [`Platform`] only, so that it is tested without a machine.
//! To add one: write its file with a `pub struct` that implements [`Source`], and name it in [`all`],
//! in the order in which sources are asked.

mod kernel_line;
mod nocloud_drive;

use crate::ReadAt;

/// What a machine offers to sources.
pub trait Platform {
    /// A value of `/sys/class/dmi/id`, e.g. `product_serial`.
    fn dmi(&self, name: &str) -> Option<String>;
    /// The kernel's command line.
    fn kernel_line(&self) -> String;
    /// Block devices that may hold a drive with metadata: name, and a reader.
    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)>;
    /// The body of a successful HTTP GET; `Ok(None)` when the server says that there is no such thing.
    fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Option<Vec<u8>>, String>;
}

/// What a source found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The source's name.
    pub source: String,
    /// Changes when the machine is another one.
    pub instance_id: Option<String>,
    /// Host name that the platform gave.
    pub hostname: Option<String>,
    /// User-data as it came.
    pub user_data: Option<Vec<u8>>,
    /// Network configuration, YAML or JSON text.
    pub network_config: Option<String>,
    /// `spec.providerID` of the Node.
    pub provider_id: Option<String>,
}

/// A place where metadata may be.
pub trait Source: Send {
    /// Its name, as `node.json` and the console show it.
    fn name(&self) -> &'static str;
    /// True when it can be asked only after an address was taken by DHCP.
    fn needs_network(&self, platform: &dyn Platform) -> bool;
    /// `Ok(None)`: not on this platform. `Err`: it is there and unreadable, with a sentence.
    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, String>;
}

/// All sources in the order in which they are asked.
pub fn all() -> Vec<Box<dyn Source>> {
    vec![Box::new(kernel_line::KernelLine), Box::new(nocloud_drive::NoCloudDrive)]
}

/// `meta-data` of NoCloud: YAML with an id and a host name.
fn parse_meta_data(bytes: &[u8]) -> Result<(Option<String>, Option<String>), String> {
    #[derive(serde::Deserialize, Default)]
    #[serde(rename_all = "kebab-case", default)]
    struct MetaData {
        instance_id: Option<crate::userdata::Scalar>,
        local_hostname: Option<String>,
        hostname: Option<String>,
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "meta-data is not UTF-8".to_owned())?;
    if text.trim().is_empty() {
        return Ok((None, None));
    }
    let parsed: MetaData = serde_yaml_ng::from_str(text).map_err(|error| format!("meta-data is wrong: {error}"))?;
    Ok((parsed.instance_id.map(|id| id.to_string()), parsed.local_hostname.or(parsed.hostname)))
}

#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use std::collections::BTreeMap;

    /// A machine made of tables.
    #[derive(Default)]
    pub(crate) struct FakePlatform {
        pub(crate) dmi: BTreeMap<&'static str, &'static str>,
        pub(crate) line: &'static str,
        pub(crate) devices: Vec<(&'static str, Vec<u8>)>,
        pub(crate) pages: BTreeMap<&'static str, &'static str>,
    }

    impl Platform for FakePlatform {
        fn dmi(&self, name: &str) -> Option<String> {
            self.dmi.get(name).map(|value| (*value).to_owned())
        }
        fn kernel_line(&self) -> String {
            self.line.to_owned()
        }
        fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
            self.devices.iter().map(|(name, bytes)| ((*name).to_owned(), Box::new(bytes.clone()) as _)).collect()
        }
        fn get(&self, url: &str, _headers: &[(&str, &str)]) -> Result<Option<Vec<u8>>, String> {
            Ok(self.pages.get(url).map(|body| body.as_bytes().to_vec()))
        }
    }
}
