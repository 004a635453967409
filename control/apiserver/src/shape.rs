//! What the schema tables do to objects: defaults, validation, field managers.

use api::kinds::Kind;
use serde_json::Value;

use crate::error::Cause;
use crate::handlers::Scope;

/// Fills in what a client left out.
pub(crate) fn defaults(kind: &Kind, object: &mut Value) {
    if kind.is_custom() {
        api::crd::default_object(object, kind.schema());
    } else {
        api::defaults::apply(kind, object);
    }
}

/// What is wrong with an object by its schema.
pub(crate) fn validate(kind: &Kind, new: &Value, _old: Option<&Value>) -> Vec<Cause> {
    let errors = if kind.is_custom() {
        api::crd::validate(new, kind.schema(), "")
    } else if kind.group == "apiextensions.k8s.io" {
        api::crd::check(new)
    } else {
        Vec::new()
    };
    errors.into_iter().map(Cause::from).collect()
}

/// Records who manages the fields that a write changed.
pub(crate) fn track_update(_scope: &Scope<'_>, _new: &mut Value, _old: Option<&Value>, _manager: &str) {}

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
