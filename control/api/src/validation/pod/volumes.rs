//! Volumes of pods, and the sources that persistent volumes have too.

use super::{environment, projected};
use crate::names;
use crate::validation::at::{At, Errors};
use regex::Regex;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// Sources in the order in which they are looked at, the name that errors inside
/// give them, the name that a second one is refused by, and the texts each needs.
type Source = (&'static str, &'static str, &'static str, &'static [&'static str]);

const SOURCES: &[Source] = &[
    ("emptyDir", "emptyDir", "emptyDir", &[]),
    ("hostPath", "hostPath", "hostPath", &[]),
    ("gitRepo", "gitRepo", "gitRepo", &["repository"]),
    ("gcePersistentDisk", "persistentDisk", "gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", &["volumeID"]),
    ("secret", "secret", "secret", &["secretName"]),
    ("nfs", "nfs", "nfs", &["server", "path"]),
    ("iscsi", "iscsi", "iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", "glusterfs", "glusterfs", &["endpoints", "path"]),
    ("flocker", "flocker", "flocker", &[]),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim", &["claimName"]),
    ("rbd", "rbd", "rbd", &["monitors", "image"]),
    ("cinder", "cinder", "cinder", &["volumeID"]),
    ("cephfs", "cephfs", "cephFS", &["monitors"]),
    ("quobyte", "quobyte", "quobyte", &[]),
    ("downwardAPI", "downwardAPI", "downwarAPI", &[]),
    ("fc", "fc", "fc", &[]),
    ("flexVolume", "flexVolume", "flexVolume", &["driver"]),
    ("configMap", "configMap", "configMap", &["name"]),
    ("azureFile", "azureFile", "azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", &["pdID"]),
    ("portworxVolume", "portworxVolume", "portworxVolume", &["volumeID"]),
    ("azureDisk", "azureDisk", "azureDisk", &["diskName", "diskURI"]),
    ("storageos", "storageos", "storageos", &["volumeName"]),
    ("projected", "projected", "projected", &[]),
    ("scaleIO", "scaleIO", "scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", "csi", "csi", &[]),
    ("ephemeral", "ephemeral", "ephemeral", &[]),
    ("image", "image", "image", &[]),
];

/// The same for persistent volumes.
const PERSISTENT: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

const SECOND: &str = "may not specify more than 1 volume type";
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks `volumes`; gives those without fault.
pub(super) fn volumes<'v>(
    e: &mut Errors,
    list: &At<'_, 'v>,
    pod: Option<&str>,
    is_pod: bool,
) -> HashMap<&'v str, &'v Value> {
    let mut good = HashMap::new();
    let made: HashSet<String> = list
        .items()
        .filter(|v| v.get("ephemeral").is_set())
        .filter_map(|v| Some(format!("{}-{}", pod?, v.get("name").text())))
        .collect();
    for v in list.items() {
        let before = e.0.len();
        source(e, &v, pod, is_pod);
        let name = v.get("name");
        if e.need(&name) {
            e.dns_label(&name);
        }
        if good.contains_key(name.text()) {
            e.duplicate(&name);
        }
        if e.0.len() == before {
            good.insert(name.text(), v.value);
        }
        let claim = v.get("persistentVolumeClaim.claimName");
        if made.contains(claim.text()) {
            e.invalid(&claim, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
    good
}

fn source(e: &mut Errors, v: &At, pod: Option<&str>, is_pod: bool) {
    let mut found = 0;
    for (field, shown, refused, needed) in SOURCES {
        let value = v.get(field).value;
        if value.is_null() {
            continue;
        }
        found += 1;
        if found > 1 {
            e.forbidden(&v.named(refused, value), SECOND);
        } else {
            pod_source(e, v, pod, is_pod, (field, &v.named(shown, value), needed));
        }
        if *field == "iscsi" && too_long_portal(&v.get("iscsi"), v.get("name").text()) {
            e.invalid_as(&v.get("name"), v.get("name").text(), LONG_PORTAL);
        }
    }
    if found == 0 {
        e.required(v, "must specify a volume type");
    }
}

fn pod_source(e: &mut Errors, v: &At, pod: Option<&str>, is_pod: bool, (field, at, needed): (&str, &At, &[&str])) {
    for n in needed.iter() {
        e.need(&at.get(n));
    }
    match field {
        "ephemeral" => ephemeral(e, v, at, pod),
        "image" => {
            if is_pod {
                e.need(&at.get("reference"));
            }
            e.need_one_of(&at.get("pullPolicy"), &["Always", "IfNotPresent", "Never"]);
        }
        "emptyDir" => {
            if at.get("sizeLimit").quantity().is_some_and(|q| q.sign() < 0) {
                e.forbidden(&at.get("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
        }
        _ => details(e, field, at, false),
    }
}

/// Metadata that a claim's template may not have.
const NOT_OF_TEMPLATES: [&str; 13] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

fn ephemeral(e: &mut Errors, v: &At, at: &At, pod: Option<&str>) {
    let template = at.get("volumeClaimTemplate");
    if !template.is_set() {
        e.required(&template, "");
    } else {
        let meta = template.get("metadata");
        super::selectors::annotations(e, &meta.get("annotations"));
        super::selectors::labels(e, &meta.get("labels"));
        for field in NOT_OF_TEMPLATES {
            let at = meta.get(field);
            if !at.is_empty() {
                // The name is the field's in the server's own form.
                let shown = if field == "uid" { "uID" } else { field };
                e.forbidden(&meta.named(shown, at.value), "cannot be set");
            }
        }
        crate::validation::core::claim_spec(e, &template.get("spec"));
    }
    let name = v.get("name");
    if let Some(pod) = pod.filter(|_| !name.is_empty()) {
        let claim = format!("{pod}-{}", name.text());
        for text in names::dns1123_subdomain(&claim) {
            e.invalid(&name, format!("PVC name {claim:?}: {text}"));
        }
    }
}

/// The source of the persistent volume called `name`.
pub(crate) fn persistent_source(e: &mut Errors, spec: &At, name: &str) {
    let mut found = 0;
    for field in PERSISTENT {
        let value = spec.get(field).value;
        if value.is_null() {
            continue;
        }
        let known = SOURCES.iter().find(|s| s.0 == *field);
        let (shown, refused, needed) = known.map_or((*field, *field, &[][..]), |s| (s.1, s.2, s.3));
        found += 1;
        if found > 1 && *field != "flexVolume" {
            e.forbidden(&spec.named(refused, value), SECOND);
            continue;
        }
        let at = spec.named(shown, value);
        for n in needed.iter() {
            e.need(&at.get(n));
        }
        if *field == "iscsi" && too_long_portal(&at, name) {
            e.invalid_as(
                &at.named("targetportal", at.get("targetPortal").value),
                at.get("targetPortal").text(),
                LONG_PORTAL,
            );
        }
        if *field == "local" {
            if e.need(&at.get("path")) {
                no_backsteps(e, &at.get("path"));
            }
            if !spec.get("nodeAffinity").is_set() {
                e.required(&spec.get("nodeAffinity"), "Local volume requires node affinity");
            }
        }
        details(e, field, &at, true);
    }
    if found == 0 {
        e.required(spec, "must specify a volume type");
    }
}

fn details(e: &mut Errors, field: &str, at: &At, persistent: bool) {
    match field {
        "hostPath" => host_path(e, at),
        "gitRepo" => descending_path(e, &at.get("directory")),
        "gcePersistentDisk" | "awsElasticBlockStore"
            if at.get("partition").int().is_some_and(|p| !(0..=255).contains(&p)) =>
        {
            e.invalid(&at.get("partition"), "must be between 1 and 255, inclusive");
        }
        "secret" | "configMap" => {
            mode(e, &at.get("defaultMode"));
            at.get("items").items().for_each(|k| key_to_path(e, &k));
        }
        "nfs" if !at.get("path").text().starts_with('/') => {
            e.invalid_as(&at.get("path"), at.get("path").text(), "must be an absolute path");
        }
        "downwardAPI" => {
            mode(e, &at.get("defaultMode"));
            at.get("items").items().for_each(|f| downward_file(e, &f, at));
        }
        "projected" => projected::projected(e, at),
        "iscsi" => iscsi(e, at, persistent),
        "glusterfs" if persistent && at.get("endpointsNamespace").is_set() => {
            let namespace = at.get("endpointsNamespace");
            if namespace.is_empty() {
                e.invalid(&namespace, "if the endpointnamespace is set, it must be a valid namespace name");
            } else {
                e.dns_label(&namespace);
            }
        }
        "fc" => fibre_channel(e, at),
        "flocker" => flocker(e, at),
        "quobyte" => quobyte(e, at),
        "flexVolume" => flex_options(e, &at.get("options")),
        "azureDisk" => azure_disk(e, at),
        "azureFile" => {
            let namespace = at.get("secretNamespace");
            if namespace.is_set() {
                e.need(&namespace);
            }
        }
        "cinder" | "storageos" => {
            if field == "storageos" && !at.get("volumeName").is_empty() {
                e.dns_label(&at.get("volumeName"));
                if !at.get("volumeNamespace").is_empty() {
                    e.dns_label(&at.get("volumeNamespace"));
                }
            }
            if at.get("secretRef").is_set() {
                e.need(&at.get("secretRef.name"));
                if persistent {
                    e.need(&at.get("secretRef.namespace"));
                }
            }
        }
        "csi" => csi(e, at, persistent),
        _ => {}
    }
}

fn csi(e: &mut Errors, at: &At, persistent: bool) {
    driver_name(e, &at.get("driver"));
    if !persistent {
        let secret = at.get("nodePublishSecretRef");
        if secret.is_set() && e.need(&secret.get("name")) {
            for text in names::dns1123_subdomain(secret.get("name").text()) {
                e.invalid_as(&at.get("name"), secret.get("name").text(), text);
            }
        }
        return;
    }
    e.need(&at.get("volumeHandle"));
    for field in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        let secret = at.get(field);
        if secret.is_set() {
            if e.need(&secret.get("name")) {
                e.dns_subdomain(&secret.get("name"));
            }
            if e.need(&secret.get("namespace")) {
                e.dns_label(&secret.get("namespace"));
            }
        }
    }
}

/// The name of a CSI driver.
pub(crate) fn driver_name(e: &mut Errors, at: &At) {
    if !e.need(at) {
        return;
    }
    if at.text().len() > 63 {
        e.too_long(at, 63);
    }
    let texts = names::dns1123_subdomain(&at.text().to_lowercase());
    e.all(at, texts);
}

pub(super) fn mode(e: &mut Errors, at: &At) {
    if at.int().is_some_and(|m| !(0..=0o777).contains(&m)) {
        e.invalid(at, MODE);
    }
}

pub(super) fn key_to_path(e: &mut Errors, k: &At) {
    e.need(&k.get("key"));
    e.need(&k.get("path"));
    local_path(e, &k.get("path"));
    mode(e, &k.get("mode"));
}

/// A relative path without `..`.
pub(super) fn descending_path(e: &mut Errors, at: &At) {
    if at.text().starts_with('/') {
        e.invalid(at, "must be a relative path");
    }
    no_backsteps(e, at);
}

pub(super) fn no_backsteps(e: &mut Errors, at: &At) {
    if at.text().split('/').any(|p| p == "..") {
        e.invalid(at, "must not contain '..'");
    }
}

/// A relative path that does not even begin with two dots.
pub(crate) fn local_path(e: &mut Errors, at: &At) {
    descending_path(e, at);
    if at.text().starts_with("..") && !at.text().starts_with("../") {
        e.invalid(at, "must not start with '..'");
    }
}

/// A file of the downward API; errors are about `shown`.
pub(super) fn downward_file(e: &mut Errors, f: &At, shown: &At) {
    const PATHS: &[&str] =
        &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    let at = |name: &'static str| shown.named(name, f.get(name).value);
    e.need(&at("path"));
    local_path(e, &at("path"));
    if f.get("fieldRef").is_set() {
        environment::field_ref(e, &at("fieldRef"), PATHS);
        if f.get("resourceFieldRef").is_set() {
            e.invalid_as(shown, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
        }
    } else if f.get("resourceFieldRef").is_set() {
        environment::resource_ref(e, &at("resourceFieldRef"), true);
    } else {
        e.required(shown, "one of fieldRef and resourceFieldRef is required");
    }
    mode(e, &at("mode"));
}

fn host_path(e: &mut Errors, at: &At) {
    const KINDS: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    if e.need(&at.get("path")) {
        no_backsteps(e, &at.get("path"));
        e.one_of(&at.get("type"), &KINDS);
    }
}

const LONG_PORTAL: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// Whether the name under which the initiator would know the volume has no room.
fn too_long_portal(at: &At, volume: &str) -> bool {
    at.get("initiatorName").is_set() && volume.len() + 1 + at.get("targetPortal").text().len() > 64
}

fn iscsi(e: &mut Errors, at: &At, persistent: bool) {
    let (name, initiator) = (at.get("iqn"), at.get("initiatorName"));
    // The portal and the name were asked for with the other texts.
    if !name.is_empty() {
        initiator_name(e, &name, persistent);
    }
    e.between(&at.get("lun"), 0, 255);
    let chap = at.get("chapAuthDiscovery").is_true() || at.get("chapAuthSession").is_true();
    if chap && !at.get("secretRef").is_set() {
        e.required(&at.get("secretRef"), "");
    }
    if persistent && at.get("secretRef").is_set() {
        e.need(&at.get("secretRef.name"));
    }
    if initiator.is_set() {
        initiator_name(e, &at.named("initiatorname", initiator.value), persistent);
    }
}

fn initiator_name(e: &mut Errors, at: &At, persistent: bool) {
    static FORMS: LazyLock<[(&str, Regex); 3]> = LazyLock::new(|| {
        [
            ("iqn", r"iqn\.[0-9]{4}-[0-9]{2}\.([[:alnum:].-]+)(:[^,;*&$|\s]+)$"),
            ("eui", r"^eui.[[:alnum:]]{16}$"),
            ("naa", r"^naa.[[:alnum:]]{32}$"),
        ]
        .map(|(prefix, form)| (prefix, Regex::new(form).expect("a form of names")))
    });
    match FORMS.iter().find(|(prefix, _)| at.text().starts_with(prefix)) {
        Some((_, form)) if form.is_match(at.text()) => {}
        None if !persistent => e.invalid(at, "must be valid format starting with iqn, eui, or naa"),
        _ => e.invalid(at, "must be valid format"),
    }
}

fn fibre_channel(e: &mut Errors, at: &At) {
    let (names, ids, lun) = (at.get("targetWWNs"), at.get("wwids"), at.get("lun"));
    if names.is_empty() && ids.is_empty() {
        e.required(&names, "must specify either targetWWNs or wwids, but not both");
    }
    if !names.is_empty() && !ids.is_empty() {
        e.invalid(&names, "targetWWNs and wwids can not be specified simultaneously");
    }
    if !names.is_empty() {
        if !lun.is_set() {
            e.required(&lun, "lun is required if targetWWNs is specified");
        }
        e.between(&lun, 0, 255);
    }
}

fn flocker(e: &mut Errors, at: &At) {
    let (name, uuid) = (at.get("datasetName"), at.get("datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        e.required(at, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        e.invalid_as(at, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.text().contains('/') {
        e.invalid(&name, "must not contain '/'");
    }
}

fn quobyte(e: &mut Errors, at: &At) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = at.get("registry");
    if registry.is_empty() {
        e.required(&registry, PAIRS);
    } else if at.get("tenant").text().len() >= 65 {
        e.required(&at.get("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        registry.text().split(',').filter(|p| !is_host_and_port(p)).for_each(|_| e.invalid(&registry, PAIRS));
    }
    e.need(&at.get("volume"));
}

/// Whether a text has a host and a port, as `host:port` or `[v6]:port`.
fn is_host_and_port(s: &str) -> bool {
    match s.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").is_some_and(|(_, port)| !port.contains([':', '[', ']'])),
        None => s.matches(':').count() == 1 && !s.contains(['[', ']']),
    }
}

fn flex_options(e: &mut Errors, at: &At) {
    for (key, option) in at.entries() {
        let space = format!(".{}", key.split('/').next().unwrap_or("").to_lowercase());
        if space.ends_with(".kubernetes.io") || space.ends_with(".k8s.io") {
            e.invalid_as(&option, key, "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

fn azure_disk(e: &mut Errors, at: &At) {
    let (kind, uri) = (at.get("kind"), at.get("diskURI"));
    e.one_of(&at.get("cachingMode"), &["None", "ReadOnly", "ReadWrite"]);
    e.one_of(&kind, &["Dedicated", "Managed", "Shared"]);
    let managed = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    if kind.text() == "Managed" && !uri.text().starts_with("/subscriptions/") {
        e.not_supported(&uri, &[managed]);
    } else if !kind.is_empty() && kind.text() != "Managed" && !uri.text().starts_with("https://") {
        e.not_supported(&uri, &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"]);
    }
}
