//! Tells workers that something happened to their containers: by the runtime's event stream
//! where it has one, and by looking at the list of containers from time to time.

use super::spec;
use crate::cri::{self, Cri};
use crate::kubelet::Kubelet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks while events come, and while they do not.
const RELAXED: Duration = Duration::from_secs(10);
const EAGER: Duration = Duration::from_secs(1);

/// Follows the runtime until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>, cri: Cri) {
    let mut known: HashMap<String, (i32, String)> = HashMap::new();
    loop {
        match cri.events().await {
            Ok(mut stream) => {
                let mut look = Instant::now();
                loop {
                    let wait = look.saturating_duration_since(Instant::now());
                    tokio::select! {
                        message = stream.message() => match message {
                            Ok(Some(event)) => wake_by_event(&kubelet, &event),
                            Ok(None) | Err(_) => break,
                        },
                        () = tokio::time::sleep(wait) => {
                            relist(&kubelet, &cri, &mut known).await;
                            look = Instant::now() + RELAXED;
                        }
                    }
                }
            }
            Err(error) if error.is_unimplemented() => {
                tracing::info!("the runtime sends no events, containers are listed every second");
                loop {
                    relist(&kubelet, &cri, &mut known).await;
                    tokio::time::sleep(EAGER).await;
                }
            }
            Err(error) => tracing::debug!("events of the runtime: {error}"),
        }
        relist(&kubelet, &cri, &mut known).await;
        tokio::time::sleep(EAGER).await;
    }
}

fn wake_by_event(kubelet: &Kubelet, event: &cri::ContainerEventResponse) {
    let uid = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref()).map(|m| m.uid.as_str());
    if let Some(uid) = uid {
        kubelet.pods.wake(uid);
    }
}

/// Compares the list with the last one and wakes the pods whose containers changed.
async fn relist(kubelet: &Kubelet, cri: &Cri, known: &mut HashMap<String, (i32, String)>) {
    let (Ok(containers), Ok(sandboxes)) = (cri.list_containers(None).await, cri.list_pod_sandbox(None).await) else {
        kubelet.node.relist_failed();
        return;
    };
    kubelet.node.relisted();
    let uid = |labels: &std::collections::BTreeMap<String, String>| labels.get(spec::POD_UID).cloned();
    let mut now = HashMap::with_capacity(known.len());
    for container in containers {
        now.extend(uid(&container.labels).map(|uid| (container.id, (container.state, uid))));
    }
    for sandbox in sandboxes {
        // Sandbox states are kept apart from those of containers.
        now.extend(uid(&sandbox.labels).map(|uid| (sandbox.id, (100 + sandbox.state, uid))));
    }
    for (id, (state, uid)) in &now {
        if known.get(id).is_none_or(|(old, _)| old != state) {
            kubelet.pods.wake(uid);
        }
    }
    for (_, uid) in known.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, v)| v) {
        kubelet.pods.wake(uid);
    }
    *known = now;
}
