//! The stores of a cluster's masters, asked through their node APIs, and the API server of each.

use super::Target;
use crate::client::node::NodeClient;
use crate::client::{Https, block_on, kube};
use crate::cloud::{self, Server};
use crate::config::Settings;
use crate::input::BadInput;
use crate::local::state::{self, State};
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::pki::kubeconfig::server_url;
use crate::roll::members::{self, Members};
use crate::web::Client;
use anyhow::{Context, Result, bail};
use node_api::{
    Done, Migrate, NodeStatus, Release, RemoveMember, Service, StoreEngine, StoreFormat, StoreMember, path,
};
use node_metadata::Role;
use std::cell::RefCell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a master may take to answer.
const ASK: Duration = Duration::from_secs(10);

/// How long it is believed where machines are at a provider, which takes several questions.
const KNOWN: Duration = Duration::from_secs(20);

/// The masters of a cluster. At a provider a member is called by its node here, as a machine that is made anew may have
/// another address.
#[derive(Debug, Clone)]
pub struct Masters<'a> {
    settings: &'a Settings,
    secrets: &'a Secrets,
    /// Their machines at a provider, and when it was asked.
    found: RefCell<Option<(Instant, Vec<Server>)>>,
}

impl<'a> Masters<'a> {
    /// Of this cluster.
    pub fn new(settings: &'a Settings, secrets: &'a Secrets) -> Masters<'a> {
        Masters { settings, secrets, found: RefCell::default() }
    }

    /// The masters' machines at the provider; nothing elsewhere.
    fn machines(&self) -> Result<Vec<Server>> {
        let Some(provider) = &self.settings.provider else { return Ok(Vec::new()) };
        if let Some((at, known)) = &*self.found.borrow()
            && at.elapsed() < KNOWN
        {
            return Ok(known.clone());
        }
        let found = cloud::masters(self.settings, provider, &Client::new(None)?, &environment)?;
        self.found.replace(Some((Instant::now(), found.clone())));
        Ok(found)
    }

    /// Where a master at a provider is found from outside.
    ///
    /// # Errors
    /// The provider cannot be asked, or has no such machine.
    pub fn address(&self, node: &str) -> Result<IpAddr> {
        let found = self.machines()?.into_iter().find(|server| server.node == node);
        found
            .and_then(|server| server.public)
            .with_context(|| format!("the provider has no machine of {node} with a public address; see `kimg plan`"))
    }

    /// The members as they call themselves.
    fn listed(&self) -> Result<Vec<StoreMember>> {
        self.first(None, |client| ask(client, async |client| client.get(path::STORE_MEMBERS).await))
    }

    /// The same by their nodes, where those have machines.
    fn named(&self, mut list: Vec<StoreMember>) -> Result<Vec<StoreMember>> {
        for server in self.machines()? {
            let Some(own) = server.private.map(|address| address.to_string()) else { continue };
            for member in list.iter_mut().filter(|member| members::is(member, &own)) {
                member.name.clone_from(&server.node);
            }
        }
        Ok(list)
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
        let at_provider = self.settings.provider.is_some();
        let address = if at_provider { Some(self.address(node)?.to_string()) } else { None };
        Target { node: Some(node.to_owned()), address, ..Target::default() }.client(self.settings)
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
            None if self.settings.provider.is_some() => server_url(&self.address(node)?.to_string(), 6443),
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
            let own = master.entry.addresses.first().map(ToString::to_string);
            if but.is_some_and(|but| own.as_deref() == Some(but) || master.entry.name == but) {
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
        self.named(self.listed()?)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let listed = self.listed()?;
        let named = self.named(listed.clone())?;
        let own = listed.into_iter().zip(named).find(|(_, member)| members::is(member, name));
        let Some((own, _)) = own else { return Ok(()) };
        // In a cluster of VMs a member may be called by its node, and is asked for by its address.
        let own = if self.settings.provider.is_some() { own.name } else { name.to_owned() };
        let body = serde_json::to_value(RemoveMember { name: own }).context("writing a request")?;
        let left: Vec<StoreMember> = self.first(Some(name), |client| {
            ask(client, async |client| client.post(path::STORE_MEMBERS_REMOVE, Some(&body)).await)
        })?;
        if self.named(left)?.iter().any(|member| members::is(member, name)) {
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
