//! PodSecurity: the standards `baseline` and `restricted`, as the namespace's labels ask.

use serde_json::{Value, json};

use std::collections::BTreeMap;

use super::{Attributes, Operation, Warnings};
use crate::authn::view::{NAMESPACES, PODS, items_at, str_at};
use crate::error::{ApiError, Cause, Result};

const LABEL: &str = "pod-security.kubernetes.io/";
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];
const RESTRICTED_VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];

/// Pods that are looked at when a namespace's level changes, as upstream.
const MOST_PODS: usize = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// What a mode asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mode {
    level: Level,
    version: String,
}

impl Mode {
    /// What the pod does and the level forbids.
    fn violations(&self, spec: &Value) -> Vec<String> {
        if self.level == Level::Privileged {
            return Vec::new();
        }
        let mut found = violations(spec, self.level == Level::Restricted);
        if knows_probe_hosts(&self.version) {
            found.extend(probe_hosts(spec));
        }
        found
    }

    fn name(&self) -> String {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        format!("{level}:{}", self.version)
    }
}

/// What a namespace's labels ask for (upstream's `pod-security-admission/api/helpers.go`).
struct Policy {
    enforce: Mode,
    warn: Mode,
    /// Labels whose values cannot be read.
    faults: Vec<Cause>,
}

impl Policy {
    fn of(namespace: &Value) -> Policy {
        let labels = &namespace["metadata"]["labels"];
        let mut faults = Vec::new();
        let mut mode = |name: &str, otherwise: Level| {
            let mut text = |suffix: &str, known: &dyn Fn(&str) -> bool, detail: &str| {
                let key = format!("{LABEL}{name}{suffix}");
                let text = labels[&key].as_str()?.to_string();
                if known(&text) {
                    return Some(Ok(text));
                }
                faults.push(Cause::invalid(&format!("metadata.labels[{key}]"), &text.into(), detail));
                Some(Err(()))
            };
            let levels = "must be one of privileged, baseline, restricted";
            let level = text("", &|t| matches!(t, "privileged" | "baseline" | "restricted"), levels);
            let version = text("-version", &is_version, "must be \"latest\" or \"v1.x\"");
            let level = level.map(|level| match level.as_deref() {
                Ok("privileged") => Level::Privileged,
                Ok("baseline") => Level::Baseline,
                Ok(_) => Level::Restricted,
                Err(()) => otherwise,
            });
            (level, version.and_then(Result::ok))
        };
        // What cannot be read is enforced at its strictest, and warned about not at all.
        let (enforce, enforce_version) = mode("enforce", Level::Restricted);
        let _ = mode("audit", Level::Privileged);
        let (warn, warn_version) = mode("warn", Level::Privileged);
        let latest = || "latest".to_string();
        // Who asks for no warnings gets those of what is enforced.
        let warn_version = if warn.is_none() { warn_version.or(enforce_version.clone()) } else { warn_version };
        Policy {
            warn: Mode {
                level: warn.or(enforce).unwrap_or(Level::Privileged),
                version: warn_version.unwrap_or_else(latest),
            },
            enforce: Mode {
                level: enforce.unwrap_or(Level::Privileged),
                version: enforce_version.unwrap_or_else(latest),
            },
            faults,
        }
    }
}

/// `latest`, or `v1.` and a number without leading zeros.
fn is_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.").unwrap_or_default();
    let number =
        !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    text == "latest" || number
}

/// Refuses labels that cannot be read, unless they were there before, and names the pods that a stricter level forbids.
pub fn check_namespace(at: &Attributes<'_>, new: &Value, old: Option<&Value>, warnings: &mut Warnings) -> Result<()> {
    if !at.is("", "namespaces") {
        return Ok(());
    }
    let policy = Policy::of(new);
    let before = old.map(Policy::of);
    if !policy.faults.is_empty() && before.as_ref().is_none_or(|before| before.faults.is_empty()) {
        return Err(ApiError::invalid("", "Namespace", at.name, policy.faults));
    }
    let Some(before) = before else { return Ok(()) };
    let is_laxer = policy.enforce.version == before.enforce.version && policy.enforce.level <= before.enforce.level;
    if policy.enforce.level == Level::Privileged || is_laxer {
        return Ok(());
    }
    // Reasons, and the pods that have them: how many, and the first by name.
    let mut found: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for pod in at.view().list(PODS, at.name).iter().take(MOST_PODS) {
        let titles: Vec<String> = policy
            .enforce
            .violations(&pod["spec"])
            .iter()
            .map(|text| text.split_once(" (").map_or(text.as_str(), |(title, _)| title).to_string())
            .collect();
        if !titles.is_empty() {
            let name = str_at(pod, "/metadata/name").to_string();
            let entry = found.entry(titles.join(", ")).or_insert((0, name.clone()));
            entry.0 += 1;
            entry.1 = entry.1.clone().min(name);
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    warnings.push(format!(
        "existing pods in namespace {:?} violate the new PodSecurity enforce level {:?}",
        at.name,
        policy.enforce.name()
    ));
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, (count, name))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            _ => format!("{name} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    Ok(())
}

/// Where a kind keeps its pod: pods themselves are enforced, the others only warned about.
fn template(at: &Attributes<'_>) -> Option<&'static str> {
    Some(match (at.info.group.as_str(), at.info.resource.as_str()) {
        ("", "pods") if matches!(at.info.subresource.as_str(), "" | "ephemeralcontainers") => "",
        (_, _) if !at.info.subresource.is_empty() => return None,
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets")
        | ("batch", "jobs") => "/spec/template",
        ("", "podtemplates") => "/template",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template",
        _ => return None,
    })
}

/// Refuses a pod that its namespace's level forbids; warns where the namespace asks for warnings.
pub fn check(at: &Attributes<'_>, new: &Value, old: Option<&Value>, warnings: &mut Warnings) -> Result<()> {
    if !matches!(at.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let Some(pointer) = template(at) else { return Ok(()) };
    if old.is_some_and(|o| o.pointer(pointer).map(|o| &o["spec"]) == new.pointer(pointer).map(|n| &n["spec"])) {
        return Ok(());
    }
    let Some(namespace) = at.view().get(NAMESPACES, "", at.namespace) else { return Ok(()) };
    let Some(pod) = new.pointer(pointer) else { return Ok(()) };
    let policy = Policy::of(&namespace);
    let describe = |mode: &Mode| {
        let found = mode.violations(&pod["spec"]);
        (!found.is_empty()).then(|| format!("violate PodSecurity {:?}: {}", mode.name(), found.join(", ")))
    };
    if pointer.is_empty()
        && let Some(text) = describe(&policy.enforce)
    {
        return Err(at.forbidden(&text.replacen("violate", "violates", 1)));
    }
    if let Some(text) = describe(&policy.warn) {
        warnings.push(format!("would {text}"));
    }
    Ok(())
}

fn each_container(spec: &Value) -> impl Iterator<Item = (&str, &Value)> {
    ["/initContainers", "/containers", "/ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| items_at(spec, list))
        .map(|c| (str_at(c, "/name"), c))
}

/// `container "a"` or `containers "a", "b"`, and the rest with the right verb.
fn named(names: &[&str], rest: &str) -> String {
    let list = names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
    format!("container{} {list} {rest}", if names.len() > 1 { "s" } else { "" })
}

/// What the level forbids and the pod does.
fn violations(spec: &Value, restricted: bool) -> Vec<String> {
    let mut out = Vec::new();
    baseline(spec, &mut out);
    if restricted {
        restrict(spec, &mut out);
    }
    out
}

fn containers_where<'a>(spec: &'a Value, test: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
    each_container(spec).filter(|(_, c)| test(c)).map(|(n, _)| n).collect()
}

fn baseline(spec: &Value, out: &mut Vec<String>) {
    let yes = json!(true);
    let host: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|k| spec[**k] == yes)
        .map(|k| format!("{k}=true"))
        .collect();
    if !host.is_empty() {
        out.push(format!("host namespaces ({})", host.join(", ")));
    }
    let mut add = |title: &str, names: Vec<&str>, rest: &str| {
        if !names.is_empty() {
            out.push(format!("{title} ({})", named(&names, rest)));
        }
    };
    add(
        "privileged",
        containers_where(spec, |c| c["securityContext"]["privileged"] == yes),
        "must not set securityContext.privileged=true",
    );
    let adds = |c: &Value| {
        items_at(c, "/securityContext/capabilities/add")
            .iter()
            .filter_map(Value::as_str)
            .any(|cap| !CAPABILITIES.contains(&cap))
    };
    add(
        "non-default capabilities",
        containers_where(spec, adds),
        "must not include forbidden capabilities in securityContext.capabilities.add",
    );
    let host_port = |c: &Value| items_at(c, "/ports").iter().any(|p| p["hostPort"].as_i64().unwrap_or(0) != 0);
    add("hostPort", containers_where(spec, host_port), "uses a hostPort");
    let proc_mount = |c: &Value| !matches!(str_at(c, "/securityContext/procMount"), "" | "Default");
    add("procMount", containers_where(spec, proc_mount), "must not set securityContext.procMount");
    let unconfined = |c: &Value| str_at(c, "/securityContext/seccompProfile/type") == "Unconfined";
    add(
        "seccompProfile",
        containers_where(spec, unconfined),
        "must not set securityContext.seccompProfile.type to \"Unconfined\"",
    );
    let apparmor = |c: &Value| str_at(c, "/securityContext/appArmorProfile/type") == "Unconfined";
    add(
        "forbidden AppArmor profile",
        containers_where(spec, apparmor),
        "must not set AppArmor profile type to \"Unconfined\"",
    );
    let selinux = |o: &Value| {
        let options = &o["securityContext"]["seLinuxOptions"];
        let kind = str_at(options, "/type");
        !matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t" | "container_engine_t")
            || !str_at(options, "/user").is_empty()
            || !str_at(options, "/role").is_empty()
    };
    add("seLinuxOptions", containers_where(spec, selinux), "set forbidden securityContext.seLinuxOptions");
    let windows = |o: &Value| o["securityContext"]["windowsOptions"]["hostProcess"] == yes;
    add("hostProcess", containers_where(spec, windows), "must not set securityContext.windowsOptions.hostProcess=true");
    if str_at(spec, "/securityContext/seccompProfile/type") == "Unconfined" {
        out.push("seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")".into());
    }
    if selinux(spec) {
        out.push("seLinuxOptions (pod set forbidden securityContext.seLinuxOptions)".into());
    }
    let host_paths: Vec<String> = items_at(spec, "/volumes")
        .iter()
        .filter(|v| v["hostPath"].is_object())
        .map(|v| format!("{:?}", str_at(v, "/name")))
        .collect();
    if !host_paths.is_empty() {
        out.push(format!(
            "hostPath volumes (volume{} {})",
            if host_paths.len() > 1 { "s" } else { "" },
            host_paths.join(", ")
        ));
    }
    let sysctls: Vec<&str> = items_at(spec, "/securityContext/sysctls")
        .iter()
        .map(|s| str_at(s, "/name"))
        .filter(|n| !SAFE_SYSCTLS.contains(n))
        .collect();
    if !sysctls.is_empty() {
        out.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
    }
}

/// The standards have this rule since v1.34; what is no version is the latest.
fn knows_probe_hosts(version: &str) -> bool {
    version.strip_prefix("v1.").and_then(|minor| minor.parse::<u32>().ok()).is_none_or(|minor| minor >= 34)
}

/// A probe or hook with a host has the kubelet ask for the pod whatever the node reaches.
fn probe_hosts(spec: &Value) -> Option<String> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let hosts_of = |container: &Value| -> Vec<String> {
        let handlers = HANDLERS.iter().filter_map(|path| container.pointer(path));
        let hosts = handlers.flat_map(|h| [str_at(h, "/httpGet/host"), str_at(h, "/tcpSocket/host")]);
        hosts.filter(|host| !host.is_empty()).map(|host| format!("{host:?}")).collect()
    };
    let names = containers_where(spec, |c| !hosts_of(c).is_empty());
    let hosts: std::collections::BTreeSet<String> = each_container(spec).flat_map(|(_, c)| hosts_of(c)).collect();
    let (verb, plural) = (if names.len() > 1 { "use" } else { "uses" }, if hosts.len() > 1 { "s" } else { "" });
    let list = hosts.into_iter().collect::<Vec<_>>().join(", ");
    let rest = format!("{verb} probe or lifecycle host{plural} {list}");
    (!names.is_empty()).then(|| format!("probe or lifecycle host ({})", named(&names, &rest)))
}

fn restrict(spec: &Value, out: &mut Vec<String>) {
    let bad_volumes: Vec<String> = items_at(spec, "/volumes")
        .iter()
        .filter(|v| {
            v.as_object().is_some_and(|m| m.keys().any(|k| k != "name" && !RESTRICTED_VOLUMES.contains(&k.as_str())))
        })
        .map(|v| format!("{:?}", str_at(v, "/name")))
        .collect();
    if !bad_volumes.is_empty() {
        out.push(format!("restricted volume types (volumes {})", bad_volumes.join(", ")));
    }
    let mut add = |title: &str, names: Vec<&str>, rest: &str| {
        if !names.is_empty() {
            out.push(format!("{title} ({})", named(&names, rest)));
        }
    };
    let escalates = |c: &Value| c["securityContext"]["allowPrivilegeEscalation"] != json!(false);
    add(
        "allowPrivilegeEscalation != false",
        containers_where(spec, escalates),
        "must set securityContext.allowPrivilegeEscalation=false",
    );
    let keeps = |c: &Value| {
        let drops_all = items_at(c, "/securityContext/capabilities/drop").iter().any(|d| d == "ALL");
        let adds = items_at(c, "/securityContext/capabilities/add").iter().any(|a| a != "NET_BIND_SERVICE");
        !drops_all || adds
    };
    add(
        "unrestricted capabilities",
        containers_where(spec, keeps),
        "must set securityContext.capabilities.drop=[\"ALL\"]",
    );
    let pod_non_root = spec["securityContext"]["runAsNonRoot"] == json!(true);
    let root = |c: &Value| match c["securityContext"]["runAsNonRoot"].as_bool() {
        Some(non_root) => !non_root,
        None => !pod_non_root,
    };
    let rest = "must set securityContext.runAsNonRoot=true";
    add("runAsNonRoot != true", containers_where(spec, root).into_iter().collect(), rest);
    let as_zero = |c: &Value| c["securityContext"]["runAsUser"] == json!(0);
    add("runAsUser=0", containers_where(spec, as_zero), "must not set runAsUser=0");
    let safe = |o: &Value| matches!(str_at(o, "/securityContext/seccompProfile/type"), "RuntimeDefault" | "Localhost");
    let pod_safe = safe(spec);
    let unset = |c: &Value| !safe(c) && (!str_at(c, "/securityContext/seccompProfile/type").is_empty() || !pod_safe);
    let rest = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    add("seccompProfile", containers_where(spec, unset), rest);
    if spec["securityContext"]["runAsUser"] == json!(0) {
        out.push("runAsUser=0 (pod must not set runAsUser=0)".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let plain = json!({"containers": [{"name": "a"}]});
        assert!(violations(&plain, false).is_empty());
        assert_eq!(violations(&plain, true).len(), 4);
        let bad = json!({"hostNetwork": true, "containers": [{"name": "a", "securityContext": {"privileged": true}}], "volumes": [{"name": "h", "hostPath": {"path": "/"}}]});
        assert_eq!(
            violations(&bad, false),
            [
                "host namespaces (hostNetwork=true)",
                "privileged (container \"a\" must not set securityContext.privileged=true)",
                "hostPath volumes (volume \"h\")"
            ]
        );
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        assert!(violations(&good, true).is_empty(), "{:?}", violations(&good, true));
    }

    #[test]
    fn labels_are_read_as_upstream_reads_them() {
        let read = |labels: Value| {
            let labels: serde_json::Map<String, Value> =
                labels.as_object().unwrap().iter().map(|(k, v)| (format!("{LABEL}{k}"), v.clone())).collect();
            let policy = Policy::of(&json!({"metadata": {"labels": labels}}));
            (policy.enforce.name(), policy.warn.name(), policy.faults.len())
        };
        let cases = [
            (json!({}), "privileged:latest", "privileged:latest", 0),
            (json!({"enforce": "baseline", "enforce-version": "v1.30"}), "baseline:v1.30", "baseline:v1.30", 0),
            (json!({"enforce": "restricted", "warn": "baseline"}), "restricted:latest", "baseline:latest", 0),
            (json!({"enforce": "bogus", "warn": "bogus"}), "restricted:latest", "privileged:latest", 2),
            (json!({"enforce-version": "v1.01", "audit": "x"}), "privileged:latest", "privileged:latest", 2),
        ];
        for (labels, enforce, warn, faults) in cases {
            assert_eq!(read(labels.clone()), (enforce.to_string(), warn.to_string(), faults), "{labels}");
        }
    }

    #[test]
    fn probes_and_hooks_name_no_host() {
        let spec = json!({"containers": [
            {"name": "a", "livenessProbe": {"httpGet": {"port": 80, "host": "169.254.169.254"}}},
            {"name": "b", "lifecycle": {"preStop": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}},
            {"name": "c", "readinessProbe": {"httpGet": {"port": 80, "host": ""}}},
        ]});
        assert_eq!(
            probe_hosts(&spec).unwrap(),
            "probe or lifecycle host (containers \"a\", \"b\" use probe or lifecycle hosts \"10.0.0.1\", \"169.254.169.254\")"
        );
        assert_eq!(
            probe_hosts(&json!({"containers": [{"name": "a", "startupProbe": {"tcpSocket": {"port": 1}}}]})),
            None
        );
        let versions = [("latest", true), ("v1.36", true), ("v1.34", true), ("v1.33", false)];
        assert!(versions.iter().all(|(version, known)| knows_probe_hosts(version) == *known));
    }
}
