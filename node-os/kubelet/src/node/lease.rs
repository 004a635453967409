//! The node's Lease: a sign of life every ten seconds.

use crate::client::{code, explain, within};
use crate::kubelet::Kubelet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use std::sync::Arc;
use std::time::Duration;

const NAMESPACE: &str = "kube-node-lease";
const SECONDS: i32 = 40;
const PERIOD: Duration = Duration::from_secs(10);

/// Renews until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>) {
    let api: Api<Lease> = Api::namespaced(kubelet.api.clone(), NAMESPACE);
    let mut failing = false;
    loop {
        let wait = match within(PERIOD, renew(&kubelet, &api)).await {
            Ok(()) => {
                failing = false;
                PERIOD
            }
            Err(error) => {
                if !failing {
                    tracing::warn!("renewing this node's lease: {}", explain(&error));
                }
                failing = true;
                Duration::from_secs(2)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(kubelet: &Kubelet, api: &Api<Lease>) -> Result<(), kube::Error> {
    let name = &kubelet.options.node_name;
    let now = MicroTime::from(Timestamp::now());
    let patch = serde_json::json!({ "spec": {
        "holderIdentity": name, "leaseDurationSeconds": SECONDS, "renewTime": now,
    }});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => return Ok(()),
        Err(error) if code(&error) == Some(404) => {}
        Err(error) => return Err(error),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.into()),
            owner_references: kubelet.node.uid().map(|uid| {
                vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: name.clone(),
                    uid,
                    ..Default::default()
                }]
            }),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(SECONDS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        Err(error) if code(&error) != Some(409) => Err(error),
        _ => Ok(()),
    }
}
