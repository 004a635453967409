//! A server in a process of its own, killed while it writes.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kube_apiserver::Server;
use serde_json::json;

use crate::client::{Cluster, arguments, config};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DIR: &str = "KUBE_APISERVER_TEST_DIR";
const ROUNDS: usize = 3;

/// The other process: does nothing unless the test below starts it.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::start(config(&dir)).await.unwrap();
        std::fs::write(dir.join("port.new"), server.address.port().to_string()).unwrap();
        std::fs::rename(dir.join("port.new"), dir.join("port")).unwrap();
        std::future::pending::<()>().await;
    });
}

pub async fn spawn(cluster: &mut Cluster) -> Child {
    start(cluster, Command::new(std::env::current_exe().unwrap())).await
}

/// Starts `program` with the arguments that make it the other process, and waits for its server.
async fn start(cluster: &mut Cluster, mut program: Command) -> Child {
    let port = cluster.dir().join("port");
    drop(std::fs::remove_file(&port));
    let mut child = program
        .args(["--exact", "crash::child"])
        .env(DIR, cluster.dir())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if let Ok(text) = std::fs::read_to_string(&port) {
            cluster.use_port(text.parse().unwrap());
            return child;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the server did not start");
}

/// Creates objects until the server is gone; gives the names of those that were answered.
async fn write_until_gone(cluster: &Cluster, prefix: &str) -> Vec<String> {
    let mut done = Vec::new();
    for i in 0.. {
        let name = format!("{prefix}-{i}");
        let body = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}}).to_string();
        match cluster.try_raw("POST", MAPS, &[("content-type", "application/json")], body).await {
            Ok(answer) if answer.status() == 201 => done.push(name),
            Ok(answer) => panic!("{}", answer.status()),
            Err(_) => break,
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_kill() {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let mut server = spawn(&mut cluster).await;
        let writers = futures::future::join_all((0..3).map(|w| {
            let (cluster, prefix) = (&cluster, format!("r{round}-w{w}"));
            async move { write_until_gone(cluster, &prefix).await }
        }));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(400 + 130 * round as u64)).await;
            server.kill().unwrap();
            server.wait().unwrap();
        };
        let (done, ()) = tokio::join!(writers, kill);
        assert!(done.iter().any(|d| !d.is_empty()), "something was written");
        all.extend(done.concat());
    }
    cluster.begin().await;
    for name in all {
        assert_eq!(cluster.get(&format!("{MAPS}/{name}")).await.code, 200, "{name} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_ends_the_server_with_a_failure() {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    let log = std::fs::metadata(cluster.dir().join("store").join("store.log")).unwrap().len();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    cluster.use_port(port);
    // No file may grow beyond a limit, in blocks of 512 bytes.
    let mut server = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f $1; shift; exec \"$@\"", "sh", &(log / 512 + 600).to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "etcd::command", "--nocapture"])
        .env(crate::etcd::COMMAND, arguments(cluster.dir(), port).join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if cluster.try_raw("GET", "/readyz", &[], "").await.is_ok_and(|answer| answer.status() == 200) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut refused = None;
    for i in 0..100 {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("m{i}")}, "data": {"x": "x".repeat(20_000)}});
        let answer = cluster.post(MAPS, object).await;
        if answer.code != 201 {
            refused = Some(answer);
            break;
        }
    }
    assert_eq!(refused.expect("the limit is reached").failure(), (500, "InternalError".into()));
    let ended = tokio::task::spawn_blocking(move || server.wait().unwrap()).await.unwrap();
    assert_eq!(ended.code(), Some(1), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_reads_go_on() {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    let store = cluster.dir().join("store");
    // The store's folder is a small file system, in namespaces of the server's own.
    let mut program = Command::new("unshare");
    let script = "mount -t tmpfs -o size=8m none \"$1\"; shift; exec \"$@\"";
    program.args(["--mount", "--map-root-user", "sh", "-ec", script, "sh"]).arg(&store);
    program.arg(std::env::current_exe().unwrap());
    let mut server = start(&mut cluster, program).await;
    let inside = PathBuf::from(format!("/proc/{}/root", server.id())).join(store.strip_prefix("/").unwrap());
    let map = |name: &str| json!({"metadata": {"name": name}, "data": {"x": "x".repeat(100_000)}});
    let mut events = cluster.watch(&format!("{MAPS}?watch=1")).await;
    cluster.post(MAPS, map("before")).await.expect(201);
    std::fs::write(inside.join("ballast"), vec![1; 16 << 20]).expect_err("the file system is small");

    for _ in 0..3 {
        let refused = cluster.post(MAPS, map("refused")).await;
        assert_eq!(refused.failure(), (500, "InternalError".into()));
        let message = refused.json()["message"].to_string();
        assert!(message.contains("disk is full") && message.contains("store.log"), "{message}");
    }
    cluster.get(&format!("{MAPS}/before")).await.expect(200);
    assert_eq!(cluster.get(&format!("{MAPS}/refused")).await.code, 404);
    std::fs::remove_file(inside.join("ballast")).unwrap();
    cluster.post(MAPS, map("after")).await.expect(201);
    for name in ["before", "after"] {
        assert_eq!(events.brief().await, ("ADDED".into(), name.into()));
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
