//! Which volume suits a claim, and the two halves of a binding. The choice is pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_client::events::reference;
use control_client::{quantity, selector};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER};
use crate::context::Context;

pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    volume_name(claim).is_some() && claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BIND_COMPLETED))
}

pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|n| !n.is_empty())
}

pub fn class_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default()
}

/// Whether the volume's reference names this claim; none where the volume is free.
pub fn names_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<bool> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let same_uid =
        reference.uid.as_ref().filter(|u| !u.is_empty()).is_none_or(|u| Some(u) == claim.metadata.uid.as_ref());
    Some(reference.name == claim.metadata.name && reference.namespace == claim.metadata.namespace && same_uid)
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let storage = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    storage.and_then(quantity::units).unwrap_or(0)
}

pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).and_then(quantity::units).unwrap_or(0)
}

fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else { return false };
    let modes = has.access_modes.as_deref().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_none()
        && has.storage_class_name.as_deref().unwrap_or_default() == class_name(claim)
        && has.volume_mode.as_deref().unwrap_or("Filesystem") == wants.volume_mode.as_deref().unwrap_or("Filesystem")
        && wants.access_modes.iter().flatten().all(|m| modes.contains(m))
        && capacity(volume) >= requested(claim)
        && wants.selector.as_ref().is_none_or(|s| selector::matches(s, volume.metadata.labels.as_ref()))
}

/// The volume for an open claim: one that names it, else the smallest free one that suits.
pub fn choose(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    only_prebound: bool,
) -> Option<Arc<PersistentVolume>> {
    if let Some(wanted) = volume_name(claim) {
        let named = volumes.iter().find(|v| v.metadata.name.as_deref() == Some(wanted))?;
        return names_claim(named, claim).unwrap_or(true).then(|| named.clone());
    }
    if let Some(prebound) = volumes.iter().find(|v| names_claim(v, claim) == Some(true)) {
        return Some(prebound.clone());
    }
    if only_prebound {
        return None;
    }
    let free = volumes.iter().filter(|v| names_claim(v, claim).is_none() && suits(v, claim));
    free.min_by_key(|v| capacity(v)).cloned()
}

/// Writes the binding into both objects; each half may be there already.
pub async fn bind(context: &Context, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> anyhow::Result<()> {
    let caches = &context.caches;
    let mut volume = Arc::new(volume.clone());
    let held = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.as_ref());
    if held != claim.metadata.uid.as_ref() {
        let chosen_here = volume.spec.as_ref().is_none_or(|s| s.claim_ref.is_none());
        let mut annotations = BTreeMap::new();
        if chosen_here {
            annotations.insert(BOUND_BY_CONTROLLER, "yes");
        }
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": volume.metadata.resource_version, "annotations": annotations},
            "spec": {"claimRef": reference(claim)},
        });
        volume = caches.volumes.merge(None, &volume, &patch).await?;
    }
    set_phase(context, &volume, "Bound").await?;
    let mut claim = Arc::new(claim.clone());
    if !is_bound(&claim) {
        let mut annotations = BTreeMap::from([(BIND_COMPLETED, "yes")]);
        if volume_name(&claim).is_none() {
            annotations.insert(BOUND_BY_CONTROLLER, "yes");
        }
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": claim.metadata.resource_version, "annotations": annotations},
            "spec": {"volumeName": volume.metadata.name},
        });
        claim = caches.claims.merge(None, &claim, &patch).await?;
    }
    write_claim_status(context, &claim, &volume).await
}

pub async fn write_claim_status(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> anyhow::Result<()> {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let same = status.phase.as_deref() == Some("Bound")
        && status.access_modes == spec.access_modes
        && status.capacity.is_some();
    if same {
        return Ok(());
    }
    let patch = serde_json::json!({"status": {
        "phase": "Bound",
        "accessModes": spec.access_modes,
        "capacity": spec.capacity,
    }});
    context.caches.claims.merge(Some("status"), claim, &patch).await?;
    Ok(())
}

pub async fn set_phase(context: &Context, volume: &PersistentVolume, phase: &str) -> anyhow::Result<()> {
    if volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
        return Ok(());
    }
    let patch = serde_json::json!({"status": {
        "phase": phase,
        "lastPhaseTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()),
    }});
    context.caches.volumes.merge(Some("status"), volume, &patch).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        ObjectReference, PersistentVolumeClaimSpec, PersistentVolumeSpec, VolumeResourceRequirements,
    };
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn volume(name: &str, size: &str, claim: Option<&str>) -> Arc<PersistentVolume> {
        let mut volume = PersistentVolume::default();
        volume.metadata.name = Some(name.into());
        volume.spec = Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), Quantity(size.into()))].into()),
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            claim_ref: claim.map(|c| ObjectReference { name: Some(c.into()), ..ObjectReference::default() }),
            ..PersistentVolumeSpec::default()
        });
        Arc::new(volume)
    }

    fn claim(size: &str) -> PersistentVolumeClaim {
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some("c".into());
        claim.spec = Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size.into()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        });
        claim
    }

    #[test]
    fn smallest_free_volume_that_suits_is_chosen() {
        let all = [volume("big", "10Gi", None), volume("other", "1Gi", Some("d")), volume("fit", "2Gi", None)];
        let name = |v: Option<Arc<PersistentVolume>>| v.and_then(|v| v.metadata.name.clone());
        assert_eq!(name(choose(&claim("1Gi"), &all, false)).as_deref(), Some("fit"));
        assert_eq!(name(choose(&claim("20Gi"), &all, false)), None);
        assert_eq!(name(choose(&claim("1Gi"), &all, true)), None);
        let mine = [volume("fit", "2Gi", None), volume("mine", "9Gi", Some("c"))];
        assert_eq!(name(choose(&claim("1Gi"), &mine, true)).as_deref(), Some("mine"));
    }
}
