use super::*;
use crate::kinds::builtin;

#[test]
fn v3_of_apps() {
    let doc: Value = serde_json::from_slice(&v3(builtin(), "apps", "v1", "v1.36.0").unwrap()).unwrap();
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
    let doc: Value = serde_json::from_slice(&v2_json(builtin(), "v1.36.0")).unwrap();
    let text = doc.to_string();
    for part in text.split("\"#/definitions/").skip(1) {
        let name = &part[..part.find('"').unwrap()];
        assert!(doc["definitions"].get(name).is_some(), "{name} is referred to and missing");
    }
    assert!(doc["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"]["$ref"].is_string());
    let pb = v2_protobuf(builtin(), "v1.36.0");
    assert!(pb.len() > 500_000 && pb.len() < 3_000_000, "{}", pb.len());
    let mut fields = crate::protobuf::wire::Fields(&pb);
    let mut seen = Vec::new();
    while let Some((n, _)) = fields.field().unwrap() {
        seen.push(n);
    }
    assert_eq!(seen, [1, 2, 8, 9]);
}

#[test]
fn index_names_hashes() {
    let i = v3_index(builtin(), "v1.36.0");
    assert!(i["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().starts_with("/openapi/v3/api/v1?hash="));
    assert_ne!(hash(builtin(), "", "v1", "a"), hash(builtin(), "", "v1", "b"));
}
