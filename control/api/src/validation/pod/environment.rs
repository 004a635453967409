//! Environment variables and what they are taken from.

use crate::names;
use crate::validation::at::{At, Errors};

const ENV_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Labels of the old field selectors that can be asked for.
const CONVERTIBLE: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn variable_name(e: &mut Errors, at: &At) {
    if at.is_empty() || !at.text().bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        e.invalid_as(
            at,
            at.text(),
            "a valid environment variable name must consist only of printable ASCII characters other than '='",
        );
    }
}

/// `env`.
pub(super) fn env(e: &mut Errors, at: &At) {
    for v in at.items() {
        if e.need(&v.get("name")) {
            variable_name(e, &v.get("name"));
        }
        let from = v.get("valueFrom");
        if from.is_set() {
            value_from(e, &from, &v.get("value"));
        }
    }
}

fn value_from(e: &mut Errors, from: &At, value: &At) {
    let mut sources = 0;
    let mut source = |name: &str| {
        let set = from.get(name).is_set();
        sources += usize::from(set);
        set
    };
    if source("fieldRef") {
        field_ref(e, &from.get("fieldRef"), ENV_PATHS);
    }
    if source("resourceFieldRef") {
        resource_ref(e, &from.get("resourceFieldRef"), false);
    }
    for (name, map) in [("configMapKeyRef", true), ("secretKeyRef", true), ("fileKeyRef", false)] {
        if source(name) {
            let key = from.get(name);
            if map {
                e.dns_subdomain(&key.get("name"));
                if e.need(&key.get("key")) {
                    e.all(&key.get("key"), names::config_key(key.get("key").text()));
                }
            } else {
                if e.need(&key.get("key")) {
                    variable_name(e, &key.get("key"));
                }
                if e.need(&key.get("volumeName")) {
                    e.dns_label(&key.get("volumeName"));
                }
                if e.need(&key.get("path")) {
                    super::volumes::no_backsteps(e, &key.get("path"));
                }
            }
        }
    }
    let say = |e: &mut Errors, text: &str| e.invalid_as(from, "", text);
    if sources == 0 {
        say(
            e,
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !value.is_empty() {
        say(e, "may not be specified when `value` is not empty");
    } else if sources > 1 {
        say(e, "may not have more than one field specified at a time");
    }
}

/// Variables from files take them from volumes that are the pod's own.
pub(super) fn file_volumes(e: &mut Errors, s: &At) {
    let volumes = s.get("volumes");
    super::security::each_container(s, |c| {
        for v in c.get("env").items() {
            let (reference, name) = (v.get("valueFrom.fileKeyRef"), v.get("valueFrom.fileKeyRef.volumeName"));
            if !reference.is_set() {
                continue;
            }
            match volumes.items().filter(|v| v.get("name").text() == name.text()).last() {
                None => e.not_found(&name),
                Some(v) if !v.get("emptyDir").is_set() => {
                    e.invalid_as(&name, name.text(), "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    });
}

/// `envFrom`.
pub(super) fn env_from(e: &mut Errors, at: &At) {
    for v in at.items() {
        if !v.get("prefix").is_empty() {
            variable_name(e, &v.get("prefix"));
        }
        let mut sources = 0;
        for name in ["configMapRef", "secretRef"] {
            let source = v.get(name);
            if source.is_set() {
                sources += 1;
                if e.need(&source.get("name")) {
                    e.dns_subdomain(&source.get("name"));
                }
            }
        }
        match sources {
            0 => e.invalid_as(at, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => e.invalid_as(at, "", "may not have more than one field specified at a time"),
        }
    }
}

/// A reference to a field of the pod.
pub(super) fn field_ref(e: &mut Errors, at: &At, allowed: &[&str]) {
    if !e.need(&at.get("apiVersion")) || !e.need(&at.get("fieldPath")) {
        return;
    }
    let field = at.get("fieldPath");
    let (path, key) = match field.text().strip_suffix("']").and_then(|p| p.split_once("['")) {
        Some((path, key)) => (path, Some(key)),
        None => (field.text(), None),
    };
    let path = if path == "spec.host" { "spec.nodeName" } else { path };
    if at.get("apiVersion").text() != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {}", at.get("apiVersion").text());
        return e.invalid(&field, detail);
    }
    if !CONVERTIBLE.contains(&path) {
        let detail = format!("error converting fieldPath: field label not supported: {}", field.text());
        return e.invalid(&field, detail);
    }
    match (path, key) {
        ("metadata.annotations", Some(key)) => {
            let key = key.to_lowercase();
            names::qualified_name(&key).into_iter().for_each(|t| e.invalid_as(at, key.as_str(), t));
        }
        ("metadata.labels", Some(key)) => {
            names::qualified_name(key).into_iter().for_each(|t| e.invalid_as(at, key, t));
        }
        (_, Some(_)) => e.invalid_as(at, path, "does not support subscript"),
        (_, None) if !allowed.contains(&path) => {
            e.0.push(crate::status::FieldError::not_supported(field.path(), path, allowed));
        }
        _ => {}
    }
}

/// A reference to a container's resources.
pub(super) fn resource_ref(e: &mut Errors, at: &At, in_volume: bool) {
    let resource = at.get("resource");
    let huge = |s: &str| s.starts_with("requests.hugepages-") || s.starts_with("limits.hugepages-");
    if in_volume && at.get("containerName").is_empty() {
        e.required(&at.get("containerName"), "");
    } else if resource.is_empty() {
        e.required(&resource, "");
    } else if !RESOURCES.contains(&resource.text()) && !huge(resource.text()) {
        e.not_supported(&resource, RESOURCES);
    }
    let divisor = at.get("divisor");
    let Some(q) = divisor.quantity().filter(|q| !q.is_zero()) else { return };
    let q = q.to_string();
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let all = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the";
    let refusal = match resource.text() {
        "limits.cpu" | "requests.cpu" => (!["1m", "1"].contains(&q.as_str()))
            .then(|| "only divisor's values 1m and 1 are supported with the cpu resource".to_string()),
        "limits.memory" | "requests.memory" => (!SIZES.contains(&q.as_str())).then(|| format!("{all} memory resource")),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (!SIZES.contains(&q.as_str())).then(|| format!("{all} local ephemeral storage resource"))
        }
        other if huge(other) => (!SIZES.contains(&q.as_str())).then(|| format!("{all} hugepages resource")),
        _ => None,
    };
    if let Some(text) = refusal {
        e.invalid_as(&divisor, resource.text(), text);
    }
}
