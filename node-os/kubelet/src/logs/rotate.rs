//! Rotation of containers' logs: a file that has grown too large is moved away and the runtime
//! told to begin a new one; the oldest go.

use crate::cri::{ContainerFilter, ContainerState, ContainerStateValue, Cri};
use crate::kubelet::Kubelet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a log file, and how many files a container keeps.
const MAX_SIZE: u64 = 10 << 20;
const MAX_FILES: usize = 3;
const PERIOD: Duration = Duration::from_secs(10);

/// Looks at all running containers' logs from time to time.
pub async fn run(kubelet: Arc<Kubelet>, cri: Cri) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let state = Some(ContainerStateValue { state: ContainerState::Running as i32 });
        let filter = ContainerFilter { state, ..Default::default() };
        let Ok(containers) = cri.list_containers(Some(filter)).await else { continue };
        for container in containers {
            let Some(path) = log_path(&kubelet, &container) else { continue };
            if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_SIZE)
                && let Err(error) = rotate(&cri, &container.id, &path).await
            {
                tracing::warn!("rotating {}: {error}", path.display());
            }
        }
    }
}

/// A container's log by its labels and annotations.
fn log_path(kubelet: &Kubelet, container: &crate::cri::Container) -> Option<PathBuf> {
    use crate::pods::spec;
    let label = |key: &str| container.labels.get(key);
    let directory =
        kubelet.options.pod_log_dir(label(spec::POD_NAMESPACE)?, label(spec::POD_NAME)?, label(spec::POD_UID)?);
    let restarts = container.annotations.get(spec::RESTART_COUNT)?.parse().ok()?;
    Some(directory.join(crate::container::config::log_path(label(spec::CONTAINER_NAME)?, restarts)))
}

async fn rotate(cri: &Cri, id: &str, path: &Path) -> anyhow::Result<()> {
    let stamp = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut moved = path.as_os_str().to_owned();
    moved.push(format!(".{stamp}"));
    std::fs::rename(path, &moved)?;
    if let Err(error) = cri.reopen_log(id).await {
        // Without a new file the container would go on writing to the moved one.
        std::fs::rename(&moved, path)?;
        return Err(error.into());
    }
    for old in surplus(crate::logs::read::history(path), MAX_FILES) {
        std::fs::remove_file(old)?;
    }
    Ok(())
}

/// The oldest files beyond what is kept; the last of `files` is the current one.
fn surplus(mut files: Vec<PathBuf>, keep: usize) -> Vec<PathBuf> {
    let count = files.len().saturating_sub(keep);
    files.truncate(count);
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go() {
        let files: Vec<PathBuf> = ["a", "b", "c", "d"].iter().map(PathBuf::from).collect();
        assert_eq!(surplus(files.clone(), 3), [PathBuf::from("a")]);
        assert!(surplus(files, 9).is_empty());
    }
}
