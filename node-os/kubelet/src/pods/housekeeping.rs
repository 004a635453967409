//! What is left of pods that nobody knows any more: sandboxes, volumes, cgroups, logs.

use super::spec;
use crate::cri::Cri;
use crate::kubelet::Kubelet;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(30);

/// Looks for what is left, once the API's pods are known.
pub async fn run(kubelet: Arc<Kubelet>, cri: Cri) {
    loop {
        if kubelet.pods.synced_at().is_some_and(|at| at.elapsed() > Duration::from_secs(5)) {
            if let Err(error) = sweep(&kubelet, &cri).await {
                tracing::warn!("cleaning up after unknown pods: {error:#}");
            }
            tokio::time::sleep(PERIOD).await;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn sweep(kubelet: &Arc<Kubelet>, cri: &Cri) -> anyhow::Result<()> {
    let mut still_there = BTreeSet::new();
    for sandbox in cri.list_pod_sandbox(None).await? {
        let Some(uid) = sandbox.labels.get(spec::POD_UID).filter(|uid| !kubelet.pods.has(uid)) else { continue };
        let name = sandbox.labels.get(spec::POD_NAME).map(String::as_str).unwrap_or_default();
        tracing::info!("ending pod {name} ({uid}), which the API does not have");
        if let Err(error) = end_sandbox(kubelet, uid, cri, &sandbox.id).await {
            tracing::warn!("ending pod {name}: {error:#}");
            still_there.insert(uid.clone());
        }
    }
    let unknown = |uid: &str| !kubelet.pods.has(uid) && !still_there.contains(uid);
    for uid in directories(&kubelet.options.flags.root_dir.join("pods")).into_iter().filter(|u| unknown(u)) {
        let path = kubelet.options.pod_dir(&uid);
        tokio::task::spawn_blocking(move || crate::volumes::tear_down(&path)).await??;
    }
    for name in directories(&kubelet.options.flags.pod_logs_dir) {
        if name.rsplit('_').next().is_some_and(unknown) {
            std::fs::remove_dir_all(kubelet.options.flags.pod_logs_dir.join(&name))?;
        }
    }
    if let Some(cgroups) = kubelet.cgroups.clone() {
        for uid in cgroups.pods().into_iter().filter(|u| unknown(u)) {
            let cgroups = cgroups.clone();
            tokio::task::spawn_blocking(move || cgroups.remove(&uid)).await??;
        }
    }
    sweep_links(&kubelet.options.container_log_dir());
    Ok(())
}

async fn end_sandbox(kubelet: &Kubelet, uid: &str, cri: &Cri, id: &str) -> anyhow::Result<()> {
    let filter = crate::cri::ContainerFilter { pod_sandbox_id: id.into(), ..Default::default() };
    for container in cri.list_containers(Some(filter)).await? {
        if container.state == crate::cri::ContainerState::Running as i32 {
            let grace = container.annotations.get(spec::GRACE).and_then(|g| g.parse().ok()).unwrap_or(30);
            cri.stop_container(&container.id, grace).await?;
        }
    }
    kubelet.metadata.close(uid)?;
    cri.stop_pod_sandbox(id).await?;
    Ok(cri.remove_pod_sandbox(id).await?)
}

fn directories(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Removes links whose log is gone.
pub fn sweep_links(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.path().exists() {
            // A link that another task removed first is gone, too.
            std::fs::remove_file(entry.path()).ok();
        }
    }
}
