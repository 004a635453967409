//! Watches.

use serde_json::{Value, json};

use crate::client::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, label: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "labels": {"l": label}}})
}

fn brief(kind: &str, name: &str) -> (String, String) {
    (kind.to_string(), name.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_revision_and_from_the_state() {
    let cluster = Cluster::start().await;
    let first = cluster.post(MAPS, map("a", "x")).await.expect(201);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut after = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    let mut state = cluster.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(state.brief().await, brief("ADDED", "a"));
    cluster.patch(&format!("{MAPS}/a"), "merge-patch+json", json!({"data": {"k": "v"}})).await.expect(200);
    cluster.delete(&format!("{MAPS}/a")).await.expect(200);
    for events in [&mut after, &mut state] {
        assert_eq!(events.brief().await, brief("MODIFIED", "a"));
        let (kind, last) = events.next().await.unwrap();
        assert_eq!((kind.as_str(), &last["data"]["k"]), ("DELETED", &json!("v")));
        assert!(
            last["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > revision.parse().unwrap()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_see_entering_and_leaving() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a", "x")).await.expect(201);
    let mut events = cluster.watch(&format!("{MAPS}?watch=1&labelSelector=l%3Dy")).await;
    for label in ["y", "y2", "y"] {
        cluster
            .patch(&format!("{MAPS}/a"), "merge-patch+json", json!({"metadata": {"labels": {"l": label}}}))
            .await
            .expect(200);
    }
    assert_eq!(events.brief().await, brief("ADDED", "a"));
    assert_eq!(events.brief().await, brief("DELETED", "a"));
    assert_eq!(events.brief().await, brief("ADDED", "a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_list_ends_with_its_bookmark() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a", "x")).await.expect(201);
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = cluster.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.brief().await, brief("ADDED", "a"));
    let (kind, mark) = events.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &mark["metadata"]["annotations"]["k8s.io/initial-events-end"]),
        ("BOOKMARK", &json!("true"))
    );
    cluster.post(MAPS, map("b", "x")).await.expect(201);
    assert_eq!(events.brief().await, brief("ADDED", "b"));
    assert_eq!(cluster.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await.code, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_end_in_time_and_tell_what_is_gone() {
    let mut cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("a", "x")).await.expect(201);
    let mut events = cluster
        .watch(&format!(
            "{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={}",
            made["metadata"]["resourceVersion"].as_str().unwrap()
        ))
        .await;
    assert_eq!(events.next().await.unwrap().0, "BOOKMARK");
    assert!(events.next().await.is_none());
    cluster.end().await;
    cluster.begin().await;
    // The changes before the start are not kept.
    let mut events = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let (kind, status) = events.next().await.unwrap();
    assert_eq!((kind.as_str(), &status["code"], &status["reason"]), ("ERROR", &json!(410), &json!("Expired")));
    assert!(events.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_name_their_columns_once() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a", "x")).await.expect(201);
    cluster.post(MAPS, map("b", "x")).await.expect(201);
    let response = cluster
        .raw(
            "GET",
            &format!("{MAPS}?watch=1&timeoutSeconds=1"),
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
            "",
        )
        .await;
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let events: Vec<Value> =
        body.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
    let columns = |event: &Value| event["object"]["columnDefinitions"].as_array().map_or(0, Vec::len);
    assert!(columns(&events[0]) > 0 && columns(&events[1]) == 0);
    assert_eq!(events[1]["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_conflict_and_watchers_agree() {
    const WRITERS: usize = 4;
    const EACH: usize = 10;
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("n", "0")).await.expect(201);
    let query = format!("{MAPS}?watch=1&resourceVersion={}", made["metadata"]["resourceVersion"].as_str().unwrap());
    let mut watchers = vec![cluster.watch(&query).await, cluster.watch(&query).await];
    let cluster = &cluster;
    let count = |_| async move {
        for _ in 0..EACH {
            loop {
                let mut now = cluster.get(&format!("{MAPS}/n")).await.expect(200);
                let number: usize = now["metadata"]["labels"]["l"].as_str().unwrap().parse().unwrap();
                now["metadata"]["labels"]["l"] = (number + 1).to_string().into();
                match cluster.put(&format!("{MAPS}/n"), &now).await.code {
                    200 => break,
                    code => assert_eq!(code, 409),
                }
            }
        }
    };
    futures::future::join_all((0..WRITERS).map(count)).await;
    for watcher in &mut watchers {
        let mut last = 0;
        for wanted in 1..=WRITERS * EACH {
            let (_, object) = watcher.next().await.unwrap();
            assert_eq!(object["metadata"]["labels"]["l"], wanted.to_string());
            let revision: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            assert!(revision > last);
            last = revision;
        }
    }
}
