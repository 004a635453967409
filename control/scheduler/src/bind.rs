//! Tells the server of the choice: volumes first, then the pod.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use control_client::events::{Kind, reference};
use control_client::{Failure, Key};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use tokio::time::Instant;

use crate::scheduler::Scheduler;
use crate::snapshot::PodInfo;
use crate::volumes::{SELECTED_NODE, is_bound};

/// A volume that has not been made after this long gives the pod another node.
const VOLUME_PATIENCE: Duration = Duration::from_secs(600);
const VOLUME_POLL: Duration = Duration::from_millis(250);

type Chosen = Vec<(Arc<PersistentVolumeClaim>, Option<Arc<PersistentVolume>>)>;

impl Scheduler {
    pub async fn bind(self: Arc<Self>, pod: Arc<PodInfo>, node: String, volumes: Chosen) {
        if let Err(error) = self.bind_volumes(&pod.pod, &node, volumes).await {
            tracing::warn!("volumes of pod {}: {error:#}", Key::of(&*pod.pod));
            let message = format!("running PreBind plugin \"VolumeBinding\": {error:#}");
            self.events.send(reference(&*pod.pod), Kind::Warning, "FailedScheduling", Some("Scheduling"), message);
            return self.unbound(&pod, true);
        }
        // The semaphore lives as long as the scheduler and is never closed.
        let permit = self.bindings.acquire().await;
        let result = self.post(&pod.pod, &node).await;
        drop(permit);
        match result {
            Ok(()) => {
                let key = Key::of(&*pod.pod);
                self.bound(&pod);
                self.events.send(
                    reference(&*pod.pod),
                    Kind::Normal,
                    "Scheduled",
                    Some("Binding"),
                    format!("Successfully assigned {key} to {node}"),
                );
            }
            // The pod is gone, or has a node already: the watch tells.
            Err(failure) if failure.is_not_found() || failure.code() == 409 => {
                tracing::debug!("{failure}");
                self.unbound(&pod, failure.code() == 409);
            }
            Err(failure) => {
                tracing::warn!("{failure}");
                self.unbound(&pod, true);
            }
        }
    }

    async fn post(&self, pod: &Pod, node: &str) -> Result<(), Failure> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        self.client.create_part::<Pod, _, Status>("binding", namespace, name, &binding).await.map(drop)
    }

    /// Gives each open claim its volume, or asks for one on the node, and waits until all are bound.
    async fn bind_volumes(&self, pod: &Pod, node: &str, volumes: Chosen) -> anyhow::Result<()> {
        if volumes.is_empty() {
            return Ok(());
        }
        for (claim, volume) in &volumes {
            match volume {
                Some(volume) => {
                    let patch = serde_json::json!({
                        "metadata": {"resourceVersion": volume.metadata.resource_version},
                        "spec": {"claimRef": reference(&**claim)},
                    });
                    self.volumes.merge(None, volume, &patch).await?;
                }
                None => {
                    let patch = serde_json::json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                    self.claims.merge(None, claim, &patch).await?;
                }
            }
        }
        let begin = Instant::now();
        loop {
            let mut open = 0;
            for (claim, volume) in &volumes {
                let Some(now) = self.claims.get(&Key::of(&**claim)) else {
                    bail!("claim {} was deleted", Key::of(&**claim));
                };
                let selected = now.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
                if !is_bound(&now) && volume.is_none() && selected.is_none_or(|s| s != node) {
                    // The provisioner takes the annotation away where it cannot make the volume there.
                    bail!("no volume can be made for claim {} on node {node}", Key::of(&**claim));
                }
                open += usize::from(!is_bound(&now));
            }
            if open == 0 {
                return Ok(());
            }
            if begin.elapsed() > VOLUME_PATIENCE {
                bail!("timed out waiting for the volumes of pod {}", Key::of(pod));
            }
            tokio::time::sleep(VOLUME_POLL).await;
        }
    }
}
