//! The cluster's own API, as far as making machines needs it.

use super::machines::{NodeApi, Nodes};
use crate::client::kube::{self, NodeState};
use crate::client::{Https, block_on};
use crate::config::Settings;
use crate::input::{self, BadInput};
use crate::local::state;
use crate::pki::Secrets;
use crate::pki::kubeconfig::{server_in, server_url};
use crate::seed::token::{BootstrapToken, LIFE};
use anyhow::{Context, Result, bail};
use node_api::Masters;
use node_metadata::Role;
use std::net::IpAddr;

/// A cluster whose master is found at an address.
pub trait Cluster {
    /// Whether its API server is ready.
    ///
    /// # Errors
    /// It is not.
    fn ready(&self, at: IpAddr) -> Result<()>;

    /// Has a master that has no store yet begin with an empty one, or with that on its data volume. Twice is as good as once.
    ///
    /// # Errors
    /// It does not answer.
    fn begin(&self, at: IpAddr) -> Result<()>;

    /// Which masters one of several was told of; none where it was not yet.
    ///
    /// # Errors
    /// It does not answer, or is none of several.
    fn told(&self, node: &str, at: IpAddr) -> Result<Masters>;

    /// Tells one of several masters which they are. Twice is as good as once.
    ///
    /// # Errors
    /// As [`Cluster::told`].
    fn tell(&self, node: &str, at: IpAddr, masters: &Masters) -> Result<()>;

    /// Its nodes.
    ///
    /// # Errors
    /// It cannot be asked.
    fn nodes(&self, at: IpAddr) -> Result<Vec<NodeState>>;

    /// Lets a node join by this token; `replace`: also in place of one that has its name. Twice is as good as once.
    ///
    /// # Errors
    /// It refuses.
    fn create_token(&self, at: IpAddr, token: &BootstrapToken, node: &str, replace: bool) -> Result<()>;
}

/// The API server, asked with the administrator's certificate.
#[derive(Debug)]
pub struct Api<'a> {
    /// The cluster.
    pub settings: &'a Settings,
    /// Its secrets.
    pub secrets: &'a Secrets,
}

impl Api<'_> {
    fn client(&self, at: IpAddr) -> Result<Https> {
        state::api_client(self.settings, self.secrets, Some(&server_url(&at.to_string(), 6443)))
    }
}

impl Cluster for Api<'_> {
    fn ready(&self, at: IpAddr) -> Result<()> {
        block_on(kube::ready(&self.client(at)?))
    }

    fn begin(&self, at: IpAddr) -> Result<()> {
        let master = self.settings.nodes_of(Role::Master).next().context("cluster.toml names no master")?;
        let (name, nodes) = (master.entry.name.as_str(), NodeApi(self.settings));
        // What is on its data volume was there before all machines had gone.
        let taken = if master.data_gb.is_some() { nodes.take(name, at)?.map(|taken| taken.store) } else { Some(false) };
        match taken {
            Some(true) => Ok(()),
            Some(false) if nodes.begin(name, at, &[])? => Ok(()),
            _ => bail!("its store is closed, as a roll that was interrupted left it; `kimg roll` goes on"),
        }
    }

    fn told(&self, node: &str, at: IpAddr) -> Result<Masters> {
        let told = NodeApi(self.settings).told(node, at)?;
        told.ok_or_else(|| {
            BadInput(format!("the image of {node} knows of no other masters; `kimg roll` puts one under it")).into()
        })
    }

    fn tell(&self, node: &str, at: IpAddr, masters: &Masters) -> Result<()> {
        NodeApi(self.settings).tell(node, at, masters)
    }

    fn nodes(&self, at: IpAddr) -> Result<Vec<NodeState>> {
        block_on(kube::nodes(&self.client(at)?))
    }

    fn create_token(&self, at: IpAddr, token: &BootstrapToken, node: &str, replace: bool) -> Result<()> {
        block_on(kube::create_token(&self.client(at)?, token, node, replace, LIFE))
    }
}

/// Where the API server of a cluster at a provider is found: as the kubeconfig says that `kimg up` wrote, else by what
/// `[api]` says. None for other clusters.
///
/// # Errors
/// Nothing says it yet.
pub fn server(settings: &Settings) -> Result<Option<String>> {
    if settings.provider.is_none() {
        return Ok(None);
    }
    let path = settings.dir.join("kubeconfig");
    if path.is_file() {
        let text = input::text(&path, input::SMALL)?;
        if let Some(url) = server_in(&text) {
            return Ok(Some(url.to_string()));
        }
    }
    match settings.api.names.first().cloned().or_else(|| settings.api.addresses.first().map(ToString::to_string)) {
        Some(host) => Ok(Some(server_url(&host, 6443))),
        None => input::bad(format!("{} is not there; `kimg up` finds the master and writes it", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::ClientCertificate;
    use crate::pki::kubeconfig::kubeconfig;

    #[test]
    fn a_kubeconfig_says_where_the_api_is() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let parse = |more: &str| {
            crate::config::parse(std::path::Path::new("c"), &format!("{text}{more}"), dir.path()).expect("valid")
        };
        let provider = "[provider]\nname = \"hetzner\"\nregion = \"nbg1\"\ntype = \"cx23\"\n";
        assert_eq!(server(&parse("")).expect("here"), None);
        assert!(server(&parse(provider)).expect_err("not yet").to_string().contains("`kimg up` finds the master"));
        let named = parse(&format!("{provider}[api]\nnames = [\"api.example\"]\n"));
        assert_eq!(server(&named).expect("by name").as_deref(), Some("https://api.example:6443"));
        let client = ClientCertificate { certificate: "c".into(), key: "k".into() };
        let written = kubeconfig("demo", &server_url("192.0.2.1", 6443), "ca", "admin", &client);
        std::fs::write(dir.path().join("kubeconfig"), written).expect("written");
        assert_eq!(server(&named).expect("found").as_deref(), Some("https://192.0.2.1:6443"));
    }
}
