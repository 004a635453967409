//! Questions about a pod's spec that several parts ask.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use std::hash::{Hash, Hasher};

/// Label of sandboxes and containers: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label of containers: the container's name in the pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: what of the container's spec cannot change while it runs.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container was started before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where the container leaves its last words, as it sees it.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: File or FallbackToLogsOnError.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the pod's grace, for containers whose pod the API no longer has.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation of pods: where the kubelet learnt of them.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation of static pods: hash of the manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation of the API's image of a static pod.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Which list of the spec a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to its end before the others (or along with them, if it restarts always).
    Init,
    /// The pod's purpose.
    Main,
    /// Added for debugging; never restarted.
    Ephemeral,
}

/// The pod's spec; an empty one if the API sent none.
pub fn of(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The pod's uid.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The pod's name.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod's namespace.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `namespace/name`, for logs.
pub fn full_name(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

/// Init containers.
pub fn inits(pod: &Pod) -> &[Container] {
    of(pod).init_containers.as_deref().unwrap_or_default()
}

/// Main containers.
pub fn mains(pod: &Pod) -> &[Container] {
    &of(pod).containers
}

/// Ephemeral containers, as containers.
pub fn ephemerals(pod: &Pod) -> Vec<(Container, Option<String>)> {
    of(pod).ephemeral_containers.iter().flatten().map(|e| (as_container(e), e.target_container_name.clone())).collect()
}

fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        resources: e.resources.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Default::default()
    }
}

/// Finds a container of any kind by name.
pub fn find(pod: &Pod, name: &str) -> Option<(Kind, Container)> {
    inits(pod)
        .iter()
        .map(|c| (Kind::Init, c))
        .chain(mains(pod).iter().map(|c| (Kind::Main, c)))
        .find(|(_, c)| c.name == name)
        .map(|(kind, c)| (kind, c.clone()))
        .or_else(|| ephemerals(pod).into_iter().find(|(c, _)| c.name == name).map(|(c, _)| (Kind::Ephemeral, c)))
}

/// An init container that runs along with the main ones.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The restart policy of the whole pod.
pub fn restart_policy(pod: &Pod) -> &str {
    of(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// The restart policy that holds for one container.
pub fn restart_policy_of<'a>(pod: &'a Pod, container: &'a Container) -> &'a str {
    container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod))
}

/// Whether the pod shares the node's network.
pub fn host_network(pod: &Pod) -> bool {
    of(pod).host_network.unwrap_or(false)
}

/// The pod's wish how long it may take to end.
pub fn grace(pod: &Pod) -> i64 {
    of(pod).termination_grace_period_seconds.unwrap_or(30).max(1)
}

/// A pod from a manifest on this node.
pub fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|a| a.get(CONFIG_SOURCE));
    source.is_some_and(|s| s != "api") && !is_mirror(pod)
}

/// The API's image of a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CONFIG_MIRROR))
}

/// What of a container's spec a running container cannot follow: a change means a new container.
pub fn hash(container: &Container) -> String {
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    container.name.hash(&mut hasher);
    container.image.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}
