//! Where a node's API listens, and how it is recognised.

use crate::client::node::NodeClient;
use crate::cloud;
use crate::config::Settings;
use crate::local::console;
use crate::local::state::{self, State};
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::web::Client;
use anyhow::{Context, Result, bail};
use node_metadata::Role;

/// A node as the user named it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Node name; the master where none is given.
    pub node: Option<String>,
    /// Address (with or without port) where the name alone does not lead.
    pub address: Option<String>,
    /// SHA-256 of the certificate of a node that has not joined.
    pub fingerprint: Option<String>,
}

impl Target {
    /// A client of the node's API.
    pub fn client(&self, settings: &Settings) -> Result<NodeClient> {
        let (name, address, fingerprint) = self.place(settings)?;
        let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
        NodeClient::new(&secrets, &name, address, fingerprint.as_deref())
    }

    /// Name, place and fingerprint: the local VM's forwarded port where it runs here, else the node's address.
    pub fn place(&self, settings: &Settings) -> Result<(String, String, Option<String>)> {
        let name = match &self.node {
            Some(name) => name.clone(),
            None => settings
                .nodes_of(Role::Master)
                .next()
                .map(|n| n.entry.name.clone())
                .context("cluster.toml names no master; use --node")?,
        };
        let state = State::load(&settings.run_dir())?;
        if let (None, Some(provider)) = (&self.address, &settings.provider) {
            settings.node(&name)?;
            let found = cloud::address_of(settings, provider, &name, &Client::new(None)?, &environment);
            let address = found.context("asking the provider for the machine's address, as no --address is given")?;
            let place = std::net::SocketAddr::new(address, node_api::PORT).to_string();
            return Ok((name, place, self.fingerprint.clone()));
        }
        if let (None, Some(why)) = (&self.address, state::stopped(settings, &state, Some(&name))) {
            bail!(why);
        }
        let vm = state.vms.get(&name).filter(|vm| vm.running());
        let address = match (&self.address, vm) {
            (Some(address), _) => with_port(address),
            (None, Some(vm)) => format!("127.0.0.1:{}", vm.node_port),
            (None, None) => {
                let node = settings.node(&name)?;
                let address = node.entry.addresses.first().copied().unwrap_or(node.local_address.into());
                std::net::SocketAddr::new(address, node_api::PORT).to_string()
            }
        };
        // A local VM's console is a file that only its owner can write: what stands there can be trusted.
        let fingerprint = self
            .fingerprint
            .clone()
            .or_else(|| vm.and_then(|_| console::fingerprint(&settings.run_dir().join(&name).join("console.log"))));
        Ok((name, address, fingerprint))
    }
}

fn with_port(address: &str) -> String {
    if let Ok(ip) = address.parse::<std::net::IpAddr>() {
        return std::net::SocketAddr::new(ip, node_api::PORT).to_string();
    }
    if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        address.to_string()
    } else {
        format!("{address}:{}", node_api::PORT)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_port_may_be_left_out() {
        let cases = [
            ("10.0.0.1", "10.0.0.1:10270"),
            ("fd00::1", "[fd00::1]:10270"),
            ("host", "host:10270"),
            ("127.0.0.1:4000", "127.0.0.1:4000"),
        ];
        for (text, expected) in cases {
            assert_eq!(super::with_port(text), expected);
        }
    }
}
