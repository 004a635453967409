//! What the runtime is asked for as a pod's sandbox. Pure.

use super::{dns, security};
use crate::cri::{DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol};
use crate::pods::spec;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::path::Path;

/// What of the node goes into a sandbox.
pub struct Surroundings<'a> {
    /// Cluster domain.
    pub domain: &'a str,
    /// Resolver settings.
    pub dns: DnsConfig,
    /// Where the pod's logs go.
    pub log_directory: &'a Path,
    /// The pod's cgroup, below the cgroup root.
    pub cgroup: Option<String>,
    /// Where seccomp profiles lie.
    pub seccomp_root: &'a Path,
}

/// The sandbox of this attempt.
pub fn config(pod: &Pod, attempt: u32, around: &Surroundings) -> PodSandboxConfig {
    let mut labels: BTreeMap<String, String> = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(pod_labels(pod));
    let sysctls = spec::of(pod).security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: spec::name(pod).into(),
            uid: spec::uid(pod).into(),
            namespace: spec::namespace(pod).into(),
            attempt,
        }),
        hostname: dns::sandbox_hostname(pod, around.domain),
        log_directory: around.log_directory.to_string_lossy().into_owned(),
        dns_config: Some(around.dns.clone()),
        port_mappings: port_mappings(pod),
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: around.cgroup.clone().unwrap_or_default(),
            security_context: Some(security::sandbox(pod, around.seccomp_root)),
            sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
            ..Default::default()
        }),
    }
}

/// The labels by which a pod's sandboxes and containers are found again.
pub fn pod_labels(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([
        (spec::POD_NAME.to_string(), spec::name(pod).to_string()),
        (spec::POD_NAMESPACE.to_string(), spec::namespace(pod).to_string()),
        (spec::POD_UID.to_string(), spec::uid(pod).to_string()),
    ])
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if spec::host_network(pod) {
        return Vec::new();
    }
    let sidecars = spec::inits(pod).iter().filter(|c| spec::is_sidecar(c));
    let ports = spec::mains(pod).iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
