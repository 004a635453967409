//! Which objects belong to a controller: those it controls and selects, and the orphans it adopts.

use std::sync::Arc;

use control_client::{Failure, Key, Object, Queue, Store, owner, selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

#[derive(Debug, PartialEq)]
enum Verdict {
    Mine,
    Adopt,
    Release,
    NotMine,
}

fn judge(meta: &ObjectMeta, owner_uid: &str, selects: bool, may_adopt: bool) -> Verdict {
    match owner::controller_of(meta) {
        Some(reference) if reference.uid != owner_uid => Verdict::NotMine,
        Some(_) if selects => Verdict::Mine,
        Some(_) if may_adopt => Verdict::Release,
        Some(_) => Verdict::NotMine,
        None if selects && may_adopt && meta.deletion_timestamp.is_none() => Verdict::Adopt,
        None => Verdict::NotMine,
    }
}

/// The objects in the owner's namespace that belong to it, after adoption and release.
pub async fn claim<O: Object, K: Object>(
    owner: &O,
    wanted: &LabelSelector,
    store: &Store<K>,
    adoptable: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Failure> {
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let owner_lives = owner.meta().deletion_timestamp.is_none();
    let mut mine = Vec::new();
    let orphans = store.orphans(owner.meta().namespace.as_deref().unwrap_or_default());
    for object in store.controlled_by(uid).into_iter().chain(orphans) {
        let meta = object.meta();
        let selects = !selector::is_empty(wanted) && selector::matches(wanted, meta.labels.as_ref());
        match judge(meta, uid, selects, owner_lives) {
            Verdict::Mine => mine.push(object),
            Verdict::NotMine => {}
            Verdict::Adopt if !adoptable(&object) => {}
            Verdict::Adopt => {
                let mut references = meta.owner_references.clone().unwrap_or_default();
                references.push(owner::controller_reference(owner));
                mine.extend(set_owners(store, &object, references).await?);
            }
            Verdict::Release => {
                let mut references = meta.owner_references.clone().unwrap_or_default();
                references.retain(|r| r.uid != uid);
                set_owners(store, &object, references).await?;
            }
        }
    }
    Ok(mine)
}

async fn set_owners<K: Object>(
    store: &Store<K>,
    object: &Arc<K>,
    references: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
) -> Result<Option<Arc<K>>, Failure> {
    let patch = serde_json::json!({"metadata": {
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
        "ownerReferences": references,
    }});
    match store.merge(None, object, &patch).await {
        Ok(object) => Ok(Some(object)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Queues the controllers of an object that changed: by its owner reference, or by selector where it is an orphan.
pub fn wake_owners<K: Object, O: Object>(
    change: &control_client::Change<K>,
    owners: &Store<O>,
    queue: &Queue<Key>,
    selects: impl Fn(&O, &ObjectMeta) -> bool,
) {
    let meta = change.object().meta();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let kind = O::kind(&());
    let by_reference = |meta: &ObjectMeta| {
        let reference = owner::controller_of(meta)?;
        (reference.kind == kind).then(|| queue.add(Key::new(namespace, &reference.name)));
        Some(())
    };
    let has_controller = by_reference(meta).is_some();
    if let Some(old) = change.old() {
        by_reference(old.meta());
    }
    if !has_controller && !matches!(change, control_client::Change::Deleted(_)) {
        for owner in owners.in_namespace(namespace) {
            if selects(&owner, meta) {
                queue.add(Key::of(&*owner));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    #[test]
    fn objects_are_kept_adopted_or_released() {
        let of = |uid: Option<&str>| ObjectMeta {
            owner_references: uid.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
            }),
            ..ObjectMeta::default()
        };
        let cases = [
            (Some("me"), true, true, Verdict::Mine),
            (Some("me"), false, true, Verdict::Release),
            (Some("other"), true, true, Verdict::NotMine),
            (None, true, true, Verdict::Adopt),
            (None, true, false, Verdict::NotMine),
            (None, false, true, Verdict::NotMine),
        ];
        for (uid, selects, adopts, wanted) in cases {
            assert_eq!(judge(&of(uid), "me", selects, adopts), wanted, "{uid:?} {selects} {adopts}");
        }
    }
}
