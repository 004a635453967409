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
    let judged = |schema: Value| {
        let mut c = crd();
        c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["p"] = schema;
        let (errors, idle) = check(&c);
        assert_eq!(idle, Vec::<String>::new());
        errors.into_iter().map(|e| e.field).collect::<Vec<_>>()
    };
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[p]";
    for pattern in [
        "(a+)+$(",
        "a)",
        "*a",
        r"a\",
        "(?=a)b",
        r"(a)\1",
        "[z-a]",
        "[a-z",
        "[a[b",
        r"a\y",
        "((a{1,1000}){1,1000}){1,1000}",
    ] {
        assert_eq!(judged(json!({"type": "string", "pattern": pattern})), [format!("{at}.pattern")], "{pattern}");
        let branch = json!({"type": "string", "anyOf": [{"minLength": 1}, {"not": {"pattern": pattern}}]});
        assert_eq!(judged(branch), [format!("{at}.anyOf[1].not.pattern")], "{pattern}");
        // One that is stored all the same lets nothing pass.
        let stored = schema_of(&json!({"type": "string", "pattern": pattern}));
        assert_eq!(validate(&json!("a"), &stored, "p").len(), 1, "{pattern}");
    }
    for (pattern, fits, not) in [
        (r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "a-b", "a-"),
        (r"^\w{1,63}$", "a_1", "ä"),
        // These are read as upstream reads them.
        ("^[^[]*$", "a]", "a[b"),
        ("^[]a]+$", "a]", "b"),
        ("^[[:alpha:][]+$", "a[", "1"),
        ("^[a&&b]+$", "&ab", "c"),
        ("^[+--]+$", "+,-", "."),
        ("^[a~~]$", "~", "b"),
        ("^{a}{2}$", "{a}}", "{a}"),
        ("^a{,2}$", "a{,2}", "aa"),
        (r"^[\d-x]+$", "1-x", "a"),
        (r"^\p{Lu}[\p{Lu}{]\x{41}$", "Ä{A", "äAA"),
        (r"^\Qa.b\E.$", "a.bc", "axbc"),
        (r"^\<\_\/\-$", "<_/-", "_/-"),
        ("^.{1,1000}$", "ä", ""),
    ] {
        let schema = json!({"type": "string", "pattern": pattern});
        assert_eq!(judged(schema.clone()), Vec::<String>::new(), "{pattern}");
        let schema = schema_of(&schema);
        assert_eq!(validate(&json!(fits), &schema, "p"), [], "{pattern}");
        assert_eq!(validate(&json!(not), &schema, "p").len(), 1, "{pattern}");
    }
}

#[test]
fn defaults_that_do_not_fit_are_refused() {
    let judged = |schema: Value| {
        let mut c = crd();
        c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["p"] = schema;
        check(&c).0.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[p]";
    for (schema, want) in [
        (
            json!({"type": "integer", "default": "x"}),
            vec![format!(
                "{at}.default: Invalid value: \"string\": {at}.default in body must be of type integer: \"string\""
            )],
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 3, "default": 4}}}}),
            vec![format!(
                "{at}.items.properties[n].default: Invalid value: 4: {at}.items.properties[n].default in body should be less than or equal to 3"
            )],
        ),
        (
            json!({"type": "object", "default": {"a": "b"}, "properties": {"n": {"type": "integer"}}}),
            vec![format!("{at}.default: Invalid value: {{\"a\":\"b\"}}: must not have unknown fields")],
        ),
        // What a default leaves open, other defaults fill.
        (
            json!({"type": "object", "default": {}, "required": ["n"], "properties": {"n": {"type": "integer", "default": 4}}}),
            vec![],
        ),
        (json!({"type": "object", "default": {"a": 1}, "x-kubernetes-preserve-unknown-fields": true}), vec![]),
        (json!({"x-kubernetes-int-or-string": true, "default": "50%"}), vec![]),
        (json!({"type": "string", "nullable": true, "default": null}), vec![]),
    ] {
        assert_eq!(judged(schema.clone()), want, "{schema}");
    }
    // A definition that came in before is not stuck with it.
    let kind = crate::kinds::find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
    let mut old = crd();
    old["metadata"]["resourceVersion"] = "1".into();
    old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["p"] =
        json!({"type": "string", "default": 1});
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(crate::validation::update(kind, &new, &old), []);
    new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["p"]["default"] = 2.into();
    assert_eq!(crate::validation::update(kind, &new, &old).len(), 1);
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
