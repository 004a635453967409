//! Volumes: their phase, and what becomes of them when their claim is gone.

use control_client::Key;
use k8s_openapi::api::core::v1::PersistentVolume;

use super::{PROVISIONED_BY, bind, local_path};
use crate::context::Context;
use crate::runner::{Outcome, Worked};

#[derive(Debug, PartialEq)]
enum Plan {
    Phase(&'static str),
    Reclaim,
}

fn plan(volume: &PersistentVolume, claim_uid: Option<&str>) -> Plan {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(held) = reference.and_then(|r| r.uid.as_deref()).filter(|u| !u.is_empty()) else {
        return Plan::Phase("Available");
    };
    match claim_uid {
        Some(uid) if uid == held => Plan::Phase("Bound"),
        _ => Plan::Reclaim,
    }
}

pub async fn work(context: &Context, key: &Key) -> Worked {
    let Some(volume) = context.caches.volumes.get(key) else { return Ok(Outcome::Done) };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let claim = reference.and_then(|r| {
        context.caches.claims.named(r.namespace.as_deref().unwrap_or_default(), r.name.as_deref().unwrap_or_default())
    });
    match plan(&volume, claim.as_ref().and_then(|c| c.metadata.uid.as_deref())) {
        Plan::Phase("Bound") => {
            // The claim's half follows; the phase is set when both are there.
            if claim.is_some_and(|c| bind::is_bound(&c)) {
                bind::set_phase(context, &volume, "Bound").await?;
            }
            Ok(Outcome::Done)
        }
        Plan::Phase(phase) => {
            bind::set_phase(context, &volume, phase).await?;
            Ok(Outcome::Done)
        }
        Plan::Reclaim => reclaim(context, &volume).await,
    }
}

async fn reclaim(context: &Context, volume: &PersistentVolume) -> Worked {
    bind::set_phase(context, volume, "Released").await?;
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain");
    let by = volume.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONED_BY)).map(String::as_str);
    match (policy, by) {
        ("Delete", Some(local_path::NAME)) => local_path::delete(context, volume).await,
        // Others delete what they made; what nobody made is kept.
        _ => Ok(Outcome::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeSpec};

    #[test]
    fn phase_follows_the_claim() {
        let volume = |uid: Option<&str>| PersistentVolume {
            spec: Some(PersistentVolumeSpec {
                claim_ref: uid.map(|u| ObjectReference { uid: Some(u.into()), ..ObjectReference::default() }),
                ..PersistentVolumeSpec::default()
            }),
            ..PersistentVolume::default()
        };
        assert_eq!(plan(&volume(None), None), Plan::Phase("Available"));
        assert_eq!(plan(&volume(Some("")), None), Plan::Phase("Available"));
        assert_eq!(plan(&volume(Some("a")), Some("a")), Plan::Phase("Bound"));
        assert_eq!(plan(&volume(Some("a")), Some("b")), Plan::Reclaim);
        assert_eq!(plan(&volume(Some("a")), None), Plan::Reclaim);
    }
}
