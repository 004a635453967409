//! Objects between the version they are stored in and the version a client speaks.

use api::kinds::Kind;
use serde_json::{Map, Value};

/// Turns an object of kind `from` into one of kind `to`: another version of the same thing.
pub fn convert(object: &mut Value, from: &Kind, to: &Kind) {
    if from.plural == "events" && from.group != to.group {
        convert_event(object, to.group == "events.k8s.io");
    }
    api::meta::set_type(object, &to.api_version(), &to.kind);
}

/// The two views of an Event: the same facts under other names.
const EVENT_FIELDS: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
];

fn convert_event(object: &mut Value, to_new: bool) {
    let Value::Object(map) = object else { return };
    for (core, new) in EVENT_FIELDS.iter().chain([&("count", "deprecatedCount")]) {
        let (from, to) = if to_new { (core, new) } else { (new, core) };
        rename(map, from, to);
    }
}

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_string(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_there_and_back() {
        let core = api::kinds::find("", "v1", "events").unwrap();
        let new = api::kinds::find("events.k8s.io", "v1", "events").unwrap();
        let stored = json!({"kind": "Event", "apiVersion": "v1", "involvedObject": {"name": "p"}, "message": "m", "count": 2, "reason": "r"});
        let mut event = stored.clone();
        convert(&mut event, core, new);
        assert_eq!(event, json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "regarding": {"name": "p"}, "note": "m", "deprecatedCount": 2, "reason": "r"}));
        convert(&mut event, new, core);
        assert_eq!(event, stored);
    }
}
