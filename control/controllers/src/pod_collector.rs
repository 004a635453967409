//! Removes pods that nobody will ever remove: those of nodes that are gone, those deleted before
//! they had a node, and ended ones beyond a number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control_client::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::params::DeleteParams;
use tokio::time::Instant;

use crate::context::Context;

const PERIOD: Duration = Duration::from_secs(20);
/// A node that is missing for this long is gone.
const QUARANTINE: Duration = Duration::from_secs(40);
const MOST_ENDED: usize = 12_500;

/// Pods to remove now.
fn plan(all: &[Arc<Pod>], gone: impl Fn(&str) -> bool, most_ended: usize) -> Vec<Arc<Pod>> {
    let mut remove: Vec<Arc<Pod>> = Vec::new();
    let mut ended: Vec<&Arc<Pod>> = Vec::new();
    for pod in all {
        let node = pods::node_name(pod);
        let orphaned = !node.is_empty() && gone(node);
        let never_placed = node.is_empty() && pods::is_terminating(pod);
        if orphaned || never_placed {
            remove.push(pod.clone());
        } else if pods::is_terminal(pod) && !pods::is_terminating(pod) {
            ended.push(pod);
        }
    }
    ended.sort_by_key(|p| p.metadata.creation_timestamp.clone());
    let surplus = ended.len().saturating_sub(most_ended);
    remove.extend(ended.into_iter().take(surplus).cloned());
    remove
}

pub fn start(context: &Arc<Context>) {
    let context = context.clone();
    let missing: Mutex<HashMap<String, Instant>> = Mutex::new(HashMap::new());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(PERIOD).await;
            let all = context.caches.pods.list();
            let remove = {
                let mut missing = missing.lock().unwrap_or_else(|e| e.into_inner());
                note_missing(&context, &all, &mut missing);
                plan(&all, |node| missing.get(node).is_some_and(|since| since.elapsed() >= QUARANTINE), MOST_ENDED)
            };
            for pod in remove {
                if let Err(error) = delete(&context, &pod).await {
                    tracing::warn!("removing a left-over pod: {error:#}");
                }
            }
        }
    });
}

fn note_missing(context: &Context, all: &[Arc<Pod>], missing: &mut HashMap<String, Instant>) {
    let is_there = |node: &str| context.caches.nodes.named("", node).is_some();
    missing.retain(|node, _| !is_there(node));
    for pod in all {
        let node = pods::node_name(pod);
        if !node.is_empty() && !is_there(node) {
            missing.entry(node.to_owned()).or_insert_with(Instant::now);
        }
    }
}

async fn delete(context: &Context, pod: &Pod) -> anyhow::Result<()> {
    // A pod that is thought to run is marked failed first, so that its job or set counts it.
    if !pods::is_terminal(pod) && !pods::node_name(pod).is_empty() {
        let patch = serde_json::json!({"status": {"phase": "Failed", "conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()),
        }]}});
        match context.caches.pods.strategic(Some("status"), pod, &patch).await {
            Err(failure) if failure.is_not_found() => return Ok(()),
            other => drop(other?),
        }
    }
    context.caches.pods.delete_with(pod, DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    #[test]
    fn orphans_and_surplus_go() {
        let pod = |name: &str, node: &str, phase: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.spec = Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() });
            pod.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
            Arc::new(pod)
        };
        let all =
            [pod("a", "gone", "Running"), pod("b", "n", "Running"), pod("c", "n", "Failed"), pod("d", "", "Pending")];
        let names = |most| {
            let remove = plan(&all, |node| node == "gone", most);
            remove.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["a"]);
        assert_eq!(names(0), ["a", "c"]);
    }
}
