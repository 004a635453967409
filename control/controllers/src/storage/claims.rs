//! Claims: bound to what there is, or to what is made for them.

use std::time::Duration;

use control_client::Key;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;

use super::bind::{self, choose, is_bound, volume_name};
use super::{PROVISIONER, SELECTED_NODE, local_path};
use crate::context::Context;
use crate::runner::{Outcome, Worked};

/// Says again that nothing has been found.
const REMIND: Duration = Duration::from_secs(60);

pub async fn work(context: &Context, key: &Key) -> Worked {
    let Some(claim) = context.caches.claims.get(key) else { return Ok(Outcome::Done) };
    if is_bound(&claim) {
        return keep(context, &claim).await;
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_ref()).is_none() {
        let patch = serde_json::json!({"status": {"phase": "Pending"}});
        context.caches.claims.merge(Some("status"), &claim, &patch).await?;
    }
    let class = context.caches.classes.named("", bind::class_name(&claim));
    let waits = class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE)).cloned();
    // A claim that waits for its pod gets what the scheduler chooses, not what comes first.
    if let Some(volume) = choose(&claim, &context.caches.volumes.list(), waits) {
        bind::bind(context, &claim, &volume).await?;
        return Ok(Outcome::Done);
    }
    if volume_name(&claim).is_some() {
        return Ok(Outcome::Done);
    }
    if waits && selected.is_none() {
        context.events.normal(
            &*claim,
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        );
        return Ok(Outcome::Done);
    }
    let Some(class) = class else { return no_class(context, &claim) };
    if class.provisioner == local_path::NAME {
        return local_path::provision(context, &claim, &class, selected.as_deref()).await;
    }
    ask_others(context, &claim, &class).await
}

fn no_class(context: &Context, claim: &PersistentVolumeClaim) -> Worked {
    let name = bind::class_name(claim);
    if name.is_empty() {
        context.events.normal(
            claim,
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        );
    } else {
        context.events.warning(claim, "ProvisioningFailed", format!("storageclass.storage.k8s.io {name:?} not found"));
    }
    Ok(Outcome::After(REMIND))
}

/// Another program makes the volume; the annotation tells it so.
async fn ask_others(context: &Context, claim: &PersistentVolumeClaim, class: &StorageClass) -> Worked {
    if class.provisioner == "kubernetes.io/no-provisioner" {
        return Ok(Outcome::Done);
    }
    let asked = claim.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONER)) == Some(&class.provisioner);
    if !asked {
        let patch = serde_json::json!({"metadata": {"annotations": {
            PROVISIONER: class.provisioner,
            "volume.beta.kubernetes.io/storage-provisioner": class.provisioner,
        }}});
        context.caches.claims.merge(None, claim, &patch).await?;
    }
    context.events.normal(
        claim,
        "ExternalProvisioning",
        format!(
            "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
            class.provisioner
        ),
    );
    Ok(Outcome::After(REMIND))
}

/// A bound claim keeps its volume; without it, it is lost.
async fn keep(context: &Context, claim: &PersistentVolumeClaim) -> Worked {
    let name = volume_name(claim).unwrap_or_default();
    let volume = context.caches.volumes.named("", name);
    match volume {
        Some(volume) if bind::names_claim(&volume, claim) != Some(false) => {
            bind::bind(context, claim, &volume).await?;
        }
        other => {
            if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
                return Ok(Outcome::Done);
            }
            let message = if other.is_some() {
                "Bound claim has lost its PersistentVolume: it is bound to another claim"
            } else {
                "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
            };
            context.events.warning(claim, "ClaimLost", message);
            let patch = serde_json::json!({"status": {"phase": "Lost", "accessModes": null, "capacity": null}});
            context.caches.claims.merge(Some("status"), claim, &patch).await?;
        }
    }
    Ok(Outcome::Done)
}
