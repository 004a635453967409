use super::*;
use crate::kinds::builtin;

fn document(frame: &Frame, parts: &[&Parts]) -> Value {
    let join = |of: fn(&Parts) -> &[u8]| parts.iter().map(|p| of(p)).collect::<Vec<_>>().join(&b',');
    let text = [&frame[0][..], &join(|p| &p.paths), &frame[1], &join(|p| &p.schemas), &frame[2]].concat();
    serde_json::from_slice(&text).unwrap()
}

fn v3(group: &str, version: &str) -> Value {
    document(&v3_frame("v1.36.0"), &[&v3_parts(builtin(), group, version).unwrap()])
}

#[test]
fn v3_of_apps() {
    let doc = v3("apps", "v1");
    let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let schemas = &doc["components"]["schemas"];
    assert!(schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["nodeName"]["description"].is_string());
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
    assert_eq!(schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    let text = doc.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = &part[..part.find('"').unwrap()];
        assert!(schemas.get(name).is_some(), "{name} is referred to and missing");
    }
}

#[test]
fn v2_has_everything() {
    let doc = document(&v2_frame("v1.36.0"), &[&v2_parts(builtin())]);
    let text = doc.to_string();
    for part in text.split("\"#/definitions/").skip(1) {
        let name = &part[..part.find('"').unwrap()];
        assert!(doc["definitions"].get(name).is_some(), "{name} is referred to and missing");
    }
    assert!(doc["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"]["$ref"].is_string());
    let parts = v2_protobuf_parts(builtin());
    let frame = v2_protobuf_frame("v1.36.0", parts.paths.len(), parts.schemas.len());
    let pb = [&frame[0][..], &parts.paths, &frame[1], &parts.schemas, &frame[2]].concat();
    assert!(pb.len() > 500_000 && pb.len() < 3_000_000, "{}", pb.len());
    let mut fields = crate::protobuf::wire::Fields(&pb);
    let mut seen = Vec::new();
    while let Some((n, _)) = fields.field().unwrap() {
        seen.push(n);
    }
    assert_eq!(seen, [1, 2, 8, 9]);
}

#[test]
fn custom_kinds_are_put_in() {
    let crd = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}}}}]}});
    let kinds = crate::crd::kinds(&crd);
    let doc = document(&v2_frame("v1.36.0"), &[&v2_parts(builtin()), &v2_custom_parts(&kinds)]);
    assert_eq!(doc["definitions"]["com.example.v1.Foo"]["properties"]["spec"]["properties"]["a"]["type"], "string");
    assert!(doc["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let patch = &doc["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Foo");
    assert!(!v2_protobuf_custom_parts(&kinds).schemas.is_empty());
    let all: Vec<_> = builtin().iter().cloned().chain(kinds.clone()).collect();
    assert!(group_versions(&all).iter().any(|(path, ..)| path == "apis/example.com/v1"));
    let own = document(&v3_frame("v1.36.0"), &[&v3_parts(&all, "example.com", "v1").unwrap()]);
    assert!(own["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let mut other = crd.clone();
    other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["b"] =
        json!({"type": "string"});
    assert_ne!(custom_state(&kinds[0]), custom_state(&crate::crd::kinds(&other)[0]));
}
