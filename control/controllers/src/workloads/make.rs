//! Pods from templates, many at a time, and hashes of templates.

use std::sync::Arc;

use control_client::{Failure, Object, owner};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use crate::context::Context;

/// A first batch this large; each that succeeds doubles the next.
const FIRST_BATCH: usize = 1;

/// A pod as the template says, with a name that the server completes.
pub fn pod_from<O: Object>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.meta().name.as_deref().unwrap_or_default())),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner::controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates a pod and records on its owner how it went.
pub async fn create_pod<O: Object>(context: &Context, owner: &O, pod: &Pod) -> Result<Arc<Pod>, Failure> {
    match context.caches.pods.create(pod).await {
        Ok(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            context.events.normal(owner, "SuccessfulCreate", format!("Created pod: {name}"));
            Ok(pod)
        }
        Err(failure) => {
            if !failure.namespace_ends() {
                context.events.warning(owner, "FailedCreate", format!("Error creating: {}", failure.message()));
            }
            Err(failure)
        }
    }
}

/// Deletes a pod and records on its owner how it went.
pub async fn delete_pod<O: Object>(context: &Context, owner: &O, pod: &Pod) -> Result<(), Failure> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match context.caches.pods.delete(pod).await {
        Ok(()) => {
            context.events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
            Ok(())
        }
        Err(failure) => {
            context.events.warning(owner, "FailedDelete", format!("Error deleting: {}", failure.message()));
            Err(failure)
        }
    }
}

/// Creates the pods in growing batches: where creating fails, not all of them fail.
pub async fn create_pods<O: Object>(context: &Context, owner: &O, pods: Vec<Pod>) -> (usize, Option<Failure>) {
    let mut created = 0;
    let mut batch = FIRST_BATCH;
    let mut rest = pods.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(batch.min(rest.len()));
        let results = futures::future::join_all(now.iter().map(|p| create_pod(context, owner, p))).await;
        let mut failed = None;
        for result in results {
            match result {
                Ok(_) => created += 1,
                Err(failure) => failed = Some(failure),
            }
        }
        if failed.is_some() {
            return (created, failed);
        }
        rest = later;
        batch *= 2;
    }
    (created, None)
}

/// Deletes the pods together; the first failure is told.
pub async fn delete_pods<O: Object>(context: &Context, owner: &O, pods: &[Arc<Pod>]) -> Result<(), Failure> {
    let results = futures::future::join_all(pods.iter().map(|p| delete_pod(context, owner, p))).await;
    results.into_iter().collect()
}

/// Ten characters that can stand in a name and spell nothing, the same for the same value for ever.
pub fn hash<T: serde::Serialize>(value: &T, collisions: i32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut digest = Sha256::new();
    // Typed objects always become JSON; fields stand in their order, maps by key.
    digest.update(serde_json::to_vec(value).unwrap_or_default());
    digest.update(collisions.to_le_bytes());
    digest.finalize().iter().take(10).map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_stable_and_changes_with_collisions() {
        let template = PodTemplateSpec::default();
        assert_eq!(hash(&template, 0), hash(&template, 0));
        assert_ne!(hash(&template, 0), hash(&template, 1));
        assert_eq!(hash(&template, 0).len(), 10);
    }
}
