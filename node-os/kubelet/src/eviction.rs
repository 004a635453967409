//! Eviction: when memory or disk runs short, pods end, those that use more than they asked for first.

use crate::kubelet::Kubelet;
use crate::node::{Pressure, build, facts};
use crate::pods::status::Verdict;
use crate::pods::{qos, spec};
use crate::{cgroups, mounts};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(10);
/// A condition stays for this long after the pressure has gone.
const HOLD: Duration = Duration::from_secs(300);
/// Percent of the disk, of its inodes and of process ids that must stay free.
const DISK_PERCENT: u64 = 10;
const INODE_PERCENT: u64 = 5;
const PID_PERCENT: u64 = 10;

/// What is short, in the words of the pod's message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shortage {
    resource: &'static str,
    threshold: u64,
    available: u64,
}

/// Watches the signals until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>) {
    let (mut memory_at, mut disk_at, mut pids_at) = (None, None, None);
    loop {
        tokio::time::sleep(PERIOD).await;
        let memory = memory_shortage(&kubelet);
        let mut disk = disk_shortage(&kubelet);
        if disk.is_some()
            && let Some(images) = &kubelet.images
        {
            let root = kubelet.options.flags.root_dir.clone();
            if let Err(error) = crate::images::collect(images, &root, 0, 100 - DISK_PERCENT - 1).await {
                tracing::warn!("freeing images: {error}");
            }
            disk = disk_shortage(&kubelet);
        }
        let now = Instant::now();
        let pressure = Pressure {
            memory: held(&mut memory_at, memory.is_some(), now),
            disk: held(&mut disk_at, disk.is_some(), now),
            pids: held(&mut pids_at, pids_short(), now),
        };
        kubelet.node.set_pressure(pressure);
        if let Some(shortage) = memory.or(disk) {
            evict_one(&kubelet, &shortage);
        }
    }
}

/// Whether a signal is on, or was so recently.
fn held(since: &mut Option<Instant>, on: bool, now: Instant) -> bool {
    if on {
        *since = Some(now);
    }
    since.is_some_and(|at| now.duration_since(at) < HOLD)
}

fn memory_shortage(kubelet: &Kubelet) -> Option<Shortage> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let available = *facts::meminfo(&text).get("MemAvailable")?;
    // Pods' own limit leaves room for the system: this is the last resort before the kernel's killer.
    let threshold = build::eviction_memory(kubelet.node.memory_capacity()) as u64 / 2;
    (available < threshold).then_some(Shortage { resource: "memory", threshold, available })
}

fn disk_shortage(kubelet: &Kubelet) -> Option<Shortage> {
    let usage = mounts::usage(&kubelet.options.flags.root_dir).ok()?;
    let threshold = usage.capacity / 100 * DISK_PERCENT;
    if usage.available < threshold {
        return Some(Shortage { resource: "ephemeral-storage", threshold, available: usage.available });
    }
    let threshold = usage.inodes / 100 * INODE_PERCENT;
    (usage.inodes > 0 && usage.inodes_free < threshold).then_some(Shortage {
        resource: "inodes",
        threshold,
        available: usage.inodes_free,
    })
}

fn pids_short() -> bool {
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let running = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|t| t.split_whitespace().nth(3)?.split('/').nth(1)?.parse::<u64>().ok());
    match (number("/proc/sys/kernel/pid_max"), running) {
        (Some(max), Some(running)) => max.saturating_sub(running) < max / 100 * PID_PERCENT,
        _ => false,
    }
}

/// How a pod stands when one has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    within_request: bool,
    priority: i32,
    /// Bytes beyond the request, negated so that the largest comes first.
    beyond: i64,
}

fn rank(pod: &Pod, used: i64) -> Rank {
    let request = qos::pod_total(pod, "memory", false).unwrap_or(0) / 1000;
    Rank { within_request: used <= request, priority: spec::of(pod).priority.unwrap_or(0), beyond: request - used }
}

fn evict_one(kubelet: &Kubelet, shortage: &Shortage) {
    let memory = |pod: &Pod| {
        let path = kubelet.cgroups.as_ref().map(|c| c.path(&cgroups::Cgroups::pod_path(pod)));
        path.and_then(|p| cgroups::figures(&p).ok()).map_or(0, |f| f.working_set as i64)
    };
    let mut candidates: Vec<(Rank, Arc<Pod>)> = kubelet
        .pods
        .list()
        .into_iter()
        .filter(|p| !spec::is_static(p) && spec::of(p).priority.unwrap_or(0) < 2_000_000_000)
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .filter(|p| !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded")))
        .map(|p| (rank(&p, memory(&p)), p))
        .collect();
    candidates.sort_by_key(|(rank, _)| *rank);
    let Some((_, pod)) = candidates.into_iter().next() else { return };
    let message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        shortage.resource, shortage.threshold, shortage.available
    );
    let reference = crate::events::pod_reference(&pod, None);
    kubelet.events.warning(reference, "Evicted", message.clone());
    kubelet.pods.end(spec::uid(&pod), Verdict { reason: "Evicted".into(), message });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_beyond_their_request_go_first() {
        let pod = |request: &str, priority: i32| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "{{metadata: {{}}, spec: {{priority: {priority}, containers: [{{name: a, resources: {{requests: {{memory: {request}}}}}}}]}}}}"
            ))
            .unwrap()
        };
        let mut ranks = [
            ("within", rank(&pod("10Mi", 0), 5 << 20)),
            ("far beyond", rank(&pod("1Mi", 0), 50 << 20)),
            ("beyond", rank(&pod("1Mi", 0), 5 << 20)),
            ("important", rank(&pod("1Mi", 100), 90 << 20)),
        ];
        ranks.sort_by_key(|(_, r)| *r);
        assert_eq!(ranks.map(|(n, _)| n), ["far beyond", "beyond", "important", "within"]);
    }
}
