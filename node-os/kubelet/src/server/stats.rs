//! `/stats/summary`: what node, pods and containers use, from their cgroups.

use super::Answer;
use super::routes::json;
use crate::cgroups::{Cgroups, Figures, figures};
use crate::cri::{self, CriError};
use crate::kubelet::Kubelet;
use crate::pods::spec;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json as value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// A container's figures.
pub struct ContainerFigures {
    /// Name in the pod.
    pub name: String,
    /// When it was made, which is as good as its start; Unix nanoseconds.
    pub started_at: i64,
    /// Its cgroup.
    pub path: PathBuf,
    /// What it uses.
    pub figures: Figures,
}

/// Figures of all running containers, by their pod's uid; the runtime is asked once, however many there are.
pub async fn containers(kubelet: &Kubelet) -> Result<HashMap<String, Vec<ContainerFigures>>, CriError> {
    let (Some(cri), Some(cgroups)) = (&kubelet.cri, &kubelet.cgroups) else { return Ok(HashMap::new()) };
    let state = Some(cri::ContainerStateValue { state: cri::ContainerState::Running as i32 });
    let listed = cri.list_containers(Some(cri::ContainerFilter { state, ..Default::default() })).await?;
    let parents: HashMap<String, PathBuf> = kubelet
        .pods
        .list()
        .iter()
        .map(|pod| (spec::uid(pod).to_string(), cgroups.path(&Cgroups::pod_path(pod))))
        .collect();
    let mut all: HashMap<String, Vec<ContainerFigures>> = HashMap::new();
    for container in listed {
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        let (uid, name) = (label(spec::POD_UID), label(spec::CONTAINER_NAME));
        let Some(path) = parents.get(&uid).map(|parent| parent.join(&container.id)) else { continue };
        // One that ended meanwhile has no group any more.
        let Ok(figures) = figures(&path) else { continue };
        all.entry(uid).or_default().push(ContainerFigures { name, started_at: container.created_at, path, figures });
    }
    Ok(all)
}

/// What a cgroup had used at a look, and its rate then, in nanocores.
struct Look {
    cpu_ns: u64,
    at: Instant,
    rate: u64,
}

/// The last look at each cgroup, for rates.
static LAST: LazyLock<Mutex<HashMap<PathBuf, Look>>> = LazyLock::new(Mutex::default);
/// Over less than this a rate says little: who asks again sooner gets the last one.
const LEAST_WINDOW: Duration = Duration::from_millis(500);

/// Nanocores since the last look at this cgroup; 0 at the first.
fn rate(path: &Path, cpu_ns: u64) -> u64 {
    let mut last = crate::lock(&LAST);
    if last.len() > 1024 {
        last.clear();
    }
    let at = Instant::now();
    let rate = match last.get(path) {
        Some(before) if at.duration_since(before.at) < LEAST_WINDOW => return before.rate,
        Some(before) => {
            let used = u128::from(cpu_ns.saturating_sub(before.cpu_ns));
            (used * 1_000_000_000 / at.duration_since(before.at).as_nanos().max(1)) as u64
        }
        None => 0,
    };
    last.insert(path.to_path_buf(), Look { cpu_ns, at, rate });
    rate
}

fn cpu_and_memory(path: &Path, figures: &Figures, capacity: u64, now: &str) -> (Value, Value) {
    let cpu = value!({
        "time": now,
        "usageNanoCores": rate(path, figures.cpu_ns),
        "usageCoreNanoSeconds": figures.cpu_ns,
    });
    let memory = value!({
        "time": now,
        "availableBytes": capacity.saturating_sub(figures.working_set),
        "usageBytes": figures.memory,
        "workingSetBytes": figures.working_set,
        "rssBytes": figures.rss,
        "pageFaults": figures.faults,
        "majorPageFaults": figures.major_faults,
    });
    (cpu, memory)
}

fn time(nanoseconds: i64) -> String {
    Timestamp::from_second(nanoseconds / 1_000_000_000).unwrap_or_default().to_string()
}

/// The node's own figures.
pub fn node_figures(kubelet: &Kubelet) -> Figures {
    let mut node = figures(&kubelet.options.flags.cgroup_mount).unwrap_or_default();
    if node.memory == 0 {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let info = crate::node::facts::meminfo(&text);
        let of = |key: &str| info.get(key).copied().unwrap_or(0);
        node.memory = of("MemTotal").saturating_sub(of("MemFree"));
        node.working_set = of("MemTotal").saturating_sub(of("MemAvailable"));
    }
    node
}

/// The whole summary.
pub async fn summary(kubelet: &Kubelet) -> Answer {
    let now = Timestamp::now().to_string();
    let node = node_figures(kubelet);
    let capacity = kubelet.node.memory_capacity().max(0) as u64;
    let (cpu, memory) = cpu_and_memory(&kubelet.options.flags.cgroup_mount, &node, capacity, &now);
    let disk = crate::mounts::usage(&kubelet.options.flags.root_dir).unwrap_or_default();
    let fs = value!({
        "time": now,
        "availableBytes": disk.available,
        "capacityBytes": disk.capacity,
        "usedBytes": disk.capacity.saturating_sub(disk.available),
        "inodes": disk.inodes,
        "inodesFree": disk.inodes_free,
        "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
    });
    // A runtime that does not answer leaves its containers out, not the node.
    let mut running = containers(kubelet).await.unwrap_or_else(|error| {
        tracing::warn!("what containers use is not read: {error}");
        HashMap::new()
    });
    let mut summary = |pod: &Arc<Pod>| {
        let running = running.remove(spec::uid(pod)).unwrap_or_default();
        pod_summary(kubelet, pod, &running, &now)
    };
    let pods: Vec<Value> = kubelet.pods.list().iter().map(&mut summary).collect();
    json(&value!({
        "node": {
            "nodeName": kubelet.options.node_name,
            "startTime": now,
            "cpu": cpu,
            "memory": memory,
            "fs": fs,
            "runtime": { "imageFs": fs, "containerFs": fs },
            "rlimit": { "time": now },
        },
        "pods": pods,
    }))
}

fn pod_summary(kubelet: &Kubelet, pod: &Pod, running: &[ContainerFigures], now: &str) -> Value {
    let mut list = Vec::new();
    for container in running {
        let (cpu, memory) = cpu_and_memory(&container.path, &container.figures, 0, now);
        list.push(value!({
            "name": container.name, "startTime": time(container.started_at), "cpu": cpu, "memory": memory,
        }));
    }
    let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0.to_string());
    let mut summary = value!({
        "podRef": { "name": spec::name(pod), "namespace": spec::namespace(pod), "uid": spec::uid(pod) },
        "startTime": start.unwrap_or_else(|| now.to_string()),
        "containers": list,
    });
    let path = kubelet.cgroups.as_ref().map(|c| c.path(&Cgroups::pod_path(pod)));
    if let Some((path, figures)) = path.and_then(|p| figures(&p).ok().map(|f| (p, f))) {
        let (cpu, memory) = cpu_and_memory(&path, &figures, 0, now);
        summary["cpu"] = cpu;
        summary["memory"] = memory;
        summary["process_stats"] = value!({ "process_count": figures.pids });
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_reader_takes_no_rate_from_the_first() {
        let path = Path::new("/a-group-of-this-test");
        assert_eq!(rate(path, 1_000), 0, "nothing to compare with");
        crate::lock(&LAST).get_mut(path).unwrap().at -= Duration::from_secs(2);
        let first = rate(path, 4_000_001_000);
        assert!((1_500_000_000..=2_000_000_000).contains(&first), "{first}");
        assert_eq!(rate(path, 4_000_002_000), first);
    }
}
