//! What all requests share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use api::kinds::{Kind, Registry as Kinds};
use tokio::sync::{Semaphore, watch};

use crate::admission::Admission;
use crate::audit::Audit;
use crate::authn::Authn;
use crate::authz::Authz;
use crate::backup::Backup;
use crate::config::Config;
use crate::customs;
use crate::metrics::Metrics;
use crate::offload::Offload;
use crate::registry::{Cache, Registry};
use crate::streaming::Streaming;
use crate::usage::Usages;

/// A refusal is held back for so long at most.
const LEARN: Duration = Duration::from_secs(1);

/// The kinds that CustomResourceDefinitions make.
#[derive(Debug, Default)]
pub struct CustomKinds {
    pub served: Vec<Arc<Kind>>,
    /// By group and plural: the kind in the version that objects are stored in.
    pub stored: HashMap<(String, String), Arc<Kind>>,
}

/// The server's shared state; handlers get it as `&Arc<AppState>`.
pub struct AppState {
    pub config: Config,
    pub registry: Registry,
    /// Looked at whenever a connection carries something: found without a search.
    pub(crate) config_maps: Arc<Cache>,
    /// CustomResourceDefinitions, looked at with each request, and the revision of them that is served.
    pub(crate) definitions: Arc<Cache>,
    pub(crate) definitions_served: Mutex<u64>,
    pub authn: Authn,
    pub authz: Authz,
    pub admission: Admission,
    pub audit: Audit,
    pub(crate) backup: Option<Backup>,
    pub streaming: Streaming,
    pub(crate) usages: Usages,
    pub metrics: Metrics,
    pub(crate) offload: Offload,
    /// Places for reading and for writing requests.
    pub places: (Semaphore, Semaphore),
    kinds: RwLock<Arc<Kinds>>,
    customs: RwLock<Arc<CustomKinds>>,
    /// True once what every cluster has is in the store.
    ready: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
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
            backup: Backup::new(&config)?,
            streaming: Streaming::new(&config)?,
            usages: Usages::default(),
            metrics: Metrics::default(),
            offload: Offload::default(),
            places: (
                Semaphore::new(config.max_requests_inflight),
                Semaphore::new(config.max_mutating_requests_inflight),
            ),
            kinds: RwLock::new(Arc::new(Kinds::builtin())),
            customs: RwLock::default(),
            ready: watch::Sender::new(false),
            stopping: watch::Sender::new(false),
            config,
            definitions: registry.cache(customs::GROUP, customs::RESOURCE),
            definitions_served: Mutex::new(0),
            config_maps: registry.cache("", "configmaps"),
            registry,
        }))
    }

    /// All kinds served now, built-in and custom.
    pub fn kinds(&self) -> Arc<Kinds> {
        self.kinds.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Serves these custom kinds beside the built-in ones from now on.
    pub fn set_custom_kinds(&self, customs: CustomKinds) {
        *self.kinds.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(Kinds::with_custom(&customs.served));
        *self.customs.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(customs);
    }

    /// The custom kinds served now.
    pub fn customs(&self) -> Arc<CustomKinds> {
        self.customs.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The kind in whose version objects of `kind` are stored.
    pub fn stored_kind(&self, kinds: &Kinds, kind: &Arc<Kind>) -> Arc<Kind> {
        if kind.is_custom() {
            let customs = self.customs();
            let stored = customs.stored.get(&(kind.group.to_string(), kind.plural.to_string()));
            return stored.unwrap_or(kind).clone();
        }
        let id = kind.storage();
        let named = kinds.resource(&id.group, &id.version, &id.plural);
        let found = if named.is_some_and(|n| !Arc::ptr_eq(n, kind)) {
            named
        } else {
            // Several versions of one shape: the first one served.
            kinds.any_resource(&id.group, &id.plural)
        };
        found.unwrap_or(kind).clone()
    }

    /// Whether other servers on the same store have written what memory, at revision `seen`, did not have yet: a refusal
    /// may rest on that.
    pub async fn learns(&self, seen: u64) -> bool {
        if self.config.etcd.etcd_servers.is_empty() {
            return false;
        }
        // Where the store does not answer, the refusal stands.
        let fresh = tokio::time::timeout(LEARN, self.registry.fresh()).await;
        matches!(fresh, Ok(Ok(()))) && self.registry.revision() > seen
    }

    /// Marks the server as ready for clients.
    pub fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Sends clients elsewhere, before the server ends.
    pub fn set_unready(&self) {
        self.ready.send_replace(false);
    }

    /// Whether the server is ready, and not about to end.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() && !*self.stopping.borrow()
    }

    /// Turns true when the server is to end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Ends watches, and turns readiness off.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}
