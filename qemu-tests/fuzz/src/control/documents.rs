//! Bodies: objects in three encodings, patches, applied configurations. The first byte chooses the kind.

use api::apply::Write;
use api::codec::{self, Format};
use api::patch::{self, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH};
use api::protobuf;
use api::schema::Schema;
use serde_json::Value;

/// Kinds that between them have every sort of field: maps, lists by key, integers or strings, raw values, times.
const KINDS: &[(&str, &str)] = &[
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "Event"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "ControllerRevision"),
    ("batch/v1", "CronJob"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("v1", "List"),
];

fn chosen(data: &[u8]) -> Option<(&'static Schema, &[u8])> {
    let (first, rest) = data.split_first()?;
    let (version, kind) = KINDS[usize::from(*first) % KINDS.len()];
    protobuf::schema_of(version, kind).map(|schema| (schema, rest))
}

/// What was read is written and read again, and must be the same.
fn again(object: &Value, format: Format, schema: &Schema) {
    let written = codec::encode(object, format, Some(schema)).expect("what was decoded can be encoded");
    let read = codec::decode(&written, format.media_type(), schema, true)
        .unwrap_or_else(|e| panic!("what was encoded cannot be decoded: {e:?}"));
    assert_eq!(read.object, *object, "after encoding and decoding");
}

pub(crate) fn json(data: &[u8]) {
    let Some((schema, body)) = chosen(data) else { return };
    if let Ok(decoded) = codec::decode(body, codec::JSON, schema, true) {
        again(&decoded.object, Format::Json, schema);
        // Numbers that protobuf has no room for may change there; it must only not fail.
        let _bytes = codec::encode(&decoded.object, Format::Protobuf, Some(schema));
        let _bytes = codec::pretty(&decoded.object);
    }
}

pub(crate) fn yaml(data: &[u8]) {
    let Some((schema, body)) = chosen(data) else { return };
    if let Ok(decoded) = codec::decode(body, codec::YAML, schema, true) {
        again(&decoded.object, Format::Json, schema);
        let _text = codec::encode(&decoded.object, Format::Yaml, Some(schema));
    }
}

pub(crate) fn protobuf(data: &[u8]) {
    let Some((schema, body)) = chosen(data) else { return };
    // The envelope is put around it here as well, so that mutations reach the message.
    if let Ok(message) = protobuf::decode_message(body, schema) {
        let object = Value::Object(message);
        let written = protobuf::encode_message(&object, schema);
        let read = protobuf::decode_message(&written, schema).expect("what was encoded can be decoded");
        let rewritten = protobuf::encode_message(&Value::Object(read), schema);
        assert_eq!(written, rewritten, "after encoding, decoding and encoding");
        let _text = codec::encode(&object, Format::Json, Some(schema));
    }
    let _object = protobuf::decode_object(body, Some(schema));
}

/// Objects that patches are applied to.
fn objects() -> &'static [(Value, &'static Schema)] {
    use std::sync::LazyLock;
    static OBJECTS: LazyLock<Vec<(Value, &'static Schema)>> = LazyLock::new(|| {
        let texts = [include_str!("../../objects/pod.json"), include_str!("../../objects/service.json")];
        let parsed = texts.iter().map(|text| {
            let object: Value = serde_json::from_str(text).expect("the sample is JSON");
            let schema = protobuf::schema_of("v1", object["kind"].as_str().unwrap_or("")).expect("a built-in kind");
            (object, schema)
        });
        parsed.collect()
    });
    &OBJECTS
}

pub(crate) fn patch(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let (object, schema) = &objects()[usize::from(*first & 1)];
    let kind = [JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH][usize::from(*first >> 1) % 3];
    if let Ok(patched) = patch::apply(kind, object, body, Some(schema)) {
        let _size = patched.to_string();
    }
}

pub(crate) fn apply(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let (object, schema) = &objects()[usize::from(*first & 1)];
    let Ok(config) = codec::decode(body, codec::YAML, schema, true) else { return };
    let write =
        || Write { manager: "fuzz", api_version: "v1", subresource: "", has_status: true, now: "2026-01-01T00:00:00Z" };
    let Ok(applied) = api::apply::apply(Some(object), &config.object, schema, write(), true) else { return };
    let twice = api::apply::apply(Some(&applied), &config.object, schema, write(), true)
        .unwrap_or_else(|e| panic!("what was applied cannot be applied again: {e:?}"));
    let bare = |v: &Value| {
        let mut v = v.clone();
        if let Some(metadata) = v["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        v
    };
    assert_eq!(bare(&applied), bare(&twice), "applying the same again");
}
