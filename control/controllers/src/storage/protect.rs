//! Holds back the deletion of claims that pods use, and of volumes that claims have.

use std::sync::Arc;

use control_client::{Key, Object, Queue, Store, pods};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Hold,
    LetGo,
}

fn plan(held: bool, deleting: bool, in_use: bool) -> Plan {
    match (held, deleting, in_use) {
        (false, false, _) => Plan::Hold,
        (true, true, false) => Plan::LetGo,
        _ => Plan::Nothing,
    }
}

pub fn start(context: &Arc<Context>) {
    let claims = Arc::new(Queue::<Key>::default());
    let volumes = Arc::new(Queue::<Key>::default());
    context.caches.claims.subscribe({
        let claims = claims.clone();
        move |change| claims.add(Key::of(&**change.object()))
    });
    context.caches.pods.subscribe({
        let claims = claims.clone();
        move |change| {
            let pod = change.object();
            if matches!(change, control_client::Change::Deleted(_)) || pods::is_terminal(pod) {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                pods::claims_of(pod).for_each(|name| claims.add(Key::new(namespace, &name)));
            }
        }
    });
    context.caches.volumes.subscribe({
        let volumes = volumes.clone();
        move |change| volumes.add(Key::of(&**change.object()))
    });
    runner::run("pvc-protection", &claims, 1, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { claim(&context, &key).await }
        }
    });
    runner::run("pv-protection", &volumes, 1, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { volume(&context, &key).await }
        }
    });
}

async fn apply<K: Object>(store: &Store<K>, object: &K, finalizer: &str, in_use: bool) -> Worked {
    let meta = object.meta();
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|f| f == finalizer);
    match plan(held, meta.deletion_timestamp.is_some(), in_use) {
        Plan::Nothing => return Ok(Outcome::Done),
        Plan::Hold => finalizers.push(finalizer.to_owned()),
        Plan::LetGo => finalizers.retain(|f| f != finalizer),
    }
    let patch = serde_json::json!({"metadata": {
        "resourceVersion": meta.resource_version,
        "finalizers": finalizers,
    }});
    match store.merge(None, object, &patch).await {
        Err(failure) if !failure.is_not_found() => Err(failure.into()),
        _ => Ok(Outcome::Done),
    }
}

async fn claim(context: &Context, key: &Key) -> Worked {
    let Some(claim): Option<Arc<PersistentVolumeClaim>> = context.caches.claims.get(key) else {
        return Ok(Outcome::Done);
    };
    // A pod without a node uses nothing yet, and will not start without the claim.
    let uses = |p: &Arc<Pod>| {
        !pods::is_terminal(p) && !pods::node_name(p).is_empty() && pods::claims_of(p).any(|name| name == key.name)
    };
    let in_use = context.caches.pods.in_namespace(&key.namespace).iter().any(uses);
    apply(&context.caches.claims, &*claim, CLAIM, in_use).await
}

async fn volume(context: &Context, key: &Key) -> Worked {
    let Some(volume): Option<Arc<PersistentVolume>> = context.caches.volumes.get(key) else {
        return Ok(Outcome::Done);
    };
    let in_use = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    apply(&context.caches.volumes, &*volume, VOLUME, in_use).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalizer_is_put_on_and_taken_off() {
        assert_eq!(plan(false, false, false), Plan::Hold);
        assert_eq!(plan(true, false, true), Plan::Nothing);
        assert_eq!(plan(true, true, true), Plan::Nothing);
        assert_eq!(plan(true, true, false), Plan::LetGo);
        assert_eq!(plan(false, true, false), Plan::Nothing);
    }
}
