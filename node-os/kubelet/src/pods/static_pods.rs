//! Static pods: manifests in a directory on the node, and their images in the API.

use super::spec;
use crate::client::{code, explain};
use crate::kubelet::Kubelet;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(20);

/// Follows the directory until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>) {
    let directory = kubelet.options.flags.pod_manifest_path.clone();
    let mut known: BTreeMap<String, Pod> = BTreeMap::new();
    loop {
        let found = read_all(&directory, &kubelet.options.node_name);
        for uid in known.keys().filter(|uid| !found.contains_key(*uid)) {
            kubelet.pods.remove(uid);
        }
        for (uid, pod) in &found {
            if !known.contains_key(uid) {
                kubelet.pods.note_static(pod);
                kubelet.pods.apply(&kubelet, pod.clone());
            }
            if let Err(error) = mirror(&kubelet, pod).await {
                tracing::debug!("mirror of static pod {}: {}", spec::full_name(pod), explain(&error));
            }
        }
        known = found;
        tokio::time::sleep(PERIOD).await;
    }
}

fn read_all(directory: &Path, node: &str) -> BTreeMap<String, Pod> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let wanted = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if !wanted {
            continue;
        }
        match std::fs::read(&path).map_err(anyhow::Error::from).and_then(|bytes| parse(&bytes, node)) {
            Ok(pod) => {
                found.insert(spec::uid(&pod).to_string(), pod);
            }
            Err(error) => tracing::warn!("static pod {}: {error:#}", path.display()),
        }
    }
    found
}

/// A manifest as a pod of this node.
fn parse(bytes: &[u8], node: &str) -> anyhow::Result<Pod> {
    let mut pod: Pod = serde_yaml_ng::from_slice(bytes)?;
    let Some(spec) = pod.spec.as_mut() else { anyhow::bail!("it has no spec") };
    anyhow::ensure!(!spec.containers.is_empty(), "spec.containers is empty");
    spec.node_name = Some(node.to_string());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    // Static pods stay whatever befalls the node.
    let toleration =
        Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Default::default() };
    spec.tolerations.get_or_insert_default().push(toleration);
    let name = pod.metadata.name.clone().unwrap_or_default();
    anyhow::ensure!(!name.is_empty(), "metadata.name is missing");
    pod.metadata.name = Some(format!("{name}-{node}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    let mut digest = Sha256::new();
    digest.update(node);
    digest.update(bytes);
    let hash = hex::encode(&digest.finalize()[..16]);
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(spec::CONFIG_SOURCE.into(), "file".into());
    annotations.insert(spec::CONFIG_HASH.into(), hash);
    pod.status = Some(PodStatus { phase: Some("Pending".into()), ..Default::default() });
    Ok(pod)
}

/// Makes the API show the pod; an outdated image of it goes first.
async fn mirror(kubelet: &Kubelet, pod: &Pod) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(kubelet.api.clone(), spec::namespace(pod));
    let hash = spec::uid(pod);
    if let Some(existing) = api.get_opt(spec::name(pod)).await? {
        let annotations = existing.metadata.annotations.clone().unwrap_or_default();
        let current = annotations.get(spec::CONFIG_MIRROR).is_some_and(|h| h == hash);
        if current && existing.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        if annotations.contains_key(spec::CONFIG_MIRROR) {
            api.delete(spec::name(pod), &DeleteParams::default().grace_period(0)).await?;
        }
    }
    let mut image = pod.clone();
    image.metadata.uid = None;
    image.status = None;
    image.metadata.annotations.get_or_insert_default().insert(spec::CONFIG_MIRROR.into(), hash.to_string());
    image.metadata.owner_references = kubelet.node.uid().map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: kubelet.options.node_name.clone(),
            uid,
            controller: Some(true),
            ..Default::default()
        }]
    });
    match api.create(&PostParams::default(), &image).await {
        Err(error) if code(&error) != Some(409) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_pods_of_this_node() {
        let manifest = b"{metadata: {name: a}, spec: {containers: [{name: c, image: i}]}}";
        let pod = parse(manifest, "m1").unwrap();
        assert_eq!(spec::full_name(&pod), "default/a-m1");
        assert!(spec::is_static(&pod) && !spec::is_mirror(&pod));
        assert_ne!(spec::uid(&pod), spec::uid(&parse(manifest, "m2").unwrap()));
        assert!(parse(b"{metadata: {name: a}}", "m1").is_err());
        assert!(parse(b"{metadata: {}, spec: {containers: []}}", "m1").is_err());
    }
}
