//! What the runtime says of one pod: its sandboxes and containers, newest first.

use super::spec;
use crate::cri::{self, Cri, CriError};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// State of a container in the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
    /// The runtime cannot tell.
    Unknown,
}

/// A container in the runtime. Times are Unix nanoseconds, 0 for never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// Sandbox it belongs to.
    pub sandbox: String,
    /// State.
    pub state: State,
    /// When it was made.
    pub created_at: i64,
    /// When it was started.
    pub started_at: i64,
    /// When it ended.
    pub finished_at: i64,
    /// Exit code.
    pub exit_code: i32,
    /// Runtime's word for the end: Completed, Error, OOMKilled, StartError.
    pub reason: String,
    /// Runtime's message, or the container's last words.
    pub message: String,
    /// Image name as asked for.
    pub image: String,
    /// Digest reference of the image.
    pub image_ref: String,
    /// Hash annotation.
    pub hash: String,
    /// Restarts before this one.
    pub restarts: u32,
    /// Log file, relative to the pod's log directory or absolute.
    pub log_path: String,
    /// Memory limit and cpu figures that the runtime applies.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

/// A sandbox in the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Which try it is.
    pub attempt: u32,
    /// Runs.
    pub ready: bool,
    /// When it was made.
    pub created_at: i64,
    /// Its addresses; empty with the node's network.
    pub ips: Vec<IpAddr>,
    /// Uses the node's network.
    pub host_network: bool,
}

/// All that the runtime knows of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, newest first.
    pub containers: Vec<Container>,
}

impl Observed {
    /// The newest container of that name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container of that name in that sandbox.
    pub fn latest_in(&self, name: &str, sandbox: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name && c.sandbox == sandbox)
    }

    /// The one before the newest of that name.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// The sandbox in use: the newest, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// Containers that run or may run.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| matches!(c.state, State::Running | State::Unknown))
    }
}

fn state_of(number: i32) -> State {
    match cri::ContainerState::try_from(number) {
        Ok(cri::ContainerState::Created) => State::Created,
        Ok(cri::ContainerState::Running) => State::Running,
        Ok(cri::ContainerState::Exited) => State::Exited,
        _ => State::Unknown,
    }
}

/// Asks the runtime about one pod.
pub async fn observe(cri: &Cri, uid: &str) -> Result<Observed, CriError> {
    let selector = BTreeMap::from([(spec::POD_UID.to_string(), uid.to_string())]);
    let filter = cri::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let mut sandboxes = Vec::new();
    for sandbox in cri.list_pod_sandbox(Some(filter)).await? {
        match cri.pod_sandbox_status(&sandbox.id, false).await {
            Ok(answer) => sandboxes.extend(answer.status.map(from_sandbox_status)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
    let mut containers = Vec::new();
    for listed in cri.list_containers(Some(filter)).await? {
        match cri.container_status(&listed.id).await {
            Ok(status) => containers.push(from_container_status(status, listed.pod_sandbox_id)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
    containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.restarts)));
    Ok(Observed { sandboxes, containers })
}

fn from_sandbox_status(status: cri::PodSandboxStatus) -> Sandbox {
    let network = status.network.unwrap_or_default();
    let texts = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    let mode = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).map(|o| o.network);
    Sandbox {
        id: status.id,
        attempt: status.metadata.map_or(0, |m| m.attempt),
        ready: status.state == cri::PodSandboxState::Ready as i32,
        created_at: status.created_at,
        ips: texts.filter_map(|text| text.parse().ok()).collect(),
        host_network: mode == Some(cri::NamespaceMode::Node as i32),
    }
}

fn from_container_status(status: cri::ContainerStatus, sandbox: String) -> Container {
    let metadata = status.metadata.clone().unwrap_or_default();
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let state = state_of(status.state);
    let message = match state {
        State::Exited => last_words(&status, &annotation(spec::MESSAGE_PATH), &annotation(spec::MESSAGE_POLICY)),
        _ => status.message.clone(),
    };
    Container {
        name: status.labels.get(spec::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        sandbox,
        state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message,
        image: status.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
        image_ref: if status.image_ref.is_empty() { status.image_id.clone() } else { status.image_ref.clone() },
        hash: annotation(spec::HASH),
        restarts: annotation(spec::RESTART_COUNT).parse().unwrap_or(metadata.attempt),
        log_path: status.log_path.clone(),
        user: status.user.and_then(|u| u.linux).map(|u| (u.uid, u.gid, u.supplemental_groups)),
        id: status.id,
    }
}

/// Most of a container's last words that go into its status.
const WORDS_LIMIT: usize = 4096;

/// What an ended container left in its termination message file; else, if it asked for that and
/// failed, the end of its log; before either the runtime's own message.
fn last_words(status: &cri::ContainerStatus, path: &str, policy: &str) -> String {
    let mount = status.mounts.iter().find(|m| !path.is_empty() && m.container_path == path);
    let words = mount.map(|m| read_end(&m.host_path, WORDS_LIMIT)).unwrap_or_default();
    let words = if words.is_empty() && policy == "FallbackToLogsOnError" && status.exit_code != 0 {
        crate::logs::read::last_lines(&status.log_path, 80, 2048)
    } else {
        words
    };
    match (status.message.is_empty(), words.is_empty()) {
        (true, _) => words,
        (false, true) => status.message.clone(),
        (false, false) => format!("{}: {words}", status.message),
    }
}

/// Of a file; a pod may have put something else in its place, as a pipe, which is never waited for.
fn read_end(path: &str, limit: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::fs::OpenOptionsExt;
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let Ok(mut file) = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) else {
        return String::new();
    };
    let Some(length) = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len()) else { return String::new() };
    if length > limit as u64 && file.seek(SeekFrom::End(-(limit as i64))).is_err() {
        return String::new();
    }
    let mut bytes = Vec::new();
    if file.take(limit as u64).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode};
    use std::io::Write;

    #[test]
    fn last_words_are_a_files_end_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("file"), "0123456789").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        rustix::fs::mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(read_end(&path("pipe"), 4), "", "nobody writes to it");
        let mut pipe = std::fs::OpenOptions::new().read(true).write(true).open(path("pipe")).unwrap();
        pipe.write_all(b"words").unwrap();
        for (name, words) in [("file", "6789"), ("link", ""), ("pipe", ""), ("", ""), ("none", "")] {
            assert_eq!(read_end(&path(name), 4), words, "{name}");
        }
    }
}
