//! Volumes: made below `pods/UID/volumes/` before a pod's containers start, kept up to date
//! while it runs, unmounted and removed after it has ended.

pub mod claim;
pub mod host_path;
pub mod mount;
pub mod ownership;
pub mod payload;
pub mod projected;
pub mod removal;
pub mod tokens;

use crate::container::downward::Facts;
use crate::kubelet::Kubelet;
use crate::mounts;
use crate::pods::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A volume that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Where it lies on the node.
    pub path: PathBuf,
    /// It can only be read, whatever its mounts say.
    pub read_only: bool,
}

/// A pod's volumes by name.
pub type Volumes = BTreeMap<String, Ready>;

/// Sets up all volumes of a pod, or brings them up to date where they were ready `before`: then the pod may be writing
/// to those that are its own, and nothing more is done to them. The error is a sentence for its event.
pub async fn prepare(kubelet: &Kubelet, pod: &Pod, facts: &Facts, before: Option<&Volumes>) -> Result<Volumes, String> {
    let mut ready = Volumes::new();
    for volume in spec::of(pod).volumes.iter().flatten() {
        if let Some(done) = kept(volume, before) {
            ready.insert(volume.name.clone(), done.clone());
            continue;
        }
        let one = prepare_one(kubelet, pod, volume, facts)
            .await
            .map_err(|error| format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name))?;
        ready.insert(volume.name.clone(), one);
    }
    Ok(ready)
}

/// A volume that was ready before and does not change.
fn kept<'a>(volume: &Volume, before: Option<&'a Volumes>) -> Option<&'a Ready> {
    before?.get(&volume.name).filter(|_| !is_payload(volume))
}

/// Whether the pod has volumes whose content comes from the API and may change.
pub fn has_payload(pod: &Pod) -> bool {
    spec::of(pod).volumes.iter().flatten().any(is_payload)
}

fn is_payload(volume: &Volume) -> bool {
    let Volume { config_map, secret, projected, downward_api, .. } = volume;
    config_map.is_some() || secret.is_some() || projected.is_some() || downward_api.is_some()
}

/// Where a volume of a kind lies.
pub fn directory(kubelet: &Kubelet, pod: &Pod, kind: &str, name: &str) -> PathBuf {
    kubelet.options.pod_dir(spec::uid(pod)).join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
}

async fn prepare_one(kubelet: &Kubelet, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<Ready, String> {
    let at = |kind: &str| directory(kubelet, pod, kind, &volume.name);
    if let Some(source) = &volume.host_path {
        let path = PathBuf::from(&source.path);
        host_path::check(&path, source.type_.as_deref().unwrap_or_default())?;
        return Ok(Ready { path, read_only: false });
    }
    if let Some(source) = &volume.empty_dir {
        let path = at("empty-dir");
        empty_dir(&path, source)?;
        ownership::apply_once(pod, &path).await?;
        return Ok(Ready { path, read_only: false });
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        return claim::prepare(kubelet, pod, &claim.claim_name, claim.read_only.unwrap_or(false)).await;
    }
    if volume.ephemeral.is_some() {
        let name = format!("{}-{}", spec::name(pod), volume.name);
        return claim::prepare(kubelet, pod, &name, false).await;
    }
    if is_payload(volume) {
        let (kind, memory, files) = projected::files(kubelet, pod, volume, facts).await?;
        let path = at(kind);
        make_directory(&path)?;
        if memory {
            mounts::tmpfs(&path, None).map_err(|e| format!("mounting a tmpfs at {}: {e}", path.display()))?;
        }
        payload::write(&path, &files).map_err(|e| format!("writing {}: {e}", path.display()))?;
        ownership::apply_payload(pod, &path)?;
        return Ok(Ready { path, read_only: true });
    }
    Err(format!("this kind of volume is not supported on this node ({})", kind_of(volume)))
}

/// The name of the volume's source, for errors.
fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().map(|o| o.keys().filter(|k| *k != "name").cloned().collect::<Vec<_>>());
    keys.filter(|k| !k.is_empty()).map_or_else(|| "none given".into(), |k| k.join(", "))
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), String> {
    make_directory(path)?;
    if source.medium.as_deref() == Some("Memory") {
        let size = source.size_limit.as_ref().map(quantity::value).filter(|v| *v > 0);
        return mounts::tmpfs(path, size.map(|s| s as u64))
            .map_err(|e| format!("mounting a tmpfs at {}: {e}", path.display()));
    }
    set_mode(path, 0o777)
}

/// Makes a directory and those above it.
pub fn make_directory(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|e| format!("making {}: {e}", path.display()))
}

/// Sets a mode in spite of the umask.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| format!("setting the mode of {}: {e}", path.display()))
}

/// Unmounts a pod's volumes and removes its directory. What is on the node itself (hostPath,
/// local volumes) is only unmounted, never removed: removal stops at mount points.
pub fn tear_down(pod_dir: &Path) -> std::io::Result<()> {
    if !pod_dir.exists() {
        return Ok(());
    }
    mounts::unmount_below(pod_dir)?;
    if mounts::list()?.iter().any(|m| m.point.starts_with(pod_dir)) {
        return Err(std::io::Error::other(format!("{} still has mounts below it", pod_dir.display())));
    }
    removal::all(pod_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_the_pods_own_is_set_up_once() {
        let ready = Ready { path: "/a".into(), read_only: false };
        let before = Volumes::from([("v".to_owned(), ready.clone())]);
        for (source, is_kept) in [
            (json!({"name": "v", "emptyDir": {}}), true),
            (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), true),
            (json!({"name": "v", "hostPath": {"path": "/h"}}), true),
            (json!({"name": "v", "configMap": {"name": "m"}}), false),
            (json!({"name": "v", "secret": {"secretName": "s"}}), false),
            (json!({"name": "v", "projected": {}}), false),
            (json!({"name": "v", "downwardAPI": {}}), false),
        ] {
            let mut volume: Volume = serde_json::from_value(source.clone()).unwrap();
            assert_eq!(kept(&volume, Some(&before)), is_kept.then_some(&ready), "{source}");
            assert_eq!(kept(&volume, None), None);
            volume.name = "new".to_owned();
            assert_eq!(kept(&volume, Some(&before)), None);
        }
    }
}
