//! Security settings of containers and sandboxes, in the runtime's terms. Pure.

use crate::cri::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    ProfileType, SecurityProfile,
};
use crate::pods::spec;
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};
use std::path::Path;

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The namespaces of a pod; `target` is the container whose processes an ephemeral one shall see.
pub fn namespaces(pod: &Pod, target: Option<&str>) -> NamespaceOption {
    let spec = spec::of(pod);
    let node_or = |node: Option<bool>, other: NamespaceMode| {
        if node.unwrap_or(false) { NamespaceMode::Node } else { other }
    };
    let own_pid =
        if spec.share_process_namespace.unwrap_or(false) { NamespaceMode::Pod } else { NamespaceMode::Container };
    let pid = if target.is_some() { NamespaceMode::Target } else { node_or(spec.host_pid, own_pid) };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod) as i32,
        pid: pid as i32,
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod) as i32,
        target_id: target.unwrap_or_default().to_string(),
    }
}

/// Security of the sandbox itself.
pub fn sandbox(pod: &Pod, seccomp_root: &Path) -> LinuxSandboxSecurityContext {
    let empty = PodSecurityContext::default();
    let context = spec::of(pod).security_context.as_ref().unwrap_or(&empty);
    let privileged = spec::inits(pod)
        .iter()
        .chain(spec::mains(pod))
        .any(|c| c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        run_as_user: context.run_as_user.map(|value| Int64Value { value }),
        run_as_group: context.run_as_group.filter(|_| context.run_as_user.is_some()).map(|value| Int64Value { value }),
        readonly_rootfs: true,
        supplemental_groups: groups(context),
        privileged,
        // The pause process needs nothing beyond the runtime's default profile.
        seccomp: Some(profile(context.seccomp_profile.as_ref(), seccomp_root, ProfileType::RuntimeDefault)),
    }
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context.fs_group.iter().chain(context.supplemental_groups.iter().flatten()).copied().collect()
}

fn profile(wish: Option<&SeccompProfile>, root: &Path, default: ProfileType) -> SecurityProfile {
    let (kind, file) = match wish.map(|w| w.type_.as_str()) {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Unconfined") => (ProfileType::Unconfined, String::new()),
        Some("Localhost") => {
            let name = wish.and_then(|w| w.localhost_profile.as_deref()).unwrap_or_default();
            (ProfileType::Localhost, root.join(name).to_string_lossy().into_owned())
        }
        _ => (default, String::new()),
    };
    SecurityProfile { profile_type: kind as i32, localhost_ref: file }
}

/// The user a container runs as by its spec; none: the image says.
pub fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref().and_then(|s| s.run_as_user);
    own.or_else(|| spec::of(pod).security_context.as_ref().and_then(|s| s.run_as_user))
}

/// Refuses a container that must not be root and would be.
pub fn check_non_root(
    pod: &Pod,
    container: &Container,
    image_uid: Option<i64>,
    image_user: &str,
) -> Result<(), String> {
    let own = container.security_context.as_ref().and_then(|s| s.run_as_non_root);
    let wanted = own.or_else(|| spec::of(pod).security_context.as_ref().and_then(|s| s.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        spec::name(pod),
        spec::namespace(pod),
        spec::uid(pod),
        container.name
    );
    match (run_as_user(pod, container), image_uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_)) => Ok(()),
        (None, None) if !image_user.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {place}"
        )),
        (None, None) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
    }
}

/// Security of a container.
pub fn container(
    pod: &Pod,
    container: &Container,
    target: Option<&str>,
    image_user: &str,
    seccomp_root: &Path,
) -> LinuxContainerSecurityContext {
    let (empty, empty_pod) = (SecurityContext::default(), PodSecurityContext::default());
    let own = container.security_context.as_ref().unwrap_or(&empty);
    let whole = spec::of(pod).security_context.as_ref().unwrap_or(&empty_pod);
    let privileged = own.privileged.unwrap_or(false);
    let user = run_as_user(pod, container);
    let group = own.run_as_group.or(whole.run_as_group);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| p.to_string()).collect() };
    let seccomp = if privileged {
        SecurityProfile { profile_type: ProfileType::Unconfined as i32, localhost_ref: String::new() }
    } else {
        let wish = own.seccomp_profile.as_ref().or(whole.seccomp_profile.as_ref());
        profile(wish, seccomp_root, ProfileType::Unconfined)
    };
    let _ = image_user;
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: own.capabilities.as_ref().and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: own.capabilities.as_ref().and_then(|c| c.drop.clone()).unwrap_or_default(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, target)),
        run_as_user: user.map(|value| Int64Value { value }),
        // The runtime takes a group only together with a user.
        run_as_group: group.filter(|_| user.is_some()).map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(whole),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        serde_yaml_ng::from_str(&format!("{{metadata: {{name: p, namespace: n, uid: u}}, spec: {spec}}}")).unwrap()
    }

    #[test]
    fn namespaces_follow_the_spec() {
        for (spec, target, expected) in [
            ("{containers: []}", None, (0, 1, 0)),
            ("{hostNetwork: true, hostPID: true, hostIPC: true, containers: []}", None, (2, 2, 2)),
            ("{shareProcessNamespace: true, containers: []}", None, (0, 0, 0)),
            ("{containers: []}", Some("abc"), (0, 3, 0)),
        ] {
            let options = namespaces(&pod(spec), target);
            assert_eq!((options.network, options.pid, options.ipc), expected, "{spec}");
        }
    }

    #[test]
    fn non_root_is_checked() {
        for (spec, uid, user, fine) in [
            ("{containers: [{name: a}]}", Some(0), "", true),
            ("{securityContext: {runAsNonRoot: true}, containers: [{name: a}]}", Some(0), "", false),
            ("{securityContext: {runAsNonRoot: true}, containers: [{name: a}]}", Some(7), "", true),
            ("{securityContext: {runAsNonRoot: true}, containers: [{name: a}]}", None, "web", false),
            ("{securityContext: {runAsNonRoot: true, runAsUser: 5}, containers: [{name: a}]}", Some(0), "", true),
            ("{securityContext: {runAsNonRoot: true, runAsUser: 0}, containers: [{name: a}]}", Some(7), "", false),
        ] {
            let pod = pod(spec);
            let result = check_non_root(&pod, &spec::mains(&pod)[0], uid, user);
            assert_eq!(result.is_ok(), fine, "{spec} {uid:?} {user} {result:?}");
        }
    }
}
