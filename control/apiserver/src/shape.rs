//! What the schema tables do to objects: defaults, validation, field managers.

use api::kinds::Kind;
use serde_json::Value;

use crate::error::Cause;
use crate::handlers::Scope;

/// Fills in what a client left out.
pub(crate) fn defaults(kind: &Kind, object: &mut Value) {
    if kind.is_custom() {
        api::crd::whole_numbers(object);
        api::crd::default_object(object, kind.schema());
    } else {
        api::defaults::apply(kind, object);
    }
}

/// What is wrong with an object by the rules of its kind.
pub(crate) fn validate(scope: &Scope<'_>, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let write = api::validation::Write {
        kind: &scope.stored,
        group: &scope.info.group,
        part: if old.is_some() { &scope.info.subresource } else { "" },
        old,
    };
    let (faults, warnings) = write.judge(new);
    if faults.is_empty() {
        warnings.into_iter().for_each(|text| scope.warn(text));
    }
    faults.into_iter().map(Cause::from).collect()
}

/// Who writes, for the record of field managers.
pub(crate) fn writer<'a>(scope: &'a Scope<'_>, manager: &'a str, now: &'a str) -> api::apply::Write<'a> {
    api::apply::Write {
        manager,
        api_version: &scope.api_version,
        subresource: &scope.info.subresource,
        now,
        has_status: scope.stored.has_status(),
    }
}

/// Records who manages the fields that a write changed.
pub(crate) fn track_update(scope: &Scope<'_>, new: &mut Value, old: Option<&Value>, manager: &str) {
    let now = crate::handlers::now();
    api::apply::on_update(old, new, scope.stored.schema(), writer(scope, manager, &now));
}

/// Records the creator as the manager of what it sent, with the schema's defaults. What admission and the server have
/// filled in since is nobody's, and whoever applies it meets no conflict: upstream's field manager comes before both
/// (`endpoints/handlers/create.go`).
pub(crate) fn track_create(scope: &Scope<'_>, object: &mut Value, mut sent: Value, manager: &str) {
    keep_common(&mut sent, object);
    track_update(scope, &mut sent, None, manager);
    match api::meta::remove(&mut sent, "managedFields") {
        Some(fields) => api::meta::set_value(object, "managedFields", fields),
        None => drop(api::meta::remove(object, "managedFields")),
    }
}

/// Takes out of what was sent what did not come to be.
fn keep_common(sent: &mut Value, object: &Value) {
    let (Some(sent), Some(object)) = (sent.as_object_mut(), object.as_object()) else { return };
    sent.retain(|key, _| object.contains_key(key));
    for (key, value) in sent.iter_mut() {
        keep_common(value, &object[key]);
    }
}

/// Whether a write changes nothing, but for the times in managedFields.
pub(crate) fn same(new: &Value, old: &Value) -> bool {
    if new == old {
        return true;
    }
    let bare = |object: &Value| {
        let mut object = object.clone();
        let fields = api::meta::metadata_mut(&mut object).get_mut("managedFields").and_then(Value::as_array_mut);
        for entry in fields.into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
        object
    };
    bare(new) == bare(old)
}
