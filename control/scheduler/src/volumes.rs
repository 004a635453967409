//! Where a pod's volumes let it go, and which claims wait for the choice of a node.

use std::sync::Arc;

use control_client::{pods, quantity, selector};
use k8s_openapi::api::core::v1::{NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::node_affinity;
use crate::reason::{Plugin, Rejection};
use crate::snapshot::NodeInfo;

pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const EXCLUSIVE: &str = "ReadWriteOncePod";

/// A claim that gets its volume once the node is known.
#[derive(Debug, Clone)]
pub struct Pending {
    pub claim: Arc<PersistentVolumeClaim>,
    /// Free volumes that would do, smallest first.
    pub candidates: Vec<Arc<PersistentVolume>>,
    pub can_be_made: bool,
    topologies: Vec<TopologySelectorTerm>,
}

/// What the volumes of one pod demand.
#[derive(Debug, Default)]
pub struct Needs {
    pub refusal: Option<Rejection>,
    bound: Vec<NodeSelector>,
    pub pending: Vec<Pending>,
    /// Claims, as namespace and name, that one pod alone may use.
    exclusive: Vec<(String, String)>,
}

/// Where the needs are read from.
pub trait Storage {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
}

pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|n| !n.is_empty());
    named && claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BIND_COMPLETED))
}

impl Needs {
    pub fn of(pod: &Pod, storage: &impl Storage) -> Self {
        let mut needs = Self::default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for name in pods::claims_of(pod) {
            if let Err(reason) = needs.add(namespace, &name, storage) {
                needs.refusal = Some(Rejection::lasting(Plugin::VolumeBinding, reason));
                break;
            }
        }
        needs
    }

    fn add(&mut self, namespace: &str, name: &str, storage: &impl Storage) -> Result<(), String> {
        let claim =
            storage.claim(namespace, name).ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let spec = claim.spec.clone().unwrap_or_default();
        let volume_name = spec.volume_name.clone().unwrap_or_default();
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume_name:?}"
            ));
        }
        if spec.access_modes.iter().flatten().any(|m| m == EXCLUSIVE) {
            self.exclusive.push((namespace.to_owned(), name.to_owned()));
        }
        if is_bound(&claim) {
            let volume =
                storage.volume(&volume_name).ok_or_else(|| format!("persistentvolume {volume_name:?} not found"))?;
            let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
            self.bound.extend(affinity.and_then(|a| a.required.clone()));
            return Ok(());
        }
        let class_name = spec.storage_class_name.clone().unwrap_or_default();
        let class = storage.class(&class_name);
        let waits = class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if !waits || !volume_name.is_empty() {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        let class = class.ok_or_else(|| format!("storageclass {class_name:?} not found"))?;
        let mut candidates: Vec<_> =
            storage.volumes().into_iter().filter(|v| could_hold(v, &claim, &class_name)).collect();
        candidates.sort_by_key(|v| capacity(v));
        self.pending.push(Pending {
            claim,
            candidates,
            can_be_made: class.provisioner != "kubernetes.io/no-provisioner",
            topologies: class.allowed_topologies.clone().unwrap_or_default(),
        });
        Ok(())
    }

    pub fn filter(&self, node: &NodeInfo) -> Option<Rejection> {
        if self.bound.iter().any(|s| !node_affinity::selects(s, node)) {
            return Some(Rejection::lasting(
                Plugin::VolumeBinding,
                "node(s) didn't match PersistentVolume's node affinity",
            ));
        }
        if self.pending.iter().any(|p| !p.possible_on(node)) {
            return Some(Rejection::lasting(
                Plugin::VolumeBinding,
                "node(s) didn't find available persistent volumes to bind",
            ));
        }
        let in_use = |(namespace, claim): &(String, String)| {
            node.pods.iter().any(|p| p.namespace() == namespace && pods::claims_of(&p.pod).any(|name| name == *claim))
        };
        self.exclusive.iter().any(in_use).then(|| {
            Rejection::new(
                Plugin::VolumeRestrictions,
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
            )
        })
    }
}

impl Pending {
    /// A free volume that the node can reach.
    pub fn volume_on(&self, node: &NodeInfo) -> Option<&Arc<PersistentVolume>> {
        self.candidates.iter().find(|v| {
            let affinity = v.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
            affinity.and_then(|a| a.required.as_ref()).is_none_or(|s| node_affinity::selects(s, node))
        })
    }

    fn possible_on(&self, node: &NodeInfo) -> bool {
        let in_topology = || {
            self.topologies.is_empty()
                || self.topologies.iter().any(|term| {
                    term.match_label_expressions
                        .iter()
                        .flatten()
                        .all(|r| node.label(&r.key).is_some_and(|v| r.values.iter().any(|w| w == v)))
                })
        };
        self.volume_on(node).is_some() || (self.can_be_made && in_topology())
    }
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let storage = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    storage.and_then(quantity::units).unwrap_or(0)
}

/// Whether a free volume meets what the claim says.
fn could_hold(volume: &PersistentVolume, claim: &PersistentVolumeClaim, class: &str) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else { return false };
    let free = match &has.claim_ref {
        None => volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Released"),
        Some(reference) => {
            reference.name == claim.metadata.name
                && reference.namespace == claim.metadata.namespace
                && reference.uid.as_ref().is_none_or(|u| Some(u) == claim.metadata.uid.as_ref())
        }
    };
    let requested = wants.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let modes = has.access_modes.as_deref().unwrap_or_default();
    free && volume.metadata.deletion_timestamp.is_none()
        && has.storage_class_name.as_deref().unwrap_or_default() == class
        && has.volume_mode.as_deref().unwrap_or("Filesystem") == wants.volume_mode.as_deref().unwrap_or("Filesystem")
        && wants.access_modes.iter().flatten().all(|m| modes.contains(m))
        && capacity(volume) >= requested.and_then(quantity::units).unwrap_or(0)
        && wants.selector.as_ref().is_none_or(|s| selector::matches(s, volume.metadata.labels.as_ref()))
}
