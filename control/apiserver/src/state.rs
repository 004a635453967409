//! What all requests share.

use std::sync::Arc;

use crate::admission::Admission;
use crate::audit::Audit;
use crate::authn::Authn;
use crate::authz::Authz;
use crate::config::Config;
use crate::registry::Registry;
use crate::streaming::Streaming;

/// The server's shared state; handlers get it as `&Arc<AppState>`.
pub struct AppState {
    pub config: Config,
    pub registry: Registry,
    pub authn: Authn,
    pub authz: Authz,
    pub admission: Admission,
    pub audit: Audit,
    pub streaming: Streaming,
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState").field("config", &self.config).finish_non_exhaustive()
    }
}

impl AppState {
    /// Puts the parts together; reads the files that the flags name.
    pub fn new(config: Config, registry: Registry) -> anyhow::Result<Arc<AppState>> {
        Ok(Arc::new(AppState {
            authn: Authn::new(&config)?,
            authz: Authz::new(&config)?,
            admission: Admission::new(&config)?,
            audit: Audit::new(&config)?,
            streaming: Streaming::new(&config)?,
            config,
            registry,
        }))
    }
}
