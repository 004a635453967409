//! Discovery and OpenAPI.

use std::time::{Duration, Instant};

use api::protobuf::wire::Fields;
use serde_json::{Value, json};

use crate::client::{Answer, Cluster};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V2: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

async fn accepted(cluster: &Cluster, path: &str, accept: &str) -> Answer {
    cluster.send_with("GET", path, &[("accept", accept)], "").await
}

fn crd() -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "description": "How many."},
        "any": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "list": {"type": "array", "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}}}}});
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "bars.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "bars", "singular": "bar", "kind": "Bar", "listKind": "BarList", "shortNames": ["br"], "categories": ["all"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.size"}],
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}, {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_discovery() {
    let cluster = Cluster::start().await;
    let version = cluster.get("/version").await.expect(200);
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.36."));
    for field in ["major", "minor", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"] {
        assert!(version[field].is_string(), "{field}");
    }
    let api = cluster.get("/api").await.expect(200);
    assert_eq!((&api["kind"], &api["versions"]), (&json!("APIVersions"), &json!(["v1"])));
    assert!(api["serverAddressByClientCIDRs"][0]["serverAddress"].is_string());
    let groups = cluster.get("/apis").await.expect(200);
    assert_eq!(
        (&groups["kind"], &groups["groups"][0]["name"]),
        (&json!("APIGroupList"), &json!("apiregistration.k8s.io"))
    );
    let autoscaling = cluster.get("/apis/autoscaling").await.expect(200);
    assert_eq!((&autoscaling["kind"], &autoscaling["preferredVersion"]["version"]), (&json!("APIGroup"), &json!("v2")));
    let core = cluster.get("/api/v1").await.expect(200);
    assert_eq!((&core["kind"], &core["groupVersion"]), (&json!("APIResourceList"), &json!("v1")));
    let find = |name: &str| core["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap().clone();
    let pods = find("pods");
    assert_eq!(
        (&pods["shortNames"], &pods["categories"], &pods["kind"]),
        (&json!(["po"]), &json!(["all"]), &json!("Pod"))
    );
    assert_eq!((&pods["namespaced"], &pods["singularName"]), (&json!(true), &json!("pod")));
    assert!(pods["storageVersionHash"].is_string() && pods["verbs"].as_array().unwrap().contains(&json!("watch")));
    let eviction = find("pods/eviction");
    assert_eq!(
        (&eviction["kind"], &eviction["group"], &eviction["version"]),
        (&json!("Eviction"), &json!("policy"), &json!("v1"))
    );
    assert!(!core.to_string().contains("watch/"));
    for path in ["/api/v2", "/apis/none", "/apis/apps/v9", "/nothing", "/apis/apps/v1/nothings"] {
        assert_eq!(cluster.get(path).await.failure(), (404, "NotFound".into()), "{path}");
    }
    let proto = accepted(&cluster, "/apis/apps/v1", "application/vnd.kubernetes.protobuf").await;
    let list = api::protobuf::decode_object(&proto.body, None).unwrap();
    assert!(list["resources"].as_array().unwrap().iter().any(|r| r["name"] == "deployments"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregated_discovery() {
    let cluster = Cluster::start().await;
    for (version, path) in [("v2", "/apis"), ("v2", "/api"), ("v2beta1", "/apis")] {
        let accept = format!(
            "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList;profile=nopeer,application/json"
        );
        let answer = accepted(&cluster, path, &accept).await;
        let named = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        assert_eq!(answer.headers["content-type"], named.as_str());
        let tag = answer.headers["etag"].to_str().unwrap().to_string();
        assert!(tag.starts_with('"') && tag.ends_with('"'));
        let list = answer.expect(200);
        assert_eq!(
            (&list["kind"], &list["apiVersion"]),
            (&json!("APIGroupDiscoveryList"), &json!(format!("apidiscovery.k8s.io/{version}")))
        );
        let core = list["items"].as_array().unwrap().iter().any(|i| i["metadata"].get("name").is_none());
        assert_eq!(core, path == "/api", "the core group is under /api only");
        let known = cluster.send_with("GET", path, &[("accept", &accept), ("if-none-match", &tag)], "").await;
        assert_eq!((known.code, known.body.len()), (304, 0));
    }
    let newest = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let pods = accepted(&cluster, "/api", newest).await.expect(200);
    let pods = pods["items"][0]["versions"][0]["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["resource"] == "pods")
        .unwrap()
        .clone();
    assert_eq!(
        (&pods["scope"], &pods["singularResource"], &pods["responseKind"]["kind"]),
        (&json!("Namespaced"), &json!("pod"), &json!("Pod"))
    );
    let eviction = pods["subresources"].as_array().unwrap().iter().find(|s| s["subresource"] == "eviction").unwrap();
    assert_eq!(eviction["responseKind"], json!({"group": "policy", "version": "v1", "kind": "Eviction"}));
    let before = accepted(&cluster, "/apis", newest).await.headers["etag"].clone();
    cluster.post(CRDS, crd()).await.expect(201);
    let begun = Instant::now();
    loop {
        let answer = accepted(&cluster, "/apis", newest).await;
        if answer.headers["etag"] != before && answer.json().to_string().contains("\"example.com\"") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "a new group shows within seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_v3() {
    let cluster = Cluster::start().await;
    let index = cluster.get("/openapi/v3").await.expect(200);
    for (path, url) in index["paths"].as_object().unwrap() {
        let url = url["serverRelativeURL"].as_str().unwrap();
        let answer = cluster.get(url).await;
        assert!(answer.headers["cache-control"].to_str().unwrap().contains("immutable"));
        assert_eq!(answer.headers["content-type"], "application/json");
        let tag = answer.headers["etag"].to_str().unwrap().to_string();
        let document = answer.expect(200);
        assert!(!document["paths"].as_object().unwrap().is_empty(), "{path}");
        let known = cluster.send_with("GET", url, &[("if-none-match", &tag)], "").await;
        assert_eq!(known.code, 304, "{path}");
    }
    let wrong = cluster.get("/openapi/v3/apis/apps/v1?hash=0123").await;
    let right = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!((wrong.code, &wrong.headers["location"]), (301, &right.parse().unwrap()));
    assert_eq!(cluster.get("/openapi/v3/apis/none/v1").await.code, 404);
    let apps = cluster.get(right).await.expect(200);
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
        assert!(names.contains(&name), "{name}");
    }
    assert_eq!(
        (&patch["x-kubernetes-action"], &patch["x-kubernetes-group-version-kind"]["kind"]),
        (&json!("patch"), &json!("Deployment"))
    );
    for kind in [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ] {
        assert!(patch["requestBody"]["content"][kind].is_object(), "{kind}");
    }
    let schemas = &apps["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        (
            &containers["x-kubernetes-patch-merge-key"],
            &containers["x-kubernetes-patch-strategy"],
            &containers["x-kubernetes-list-type"],
            &containers["x-kubernetes-list-map-keys"]
        ),
        (&json!("name"), &json!("merge"), &json!("map"), &json!(["name"]))
    );
    assert_eq!(schemas["io.k8s.api.core.v1.LabelSelectorRequirement"], Value::Null);
    assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"], "atomic");
    assert_eq!(schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    assert!(apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"]["get"].is_object());
}

/// The members of one field of a protobuf message, by name.
fn named(message: &[u8], number: u32) -> Vec<(String, &[u8])> {
    let mut fields = Fields(message);
    let mut out = Vec::new();
    while let Some((n, raw)) = fields.field().unwrap() {
        if n == number {
            let (mut name, mut value, mut inner) = (String::new(), &[][..], Fields(raw.bytes()));
            while let Some((n, raw)) = inner.field().unwrap() {
                if n == 1 { name = String::from_utf8(raw.bytes().to_vec()).unwrap() } else { value = raw.bytes() }
            }
            out.push((name, value));
        }
    }
    out
}

fn part(message: &[u8], number: u32) -> &[u8] {
    let mut fields = Fields(message);
    while let Some((n, raw)) = fields.field().unwrap() {
        if n == number {
            return raw.bytes();
        }
    }
    panic!("no field {number}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_v2_in_both_forms() {
    let cluster = Cluster::start().await;
    let json = cluster.get("/openapi/v2").await;
    let tag = json.headers["etag"].to_str().unwrap().to_string();
    assert_eq!(cluster.send_with("GET", "/openapi/v2", &[("if-none-match", &tag)], "").await.code, 304);
    let json = json.expect(200);
    assert_eq!(json["swagger"], "2.0");
    for accept in [V2, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"] {
        let answer = accepted(&cluster, "/openapi/v2", accept).await;
        assert_eq!(answer.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
        let (paths, definitions) = (named(part(&answer.body, 8), 2), named(part(&answer.body, 9), 1));
        assert_eq!(paths.len(), json["paths"].as_object().unwrap().len());
        assert_eq!(definitions.len(), json["definitions"].as_object().unwrap().len());
        assert!(paths.iter().any(|(name, _)| name == "/api/v1/namespaces/{namespace}/pods/{name}"));
    }
    let text = json.to_string();
    for reference in text.split("\"#/definitions/").skip(1) {
        let name = &reference[..reference.find('"').unwrap()];
        assert!(json["definitions"].get(name).is_some(), "{name} is missing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_kinds_are_spliced_in_at_once() {
    let cluster = Cluster::start().await;
    let before = accepted(&cluster, "/openapi/v2", V2).await;
    cluster.post(CRDS, crd()).await.expect(201);
    let begun = Instant::now();
    let v2 = loop {
        let document = cluster.get("/openapi/v2").await.expect(200);
        if document["definitions"].get("com.example.v1.Bar").is_some() {
            break document;
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    println!("published after {:?}", begun.elapsed());
    let bar = &v2["definitions"]["com.example.v1.Bar"];
    assert_eq!(
        bar["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "version": "v1", "kind": "Bar"}])
    );
    let spec = &bar["properties"]["spec"]["properties"];
    assert_eq!(
        (&spec["any"]["x-kubernetes-int-or-string"], spec["any"].get("anyOf")),
        (&json!(true), None),
        "v2 cannot say anyOf"
    );
    assert_eq!(spec["list"]["x-kubernetes-list-map-keys"], json!(["k"]));
    assert!(v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let proto = accepted(&cluster, "/openapi/v2", V2).await;
    assert_ne!(proto.headers["etag"], before.headers["etag"]);
    assert!(named(part(&proto.body, 9), 1).iter().any(|(name, _)| name == "com.example.v1.Bar"));
    assert!(named(part(&proto.body, 8), 2).iter().any(|(name, _)| name.ends_with("/bars/{name}")));
    let index = cluster.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    let v3 = cluster.get(url).await.expect(200);
    let spec = &v3["components"]["schemas"]["com.example.v1.Bar"]["properties"]["spec"]["properties"];
    assert_eq!(
        (&spec["size"]["description"], &spec["any"]["anyOf"][0]["type"]),
        (&json!("How many."), &json!("integer"))
    );
    let selectable = &v3["components"]["schemas"]["com.example.v1.Bar"]["x-kubernetes-selectable-fields"];
    assert_eq!(*selectable, json!([{"fieldPath": "spec.size"}]));
    let patch = &v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/bars/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    cluster.delete(&format!("{CRDS}/bars.example.com")).await.expect(200);
    let begun = Instant::now();
    while cluster.get("/openapi/v3").await.expect(200)["paths"].get("apis/example.com/v1").is_some() {
        assert!(begun.elapsed() < Duration::from_secs(5), "what is gone is no longer published");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_objects_are_read_like_others() {
    const BARS: &str = "/apis/example.com/v1/namespaces/default/bars";
    let cluster = Cluster::start().await;
    cluster.post(CRDS, crd()).await.expect(201);
    let begun = Instant::now();
    while cluster.get(BARS).await.code != 200 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let bar = |name: &str, size: u32| json!({"kind": "Bar", "apiVersion": "example.com/v1", "metadata": {"name": name}, "spec": {"size": size}});
    cluster.post(BARS, bar("a", 1)).await.expect(201);
    cluster.post(BARS, bar("b", 2)).await.expect(201);
    let chosen = cluster.get(&format!("{BARS}?fieldSelector=spec.size%3D2")).await.expect(200);
    assert_eq!((chosen["items"].as_array().unwrap().len(), &chosen["items"][0]["metadata"]["name"]), (1, &json!("b")));
    assert_eq!(cluster.get(&format!("{BARS}?fieldSelector=spec.other%3D2")).await.code, 400);
    let mut events = cluster.watch(&format!("{BARS}?watch=1&fieldSelector=spec.size%3D3")).await;
    cluster.patch(&format!("{BARS}/a"), "merge-patch+json", json!({"spec": {"size": 3}})).await.expect(200);
    cluster.patch(&format!("{BARS}/a"), "merge-patch+json", json!({"spec": {"size": 4}})).await.expect(200);
    assert_eq!(events.brief().await, ("ADDED".into(), "a".into()));
    assert_eq!(events.brief().await, ("DELETED".into(), "a".into()));
    let table = accepted(&cluster, BARS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Size", "Age"]);
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..2], [json!("a"), json!(4)]);
    assert!(table["rows"][0]["cells"][2].as_str().unwrap().ends_with('s'));
    let protobuf = "application/vnd.kubernetes.protobuf";
    assert_eq!(accepted(&cluster, BARS, protobuf).await.code, 406, "custom objects have no protobuf form");
    assert_eq!(cluster.send("POST", BARS, protobuf, "k8s\0").await.code, 415);
    let metadata =
        accepted(&cluster, BARS, &format!("{protobuf};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")).await;
    let metadata = api::protobuf::decode_object(&metadata.body, None).unwrap();
    assert_eq!(metadata["items"][0]["metadata"]["name"], "a", "their metadata has one");
    let yaml = cluster
        .send(
            "POST",
            BARS,
            "application/yaml",
            "kind: Bar\napiVersion: example.com/v1\nmetadata: {name: c}\nspec: {size: 9}\n",
        )
        .await;
    assert_eq!(yaml.expect(201)["spec"]["size"], 9);
}
