//! Writes: what clients may ask of them, and the exact refusals.

use serde_json::{Value, json};

use crate::client::Cluster;
use crate::customs::{CRDS, FOOS, crd, established, foo};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const APPLY: &str = "application/apply-patch+yaml";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn deployment(name: &str) -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}})
}

/// Pods need their service account.
async fn account(cluster: &Cluster) {
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let made = cluster.post(path, json!({"metadata": {"name": "default"}})).await;
    assert!(matches!(made.code, 201 | 409));
}

fn warnings(answer: &crate::client::Answer) -> Vec<String> {
    answer.headers.get_all("warning").iter().filter_map(|v| v.to_str().ok().map(str::to_string)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_that_mean_nothing() {
    let cluster = Cluster::start().await;
    for (query, want) in [
        (
            "dryRun=x",
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"x\"]: supported values: \"All\"",
        ),
        (
            "fieldValidation=x",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"x\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
        (
            "fieldManager=a%0Ab",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\nb\": should only contain printable characters",
        ),
    ] {
        let refused = cluster.post(&format!("{MAPS}?{query}"), map("x")).await.expect(422);
        assert_eq!(refused["message"], want);
    }
    let long = "m".repeat(129);
    assert_eq!(cluster.post(&format!("{MAPS}?fieldManager={long}"), map("x")).await.code, 422);
    let refused = cluster.send("PATCH", &format!("{MAPS}/x"), APPLY, map("x").to_string()).await.expect(422);
    assert_eq!(
        refused["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let forced = cluster.patch(&format!("{MAPS}/x?force=true"), "merge-patch+json", json!({})).await.expect(422);
    assert_eq!(
        forced["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    let cbor = cluster.send("PATCH", &format!("{MAPS}/x?fieldManager=m"), "application/apply-patch+cbor", "x").await;
    assert_eq!(cbor.code, 415);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_stands_once() {
    let cluster = Cluster::start().await;
    let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": uid});
    let owned = |owners: &[Value]| json!({"metadata": {"name": "owned", "ownerReferences": owners}});
    let made = cluster.post(MAPS, owned(&[owner("u1"), owner("u2"), owner("u1")])).await;
    let said = warnings(&made);
    assert!(said.len() == 1 && said[0].ends_with("duplicate UID(s) observed: [u1]\""), "{said:?}");
    assert_eq!(made.expect(201)["metadata"]["ownerReferences"], json!([owner("u1"), owner("u2")]));
    let changed = cluster.put(&format!("{MAPS}/owned"), &owned(&[owner("u2"), owner("u2")])).await;
    assert_eq!(warnings(&changed).len(), 1);
    assert_eq!(changed.expect(200)["metadata"]["ownerReferences"], json!([owner("u2")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_unknown_fields_make_few_warnings() {
    let cluster = Cluster::start().await;
    let body = |name: &str| {
        let odd: Vec<String> = (0..80_000).map(|i| format!("\"u{i}\":1,\"u{i}\":1")).collect();
        format!(r#"{{"metadata":{{"name":"{name}"}},{}}}"#, odd.join(","))
    };
    let warned = cluster.send("POST", MAPS, "application/json", body("a")).await;
    let said = warnings(&warned);
    assert_eq!(warned.code, 201);
    assert!(!said.is_empty() && said.iter().map(String::len).sum::<usize>() < 8 << 10, "{}", said.len());
    let refused = cluster.send("POST", &format!("{MAPS}?fieldValidation=Strict"), "application/json", body("b")).await;
    let message = refused.expect(400)["message"].as_str().unwrap().to_string();
    assert_eq!(message.matches("field").count(), 100, "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_duplicate_fields() {
    let cluster = Cluster::start().await;
    let body = |name: &str| {
        format!(
            r#"{{"kind":"Deployment","apiVersion":"apps/v1","metadata":{{"name":"{name}","odd":1}},"spec":{{"bogus":1,"replicas":1,"replicas":2,"selector":{{"matchLabels":{{"a":"b"}}}},"template":{{"metadata":{{"labels":{{"a":"b"}}}},"spec":{{"containers":[{{"name":"c","image":"i","bad":true,"image":"j"}}]}}}}}}}}"#
        )
    };
    let all = [
        "duplicate field \"spec.replicas\"",
        "duplicate field \"spec.template.spec.containers[0].image\"",
        "unknown field \"metadata.odd\"",
        "unknown field \"spec.bogus\"",
        "unknown field \"spec.template.spec.containers[0].bad\"",
    ];
    let strict = format!("{DEPLOYMENTS}?fieldValidation=Strict");
    let refused = cluster.send("POST", &strict, "application/json", body("s")).await.expect(400);
    let message = refused["message"].as_str().expect("a message");
    assert!(message.starts_with("strict decoding error: "), "{message}");
    assert_eq!(refused["reason"], "BadRequest");
    for text in all {
        assert!(message.contains(text), "{text} in {message}");
    }
    let warned = cluster.send("POST", DEPLOYMENTS, "application/json", body("w")).await;
    let said = warnings(&warned);
    assert_eq!(said.len(), all.len(), "{said:?}");
    let made = warned.expect(201);
    assert_eq!(made["spec"]["replicas"], 2, "the last one counts");
    assert!(made["spec"].get("bogus").is_none() && made["metadata"].get("odd").is_none());
    let ignored = format!("{DEPLOYMENTS}?fieldValidation=Ignore");
    assert_eq!(warnings(&cluster.send("POST", &ignored, "application/json", body("i")).await), [""; 0]);
    // The same of YAML.
    let yaml = "kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: y\ndota: {}\ndata:\n  a: \"1\"\n";
    let refused = cluster.send("POST", &format!("{MAPS}?fieldValidation=Strict"), "application/yaml", yaml).await;
    assert_eq!(refused.expect(400)["message"], "strict decoding error: unknown field \"dota\"");

    // Updates, and patches of every kind.
    let path = format!("{DEPLOYMENTS}/w?fieldValidation=Strict");
    assert_eq!(cluster.send("PUT", &path, "application/json", body("w")).await.code, 400);
    for (kind, patch) in [
        ("application/merge-patch+json", r#"{"spec":{"foo":1,"paused":true,"paused":false}}"#),
        ("application/strategic-merge-patch+json", r#"{"spec":{"foo":1,"paused":true,"paused":false}}"#),
        ("application/json-patch+json", r#"[{"op":"add","path":"/spec/foo","value":1}]"#),
    ] {
        let refused = cluster.send("PATCH", &path, kind, patch).await.expect(422);
        let message = refused["message"].as_str().expect("a message");
        assert!(message.starts_with(" \"\" is invalid: patch: Invalid value: \""), "{message}");
        assert!(message.contains("strict decoding error: "), "{message}");
        assert!(message.ends_with("unknown field \"spec.foo\""), "{message}");
        assert_eq!(message.contains("duplicate field \"spec.paused\""), patch.contains("paused"), "{message}");
        let warned = cluster.send("PATCH", &format!("{DEPLOYMENTS}/w"), kind, patch).await;
        let said = warnings(&warned);
        assert!(said.contains(&"299 - \"unknown field \\\"spec.foo\\\"\"".to_string()), "{said:?}");
        warned.expect(200);
    }
    let config = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"f"},"dota":{}}"#;
    let refused = cluster.send("PATCH", &format!("{MAPS}/f?fieldManager=m"), APPLY, config).await.expect(500);
    assert_eq!(
        refused["message"],
        "failed to create typed patch object (default/f; /v1, Kind=ConfigMap): .dota: field not declared in schema"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_every_cause() {
    let cluster = Cluster::start().await;
    account(&cluster).await;
    let mut bad = pod("p");
    bad["spec"]["containers"] = json!([{"name": "A", "image": "i"}]);
    bad["spec"]["restartPolicy"] = "Odd".into();
    let refused = cluster.post(PODS, bad).await.expect(422);
    assert_eq!((&refused["reason"], &refused["details"]["kind"]), (&json!("Invalid"), &json!("Pod")));
    let causes = refused["details"]["causes"].as_array().expect("causes");
    let of = |i: usize| (causes[i]["reason"].as_str().unwrap_or(""), causes[i]["field"].as_str().unwrap_or(""));
    assert_eq!(causes.len(), 2);
    assert_eq!(of(0), ("FieldValueInvalid", "spec.containers[0].name"));
    assert_eq!(of(1), ("FieldValueNotSupported", "spec.restartPolicy"));
    let message = refused["message"].as_str().expect("message");
    assert!(
        message.starts_with(
            "Pod \"p\" is invalid: [spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"
        ),
        "{message}"
    );
    assert!(
        message.ends_with(
            "spec.restartPolicy: Unsupported value: \"Odd\": supported values: \"Always\", \"OnFailure\", \"Never\"]"
        ),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("a")).await.expect(201);
    // Without a version it overwrites, where the kind lets it.
    let mut plain = map("a");
    plain["data"]["a"] = "2".into();
    let changed = cluster.put(&format!("{MAPS}/a"), &plain).await.expect(200);
    assert_eq!((&changed["data"]["a"], &changed["metadata"]["uid"]), (&json!("2"), &made["metadata"]["uid"]));
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": "b"}, "spec": {"minAvailable": 1}});
    cluster.post(budgets, budget.clone()).await.expect(201);
    let refused = cluster.put(&format!("{budgets}/b"), &budget).await.expect(422);
    assert_eq!(
        refused["message"],
        "PodDisruptionBudget.policy \"b\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    // To a name that is not there.
    assert_eq!(cluster.put(&format!("{MAPS}/none"), &map("none")).await.failure(), (404, "NotFound".into()));
    let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "l"}, "spec": {}});
    cluster.put("/apis/coordination.k8s.io/v1/namespaces/default/leases/l", &lease).await.expect(201);
    // What the server wrote is not the client's to change.
    let mut other = changed.clone();
    other["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000".into();
    assert_eq!(cluster.put(&format!("{MAPS}/a"), &other).await.failure(), (409, "Conflict".into()));
    // As clients that keep times as times spell it.
    let mut spelled = changed.clone();
    let time = spelled["metadata"]["creationTimestamp"].as_str().expect("time").replace('Z', "+00:00");
    spelled["metadata"]["creationTimestamp"] = time.into();
    spelled["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    let same = cluster.put(&format!("{MAPS}/a"), &spelled).await.expect(200);
    assert_eq!(same["metadata"]["creationTimestamp"], changed["metadata"]["creationTimestamp"]);
    let mut younger = changed.clone();
    younger["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z".into();
    let refused = cluster.put(&format!("{MAPS}/a"), &younger).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.creationTimestamp");
    let mut renamed = changed;
    renamed["metadata"]["name"] = "b".into();
    let refused = cluster.put(&format!("{MAPS}/a"), &renamed).await.expect(400);
    assert_eq!(refused["message"], "the name of the object (b) does not match the name on the URL (a)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_and_generations() {
    let cluster = Cluster::start().await;
    let mut new = deployment("d");
    new["status"] = json!({"replicas": 9});
    let made = cluster.post(DEPLOYMENTS, new).await.expect(201);
    assert_eq!((&made["metadata"]["generation"], &made["status"]), (&json!(1), &json!({})));
    let path = format!("{DEPLOYMENTS}/d");
    let both = json!({"spec": {"replicas": 3}, "status": {"replicas": 9}});
    let main = cluster.patch(&path, "merge-patch+json", both).await.expect(200);
    assert_eq!((&main["metadata"]["generation"], main["status"].get("replicas")), (&json!(2), None));
    let both = json!({"metadata": {"annotations": {"x": "y"}, "labels": {"x": "y"}}, "spec": {"replicas": 5}, "status": {"replicas": 2, "observedGeneration": 2}});
    let status = cluster.patch(&format!("{path}/status"), "merge-patch+json", both).await.expect(200);
    assert_eq!((&status["status"]["replicas"], &status["spec"]["replicas"]), (&json!(2), &json!(3)));
    assert_eq!(status["metadata"]["generation"], 2, "a status is no new generation");
    assert_eq!(status["metadata"]["annotations"]["x"], "y", "annotations may come with a status");
    assert!(status["metadata"].get("labels").is_none(), "a deployment's labels may not");
    let labelled =
        cluster.patch(&path, "merge-patch+json", json!({"metadata": {"labels": {"l": "m"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["generation"], 2, "nor are labels");
    let noted =
        cluster.patch(&path, "merge-patch+json", json!({"metadata": {"annotations": {"l": "m"}}})).await.expect(200);
    assert_eq!(noted["metadata"]["generation"], 3, "a deployment's annotations are");
    let bad = json!({"status": {"replicas": -1}});
    let refused = cluster.patch(&format!("{path}/status"), "merge-patch+json", bad).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "status.replicas");
    assert!(cluster.post(MAPS, map("m")).await.expect(201)["metadata"].get("generation").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_names() {
    let cluster = Cluster::start().await;
    let long = "a".repeat(80);
    for (prefix, kept) in [("web-", "web-"), (long.as_str(), &long[..58])] {
        let object = json!({"metadata": {"generateName": prefix}});
        let made = cluster.post(MAPS, object).await.expect(201);
        let name = made["metadata"]["name"].as_str().expect("a name");
        assert_eq!((name.len(), &name[..kept.len()]), (kept.len() + 5, kept));
        assert_eq!(made["metadata"]["generateName"], prefix);
    }
    let refused = cluster.post(MAPS, json!({"metadata": {"generateName": "A-"}})).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.generateName");
    let none = cluster.post(MAPS, json!({"metadata": {}})).await.expect(422);
    assert_eq!(
        none["message"],
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_and_their_directives() {
    let cluster = Cluster::start().await;
    cluster.post(DEPLOYMENTS, deployment("d")).await.expect(201);
    let path = format!("{DEPLOYMENTS}/d");
    let strategic = async |patch: Value| cluster.patch(&path, "strategic-merge-patch+json", patch).await.expect(200);
    let template = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
    let names = |d: &Value| -> Vec<String> {
        let list = d["spec"]["template"]["spec"]["containers"].as_array().expect("containers");
        list.iter().map(|c| c["name"].as_str().unwrap_or("").to_string()).collect()
    };
    let two = strategic(template(json!({"containers": [{"name": "x", "image": "y"}]}))).await;
    assert_eq!(names(&two), ["x", "c"], "new items come first");
    let ordered = strategic(template(json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "x"}]}))).await;
    assert_eq!(names(&ordered), ["c", "x"]);
    let less = strategic(template(json!({"containers": [{"name": "x", "$patch": "delete"}]}))).await;
    assert_eq!(names(&less), ["c"]);
    let replaced =
        strategic(template(json!({"containers": [{"name": "z", "image": "z"}, {"$patch": "replace"}]}))).await;
    assert_eq!(names(&replaced), ["z"]);
    let kept = strategic(json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})).await;
    assert_eq!(kept["spec"]["strategy"], json!({"type": "Recreate"}));
    strategic(json!({"metadata": {"finalizers": ["a/b", "c/d"]}})).await;
    let fewer = strategic(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"]}})).await;
    assert_eq!(fewer["metadata"]["finalizers"], json!(["c/d"]));
    let cut = strategic(json!({"metadata": {"annotations": {"k": "v"}}})).await;
    assert_eq!(cut["metadata"]["annotations"]["k"], "v");
    let gone = strategic(json!({"metadata": {"annotations": {"$patch": "delete"}}})).await;
    assert!(gone["metadata"].get("annotations").is_none());

    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/kind", "value": "Deployment"})).collect();
    let refused = cluster.patch(&path, "json-patch+json", many.into()).await.expect(413);
    assert_eq!(refused["message"], "The allowed maximum operations in a JSON patch is 10000, got 10001");
    for (patch, code) in [
        (json!([{"op": "test", "path": "/kind", "value": "Pod"}]), 422),
        (json!([{"op": "remove", "path": "/spec/none"}]), 422),
        (json!([{"op": "replace", "path": "/spec/replicas", "value": "many"}]), 422),
        (json!({"op": "test"}), 400),
    ] {
        assert_eq!(cluster.patch(&path, "json-patch+json", patch.clone()).await.code, code, "{patch}");
    }
    assert_eq!(cluster.send("PATCH", &path, "application/merge-patch+json", "{").await.code, 400);
    assert_eq!(cluster.patch(&format!("{DEPLOYMENTS}/none"), "merge-patch+json", json!({})).await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_without_a_version_are_tried_again() {
    let cluster = std::sync::Arc::new(Cluster::start().await);
    cluster.post(MAPS, map("a")).await.expect(201);
    let all = (0..6).map(|i| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let patch = json!({"data": {format!("k{i}"): "v"}});
            cluster.patch(&format!("{MAPS}/a"), "merge-patch+json", patch).await.code
        })
    });
    for done in all.collect::<Vec<_>>() {
        assert_eq!(done.await.expect("answered"), 200);
    }
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200)["data"].as_object().map(|m| m.len()), Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions() {
    let cluster = Cluster::start().await;
    account(&cluster).await;
    let with =
        async |path: &str, options: Value| cluster.send("DELETE", path, "application/json", options.to_string()).await;
    let made = cluster.post(MAPS, map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    let refused = with(&path, json!({"preconditions": {"uid": "x"}})).await.expect(409);
    let detail = format!(
        "Precondition failed: UID in precondition: x, UID in object meta: {}",
        made["metadata"]["uid"].as_str().unwrap_or("")
    );
    assert!(refused["message"].as_str().is_some_and(|m| m.ends_with(&detail)), "{refused}");
    assert_eq!(with(&path, json!({"preconditions": {"resourceVersion": "1"}})).await.code, 409);
    for (options, want) in [
        (
            json!({"propagationPolicy": "Odd"}),
            "propagationPolicy: Unsupported value: \"Odd\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
        ),
        (
            json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
            "propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set",
        ),
        (json!({"dryRun": ["x"]}), "dryRun: Unsupported value: [\"x\"]: supported values: \"All\""),
    ] {
        let refused = with(&path, options).await.expect(422);
        assert_eq!(refused["message"], format!("DeleteOptions.meta.k8s.io \"\" is invalid: {want}"));
    }
    with(&path, json!({"dryRun": ["All"]})).await.expect(200);
    cluster.get(&path).await.expect(200);
    // Some kinds show what is gone, the others say that it is.
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "gone"}, "spec": {"ports": [{"port": 80}]}});
    let made = cluster.post(services, service).await.expect(201);
    let gone = with(&format!("{services}/gone"), json!({})).await.expect(200);
    assert_eq!((&gone["kind"], &gone["spec"]), (&json!("Service"), &made["spec"]));
    let number = |o: &Value| o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok());
    assert!(number(&gone) > number(&made), "{gone}");
    cluster.post(MAPS, map("gone")).await.expect(201);
    let gone = with(&format!("{MAPS}/gone"), json!({})).await.expect(200);
    assert_eq!((&gone["kind"], &gone["details"]["kind"]), (&json!("Status"), &json!("configmaps")));
    // What it is waiting for, by policy; and nothing new once it waits.
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        cluster.post(MAPS, map("p")).await.expect(201);
        let path = format!("{MAPS}/p");
        let held = with(&path, json!({"propagationPolicy": policy})).await.expect(200);
        assert_eq!(held["metadata"]["finalizers"], json!([finalizer]));
        assert!(held["metadata"]["deletionTimestamp"].is_string());
        let more = json!({"metadata": {"finalizers": [finalizer, "a/b"]}});
        let refused = cluster.patch(&path, "merge-patch+json", more).await.expect(422);
        assert_eq!(
            refused["details"]["causes"][0]["message"],
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a/b\"}"
        );
        cluster.patch(&path, "merge-patch+json", json!({"metadata": {"finalizers": null}})).await.expect(200);
        assert_eq!(cluster.get(&path).await.code, 404);
    }
    // Pods that run take their time, which only shrinks.
    let mut running = pod("r");
    running["spec"]["nodeName"] = "n".into();
    running["spec"]["terminationGracePeriodSeconds"] = 60.into();
    cluster.post(PODS, running).await.expect(201);
    let path = format!("{PODS}/r");
    let grace = |o: &Value| o["metadata"]["deletionGracePeriodSeconds"].as_i64();
    assert_eq!(grace(&cluster.delete(&path).await.expect(200)), Some(60));
    assert_eq!(grace(&with(&path, json!({"gracePeriodSeconds": 90})).await.expect(200)), Some(60));
    assert_eq!(grace(&with(&path, json!({"gracePeriodSeconds": 5})).await.expect(200)), Some(5));
    assert_eq!(grace(&cluster.delete(&path).await.expect(200)), Some(5), "no longer again");
    with(&path, json!({"gracePeriodSeconds": 0})).await.expect(200);
    assert_eq!(cluster.get(&path).await.code, 404);
    cluster.post(PODS, pod("u")).await.expect(201);
    cluster.delete(&format!("{PODS}/u")).await.expect(200);
    assert_eq!(cluster.get(&format!("{PODS}/u")).await.code, 404, "it ran nowhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_runs_of_every_write() {
    let cluster = Cluster::start().await;
    account(&cluster).await;
    let made = cluster.post(&format!("{MAPS}?dryRun=All"), map("a")).await.expect(201);
    assert!(made["metadata"].get("resourceVersion").is_none());
    cluster.post(MAPS, map("a")).await.expect(201);
    let mut scheduled = pod("p");
    scheduled["spec"]["nodeName"] = "n".into();
    cluster.post(PODS, scheduled).await.expect(201);
    cluster.post(PODS, pod("q")).await.expect(201);
    cluster.post(DEPLOYMENTS, deployment("d")).await.expect(201);
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let first = cluster.post(&format!("{services}?dryRun=All"), service.clone()).await.expect(201);
    assert_eq!(first["spec"]["type"], "ClusterIP");
    let all = [MAPS, PODS, DEPLOYMENTS, services];
    let mut before = Vec::new();
    for path in all {
        before.push(cluster.get(path).await.expect(200)["items"].clone());
    }
    let dry = |path: &str| format!("{path}?dryRun=All");
    cluster.put(&dry(&format!("{MAPS}/a")), &json!({"metadata": {"name": "a"}, "data": {"z": "9"}})).await.expect(200);
    for kind in ["merge-patch+json", "strategic-merge-patch+json"] {
        let would = cluster.patch(&dry(&format!("{MAPS}/a")), kind, json!({"data": {"b": "2"}})).await.expect(200);
        assert_eq!(would["data"]["b"], "2");
    }
    let apply = format!("{MAPS}/new?dryRun=All&fieldManager=m");
    cluster.send("PATCH", &apply, APPLY, map("new").to_string()).await.expect(201);
    cluster
        .patch(&dry(&format!("{DEPLOYMENTS}/d/status")), "merge-patch+json", json!({"status": {"replicas": 1}}))
        .await
        .expect(200);
    let scaled = cluster
        .patch(&dry(&format!("{DEPLOYMENTS}/d/scale")), "merge-patch+json", json!({"spec": {"replicas": 7}}))
        .await
        .expect(200);
    assert_eq!(scaled["spec"]["replicas"], 7);
    let more = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}});
    cluster.patch(&dry(&format!("{PODS}/p/ephemeralcontainers")), "strategic-merge-patch+json", more).await.expect(200);
    let binding = json!({"target": {"kind": "Node", "name": "m"}});
    cluster.post(&dry(&format!("{PODS}/q/binding")), binding).await.expect(201);
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    cluster.post(&dry(&format!("{PODS}/p/eviction")), eviction).await.expect(201);
    cluster.delete(&dry(&format!("{MAPS}/a"))).await.expect(200);
    cluster.delete(&dry(&format!("{PODS}/p"))).await.expect(200);
    cluster.delete(&dry(MAPS)).await.expect(200);
    for (path, was) in all.iter().zip(before) {
        assert_eq!(cluster.get(path).await.expect(200)["items"], was, "{path}");
    }
}

/// The entry of a manager, as (operation, sub-resource, fields).
fn entry(o: &Value, manager: &str) -> Option<(String, String, Value)> {
    let list = o["metadata"]["managedFields"].as_array()?;
    let e = list.iter().find(|e| e["manager"] == manager)?;
    let text = |k: &str| e[k].as_str().unwrap_or("").to_string();
    Some((text("operation"), text("subresource"), e["fieldsV1"].clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying() {
    let cluster = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/d");
    let apply = async |manager: &str, extra: &str, config: &Value| {
        cluster.send("PATCH", &format!("{path}?fieldManager={manager}{extra}"), APPLY, config.to_string()).await
    };
    let made = apply("one", "", &deployment("d")).await.expect(201);
    let (operation, _, fields) = entry(&made, "one").expect("tracked");
    assert_eq!(operation, "Apply");
    let container = &fields["f:spec"]["f:template"]["f:spec"]["f:containers"][r#"k:{"name":"c"}"#];
    assert!(container["f:ports"][r#"k:{"containerPort":80,"protocol":"TCP"}"#].is_object(), "{container}");
    // Somebody else's fields.
    let mut other =
        json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "spec": {"replicas": 5}});
    let refused = apply("two", "", &other).await.expect(409);
    assert_eq!(refused["reason"], "Conflict");
    assert_eq!(refused["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    assert_eq!(
        refused["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.replicas"}])
    );
    let forced = apply("two", "&force=true", &other).await.expect(200);
    assert_eq!(forced["spec"]["replicas"], 5);
    assert!(entry(&forced, "one").is_some_and(|e| e.2["f:spec"].get("f:replicas").is_none()));
    // What nobody names any more goes; what has a default comes back as that.
    other["spec"] = json!({"paused": true});
    let paused = apply("two", "", &other).await.expect(200);
    assert_eq!((&paused["spec"]["paused"], &paused["spec"]["replicas"]), (&json!(true), &json!(1)));
    other["spec"] = json!({});
    assert!(apply("two", "", &other).await.expect(200)["spec"].get("paused").is_none());
    // Status belongs to its sub-resource.
    let mut both = deployment("d");
    both["status"] = json!({"replicas": 3});
    let main = apply("one", "", &both).await.expect(200);
    assert!(main["status"].get("replicas").is_none());
    assert!(entry(&main, "one").is_some_and(|e| e.2.get("f:status").is_none()));
    both["spec"]["replicas"] = 8.into();
    let sub = format!("{path}/status?fieldManager=three");
    let status = cluster.send("PATCH", &sub, APPLY, both.to_string()).await.expect(200);
    assert_eq!((&status["status"]["replicas"], &status["spec"]["replicas"]), (&json!(3), &json!(1)));
    let (_, part, fields) = entry(&status, "three").expect("tracked");
    assert_eq!(part, "status");
    assert!(fields.get("f:spec").is_none() && fields["f:status"]["f:replicas"].is_object(), "{fields}");
    // A version in the configuration is a demand.
    let mut pinned = deployment("d");
    pinned["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(apply("one", "", &pinned).await.code, 409);
    let mut managed = deployment("d");
    managed["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let refused = apply("one", "", &managed).await.expect(400);
    assert_eq!(refused["message"], "metadata.managedFields must be nil");
    // Clearing.
    let cleared =
        cluster.patch(&path, "merge-patch+json", json!({"metadata": {"managedFields": [{}]}})).await.expect(200);
    assert!(cleared["metadata"].get("managedFields").is_none(), "{}", cleared["metadata"]);
    let again = apply("one", "&force=true", &deployment("d")).await.expect(200);
    assert!(entry(&again, "before-first-apply").is_some_and(|e| e.0 == "Update"));
    assert!(entry(&again, "one").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_of_a_scale() {
    let cluster = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/d");
    let made = cluster.send("PATCH", &format!("{path}?fieldManager=one"), APPLY, deployment("d").to_string()).await;
    assert!(entry(&made.expect(201), "one").is_some_and(|e| e.2["f:spec"].get("f:replicas").is_some()));
    let scale =
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d"}, "spec": {"replicas": 4}});
    let apply = async |manager: &str, extra: &str| {
        let path = format!("{path}/scale?fieldManager={manager}{extra}");
        cluster.send("PATCH", &path, APPLY, scale.to_string()).await
    };
    let refused = apply("two", "").await.expect(409);
    assert_eq!(refused["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    assert_eq!(apply("two", "&force=true").await.expect(200)["spec"]["replicas"], 4);
    let now = cluster.get(&path).await.expect(200);
    assert_eq!(now["spec"]["replicas"], 4);
    assert!(entry(&now, "one").is_some_and(|e| e.2["f:spec"].get("f:replicas").is_none()), "{now}");
    let (operation, part, fields) = entry(&now, "two").expect("tracked");
    assert_eq!((operation.as_str(), part.as_str()), ("Apply", "scale"));
    assert_eq!(fields, json!({"f:spec": {"f:replicas": {}}}));
    // Who applies the whole object meets the owner of its scale.
    let main = cluster.send("PATCH", &format!("{path}?fieldManager=one"), APPLY, deployment("d").to_string()).await;
    assert_eq!(
        main.expect(409)["message"],
        "Apply failed with 1 conflict: conflict with \"two\" with subresource \"scale\": .spec.replicas"
    );
    // An update takes it without asking.
    let patch = json!({"spec": {"replicas": 6}});
    cluster.patch(&format!("{path}/scale?fieldManager=three"), "merge-patch+json", patch).await.expect(200);
    let now = cluster.get(&path).await.expect(200);
    assert!(entry(&now, "two").is_none(), "nothing is left to it: {now}");
    assert_eq!(entry(&now, "three").map(|e| (e.0, e.1)), Some(("Update".into(), "scale".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_of_updates() {
    let cluster = Cluster::start().await;
    // First in time, and by name among those of the same second.
    cluster.post(&format!("{MAPS}?fieldManager=a-maker"), map("a")).await.expect(201);
    for i in 0..12 {
        let path = format!("{MAPS}/a?fieldManager=m{i:02}");
        cluster.patch(&path, "merge-patch+json", json!({"data": {format!("k{i}"): "v"}})).await.expect(200);
    }
    let now = cluster.get(&format!("{MAPS}/a")).await.expect(200);
    let list = now["metadata"]["managedFields"].as_array().expect("managers");
    assert_eq!(list.iter().filter(|e| e["operation"] == "Update").count(), 10);
    assert!(entry(&now, "ancient-changes").is_some_and(|e| e.2["f:data"]["f:a"].is_object()));
    // What an old client applied is taken over by the new way.
    let path = format!("{MAPS}/k?fieldManager=kubectl-client-side-apply");
    cluster.post(&format!("{MAPS}?fieldManager=kubectl-client-side-apply"), map("k")).await.expect(201);
    let migrated = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{"manager": "kubectl", "operation": "Apply",
        "apiVersion": "v1", "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}}]}]);
    cluster.patch(&path, "json-patch+json", migrated).await.expect(200);
    let mut less = map("k");
    less["data"] = json!({"b": "2"});
    let done =
        cluster.send("PATCH", &format!("{MAPS}/k?fieldManager=kubectl"), APPLY, less.to_string()).await.expect(200);
    assert_eq!(done["data"], json!({"b": "2"}), "what it owned and no longer names is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_pods() {
    let cluster = Cluster::start().await;
    account(&cluster).await;
    let mut running = pod("p");
    running["spec"]["nodeName"] = "n".into();
    cluster.post(PODS, running).await.expect(201);
    let path = format!("{PODS}/p");
    let command = json!({"spec": {"containers": [{"name": "c", "command": ["x"]}]}});
    let refused = cluster.patch(&path, "strategic-merge-patch+json", command).await.expect(422);
    let message = refused["message"].as_str().unwrap_or("");
    assert!(message.starts_with("Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"), "{message}");
    let image = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    assert_eq!(
        cluster.patch(&path, "strategic-merge-patch+json", image).await.expect(200)["metadata"]["generation"],
        2
    );
    let more = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}});
    let sub = format!("{path}/ephemeralcontainers?fieldManager=debug");
    let grown = cluster.send("PATCH", &sub, APPLY, more.to_string()).await.expect(200);
    assert_eq!(grown["spec"]["ephemeralContainers"][0]["name"], "e");
    assert!(entry(&grown, "debug").is_some_and(|e| e.1 == "ephemeralcontainers"));
    let none = json!({"spec": {"ephemeralContainers": null}});
    let refused = cluster.patch(&format!("{path}/ephemeralcontainers"), "merge-patch+json", none).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.ephemeralContainers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_custom_resources() {
    let cluster = Cluster::start().await;
    cluster.post(CRDS, crd()).await.expect(201);
    established(&cluster).await;
    let body = r#"{"kind":"Foo","apiVersion":"example.com/v1","metadata":{"name":"a"},"spec":{"colour":"red","colour":"blue","odd":1}}"#;
    let refused =
        cluster.send("POST", &format!("{FOOS}?fieldValidation=Strict"), "application/json", body).await.expect(400);
    assert_eq!(
        refused["message"],
        "strict decoding error: duplicate field \"spec.colour\", unknown field \"spec.odd\""
    );
    assert_eq!(warnings(&cluster.send("POST", FOOS, "application/json", body).await).len(), 2);
    let path = format!("{FOOS}/a");
    let patch = r#"{"spec":{"odd":2}}"#;
    let strict = format!("{path}?fieldValidation=Strict");
    let refused = cluster.send("PATCH", &strict, "application/merge-patch+json", patch).await.expect(422);
    assert!(
        refused["message"].as_str().is_some_and(|m| m.ends_with("strict decoding error: unknown field \"spec.odd\""))
    );
    let refused = cluster.put(&path, &foo("a", json!({}))).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.resourceVersion", "never unconditionally");
    let apply = async |manager: &str, object: &Value| {
        cluster.send("PATCH", &format!("{path}?fieldManager={manager}"), APPLY, object.to_string()).await
    };
    let owned = apply("one&force=true", &foo("a", json!({"size": 5}))).await.expect(200);
    assert!(entry(&owned, "one").is_some_and(|e| e.2["f:spec"]["f:size"].is_object()));
    let refused = apply("two", &foo("a", json!({"size": 6}))).await.expect(409);
    assert_eq!(refused["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.size");
    assert_eq!(apply("one", &foo("a", json!({}))).await.expect(200)["spec"]["size"], 3, "back to its default");
    let mut both = foo("a", json!({"size": 9}));
    both["metadata"]["labels"] = json!({"a": "b"});
    both["status"] = json!({"ready": true});
    let sub = format!("{path}/status?fieldManager=s");
    let status = cluster.send("PATCH", &sub, APPLY, both.to_string()).await.expect(200);
    assert_eq!((&status["status"]["ready"], &status["spec"]["size"]), (&json!(true), &json!(3)));
    assert!(status["metadata"].get("labels").is_none(), "a custom resource's status takes no metadata along");
    assert_eq!(status["metadata"]["generation"], owned["metadata"]["generation"].as_i64().map(|g| g + 1).unwrap_or(0));
    cluster.delete(&format!("{path}?dryRun=All")).await.expect(200);
    cluster.get(&path).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_in_all_namespaces_at_once() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("stays")).await.expect(201);
    for path in ["/api/v1/configmaps", "/api/v1/pods", "/apis/apps/v1/deployments"] {
        assert_eq!(cluster.delete(path).await.code, 405, "{path}");
        assert_eq!(cluster.post(path, map("a")).await.code, 405, "{path}");
    }
    cluster.get(&format!("{MAPS}/stays")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_and_names_that_do_not_fit_are_refused() {
    let cluster = Cluster::start().await;
    account(&cluster).await;
    let path = format!("{MAPS}/kept");
    cluster.post(MAPS, map("kept")).await.expect(201);
    let delete = async |query: &str, body: Value| {
        cluster.send("DELETE", &format!("{path}{query}"), "application/json", body.to_string()).await
    };
    assert_eq!(delete("?dryRun=", json!({})).await.code, 422);
    assert_eq!(delete("", json!({"kind": "Pod", "apiVersion": "v1"})).await.code, 400);
    // A deletion under way may get another policy, as long as nothing has a grace period.
    delete("", json!({"propagationPolicy": "Foreground"})).await.expect(200);
    let orphaned = delete("", json!({"propagationPolicy": "Orphan"})).await.expect(200);
    assert_eq!(orphaned["metadata"]["finalizers"], json!(["orphan"]));
    delete("", json!({"propagationPolicy": "Background"})).await.expect(200);
    assert_eq!(cluster.get(&path).await.code, 404);

    let pods = "/api/v1/namespaces/default/pods";
    cluster
        .post(pods, json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .await
        .expect(201);
    let binding = json!({"metadata": {"name": "other"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(cluster.post(&format!("{pods}/p/binding"), binding).await.code, 400);
    let logs = cluster.get(&format!("{pods}/p/log")).await;
    assert_eq!((logs.code, logs.body.len()), (204, 0), "no node, no logs");
    let status = json!({"status": {"podIP": "10.0.0.5"}});
    let done = cluster.patch(&format!("{pods}/p/status"), "merge-patch+json", status).await.expect(200);
    assert_eq!(done["status"]["podIPs"], json!([{"ip": "10.0.0.5"}]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_patches_all_come_through() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("crowded")).await.expect(201);
    let cluster = &cluster;
    let patches = (0..24).map(|writer| async move {
        for round in 0..5 {
            let change = json!({"data": {(format!("w{writer}")): round.to_string()}});
            cluster.patch(&format!("{MAPS}/crowded"), "merge-patch+json", change).await.expect(200);
        }
    });
    futures::future::join_all(patches).await;
    let data = cluster.get(&format!("{MAPS}/crowded")).await.expect(200)["data"].clone();
    assert!((0..24).all(|writer| data[format!("w{writer}")] == "4"), "{data}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_gives_up_is_free_at_once() {
    let cluster = Cluster::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str| {
        json!({"metadata": {"name": name},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}})
    };
    cluster.post(services, service("blue")).await.expect(201);
    assert_eq!(cluster.post(services, service("green")).await.code, 422);
    let inside = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": null}]}});
    cluster.patch(&format!("{services}/blue"), "merge-patch+json", inside).await.expect(200);
    cluster.post(services, service("green")).await.expect(201);
}
