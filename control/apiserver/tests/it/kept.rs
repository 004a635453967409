//! What the server puts back when somebody removes it, and a store that is to be put back before it serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Cluster, ca, config};

const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const TRUST: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";

/// The object once it is as wanted, within a few of the server's rounds.
pub async fn until(cluster: &Cluster, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..300 {
        last = cluster.get(path).await.json();
        if wanted(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{path} did not come back: {last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_service_and_what_others_trust_come_back() {
    let front_proxy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(front_proxy.path(), ca().0).unwrap();
    let cluster = Cluster::start_with(|config| {
        config.advertise_address = Some("192.0.2.7".parse().unwrap());
        config.requestheader_client_ca_file = Some(front_proxy.path().into());
        config.requestheader_allowed_names = vec!["front-proxy".into()];
    })
    .await;
    let trust = until(&cluster, TRUST, |o| o["kind"] == "ConfigMap").await;
    let text = |path: &Path| std::fs::read_to_string(path).unwrap().replace('\r', "");
    let wanted = json!({
        "client-ca-file": text(&cluster.dir().join("ca.crt")),
        "requestheader-client-ca-file": text(front_proxy.path()),
        "requestheader-allowed-names": r#"["front-proxy"]"#,
        "requestheader-username-headers": r#"["X-Remote-User"]"#,
        "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
        "requestheader-group-headers": r#"["X-Remote-Group"]"#,
        "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
    });
    assert_eq!(trust["data"], wanted);

    let before = cluster.get(SERVICE).await.expect(200);
    for path in [SERVICE, ENDPOINTS, SLICE] {
        assert_eq!(cluster.delete(path).await.code, 200, "{path}");
    }
    let patch = json!({"data": {"client-ca-file": "somebody else's", "more": "x"}});
    cluster.patch(TRUST, "merge-patch+json", patch).await.expect(200);
    let service = until(&cluster, SERVICE, |o| o["kind"] == "Service").await;
    assert_eq!(service["spec"], before["spec"]);
    assert_ne!(service["metadata"]["uid"], before["metadata"]["uid"]);
    let endpoints = until(&cluster, ENDPOINTS, |o| o["kind"] == "Endpoints").await;
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.7");
    let slice = until(&cluster, SLICE, |o| o["kind"] == "EndpointSlice").await;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
    let trust = until(&cluster, TRUST, |o| o["data"] == wanted).await;

    // A round that has one thing to do writes nothing else.
    let patch = json!({"endpoints": [{"addresses": ["192.0.2.8"]}], "ports": [], "metadata": {"labels": null}});
    cluster.patch(SLICE, "merge-patch+json", patch).await.expect(200);
    let again = until(&cluster, SLICE, |o| o["endpoints"] == slice["endpoints"]).await;
    assert_eq!(again["ports"], slice["ports"]);
    assert_eq!(again["metadata"]["labels"], slice["metadata"]["labels"]);
    for (path, object) in [(SERVICE, service), (ENDPOINTS, endpoints), (TRUST, trust)] {
        let now = cluster.get(path).await.expect(200);
        assert_eq!(now["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"], "{path}");
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server that has ended, the folder of its store, and a snapshot of that, with one object of ours.
async fn ended_with_a_map() -> (Cluster, PathBuf, Vec<u8>) {
    let mut cluster = Cluster::start().await;
    cluster.post(MAPS, json!({"metadata": {"name": "old"}})).await.expect(201);
    cluster.end().await;
    let store = cluster.dir().join("store");
    let snapshot = std::fs::read(store.join("store.log")).unwrap();
    (cluster, store, snapshot)
}

/// An empty store would tell every node that none of its pods is wanted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_awaits_a_backup_makes_no_store_of_its_own() {
    let (mut cluster, store, snapshot) = ended_with_a_map().await;
    std::fs::remove_dir_all(&store).unwrap();
    let awaiting = || {
        let mut config = config(cluster.dir());
        config.await_restore = true;
        tokio::time::timeout(Duration::from_secs(1), kube_apiserver::Server::start(config))
    };
    assert!(awaiting().await.is_err(), "it serves");
    assert!(!store.join("store.log").exists());
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("restore.pending"), "damaged").unwrap();
    assert!(awaiting().await.is_err(), "it serves without what was to be restored");
    assert!(store.join("restore.refused").exists() && !store.join("store.log").exists());

    std::fs::write(store.join("restore.pending"), snapshot).unwrap();
    for round in ["restored", "started anew"] {
        cluster.begin_with(|config| config.await_restore = true).await;
        assert_eq!(cluster.get(&format!("{MAPS}/old")).await.code, 200, "{round}");
        cluster.end().await;
    }
}

/// A place without a store begins with what it is told, and one that has a store keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_awaits_a_backup_begins_with_what_it_is_told() {
    let (mut cluster, store, snapshot) = ended_with_a_map().await;
    for (told, has_old) in [(&snapshot[..], 200), (b"", 404)] {
        std::fs::remove_dir_all(&store).unwrap();
        std::fs::create_dir_all(&store).unwrap();
        std::fs::write(store.join("begin.pending"), told).unwrap();
        cluster.begin_with(|config| config.await_restore = true).await;
        assert_eq!(cluster.get(&format!("{MAPS}/old")).await.code, has_old);
        cluster.post(MAPS, json!({"metadata": {"name": "new"}})).await.expect(201);
        cluster.end().await;
        // An answer that was lost, and the same again.
        std::fs::write(store.join("begin.pending"), &snapshot).unwrap();
        cluster.begin_with(|config| config.await_restore = true).await;
        assert_eq!(cluster.get(&format!("{MAPS}/new")).await.code, 200);
        assert_eq!(cluster.get(&format!("{MAPS}/old")).await.code, has_old);
        assert!(!store.join("begin.pending").exists());
        cluster.end().await;
    }
}

/// What was acknowledged until then is in the copy, and nothing is acknowledged any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_store_gives_copies_and_serves_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let map = "/api/v1/namespaces/default/configmaps/last";
    let mut cluster = Cluster::start().await;
    cluster.post(MAPS, json!({"metadata": {"name": "last"}})).await.expect(201);
    cluster.end().await;
    let (store, socket) = (cluster.dir().join("store"), cluster.dir().join("closed.sock"));
    std::fs::write(store.join("fenced"), "").unwrap();
    let mut closed = config(cluster.dir());
    closed.store_socket = Some(socket.clone());
    let server = tokio::spawn(async move { kube_apiserver::Server::start(closed).await.map(drop) });
    let ask = async |path: &str| {
        let mut stream = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: store\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..head]));
        answer.split_off(head)
    };
    ask("/fenced").await;
    let snapshot = ask("/snapshot").await;
    assert!(!server.is_finished());
    server.abort();
    let _ = server.await;
    // The copy goes on elsewhere.
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("begin.pending"), snapshot).unwrap();
    cluster.begin_with(|config| config.await_restore = true).await;
    cluster.get(map).await.expect(200);
    cluster.end().await;
}
