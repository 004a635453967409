//! Objects of every kind, with every field that it has, in every form: JSON, YAML and protobuf
//! say the same.

use api::codec::{Format, decode, encode};
use api::kinds::{builtin, type_schema};
use api::schema::{Schema, Ty};
use serde_json::{Map, Value, json};

/// An object with all its fields, down to a depth.
fn full(s: &Schema, depth: u32) -> Option<Value> {
    Some(match s.ty {
        Ty::Object if s.is_map() => json!({"k": full(s.child("x")?, depth.checked_sub(1)?)?}),
        Ty::Object => {
            let depth = depth.checked_sub(1)?;
            let fields: Map<String, Value> = s
                .fields
                .iter()
                .filter(|f| !matches!(f.name.as_ref(), "apiVersion" | "kind") || f.number > 0)
                .filter_map(|f| Some((f.name.to_string(), full(f.schema(), depth)?)))
                .collect();
            Value::Object(fields)
        }
        Ty::Array => json!([full(s.item()?, depth)?, full(s.item()?, depth)?]),
        Ty::Boolean => true.into(),
        Ty::Int32 => (i32::MAX - 1).into(),
        Ty::Int64 => (i64::MAX - 1).into(),
        Ty::Number => 0.25.into(),
        Ty::Quantity => "100m".into(),
        Ty::Time => "2026-01-02T03:04:05Z".into(),
        Ty::MicroTime => "2026-01-02T03:04:05.000001Z".into(),
        Ty::Bytes => "aGk=".into(),
        Ty::String => "yes: \"ü\"\n- 0x1f".into(),
        Ty::IntOrString => "25%".into(),
        Ty::RawExtension => json!({"apiVersion": "v1", "kind": "X", "a": [1, {"b": null}]}),
        Ty::FieldsV1 => json!({"f:metadata": {"f:labels": {".": {}}}}),
        Ty::Json => json!([{"a": 1.5}, null, "x"]),
        Ty::PropsOrArray => json!({"type": "string"}),
        Ty::PropsOrBool => false.into(),
        Ty::PropsOrStrings => json!(["a", "b"]),
        Ty::Any => return None,
    })
}

#[test]
fn every_kind_says_the_same_in_every_form() {
    for kind in builtin() {
        // Schemas contain schemas.
        let depth = if kind.plural == "customresourcedefinitions" { 6 } else { 9 };
        let mut object = full(kind.schema(), depth).unwrap();
        api::meta::set_type(&mut object, &kind.api_version(), &kind.kind);
        for format in [Format::Json, Format::Yaml, Format::Protobuf] {
            let bytes = encode(&object, format, Some(kind.schema())).unwrap();
            let back = decode(&bytes, format.media_type(), kind.schema(), true).unwrap();
            assert_eq!(back.strict, Vec::<String>::new(), "{} {format:?}", kind.plural);
            assert!(back.object == object, "{} {format:?}", kind.plural);
        }
        let at_once = api::protobuf::encode_json(object.to_string().as_bytes(), kind.schema()).unwrap();
        let back = api::protobuf::decode_message(&at_once, kind.schema()).unwrap();
        let (mut back, mut wanted) = (Value::Object(back), object);
        for o in [&mut back, &mut wanted] {
            o.as_object_mut().unwrap().retain(|k, _| k != "kind" && k != "apiVersion");
        }
        assert!(back == wanted, "{} without a tree", kind.plural);
    }
}

#[test]
fn meta_types_have_a_protobuf_form() {
    for (version, kind) in [
        ("v1", "Status"),
        ("v1", "DeleteOptions"),
        ("v1", "APIResourceList"),
        ("v1", "APIGroupList"),
        ("v1", "APIGroup"),
        ("v1", "APIVersions"),
        ("autoscaling/v1", "Scale"),
        ("policy/v1", "Eviction"),
        ("authentication.k8s.io/v1", "TokenRequest"),
        ("v1", "PodList"),
        ("apps/v1", "DeploymentList"),
    ] {
        let (group, v) = api::kinds::split_api_version(version);
        let schema = type_schema(group, v, kind).unwrap_or_else(|| panic!("{kind}"));
        let mut object = full(schema, 8).unwrap();
        api::meta::set_type(&mut object, version, kind);
        let bytes = encode(&object, Format::Protobuf, None).unwrap();
        let back = decode(&bytes, Format::Protobuf.media_type(), schema, true).unwrap();
        assert_eq!(back.object, object, "{kind}");
    }
    let partial = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "5", "continue": "x"},
        "items": [{"metadata": {"name": "a", "labels": {"b": "c"}}}]});
    let bytes = encode(&partial, Format::Protobuf, None).unwrap();
    assert_eq!(api::protobuf::decode_object(&bytes, None).unwrap(), partial);
}

/// What other programs' YAML readers take for booleans and numbers stands in quotes.
#[test]
fn yaml_is_read_alike_by_older_readers() {
    let object = json!({"data": {"a": "yes", "b": "off", "c": "0o7", "d": "1e3", "e": "012", "f": "~", "g": "n", "h": "1_000", "i": "12:30:45", "j": "2026-01-02"}});
    let text = String::from_utf8(encode(&object, Format::Yaml, None).unwrap()).unwrap();
    for line in text.lines().skip(1) {
        let value = line.split_once(": ").unwrap().1;
        assert!(value.starts_with(['\'', '"']), "{line}");
    }
}

/// Octal numbers, as file modes are written in manifests.
#[test]
fn yaml_numbers_of_older_writers() {
    let schema = api::schema::by_name("io.k8s.api.core.v1.ConfigMapVolumeSource").unwrap();
    let read = |text: &str| decode(text.as_bytes(), "application/yaml", schema, false).unwrap().object;
    assert_eq!(read("defaultMode: 0644")["defaultMode"], 420);
    assert_eq!(read("defaultMode: 0o644")["defaultMode"], 420);
    assert_eq!(read("defaultMode: 420")["defaultMode"], 420);
}
