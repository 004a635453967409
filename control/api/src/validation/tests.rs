use super::*;
use crate::kinds::find;
use serde_json::json;

#[test]
fn metadata_rules() {
    let k = find("", "v1", "configmaps").unwrap();
    let ok = json!({"metadata": {"name": "a", "namespace": "b", "labels": {"x/y": "z"}, "finalizers": ["a/b"]}});
    assert_eq!(create(k, &ok), []);
    for (m, field) in [
        (json!({"name": "A", "namespace": "b"}), "metadata.name"),
        (json!({"name": "a"}), "metadata.namespace"),
        (json!({"name": "a", "namespace": "b", "labels": {"-": "x"}}), "metadata.labels"),
        (
            json!({"name": "a", "namespace": "b", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}),
            "metadata.ownerReferences.uid",
        ),
    ] {
        assert_eq!(create(k, &json!({"metadata": m}))[0].field, field);
    }
    let mut gone = ok.clone();
    gone["metadata"]["deletionTimestamp"] = "x".into();
    let mut new = gone.clone();
    new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
    assert!(update(k, &new, &gone)[0].detail.contains("no new finalizers"));
}

#[test]
fn duplicates_in_long_lists_are_found_in_linear_time() {
    // By comparing each with each, every one of these would take minutes.
    const MANY: usize = 60_000;
    let items = |item: &dyn Fn(usize) -> Value| -> Value { (0..MANY).chain([0]).map(item).collect() };
    let pod = |field: &str, list: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        match field {
            "ports" | "volumeMounts" => spec["containers"][0][field] = list,
            _ => spec[field] = list,
        }
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})
    };
    let spread = |i: usize| {
        json!({"maxSkew": 1, "topologyKey": format!("k{i}"), "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"a": "b"}}})
    };
    let taint = |i: usize| json!({"key": format!("k{i}"), "effect": "NoSchedule"});
    let port = |i: usize| json!({"name": format!("p{i}"), "containerPort": 80, "hostPort": 1 + i, "protocol": "TCP"});
    let mount = |i: usize| json!({"name": "v", "mountPath": format!("/{i}")});
    let gate = |i: usize| json!({"name": format!("g{i}")});
    for (kind, object, want) in [
        ("nodes", json!({"metadata": {"name": "n"}, "spec": {"taints": items(&taint)}}), "metadata.taints[60000]"),
        (
            "pods",
            pod("topologySpreadConstraints", items(&spread)),
            "spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}",
        ),
        ("pods", pod("schedulingGates", items(&gate)), "spec.schedulingGates[60000]"),
        ("pods", pod("ports", items(&port)), "spec.containers[0].ports[60000].name"),
        ("pods", pod("volumeMounts", items(&mount)), "spec.containers[0].volumeMounts[60000].mountPath"),
    ] {
        let errors = create(find("", "v1", kind).unwrap(), &object);
        let said = |e: &&FieldError| {
            e.field == want && (e.kind.reason() == "FieldValueDuplicate" || e.detail == "must be unique")
        };
        assert_eq!(errors.iter().filter(said).count(), 1, "{want}: {:?}", &errors[..errors.len().min(4)]);
    }
}

#[test]
fn what_is_said_of_many_unknown_claims_is_short() {
    // By naming all that there are each time, this would take gigabytes.
    const MANY: usize = 40_000;
    let claims = |name: &str| -> Value { (0..MANY).map(|i| json!({"name": format!("{name}{i}")})).collect() };
    let object = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"resourceClaims": claims("a"),
        "containers": [{"name": "c", "image": "i", "resources": {"claims": claims("b")}}]}});
    let errors = create(find("", "v1", "pods").unwrap(), &object);
    let unknown: Vec<&FieldError> = errors.iter().filter(|e| e.kind.reason() == "FieldValueNotFound").collect();
    assert_eq!(unknown.len(), MANY);
    assert_eq!(
        unknown[0].detail,
        "must be one of the names in pod.spec.resourceClaims: a0, a1, a10, a100, a1000, a10000, a10001, a10002, a10003, a10004, ..."
    );
}
