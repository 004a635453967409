use super::*;
use crate::kinds::find;
use serde_json::json;

fn errors(group: &str, plural: &str, o: Value) -> Vec<String> {
    let k = crate::kinds::builtin().iter().rev().find(|k| k.group == group && k.plural == plural).unwrap();
    create(k, &o).iter().map(ToString::to_string).collect()
}

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
            "metadata.ownerReferences[0].uid",
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
fn kinds_rules() {
    let ns = |mut o: Value| {
        o["metadata"] = json!({"name": "a", "namespace": "b"});
        o
    };
    assert_eq!(
        errors(
            "networking.k8s.io",
            "ingresses",
            ns(
                json!({"spec": {"rules": [{"http": {"paths": [{"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "s"}}}]}}]}})
            )
        ),
        [
            "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
            "spec.rules[0].http.paths[0].backend: Required value: port name or number is required"
        ]
    );
    assert_eq!(
        errors(
            "autoscaling",
            "horizontalpodautoscalers",
            ns(json!({"spec": {"scaleTargetRef": {"kind": "X"}, "maxReplicas": 0}}))
        ),
        ["spec.scaleTargetRef.name: Required value", "spec.maxReplicas: Invalid value: 0: must be greater than 0"]
    );
    assert_eq!(
        errors("policy", "poddisruptionbudgets", ns(json!({"spec": {"minAvailable": 1, "maxUnavailable": "50%"}})))
            .len(),
        1
    );
    assert_eq!(
        errors("storage.k8s.io", "storageclasses", json!({"metadata": {"name": "a"}})),
        ["provisioner: Required value"]
    );
    let slice = |address: &str| {
        let o = json!({"addressType": "IPv4", "endpoints": [{"addresses": [address]}]});
        errors("discovery.k8s.io", "endpointslices", ns(o))
    };
    assert_eq!(slice("10.0.0.1"), [""; 0]);
    assert_eq!(
        slice("169.254.169.254"),
        ["endpoints[0].addresses[0]: Invalid value: \"169.254.169.254\": may not be in the link-local range \
          (169.254.0.0/16, fe80::/10)"]
    );
    let subset = ns(json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 80}]}]}));
    assert_eq!(
        errors("", "endpoints", subset),
        ["subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
          (127.0.0.0/8, ::1/128)"]
    );
    let k = find("storage.k8s.io", "v1", "storageclasses").unwrap();
    let a = json!({"metadata": {"name": "a"}, "provisioner": "x"});
    let b = json!({"metadata": {"name": "a"}, "provisioner": "y"});
    assert_eq!(update(k, &a, &b)[0].to_string(), "provisioner: Forbidden: updates to provisioner are forbidden.");
}
