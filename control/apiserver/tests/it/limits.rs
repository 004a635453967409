//! What every request meets: transports, limits, failures, metadata, health.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::client::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(metadata: Value) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_http_versions() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.get("/version").await.code, 200);
    let (code, body) = cluster.get_h2("/version").await;
    assert_eq!(code, 200);
    assert!(serde_json::from_slice::<Value>(&body).unwrap()["gitVersion"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_at_once() {
    let cluster = Cluster::start_with(|config| config.max_requests_inflight = 1).await;
    // Takes the only place for as long as the read waits for what never comes.
    let waits = format!("{MAPS}?resourceVersion=99999999&timeout=2s");
    let (long, refused) = tokio::join!(cluster.get(&waits), async {
        for _ in 0..100 {
            let other = [("impersonate-user", "other"), ("impersonate-group", "kimg:cluster-admins")];
            let answer = cluster.send_with("GET", MAPS, &other, "").await;
            if answer.code == 429 {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody was refused");
    });
    assert_eq!(long.code, 504);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.failure(), (429, "TooManyRequests".into()));
    assert_eq!(refused.json()["details"]["retryAfterSeconds"], 1);
    let (long, admin) = tokio::join!(cluster.get(&waits), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.get(MAPS).await
    });
    assert_eq!((long.code, admin.code), (504, 200), "who repairs the cluster gets a place");
    // Watches take none.
    let mut events = cluster.watch(&format!("{MAPS}?watch=1&timeoutSeconds=1")).await;
    while events.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasons_of_failures() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map(json!({"name": "a"}))).await.expect(201);
    let invalid = cluster.post(MAPS, map(json!({"name": "Not_A_Name"}))).await.expect(422);
    assert_eq!(
        (&invalid["kind"], &invalid["status"], &invalid["reason"]),
        (&json!("Status"), &json!("Failure"), &json!("Invalid"))
    );
    assert_eq!((&invalid["details"]["name"], &invalid["details"]["kind"]), (&json!("Not_A_Name"), &json!("ConfigMap")));
    let cause = &invalid["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldValueInvalid"), &json!("metadata.name")));
    let missing = cluster.get(&format!("{MAPS}/none")).await.expect(404);
    assert_eq!((&missing["details"]["name"], &missing["details"]["kind"]), (&json!("none"), &json!("configmaps")));
    assert_eq!(missing["message"], "configmaps \"none\" not found");
    let taken = cluster.post(MAPS, map(json!({"name": "a"}))).await.expect(409);
    assert_eq!(taken["message"], "configmaps \"a\" already exists");
    let forbidden = cluster.send_as("nobody-special", "GET", MAPS).await;
    assert_eq!(forbidden.failure(), (403, "Forbidden".into()));
    let wrong = cluster.get_as_stranger(MAPS, &[("authorization", "Bearer nonsense")]).await;
    assert_eq!(wrong.failure(), (401, "Unauthorized".into()));
    assert_eq!(cluster.get_as_stranger(MAPS, &[]).await.failure(), (403, "Forbidden".into()));
    assert_eq!(cluster.get_as_stranger("/readyz", &[]).await.code, 200);
    assert_eq!(cluster.send("PUT", MAPS, "application/json", "{}").await.failure(), (405, "MethodNotAllowed".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_names() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map(json!({"generateName": "short-"}))).await.expect(201);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("short-") && name.len() == "short-".len() + 5, "{name}");
    let long = "l".repeat(100);
    let made = cluster.post(MAPS, map(json!({"generateName": long}))).await.expect(201);
    assert_eq!(made["metadata"]["name"].as_str().unwrap().len(), 63);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_of_new_objects() {
    let cluster = Cluster::start().await;
    let given = json!({"name": "a", "uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "selfLink": "/x", "generation": 7,
        "deletionTimestamp": "2001-01-01T00:00:00Z"});
    let made = cluster.post(MAPS, map(given)).await.expect(201);
    let metadata = &made["metadata"];
    let uid = metadata["uid"].as_str().unwrap();
    assert!(uid.len() == 36 && uid.as_bytes()[14] == b'4', "{uid}");
    let at = metadata["creationTimestamp"].as_str().unwrap();
    assert!(at.len() == 20 && at.ends_with('Z') && !at.starts_with("2001"), "{at}");
    assert!(metadata["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!((metadata.get("selfLink"), metadata.get("deletionTimestamp")), (None, None));
    let other = cluster
        .post("/api/v1/namespaces", json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "later"}}))
        .await
        .expect(201);
    let number = |o: &Value| o["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number(&other) > number(&made), "one order for all kinds");
    let owner = |controller: bool| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": controller});
    let other = json!({"apiVersion": "v1", "kind": "Pod", "name": "q", "uid": "v", "controller": true});
    let two = cluster.post(MAPS, map(json!({"name": "two", "ownerReferences": [owner(true), other]}))).await;
    assert_eq!(two.code, 422, "one controller at most");
    let long = "a".repeat(254);
    for (path, object) in [
        (MAPS, map(json!({"name": long}))),
        ("/api/v1/namespaces", json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "a.b"}})),
        (
            "/api/v1/namespaces/default/services",
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a.b"}, "spec": {"ports": [{"port": 1}]}}),
        ),
    ] {
        assert_eq!(cluster.post(path, object).await.code, 422, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_paths() {
    let cluster = Cluster::start().await;
    for (path, part) in [
        ("/healthz", "ok"),
        ("/livez", "ok"),
        ("/readyz", "ok"),
        ("/readyz/ping", "ok"),
        ("/readyz?verbose", "[+]ping ok"),
        ("/livez?verbose&exclude=ping", "[+]ping excluded: ok"),
        ("/metrics", "# TYPE"),
        ("/.well-known/openid-configuration", "jwks_uri"),
        ("/openid/v1/jwks", "keys"),
    ] {
        let answer = cluster.get(path).await;
        assert_eq!(answer.code, 200, "{path}");
        assert!(String::from_utf8_lossy(&answer.body).contains(part), "{path}");
    }
    assert_eq!(cluster.get("/readyz/nothing").await.code, 404);
    let paths = cluster.get("/").await.expect(200)["paths"].clone();
    for path in ["/api", "/apis/apps/v1", "/openapi/v3", "/version"] {
        assert!(paths.as_array().unwrap().contains(&json!(path)), "{path}");
    }
    let response = cluster.raw("HEAD", "/version", &[], "").await;
    assert!(response.headers().contains_key("content-length"));
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_requests() {
    let cluster = Cluster::start().await;
    for header in ["impersonate-group", "impersonate-uid", "impersonate-extra-scope"] {
        let answer = cluster.send_with("GET", MAPS, &[(header, "x")], "").await;
        assert_eq!(answer.failure(), (400, "BadRequest".into()), "{header}");
    }
    for (method, path) in [("CONNECT", "localhost:443"), ("TRACE", MAPS), ("BREW", MAPS), ("BREW", "/version")] {
        let answer = cluster.send(method, path, "", "").await;
        assert_eq!(answer.failure(), (405, "MethodNotAllowed".into()), "{method} {path}");
    }
    cluster.post(MAPS, map(json!({"name": "a"}))).await.expect(201);
    assert!(!cluster.get(&format!("{MAPS}?limit=-1")).await.expect(200)["items"].as_array().unwrap().is_empty());
    for (limit, why) in [("x", "invalid syntax"), ("99999999999999999999", "value out of range")] {
        let answer = cluster.get(&format!("{MAPS}?limit={limit}")).await.expect(400);
        assert_eq!(answer["message"], format!("strconv.ParseInt: parsing {limit:?}: {why}"));
    }
    // A patch that takes the kind away still says what it was about.
    let answer = cluster.patch(&format!("{MAPS}/a"), "merge-patch+json", json!({"kind": null, "data": {"x": 1}})).await;
    let message = answer.expect(422)["message"].as_str().unwrap().to_string();
    assert!(message.contains("cannot be handled as a ConfigMap"), "{message}");
    // Very many labels.
    let labels: serde_json::Map<String, Value> = (0..20_000).map(|i| (format!("l{i}"), "v".into())).collect();
    let patch = json!({"metadata": {"labels": labels}});
    cluster.patch(&format!("{MAPS}/a"), "merge-patch+json", patch.clone()).await.expect(200);
    cluster.patch(&format!("{MAPS}/a"), "strategic-merge-patch+json", patch).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_and_what_is_refused_is_in_the_audit_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let cluster = Cluster::start_with(|config| config.audit_log_path = Some(path.clone())).await;
    let exec = "/api/v1/namespaces/default/pods/p/exec";
    let wrong = cluster.get_as_stranger(MAPS, &[("authorization", "Bearer nonsense")]).await;
    assert!(wrong.headers.contains_key("audit-id"));
    let other = cluster.send_with("GET", MAPS, &[("impersonate-user", "other")], "").await;
    let opened = cluster.get(exec).await;
    let backup = cluster.get("/kimg/backup").await;
    assert_eq!(cluster.get(MAPS).await.code, 200, "which tells nothing");
    let made = cluster.post(MAPS, map(json!({"name": "a"}))).await;
    let records = async || loop {
        let text = std::fs::read_to_string(&path).unwrap();
        let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if records.iter().any(|record| record["verb"] == "create") {
            return records;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let records = tokio::time::timeout(Duration::from_secs(20), records()).await.expect("the last record is written");
    let shown = records.iter().map(|record| {
        let who = [&record["user"]["username"], &record["impersonatedUser"]["username"]];
        json!([record["verb"], record["requestURI"], who, record["responseStatus"]["code"]])
    });
    let expected = [
        json!(["list", MAPS, [null, null], wrong.code]),
        json!(["list", MAPS, ["admin", "other"], other.code]),
        json!(["get", exec, ["admin", null], opened.code]),
        json!(["get", "/kimg/backup", ["admin", null], backup.code]),
        json!(["create", MAPS, ["admin", null], made.code]),
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    assert_eq!((wrong.code, other.code, made.code), (401, 403, 201));
    assert_eq!(records.last().unwrap()["objectRef"]["name"], "a", "which the path does not have");
}
