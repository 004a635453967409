//! Custom resources.

use serde_json::{Value, json};

use crate::client::Cluster;

pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";

pub fn crd() -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "minimum": 1, "default": 3}, "colour": {"type": "string"}}}, "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}});
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["fo"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]}]}})
}

pub fn foo(name: &str, spec: Value) -> Value {
    json!({"kind": "Foo", "apiVersion": "example.com/v1", "metadata": {"name": name}, "spec": spec})
}

pub async fn established(cluster: &Cluster) {
    established_in(cluster, "example.com").await;
}

pub async fn established_in(cluster: &Cluster, group: &str) {
    let mut events = cluster.watch(&format!("{CRDS}?watch=1&fieldSelector=metadata.name%3Dfoos.{group}")).await;
    loop {
        let (_, crd) = events.next().await.unwrap();
        let conditions = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
            return;
        }
    }
}

/// As upstream's server tells them, and who they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_deprecated_version_are_told_and_counted() {
    let cluster = Cluster::start().await;
    let mut crd = crd();
    let mut old = crd["spec"]["versions"][0].clone();
    (old["name"], old["storage"], old["deprecated"]) = (json!("v1beta1"), json!(false), json!(true));
    crd["spec"]["versions"].as_array_mut().unwrap().push(old);
    cluster.post(CRDS, crd).await.expect(201);
    established(&cluster).await;
    let metrics = async || String::from_utf8(cluster.get("/metrics").await.body.to_vec()).unwrap();
    cluster.get(FOOS).await.expect(200);
    assert!(!metrics().await.contains("group=\"example.com\",version=\"v1beta1\""));
    let old = FOOS.replace("v1", "v1beta1");
    let answer = cluster.send_with("GET", &old, &[("user-agent", "old-client/1.0")], "").await;
    let warning = answer.headers["warning"].to_str().unwrap();
    assert!(warning.contains("example.com/v1beta1 Foo is deprecated"), "{warning}");
    assert_eq!(cluster.get(&format!("{old}/a/nothing")).await.code, 404);
    let text = metrics().await;
    let api = "group=\"example.com\",version=\"v1beta1\",resource=\"foos\",subresource=\"\",removed_release=\"\"";
    assert!(text.contains(&format!("apiserver_requested_deprecated_apis{{{api}}} 1\n")), "{text}");
    let caller = format!("kimg_deprecated_api_last_request_seconds{{{api},user=");
    let line = text.lines().find(|line| line.starts_with(&caller)).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("user_agent=\"old-client/1.0\"} 1"), "{line}");
    assert!(!text.contains("subresource=\"nothing\""), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_a_definition() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.get(FOOS).await.code, 404);
    cluster.post(CRDS, crd()).await.expect(201);
    established(&cluster).await;
    let made = cluster.post(FOOS, foo("a", json!({"colour": "red", "unknown": 1}))).await.expect(201);
    assert_eq!(
        (&made["spec"], &made["metadata"]["generation"]),
        (&json!({"colour": "red", "size": 3}), &json!(1)),
        "defaulted and pruned"
    );
    assert_eq!(cluster.post(FOOS, foo("b", json!({"size": 0}))).await.code, 422);
    let path = format!("{FOOS}/a");
    cluster.patch(&path, "merge-patch+json", json!({"spec": {"size": 4}})).await.expect(200);
    assert_eq!(cluster.patch(&path, "strategic-merge-patch+json", json!({})).await.code, 415);
    let status = cluster
        .patch(&format!("{path}/status"), "merge-patch+json", json!({"status": {"ready": true}, "spec": {"size": 9}}))
        .await
        .expect(200);
    assert_eq!((&status["status"]["ready"], &status["spec"]["size"]), (&json!(true), &json!(4)));
    assert_eq!(cluster.get(&format!("{path}/scale")).await.expect(200)["spec"]["replicas"], 4);
    let table = cluster
        .send_with("GET", FOOS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "")
        .await
        .expect(200);
    assert_eq!(table["rows"][0]["cells"], json!(["a", 4]));
    let resources = cluster.get("/apis/example.com/v1").await.expect(200);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["fo"]));
    cluster.end().await;
    cluster.begin().await;
    assert_eq!(cluster.get(&path).await.expect(200)["spec"]["size"], 4, "served from the start");
    let mut events = cluster.watch(&format!("{FOOS}?watch=1")).await;
    assert_eq!(events.brief().await.0, "ADDED");
    cluster.delete(&format!("{CRDS}/foos.example.com")).await.expect(200);
    assert_eq!(events.brief().await.0, "DELETED");
    assert!(events.next().await.is_none());
    assert_eq!(cluster.get(FOOS).await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_definitions() {
    let cluster = Cluster::start().await;
    let mut definition = crd();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let rule = |definition: &mut Value, rule: Value| {
        definition.pointer_mut(spec).unwrap()["x-kubernetes-validations"] = json!([rule]);
    };
    rule(&mut definition, json!({"rule": "self.sise > 1"}));
    let refused = cluster.post(CRDS, definition.clone()).await.expect(422);
    let cause = &refused["details"]["causes"][0];
    assert_eq!(
        cause["field"],
        "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"
    );
    let message = cause["message"].as_str().unwrap();
    assert!(message.contains("compilation failed: ERROR: <input>:1:5: undefined field 'sise'"), "{message}");

    rule(&mut definition, json!({"rule": "self.colour == 'red' || isSemver(self.colour)"}));
    let answer = cluster.send("POST", &format!("{CRDS}?dryRun=All"), "application/json", definition.to_string()).await;
    assert_eq!(answer.code, 201);
    assert!(
        answer.headers["warning"]
            .to_str()
            .unwrap()
            .contains("is not enforced: this server does not have the function isSemver")
    );

    rule(
        &mut definition,
        json!({"rule": "self.size <= 5 && (!has(oldSelf.colour) || self.colour == oldSelf.colour)", "message": "too large, or of another colour"}),
    );
    let answer = cluster.send("POST", CRDS, "application/json", definition.to_string()).await;
    assert_eq!((answer.code, answer.headers.get("warning")), (201, None));
    established(&cluster).await;
    cluster.post(FOOS, foo("a", json!({"size": 9, "colour": "red"}))).await.expect(201);
    let path = format!("{FOOS}/a");
    let failed = "Foo.example.com \"a\" is invalid: spec: Invalid value: \"object\": too large, or of another colour";
    for patch in [json!({"spec": {"size": 8}}), json!({"spec": {"size": 2, "colour": "blue"}})] {
        let refused = cluster.patch(&path, "merge-patch+json", patch).await.expect(422);
        assert_eq!(refused["message"], failed);
    }
    let apply = json!({"kind": "Foo", "apiVersion": "example.com/v1", "spec": {"size": 7}});
    let refused = cluster.patch(&format!("{path}?fieldManager=m&force=true"), "apply-patch+yaml", apply).await;
    assert_eq!(refused.expect(422)["message"], failed);
    cluster.patch(&path, "merge-patch+json", json!({"spec": {"size": 5}})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_is_established_can_be_changed() {
    let cluster = Cluster::start().await;
    cluster.post(CRDS, crd()).await.expect(201);
    established(&cluster).await;
    let path = format!("{CRDS}/foos.example.com");
    let labelled =
        cluster.patch(&path, "merge-patch+json", json!({"metadata": {"labels": {"a": "b"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let mut newer = labelled.clone();
    newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["weight"] =
        json!({"type": "integer"});
    cluster.put(&path, &newer).await.expect(200);
}

/// What is not there is not half there: where objects would be spoiled it is refused, else a warning says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_in_force_says_so() {
    let cluster = Cluster::start().await;
    let warning = |answer: &crate::client::Answer| {
        answer.headers.get("warning").and_then(|w| w.to_str().ok()).unwrap_or_default().to_string()
    };
    let mut converted = crd();
    converted["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/x"}}});
    let mut two = converted.clone();
    let mut second = two["spec"]["versions"][0].clone();
    (second["name"], second["storage"]) = (json!("v2"), json!(false));
    two["spec"]["versions"].as_array_mut().unwrap().push(second);
    let refused = cluster.post(CRDS, two).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("no conversion webhooks yet"), "{refused}");
    let answer = cluster.post(CRDS, converted).await;
    assert!(answer.code == 201 && warning(&answer).contains("served as they are"), "{}", warning(&answer));
    let hooks = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "w"}, "webhooks": []});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let answer = cluster.post(path, hooks).await;
    assert!(answer.code == 201 && warning(&answer).contains("not in force"), "{}", warning(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_definition_drops_is_not_shown_and_in_nobodys_way() {
    let cluster = Cluster::start().await;
    cluster.post(CRDS, crd()).await.expect(201);
    established(&cluster).await;
    let made = cluster.post(FOOS, foo("a", json!({"colour": "red", "size": 2.0}))).await.expect(201);
    assert_eq!(made["spec"].to_string(), r#"{"colour":"red","size":2}"#, "a whole number is an integer");
    let mut without = cluster.get(&format!("{CRDS}/foos.example.com")).await.expect(200);
    let spec = &mut without["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    spec.as_object_mut().unwrap().remove("colour");
    cluster.put(&format!("{CRDS}/foos.example.com"), &without).await.expect(200);
    let path = format!("{FOOS}/a");
    let mut seen = Value::Null;
    for _ in 0..100 {
        seen = cluster.get(&path).await.expect(200);
        if seen["spec"].get("colour").is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(seen["spec"], json!({"size": 2}));
    assert_eq!(cluster.get(FOOS).await.expect(200)["items"][0]["spec"], json!({"size": 2}));
    let strict = format!("{path}?fieldValidation=Strict");
    cluster.patch(&strict, "merge-patch+json", json!({"spec": {"size": 5}})).await.expect(200);
    let read = cluster.get(&path).await.expect(200);
    cluster.put(&strict, &read).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_while_its_definition_goes() {
    let cluster = Cluster::start().await;
    cluster.post(CRDS, crd()).await.expect(201);
    established(&cluster).await;
    let mut held = foo("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(FOOS, held).await.expect(201);
    cluster.delete(&format!("{CRDS}/foos.example.com")).await.expect(200);
    let refused = cluster.post(FOOS, foo("late", json!({}))).await.expect(405);
    assert!(
        refused["message"].as_str().unwrap().contains("while custom resource definition is terminating"),
        "{refused}"
    );
    let change = json!({"metadata": {"finalizers": null}});
    cluster.patch(&format!("{FOOS}/held"), "merge-patch+json", change).await.expect(200);
}

/// What is answered and never stored are kinds, not groups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_may_be_of_a_group_that_is_measured_or_reviewed() {
    let cluster = Cluster::start().await;
    for (group, version) in [("metrics.k8s.io", "v1beta1"), ("authentication.k8s.io", "v1")] {
        let mut definition = crd();
        definition["metadata"] = json!({"name": format!("foos.{group}"),
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}});
        definition["spec"]["group"] = group.into();
        definition["spec"]["versions"][0]["name"] = version.into();
        cluster.post(CRDS, definition).await.expect(201);
        established_in(&cluster, group).await;
        let foos = format!("/apis/{group}/{version}/namespaces/default/foos");
        let mut made = foo("a", json!({"size": 5}));
        made["apiVersion"] = format!("{group}/{version}").into();
        cluster.post(&foos, made).await.expect(201);
        assert_eq!(cluster.get(&format!("{foos}/a")).await.expect(200)["spec"]["size"], 5, "{group}");
        assert_eq!(cluster.get(&foos).await.expect(200)["items"][0]["spec"]["size"], 5, "{group}");
    }
}
