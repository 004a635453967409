//! Revisions of a template: ControllerRevisions of daemon sets and stateful sets.

use std::sync::Arc;

use control_client::{Failure, Object, owner};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::Value;

use super::claim::claim;
use super::make;
use crate::context::Context;

/// Label of pods and revisions, with the revision's hash (daemon sets) or name (stateful sets).
pub const HASH: &str = "controller-revision-hash";

/// The template in the form that revisions hold: a patch that `kubectl rollout undo` can apply.
pub fn data(template: &PodTemplateSpec) -> Value {
    // Typed objects always become JSON.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".to_owned(), "replace".into());
    }
    serde_json::json!({"spec": {"template": template}})
}

/// The revisions of an owner, and which of them is its template now.
pub struct History {
    /// From the oldest to the newest.
    pub all: Vec<Arc<ControllerRevision>>,
    pub current: Arc<ControllerRevision>,
}

fn is_same(revision: &ControllerRevision, data: &Value) -> bool {
    revision.data.as_ref().is_some_and(|d| d.0 == *data)
}

/// Finds the revision of the template, or makes it, and gives it the highest number.
pub async fn sync<O: Object>(
    context: &Context,
    owner: &O,
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    collisions: i32,
) -> Result<History, Failure> {
    let store = &context.caches.revisions;
    let mut all = claim(owner, selector, store, |_| true).await?;
    all.sort_by_key(|r| (r.revision, r.metadata.creation_timestamp.clone(), r.metadata.name.clone()));
    let wanted = data(template);
    let next = all.last().map_or(1, |r| r.revision + 1);
    let known = all.iter().rposition(|r| is_same(r, &wanted));
    let current = match known {
        Some(at) if at + 1 == all.len() => all[at].clone(),
        Some(at) => {
            let mut again = (*all.remove(at)).clone();
            again.revision = next;
            let again = store.replace(&again).await?;
            all.push(again.clone());
            again
        }
        None => {
            let new = make_revision(owner, selector, template, wanted.clone(), next, collisions);
            let new = match store.create(&new).await {
                Err(failure) if failure.already_exists() => {
                    let name = new.metadata.name.as_deref().unwrap_or_default();
                    let there: ControllerRevision = context.client.get(owner.meta().namespace.as_deref(), name).await?;
                    if !is_same(&there, &wanted) {
                        return Err(failure);
                    }
                    store.absorb(there)
                }
                other => other?,
            };
            all.push(new.clone());
            new
        }
    };
    Ok(History { all, current })
}

fn make_revision<O: Object>(
    owner: &O,
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    data: Value,
    revision: i64,
    collisions: i32,
) -> ControllerRevision {
    let hash = make::hash(template, collisions);
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.extend(selector.match_labels.clone().unwrap_or_default());
    labels.insert(HASH.to_owned(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default())),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone().map(|mut a| {
                a.remove("kubectl.kubernetes.io/last-applied-configuration");
                a
            }),
            owner_references: Some(vec![owner::controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision,
    }
}

/// The hash that pods of the revision carry.
pub fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|l| l.get(HASH)).map(String::as_str).unwrap_or_default()
}

/// The template of the revision.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Deletes the oldest revisions that nobody uses, beyond the limit.
pub async fn trim(context: &Context, history: &History, in_use: &[String], limit: i32) -> Result<(), Failure> {
    let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
    let unused: Vec<_> = history
        .all
        .iter()
        .filter(|r| r.metadata.name != history.current.metadata.name)
        .filter(|r| {
            let name = r.metadata.name.clone().unwrap_or_default();
            !in_use.iter().any(|u| *u == name || u == hash_of(r))
        })
        .collect();
    for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
        context.caches.revisions.delete(revision).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_survives_its_revision() {
        let template = PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("a".to_owned(), "b".to_owned())].into()),
                ..ObjectMeta::default()
            }),
            ..PodTemplateSpec::default()
        };
        let revision = make_revision(
            &k8s_openapi::api::apps::v1::DaemonSet::default(),
            &LabelSelector::default(),
            &template,
            data(&template),
            1,
            0,
        );
        assert_eq!(template_of(&revision), Some(template.clone()));
        assert!(is_same(&revision, &data(&template)));
    }
}
