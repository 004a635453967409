//! Registers the Node and keeps its status true.

use super::build::{self, Look};
use crate::client::{code, explain, within};
use crate::events;
use crate::kubelet::Kubelet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks while the node is ready, and while it is not.
const PERIOD: Duration = Duration::from_secs(10);
const EAGER: Duration = Duration::from_millis(500);
/// A status that stays the same is sent again after this time.
const REPORT: Duration = Duration::from_secs(300);

/// Registers, then follows the node's state until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>) {
    let api: Api<Node> = Api::all(kubelet.api.clone());
    register(&kubelet, &api).await;
    let mut sent: Option<(NodeStatus, Instant)> = None;
    let mut tick = 0_u32;
    loop {
        let status = look(&kubelet).await;
        let ready = is_ready(&status);
        let due = match &sent {
            None => true,
            Some((old, at)) => at.elapsed() > REPORT || !build::same(old, &status),
        };
        if due {
            match within(PERIOD, report(&kubelet, &api, &status)).await {
                Ok(()) => {
                    if sent.as_ref().is_some_and(|(old, _)| is_ready(old) != ready) || (sent.is_none() && ready) {
                        tell(&kubelet, ready);
                    }
                    sent = Some((status, Instant::now()));
                }
                Err(error) if code(&error) == Some(404) => {
                    tracing::warn!("the Node is gone from the API, registering it again");
                    register(&kubelet, &api).await;
                    sent = None;
                }
                Err(error) => tracing::warn!("updating the Node's status: {}", explain(&error)),
            }
        } else if tick.is_multiple_of(2) {
            // Labels are needed for admission, annotations ask for things; somebody may have changed them.
            match within(PERIOD, api.get(&kubelet.options.node_name)).await {
                Ok(node) => {
                    crate::volumes::removal::follow(&kubelet, &node).await;
                    kubelet.node.set_object(node);
                }
                Err(error) if code(&error) == Some(404) => {
                    register(&kubelet, &api).await;
                    sent = None;
                }
                Err(error) => tracing::debug!("reading the Node: {}", explain(&error)),
            }
        }
        tick = tick.wrapping_add(1);
        tokio::time::sleep(if ready { PERIOD } else { EAGER }).await;
    }
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn tell(kubelet: &Kubelet, ready: bool) {
    let name = &kubelet.options.node_name;
    let reference = events::node_reference(name, kubelet.node.object().as_ref());
    let reason = if ready { "NodeReady" } else { "NodeNotReady" };
    kubelet.events.normal(reference, reason, format!("Node {name} status is now: {reason}"));
    let sentence = if ready { "the node is Ready".to_string() } else { kubelet.node.troubles().join(", ") };
    node_sys::notify::status(&sentence);
}

async fn look(kubelet: &Kubelet) -> NodeStatus {
    let mut images = Vec::new();
    if let Some(cri) = &kubelet.cri {
        match cri.status().await {
            Ok(answer) => {
                let conditions = answer.status.unwrap_or_default().conditions;
                let trouble = |kind: &str| {
                    conditions
                        .iter()
                        .find(|c| c.r#type == kind && !c.status)
                        .map(|c| format!("{kind}=false reason:{} message:{}", c.reason, c.message))
                };
                kubelet.node.set_trouble(trouble("RuntimeReady"), trouble("NetworkReady"));
                images = cri.list_images().await.unwrap_or_default();
            }
            Err(error) => kubelet.node.set_trouble(Some(error.to_string()), kubelet.node.network_trouble()),
        }
    }
    let old = kubelet.node.object().and_then(|n| n.status);
    build::status(
        &kubelet.options,
        kubelet.node.facts(),
        kubelet.node.capacity(),
        &kubelet.node.allocatable(),
        Look {
            troubles: kubelet.node.troubles(),
            pressure: kubelet.node.pressure(),
            images,
            runtime_version: kubelet.node.runtime_version(),
            now: Timestamp::now(),
        },
        old.as_ref(),
    )
}

async fn report(kubelet: &Kubelet, api: &Api<Node>, status: &NodeStatus) -> Result<(), kube::Error> {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    let old = kubelet.node.object().and_then(|n| n.status).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        // Addresses merge by type, which two InternalIPs share: the list is replaced as a whole.
        if old.addresses == status.addresses {
            object.remove("addresses");
        } else if old.addresses.is_some()
            && let Some(list) = object.get_mut("addresses").and_then(|a| a.as_array_mut())
        {
            list.insert(0, json!({ "$patch": "replace" }));
        }
    }
    let patch = json!({ "status": value });
    let name = &kubelet.options.node_name;
    let node = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    kubelet.node.set_object(node);
    Ok(())
}

/// Registers the Node until the API has taken it.
async fn register(kubelet: &Kubelet, api: &Api<Node>) {
    let mut told = String::new();
    loop {
        match try_register(kubelet, api).await {
            Ok(node) => {
                kubelet.node.set_object(node);
                tracing::info!("node {} is registered", kubelet.options.node_name);
                return;
            }
            Err(error) => {
                let sentence = format!("registering node {}: {}", kubelet.options.node_name, explain(&error));
                if sentence != told {
                    tracing::warn!("{sentence}");
                    node_sys::notify::status(&sentence);
                    told = sentence;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn try_register(kubelet: &Kubelet, api: &Api<Node>) -> Result<Node, kube::Error> {
    let name = &kubelet.options.node_name;
    let labels = kubelet.node.own_labels();
    let node = build::node(&kubelet.options, labels, look(kubelet).await);
    match api.create(&PostParams::default(), &node).await {
        Ok(node) => return Ok(node),
        Err(error) if code(&error) == Some(409) => {}
        Err(error) => return Err(error),
    }

    let existing = api.get(name).await?;
    let known = existing.metadata.labels.clone().unwrap_or_default();
    let missing: serde_json::Map<String, serde_json::Value> =
        labels.iter().filter(|(k, v)| known.get(*k) != Some(*v)).map(|(k, v)| (k.clone(), json!(v))).collect();
    if missing.is_empty() {
        return Ok(existing);
    }
    let patch = json!({ "metadata": { "labels": missing } });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}
