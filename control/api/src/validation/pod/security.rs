//! Security contexts, and the annotations that came before them.

use crate::validation::at::{At, Errors, text_at};
use std::collections::HashSet;

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The security context of a pod.
pub(super) fn pod_context(e: &mut Errors, s: &At) {
    let sc = s.get("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        e.id(&sc.get(field));
    }
    sc.get("supplementalGroups").items().for_each(|g| e.id(&g));
    let share = s.get("shareProcessNamespace");
    if share.is_true() && s.get("hostPID").is_true() {
        let at = sc.named("shareProcessNamespace", share.value);
        e.invalid(&at, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    sysctls(e, s, &sc.get("sysctls"));
    for (field, allowed) in [
        ("fsGroupChangePolicy", &["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", &["Merge", "Strict"]),
        ("seLinuxChangePolicy", &["MountOption", "Recursive"]),
    ] {
        if sc.get(field).is_set() && !allowed.contains(&sc.get(field).text()) {
            e.not_supported(&sc.get(field), allowed);
        }
        if field == "fsGroupChangePolicy" {
            seccomp(e, &sc.get("seccompProfile"));
            windows_options(e, &sc.get("windowsOptions"));
            apparmor(e, &sc.get("appArmorProfile"));
        }
    }
}

fn sysctls(e: &mut Errors, s: &At, at: &At) {
    let segment = |p: &str| {
        let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let b = p.as_bytes();
        !b.is_empty() && ok(b[0]) && ok(b[b.len() - 1]) && b.iter().all(|c| ok(*c) || matches!(c, b'-' | b'_'))
    };
    let mut seen = HashSet::new();
    for sysctl in at.items() {
        let name = sysctl.get("name");
        let text = name.text();
        if text.is_empty() {
            e.required(&name, "");
        } else if text.len() > 253 || !text.split(['.', '/']).all(segment) {
            e.invalid(&name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if seen.contains(text) {
            e.duplicate(&name);
        }
        let dotted = text.replace('/', ".");
        let of_ipc =
            ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p)) || dotted == "kernel.sem";
        if s.get("hostNetwork").is_true() && dotted.starts_with("net.") {
            e.invalid(&name, "may not be specified when 'hostNetwork' is true");
        } else if s.get("hostIPC").is_true() && of_ipc {
            e.invalid(&name, "may not be specified when 'hostIPC' is true");
        }
        seen.insert(text);
    }
}

/// The security context of a container.
pub(super) fn container_context(e: &mut Errors, sc: &At, host_users: bool) {
    e.id(&sc.get("runAsUser"));
    e.id(&sc.get("runAsGroup"));
    let mount = sc.get("procMount");
    if mount.is_set() {
        if !["Default", "Unmasked"].contains(&mount.text()) {
            e.not_supported(&mount, &["Default", "Unmasked"]);
        }
        if host_users && mount.text() == "Unmasked" {
            e.invalid(&mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(e, &sc.get("seccompProfile"));
    if sc.get("allowPrivilegeEscalation").value == &serde_json::Value::Bool(false) {
        if sc.get("privileged").is_true() {
            e.invalid(sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if sc.get("capabilities.add").items().any(|c| c.text() == "CAP_SYS_ADMIN") {
            e.invalid(sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows_options(e, &sc.get("windowsOptions"));
    apparmor(e, &sc.get("appArmorProfile"));
}

fn seccomp(e: &mut Errors, p: &At) {
    if !p.is_set() {
        return;
    }
    let (kind, profile) = (p.get("type"), p.get("localhostProfile"));
    match kind.text() {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => e.required(&kind, "type is required when seccompProfile is set"),
        _ => e.not_supported(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    if kind.text() != "Localhost" {
        if profile.is_set() {
            e.invalid_as(&profile, p.value.clone(), "can only be set when seccomp type is Localhost");
        }
    } else if !profile.is_set() {
        e.required(&profile, "must be set when seccomp type is Localhost");
    } else {
        super::volumes::descending_path(e, &profile);
    }
}

fn apparmor(e: &mut Errors, p: &At) {
    if !p.is_set() {
        return;
    }
    let (kind, profile) = (p.get("type"), p.get("localhostProfile"));
    match kind.text() {
        "Localhost" => {
            if profile.text().trim().is_empty() && profile.text().is_empty() {
                e.required(&profile, "must be set when AppArmor type is Localhost");
            } else if profile.text().trim() != profile.text() {
                e.invalid(&profile, "must not be padded with whitespace");
            }
            if profile.text().len() > 4095 {
                e.too_long(&profile, 4095);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if profile.is_set() {
                e.invalid(&profile, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => e.required(&kind, "type is required when appArmorProfile is set"),
        _ => e.not_supported(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn windows_options(e: &mut Errors, w: &At) {
    let spec_name = w.get("gmsaCredentialSpecName");
    if spec_name.is_set() {
        e.dns_subdomain(&spec_name);
    }
    let spec = w.get("gmsaCredentialSpec");
    if spec.is_set() && spec.is_empty() {
        e.invalid(&spec, "gmsaCredentialSpec cannot be an empty string");
    } else if spec.text().len() > 64 * 1024 {
        e.invalid(&spec, "gmsaCredentialSpec size must be under 64 KiB");
    }
    let user = w.get("runAsUserName");
    if !user.is_set() {
        return;
    }
    let text = user.text();
    let refusal = if text.is_empty() {
        Some("runAsUserName cannot be an empty string")
    } else if text.chars().any(char::is_control) {
        Some("runAsUserName cannot contain control characters")
    } else if text.matches('\\').count() > 1 {
        Some("runAsUserName cannot contain more than one backslash")
    } else {
        None
    };
    if let Some(text) = refusal {
        return e.invalid(&user, text);
    }
    let (domain, name) = text.split_once('\\').map_or((None, text), |(d, n)| (Some(d), n));
    if domain.is_some_and(|d| d.len() >= 256) {
        e.invalid(&user, "runAsUserName's Domain length must be under 256 characters");
    }
    if domain.is_some_and(|d| !is_net_bios(d) && !is_dns_domain(d)) {
        e.invalid(&user, "runAsUserName's Domain doesn't match the NetBios nor the DNS format");
    }
    if name.is_empty() {
        e.invalid(&user, "runAsUserName's User cannot be empty");
    } else if name.len() > 104 {
        e.invalid(&user, "runAsUserName's User length must not be longer than 104 characters");
    }
    if !name.is_empty() && name.chars().all(|c| c == '.' || c == ' ') {
        e.invalid(&user, "runAsUserName's User cannot contain only periods or spaces");
    }
    if name.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        let detail = r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#;
        e.invalid(&user, detail);
    }
}

fn is_net_bios(domain: &str) -> bool {
    let plain = |c: char| !"\\/:*?\"<>|".contains(c);
    !domain.is_empty() && !domain.starts_with('.') && domain.chars().count() <= 15 && domain.chars().all(plain)
}

fn is_dns_domain(domain: &str) -> bool {
    domain.split('.').all(|label| label.len() <= 63 && crate::names::dns1123_label(&label.to_lowercase()).is_empty())
}

/// Containers that are processes of a Windows host: all of a pod's, or none.
pub(super) fn host_process(e: &mut Errors, s: &At) {
    const FIELD: &str = "securityContext.windowsOptions.hostProcess";
    let of_pod = s.get(FIELD).value.as_bool();
    let (mut all, mut such) = (0, 0);
    each_container(s, |c| {
        all += 1;
        let own = c.get(FIELD);
        if let (Some(pod), Some(is)) = (of_pod, own.value.as_bool())
            && pod != is
        {
            let detail = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            e.invalid(&own, detail);
        }
        such += usize::from(own.value.as_bool().or(of_pod) == Some(true));
    });
    if such == 0 {
        return;
    }
    if such != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        e.invalid_as(s, "", detail);
    }
    if !s.get("hostNetwork").is_true() {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        e.invalid_as(&s.get("hostNetwork"), false, detail);
    }
}

/// What does not go with a user namespace of the pod's own.
pub(super) fn user_namespace(e: &mut Errors, s: &At) {
    if s.get("hostUsers").value != &serde_json::Value::Bool(false) {
        return;
    }
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if s.get(field).is_true() {
            e.forbidden(&s.named(shown, s.value), "when `hostUsers` is false");
        }
    }
    each_container(s, |c| {
        if !c.get("volumeDevices").is_empty() {
            e.forbidden(&c.get("volumeDevices"), "when `hostUsers` is false");
        }
    });
}

/// `os`, and what the other system's pods cannot have.
pub(super) fn operating_system(e: &mut Errors, s: &At) {
    let os = s.get("os");
    if !os.is_set() {
        return;
    }
    match os.get("name").text() {
        "" => e.required(&os.get("name"), ""),
        "linux" => {
            let at = s.get("securityContext.windowsOptions");
            if at.is_set() {
                e.forbidden(&at, "windows options cannot be set for a linux pod");
            }
            each_container(s, |c| {
                if c.get("securityContext.windowsOptions").is_set() {
                    let detail = "windows options cannot be set for a linux pod";
                    e.forbidden(&c.get("securityContext.windowsOptions"), detail);
                }
            });
        }
        "windows" => not_of_windows(e, s),
        other => {
            e.0.push(crate::status::FieldError::not_supported(os.path(), other, &["linux", "windows"]));
        }
    }
}

fn not_of_windows(e: &mut Errors, s: &At) {
    const DETAIL: &str = "cannot be set for a windows pod";
    let of_pod = [
        "securityContext.appArmorProfile",
        "securityContext.seLinuxOptions",
        "hostUsers",
        "hostPID",
        "hostIPC",
        "securityContext.seccompProfile",
        "securityContext.fsGroup",
        "securityContext.fsGroupChangePolicy",
        "securityContext.sysctls",
        "shareProcessNamespace",
        "securityContext.runAsUser",
        "securityContext.runAsGroup",
        "securityContext.supplementalGroups",
        "securityContext.supplementalGroupsPolicy",
        "securityContext.seLinuxChangePolicy",
    ];
    for field in of_pod {
        let at = s.get(field);
        let off = matches!(field, "hostPID" | "hostIPC") && !at.is_true();
        if at.is_set() && !off {
            e.forbidden(&at, DETAIL);
        }
    }
    let of_container = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    each_container(s, |c| {
        let sc = c.get("securityContext");
        for field in of_container {
            if sc.get(field).is_set() {
                e.forbidden(&sc.get(field), DETAIL);
            }
        }
    });
}

pub(super) fn each_container(s: &At, mut f: impl FnMut(&At)) {
    for list in LISTS {
        s.get(list).items().for_each(|c| f(&c));
    }
}

/// The annotations of before the fields.
pub(super) fn annotations(e: &mut Errors, at: &At, s: &At) {
    let mut seccomp = |key: &str, value: &At| {
        let shown = at.named(key, value.value);
        let profile = value.text();
        if let Some(path) = profile.strip_prefix("localhost/") {
            if path.starts_with('/') {
                e.invalid_as(&shown, path, "must be a relative path");
            }
            if path.split('/').any(|p| p == "..") {
                e.invalid_as(&shown, path, "must not contain '..'");
            }
        } else if !matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
            e.invalid(&shown, "must be a valid seccomp profile");
        }
    };
    if at.key(SECCOMP_POD).is_set() {
        seccomp(SECCOMP_POD, &at.key(SECCOMP_POD));
    }
    for (key, value) in at.entries().filter(|(k, _)| k.starts_with(SECCOMP_CONTAINER)) {
        seccomp(key, &value);
    }
    for (key, value) in at.entries() {
        let Some(container) = key.strip_prefix(APPARMOR) else { continue };
        let mut found = false;
        each_container(s, |c| found |= c.get("name").text() == container);
        if !found {
            e.invalid_as(&value, container, "container not found");
        }
        let profile = value.text();
        let known = matches!(profile, "" | "runtime/default" | "unconfined") || profile.starts_with("localhost/");
        if !known {
            e.invalid(&value, format!("invalid AppArmor profile name: {profile:?}"));
        }
    }
}

/// An annotation and the field that replaced it say the same.
pub(super) fn annotations_match(e: &mut Errors, at: &At, s: &At) {
    let of_pod = at.key(SECCOMP_POD);
    let profile = s.get("securityContext.seccompProfile");
    if of_pod.is_set() && profile.is_set() {
        agree(e, "seccomp", of_pod.text(), &profile);
    }
    each_container(s, |c| {
        let profile = c.get("securityContext.seccompProfile");
        let note = at.key(&format!("{SECCOMP_CONTAINER}{}", text_at(c.value, "/name"))).value.as_str();
        if let (Some(text), true) = (note, profile.is_set()) {
            agree(e, "seccomp", text, &profile);
        }
    });
    if s.get("os.name").text() == "windows" {
        return;
    }
    let default = s.get("securityContext.appArmorProfile");
    each_container(s, |c| {
        let (sc, own) = (c.get("securityContext"), c.get("securityContext.appArmorProfile"));
        let profile = sc.named("appArmorProfile", if own.is_set() { own.value } else { default.value });
        let note = at.key(&format!("{APPARMOR}{}", text_at(c.value, "/name"))).value.as_str();
        if let (Some(text), true) = (note, profile.is_set()) {
            agree(e, "apparmor", text, &profile);
        }
    });
}

fn agree(e: &mut Errors, what: &str, text: &str, profile: &At) {
    let same_type = match profile.get("type").text() {
        "Unconfined" => text == "unconfined",
        "RuntimeDefault" => text == "runtime/default" || (what == "seccomp" && text == "docker/default"),
        "Localhost" => text.starts_with("localhost/"),
        _ => true,
    };
    if !same_type {
        e.forbidden(&profile.get("type"), format!("{what} type in annotation and field must match"));
    } else if profile.get("type").text() == "Localhost"
        && text.strip_prefix("localhost/") != Some(profile.get("localhostProfile").text())
    {
        e.forbidden(&profile.get("localhostProfile"), format!("{what} profile in annotation and field must match"));
    }
}
