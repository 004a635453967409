//! What differs from kind to kind, beyond what the schema tables say.
//!
//! Sub-resources that are not `status`:
//!
//! | sub-resource | function |
//! |---|---|
//! | pods/binding, POST bindings | [`binding::bind`] |
//! | pods/eviction | [`eviction::admit`], then an ordinary delete with the Eviction's deleteOptions |
//! | pods/ephemeralcontainers | [`pod::with_ephemeral_containers`] gives the object to store |
//! | pods/resize | [`pod::with_resources`] |
//! | namespaces/finalize | [`core::with_finalizers`]; then, if it is being deleted and nothing [`Strategy::holds`] it, remove it |
//! | certificatesigningrequests/approval | [`cluster::with_approval`] |
//! | */scale | [`scale::read`] and [`scale::write`] |
//! | serviceaccounts/token | [`crate::authn::token_request`] |
//! | componentstatuses | [`components::list`] |

pub mod alloc;
pub mod binding;
pub mod cluster;
pub mod components;
pub mod core;
pub mod eviction;
pub mod fields;
pub mod pod;
pub mod scale;
pub mod service;
pub mod workload;

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;

use crate::error::{ApiError, Cause, Result};
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// What a hook may look at.  `dry_run` hooks must leave nothing behind.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub state: &'a Arc<AppState>,
    pub info: &'a RequestInfo,
    pub user: &'a UserInfo,
    pub dry_run: bool,
}

/// What [`Strategy::reserve`] wrote that nobody else relies on: keys of the store, and the revisions of their writes.
pub type Reserved = Vec<(String, u64)>;

/// Takes a reservation back, but for what was reserved anew since then.
pub async fn give_back(store: &dyn store::Store, reserved: Reserved) {
    for (key, revision) in reserved {
        match store.delete(&key, store::Expect::At(revision)).await {
            Ok(_) | Err(store::StoreError::Mismatch) => {}
            Err(error) => tracing::warn!("{key} is given out again only when its time is over: {error}"),
        }
    }
}

/// Cause of the failure of [`Strategy::reserve`] that a new try may mend.
pub const TAKEN: &str = "AllocationTaken";

/// Whether another server was faster to allocate something.
pub fn is_taken(error: &ApiError) -> bool {
    error.causes.iter().any(|cause| cause.reason == TAKEN)
}

/// Options of a delete request, from body and query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    pub dry_run: bool,
}

/// Hooks of one kind.  Objects come defaulted and pruned, in the storage version.
/// Handlers care for metadata (uid, generation, managedFields), so hooks need not.
pub trait Strategy: Send + Sync {
    /// Before admission of a new object: drop status, set initial phase, allocate addresses.
    fn prepare_for_create(&self, _ctx: Context<'_>, _new: &mut Value) -> Result<()> {
        Ok(())
    }

    /// Before admission of a changed object.  `status` was already put back to the old one
    /// where the kind has a status subresource.
    fn prepare_for_update(&self, _ctx: Context<'_>, _new: &mut Value, _old: &Value) -> Result<()> {
        Ok(())
    }

    /// Before admission of a changed status.  Everything but status (and some metadata)
    /// was already put back to the old.
    fn prepare_for_status_update(&self, _ctx: Context<'_>, _new: &mut Value, _old: &Value) -> Result<()> {
        Ok(())
    }

    /// After admission: what only the server can find wrong with a new object; the rules of
    /// the kinds are [`api::validation`]'s.
    fn validate(&self, _ctx: Context<'_>, _new: &Value) -> Vec<Cause> {
        Vec::new()
    }

    /// Seconds of grace that a deletion gives this object; None: the kind goes at once.
    fn grace_period(&self, _old: &Value, _options: &DeleteOptions) -> Option<i64> {
        None
    }

    /// When a deletion only marks the object: what else changes (a namespace's phase).
    fn begin_delete(&self, _object: &mut Value) {}

    /// Whether something besides metadata.finalizers keeps a deleted object in the store
    /// (a namespace's spec.finalizers).  Such a kind is never removed at once.
    fn holds(&self, _object: &Value) -> bool {
        false
    }

    /// Before an object is removed for good: what forbids it.
    fn check_delete(&self, _ctx: Context<'_>, _old: &Value) -> Result<()> {
        Ok(())
    }

    /// Whether [`Strategy::reserve`] may say [`TAKEN`].
    fn reserves(&self) -> bool {
        false
    }

    /// Right before a write: reserve in the store what other servers must not give out meanwhile. An error with the
    /// cause [`TAKEN`] says that one of them was faster, and the write is made anew.
    fn reserve<'a>(
        &'a self,
        _ctx: Context<'a>,
        _new: &'a Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<Reserved>> {
        Box::pin(std::future::ready(Ok(Reserved::new())))
    }

    /// After an object is gone from the store: give back what was allocated.
    fn after_delete<'a>(&'a self, _ctx: Context<'a>, _old: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// After an update is in the store: give back what the object has no more.
    fn after_update<'a>(&'a self, _ctx: Context<'a>, _new: &'a Value, _old: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// After a create or update that the store did not take (or a dry run): give back what
    /// `prepare_*` allocated.
    fn abandoned(&self, _ctx: Context<'_>, _new: &Value, _old: Option<&Value>) {}

    /// Whether PUT to a missing name creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether PUT without a resourceVersion overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Propagation of a deletion that names none.
    fn default_propagation(&self) -> &'static str {
        "Background"
    }

    /// Whether a change from `old` to `new` counts as a new generation; None: when anything
    /// outside metadata and status differs.
    fn bumps_generation(&self, _new: &Value, _old: &Value) -> Option<bool> {
        None
    }
}

/// A kind with nothing special.
#[derive(Debug)]
pub struct Generic;

impl Strategy for Generic {}

/// The strategy of a resource; custom resources get the generic one.
pub fn for_kind(group: &str, resource: &str) -> &'static dyn Strategy {
    match (group, resource) {
        ("", "pods") => &pod::Pod,
        ("", "services") => &service::Service,
        ("", "namespaces") => &core::Namespace,
        ("", "secrets") => &core::Secret,
        ("apiextensions.k8s.io", "customresourcedefinitions") => &core::Definition,
        ("", "persistentvolumes") => &cluster::Volume,
        ("", "persistentvolumeclaims") => &cluster::Claim,
        ("", "replicationcontrollers") => &workload::ReplicationController,
        ("", "resourcequotas") => &cluster::Fresh("{}"),
        ("apps", "deployments") => &workload::DEPLOYMENT,
        ("apps", "replicasets") => &workload::REPLICA_SET,
        ("apps", "daemonsets") => &workload::DAEMON_SET,
        ("apps", "statefulsets") => &workload::STATEFUL_SET,
        ("batch", "jobs") => &workload::Job,
        ("batch", "cronjobs") => &workload::CronJob,
        ("certificates.k8s.io", "certificatesigningrequests") => &cluster::CertificateRequest,
        ("rbac.authorization.k8s.io", _) => &cluster::Rbac,
        ("networking.k8s.io", "ingresses") => &cluster::Fresh(r#"{"loadBalancer":{}}"#),
        ("autoscaling", "horizontalpodautoscalers") => {
            &cluster::Fresh(r#"{"desiredReplicas":0,"currentMetrics":null}"#)
        }
        ("policy", "poddisruptionbudgets") => {
            &cluster::Fresh(r#"{"currentHealthy":0,"desiredHealthy":0,"disruptionsAllowed":0,"expectedPods":0}"#)
        }
        ("apiregistration.k8s.io", "apiservices") => &cluster::Fresh("{}"),
        ("storage.k8s.io", "volumeattachments") => &cluster::Fresh(r#"{"attached":false}"#),
        _ => &Generic,
    }
}
