//! Removal of local volumes whose claims are gone: the controller writes their names on the
//! Node; this node removes the folders and takes the names off again.

use super::claim::LOCAL_PATH;
use crate::client::explain;
use crate::kubelet::Kubelet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::path::Path;

const ANNOTATION: &str = "kimg.dev/remove-local-volumes";

/// Does what the Node's annotation asks for. What fails stays asked for.
pub async fn follow(kubelet: &Kubelet, node: &Node) {
    let names = names_of(node);
    if names.is_empty() {
        return;
    }
    let work = tokio::task::spawn_blocking(move || {
        let left = names.into_iter().filter(|name| {
            if let Err(error) = remove(Path::new(LOCAL_PATH), name) {
                tracing::warn!("removing local volume {name:?}: {error}");
                return true;
            }
            tracing::info!("removed local volume {name}");
            false
        });
        left.collect::<Vec<String>>()
    });
    let Ok(left) = work.await else { return };
    let value = if left.is_empty() { serde_json::Value::Null } else { json!(left.join(",")) };
    // With the version that was read: a name that came meanwhile must not be lost.
    let patch = json!({ "metadata": {
        "resourceVersion": node.metadata.resource_version,
        "annotations": { ANNOTATION: value },
    }});
    let api: Api<Node> = Api::all(kubelet.api.clone());
    let patched = api.patch(&kubelet.options.node_name, &PatchParams::default(), &Patch::Merge(patch)).await;
    if let Err(error) = patched {
        tracing::debug!("taking removed volumes off the Node: {}", explain(&error));
    }
}

fn names_of(node: &Node) -> Vec<String> {
    let text =
        node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION)).map(String::as_str).unwrap_or_default();
    text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(String::from).collect()
}

fn remove(folder: &Path, name: &str) -> std::io::Result<()> {
    let plain = !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    if !plain {
        return Err(std::io::Error::other("that is no name of a volume"));
    }
    match std::fs::remove_dir_all(folder.join(name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_volumes_go() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("pvc-1/a")).unwrap();
        remove(directory.path(), "pvc-1").unwrap();
        assert!(!directory.path().join("pvc-1").exists());
        assert!(remove(directory.path(), "pvc-1").is_ok(), "already gone");
        for bad in ["..", "a/b", "", ".", "/etc"] {
            assert!(bad.is_empty() || remove(directory.path(), bad).is_err(), "{bad}");
        }
    }
}
