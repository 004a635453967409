use super::*;
use crate::kinds::find;
use serde_json::json;

fn w<'a>(manager: &'a str, now: &'a str) -> Write<'a> {
    Write { manager, api_version: "apps/v1", subresource: "", now, has_status: true }
}

fn schema() -> &'static Schema {
    find("apps", "v1", "deployments").unwrap().schema()
}

fn deployment(image: &str, replicas: Option<i64>) -> Value {
    let mut d = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}}}});
    if let Some(r) = replicas {
        d["spec"]["replicas"] = r.into();
    }
    d
}

fn entry<'a>(o: &'a Value, manager: &str, op: &str) -> &'a Value {
    o["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == manager && e["operation"] == op)
        .unwrap_or(&Value::Null)
}

#[test]
fn create_is_owned_by_its_writer() {
    let mut d = deployment("i", Some(1));
    on_update(None, &mut d, schema(), w("kubectl-create", "2026-01-01T00:00:00Z"));
    let f = &entry(&d, "kubectl-create", "Update")["fieldsV1"];
    assert_eq!(f["f:metadata"]["f:labels"], json!({".": {}, "f:a": {}}));
    assert_eq!(f["f:spec"]["f:selector"], json!({}));
    let c = &f["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"];
    assert_eq!(c["f:image"], json!({}));
    assert_eq!(c["f:ports"]["k:{\"containerPort\":80,\"protocol\":\"TCP\"}"], json!({".": {}, "f:containerPort": {}}));
    assert!(f["f:metadata"].get("f:name").is_none());
}

#[test]
fn apply_conflict_force_and_removal() {
    let a = apply(None, &deployment("i", Some(1)), schema(), w("one", "2026-01-01T00:00:00Z"), false).unwrap();
    // Another manager changes what the first owns.
    let e = apply(
        Some(&a),
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 5}}),
        schema(),
        w("two", "2026-01-01T00:00:01Z"),
        false,
    )
    .unwrap_err();
    assert_eq!(e.message, "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    assert_eq!(
        (e.code, e.causes[0].reason.as_ref(), e.causes[0].field.as_str()),
        (409, "FieldManagerConflict", ".spec.replicas")
    );
    let b = apply(
        Some(&a),
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 5}}),
        schema(),
        w("two", "2026-01-01T00:00:01Z"),
        true,
    )
    .unwrap();
    assert_eq!(b["spec"]["replicas"], 5);
    assert!(entry(&b, "one", "Apply")["fieldsV1"]["f:spec"].get("f:replicas").is_none());
    // The first applies again without labels, which it alone owned, and without ports.
    let mut config = deployment("j", None);
    config["metadata"].as_object_mut().unwrap().remove("labels");
    config["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap().remove("ports");
    let c = apply(Some(&b), &config, schema(), w("one", "2026-01-01T00:00:02Z"), false).unwrap();
    assert!(c["metadata"].get("labels").is_none());
    assert_eq!(c["spec"]["template"]["spec"]["containers"], json!([{"name": "c", "image": "j"}]));
    assert_eq!(c["spec"]["replicas"], 5);
    // Same again: nothing moves, not even the time.
    let d = apply(Some(&c), &config, schema(), w("one", "2026-01-01T00:00:09Z"), false).unwrap();
    assert_eq!(d, c);
}

#[test]
fn update_takes_fields_from_appliers() {
    let a = apply(None, &deployment("i", Some(1)), schema(), w("one", "2026-01-01T00:00:00Z"), false).unwrap();
    let mut b = a.clone();
    b["spec"]["replicas"] = 3.into();
    b["metadata"]["annotations"] = json!({"x": "y"});
    on_update(Some(&a), &mut b, schema(), w("scaler", "2026-01-01T00:00:05Z"));
    assert_eq!(
        entry(&b, "scaler", "Update")["fieldsV1"],
        json!({"f:metadata": {"f:annotations": {".": {}, "f:x": {}}}, "f:spec": {"f:replicas": {}}})
    );
    assert!(entry(&b, "one", "Apply")["fieldsV1"]["f:spec"].get("f:replicas").is_none());
    let e = apply(Some(&b), &deployment("i", Some(1)), schema(), w("one", "2026-01-01T00:00:06Z"), false).unwrap_err();
    assert_eq!(e.message, "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas");
    // Equal values are shared, not in conflict.
    let c = apply(Some(&b), &deployment("i", Some(3)), schema(), w("one", "2026-01-01T00:00:07Z"), false).unwrap();
    assert!(entry(&c, "scaler", "Update")["fieldsV1"]["f:spec"]["f:replicas"].is_object());
    assert!(entry(&c, "one", "Apply")["fieldsV1"]["f:spec"]["f:replicas"].is_object());
}

#[test]
fn untracked_objects() {
    let mut live = deployment("i", Some(1));
    let mut new = deployment("j", Some(1));
    on_update(Some(&live), &mut new, schema(), w("u", "2026-01-01T00:00:00Z"));
    assert!(new["metadata"].get("managedFields").is_none());
    live["status"] = json!({"replicas": 1});
    let a = apply(Some(&live), &deployment("k", None), schema(), w("one", "2026-01-01T00:00:00Z"), true).unwrap();
    assert!(entry(&a, "before-first-apply", "Update")["fieldsV1"]["f:spec"]["f:replicas"].is_object());
    let mut cleared = a.clone();
    cleared["metadata"]["managedFields"] = json!([{}]);
    on_update(Some(&a), &mut cleared, schema(), w("u", "2026-01-01T00:00:00Z"));
    assert!(cleared["metadata"].get("managedFields").is_none());
}

#[test]
fn status_and_caps() {
    let mut d = deployment("i", Some(1));
    on_update(None, &mut d, schema(), w("m0", "2026-01-01T00:00:00Z"));
    let mut s = d.clone();
    s["status"] = json!({"replicas": 1});
    s["spec"]["replicas"] = 4.into();
    on_update(Some(&d), &mut s, schema(), Write { subresource: "status", ..w("ctl", "2026-01-01T00:00:01Z") });
    let e = entry(&s, "ctl", "Update");
    assert_eq!((&e["fieldsV1"], &e["subresource"]), (&json!({"f:status": {"f:replicas": {}}}), &json!("status")));
    let mut o = d;
    for i in 1..15 {
        let mut n = o.clone();
        n["metadata"]["annotations"][format!("k{i}")] = "v".into();
        let time = format!("2026-01-01T00:00:{i:02}Z");
        on_update(Some(&o), &mut n, schema(), w(&format!("m{i}"), &time));
        o = n;
    }
    assert_eq!(o["metadata"]["managedFields"].as_array().unwrap().len(), 10);
    assert!(entry(&o, "ancient-changes", "Update").is_object());
}

#[test]
fn sets_keep_their_form() {
    let v = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {".": {}, "v:\"x\"": {}}}, "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
    let s = Set::parse(&v).unwrap();
    assert_eq!(s.to_value(), v);
    assert!(s.paths().contains(&".spec.ports[port=80,protocol=\"TCP\"].port".to_string()));
}

#[test]
fn items_without_keys_are_refused() {
    let bad = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}});
    assert!(apply(None, &bad, schema(), w("one", ""), false).unwrap_err().message.contains("omits key field"));
}

#[test]
fn long_lists_are_merged_in_linear_time() {
    // By comparing each with each, this would take minutes.
    let env = |from: usize, to: usize, value: &str| -> Vec<Value> {
        (from..to).map(|i| json!({"name": format!("E{i}"), "value": value})).collect()
    };
    let with = |env: Vec<Value>| {
        let mut d = deployment("i", None);
        d["spec"]["template"]["spec"]["containers"][0]["env"] = env.into();
        d
    };
    let mut live = with(env(0, 45_000, "a"));
    on_update(None, &mut live, schema(), w("creator", "2026-01-01T00:00:00Z"));
    let config = with(env(40_000, 55_000, "b"));
    let a = apply(Some(&live), &config, schema(), w("one", "2026-01-01T00:00:01Z"), true).unwrap();
    let of = |d: &Value| d["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    assert_eq!(of(&a), json!([env(0, 40_000, "a"), env(40_000, 55_000, "b")].concat()));
    // What it leaves out again goes, but for what others own.
    let b = apply(Some(&a), &with(Vec::new()), schema(), w("one", "2026-01-01T00:00:02Z"), false).unwrap();
    assert_eq!(of(&b).as_array().map(Vec::len), Some(45_000));
}

#[test]
fn the_order_of_a_configuration_is_kept_among_what_is_there() {
    let schema = crate::crd::schema_of(&json!({"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}}));
    let list = |text: &str| -> Value { text.chars().map(|c| json!({"k": c.to_string()})).collect() };
    for (live, config, want) in [
        ("abcd", "db", "acdb"),
        ("abcd", "bd", "abcd"),
        ("abcd", "xay", "xabcdy"),
        ("abc", "cba", "cba"),
        ("axbxc", "xc", "axbc"),
        ("", "ab", "ab"),
        ("ab", "", "ab"),
    ] {
        assert_eq!(typed::merge(&list(live), &list(config), &schema), list(want), "{live} {config}");
    }
}
