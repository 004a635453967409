//! What the runtime is asked for as a container. Pure.

use super::expand::expand;
use super::{resources, sandbox, security};
use crate::cri::{ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig, Mount};
use crate::pods::spec;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;
use std::path::Path;

/// What of a container is not in its spec.
pub struct Parts<'a> {
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Image as the runtime knows it.
    pub image_ref: &'a str,
    /// Restarts before this one.
    pub restarts: u32,
    /// Container whose processes it shall see (ephemeral containers).
    pub target: Option<&'a str>,
    /// User of the image.
    pub image_user: &'a str,
    /// Memory of the node, for the kill order.
    pub memory_capacity: i64,
    /// The node has cgroup v2.
    pub cgroup_v2: bool,
    /// Where seccomp profiles lie.
    pub seccomp_root: &'a Path,
}

/// Log file of a container's n-th run, below the pod's log directory.
pub fn log_path(container: &str, restarts: u32) -> String {
    format!("{container}/{restarts}.log")
}

/// The container.
pub fn config(pod: &Pod, container: &Container, parts: Parts) -> ContainerConfig {
    let lookup = |name: &str| parts.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, lookup)).collect()
    };
    let mut labels = sandbox::pod_labels(pod);
    labels.insert(spec::CONTAINER_NAME.into(), container.name.clone());
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: parts.restarts }),
        image: Some(ImageSpec {
            image: parts.image_ref.into(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: parts.env.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: parts.mounts,
        devices: parts.devices,
        labels,
        annotations: annotations(pod, container, parts.restarts),
        log_path: log_path(&container.name, parts.restarts),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::of(pod, container, parts.memory_capacity, parts.cgroup_v2)),
            security_context: Some(security::container(
                pod,
                container,
                parts.target,
                parts.image_user,
                parts.seccomp_root,
            )),
        }),
    }
}

/// Where a container leaves its last words.
pub fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}

fn annotations(pod: &Pod, container: &Container, restarts: u32) -> BTreeMap<String, String> {
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    BTreeMap::from([
        (spec::HASH.to_string(), spec::hash(container)),
        (spec::RESTART_COUNT.to_string(), restarts.to_string()),
        (spec::MESSAGE_PATH.to_string(), message_path(container).to_string()),
        (spec::MESSAGE_POLICY.to_string(), policy.to_string()),
        (spec::GRACE.to_string(), spec::grace(pod).to_string()),
    ])
}
