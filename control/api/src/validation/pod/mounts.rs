//! Where containers see volumes.

use super::{Whole, volumes};
use crate::validation::at::{At, Errors};
use std::collections::HashSet;

/// `volumeMounts`.
pub(super) fn mounts(e: &mut Errors, c: &At, whole: &Whole) {
    let (list, devices) = (c.get("volumeMounts"), c.get("volumeDevices"));
    let (device_names, device_paths) = (texts(&devices, "name"), texts(&devices, "devicePath"));
    let mut paths = HashSet::new();
    for m in list.items() {
        let (name, path) = (m.get("name"), m.get("mountPath"));
        e.need(&name);
        let source = whole.volumes.get(name.text());
        if source.is_none() {
            e.not_found(&name);
        }
        e.need(&path);
        if !paths.insert(path.text()) {
            e.invalid_as(&path, path.text(), "must be unique");
        }
        if device_names.contains(name.text()) {
            e.invalid_as(&name, name.text(), "must not already exist in volumeDevices");
        }
        if device_paths.contains(path.text()) {
            e.invalid_as(&path, path.text(), "must not already exist as a path in volumeDevices");
        }
        let (sub, expression) = (m.get("subPath"), m.get("subPathExpr"));
        // These are shown as fields of the list, as clients know them.
        if !sub.is_empty() {
            volumes::descending_path(e, &list.named("subPath", sub.value));
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                e.invalid(&expression, "subPathExpr and subPath are mutually exclusive");
            }
            volumes::descending_path(e, &list.named("subPathExpr", expression.value));
        }
        propagation(e, c, &list.named("mountPropagation", m.get("mountPropagation").value));
        recursive_read_only(e, &m, &list.named("recursiveReadOnly", m.get("recursiveReadOnly").value));
    }
}

/// The texts of a field of all items.
fn texts<'v>(list: &At<'_, 'v>, field: &str) -> HashSet<&'v str> {
    list.items().map(|item| item.get(field).text()).collect()
}

fn propagation(e: &mut Errors, c: &At, at: &At) {
    if !at.is_set() {
        return;
    }
    if !["Bidirectional", "HostToContainer", "None"].contains(&at.text()) {
        e.not_supported(at, &["Bidirectional", "HostToContainer", "None"]);
    }
    if at.text() == "Bidirectional" && !c.get("securityContext.privileged").is_true() {
        e.forbidden(at, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(e: &mut Errors, m: &At, at: &At) {
    match at.text() {
        _ if !at.is_set() => {}
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !m.get("readOnly").is_true() {
                e.forbidden(at, "may only be specified when readOnly is true");
            }
            let propagation = m.get("mountPropagation");
            if propagation.is_set() && propagation.text() != "None" {
                e.forbidden(at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => e.not_supported(at, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// `volumeDevices`.
pub(super) fn devices(e: &mut Errors, c: &At, whole: &Whole) {
    let mounts = c.get("volumeMounts");
    let (mount_names, mount_paths) = (texts(&mounts, "name"), texts(&mounts, "mountPath"));
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for d in c.get("volumeDevices").items() {
        let (name, path) = (d.get("name"), d.get("devicePath"));
        e.need(&name);
        if names.contains(name.text()) {
            e.invalid(&name, "must be unique");
        }
        match whole.volumes.get(name.text()) {
            Some(source) if source.get("persistentVolumeClaim").is_none() && source.get("ephemeral").is_none() => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                e.invalid(&name, detail);
            }
            Some(_) => {}
            None => e.not_found(&name),
        }
        e.need(&path);
        if paths.contains(path.text()) {
            e.invalid(&path, "must be unique");
        }
        if path.text().split('/').any(|p| p == "..") {
            e.invalid(&path, "can not contain backsteps ('..')");
        } else {
            paths.insert(path.text());
        }
        if mount_names.contains(name.text()) {
            e.invalid(&name, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(path.text()) {
            e.invalid(&path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name.text());
        }
    }
}
