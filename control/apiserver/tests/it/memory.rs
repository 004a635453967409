//! What many large lists at once cost a server in a process of its own.

use std::process::Child;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use serde_json::json;
use store::{DirDisk, Embedded, Expect, Options, Stamped, Store};

use crate::client::Cluster;
use crate::crash::spawn;

const PODS: usize = 10_000;
const LISTS: usize = 10;
/// What one list may add.
const EACH_KIB: u64 = 4 << 10;

/// Writes the pods into the store, as the server itself would; one by one over HTTPS they
/// would take minutes.
async fn fill(cluster: &Cluster) {
    let disk = Arc::new(DirDisk::open(&cluster.dir().join("store")).unwrap());
    let store = Arc::new(Embedded::open(disk, Options::default()).unwrap());
    let env: Vec<_> = (0..12).map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "v".repeat(40)})).collect();
    let all: Vec<usize> = (0..PODS).collect();
    for batch in all.chunks(500) {
        let puts = batch.iter().map(|i| {
            let name = format!("pod-{i:05}");
            let key = format!("/core/pods/default/{name}");
            let body = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default", "uid": format!("00000000-0000-4000-8000-{i:012}"),
                "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"app": format!("a{}", i % 50)}},
                "spec": {"nodeName": "n", "restartPolicy": "Always", "containers": [{"name": "c", "image": "registry.example.com/image:1", "env": env, "resources": {}}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-02T03:04:06Z"}}, "image": "i", "imageID": "i"}]}});
            let text = body.to_string();
            let at = text.find("\"metadata\":{").unwrap() + "\"metadata\":{".len();
            let (head, tail) = text.split_at(at);
            let head = format!("{head}\"resourceVersion\":\"");
            let bytes = format!("{head}\",{tail}").into_bytes();
            let (store, stamped) = (store.clone(), Stamped { bytes, stamp_at: head.len() });
            async move { store.put(&key, stamped, Expect::Absent, None).await.unwrap() }
        });
        futures::future::join_all(puts).await;
    }
    store.close();
}

/// A line of `/proc/PID/status`, in KiB.
fn status(server: &Child, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sets the process's peak back to what it takes now.
fn forget_peak(server: &Child) {
    std::fs::write(format!("/proc/{}/clear_refs", server.id()), "5").unwrap();
}

/// Reads a list, slowly at first so that all lists are under way together; gives its size.
async fn read(cluster: &Cluster, limit: usize, accept: &str, begun: &tokio::sync::Barrier) -> usize {
    let path = format!("/api/v1/pods?limit={limit}");
    let response = cluster.raw("GET", &path, &[("accept", accept)], "").await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        if size == 0 {
            begun.wait().await;
        }
        size += frame.unwrap().into_data().map_or(0, |d| d.len());
    }
    size
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_lists_of_ten_thousand_pods_at_once() {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    fill(&cluster).await;
    let mut server = spawn(&mut cluster).await;
    let alone = tokio::sync::Barrier::new(1);
    // The form, how many pods (an unoptimised build makes rows slowly), and a pod's least size.
    for (accept, limit, each) in [
        ("application/json", PODS, 1000),
        ("application/vnd.kubernetes.protobuf", PODS, 500),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", PODS / 5, 200),
        ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", PODS / 5, 50),
    ] {
        let least = limit * each;
        // The first one fills the caches, and lets the allocator have what one list needs.
        assert!(read(&cluster, limit, accept, &alone).await > least, "{accept}");
        forget_peak(&server);
        let before = status(&server, "VmRSS");
        let together = tokio::sync::Barrier::new(LISTS);
        let sizes = futures::future::join_all((0..LISTS).map(|_| read(&cluster, limit, accept, &together))).await;
        let peak = status(&server, "VmHWM");
        println!("{accept}: {} bytes each, {before} KiB before, {peak} KiB at most", sizes[0]);
        assert!(sizes.iter().all(|s| *s == sizes[0] && *s > least), "{accept}: {sizes:?}");
        let grown = peak.saturating_sub(before);
        assert!(grown <= EACH_KIB * LISTS as u64, "{accept}: {LISTS} lists took {grown} KiB");
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
