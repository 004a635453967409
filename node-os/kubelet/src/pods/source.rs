//! The API's pods that are bound to this node.

use super::spec;
use crate::kubelet::Kubelet;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Follows the watch until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>) {
    let api: Api<Pod> = Api::all(kubelet.api.clone());
    let config =
        watcher::Config::default().fields(&format!("spec.nodeName={}", kubelet.options.node_name)).timeout(290);
    let mut stream = Box::pin(watcher::watcher(api, config));
    let mut listed = HashSet::new();
    let mut silent = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(spec::uid(&pod).to_string());
                apply(&kubelet, pod);
            }
            Ok(Event::InitDone) => {
                kubelet.pods.retain(&listed);
                listed.clear();
                silent = false;
            }
            Ok(Event::Apply(pod)) => apply(&kubelet, pod),
            Ok(Event::Delete(pod)) => kubelet.pods.remove(spec::uid(&pod)),
            Err(error) => {
                if !silent {
                    tracing::warn!("watching this node's pods: {}", crate::chain(&error));
                }
                silent = true;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Mirror pods only show static ones; the directory is their source.
fn apply(kubelet: &Arc<Kubelet>, mut pod: Pod) {
    if spec::is_mirror(&pod) {
        return;
    }
    // Half of a pod's bytes, and of no use here.
    pod.metadata.managed_fields = None;
    kubelet.pods.apply(kubelet, pod);
}
