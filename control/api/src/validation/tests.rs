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
