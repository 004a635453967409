//! Objects between the version they are stored in and the version a client speaks.

use api::kinds::Kind;
use serde_json::Value;

/// Turns an object into another version of the same thing.
pub fn convert(object: &mut Value, to: &Kind) {
    *object = api::convert::convert(object.take(), to);
}

/// Brings a stored object into the form in which `to` is served: a custom resource's schema
/// may have got defaults, or lost fields, since the object was stored.
pub fn serve(object: &mut Value, to: &Kind) {
    convert(object, to);
    if to.is_custom() {
        // An object that does not fit its schema any more is shown as far as it does.
        let _ = api::codec::normalize(object, to.schema(), &mut Vec::new());
        api::crd::default_object(object, to.schema());
    }
}
