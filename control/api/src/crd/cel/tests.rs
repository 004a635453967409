use serde_json::{Value, json};

use crate::crd::kinds;
use crate::status::FieldError;
use crate::validation::Write;

/// A definition with this schema of `spec`.
fn crd(spec: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.example.com", "uid": "u"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}})
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-02T03:04:05Z"}, "spec": spec})
}

fn check(crd: &Value) -> Vec<FieldError> {
    crate::crd::check(crd).0
}

fn unenforced(crd: &Value) -> Vec<String> {
    crate::crd::check(crd).1
}

/// The errors of a write.
fn errors(schema: &Value, new: &Value, old: Option<&Value>) -> Vec<String> {
    let crd = crd(schema.clone());
    assert_eq!(check(&crd), [], "the definition is sound");
    let kind = kinds(&crd).remove(0);
    let (new, old) = (object(new.clone()), old.map(|old| object(old.clone())));
    Write::of(&kind, old.as_ref()).faults(&new).iter().map(ToString::to_string).collect()
}

/// A schema with this rule on `spec`.
fn with_rule(rule: Value, properties: Value) -> Value {
    json!({"type": "object", "x-kubernetes-validations": [rule], "properties": properties})
}

#[test]
fn rules_are_enforced() {
    let properties = json!({"min": {"type": "integer"}, "max": {"type": "integer"}, "names": {"type": "array", "items": {"type": "string"}},
        "x-y": {"type": "string"}, "namespace": {"type": "string"}, "port": {"x-kubernetes-int-or-string": true},
        "at": {"type": "string", "format": "date-time"}, "wait": {"type": "string", "format": "duration"}, "n": {"type": "number"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}}});
    for (rule, good, bad) in [
        ("self.min <= self.max", json!({"min": 1, "max": 2}), json!({"min": 3, "max": 2})),
        ("!has(self.min) || self.min > 0", json!({}), json!({"min": 0})),
        ("self.names.all(n, n.startsWith('a'))", json!({"names": ["a", "ab"]}), json!({"names": ["a", "b"]})),
        ("self.names.exists_one(n, n == 'a')", json!({"names": ["a", "b"]}), json!({"names": ["a", "a"]})),
        (
            "self.names.all(a, self.names.exists_one(b, a == b))",
            json!({"names": ["a", "b"]}),
            json!({"names": ["a", "a"]}),
        ),
        (
            "self.names.filter(n, n.size() > 1).map(n, n + 'x') == ['abx']",
            json!({"names": ["a", "ab"]}),
            json!({"names": ["b"]}),
        ),
        (
            "self.x__dash__y == self.__namespace__",
            json!({"x-y": "a", "namespace": "a"}),
            json!({"x-y": "a", "namespace": "b"}),
        ),
        ("type(self.port) == int ? self.port < 9 : self.port == 'web'", json!({"port": "web"}), json!({"port": 9})),
        (
            "self.at < timestamp('2026-01-01T00:00:00Z')",
            json!({"at": "2025-01-01T00:00:00Z"}),
            json!({"at": "2027-01-01T00:00:00Z"}),
        ),
        ("self.wait <= duration('1m')", json!({"wait": "30s"}), json!({"wait": "1h"})),
        ("self.n == 1.0 || self.n > 2", json!({"n": 1}), json!({"n": 1.5})),
        ("self.labels.all(k, k.matches('^[a-z]+$'))", json!({"labels": {"a": "1"}}), json!({"labels": {"A": "1"}})),
        ("'a' in self.labels && self.labels['a'] == '1'", json!({"labels": {"a": "1"}}), json!({"labels": {"a": "2"}})),
        ("self.?min.orValue(7) == 7", json!({}), json!({"min": 1})),
        (
            "isURL(self.x__dash__y) && url(self.x__dash__y).getHostname() == 'h'",
            json!({"x-y": "https://h:1/p?q=1"}),
            json!({"x-y": "h:1"}),
        ),
        (
            "isQuantity(self.x__dash__y) && quantity(self.x__dash__y).isLessThan(quantity('1Gi'))",
            json!({"x-y": "500Mi"}),
            json!({"x-y": "2Gi"}),
        ),
        (
            "quantity(self.x__dash__y).asInteger() == 2 && quantity('1').add(1).compareTo(quantity('2')) == 0",
            json!({"x-y": "2"}),
            json!({"x-y": "3"}),
        ),
        (
            "isIP(self.x__dash__y) && ip(self.x__dash__y).family() == 4",
            json!({"x-y": "10.0.0.1"}),
            json!({"x-y": "fd00::1"}),
        ),
        ("cidr('10.0.0.0/8').containsIP(self.x__dash__y)", json!({"x-y": "10.2.3.4"}), json!({"x-y": "11.0.0.1"})),
        (
            "cidr('10.0.0.0/8').containsCIDR(cidr(self.x__dash__y))",
            json!({"x-y": "10.2.0.0/16"}),
            json!({"x-y": "10.0.0.0/7"}),
        ),
        (
            "self.names.isSorted() && self.names.indexOf('b') == 1",
            json!({"names": ["a", "b"]}),
            json!({"names": ["b", "a"]}),
        ),
        ("sets.contains(['a', 'b'], self.names)", json!({"names": ["b"]}), json!({"names": ["c"]})),
        ("self.x__dash__y.find('[0-9]+') == '12'", json!({"x-y": "a12b"}), json!({"x-y": "a1b"})),
        ("self.x__dash__y.split(',').size() == 2", json!({"x-y": "a,b"}), json!({"x-y": "a"})),
        ("self.names.join('-') == 'a-b'", json!({"names": ["a", "b"]}), json!({"names": ["a"]})),
        ("self.x__dash__y.lowerAscii() == 'ab'", json!({"x-y": "AB"}), json!({"x-y": "C"})),
    ] {
        let schema = with_rule(json!({"rule": rule}), properties.clone());
        assert_eq!(errors(&schema, &good, None), [""; 0], "{rule}");
        assert_eq!(
            errors(&schema, &bad, None),
            [format!("spec: Invalid value: \"object\": failed rule: {rule}")],
            "{rule}"
        );
    }
}

#[test]
fn what_failures_say() {
    let properties = json!({"a": {"type": "integer"}, "b": {"type": "object", "properties": {"c": {"type": "string"}}},
        "list": {"type": "array", "items": {"type": "integer"}}});
    for (rule, spec, want) in [
        (json!({"rule": "self.a > 1", "message": " more "}), json!({"a": 1}), "spec: Invalid value: \"object\": more"),
        (
            json!({"rule": "self.a > 1", "messageExpression": "'got %d'.format([self.a])"}),
            json!({"a": 1}),
            "spec: Invalid value: \"object\": got 1",
        ),
        (
            json!({"rule": "self.a > 1", "message": "m", "messageExpression": "self.list[9] == 1 ? 'a' : 'b'"}),
            json!({"a": 1}),
            "spec: Invalid value: \"object\": m",
        ),
        (
            json!({"rule": "self.a > 1", "message": "m", "reason": "FieldValueForbidden"}),
            json!({"a": 1}),
            "spec: Forbidden: m",
        ),
        (
            json!({"rule": "self.a > 1", "message": "m", "reason": "FieldValueRequired", "fieldPath": ".b.c"}),
            json!({"a": 1}),
            "spec.b.c: Required value: m",
        ),
        (
            json!({"rule": "self.a > 1", "reason": "FieldValueDuplicate"}),
            json!({"a": 1}),
            "spec: Duplicate value: \"object\"",
        ),
        (
            json!({"rule": "self.a > 1"}),
            json!({}),
            "spec: Invalid value: \"object\": no such key: a evaluating rule: self.a > 1",
        ),
        (
            json!({"rule": "self.list[3] > 1"}),
            json!({"list": [1]}),
            "spec: Invalid value: \"object\": index out of bounds: 3 evaluating rule: self.list[3] > 1",
        ),
        (
            json!({"rule": "1 / self.a > 1"}),
            json!({"a": 0}),
            "spec: Invalid value: \"object\": division by zero evaluating rule: 1 / self.a > 1",
        ),
    ] {
        assert_eq!(errors(&with_rule(rule.clone(), properties.clone()), &spec, None), [want], "{rule}");
    }
    // At the root, and not where the object is broken anyway.
    let mut whole = crd(json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}));
    let at = &mut whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    at["x-kubernetes-validations"] = json!([{"rule": "self.metadata.name == 'b' && self.kind == 'Foo'"}]);
    assert_eq!(check(&whole), []);
    let kind = kinds(&whole).remove(0);
    let said = |spec: Value| -> Vec<String> {
        Write::of(&kind, None).faults(&object(spec)).iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        said(json!({"a": 1})),
        ["<nil>: Invalid value: \"object\": failed rule: self.metadata.name == 'b' && self.kind == 'Foo'"]
    );
    assert_eq!(
        said(json!({})),
        [
            "spec.a: Required value",
            "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
        ]
    );
}

#[test]
fn rules_below_and_of_changes() {
    let schema = json!({"type": "object", "properties": {
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "may not change"}]},
        "once": {"type": "string", "x-kubernetes-validations": [{"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true}]},
        "map": {"type": "object", "additionalProperties": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v"}], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
            "fixed": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}},
        "both": {"type": "integer", "allOf": [{"x-kubernetes-validations": [{"rule": "self != 13"}]}]}}});
    let old = json!({"fixed": "a", "once": "a", "whole": {"fixed": 1}, "map": {"x": 0}, "list": [{"k": "1", "v": 5}, {"k": "2", "v": 5}]});
    assert_eq!(errors(&schema, &json!({"fixed": "b", "once": "b"}), None), [""; 0], "nothing to compare with");
    for (new, want) in [
        (json!({"fixed": "b"}), vec!["spec.fixed: Invalid value: \"string\": may not change"]),
        (json!({}), vec![]),
        (
            json!({"once": "b"}),
            vec!["spec.once: Invalid value: \"string\": failed rule: !oldSelf.hasValue() || oldSelf.value() == self"],
        ),
        // What was wrong before and did not change is let through.
        (json!({"map": {"x": 0}}), vec![]),
        (json!({"map": {"x": 0, "y": -1}}), vec!["spec.map[y]: Invalid value: \"integer\": failed rule: self > 0"]),
        (
            json!({"list": [{"k": "2", "v": 4}, {"k": "3", "v": 1}, {"k": "1", "v": 6}]}),
            vec!["spec.list[0]: Invalid value: \"object\": failed rule: self.v >= oldSelf.v"],
        ),
        (json!({"whole": {"fixed": 1}}), vec![]),
        (
            json!({"whole": {"fixed": 2}}),
            vec!["spec.whole.fixed: Invalid value: \"integer\": failed rule: self == oldSelf"],
        ),
        (json!({"both": 13}), vec!["spec.both: Invalid value: \"integer\": failed rule: self != 13"]),
    ] {
        assert_eq!(errors(&schema, &new, Some(&old)), want, "{new}");
    }
}

#[test]
fn definitions_with_bad_rules_are_refused() {
    let properties = json!({"a": {"type": "integer"}, "s": {"type": "string"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "string"}}}}});
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";
    for (rule, field, detail) in [
        (json!({"rule": " "}), "rule", "rule is not specified"),
        (json!({"rule": "self.a >"}), "rule", "compilation failed: ERROR: <input>:1:9: Syntax error: "),
        (
            json!({"rule": "self.x > 1"}),
            "rule",
            "compilation failed: ERROR: <input>:1:5: undefined field 'x'\n | self.x > 1\n | ....^",
        ),
        (json!({"rule": "self.list.all(i, has(i.c))"}), "rule", "undefined field 'c'"),
        (json!({"rule": "sefl.a > 1"}), "rule", "ERROR: <input>:1:1: undeclared reference to 'sefl' (in container '')"),
        (json!({"rule": "nothing(self.a)"}), "rule", "undeclared reference to 'nothing' (in container '')"),
        (json!({"rule": "self.a"}), "rule", "cel expression must evaluate to a bool"),
        (
            json!({"rule": "self.a == self.s"}),
            "rule",
            "found no matching overload for '_==_' applied to '(int, string)'",
        ),
        (
            json!({"rule": "self.s && true"}),
            "rule",
            "found no matching overload for '_&&_' applied to '(string, bool)'",
        ),
        (json!({"rule": "true", "message": " "}), "message", "message must be non-empty if specified"),
        (json!({"rule": "true", "message": "a\nb"}), "message", "message must not contain line breaks"),
        (json!({"rule": "true\n||false"}), "message", "message must be specified if rule contains line breaks"),
        (
            json!({"rule": "true", "messageExpression": "self.a"}),
            "messageExpression",
            "messageExpression must evaluate to a string",
        ),
        (json!({"rule": "true", "reason": "x"}), "reason", "supported values: \"FieldValueDuplicate\""),
        (json!({"rule": "true", "fieldPath": ".q"}), "fieldPath", "does not refer to a valid field"),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            "optionalOldSelf",
            "may not be set if oldSelf is not used in rule",
        ),
    ] {
        let found = check(&crd(with_rule(rule.clone(), properties.clone())));
        assert_eq!(found.len(), 1, "{rule}: {found:?}");
        assert_eq!(found[0].field, format!("{at}.{field}"), "{rule}");
        assert!(found[0].detail.contains(detail), "{rule}: {}", found[0].detail);
    }
    let items = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}});
    let found = check(&crd(items));
    assert!(
        found[0].detail.starts_with("oldSelf cannot be used on the uncorrelatable portion of the schema within "),
        "{found:?}"
    );
    assert!(found[0].detail.ends_with("properties[list].items"), "{found:?}");
    // None of these takes the stack, neither of the parser nor of who lets go of what it made.
    for (start, middle, end) in [
        ("(", "true", ")"),
        ("!", "true", ""),
        ("[", "", "]"),
        ("-", "1", ""),
        ("1+", "1", ""),
        ("true&&", "true", ""),
        ("true?true:", "true", ""),
        ("size(", "'a'", ")"),
        ("self", ".a", ""),
        ("", "self", ".a"),
        ("", "self", "[0]"),
        ("{1:", "1", "}"),
        ("[1].all(x,", "true", ")"),
    ] {
        let times = 10_000 / (start.len() + end.len());
        let rule = json!({"rule": format!("{}{middle}{}", start.repeat(times), end.repeat(times))});
        let found = check(&crd(with_rule(rule, json!({}))));
        // The parser makes trees of some of the others, and nothing of a minus of a minus.
        if ["(", "[", "1+", "size("].contains(&start) {
            assert_eq!(found.len(), 1, "{start}{middle}{end}");
        }
    }
    let long = json!({"rule": format!("true{}", " || true".repeat(10_000))});
    assert!(check(&crd(with_rule(long, json!({}))))[0].detail.contains("at most 10240"));
}

#[test]
fn rules_of_functions_that_are_not_here_are_named() {
    let schema = with_rule(json!({"rule": "isSemver(self.v)"}), json!({"v": {"type": "string"}}));
    assert_eq!(check(&crd(schema.clone())), []);
    assert_eq!(
        unenforced(&crd(schema.clone())),
        [
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule is not enforced: this server does not have the function isSemver"
        ]
    );
    assert_eq!(errors(&schema, &json!({"v": "no version"}), None), [""; 0]);
}

#[test]
fn rules_of_branches_are_checked_too() {
    let rules = |rule: &str| json!([{"rule": rule}]);
    let of = |rule: &str| json!({"type": "object", "properties": {"a": {"type": "integer", "allOf": [{"minimum": 1}, {"x-kubernetes-validations": rules(rule)}]}}});
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec]";
    let here = format!("{at}.properties[a].allOf[1].x-kubernetes-validations[0].rule");
    for (rule, detail) in
        [("self >", "Syntax error"), ("self.x > 1", "compilation failed"), ("self", "must evaluate to a bool")]
    {
        let found = check(&crd(of(rule)));
        assert_eq!(found.len(), 1, "{rule}: {found:?}");
        assert_eq!(found[0].field, here, "{rule}");
        assert!(found[0].detail.contains(detail), "{rule}: {}", found[0].detail);
    }
    let lacks = unenforced(&crd(of("isSemver(string(self))")));
    assert_eq!(lacks, [format!("{here} is not enforced: this server does not have the function isSemver")]);
    // Rules that are stored but do not compile let nothing through.
    let definition = crd(of("self >"));
    let kind = kinds(&definition).remove(0);
    let found = Write::of(&kind, None).faults(&object(json!({"a": 2})));
    assert_eq!((found.len(), found[0].field.as_str()), (1, "spec.a"), "{found:?}");
    assert!(found[0].detail.starts_with("rule compile error: compilation failed: "), "{found:?}");
    // Where none are run they are named.
    let bare = json!({"x-kubernetes-validations": rules("false")});
    let schema = json!({"type": "object", "anyOf": [bare], "oneOf": [{"properties": {"b": bare}}], "not": {"items": bare, "x-kubernetes-validations": rules("false")},
        "allOf": [{"properties": {"a": bare}}, {"allOf": [bare]}], "properties": {"a": {"type": "integer"}}});
    let named: Vec<String> = unenforced(&crd(schema))
        .iter()
        .map(|text| text.split_once(" is not enforced: ").unwrap().0.strip_prefix(at).unwrap().to_string())
        .collect();
    let places =
        ["allOf[0].properties[a]", "allOf[1].allOf[0]", "anyOf[0]", "oneOf[0].properties[b]", "not", "not.items"];
    assert_eq!(named, places.map(|place| format!(".{place}.x-kubernetes-validations[0]")));
}

#[test]
fn what_costs_too_much_is_refused() {
    let properties = json!({"list": {"type": "array", "items": {"type": "string"}}, "s": {"type": "string"}});
    let list: Vec<String> = (0..3000).map(|i| format!("item-{i}")).collect();
    for rule in [
        "self.list.all(a, self.list.all(b, self.list.all(c, a + b != c)))",
        "self.list.all(a, self.list.exists(b, a == b))",
        "self.list.all(a, a in self.list)",
        "sets.equivalent(self.list, self.list)",
        "self.s.replace('', self.s) != ''",
        "self.list.join(self.s) != ''",
    ] {
        let schema = with_rule(json!({"rule": rule}), properties.clone());
        let found = errors(&schema, &json!({"list": list, "s": "x".repeat(100_000)}), None);
        assert_eq!(found.len(), 1, "{rule}: {found:?}");
        assert!(found[0].contains("operation cancelled: actual cost limit exceeded"), "{rule}: {found:?}");
        assert_eq!(errors(&schema, &json!({"list": ["a"], "s": "x"}), None), [""; 0], "{rule}");
    }
    // Many rules, each within its bounds.
    let rules = vec![json!({"rule": "self.list.all(a, a in self.list)"}); 14];
    let schema = json!({"type": "object", "x-kubernetes-validations": rules, "properties": properties});
    let found = errors(&schema, &json!({"list": list[..900]}), None);
    assert!(found.iter().any(|e| e.contains("validation failed due to running out of cost budget")), "{found:?}");
}

#[test]
fn old_values_are_made_once_for_all_rules() {
    let schema = |rules: usize| {
        let rules: Vec<Value> = (0..rules)
            .map(|i| json!({"rule": format!("self.n == oldSelf.n || {i} < 0"), "message": "m"}))
            .chain([json!({"rule": "!oldSelf.hasValue() || self.n == oldSelf.value().n", "optionalOldSelf": true})])
            .collect();
        json!({"type": "object", "x-kubernetes-validations": rules, "properties": {
            "n": {"type": "integer"}, "list": {"type": "array", "items": {"type": "integer"}}}})
    };
    let list: Vec<usize> = (0..100_000).collect();
    let (old, changed) = (json!({"n": 1, "list": list}), json!({"n": 2, "list": list}));
    let time = |rules: usize| {
        let kind = kinds(&crd(schema(rules))).remove(0);
        let (old, new) = (object(old.clone()), object(old.clone()));
        // Compiled the first time.
        let small = object(json!({"n": 1}));
        assert_eq!(Write::of(&kind, Some(&small)).faults(&small), []);
        let begun = std::time::Instant::now();
        assert_eq!(Write::of(&kind, Some(&old)).faults(&new), []);
        begun.elapsed()
    };
    let (one, many) = (time(1), time(200));
    assert!(many < one * 20, "{one:?} for one rule, {many:?} for 200");
    assert_eq!(errors(&schema(3), &changed, Some(&old)).len(), 4);
}

#[test]
fn patterns_pay_for_their_size() {
    let properties = json!({"list": {"type": "array", "items": {"type": "string"}}, "s": {"type": "string"}});
    let list: Vec<String> = (0..3000).map(|i| format!("item-{i}")).collect();
    let begun = std::time::Instant::now();
    for (rule, want) in [
        // Each is another one, of almost a mebibyte when it is compiled.
        ("self.list.all(a, !a.matches('\\\\pL{60}' + a))", "actual cost limit exceeded"),
        ("self.list.all(a, !matches(a, '\\\\pL{60}' + a))", "actual cost limit exceeded"),
        ("self.list.all(a, a.find('\\\\pL{60}' + a) == '')", "actual cost limit exceeded"),
        ("self.list.all(a, a.findAll('\\\\pL{60}' + a).size() == 0)", "actual cost limit exceeded"),
        // Long texts, and a pattern with many states.
        ("!self.s.matches('(x?){900}yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy')", "actual cost limit exceeded"),
        ("'x'.matches('\\\\pL{10000}')", "Illegal regex: it is too large when it is compiled"),
        ("'x'.matches('(')", "Illegal regex: "),
    ] {
        let schema = with_rule(json!({"rule": rule}), properties.clone());
        let long = if rule.contains("self.s") { 1_000_000 } else { 1 };
        let found = errors(&schema, &json!({"list": list, "s": "x".repeat(long)}), None);
        assert_eq!(found.len(), 1, "{rule}: {found:?}");
        assert!(found[0].contains(want), "{rule}: {found:?}");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
    // Classes are ASCII's, as upstream has them, and small therefore.
    let schema = with_rule(
        json!({"rule": "self.s.matches('^\\\\w{1,200}$') || self.s.matches('^[\\\\W\\\\d]{9}$')"}),
        properties.clone(),
    );
    for (s, fits) in [("a_9", true), ("\u{e4}", false), ("\u{e4}\u{e4}-------", true)] {
        assert_eq!(errors(&schema, &json!({"s": s}), None).is_empty(), fits, "{s}");
    }
    // The same one for many texts, in both forms.
    for rule in ["self.list.all(a, a.matches('^item-[0-9]+$'))", "self.list.all(a, matches(a, '^item-[0-9]+$'))"] {
        let schema = with_rule(json!({"rule": rule}), properties.clone());
        assert_eq!(errors(&schema, &json!({"list": list}), None), [""; 0], "{rule}");
        assert_eq!(errors(&schema, &json!({"list": ["x"]}), None).len(), 1, "{rule}");
    }
}

/// Bytes of memory that this process has had at most.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn what_grows_is_refused_before_it_is_large() {
    let properties = json!({"s": {"type": "string"}, "list": {"type": "array", "items": {"type": "string"}}});
    let before = peak();
    for rule in [
        format!("['x']{}.size() > 0", ".map(a, a + a)".repeat(33)),
        format!("[['x']]{}.size() > 0", ".map(a, a + a)".repeat(33)),
        format!("[b'x']{}.size() > 0", ".map(a, a + a)".repeat(33)),
        format!("['x']{}.size() > 0", ".map(a, [a, a, a, a])".repeat(20)),
        format!("['x']{}.size() > 0", ".map(a, {'a': a, 'b': a})".repeat(33)),
        format!("[self.s].map(a, a + a).map(a, [{}a]).size() > 0", "a, ".repeat(2000)),
        format!("[self.s].map(a, a + a).map(a, [{}a]).size() > 0", "optional.of(a), ".repeat(500)),
        "[self.s].map(a, a + a).map(a, a.split('')).size() > 0".into(),
        "self.s.split('').map(a, self.s + a).size() > 0".into(),
    ] {
        let schema = with_rule(json!({"rule": rule}), properties.clone());
        let found = errors(&schema, &json!({"s": "x".repeat(1_000_000), "list": []}), None);
        assert_eq!(found.len(), 1, "{rule}: {found:?}");
        assert!(found[0].contains("operation cancelled: actual cost limit exceeded"), "{rule}: {found:?}");
    }
    // Other tests run in the same process; without bounds it would be many gigabytes.
    assert!(peak() - before < 1 << 30, "{} MiB", (peak() - before) >> 20);
    // What is small is let through.
    let rule = "[self.s].map(a, a + a).map(a, [a, a + self.list[0]]).all(a, a.size() == 2) && (self.list + [self.s]).exists(a, a == 'ab')";
    let schema = with_rule(json!({"rule": rule}), properties);
    assert_eq!(errors(&schema, &json!({"s": "ab", "list": ["c"]}), None), [""; 0]);
}

#[test]
fn long_lists_are_compared_in_linear_time() {
    // Each with each, this would take minutes.
    let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}},
        "x-kubernetes-validations": [{"rule": "self.k == oldSelf.k"}]});
    let schema = json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item}}});
    let texts: Vec<String> = (0..100_000).map(|i| format!("x{i}")).collect();
    let map: Vec<Value> = (0..2_000).map(|i| json!({"k": format!("x{i}")})).collect();
    let fits = json!({"set": texts, "map": map});
    assert_eq!(errors(&schema, &fits, Some(&fits)), [""; 0]);
    let twice = json!({"set": ["a", "b", "a"], "map": [{"k": "a"}, {"k": "a"}]});
    assert_eq!(
        errors(&schema, &twice, None),
        ["spec.map[1]: Duplicate value: {\"k\":\"a\"}", "spec.set[2]: Duplicate value: \"a\""]
    );
}

#[test]
fn rules_of_real_definitions() {
    // As the gateway API has them.
    let names = json!({"group": {"type": "string"}, "kind": {"type": "string"}, "name": {"type": "string"}, "namespace": {"type": "string"}, "sectionName": {"type": "string"}});
    let refs = json!({"type": "array", "maxItems": 32, "items": {"type": "object", "properties": names}, "x-kubernetes-validations": [
        {"message": "sectionName must be unique when parentRefs includes 2 or more references to the same parent",
         "rule": "self.all(p1, self.exists_one(p2, p1.group == p2.group && p1.kind == p2.kind && p1.name == p2.name && (((!has(p1.__namespace__) || p1.__namespace__ == '') && (!has(p2.__namespace__) || p2.__namespace__ == '')) || (has(p1.__namespace__) && has(p2.__namespace__) && p1.__namespace__ == p2.__namespace__)) && (((!has(p1.sectionName) || p1.sectionName == '') && (!has(p2.sectionName) || p2.sectionName == '')) || ( has(p1.sectionName) && has(p2.sectionName) && p1.sectionName == p2.sectionName))))"}]});
    let schema = json!({"type": "object", "properties": {"parentRefs": refs}});
    let parent = |name: &str| json!({"group": "g", "kind": "Gateway", "name": name});
    let many: Vec<Value> = (0..32).map(|i| parent(&format!("p{i}"))).collect();
    assert_eq!(errors(&schema, &json!({"parentRefs": many}), None), [""; 0], "as many as may be");
    let twice = json!({"parentRefs": [parent("a"), parent("a")]});
    assert!(errors(&schema, &twice, None)[0].contains("sectionName must be unique"));
}
