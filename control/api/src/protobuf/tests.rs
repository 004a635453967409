use super::*;
use serde_json::json;

#[test]
fn round_trips() {
    for o in [
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "b", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"x": "y"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}],
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {}}}]},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}],
                "resources": {"limits": {"cpu": "100m"}}, "securityContext": {"runAsUser": 0, "privileged": false}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": {"path": "/x", "type": ""}}],
                "terminationGracePeriodSeconds": 0, "securityContext": {"supplementalGroups": [1, 2]}},
            "status": {"podIPs": [{"ip": "10.0.0.1"}]}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "aGk="}, "type": "Opaque"}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
                "template": {"metadata": {}, "spec": {"containers": []}}}, "status": {}}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "h", "renewTime": "2026-01-02T03:04:05.123456Z", "leaseDurationSeconds": 40}}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
            "spec": {"group": "g", "names": {"plural": "x", "kind": "X"}, "scope": "Cluster", "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}, "default": ["q"]}, "b": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-preserve-unknown-fields": true}}}}}]}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "p"}, "spec": {"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/d"}, "accessModes": ["ReadWriteOnce"]}, "status": {}}),
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"},
            "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "resourceNames": ["x"]}]}, "validations": [{"expression": "true"}]}}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": "t"}, "status": {"user": {"username": "u", "extra": {"k": ["v", "w"]}}}}),
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "n"}}),
    ] {
        let bytes = encode_object(&o, None);
        assert_eq!(&bytes[..4], MAGIC);
        let mut back = decode_object(&bytes, None).unwrap();
        let mut want = o.clone();
        for v in [&mut back, &mut want] {
            strip_empty(v);
        }
        assert_eq!(back, want);
    }
}

/// Empty lists have no form on the wire.
fn strip_empty(v: &mut Value) {
    match v {
        Value::Object(m) => {
            m.retain(|_, v| v.as_array().is_none_or(|a| !a.is_empty()));
            m.values_mut().for_each(strip_empty);
        }
        Value::Array(a) => a.iter_mut().for_each(strip_empty),
        _ => {}
    }
}

#[test]
fn plain_zeros_are_left_out() {
    let mut body = Vec::new();
    // hostNetwork = 11 (plain bool), terminationGracePeriodSeconds = 4 (optional).
    wire::varint_field(&mut body, 11, 0);
    wire::varint_field(&mut body, 4, 0);
    let spec = crate::schema::by_name("io.k8s.api.core.v1.PodSpec").unwrap();
    assert_eq!(Value::Object(decode_message(&body, spec).unwrap()), json!({"terminationGracePeriodSeconds": 0}));
}

#[test]
fn refuses_nonsense() {
    assert!(decode_object(b"{}", None).is_err());
    assert!(decode_object(b"k8s\0\x0a\xff", None).is_err());
    let mut long = MAGIC.to_vec();
    long.extend([0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(decode_object(&long, None).is_err());
}

#[test]
fn watch_frames_have_a_length() {
    let f = watch_frame("ADDED", b"k8s\0");
    assert_eq!(u32::from_be_bytes(f[..4].try_into().unwrap()) as usize, f.len() - 4);
}

#[test]
fn messages_in_messages_have_an_end() {
    let mut body = wrap("apps/v1", "ControllerRevision", &[]);
    for _ in 0..1000 {
        let (mut raw, mut revision) = (Vec::new(), Vec::new());
        wire::bytes_field(&mut raw, 1, &body);
        wire::bytes_field(&mut revision, 2, &raw);
        body = wrap("apps/v1", "ControllerRevision", &revision);
    }
    assert!(matches!(decode_object(&body, None), Err(Error::Depth)));
}

#[test]
fn many_small_messages_are_refused() {
    // `ports` of a Service's spec, 1, with a name, 1, of no bytes.
    let mut spec = Vec::new();
    for _ in 0..400_000 {
        wire::bytes_field(&mut spec, 1, &[0x0a, 1, b'a']);
    }
    let mut service = Vec::new();
    wire::bytes_field(&mut service, 2, &spec);
    assert!(matches!(decode_object(&wrap("v1", "Service", &service), None), Err(Error::Large)));
}

/// A ControllerRevision list whose items hold this JSON as their data.
fn revisions(json: &[u8], count: usize) -> Vec<u8> {
    let (mut raw, mut revision, mut list) = (Vec::new(), Vec::new(), Vec::new());
    wire::bytes_field(&mut raw, 1, json);
    wire::bytes_field(&mut revision, 2, &raw);
    for _ in 0..count {
        wire::bytes_field(&mut list, 2, &revision);
    }
    wrap("apps/v1", "ControllerRevisionList", &list)
}

#[test]
fn json_in_messages_is_read_or_refused() {
    let read = decode_object(&revisions(br#"{"a":1}"#, 1), None).unwrap();
    assert_eq!(read["items"][0]["data"], json!({"a": 1}));
    for bad in [&b"{"[..], b"nothing", b"{} {}", b"\xff"] {
        assert!(matches!(decode_object(&revisions(bad, 1), None), Err(Error::Json(_))), "{bad:?}");
    }
    // All of it shares the room of one body.
    let many = format!("[{}0]", r#"{"a":1},"#.repeat(10_000));
    assert!(decode_object(&revisions(many.as_bytes(), 1), None).is_ok());
    assert!(decode_object(&revisions(many.as_bytes(), 20), None).is_err());
}
