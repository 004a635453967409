//! Where a node's API listens, and how it is recognised.

use crate::client::node::NodeClient;
use crate::client::{block_on, kube};
use crate::cloud;
use crate::config::{NodeSettings, Settings};
use crate::input;
use crate::local::console;
use crate::local::state::{self, State, Vm};
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::web::Client;
use anyhow::{Context, Result, bail};
use node_metadata::Role;

/// A node as the user named it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Node name; where none is given the first master, of those whose VMs run here if any does.
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

    /// Name, place and fingerprint: the local VM's forwarded port where it runs here, else the node's address, which the
    /// provider or the API server is asked for where `cluster.toml` does not say it.
    pub fn place(&self, settings: &Settings) -> Result<(String, String, Option<String>)> {
        let state = State::load(&settings.run_dir())?;
        let name = match &self.node {
            Some(name) => name.clone(),
            None => {
                let runs = |name: &String| state.vms.get(name).is_some_and(Vm::running);
                let masters = || settings.nodes_of(Role::Master).map(|node| &node.entry.name);
                let master = masters().find(|name| runs(name)).or_else(|| masters().next());
                master.cloned().context("cluster.toml names no master; use --node")?
            }
        };
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
                if node.unaddressed && state::by_hand(settings, &state) {
                    with_port(&of_a_machine(settings, node)?)
                } else {
                    let address = node.entry.addresses.first().copied().unwrap_or(node.local_address.into());
                    with_port(&address.to_string())
                }
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

/// Where a machine is that the user made, and whose address `cluster.toml` does not say: a master where the API is,
/// if it is the only one, and others where the API server knows them to be.
fn of_a_machine(settings: &Settings, node: &NodeSettings) -> Result<String> {
    let name = &node.entry.name;
    if let Some(missing) = settings.api_missing() {
        return input::bad(format!("{missing}; or say where {name} is, by --address or by its `addresses`"));
    }
    if node.entry.role == Role::Master && settings.nodes_of(Role::Master).count() == 1 {
        return settings.api_host().context("cluster.toml names no address of the API");
    }
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let api = state::api_client(settings, &secrets, None)?;
    let ask = || block_on(kube::node_address(&api, name));
    // Who asks for a target may be in a runtime already, in which there cannot be another.
    let asked = std::thread::scope(|scope| scope.spawn(ask).join());
    let known = asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).with_context(|| {
        format!(
            "cluster.toml does not say where {name} is, and the API server at {} did not; give --address, or write \
             {name}'s `addresses` into cluster.toml",
            api.target()
        )
    })?;
    Ok(known.to_string())
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
    use super::*;
    use std::path::Path;

    #[test]
    fn machines_of_the_users_own_are_not_looked_for_where_local_vms_would_be() {
        let dir = tempfile::tempdir().expect("dir");
        Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let place = |node: &str, address: Option<&str>, more: &str| {
            let text = format!(
                "name = \"demo\"\nnodes = [{{ name = \"m\", role = \"master\" }}, {{ name = \"w\", role = \"worker\" }}, \
                 {{ name = \"x\", role = \"worker\", addresses = [\"192.0.2.3\"] }}]\n{more}"
            );
            let settings = crate::config::parse(Path::new("cluster.toml"), &text, dir.path()).expect("valid");
            let target = Target { node: Some(node.into()), address: address.map(Into::into), fingerprint: None };
            target.place(&settings).map(|(_, place, _)| place).map_err(|error| (error.is::<input::BadInput>(), error))
        };
        let api = "[api]\nnames = [\"api.invalid\"]\n";
        assert_eq!(place("m", None, api).expect("where the API is"), "api.invalid:10270");
        assert_eq!(place("x", None, "").expect("written"), "192.0.2.3:10270");
        assert_eq!(place("w", Some("192.0.2.4"), "").expect("told"), "192.0.2.4:10270");
        for node in ["m", "w"] {
            let (mistake, error) = place(node, None, "").expect_err("nobody knows");
            let said = "give m its address (`addresses = [\"…\"]`), or write `addresses` or `names` under [api]";
            assert!(
                mistake && error.to_string().contains(said) && error.to_string().contains("--address"),
                "{error:#}"
            );
        }
        // The API server knows the others, and this one does not answer.
        let (mistake, error) = place("w", None, api).expect_err("nobody answers");
        let error = format!("{error:#}");
        assert!(!mistake && error.contains("api.invalid:6443") && error.contains("w's `addresses`"), "{error}");
        assert!(!error.contains("10.77."), "{error}");
    }

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
