//! Objects: create, read, change, delete.

use serde_json::{Value, json};

use crate::client::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "labels": {"n": name}}, "data": {"a": "1"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_an_object() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("a")).await.expect(201);
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(cluster.post(MAPS, map("a")).await.failure(), (409, "AlreadyExists".into()));
    let path = format!("{MAPS}/a");
    let mut read = cluster.get(&path).await.expect(200);
    assert_eq!(read, made);
    read["data"]["a"] = "2".into();
    let changed = cluster.put(&path, &read).await.expect(200);
    assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(cluster.put(&path, &read).await.failure(), (409, "Conflict".into()), "stale");
    let same = cluster.put(&path, &changed).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"], changed["metadata"]["resourceVersion"],
        "a write that changes nothing"
    );
    for (kind, patch) in [
        ("merge-patch+json", json!({"data": {"b": "3", "a": null}})),
        ("strategic-merge-patch+json", json!({"data": {"c": "4"}})),
        ("json-patch+json", json!([{"op": "add", "path": "/data/d", "value": "5"}])),
    ] {
        cluster.patch(&path, kind, patch).await.expect(200);
    }
    assert_eq!(cluster.get(&path).await.expect(200)["data"], json!({"b": "3", "c": "4", "d": "5"}));
    let test = json!([{"op": "test", "path": "/data/d", "value": "x"}]);
    assert_eq!(cluster.patch(&path, "json-patch+json", test).await.code, 422);
    let stale = json!({"metadata": {"resourceVersion": "1"}});
    assert_eq!(cluster.patch(&path, "merge-patch+json", stale).await.failure(), (409, "Conflict".into()));
    let gone = cluster.delete(&path).await.expect(200);
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
    assert_eq!(cluster.get(&path).await.failure(), (404, "NotFound".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests() {
    let cluster = Cluster::start().await;
    let with = |change: fn(&mut Value)| {
        let mut object = map("x");
        change(&mut object);
        object
    };
    let table: [(Value, u16); 6] = [
        (with(|o| o["kind"] = "Secret".into()), 400),
        (with(|o| o["metadata"]["namespace"] = "other".into()), 400),
        (with(|o| o["metadata"] = json!({})), 422),
        (with(|o| o["metadata"]["name"] = "Not_A_Name".into()), 422),
        (with(|o| o["metadata"]["resourceVersion"] = "5".into()), 400),
        (with(|o| o["data"] = json!({"a": 1})), 400),
    ];
    for (object, code) in table {
        assert_eq!(cluster.post(MAPS, object.clone()).await.code, code, "{object}");
    }
    let unknown = with(|o| o["dota"] = json!({}));
    assert_eq!(cluster.post(&format!("{MAPS}?fieldValidation=Strict"), unknown.clone()).await.code, 400);
    let warned = cluster.post(MAPS, unknown).await;
    assert_eq!(warned.headers["warning"].to_str().unwrap(), "299 - \"unknown field \\\"dota\\\"\"");
    assert!(warned.expect(201).get("dota").is_none());
    assert_eq!(cluster.put(MAPS, &map("x")).await.code, 405);
    assert_eq!(cluster.post(&format!("{MAPS}/x"), map("x")).await.code, 405);
    assert_eq!(
        cluster.send("POST", MAPS, "application/json", vec![b' '; 4 << 20]).await.failure(),
        (413, "RequestEntityTooLarge".into())
    );
    assert!(cluster.send("HEAD", MAPS, "", "").await.body.is_empty());
    assert_eq!(cluster.get("/api/v1/nothings").await.failure(), (404, "NotFound".into()));
    assert_eq!(cluster.send("PATCH", &format!("{MAPS}/x"), "text/plain", "x").await.code, 415);
    assert_eq!(cluster.send_with("GET", MAPS, &[("accept", "application/cbor")], "").await.code, 406);
    assert_eq!(cluster.get(&format!("{MAPS}?fieldSelector=spec.x%3D1")).await.code, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_runs_leave_nothing() {
    let cluster = Cluster::start().await;
    let made = cluster.post(&format!("{MAPS}?dryRun=All"), map("a")).await.expect(201);
    assert!(made["metadata"]["uid"].is_string());
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.code, 404);
    cluster.post(MAPS, map("a")).await.expect(201);
    cluster.patch(&format!("{MAPS}/a?dryRun=All"), "merge-patch+json", json!({"data": {"a": "9"}})).await.expect(200);
    cluster.delete(&format!("{MAPS}/a?dryRun=All")).await.expect(200);
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200)["data"]["a"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_pages() {
    let cluster = Cluster::start().await;
    for i in 0..7 {
        cluster.post(MAPS, map(&format!("m{i}"))).await.expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_string()).collect()
    };
    let first = cluster.get(&format!("{MAPS}?limit=3")).await.expect(200);
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["m0".into(), "m1".into(), "m2".into()], &json!(4))
    );
    // What happens between the pages is not on them.
    cluster.delete(&format!("{MAPS}/m5")).await.expect(200);
    cluster.post(MAPS, map("m45")).await.expect(201);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("{MAPS}?limit=10&continue={token}")).await.expect(200);
    assert_eq!(
        (names(&second), &second["metadata"]["resourceVersion"]),
        (vec!["m3".into(), "m4".into(), "m5".into(), "m6".into()], &first["metadata"]["resourceVersion"])
    );
    let labelled = cluster.get(&format!("{MAPS}?labelSelector=n+in+(m1,m2)&limit=1")).await.expect(200);
    assert_eq!((names(&labelled), labelled["metadata"].get("remainingItemCount")), (vec!["m1".into()], None));
    let named = cluster.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm2")).await.expect(200);
    assert_eq!(names(&named), ["m2"]);
    let exact = first["metadata"]["resourceVersion"].as_str().unwrap();
    let then = cluster.get(&format!("{MAPS}?resourceVersion={exact}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(names(&then).len(), 7);
    for (query, code) in [
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("sendInitialEvents=true", 422),
        ("continue=nonsense", 400),
        ("resourceVersion=999999", 504),
    ] {
        assert_eq!(cluster.get(&format!("{MAPS}?{query}")).await.code, code, "{query}");
    }
    cluster.send("DELETE", &format!("{MAPS}?labelSelector=n!%3Dm0"), "", "").await.expect(200);
    assert_eq!(names(&cluster.get(MAPS).await.expect(200)), ["m0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_survives_a_restart() {
    let mut cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("a")).await.expect(201);
    cluster.end().await;
    cluster.begin().await;
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200), made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_and_preconditions() {
    let cluster = Cluster::start().await;
    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let made = cluster.post(MAPS, held).await.expect(201);
    let path = format!("{MAPS}/held");
    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(cluster.send("DELETE", &path, "application/json", wrong.to_string()).await.code, 409);
    let marked = cluster.delete(&path).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert_eq!(cluster.patch(&path, "merge-patch+json", more).await.code, 422);
    cluster.patch(&path, "merge-patch+json", json!({"metadata": {"finalizers": null}})).await.expect(200);
    assert_eq!(cluster.get(&path).await.code, 404);
    cluster.post(MAPS, map("owner")).await.expect(201);
    let foreground = json!({"propagationPolicy": "Foreground"}).to_string();
    let marked = cluster.send("DELETE", &format!("{MAPS}/owner"), "application/json", foreground).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert_ne!(made["metadata"]["uid"], marked["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_end_by_finalize() {
    let cluster = Cluster::start().await;
    let made = cluster
        .post("/api/v1/namespaces", json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}}))
        .await
        .expect(201);
    assert_eq!(
        (&made["metadata"]["labels"]["kubernetes.io/metadata.name"], &made["spec"]["finalizers"]),
        (&json!("n"), &json!(["kubernetes"]))
    );
    let mut ending = cluster.delete("/api/v1/namespaces/n").await.expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    assert!(ending["metadata"].get("deletionGracePeriodSeconds").is_none(), "as upstream");
    ending["spec"]["finalizers"] = json!([]);
    cluster.put("/api/v1/namespaces/n/finalize", &ending).await.expect(200);
    assert_eq!(cluster.get("/api/v1/namespaces/n").await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_scale() {
    let cluster = Cluster::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let made = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "status": {"replicas": 9},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = cluster.post(path, made).await.expect(201);
    assert_eq!((&made["metadata"]["generation"], made["status"].get("replicas")), (&json!(1), None));
    let path = format!("{path}/d");
    let both = json!({"spec": {"replicas": 5}, "status": {"replicas": 3}});
    let status = cluster.patch(&format!("{path}/status"), "merge-patch+json", both.clone()).await.expect(200);
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"], &status["metadata"]["generation"]),
        (&json!(1), &json!(3), &json!(1))
    );
    let main = cluster
        .patch(&path, "merge-patch+json", json!({"spec": {"replicas": 5}, "status": {"replicas": 7}}))
        .await
        .expect(200);
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"]["replicas"], &main["metadata"]["generation"]),
        (&json!(5), &json!(3), &json!(2))
    );
    let mut scale = cluster.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(5), &json!("a=b"))
    );
    scale["spec"]["replicas"] = 2.into();
    cluster.put(&format!("{path}/scale"), &scale).await.expect(200);
    assert_eq!(cluster.put(&format!("{path}/scale"), &scale).await.code, 409);
    assert_eq!(cluster.get(&path).await.expect(200)["spec"]["replicas"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_forms_of_an_answer() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a")).await.expect(201);
    let table = cluster
        .send_with("GET", MAPS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")], "")
        .await;
    assert_eq!(table.headers["content-type"], "application/json");
    let table = table.expect(200);
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let partial = cluster
        .send_with("GET", MAPS, &[("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")], "")
        .await
        .expect(200);
    assert_eq!((&partial["kind"], partial["items"][0].get("data")), (&json!("PartialObjectMetadataList"), None));
    let yaml = cluster.send_with("GET", &format!("{MAPS}/a"), &[("accept", "application/yaml")], "").await;
    assert!(yaml.body.starts_with(b"apiVersion: v1"));
    let protobuf =
        cluster.send_with("GET", &format!("{MAPS}/a"), &[("accept", "application/vnd.kubernetes.protobuf")], "").await;
    assert!(protobuf.body.starts_with(b"k8s\0"));
    let again = cluster
        .send_with(
            "POST",
            &format!("{MAPS}?dryRun=All"),
            &[("content-type", "application/vnd.kubernetes.protobuf")],
            protobuf.body,
        )
        .await;
    assert_eq!(again.failure(), (400, "BadRequest".into()), "it carries a resourceVersion");
    let discovery = cluster
        .send_with(
            "GET",
            "/apis",
            &[("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")],
            "",
        )
        .await;
    let tag = discovery.headers["etag"].to_str().unwrap().to_string();
    assert_eq!(discovery.json()["kind"], "APIGroupDiscoveryList");
    let accept = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    assert_eq!(cluster.send_with("GET", "/apis", &[accept, ("if-none-match", &tag)], "").await.code, 304);
    assert_eq!(cluster.get("/version").await.expect(200)["gitVersion"], kube_apiserver::GIT_VERSION);
    assert_eq!(&cluster.get("/readyz").await.body[..], b"ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_fills_in_is_nobodys() {
    let cluster = Cluster::start().await;
    let fields = async |path: &str, object: Value| {
        let made = cluster.post(&format!("{path}?fieldManager=one"), object).await.expect(201);
        let fields = made["metadata"]["managedFields"].as_array().unwrap().clone();
        assert_eq!((fields.len(), &fields[0]["manager"]), (1, &json!("one")), "{made}");
        (made, fields[0]["fieldsV1"].clone())
    };
    let service = |name: &str, spec: Value| json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec});
    let path = "/api/v1/namespaces/default/services";
    let (made, of) = fields(path, service("a", json!({"ports": [{"port": 80}]}))).await;
    assert!(made["spec"]["clusterIP"].is_string() && made["spec"]["ipFamilies"].is_array(), "{made}");
    let spec = of["f:spec"].as_object().unwrap();
    for server in ["f:clusterIP", "f:clusterIPs", "f:ipFamilies", "f:ipFamilyPolicy"] {
        assert!(!spec.contains_key(server), "{server} in {of}");
    }
    // The schema's defaults are the client's, as what it said.
    assert!(spec.contains_key("f:ports") && spec.contains_key("f:sessionAffinity"), "{of}");
    let (_, of) = fields(path, service("b", json!({"clusterIP": "None", "ports": [{"port": 80}]}))).await;
    assert!(of["f:spec"]["f:clusterIP"].is_object(), "{of}");
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}});
    let (made, of) = fields("/api/v1/namespaces", namespace).await;
    assert!(made["spec"]["finalizers"].is_array() && of["f:spec"].is_null(), "{of}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/s");
    let config =
        |data: Value| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "s"}, "data": data});
    let apply = async |manager: &str, data: Value| {
        cluster.patch(&format!("{path}?fieldManager={manager}"), "apply-patch+yaml", config(data)).await
    };
    assert_eq!(cluster.patch(&path, "apply-patch+yaml", config(json!({}))).await.code, 422, "a manager is needed");
    let made = apply("one", json!({"a": "1", "b": "1"})).await.expect(201);
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    assert!(made["metadata"]["managedFields"][0]["fieldsV1"]["f:data"]["f:a"].is_object());
    let conflict = apply("two", json!({"a": "2"})).await;
    assert_eq!(conflict.failure(), (409, "Conflict".into()));
    assert_eq!(conflict.json()["details"]["causes"][0]["reason"], "FieldManagerConflict");
    apply("two&force=true", json!({"a": "2"})).await.expect(200);
    // What one no longer wants goes, what is two's stays.
    let left = apply("one", json!({})).await.expect(200);
    assert_eq!(left["data"], json!({"a": "2"}));
    let same = apply("one", json!({})).await.expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    let updated = cluster
        .patch(&format!("{path}?fieldManager=three"), "merge-patch+json", json!({"data": {"c": "3"}}))
        .await
        .expect(200);
    let managers: Vec<&Value> =
        updated["metadata"]["managedFields"].as_array().unwrap().iter().map(|m| &m["manager"]).collect();
    assert!(managers.contains(&&json!("three")), "{managers:?}");
}
