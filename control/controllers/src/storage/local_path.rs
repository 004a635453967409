//! Volumes on a node's own disk, the default class: a folder below `/var/lib/kimg/local-path/`.
//!
//! The kubelet makes the folder when the first pod mounts it (hostPath, DirectoryOrCreate).
//! When the claim is gone and the class says Delete, the volume's name is put on the node's
//! annotation `kimg.dev/remove-local-volumes` (names with commas); the kubelet removes the
//! folder and takes the name off again; then the volume object goes.

use control_client::Key;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{PROVISIONED_BY, SELECTED_NODE, bind};
use crate::context::Context;
use crate::runner::{Outcome, Worked};
use control_client::events::reference;
use control_client::quantity;

pub const NAME: &str = "kimg.dev/local-path";
const FOLDER: &str = "/var/lib/kimg/local-path";
const REMOVE: &str = "kimg.dev/remove-local-volumes";
const HOST: &str = "kubernetes.io/hostname";

/// Names of the volumes whose data the node still has to remove.
pub fn to_remove(node: &Node) -> Vec<String> {
    let text = node.metadata.annotations.as_ref().and_then(|a| a.get(REMOVE)).map(String::as_str).unwrap_or_default();
    text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

fn new_volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let host = node.metadata.labels.as_ref().and_then(|l| l.get(HOST)).cloned().unwrap_or(node_name);
    let size = quantity::from_bytes(bind::requested(claim));
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([(PROVISIONED_BY.to_owned(), NAME.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), size)].into()),
            access_modes: spec.access_modes,
            storage_class_name: class.metadata.name.clone(),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().or(Some("Delete".to_owned())),
            volume_mode: Some("Filesystem".to_owned()),
            claim_ref: Some(reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: format!("{FOLDER}/{name}"),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_expressions: Some(vec![NodeSelectorRequirement {
                            key: HOST.to_owned(),
                            operator: "In".to_owned(),
                            values: Some(vec![host]),
                        }]),
                        ..NodeSelectorTerm::default()
                    }],
                }),
            }),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

pub async fn provision(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    selected: Option<&str>,
) -> Worked {
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    let trouble = if spec.volume_mode.as_deref() == Some("Block") {
        Some("local-path volumes are folders; volumeMode must be Filesystem".to_owned())
    } else if modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany") {
        Some("local-path volumes are on one node; accessModes must be ReadWriteOnce or ReadWriteOncePod".to_owned())
    } else {
        None
    };
    if let Some(trouble) = trouble {
        context.events.warning(claim, "ProvisioningFailed", format!("failed to provision volume: {trouble}"));
        return Ok(Outcome::Done);
    }
    let Some(selected) = selected else {
        context.events.warning(
            claim,
            "ProvisioningFailed",
            "failed to provision volume: a local-path class needs volumeBindingMode WaitForFirstConsumer",
        );
        return Ok(Outcome::Done);
    };
    let Some(node) = context.caches.nodes.named("", selected) else {
        // The scheduler chooses again where its choice is taken back.
        let patch = serde_json::json!({"metadata": {"annotations": {SELECTED_NODE: null}}});
        context.caches.claims.merge(None, claim, &patch).await?;
        return Ok(Outcome::Done);
    };
    let key = Key::of(claim);
    context.events.normal(
        claim,
        "Provisioning",
        format!("External provisioner is provisioning volume for claim \"{key}\""),
    );
    let volume = new_volume(claim, class, &node);
    let name = volume.metadata.name.clone().unwrap_or_default();
    let volume = match context.caches.volumes.create(&volume).await {
        Ok(volume) => volume,
        // Made before, and not in the cache yet.
        Err(failure) if failure.already_exists() => return Ok(Outcome::Done),
        Err(failure) => return Err(failure.into()),
    };
    context.events.normal(claim, "ProvisioningSucceeded", format!("Successfully provisioned volume {name}"));
    bind::bind(context, claim, &volume).await?;
    Ok(Outcome::Done)
}

/// The node on which the volume's folder is.
fn node_of(context: &Context, volume: &PersistentVolume) -> Option<std::sync::Arc<Node>> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let host = affinity.node_selector_terms.first()?.match_expressions.as_ref()?.first()?.values.as_ref()?.first()?;
    context.caches.nodes.list().into_iter().find(|n| {
        n.metadata.name.as_ref() == Some(host) || n.metadata.labels.as_ref().and_then(|l| l.get(HOST)) == Some(host)
    })
}

/// Has the data removed, then the volume.
pub async fn delete(context: &Context, volume: &PersistentVolume) -> Worked {
    const ASKED: &str = "kimg.dev/removal-asked";
    let name = volume.metadata.name.clone().unwrap_or_default();
    let asked = volume.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ASKED));
    if let Some(node) = node_of(context, volume) {
        let mut names = to_remove(&node);
        let listed = names.contains(&name);
        if asked && listed {
            return Ok(Outcome::Done);
        }
        if !asked {
            if !listed {
                names.push(name);
                let patch = serde_json::json!({"metadata": {
                    "resourceVersion": node.metadata.resource_version,
                    "annotations": {REMOVE: names.join(",")},
                }});
                context.caches.nodes.merge(None, &node, &patch).await?;
            }
            let patch = serde_json::json!({"metadata": {"annotations": {ASKED: "yes"}}});
            context.caches.volumes.merge(None, volume, &patch).await?;
            return Ok(Outcome::Done);
        }
    }
    // The node has done it, or is gone with its disk.
    if volume.metadata.deletion_timestamp.is_none() {
        context.caches.volumes.delete(volume).await?;
    }
    Ok(Outcome::Done)
}
