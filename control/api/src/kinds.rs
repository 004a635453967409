//! The registry of resources: built-in ones from the tables, custom ones added by
//! the API server. A `Kind` is one resource in one served version.

use crate::blob::{self, Reader};
use crate::schema::{Ref, Schema, Str, Ty};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// One resource in one version.
#[derive(Debug)]
pub struct Kind {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    pub list_kind: Str,
    pub plural: Str,
    pub singular: Str,
    pub namespaced: bool,
    pub short_names: Vec<Str>,
    pub categories: Vec<Str>,
    pub verbs: Vec<Str>,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
    /// Present on custom resources.
    pub custom: Option<Box<Custom>>,
    pub(crate) schema: Ref,
}

/// A sub-resource such as `status` or `scale`.
#[derive(Debug, Clone)]
pub struct Subresource {
    pub name: Str,
    /// Group, version and kind of its object; empty group and version mean the parent's.
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    pub verbs: Vec<Str>,
}

/// A column of the printed table.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: Str,
    pub ty: Str,
    pub format: Str,
    pub priority: u8,
    pub description: Str,
    /// JSONPath, for custom resources.
    pub path: Str,
}

/// What only custom resources have.
#[derive(Debug, Clone, Default)]
pub struct Custom {
    /// The CRD's name and uid.
    pub crd: String,
    pub uid: String,
    pub storage_version: String,
    pub preserve_unknown: bool,
    /// Whether there are `x-kubernetes-validations` anywhere in the schema.
    pub has_rules: bool,
    /// Whether the definition was changed since it was made: stored objects may have fields that it has no more.
    pub was_changed: bool,
    pub scale: Option<ScalePaths>,
    pub selectable: Vec<String>,
    pub deprecated: Option<String>,
    /// `spec.conversion` of the CRD.
    pub conversion: Value,
    /// `openAPIV3Schema` as the author wrote it.
    pub openapi: Value,
}

/// Where the scale sub-resource of a custom resource reads and writes.
#[derive(Debug, Clone, Default)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

/// Under which identity objects are stored: several served versions (and for
/// events several groups) share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StorageId {
    pub group: String,
    pub version: String,
    pub plural: String,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn group_resource(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// `Pod` or `Deployment.apps`, as messages name it.
    pub fn group_kind(&self) -> String {
        qualified(&self.kind, &self.group)
    }

    /// The root schema.
    pub fn schema(&self) -> &Schema {
        self.schema.get()
    }

    /// Whether a CRD defines it.
    pub fn is_custom(&self) -> bool {
        self.custom.is_some()
    }

    /// Whether DELETE answers with the object that is gone, not with a Status (upstream's registries that set
    /// `ReturnDeletedObject`).
    pub fn is_shown_when_deleted(&self) -> bool {
        const SHOWN: [(&str, &[&str]); 3] = [
            (
                "",
                &[
                    "Pod",
                    "Service",
                    "ServiceAccount",
                    "PersistentVolumeClaim",
                    "PersistentVolume",
                    "PodTemplate",
                    "ResourceQuota",
                ],
            ),
            ("storage.k8s.io", &["StorageClass", "CSIDriver", "CSINode", "VolumeAttachment", "VolumeAttributesClass"]),
            ("resource.k8s.io", &["DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"]),
        ];
        SHOWN.iter().any(|(group, kinds)| *self.group == **group && kinds.contains(&&*self.kind))
    }

    /// Whether its schema holds CEL rules.
    pub fn has_rules(&self) -> bool {
        self.custom.as_ref().is_some_and(|custom| custom.has_rules)
    }

    /// Whether protobuf carries it.
    pub fn has_protobuf(&self) -> bool {
        self.custom.is_none()
    }

    /// Whether the main resource has the verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The sub-resource called `name`.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the kind has a status sub-resource.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// The identity under which objects are stored.
    pub fn storage(&self) -> StorageId {
        let (group, version) = match (self.group.as_ref(), self.plural.as_ref()) {
            ("events.k8s.io", "events") => ("", "v1"),
            ("autoscaling", "horizontalpodautoscalers") => ("autoscaling", "v2"),
            (g, _) => match &self.custom {
                Some(c) => (g, c.storage_version.as_str()),
                None => (g, self.version.as_ref()),
            },
        };
        StorageId { group: group.into(), version: version.into(), plural: self.plural.to_string() }
    }

    /// Whether PUT without resourceVersion overwrites.
    pub fn allows_unconditional_update(&self) -> bool {
        !self.is_custom()
            && !matches!(
                (self.group.as_ref(), self.plural.as_ref()),
                ("coordination.k8s.io", _)
                    | ("apiregistration.k8s.io" | "apiextensions.k8s.io" | "admissionregistration.k8s.io", _)
                    | ("node.k8s.io" | "policy", _)
                    | ("storage.k8s.io", "volumeattachments" | "csinodes" | "csidrivers" | "csistoragecapacities")
            )
    }

    /// Whether PUT to a missing name creates it.
    pub fn allows_create_on_update(&self) -> bool {
        matches!(
            (self.group.as_ref(), self.plural.as_ref()),
            ("", "endpoints" | "events" | "services" | "limitranges")
                | ("events.k8s.io", "events")
                | ("coordination.k8s.io", "leases")
                | ("rbac.authorization.k8s.io", _)
        )
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// Splits an apiVersion into group and version.
pub fn split_api_version(v: &str) -> (&str, &str) {
    v.split_once('/').unwrap_or(("", v))
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_string() } else { format!("{name}.{group}") }
}

static BUILTIN: LazyLock<Vec<Arc<Kind>>> = LazyLock::new(|| {
    let mut r = Reader::of_kinds();
    (0..blob::kind_count()).map(|_| Arc::new(decode(&mut r))).collect()
});

fn strs(list: Vec<&'static str>) -> Vec<Str> {
    list.into_iter().map(Str::Borrowed).collect()
}

fn decode(r: &mut Reader) -> Kind {
    let [group, version, kind, plural, singular] = std::array::from_fn(|_| Str::Borrowed(r.str()));
    let namespaced = r.byte() == 1;
    let short_names = strs(r.strs());
    let categories = strs(r.strs());
    let verbs = strs(r.strs());
    let schema = Ref::Type(r.num() as u16);
    let subresources = (0..r.num())
        .map(|_| {
            let [name, group, version, kind] = std::array::from_fn(|_| Str::Borrowed(r.str()));
            Subresource { name, group, version, kind, verbs: strs(r.strs()) }
        })
        .collect();
    let columns = (0..r.num())
        .map(|_| {
            let [name, ty, format] = std::array::from_fn(|_| Str::Borrowed(r.str()));
            Column { name, ty, format, priority: r.byte(), description: "".into(), path: "".into() }
        })
        .collect();
    let list_kind = format!("{kind}List").into();
    Kind {
        group,
        version,
        kind,
        list_kind,
        plural,
        singular,
        namespaced,
        short_names,
        categories,
        verbs,
        subresources,
        columns,
        custom: None,
        schema,
    }
}

/// All built-in kinds in discovery order.
pub fn builtin() -> &'static [Arc<Kind>] {
    &BUILTIN
}

/// A set of kinds with look-up. Cheap to rebuild when a CRD changes.
#[derive(Debug, Clone)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<(Str, Str, Str), usize>,
    by_kind: HashMap<(Str, Str, Str), usize>,
}

impl Registry {
    /// The built-in kinds and those of `metrics.k8s.io`.
    pub fn builtin() -> Registry {
        Registry::with_custom(&[])
    }

    /// The built-in kinds, those of `metrics.k8s.io`, and these; a custom kind never hides another.
    pub fn with_custom(custom: &[Arc<Kind>]) -> Registry {
        let mut r = Registry { kinds: Vec::new(), by_resource: HashMap::new(), by_kind: HashMap::new() };
        for k in builtin().iter().chain(crate::usage::kinds()).chain(custom) {
            let resource = (k.group.clone(), k.version.clone(), k.plural.clone());
            if r.by_resource.contains_key(&resource) {
                continue;
            }
            let at = r.kinds.len();
            r.by_resource.insert(resource, at);
            r.by_kind.entry((k.group.clone(), k.version.clone(), k.kind.clone())).or_insert(at);
            r.kinds.push(k.clone());
        }
        r
    }

    /// All kinds in discovery order.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// By group, version and plural.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let key = (Str::Owned(group.into()), Str::Owned(version.into()), Str::Owned(plural.into()));
        self.by_resource.get(&key).map(|i| &self.kinds[*i])
    }

    /// By group, version and kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let key = (Str::Owned(group.into()), Str::Owned(version.into()), Str::Owned(kind.into()));
        self.by_kind.get(&key).map(|i| &self.kinds[*i])
    }

    /// By apiVersion and kind as objects carry them.
    pub fn of_object(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (g, v) = split_api_version(api_version);
        self.kind(g, v, kind)
    }

    /// Any version of a kind, the first served.
    pub fn any_version(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.group == group && k.kind == kind)
    }

    /// Any version of a resource, the first served.
    pub fn any_resource(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.group == group && k.plural == plural)
    }
}

/// The built-in kind, by group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    BUILTIN.iter().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The built-in kind, by group, version and kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<Kind>> {
    BUILTIN.iter().find(|k| k.group == group && k.version == version && k.kind == kind)
}

/// The schema of a type that is no resource of its own (Scale, DeleteOptions,
/// Eviction, TokenRequest, reviews), by group, version and kind.
pub fn type_schema(group: &str, version: &str, kind: &str) -> Option<&'static Schema> {
    let name = match (group, kind) {
        (
            _,
            "DeleteOptions" | "Status" | "WatchEvent" | "APIResourceList" | "APIGroupList" | "APIGroup" | "APIVersions",
        ) => {
            format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
        }
        ("apiextensions.k8s.io", _) => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}")
        }
        ("apiregistration.k8s.io", _) => {
            format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}")
        }
        ("", _) => format!("io.k8s.api.core.{version}.{kind}"),
        (g, _) => {
            let package = match g.split('.').next().unwrap_or(g) {
                "flowcontrol" => "flowcontrol",
                "internal" => "apiserverinternal",
                p => p,
            };
            format!("io.k8s.api.{package}.{version}.{kind}")
        }
    };
    crate::schema::by_name(&name).filter(|s| s.ty == Ty::Object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_usual_kinds() {
        let pod = find("", "v1", "pods").unwrap();
        assert!(pod.namespaced && pod.has_verb("watch") && pod.has_status());
        assert_eq!(pod.short_names, ["po"]);
        assert_eq!(pod.columns[0].name, "Name");
        assert_eq!(pod.subresource("eviction").unwrap().group, "policy");
        let d = find("apps", "v1", "deployments").unwrap();
        assert_eq!(
            (d.group_resource(), d.group_kind(), d.api_version()),
            ("deployments.apps".into(), "Deployment.apps".into(), "apps/v1".into())
        );
        assert_eq!(
            find("events.k8s.io", "v1", "events").unwrap().storage(),
            find("", "v1", "events").unwrap().storage()
        );
        assert_eq!(find("autoscaling", "v1", "horizontalpodautoscalers").unwrap().storage().version, "v2");
        for k in builtin() {
            assert!(k.schema().field("metadata").is_some() || !k.has_verb("get"), "{}", k.plural);
            assert_eq!(
                type_schema(&k.group, &k.version, &k.kind).map(|s| s.name.clone()),
                Some(k.schema().name.clone())
            );
        }
        assert!(type_schema("autoscaling", "v1", "Scale").is_some());
        assert!(type_schema("policy", "v1", "Eviction").is_some());
    }

    #[test]
    fn columns_are_known() {
        for k in builtin() {
            if k.has_verb("list") && k.columns.is_empty() {
                println!("no columns: {}", k.group_resource());
            }
        }
        assert_eq!(find("storage.k8s.io", "v1", "storageclasses").unwrap().columns[0].name, "Name");
        assert_eq!(find("node.k8s.io", "v1", "runtimeclasses").unwrap().columns.len(), 3);
    }
}
