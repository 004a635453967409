//! The stores of a cluster's masters, asked through their node APIs, and the API server of each.

use super::Target;
use crate::client::node::NodeClient;
use crate::client::{Https, block_on, kube};
use crate::config::Settings;
use crate::input::BadInput;
use crate::local::state::{self, State};
use crate::pki::Secrets;
use crate::pki::kubeconfig::server_url;
use crate::roll::members::{self, Members};
use anyhow::{Context, Result, bail};
use node_api::{
    Done, Migrate, NodeStatus, Release, RemoveMember, Service, StoreEngine, StoreFormat, StoreMember, path,
};
use node_metadata::Role;
use std::time::Duration;

/// How long a master may take to answer.
const ASK: Duration = Duration::from_secs(10);

/// The masters of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Masters<'a> {
    settings: &'a Settings,
    secrets: &'a Secrets,
}

impl<'a> Masters<'a> {
    /// Of this cluster.
    pub fn new(settings: &'a Settings, secrets: &'a Secrets) -> Masters<'a> {
        Masters { settings, secrets }
    }

    /// Whether the image that a master runs carries etcd.
    ///
    /// # Errors
    /// It does not answer.
    pub fn has_etcd(&self, node: &str) -> Result<bool> {
        let services: Vec<Service> = ask(self.client(node)?, async |client| client.get(path::SERVICES).await)?;
        Ok(services.iter().any(|service| service.name == "etcd"))
    }

    /// What the image states that a master runs; none: it is of before releases stated anything.
    ///
    /// # Errors
    /// It does not answer.
    pub fn states(&self, node: &str) -> Result<Option<Release>> {
        let status: NodeStatus = ask(self.client(node)?, async |client| client.get(path::STATUS).await)?;
        Ok(status.states)
    }

    /// What the store is written in; none: the masters' image is of before one could ask.
    ///
    /// # Errors
    /// No master answers, or its API server does not.
    pub fn store_format(&self) -> Result<Option<StoreFormat>> {
        let told = self.first(None, |client| ask(client, async |client| client.get(path::STORE_FORMAT).await));
        match told {
            Err(error) if error.is::<BadInput>() => Ok(None),
            told => told.map(Some),
        }
    }

    /// Has the store's format raised, and says what it is then.
    ///
    /// # Errors
    /// No master answers, or it could not be raised.
    pub fn raise_store(&self) -> Result<StoreFormat> {
        // It takes as long as the store is large.
        self.first(None, |client| block_on(client.post_bytes(path::STORE_RAISE, Vec::new())))
    }

    fn client(&self, node: &str) -> Result<NodeClient> {
        Target { node: Some(node.to_owned()), ..Target::default() }.client(self.settings)
    }

    /// The API server of this master.
    ///
    /// # Errors
    /// It is not known where that is, or its VM does not run.
    pub fn api(&self, node: &str) -> Result<Https> {
        let state = State::load(&self.settings.run_dir())?;
        if let Some(why) = state::stopped(self.settings, &state, Some(node)) {
            bail!(why);
        }
        let url = match state.vms.get(node).and_then(|vm| vm.api_port) {
            Some(port) => server_url("127.0.0.1", port),
            None => {
                let address = self.settings.node(node)?.entry.addresses.first();
                let address = address.with_context(|| format!("cluster.toml does not say where {node} is"))?;
                server_url(&address.to_string(), 6443)
            }
        };
        state::api_client(self.settings, self.secrets, Some(&url))
    }

    /// The first answer of a master but this one.
    fn first<T>(&self, but: Option<&str>, ask: impl Fn(NodeClient) -> Result<T>) -> Result<T> {
        let mut failed: Option<anyhow::Error> = None;
        for master in self.settings.nodes_of(Role::Master) {
            let is_out = master.entry.addresses.first().is_some_and(|own| Some(own.to_string().as_str()) == but);
            if is_out {
                continue;
            }
            match self.client(&master.entry.name).and_then(&ask) {
                Ok(answer) => return Ok(answer),
                // What one of them refuses says more than that another is away.
                Err(error) if failed.as_ref().is_none_or(|known| !known.is::<crate::client::node::Refused>()) => {
                    failed = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| anyhow::anyhow!("there is no other master")))
    }
}

fn ask<T>(client: NodeClient, ask: impl AsyncFn(&NodeClient) -> Result<T>) -> Result<T> {
    block_on(async { tokio::time::timeout(ASK, ask(&client)).await.context("asking a master about its store")? })
}

impl Members for Masters<'_> {
    fn list(&self) -> Result<Vec<StoreMember>> {
        self.first(None, |client| ask(client, async |client| client.get(path::STORE_MEMBERS).await))
    }

    fn remove(&self, name: &str) -> Result<()> {
        if !self.list()?.iter().any(|member| members::is(member, name)) {
            return Ok(());
        }
        let body = serde_json::to_value(RemoveMember { name: name.to_owned() }).context("writing a request")?;
        let left: Vec<StoreMember> = self.first(Some(name), |client| {
            ask(client, async |client| client.post(path::STORE_MEMBERS_REMOVE, Some(&body)).await)
        })?;
        if left.iter().any(|member| members::is(member, name)) {
            bail!("{name} still is a member of etcd");
        }
        Ok(())
    }

    fn serves(&self, node: &str) -> Result<()> {
        let api = self.api(node)?;
        let ready = async { tokio::time::timeout(ASK, kube::ready(&api)).await.context("it does not answer")? };
        block_on(ready).with_context(|| format!("the API server of {node} is not ready"))
    }

    fn move_store(&self, node: &str, to: StoreEngine) -> Result<String> {
        let body = serde_json::to_vec(&Migrate { to }).context("writing a request")?;
        // It takes as long as the store is large.
        let done: Done = block_on(self.client(node)?.post_bytes(path::STORE_MIGRATE, body))?;
        Ok(done.message)
    }
}
