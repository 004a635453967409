//! The replica sets of a deployment: which one is new, what a new one looks like, their annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_client::owner;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::workloads::make;

pub const HASH: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the deployment that its sets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn revision(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH);
        }
        // Servers write an empty time that means nothing.
        meta.creation_timestamp = None;
        meta.labels = meta.labels.take().filter(|l| !l.is_empty());
    }
    template.metadata = template.metadata.filter(|m| *m != ObjectMeta::default());
    template
}

fn template_of(set: &ReplicaSet) -> PodTemplateSpec {
    set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
}

/// Place of the oldest set with the deployment's template.
pub fn find_new(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<usize> {
    let wanted = without_hash(&deployment.spec.as_ref()?.template);
    let mut matching: Vec<usize> =
        (0..sets.len()).filter(|at| without_hash(&template_of(&sets[*at])) == wanted).collect();
    matching.sort_by_key(|at| (sets[*at].metadata.creation_timestamp.clone(), sets[*at].metadata.name.clone()));
    matching.first().copied()
}

fn copied(deployment: &Deployment) -> BTreeMap<String, String> {
    let all = deployment.metadata.annotations.clone().unwrap_or_default();
    all.into_iter().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())).collect()
}

/// The next revision after those of the older sets.
fn next_revision(sets: &[Arc<ReplicaSet>], new: Option<usize>) -> i64 {
    let old = sets.iter().enumerate().filter(|(at, _)| Some(*at) != new);
    old.map(|(_, set)| revision(set)).max().unwrap_or(0) + 1
}

/// A set for the current template, with so many replicas.
pub fn make_new(deployment: &Deployment, sets: &[Arc<ReplicaSet>], replicas: i32, most: i32) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = make::hash(&without_hash(&spec.template), collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let mut annotations = copied(deployment);
    annotations.insert(REVISION.to_owned(), next_revision(sets, None).to_string());
    annotations.insert(DESIRED.to_owned(), spec.replicas.unwrap_or(1).to_string());
    annotations.insert(MAX.to_owned(), most.to_string());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// The new set with the annotations it should have; none where it has them.
pub fn refreshed(deployment: &Deployment, sets: &[Arc<ReplicaSet>], new: usize) -> Option<ReplicaSet> {
    let set = &sets[new];
    let mut updated = (**set).clone();
    let annotations = updated.metadata.annotations.get_or_insert_default();
    annotations.extend(copied(deployment));
    let next = next_revision(sets, Some(new));
    let own = revision(set);
    if own < next {
        // An old set became new again: its former numbers are remembered.
        if own > 0 {
            let history = annotations.entry(HISTORY.to_owned()).or_default();
            *history = if history.is_empty() { own.to_string() } else { format!("{history},{own}") };
        }
        annotations.insert(REVISION.to_owned(), next.to_string());
    }
    if let (Some(to), Some(from)) = (&mut updated.spec, &deployment.spec) {
        to.min_ready_seconds = from.min_ready_seconds;
    }
    (updated != **set).then_some(updated)
}

/// The set with the sizes of its deployment written on it.
pub fn with_sizes(set: &ReplicaSet, desired: i32, most: i32) -> ReplicaSet {
    let mut set = set.clone();
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), most.to_string());
    set
}
