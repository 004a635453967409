//! The Node object from facts and settings. Pure.

use super::Pressure;
use super::facts::Facts;
use crate::options::Options;
use crate::quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::BTreeMap;

/// Images that the status lists.
const MAX_IMAGES: usize = 50;

/// Memory below which pods are evicted: a fixed amount, less on small machines.
pub fn eviction_memory(capacity: i64) -> i64 {
    (capacity / 20).min(100 << 20)
}

/// All that the machine has.
pub fn capacity(facts: &Facts, options: &Options) -> BTreeMap<String, Quantity> {
    let pods = if options.runtime.is_some() { options.flags.max_pods } else { 0 };
    BTreeMap::from([
        ("cpu".to_string(), Quantity(facts.cpus.to_string())),
        ("memory".to_string(), quantity::from_bytes_ki(facts.memory as i64)),
        ("ephemeral-storage".to_string(), quantity::from_bytes_ki(facts.disk as i64)),
        ("hugepages-1Gi".to_string(), Quantity("0".into())),
        ("hugepages-2Mi".to_string(), Quantity("0".into())),
        ("pods".to_string(), Quantity(pods.to_string())),
    ])
}

/// What pods may have: capacity less what is reserved and what eviction keeps free.
pub fn allocatable(capacity: &BTreeMap<String, Quantity>, options: &Options) -> BTreeMap<String, Quantity> {
    let reserved = |name: &str| options.reserved.get(name).and_then(|q| quantity::parse_milli(q)).unwrap_or(0) as i64;
    let mut result = capacity.clone();
    let of = |name: &str| capacity.get(name).map_or(0, quantity::milli);
    result.insert("cpu".into(), quantity::from_milli((of("cpu") - reserved("cpu")).max(0)));
    let memory = capacity.get("memory").map_or(0, quantity::value);
    let memory = memory - reserved("memory") / 1000 - eviction_memory(memory);
    result.insert("memory".into(), quantity::from_bytes_ki(memory.max(0)));
    let disk = capacity.get("ephemeral-storage").map_or(0, quantity::value);
    let disk = disk - disk / 10 - reserved("ephemeral-storage") / 1000;
    result.insert("ephemeral-storage".into(), Quantity(disk.max(0).to_string()));
    result
}

/// The labels that the kubelet gives its node.
pub fn labels(facts: &Facts, options: &Options) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".to_string());
        labels.insert(format!("{prefix}/arch"), facts.architecture.clone());
    }
    labels.insert("kubernetes.io/hostname".into(), options.node_name.clone());
    labels.extend(options.labels.clone());
    labels
}

/// The Node as it is registered.
pub fn node(options: &Options, labels: &BTreeMap<String, String>, status: NodeStatus) -> Node {
    let taints: Vec<Taint> = options
        .taints
        .iter()
        .map(|t| Taint {
            key: t.key.clone(),
            value: (!t.value.is_empty()).then(|| t.value.clone()),
            effect: t.effect.clone(),
            ..Default::default()
        })
        .collect();
    Node {
        metadata: ObjectMeta {
            name: Some(options.node_name.clone()),
            labels: Some(labels.clone()),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            provider_id: options.provider_id.clone(),
            taints: (!taints.is_empty()).then_some(taints),
            ..Default::default()
        }),
        status: Some(status),
    }
}

/// What changes from look to look.
pub struct Look {
    /// Why the node is not ready.
    pub troubles: Vec<String>,
    /// Signals of pressure.
    pub pressure: Pressure,
    /// Images of the runtime.
    pub images: Vec<crate::cri::Image>,
    /// Name and version of the runtime.
    pub runtime_version: String,
    /// The clock.
    pub now: Timestamp,
}

/// InternalIP, ExternalIP, Hostname, in the order in which upstream lists them.
fn addresses(options: &Options) -> Vec<NodeAddress> {
    let of = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    let internal = options.node_ips.iter().map(|ip| of("InternalIP", ip.to_string()));
    let external = options.external_ips.iter().map(|ip| of("ExternalIP", ip.to_string()));
    internal.chain(external).chain([of("Hostname", options.node_name.clone())]).collect()
}

/// The status; conditions keep their transition times where they do not change.
pub fn status(
    options: &Options,
    facts: &Facts,
    capacity: &BTreeMap<String, Quantity>,
    allocatable: &BTreeMap<String, Quantity>,
    look: Look,
    old: Option<&NodeStatus>,
) -> NodeStatus {
    let addresses = addresses(options);
    let no_runtime = options.runtime.is_none();
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(capacity.clone()),
        allocatable: Some(allocatable.clone()),
        conditions: Some(conditions(&look, old)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(options.flags.port) }),
        }),
        images: Some(images(look.images)),
        node_info: Some(NodeSystemInfo {
            architecture: facts.architecture.clone(),
            boot_id: facts.boot_id.clone(),
            container_runtime_version: if no_runtime { "none://".into() } else { look.runtime_version },
            kernel_version: facts.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: crate::VERSION.into(),
            machine_id: facts.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: facts.os_image.clone(),
            system_uuid: facts.system_uuid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn images(list: Vec<crate::cri::Image>) -> Vec<ContainerImage> {
    let mut list: Vec<ContainerImage> = list
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
            size_bytes: Some(image.size as i64),
        })
        .filter(|i| i.names.as_ref().is_some_and(|n| !n.is_empty()))
        .collect();
    list.sort_by(|a, b| (b.size_bytes, &a.names).cmp(&(a.size_bytes, &b.names)));
    list.truncate(MAX_IMAGES);
    list
}

fn conditions(look: &Look, old: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let pressure = |on: bool, kind: &str, bad: (&str, &str), good: (&str, &str)| {
        let (reason, message) = if on { bad } else { good };
        (kind.to_string(), on, reason.to_string(), message.to_string())
    };
    let ready = look.troubles.is_empty();
    let all = [
        pressure(
            look.pressure.memory,
            "MemoryPressure",
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            look.pressure.disk,
            "DiskPressure",
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            look.pressure.pids,
            "PIDPressure",
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        (
            "Ready".to_string(),
            ready,
            if ready { "KubeletReady" } else { "KubeletNotReady" }.to_string(),
            if ready { "kubelet is posting ready status".to_string() } else { look.troubles.join(", ") },
        ),
    ];
    all.into_iter()
        .map(|(type_, on, reason, message)| {
            let status = if on { "True" } else { "False" };
            let before = old.and_then(|o| o.conditions.as_deref()).unwrap_or_default();
            let same = before.iter().find(|c| c.type_ == type_ && c.status == status);
            let since = same.and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_,
                status: status.into(),
                reason: Some(reason),
                message: Some(message),
                last_heartbeat_time: Some(Time::from(look.now)),
                last_transition_time: Some(since.unwrap_or(Time::from(look.now))),
            }
        })
        .collect()
}

/// Whether two statuses say the same, heartbeats aside.
pub fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    strip(a) == strip(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn options(extra: &[&str]) -> Options {
        let mut args =
            vec!["kubelet", "--hostname-override=w1", "--node-file=/nonexistent", "--cluster-file=/nonexistent"];
        args.extend(extra);
        Options::load(args.into_iter().map(OsString::from).collect()).unwrap().unwrap()
    }

    fn facts() -> Facts {
        Facts { cpus: 2, memory: 1 << 30, disk: 10 << 30, architecture: "amd64".into(), ..Default::default() }
    }

    #[test]
    fn what_is_reserved_is_not_offered() {
        let options = options(&["--system-reserved=cpu=100m,memory=128Mi"]);
        let capacity = capacity(&facts(), &options);
        let allocatable = allocatable(&capacity, &options);
        assert_eq!(allocatable["cpu"].0, "1900m");
        let kept = (1 << 30) - (128 << 20) - (1 << 30) / 20;
        assert_eq!(quantity::value(&allocatable["memory"]), kept);
        assert_eq!(allocatable["pods"].0, "110");
    }

    #[test]
    fn addresses_are_told_by_kind() {
        let mut options = options(&["--node-ip=10.77.0.11"]);
        options.external_ips = vec!["203.0.113.9".parse().unwrap()];
        let shown: Vec<String> = addresses(&options).iter().map(|a| format!("{}={}", a.type_, a.address)).collect();
        assert_eq!(shown, ["InternalIP=10.77.0.11", "ExternalIP=203.0.113.9", "Hostname=w1"]);
    }

    #[test]
    fn a_node_without_runtime_offers_no_pods() {
        let options = options(&["--container-runtime-endpoint="]);
        assert_eq!(capacity(&facts(), &options)["pods"].0, "0");
    }

    #[test]
    fn conditions_keep_their_times() {
        let look = |troubles: &[&str], now: i64| Look {
            troubles: troubles.iter().map(|t| t.to_string()).collect(),
            pressure: Pressure::default(),
            images: vec![],
            runtime_version: String::new(),
            now: Timestamp::from_second(now).unwrap(),
        };
        let old = NodeStatus { conditions: Some(conditions(&look(&["x"], 1), None)), ..Default::default() };
        let new = conditions(&look(&[], 2), Some(&old));
        let times: Vec<i64> = new.iter().map(|c| c.last_transition_time.as_ref().unwrap().0.as_second()).collect();
        assert_eq!(times, [1, 1, 1, 2]);
        assert_eq!(new[3].reason.as_deref(), Some("KubeletReady"));
    }
}
