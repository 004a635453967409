//! The pod and the claims of one ordinal. Pure.

use control_client::owner;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::workloads::history::HASH;
use crate::workloads::make;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub fn first_ordinal(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0)
}

pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub fn name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

/// The ordinal in the pod's name; none where the name is no name of the set.
pub fn ordinal(set_name: &str, pod: &Pod) -> Option<i32> {
    let number = pod.metadata.name.as_deref()?.strip_prefix(set_name)?.strip_prefix('-')?;
    number.parse().ok().filter(|n: &i32| *n >= 0 && n.to_string() == number)
}

fn claim_name(template: &PersistentVolumeClaim, set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{}", template.metadata.name.as_deref().unwrap_or_default(), name(set, ordinal))
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    templates(set)
        .iter()
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(template, set, ordinal));
            claim.metadata.namespace = set.metadata.namespace.clone();
            let labels = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
            claim.metadata.labels.get_or_insert_default().extend(labels);
            claim.metadata.owner_references = Some(claim_owners(set, &claim, ordinal, None)).filter(|o| !o.is_empty());
            claim.status = None;
            claim
        })
        .collect()
}

/// The ordinal that the claim belongs to, where it is one of the set's.
pub fn claim_ordinal(set: &StatefulSet, claim: &PersistentVolumeClaim) -> Option<i32> {
    let claim_name = claim.metadata.name.as_deref()?;
    templates(set).iter().find_map(|template| {
        let prefix = format!(
            "{}-{}-",
            template.metadata.name.as_deref().unwrap_or_default(),
            set.metadata.name.as_deref().unwrap_or_default()
        );
        let number = claim_name.strip_prefix(&prefix)?;
        number.parse::<i32>().ok().filter(|n| n.to_string() == number)
    })
}

/// Owner references that the claim should have by the set's retention policy; foreign ones stay.
pub fn claim_owners(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    ordinal: i32,
    pod: Option<&Pod>,
) -> Vec<OwnerReference> {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deleted = policy.and_then(|p| p.when_deleted.as_deref()) == Some("Delete");
    let scaled = policy.and_then(|p| p.when_scaled.as_deref()) == Some("Delete");
    let pod_name = name(set, ordinal);
    let mut references = claim.metadata.owner_references.clone().unwrap_or_default();
    references.retain(|r| {
        let is_set = r.kind == "StatefulSet" && Some(&r.uid) == set.metadata.uid.as_ref();
        let is_pod = r.kind == "Pod" && r.name == pod_name;
        !is_set && !is_pod
    });
    let first = first_ordinal(set);
    let surplus = ordinal < first || ordinal >= first + replicas(set);
    if deleted {
        let mut reference = owner::controller_reference(set);
        reference.block_owner_deletion = None;
        references.push(reference);
    }
    if scaled
        && surplus
        && let Some(pod) = pod
    {
        references.push(OwnerReference {
            controller: None,
            block_owner_deletion: None,
            ..owner::controller_reference(pod)
        });
    }
    references
}

pub fn new(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let mut pod = make::pod_from(set, template);
    let pod_name = name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), pod_name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(HASH.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|n| !n.is_empty());
    let volumes = spec.volumes.get_or_insert_default();
    for claim in templates(set) {
        let volume_name = claim.metadata.name.clone().unwrap_or_default();
        // A claim of the set goes before a volume of the same name in the template.
        volumes.retain(|v| v.name != volume_name);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(claim, set, ordinal),
                read_only: None,
            }),
            name: volume_name,
            ..Volume::default()
        });
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_read_from_names_of_the_set_only() {
        let named = |name: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod
        };
        let cases = [("db-0", Some(0)), ("db-12", Some(12)), ("db-01", None), ("db-x", None), ("dbx-1", None)];
        for (name, wanted) in cases {
            assert_eq!(ordinal("db", &named(name)), wanted, "{name}");
        }
    }
}
