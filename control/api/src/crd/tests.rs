use super::*;
use serde_json::json;

fn crd() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.example.com", "uid": "u"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["fo"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": {"type": "object", "required": ["n"], "properties": {
                        "n": {"type": "integer", "minimum": 1, "maximum": 5}, "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                        "name": {"type": "string", "pattern": "^x", "maxLength": 3},
                        "any": {"x-kubernetes-preserve-unknown-fields": true},
                        "map": {"type": "object", "additionalProperties": {"type": "string"}},
                        "port": {"x-kubernetes-int-or-string": true},
                        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "default": 7}}}}
                    }}, "status": {"type": "object", "properties": {"n": {"type": "integer"}}}}}}}]}})
}

#[test]
fn kind_defaults_and_prunes() {
    let k = kinds(&crd()).remove(0);
    assert_eq!(
        (k.plural.as_ref(), k.api_version().as_str(), k.namespaced, k.has_status()),
        ("foos", "example.com/v1", true, true)
    );
    assert_eq!(k.storage().version, "v1");
    let body = br#"{"apiVersion":"example.com/v1","kind":"Foo","metadata":{"name":"a","x":1},"spec":{"n":2,"zz":1,"any":{"q":1},"map":{"a":"b"},"list":[{"k":"1","w":2}]}}"#;
    let mut d = crate::codec::decode(body, "application/json", k.schema(), false).unwrap();
    d.strict.sort();
    assert_eq!(
        d.strict,
        ["unknown field \"metadata.x\"", "unknown field \"spec.list[0].w\"", "unknown field \"spec.zz\""]
    );
    crate::defaults::apply(&k, &mut d.object);
    assert_eq!(
        d.object["spec"],
        json!({"n": 2, "any": {"q": 1}, "map": {"a": "b"}, "mode": "a", "list": [{"k": "1", "v": 7}]})
    );
    assert!(validate(&d.object, k.schema(), "").is_empty());
    assert_eq!(crate::table::cells(&k, &d.object, 0), [json!("a"), json!(2)]);
}

#[test]
fn values_are_checked() {
    let k = kinds(&crd()).remove(0);
    for (spec, want) in [
        (json!({}), "spec.n: Required value"),
        (json!({"n": "x"}), "spec.n: Invalid value: \"string\": spec.n in body must be of type integer: \"string\""),
        (json!({"n": 0}), "spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1"),
        (json!({"n": 9}), "spec.n: Invalid value: 9: spec.n in body should be less than or equal to 5"),
        (json!({"n": 1, "mode": "c"}), "spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""),
        (json!({"n": 1, "name": "y"}), "spec.name: Invalid value: \"y\": spec.name in body should match '^x'"),
        (json!({"n": 1, "name": "xxxx"}), "spec.name: Too long: may not be more than 3 bytes"),
        (json!({"n": 1, "list": [{"k": "a"}, {"k": "a"}]}), "spec.list[1]: Duplicate value: {\"k\":\"a\"}"),
        (
            json!({"n": 1, "port": true}),
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
    ] {
        let errors = validate(&json!({"spec": spec}), k.schema(), "");
        assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [want], "{spec}");
    }
}

#[test]
fn crds_are_checked() {
    assert_eq!(check(&crd()).0, []);
    let mut c = crd();
    c["metadata"]["name"] = "x".into();
    c["spec"]["versions"][0]["storage"] = false.into();
    c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"] = json!({});
    let fields: Vec<String> = check(&c).0.into_iter().map(|e| e.field).collect();
    assert_eq!(
        fields,
        ["metadata.name", "spec.versions[0].schema.openAPIV3Schema.properties[status].type", "spec.versions"]
    );
}

#[test]
fn patterns_that_no_engine_knows_are_refused() {
    let judged = |pattern: &str| {
        let mut c = crd();
        c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["p"] =
            json!({"type": "string", "pattern": pattern});
        let (errors, idle) = check(&c);
        (errors.len(), idle.len())
    };
    for (pattern, want) in [
        (r"^[a-z]([-a-z0-9]*[a-z0-9])?$", (0, 0)),
        (r"^\w{1,63}$", (0, 0)),
        ("(a+)+$(", (1, 0)),
        ("a)", (1, 0)),
        ("*a", (1, 0)),
        (r"a\", (1, 0)),
        ("(?=a)b", (1, 0)),
        (r"(a)\1", (1, 0)),
        ("[z-a]", (1, 0)),
        // Upstream knows these.
        ("^[^[]*$", (0, 1)),
        ("{a", (0, 1)),
        // Upstream has a bound of its own for these.
        ("((a{1,1000}){1,1000}){1,1000}", (0, 1)),
    ] {
        assert_eq!(judged(pattern), want, "{pattern}");
    }
}

#[test]
fn classes_of_patterns_are_ascii() {
    // Unicode's would be too large when compiled, and let everything pass.
    let schema = schema_of(&json!({"type": "string", "pattern": r"^\w{1,200}\d\S$"}));
    assert_eq!(validate(&json!("a_9x"), &schema, "a"), []);
    for bad in ["ä9x", "a٣x", "a9 "] {
        assert_eq!(validate(&json!(bad), &schema, "a").len(), 1, "{bad}");
    }
}
