//! Resources of a container, in the runtime's units. Pure.

use crate::cri::LinuxContainerResources;
use crate::pods::qos;
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;

/// The kernel's scheduling period.
pub const PERIOD: i64 = 100_000;

/// cpu.shares of so many thousandths of a cpu.
pub fn shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(2, 262_144)
}

/// Quota in a period of so many thousandths of a cpu.
pub fn quota(milli: i64) -> i64 {
    (milli * PERIOD / 1000).max(1000)
}

/// What the runtime shall apply to a container.
pub fn of(pod: &Pod, container: &Container, memory_capacity: i64, cgroup_v2: bool) -> LinuxContainerResources {
    let request = qos::request(container, "cpu").map_or(0, quantity::milli);
    let limit = qos::limit(container, "cpu").map_or(0, quantity::milli);
    let memory = qos::limit(container, "memory").map_or(0, quantity::value);
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: if limit > 0 { quota(limit) } else { 0 },
        cpu_shares: shares(request),
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: memory,
        oom_score_adj: qos::oom_score_adj(pod, container, memory_capacity),
        // All of a container's processes go together when its memory runs out.
        unified: if cgroup_v2 {
            BTreeMap::from([("memory.oom.group".to_string(), "1".to_string())])
        } else {
            BTreeMap::new()
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (milli, expected) in [(0, 2), (100, 102), (1000, 1024)] {
            assert_eq!(shares(milli), expected);
        }
        for (milli, expected) in [(1, 1000), (500, 50_000), (2000, 200_000)] {
            assert_eq!(quota(milli), expected);
        }
    }
}
