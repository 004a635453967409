//! `/stats/summary`: what node, pods and containers use, from their cgroups.

use super::Answer;
use super::routes::json;
use crate::cgroups::{Cgroups, Figures, figures};
use crate::kubelet::Kubelet;
use crate::pods::observed::{self, State};
use crate::pods::spec;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json as value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

/// A container's figures.
pub struct ContainerFigures {
    /// Name in the pod.
    pub name: String,
    /// Unix nanoseconds.
    pub started_at: i64,
    /// Its cgroup.
    pub path: PathBuf,
    /// What it uses.
    pub figures: Figures,
}

/// Figures of a pod's running containers.
pub async fn containers(kubelet: &Kubelet, pod: &Pod) -> Vec<ContainerFigures> {
    let (Some(cri), Some(cgroups)) = (&kubelet.cri, &kubelet.cgroups) else { return Vec::new() };
    let Ok(seen) = observed::observe(cri, spec::uid(pod)).await else { return Vec::new() };
    let parent = cgroups.path(&Cgroups::pod_path(pod));
    let running = seen.containers.iter().filter(|c| c.state == State::Running);
    running
        .filter_map(|c| {
            let path = parent.join(&c.id);
            let figures = figures(&path).ok()?;
            Some(ContainerFigures { name: c.name.clone(), started_at: c.started_at, path, figures })
        })
        .collect()
}

/// Cpu figures of the last look by cgroup, for rates.
static LAST: LazyLock<Mutex<HashMap<PathBuf, (u64, Instant)>>> = LazyLock::new(Mutex::default);

/// Nanocores since the last look at this cgroup.
fn rate(path: &Path, cpu_ns: u64) -> u64 {
    let mut last = crate::lock(&LAST);
    if last.len() > 1024 {
        last.clear();
    }
    let now = Instant::now();
    match last.get(path) {
        Some((before, at)) if at.elapsed().as_millis() >= 500 => {
            let elapsed = at.elapsed().as_nanos().max(1);
            let used = u128::from(cpu_ns.saturating_sub(*before));
            last.insert(path.to_path_buf(), (cpu_ns, now));
            (used * 1_000_000_000 / elapsed) as u64
        }
        Some(_) => 0,
        None => {
            last.insert(path.to_path_buf(), (cpu_ns, now));
            0
        }
    }
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
    let mut pods = Vec::new();
    for pod in kubelet.pods.list() {
        pods.push(pod_summary(kubelet, &pod, &now).await);
    }
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

async fn pod_summary(kubelet: &Kubelet, pod: &Pod, now: &str) -> Value {
    let mut list = Vec::new();
    for container in containers(kubelet, pod).await {
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
