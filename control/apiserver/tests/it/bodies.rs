//! Bodies that are meant to keep the server busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use crate::client::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// YAML that is slow to read: flow collections as deep as they may be, quotes, comments, and tokens without end.
fn slow_yaml(size: usize) -> String {
    let mut text = String::from(
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: slow}\ndata:\n  a: &a \"x\"\n  b: # comment\n    ",
    );
    text.push_str(&"[".repeat(100));
    while text.len() < size {
        text.push_str("'q', \"d\", *a, x, ");
    }
    text.push_str(&"]".repeat(100));
    text.push('\n');
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_answered_while_bodies_are_read() {
    let cluster = Arc::new(Cluster::start().await);
    let yaml = slow_yaml(400_000);
    let begun = Instant::now();
    let posts: Vec<_> = (0..4)
        .map(|_| {
            let (cluster, yaml) = (cluster.clone(), yaml.clone());
            tokio::spawn(async move { cluster.send("POST", MAPS, "application/yaml", yaml).await.code })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    while !posts.iter().all(tokio::task::JoinHandle::is_finished) {
        let asked = Instant::now();
        assert_eq!(cluster.get("/livez").await.code, 200);
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let whole = begun.elapsed();
    for code in join_all(posts).await {
        assert_eq!(code.unwrap(), 400, "a list is no text");
    }
    // On the workers themselves two bodies at a time would be read, for half of the whole.
    assert!(slowest < whole / 4, "{slowest:?} of {whole:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_bodies_hold_nobody_up() {
    use tokio::io::AsyncReadExt as _;
    let cluster = Cluster::start().await;
    let mut stalled = Vec::new();
    for n in 0..40 {
        // Names of subresources that stream elsewhere are no way around.
        let path = if n % 2 == 0 { MAPS.to_string() } else { format!("{MAPS}/x/log") };
        stalled.push(cluster.stall(&path, 3 << 20, (64 << 10) + 1).await);
    }
    let object =
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"x": "x".repeat(900_000)}});
    let posted = tokio::time::timeout(Duration::from_secs(15), cluster.post(MAPS, object)).await;
    assert_eq!(posted.expect("answered while others stall").code, 201);
    for mut stream in stalled {
        let mut start = [0; 12];
        let read = tokio::time::timeout(Duration::from_secs(50), stream.read_exact(&mut start)).await;
        read.expect("not as long as a request may take").unwrap();
        assert_eq!(String::from_utf8_lossy(&start), "HTTP/1.1 504");
    }
}

/// The connection is used again: the server has read what it refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_read_so_that_the_answer_arrives() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let cluster = Cluster::start().await;
    let mut stream = cluster.stall_with("impersonate-user: bob\r\n", MAPS, 200_000, 200_000).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).await.unwrap();
    let answers = String::from_utf8_lossy(&answers);
    assert!(answers.starts_with("HTTP/1.1 403") && answers.contains("HTTP/1.1 200"), "{answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_cannot_grow_in_memory() {
    let cluster = Cluster::start().await;
    let tiny = format!(r#"{{"kind":"ConfigMap","x":[{}0]}}"#, r#"{"a":1},"#.repeat(300_000));
    let block = format!("kind: ConfigMap\nx:\n{}", "- a: 1\n".repeat(300_000));
    for (form, body) in [("application/json", tiny), ("application/yaml", block)] {
        let refused = cluster.send("POST", MAPS, form, body).await;
        assert_eq!(refused.failure(), (400, "BadRequest".into()));
        assert!(String::from_utf8_lossy(&refused.body).contains("too many maps"), "{refused:?}");
    }
    cluster.post(MAPS, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}})).await.expect(201);
    let patch = format!(r#"{{"x":[{}0]}}"#, r#"{"a":1},"#.repeat(300_000));
    let refused = cluster.send("PATCH", &format!("{MAPS}/a"), "application/merge-patch+json", patch).await;
    assert_eq!(refused.code, 400, "{refused:?}");
    // What is large but not out of bounds is taken, many at a time.
    let large = "x".repeat(900_000);
    let all = join_all((0..12).map(|n| {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("m{n}")}, "data": {"x": large}});
        cluster.post(MAPS, object)
    }));
    assert!(all.await.iter().all(|answer| answer.code == 201));
}
