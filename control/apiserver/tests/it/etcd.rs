//! The server on a real etcd.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Parser as _;
use kube_apiserver::{Config, Server};
use serde_json::{Value, json};

use crate::client::{Cluster, config};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn map(name: &str, value: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"x": value}})
}

pub fn flags(etcd: &test_etcd::Etcd) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", etcd.file(name).display());
    vec![
        format!("--etcd-servers={}", etcd.endpoints().join(",")),
        file("cafile", "ca.crt"),
        file("certfile", "client.crt"),
        file("keyfile", "client.key"),
    ]
}

/// Settings of a server on this store, with a socket.
fn set(config: &mut Config, dir: &Path, flags: &[String]) {
    let certificates = ["kube-apiserver", "--tls-cert-file=x", "--tls-private-key-file=x"].map(String::from);
    config.etcd = Config::try_parse_from(certificates.iter().chain(flags)).unwrap().etcd;
    config.store_socket = Some(dir.join("store.sock"));
}

pub async fn begin(cluster: &mut Cluster, flags: &[String]) {
    let dir = cluster.dir().to_path_buf();
    cluster.begin_with(|config| set(config, &dir, flags)).await;
}

fn settings(cluster: &Cluster, flags: &[String]) -> Config {
    let mut config = config(cluster.dir());
    set(&mut config, cluster.dir(), flags);
    config
}

async fn start(flags: &[String]) -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    std::fs::remove_dir_all(cluster.dir().join("store")).unwrap();
    begin(&mut cluster, flags).await;
    cluster
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_live_in_etcd() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = start(&flags).await;
    let first = cluster.post(MAPS, map("a", "1")).await.expect(201);
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200), first, "what is read is what was answered");
    let mut events = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&first))).await;

    // Updates on condition of the version.
    let mut changed = first.clone();
    changed["data"]["x"] = "2".into();
    let second = cluster.put(&format!("{MAPS}/a"), &changed).await.expect(200);
    assert_ne!(version(&second), version(&first));
    assert_eq!(cluster.put(&format!("{MAPS}/a"), &changed).await.failure(), (409, "Conflict".into()));
    assert_eq!(cluster.post(MAPS, map("a", "3")).await.failure(), (409, "AlreadyExists".into()));
    assert_eq!(cluster.delete(&format!("{MAPS}/a")).await.code, 200);
    for kind in ["MODIFIED", "DELETED"] {
        assert_eq!(events.brief().await, (kind.into(), "a".into()));
    }

    // Pages of one picture.
    for i in 0..5 {
        cluster.post(MAPS, map(&format!("p{i}"), "")).await.expect(201);
    }
    let query = format!("{MAPS}?limit=2&fieldSelector=metadata.name!=kube-root-ca.crt");
    let page = cluster.get(&query).await.expect(200);
    let token = page["metadata"]["continue"].as_str().unwrap();
    cluster.delete(&format!("{MAPS}/p4")).await.expect(200);
    let rest = cluster.get(&format!("{MAPS}?continue={token}")).await.expect(200);
    let names: Vec<_> = rest["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].clone()).collect();
    assert!(names.contains(&"p4".into()), "{names:?}");

    // A server that starts again has everything, at the same versions, and gives no version twice.
    let before = cluster.get(&format!("{MAPS}/p1")).await.expect(200);
    cluster.end().await;
    begin(&mut cluster, &flags).await;
    assert_eq!(cluster.get(&format!("{MAPS}/p1")).await.expect(200), before);
    let after = cluster.post(MAPS, map("b", "1")).await.expect(201);
    let number = |object: &Value| version(object).parse::<u64>().unwrap();
    assert!(number(&after) > number(&rest), "revisions go on");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_on_one_etcd_are_one_api() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = start(&flags).await;
    let other = Server::start(settings(&cluster, &flags)).await.unwrap();
    let (here, there) = (cluster.server.as_ref().unwrap().address.port(), other.address.port());
    for i in 0..20 {
        let path = format!("{MAPS}/m{i}");
        cluster.use_port(here);
        let made = cluster.post(MAPS, map(&format!("m{i}"), "1")).await.expect(201);
        cluster.use_port(there);
        assert_eq!(cluster.get(&path).await.expect(200), made, "read at once by another server");
        let patch = json!({"data": {"x": "2"}});
        let patched = cluster.patch(&path, "merge-patch+json", patch).await.expect(200);
        cluster.use_port(here);
        assert_eq!(cluster.put(&path, &made).await.failure(), (409, "Conflict".into()));
        let listed = cluster.get(MAPS).await.expect(200);
        assert!(listed["items"].as_array().unwrap().iter().any(|o| version(o) == version(&patched)));
        cluster.delete(&path).await.expect(200);
        cluster.use_port(there);
        assert_eq!(cluster.get(&path).await.code, 404);
    }
    other.stop().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_on_one_etcd_give_no_address_twice() {
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = start(&flags).await;
    cluster.end().await;
    let small = |mut config: Config| {
        // So few that the servers choose the same ones again and again.
        config.service_cluster_ip_range = "10.32.0.0/26".into();
        config.service_node_port_range = "30000-30049".into();
        config
    };
    let settings = small(settings(&cluster, &flags));
    cluster.begin_with(|config| *config = settings.clone()).await;
    let other = Server::start(settings).await.unwrap();
    let ports = [cluster.server.as_ref().unwrap().address.port(), other.address.port()];
    let service = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["ports"] = json!([{"port": 80}]);
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec})
    };
    let clients = ports.map(|port| cluster.at(port));
    let writes = (0..44).map(|i| {
        let (client, body) = (&clients[i % 2], service(&format!("s{i}"), json!({"type": "NodePort"})));
        async move { client.post(SERVICES, body).await.expect(201) }
    });
    let made = futures::future::join_all(writes).await;
    let mut seen = std::collections::HashSet::new();
    for service in &made {
        assert!(seen.insert(service["spec"]["clusterIP"].to_string()), "{service}: an address twice");
        assert!(seen.insert(service["spec"]["ports"][0]["nodePort"].to_string()), "{service}: a port twice");
    }
    // One address that is asked for by number, at both at once.
    for round in 0..5 {
        let free = format!(
            "10.32.0.{}",
            1 + (0..62).find(|i| !seen.contains(&format!("\"10.32.0.{}\"", i + 1)) && *i > 0).unwrap()
        );
        let fixed = |name: String| service(&name, json!({"clusterIP": free}));
        let (a, b) = tokio::join!(
            clients[0].post(SERVICES, fixed(format!("a{round}"))),
            clients[1].post(SERVICES, fixed(format!("b{round}")))
        );
        let mut codes = [a.code, b.code];
        codes.sort();
        assert_eq!(codes, [201, 422], "{a:?} {b:?}");
        // What is deleted on one server is free on the other at once.
        let winner = if a.code == 201 { format!("a{round}") } else { format!("b{round}") };
        clients[0].delete(&format!("{SERVICES}/{winner}")).await.expect(200);
        clients[1].post(SERVICES, fixed(format!("c{round}"))).await.expect(201);
        seen.insert(format!("{free:?}"));
    }
    other.stop().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_waits_for_a_backup_goes_on_once_another_one_has_a_store() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    std::fs::remove_dir_all(cluster.dir().join("store")).unwrap();
    let settings = settings(&cluster, &flags);
    let waits = Config { await_restore: true, store_socket: None, secure_port: 0, ..settings.clone() };
    let waits = tokio::spawn(Server::start(waits));
    tokio::task::yield_now().await;
    let other = Server::start(settings).await.unwrap();
    waits.await.unwrap().unwrap().stop().await;
    other.stop().await;
}

/// What etcd refuses, here for its size, holds no address and no port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_refused_claims_nothing() {
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    let etcd = test_etcd::Etcd::start_with(1, &["--max-request-bytes=131072"]);
    let mut cluster = start(&flags(&etcd)).await;
    let service = |name: &str, spec: Value, note: &str| {
        let mut spec = spec;
        spec["ports"] = json!([{"port": 80, "nodePort": spec["nodePort"].take()}]);
        spec.as_object_mut().unwrap().remove("nodePort");
        let metadata = json!({"name": name, "annotations": {"note": note}});
        json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": spec})
    };
    let large = "x".repeat(200_000);
    let fixed = json!({"type": "NodePort", "clusterIP": "10.32.0.77", "nodePort": 30077});
    assert_eq!(cluster.post(SERVICES, service("a", fixed.clone(), &large)).await.code, 413);
    cluster.post(SERVICES, service("b", fixed, "")).await.expect(201);

    let mut made = cluster.post(SERVICES, service("c", json!({"type": "NodePort"}), "")).await.expect(201);
    made["spec"]["ports"][0]["nodePort"] = 30078.into();
    made["metadata"]["annotations"]["note"] = large.into();
    assert_eq!(cluster.put(&format!("{SERVICES}/c"), &made).await.code, 413);
    let fixed = json!({"type": "NodePort", "nodePort": 30078});
    cluster.post(SERVICES, service("d", fixed, "")).await.expect(201);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_not_plain_in_etcd() {
    let etcd = test_etcd::Etcd::start(1);
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), [7; 32]).unwrap();
    let flags = flags(&etcd);
    let mut cluster = start(&flags).await;
    cluster.end().await;
    let mut with_key = settings(&cluster, &flags);
    with_key.encryption_key_file = Some(key.path().to_path_buf());
    cluster.begin_with(|config| *config = with_key.clone()).await;
    let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "stringData": {"x": "hush"}});
    cluster.post(SECRETS, secret).await.expect(201);
    cluster.post(MAPS, map("open", "aGVhcmQ=")).await.expect(201);
    assert!(etcd.data_holds(0, b"aGVhcmQ="), "the search finds what is not encrypted");
    // In base64, as Secrets hold it.
    assert!(!etcd.data_holds(0, b"aHVzaA==") && !etcd.data_holds(0, b"hush"));
    cluster.end().await;
    cluster.begin_with(|config| *config = with_key.clone()).await;
    let read = cluster.get(&format!("{SECRETS}/s")).await.expect(200);
    assert_eq!(read["data"]["x"], "aHVzaA==");
    cluster.end().await;
}

/// Runs `kube-apiserver store …` as the program would.
fn store(args: &[&str], etcd: &[String]) -> std::process::Output {
    let mut all = vec!["--exact", "etcd::command", "--nocapture"];
    let joined = ["kube-apiserver", "store"].iter().chain(args).map(ToString::to_string).chain(etcd.iter().cloned());
    let joined = joined.collect::<Vec<_>>().join("\n");
    all.push("--test-threads=1");
    std::process::Command::new(std::env::current_exe().unwrap()).args(all).env(COMMAND, joined).output().unwrap()
}

pub const COMMAND: &str = "KUBE_APISERVER_TEST_COMMAND";

/// The other process: does nothing unless a test here starts it.
#[test]
fn command() {
    let Ok(args) = std::env::var(COMMAND) else { return };
    let code = kube_apiserver::main(args.split('\n').map(Into::into).collect());
    std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 1 });
}

fn done(output: std::process::Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_to_etcd_and_back() {
    let etcd = test_etcd::Etcd::start(1);
    let mut cluster = Cluster::start().await;
    let made = cluster.post(MAPS, map("kept", "1")).await.expect(201);
    let dir = cluster.dir().join("store").display().to_string();
    let place = ["--store-dir", &dir];
    let flags = flags(&etcd);
    let migrate = |to: &str| store(&["migrate", "--to", to, place[0], place[1]], &flags);

    let busy = migrate("etcd");
    assert!(!busy.status.success() && String::from_utf8_lossy(&busy.stderr).contains("in use"), "{busy:?}");
    cluster.end().await;
    let said = done(migrate("etcd"));
    assert!(said.contains("compared"), "{said}");
    done(store(&["check"], &flags));
    let again = migrate("etcd");
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("already"), "{again:?}");
    let left_behind = Server::start(settings(&cluster, &[])).await.unwrap_err().to_string();
    assert!(left_behind.contains("was moved to etcd"), "{left_behind}");

    begin(&mut cluster, &flags).await;
    assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), made, "objects keep their versions");
    let old = cluster.get(&format!("{MAPS}?watch=1&resourceVersion={}", version(&made))).await;
    assert!(old.code == 410 || String::from_utf8_lossy(&old.body).contains("410"), "clients list anew: {old:?}");
    let mut changed = made.clone();
    changed["data"]["x"] = "2".into();
    let changed = cluster.put(&format!("{MAPS}/kept"), &changed).await.expect(200);

    // The server on etcd ends by itself, as nothing it writes would be kept.
    done(migrate("embedded"));
    assert_eq!(cluster.post(MAPS, map("late", "1")).await.code, 500);
    cluster.end().await;
    let elsewhere = Config { store_dir: cluster.dir().join("elsewhere"), ..settings(&cluster, &flags) };
    let error = Server::start(elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("was moved"), "{error}");
    for flags in [&[][..], &flags] {
        begin(&mut cluster, flags).await;
        assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), changed);
        assert_eq!(cluster.get(&format!("{MAPS}/late")).await.code, 404);
        cluster.end().await;
    }
}

/// Objects in etcd that a log of before does not have, and no word about which one is the store: neither a server, nor a
/// migration, nor a damaged snapshot takes the log for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_etcd_is_not_replaced_by_an_old_log() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = Cluster::start().await;
    cluster.post(MAPS, map("old", "1")).await.expect(201);
    cluster.end().await;
    let dir = cluster.dir().join("store");
    let (home, engine) = (format!("--store-dir={}", dir.display()), dir.join("engine"));
    let migrate = |to: &str| store(&["migrate", "--to", to, &home], &flags);
    let refused = |output: std::process::Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        text
    };
    done(migrate("etcd"));
    // Ended before it was noted: it is done once more.
    std::fs::remove_file(&engine).unwrap();
    let error = Server::start(settings(&cluster, &flags)).await.unwrap_err().to_string();
    assert!(error.contains("never moved") && error.contains("migrate --to etcd"), "{error}");
    done(migrate("etcd"));

    begin(&mut cluster, &flags).await;
    cluster.post(MAPS, map("new", "1")).await.expect(201);
    let snapshot = cluster.dir().join("snapshot").display().to_string();
    done(store(
        &["snapshot", &snapshot, &format!("--store-socket={}", cluster.dir().join("store.sock").display())],
        &[],
    ));
    cluster.post(MAPS, map("newer", "1")).await.expect(201);
    cluster.end().await;
    std::fs::remove_file(&engine).unwrap();
    let error = Server::start(settings(&cluster, &flags)).await.unwrap_err().to_string();
    assert!(error.contains("another store") && error.contains("`etcd` or `embedded`"), "{error}");
    let text = refused(migrate("etcd"));
    assert!(text.contains("another store") && text.contains("`etcd` or `embedded`"), "{text}");
    std::fs::write(dir.join("migrate.pending"), "etcd").unwrap();
    Server::start(settings(&cluster, &flags)).await.unwrap_err();
    let text = std::fs::read_to_string(dir.join("migrate.refused")).unwrap();
    assert!(text.contains("another store"), "{text}");
    std::fs::write(&engine, "embedded").unwrap();
    assert!(refused(migrate("etcd")).contains("newer objects"), "not even where the log is said to be the store");
    std::fs::remove_file(&engine).unwrap();
    std::fs::write(dir.join("restore.pending"), "damaged").unwrap();
    let error = Server::start(settings(&cluster, &flags)).await.unwrap_err().to_string();
    assert!(error.contains("another store") && dir.join("restore.refused").exists(), "{error}");
    std::fs::write(&engine, "etcd").unwrap();
    begin(&mut cluster, &flags).await;
    cluster.get(&format!("{MAPS}/newer")).await.expect(200);
    cluster.end().await;

    // A snapshot says what the store is, at the next start and by hand.
    for by_hand in [false, true] {
        std::fs::remove_file(&engine).unwrap();
        if by_hand {
            done(store(&["restore", &snapshot, &home], &flags));
        } else {
            std::fs::copy(&snapshot, dir.join("restore.pending")).unwrap();
        }
        begin(&mut cluster, &flags).await;
        assert_eq!(std::fs::read_to_string(&engine).unwrap().trim(), "etcd");
        cluster.get(&format!("{MAPS}/new")).await.expect(200);
        assert_eq!(cluster.get(&format!("{MAPS}/newer")).await.code, 404);
        cluster.post(MAPS, map("newer", "1")).await.expect(201);
        cluster.end().await;
    }
    // And where the master's image has no etcd any more.
    std::fs::copy(&snapshot, dir.join("restore.pending")).unwrap();
    begin(&mut cluster, &[]).await;
    cluster.get(&format!("{MAPS}/new")).await.expect(200);
    assert_eq!(std::fs::read_to_string(&engine).unwrap().trim(), "embedded");
    cluster.end().await;
}

/// The log is the store, older objects are in etcd, and no word about which one it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_store_is_not_replaced_by_what_etcd_still_has() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = start(&flags).await;
    let mut kept = cluster.post(MAPS, map("kept", "1")).await.expect(201);
    cluster.end().await;
    let dir = cluster.dir().join("store");
    std::fs::create_dir_all(&dir).unwrap();
    let (home, engine) = (format!("--store-dir={}", dir.display()), dir.join("engine"));
    let says = || std::fs::read_to_string(&engine).unwrap_or_default().trim().to_string();
    let migrate = |to: &str| store(&["migrate", "--to", to, &home], &flags);

    // A copy that fails: etcd has the store as before, and the directory says so before a log is there.
    let held = store::DirDisk::open(&dir).unwrap();
    let failed = migrate("embedded");
    assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("in use"), "{failed:?}");
    drop(held);
    assert_eq!(says(), "etcd");
    begin(&mut cluster, &flags).await;
    kept["data"]["x"] = "2".into();
    kept = cluster.put(&format!("{MAPS}/kept"), &kept).await.expect(200);
    cluster.end().await;
    done(migrate("embedded"));
    assert_eq!(says(), "embedded");

    // Killed at each step of the migration, which is then done once more: etcd's objects are the newer ones.
    for to_be_compared in [false, true] {
        done(migrate("etcd"));
        begin(&mut cluster, &flags).await;
        kept["data"]["x"] = format!("{}+", kept["data"]["x"]).into();
        kept = cluster.put(&format!("{MAPS}/kept"), &kept).await.expect(200);
        cluster.end().await;
        let stale = std::fs::read(dir.join("store.log")).unwrap();
        done(migrate("embedded"));
        std::fs::write(&engine, "etcd").unwrap();
        if !to_be_compared {
            std::fs::write(dir.join("store.log"), stale).unwrap();
        }
        let error = Server::start(settings(&cluster, &flags)).await.unwrap_err().to_string();
        assert!(error.contains("was moved") && error.contains("interrupted"), "{error}");
        done(migrate("embedded"));
        begin(&mut cluster, &flags).await;
        assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), kept);
        cluster.end().await;
    }

    // By hand and at a start: the log stays.
    begin(&mut cluster, &flags).await;
    kept["data"]["x"] = "live".into();
    kept = cluster.put(&format!("{MAPS}/kept"), &kept).await.expect(200);
    for by_hand in [true, false] {
        cluster.end().await;
        std::fs::remove_file(&engine).unwrap();
        let said = if by_hand {
            let said = done(migrate("embedded"));
            begin(&mut cluster, &flags).await;
            said
        } else {
            std::fs::write(dir.join("migrate.pending"), "embedded").unwrap();
            begin(&mut cluster, &flags).await;
            std::fs::read_to_string(dir.join("migrate.done")).unwrap()
        };
        assert!(said.contains("embedded already") && says() == "embedded", "{said}");
        assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), kept);
    }
    cluster.end().await;

    // Nor is what was left behind in etcd copied to a directory that it did not go to.
    let elsewhere = format!("--store-dir={}", cluster.dir().join("elsewhere").display());
    let refused = store(&["migrate", "--to", "embedded", &elsewhere], &flags);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("left behind"), "{refused:?}");
}

/// As the node API asks for it: by a file that the next start finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_when_it_starts() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    let mut cluster = start(&flags).await;
    let store = cluster.dir().join("store");
    let mut kept = cluster.post(MAPS, map("kept", "0")).await.expect(201);
    for (round, to) in ["embedded", "etcd", "embedded"].into_iter().enumerate() {
        std::fs::create_dir_all(&store).unwrap();
        std::fs::write(store.join("migrate.pending"), to).unwrap();
        cluster.end().await;
        begin(&mut cluster, &flags).await;
        let said = std::fs::read_to_string(store.join("migrate.done")).unwrap();
        assert!(said.contains("compared") && !store.join("migrate.pending").exists(), "{said}");
        assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), kept, "{to}");
        kept["data"]["x"] = (round + 1).to_string().into();
        kept = cluster.put(&format!("{MAPS}/kept"), &kept).await.expect(200);
    }

    // What fails changes nothing: the server goes on with the engine that it had.
    let nowhere = ["--etcd-servers=http://127.0.0.1:1".to_string()];
    std::fs::write(store.join("migrate.pending"), "etcd").unwrap();
    cluster.end().await;
    begin(&mut cluster, &nowhere).await;
    let why = std::fs::read_to_string(store.join("migrate.refused")).unwrap();
    assert!(why.contains("127.0.0.1:1") && !store.join("migrate.done").exists(), "{why}");
    assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), kept);
    cluster.end().await;
}

/// etcd's default limit is below the API server's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_finds_too_large_is_a_413() {
    let etcd = test_etcd::Etcd::start(1);
    let mut cluster = start(&flags(&etcd)).await;
    let mut role =
        json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "r"}});
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let names: Vec<String> = (0..1_700_000 / 100).map(|i| format!("{i:0>97}")).collect();
    role["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": names}]);
    assert_eq!(cluster.post(roles, role).await.failure(), (413, "RequestEntityTooLarge".into()));
    cluster.post(MAPS, map("small", "1")).await.expect(201);
    cluster.end().await;
}

async fn snapshot_check_restore(mut cluster: Cluster, flags: &[String]) {
    let socket = cluster.dir().join("store.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for nobody else");
    let socket = format!("--store-socket={}", socket.display());
    let file = cluster.dir().join("snapshot");
    let made = cluster.post(MAPS, map("kept", "1")).await.expect(201);
    let writing = async {
        for i in 0..50 {
            cluster.post(MAPS, map(&format!("w{i}"), "1")).await.expect(201);
        }
    };
    let path = file.display().to_string();
    let taking = async {
        let (path, socket) = (path.clone(), socket.clone());
        tokio::task::spawn_blocking(move || {
            done(store(&["snapshot", &path, &socket], &[]));
            done(store(&["check", &socket], &[]))
        })
        .await
        .unwrap()
    };
    let ((), checked) = tokio::join!(writing, taking);
    assert!(checked.contains("compared with the server's memory"), "{checked}");
    assert!(!store(&["snapshot", &path, &socket], &[]).status.success(), "a file that exists is not overwritten");
    let late = cluster.post(MAPS, map("late", "1")).await.expect(201);

    // Laid where the next start finds it.
    let dir = cluster.dir().join("store");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(&file, dir.join("restore.pending")).unwrap();
    cluster.end().await;
    begin(&mut cluster, flags).await;
    assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), made);
    assert_eq!(cluster.get(&format!("{MAPS}/late")).await.code, 404, "what came after the snapshot is gone");
    let new = cluster.post(MAPS, map("new", "1")).await.expect(201);
    let number = |object: &Value| version(object).parse::<u64>().unwrap();
    assert!(number(&new) > number(&late), "no version is given out twice");
    assert!(!dir.join("restore.pending").exists());

    // A damaged one changes nothing.
    let mut damaged = std::fs::read(&file).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(dir.join("restore.pending"), damaged).unwrap();
    cluster.end().await;
    begin(&mut cluster, flags).await;
    assert_eq!(cluster.get(&format!("{MAPS}/new")).await.expect(200), new);
    assert!(dir.join("restore.refused").exists());
    cluster.end().await;

    // And by hand, while no server runs.
    let home = format!("--store-dir={}", dir.display());
    done(store(&["restore", &path, &home], flags));
    begin(&mut cluster, flags).await;
    assert_eq!(cluster.get(&format!("{MAPS}/new")).await.code, 404);
    assert_eq!(cluster.get(&format!("{MAPS}/kept")).await.expect(200), made);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_is_snapshot_checked_and_restored() {
    snapshot_check_restore(start(&[]).await, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_etcd_is_snapshot_checked_and_restored() {
    let etcd = test_etcd::Etcd::start(1);
    let flags = flags(&etcd);
    snapshot_check_restore(start(&flags).await, &flags).await;
}
