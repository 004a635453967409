//! Persistent volume claims whose volume is a directory on this node.

use super::{Ready, ownership};
use crate::client::explain;
use crate::kubelet::Kubelet;
use crate::pods::{admit, spec};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::Api;
use std::path::{Path, PathBuf};

/// Where local-path volumes lie; their directories are made when first used.
pub const LOCAL_PATH: &str = "/var/lib/kimg/local-path";

/// Finds the directory of a claim's volume.
pub async fn prepare(kubelet: &Kubelet, pod: &Pod, claim: &str, read_only: bool) -> Result<Ready, String> {
    let namespace = spec::namespace(pod);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(kubelet.api.clone(), namespace);
    let found = claims.get_opt(claim).await.map_err(|e| explain(&e))?;
    let found = found.ok_or_else(|| format!("persistentvolumeclaim \"{claim}\" not found"))?;
    let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| bound && !n.is_empty());
    let name = name.ok_or_else(|| format!("PVC {namespace}/{claim} is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(kubelet.api.clone());
    let volume = volumes.get(&name).await.map_err(|e| explain(&e))?;
    let spec = volume.spec.unwrap_or_default();
    let reference = spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref());
    if reference.is_some() && reference != found.metadata.uid.as_deref() {
        return Err(format!("PV {name} is bound to another claim than {namespace}/{claim}"));
    }
    if let Some(required) = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref()) {
        let labels = kubelet.node.labels();
        if !admit::selector_matches(required, &labels, &kubelet.options.node_name) {
            return Err(format!("PV {name} lies on another node"));
        }
    }
    let path = match (&spec.local, &spec.host_path) {
        (Some(local), _) => PathBuf::from(&local.path),
        (None, Some(host)) => PathBuf::from(&host.path),
        (None, None) => return Err(format!("PV {name}: only local and hostPath volumes are supported on this node")),
    };
    let made_here = path.starts_with(LOCAL_PATH) && !path.components().any(|c| c == std::path::Component::ParentDir);
    if made_here && !path.exists() {
        super::make_directory(&path)?;
        super::set_mode(&path, 0o777)?;
    }
    if spec.host_path.is_some() && !path.exists() {
        super::make_directory(&path)?;
    }
    present(&path, &name)?;
    let read_only = read_only || !writable(&found);
    if !read_only {
        ownership::apply_once(pod, &path).await?;
    }
    Ok(Ready { path, read_only })
}

fn present(path: &Path, name: &str) -> Result<(), String> {
    if path.exists() { Ok(()) } else { Err(format!("PV {name}: {} does not exist on this node", path.display())) }
}

fn writable(claim: &PersistentVolumeClaim) -> bool {
    let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    modes.is_empty() || modes.iter().any(|m| m != "ReadOnlyMany")
}
