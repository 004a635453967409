//! The API servers of a cluster's masters, wherever they are at the moment.

use super::state::{self, State};
use crate::client::{Answer, Https, block_on};
use crate::config::Settings;
use crate::pki::Secrets;
use crate::roll::api::Api;
use anyhow::{Context, Result};
use http::Method;
use serde_json::Value;

/// The API server of the master, or those of several.
#[derive(Debug)]
pub struct MasterApi<'a> {
    /// It is on this machine, where its port may be another after it was made anew.
    local: Option<&'a Settings>,
    https: Https,
}

impl<'a> MasterApi<'a> {
    /// Of VMs on this machine.
    ///
    /// # Errors
    /// None of them is a master.
    pub fn local(settings: &'a Settings, secrets: &Secrets) -> Result<MasterApi<'a>> {
        let ports = State::load(&settings.run_dir())?.api_ports();
        let (port, _) = ports.first().context("no VM on this machine is a master; `kimg up` makes it")?;
        let https = state::api_client(settings, secrets, Some(&format!("https://127.0.0.1:{port}")))?;
        Ok(MasterApi { local: Some(settings), https })
    }

    /// Of a master that is found there.
    pub fn at(https: Https) -> MasterApi<'a> {
        MasterApi { local: None, https }
    }

    /// The client of now.
    ///
    /// # Errors
    /// What is known of the VMs cannot be read.
    pub fn now(&self) -> Result<&Https> {
        if let Some(settings) = self.local {
            // Also those that do not run.
            let ports = State::load(&settings.run_dir())?.api_ports();
            if !ports.is_empty() {
                self.https.look_at(ports.into_iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect());
            }
        }
        Ok(&self.https)
    }
}

impl Api for MasterApi<'_> {
    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        block_on(self.now()?.send(method, path, body))
    }
}
