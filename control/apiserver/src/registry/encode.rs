//! Objects as the store takes them: JSON with a hole where it puts the revision.

use std::sync::LazyLock;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// Stands where the revision will be.  It is drawn anew by each process and never leaves it,
/// so that no client can write it into an object.
static MARK: LazyLock<String> = LazyLock::new(|| format!("revision-{}", uuid::Uuid::new_v4()));

/// Encodes an object.
pub(crate) fn encode(object: &Value) -> Result<store::Stamped> {
    let (Some(map), true) = (object.as_object(), object["metadata"].is_object()) else {
        return Err(ApiError::internal("an object to be stored has no metadata"));
    };
    let mut text = serde_json::to_string(&Whole(map)).map_err(ApiError::internal)?;
    let at =
        text.find(MARK.as_str()).ok_or_else(|| ApiError::internal("an object was encoded without its metadata"))?;
    text.replace_range(at..at + MARK.len(), "");
    Ok(store::Stamped { bytes: text.into_bytes(), stamp_at: at })
}

struct Whole<'a>(&'a Map<String, Value>);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            match value {
                Value::Object(metadata) if key == "metadata" => out.serialize_entry(key, &Metadata(metadata))?,
                value => out.serialize_entry(key, value)?,
            }
        }
        out.end()
    }
}

struct Metadata<'a>(&'a Map<String, Value>);

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        for (key, value) in self.0.iter().filter(|(key, _)| *key != "resourceVersion") {
            out.serialize_entry(key, value)?;
        }
        out.serialize_entry("resourceVersion", MARK.as_str())?;
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hole_is_in_the_metadata() {
        let object = json!({"data": {"resourceVersion": "", "x": "\u{1}revision\u{1}"}, "metadata": {"name": "n", "resourceVersion": "5"}});
        let encoded = encode(&object).unwrap();
        let (head, tail) = encoded.bytes.split_at(encoded.stamp_at);
        let filled: Value = serde_json::from_slice(&[head, b"77", tail].concat()).unwrap();
        assert_eq!(filled["metadata"], json!({"name": "n", "resourceVersion": "77"}));
        assert_eq!(filled["data"], object["data"]);
        assert!(encode(&json!({"data": {}})).is_err());
    }
}
