//! Watches.

use base64::Engine as _;
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
    // The empty list in the form of the watch, from which clients make theirs.
    let blueprint = |mark: &Value| -> Vec<u8> {
        let text = mark["metadata"]["annotations"]["kubernetes.io/initial-events-list-blueprint"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    };
    let list: Value = serde_json::from_slice(&blueprint(&mark)).unwrap();
    assert_eq!(list, json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": []}));
    let short = format!("{MAPS}?{query}&timeoutSeconds=1");
    let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let answer = cluster.send_with("GET", &short, &[("accept", partial)], "").await;
    let mark: Value = serde_json::from_slice(answer.body.split(|b| *b == b'\n').nth(1).unwrap()).unwrap();
    let list: Value = serde_json::from_slice(&blueprint(&mark["object"])).unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    let protobuf = "application/vnd.kubernetes.protobuf;stream=watch";
    let answer = cluster.send_with("GET", &short, &[("accept", protobuf)], "").await;
    let bytes = blueprint(&frames(&answer.body)[1].1);
    let listed = cluster
        .send_with(
            "GET",
            "/api/v1/namespaces/default/configmaps?labelSelector=none",
            &[("accept", "application/vnd.kubernetes.protobuf")],
            "",
        )
        .await;
    assert_eq!((&bytes[..4], bytes.len() < listed.body.len()), (&b"k8s\0"[..], true));
    assert!(bytes.windows(13).any(|w| w == b"ConfigMapList"));

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

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_tell_the_newest_revision() {
    let cluster = Cluster::start().await;
    let first = version(&cluster.post(MAPS, map("a", "x")).await.expect(201));
    let mut marked = cluster
        .watch(&format!("{MAPS}?watch=1&timeoutSeconds=3&allowWatchBookmarks=true&resourceVersion={first}"))
        .await;
    let mut plain = cluster.watch(&format!("{MAPS}?watch=1&timeoutSeconds=2&resourceVersion={first}")).await;
    // Changes of other resources only.
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "other"}});
    let other = version(&cluster.post("/api/v1/namespaces", namespace).await.expect(201));
    let (kind, mark) = marked.next().await.unwrap();
    assert_eq!((kind.as_str(), &mark["kind"], &mark["apiVersion"]), ("BOOKMARK", &json!("ConfigMap"), &json!("v1")));
    assert!(version(&mark) >= other, "an idle watch learns what was written elsewhere");
    assert!(mark["metadata"].get("name").is_none());
    assert!(marked.next().await.is_none(), "the end is no failure");
    assert!(plain.next().await.is_none(), "who asks for no bookmarks gets none");
    // From the bookmark on nothing is lost.
    let mut on = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&mark))).await;
    cluster.post(MAPS, map("b", "x")).await.expect(201);
    assert_eq!(on.brief().await, brief("ADDED", "b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_to_begin() {
    let cluster = Cluster::start().await;
    let first = version(&cluster.post(MAPS, map("a", "x")).await.expect(201));
    let last = version(&cluster.post(MAPS, map("b", "x")).await.expect(201));
    let only = "labelSelector=l&timeoutSeconds=2";
    // What is asked for, and the names that come at once; None: the bookmark that ends the state.
    let list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let table: [(String, &[Option<&str>]); 8] = [
        (String::new(), &[Some("a"), Some("b")]),
        ("resourceVersion=0".into(), &[Some("a"), Some("b")]),
        (format!("resourceVersion={first}"), &[Some("b")]),
        (format!("resourceVersion={last}"), &[]),
        (format!("{list}&allowWatchBookmarks=true"), &[Some("a"), Some("b"), None]),
        (format!("{list}&allowWatchBookmarks=true&resourceVersion={first}"), &[Some("a"), Some("b"), None]),
        (list.into(), &[Some("a"), Some("b")]),
        ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true".into(), &[]),
    ];
    for (query, wanted) in &table {
        let mut events = cluster.watch(&format!("{MAPS}?watch=1&{only}&{query}")).await;
        for name in *wanted {
            let (kind, object) = events.next().await.unwrap();
            match name {
                Some(name) => {
                    assert_eq!((kind.as_str(), &object["metadata"]["name"]), ("ADDED", &json!(name)), "{query}")
                }
                None => {
                    assert_eq!(
                        (kind.as_str(), &object["metadata"]["annotations"]["k8s.io/initial-events-end"]),
                        ("BOOKMARK", &json!("true"))
                    );
                    assert!(version(&object) >= last);
                }
            }
        }
        while let Some((kind, _)) = events.next().await {
            assert_eq!(kind, "BOOKMARK", "{query}");
        }
    }
    for bad in [
        "sendInitialEvents=true",
        "sendInitialEvents=true&resourceVersionMatch=Exact",
        "sendInitialEvents=false",
        "resourceVersionMatch=NotOlderThan",
        "resourceVersionMatch=Exact&resourceVersion=5",
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&continue=x",
    ] {
        assert_eq!(cluster.get(&format!("{MAPS}?watch=1&{bad}")).await.failure(), (422, "Invalid".into()), "{bad}");
    }
    for bad in ["resourceVersion=x", "timeoutSeconds=x", "fieldSelector=spec.x%3D1"] {
        assert_eq!(cluster.get(&format!("{MAPS}?watch=1&{bad}")).await.code, 400, "{bad}");
    }
    let future = cluster.get(&format!("{MAPS}?watch=1&resourceVersion={}", last + 1_000_000)).await;
    assert_eq!(future.failure(), (504, "Timeout".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_object() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a", "x")).await.expect(201);
    let mut one = cluster.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Da")).await;
    let mut prefix = cluster.watch("/api/v1/watch/namespaces/default/configmaps/a").await;
    cluster.post(MAPS, map("b", "x")).await.expect(201);
    cluster.delete(&format!("{MAPS}/a")).await.expect(200);
    for events in [&mut one, &mut prefix] {
        assert_eq!(events.brief().await, brief("ADDED", "a"));
        assert_eq!(events.brief().await, brief("DELETED", "a"));
    }
}

/// Frames of a protobuf watch: type, and the object in its envelope.
fn frames(mut body: &[u8]) -> Vec<(String, Value)> {
    use api::protobuf::wire::Fields;
    let mut out = Vec::new();
    while !body.is_empty() {
        let length = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
        let (mut kind, mut object, mut fields) = (String::new(), Value::Null, Fields(&body[4..4 + length]));
        while let Some((number, raw)) = fields.field().unwrap() {
            match number {
                1 => kind = String::from_utf8(raw.bytes().to_vec()).unwrap(),
                _ => {
                    let (_, inner) = Fields(raw.bytes()).field().unwrap().unwrap();
                    object = api::protobuf::decode_object(inner.bytes(), None).unwrap();
                }
            }
        }
        out.push((kind, object));
        body = &body[4 + length..];
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_other_forms() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a", "x")).await.expect(201);
    cluster.post(MAPS, map("b", "x")).await.expect(201);
    let path = format!(
        "{MAPS}?watch=1&timeoutSeconds=1&labelSelector=l&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let read = async |accept: &str, query: &str| {
        let answer = cluster.send_with("GET", &format!("{path}{query}"), &[("accept", accept)], "").await;
        assert_eq!(answer.code, 200, "{accept}");
        (answer.headers["content-type"].to_str().unwrap().to_string(), answer.body)
    };
    for (accept, kind) in [
        ("application/vnd.kubernetes.protobuf;stream=watch", "ConfigMap"),
        ("application/vnd.kubernetes.protobuf", "ConfigMap"),
        ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "PartialObjectMetadata"),
    ] {
        let (content_type, body) = read(accept, "").await;
        assert_eq!(content_type, "application/vnd.kubernetes.protobuf;stream=watch");
        let events = frames(&body);
        assert_eq!(
            (events[0].0.as_str(), &events[0].1["kind"], &events[0].1["metadata"]["name"]),
            ("ADDED", &json!(kind), &json!("a"))
        );
        assert_eq!((events[2].0.as_str(), &events[2].1["kind"]), ("BOOKMARK", &json!(kind)));
        assert_eq!(events[2].1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    }
    let lines = |body: &[u8]| -> Vec<Value> {
        body.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
    };
    let (content_type, body) = read("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "").await;
    assert_eq!(content_type, "application/json");
    let events = lines(&body);
    assert_eq!(
        (&events[0]["object"]["kind"], events[0]["object"].get("data")),
        (&json!("PartialObjectMetadata"), None)
    );
    for (include, kind) in
        [("None", Value::Null), ("Metadata", "PartialObjectMetadata".into()), ("Object", "ConfigMap".into())]
    {
        let (_, body) =
            read("application/json;as=Table;g=meta.k8s.io;v=v1", &format!("&includeObject={include}")).await;
        let events = lines(&body);
        let columns = |i: usize| events[i]["object"]["columnDefinitions"].as_array().map_or(0, Vec::len);
        assert_eq!((columns(0), columns(1), columns(2)), (3, 0, 0), "columns stand in the first event only");
        assert_eq!(events[1]["object"]["rows"][0]["object"]["kind"], kind, "{include}");
        assert_eq!(events[2]["type"], "BOOKMARK");
        assert_eq!(
            events[2]["object"]["rows"][0]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
            "true"
        );
    }
    // Of what nobody has asked for before, the server has no history.
    let gone = cluster
        .send_with(
            "GET",
            "/api/v1/podtemplates?watch=1&resourceVersion=1&timeoutSeconds=3",
            &[("accept", "application/vnd.kubernetes.protobuf")],
            "",
        )
        .await;
    let events = frames(&gone.body);
    assert_eq!(
        (events[0].0.as_str(), &events[0].1["code"], &events[0].1["kind"]),
        ("ERROR", &json!(410), &json!("Status"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_nobody_up_and_is_cut() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("a", "x")).await.expect(201);
    // One that reads nothing, until its connection is full and the changes it has not seen are gone.
    let mut slow = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&made))).await;
    let pad = "z".repeat(900 << 10);
    let begun = std::time::Instant::now();
    for i in 0..60 {
        let patch = json!({"data": {"i": i.to_string(), "pad": pad}});
        cluster.patch(&format!("{MAPS}/a"), "merge-patch+json", patch).await.expect(200);
    }
    println!("60 writes beside a watcher that does not read: {:?}", begun.elapsed());
    let mut last = 0;
    loop {
        let (kind, object) = slow.next().await.expect("an end that says why");
        if kind == "ERROR" {
            assert_eq!((&object["code"], &object["reason"]), (&json!(410), &json!("Expired")));
            break;
        }
        assert!(version(&object) > last, "in order");
        last = version(&object);
    }
    assert!(slow.next().await.is_none());
}
