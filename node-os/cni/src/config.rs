//! What the runtime asks for: environment and configuration, checked.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Error codes of the specification, section "Error".
pub(crate) mod code {
    pub(crate) const UNKNOWN_CONTAINER: u32 = 3;
    pub(crate) const ENVIRONMENT: u32 = 4;
    pub(crate) const IO: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const CONFIG: u32 = 7;
    pub(crate) const TRY_LATER: u32 = 11;
    pub(crate) const UNSUPPORTED: u32 = 4;
    /// First code that plugins may choose themselves.
    pub(crate) const NETWORK: u32 = 100;
}

/// Why the plugin did not do what it was asked for.
#[derive(Debug, Clone)]
pub struct Failure {
    code: u32,
    doing: String,
    why: String,
}

impl Failure {
    pub(crate) fn new(code: u32, doing: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Failure { code, doing: doing.into(), why: why.to_string() }
    }
    pub(crate) fn missing(variable: &str) -> Self {
        Failure::new(code::ENVIRONMENT, variable, "is not set")
    }
    /// In words.
    pub fn message(&self) -> String {
        format!("{}: {}", self.doing, self.why)
    }
    /// As the specification has it.
    pub fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.message()})
    }
}

/// A host port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    // Runtimes written in Go send these names with a capital letter.
    #[serde(alias = "HostPort")]
    pub(crate) host_port: u16,
    #[serde(alias = "ContainerPort")]
    pub(crate) container_port: u16,
    #[serde(default = "tcp", alias = "Protocol")]
    pub(crate) protocol: String,
}

fn tcp() -> String {
    "tcp".into()
}

impl PortMapping {
    /// IP protocol number.
    pub(crate) fn protocol_number(&self) -> Option<u8> {
        match self.protocol.to_ascii_lowercase().as_str() {
            "tcp" => Some(6),
            "udp" => Some(17),
            "sctp" => Some(132),
            _ => None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Vec<PortMapping>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

#[derive(Debug, Deserialize)]
struct NetConf {
    #[serde(rename = "cniVersion")]
    version: String,
    #[serde(rename = "podCIDR")]
    pod_cidr: Ipv4Net,
    mtu: u32,
    #[serde(rename = "runtimeConfig", default)]
    runtime: RuntimeConfig,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Vec<Attachment>,
}

/// A request, checked.
#[derive(Debug)]
pub struct Request {
    pub(crate) version: String,
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) netns: Option<String>,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) mtu: u32,
    pub(crate) port_mappings: Vec<PortMapping>,
    /// For GC: who may stay.
    pub(crate) valid_owners: Vec<String>,
}

/// How an address names who holds it.
pub(crate) fn owner(container: &str, interface: &str) -> String {
    format!("{container} {interface}")
}

/// An environment variable, as text.
pub(crate) fn variable(name: &str) -> Result<String, Failure> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        _ => Err(Failure::missing(name)),
    }
}

impl Request {
    /// Of what the runtime wrote, with the names from the environment.
    pub fn parse(command: &str, input: &[u8]) -> Result<Self, Failure> {
        let conf: NetConf =
            serde_json::from_slice(input).map_err(|e| Failure::new(code::DECODE, "the network configuration", e))?;
        if !(576..=65_535).contains(&conf.mtu) {
            return Err(Failure::new(code::CONFIG, "mtu", format!("{} is not between 576 and 65535", conf.mtu)));
        }
        let about_one = matches!(command, "ADD" | "DEL" | "CHECK");
        let (container, interface) =
            if about_one { (checked("CNI_CONTAINERID")?, checked("CNI_IFNAME")?) } else { Default::default() };
        if interface.len() > 15 {
            return Err(Failure::new(code::ENVIRONMENT, "CNI_IFNAME", "is longer than 15 characters"));
        }
        let unknown = conf.runtime.port_mappings.iter().find(|m| m.protocol_number().is_none());
        if let Some(mapping) = unknown {
            return Err(Failure::new(
                code::CONFIG,
                "portMappings",
                format!("protocol '{}' is not known", mapping.protocol),
            ));
        }
        Ok(Request {
            version: conf.version,
            container,
            interface,
            netns: variable("CNI_NETNS").ok(),
            pod_cidr: conf.pod_cidr,
            mtu: conf.mtu,
            port_mappings: conf.runtime.port_mappings.into_iter().filter(|m| m.host_port != 0).collect(),
            valid_owners: conf.valid.iter().map(|a| owner(&a.container, &a.interface)).collect(),
        })
    }

    pub(crate) fn owner(&self) -> String {
        owner(&self.container, &self.interface)
    }
}

/// Names end up in files and interface names: only what the specification allows may pass.
fn checked(name: &str) -> Result<String, Failure> {
    let value = variable(name)?;
    let fine = value.len() <= 256 && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    let dots = matches!(value.as_str(), "." | "..");
    if fine && !dots {
        return Ok(value);
    }
    Err(Failure::new(code::ENVIRONMENT, name, "holds a character that is not allowed, or is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_mappings_are_read_as_runtimes_write_them() {
        for text in [
            r#"{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}"#,
            r#"{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""}"#,
        ] {
            let mapping: PortMapping = serde_json::from_str(text).expect("a mapping");
            assert_eq!((mapping.host_port, mapping.container_port, mapping.protocol_number()), (80, 8080, Some(6)));
        }
    }

    /// GC is the command whose input is all of the request: the others have names from the environment beside it.
    #[test]
    fn spoiled_configurations_end_in_a_request_or_a_failure() {
        let good = r#"{"cniVersion": "1.1.0", "name": "kimg", "type": "kimg", "podCIDR": "10.200.1.0/24", "mtu": 1450,
            "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]},
            "cni.dev/valid-attachments": [{"containerID": "abc", "ifname": "eth0"}]}"#;
        let mut dice = test_spoil::Dice::new(3);
        let read = (0..20_000)
            .filter(|_| {
                let bad = test_spoil::text(good, &mut dice);
                match Request::parse("GC", bad.as_bytes()) {
                    Ok(_) => true,
                    Err(failure) => {
                        assert!(!failure.message().is_empty());
                        assert!(crate::version_of(bad.as_bytes()).len() <= bad.len().max(5));
                        false
                    }
                }
            })
            .count();
        assert!((100..20_000).contains(&read), "{read} were read");
    }
}
