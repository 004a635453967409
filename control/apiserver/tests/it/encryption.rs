//! Secrets at rest: sealed by default and by upstream's configuration, keys changed under a
//! running server, and the files searched for what they must not have.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::client::{Cluster, config};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PLAIN: &str = "aHVzaC1odXNoLWh1c2g=";

fn providers(list: &str) -> String {
    let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
    format!("{text}resources:\n- resources: [secrets]\n  providers: [{list}]\n")
}

fn provider(kind: &str, name: &str, byte: &str) -> String {
    // 32 times the same byte.
    let secret = format!("{}{}", byte.repeat(42), "A=");
    format!("{{{kind}: {{keys: [{{name: {name}, secret: {secret}}}]}}}}")
}

fn log_has(cluster: &Cluster, text: &str) -> bool {
    let log = std::fs::read(cluster.dir().join("store/store.log")).unwrap();
    log.windows(text.len()).any(|w| w == text.as_bytes())
}

async fn metric(cluster: &Cluster, line: &str) -> bool {
    let body = cluster.get("/metrics").await.body;
    String::from_utf8_lossy(&body).lines().any(|l| l.starts_with(line))
}

async fn wait_for(cluster: &Cluster, line: &str) {
    for _ in 0..400 {
        if metric(cluster, line).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{line} did not come: {}", String::from_utf8_lossy(&cluster.get("/metrics").await.body));
}

async fn create(cluster: &Cluster, name: &str) {
    let body = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": PLAIN}});
    let json = [("content-type", "application/json")];
    let made = cluster.try_raw("POST", SECRETS, &json, body.to_string()).await.unwrap();
    assert_eq!(made.status(), 201);
}

/// The secret as it should be, at a revision that the list has, too, and that a write accepts.
async fn intact(cluster: &Cluster, name: &str) {
    let path = format!("{SECRETS}/{name}");
    let mut found = cluster.get(&path).await.expect(200);
    assert_eq!(found["data"]["k"], PLAIN);
    let list = cluster.get(SECRETS).await.expect(200);
    let items = list["items"].as_array().unwrap();
    let listed = items.iter().find(|i| i["metadata"]["name"] == name).unwrap();
    assert_eq!(listed["metadata"]["resourceVersion"], found["metadata"]["resourceVersion"]);
    found["metadata"]["labels"] = json!({"touched": "yes"});
    let json = [("content-type", "application/json")];
    let put = cluster.try_raw("PUT", &path, &json, found.to_string()).await.unwrap();
    assert_eq!(put.status(), 200);
}

fn write(path: &Path, text: String) {
    std::fs::write(path.with_extension("new"), text).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_change_and_go_under_a_running_server() {
    let mut cluster = Cluster::start().await;
    create(&cluster, "early").await;
    assert!(log_has(&cluster, PLAIN), "without keys it is plain");
    cluster.end().await;

    let file = cluster.dir().join("encryption.yaml");
    let (one, two) = (provider("secretbox", "one", "B"), provider("aesgcm", "two", "C"));
    write(&file, providers(&format!("{one}, {{identity: {{}}}}")));
    let path = file.clone();
    cluster
        .begin_with(move |config| {
            config.encryption_provider_config = Some(path);
            config.encryption_provider_config_automatic_reload = true;
        })
        .await;
    wait_for(&cluster, "kimg_store_sealed_objects{key=\"secretbox:v1:one\"}").await;
    create(&cluster, "late").await;
    assert!(!log_has(&cluster, PLAIN), "what was plain is sealed, and gone from the log");
    intact(&cluster, "early").await;

    write(&file, providers(&format!("{two}, {one}, {{identity: {{}}}}")));
    wait_for(&cluster, "apiserver_encryption_config_controller_automatic_reloads_total{status=\"success\"} 1").await;
    wait_for(&cluster, "kimg_store_sealed_objects{key=\"aesgcm:v1:two\"}").await;
    assert!(!metric(&cluster, "kimg_store_sealed_objects{key=\"secretbox").await, "nothing needs the old key");
    assert!(!log_has(&cluster, "secretbox:v1:one") && !log_has(&cluster, PLAIN));
    intact(&cluster, "early").await;
    intact(&cluster, "late").await;

    // Keys that do not open what is stored are refused, and so is nonsense; the server goes on.
    write(&file, providers(&one));
    wait_for(&cluster, "apiserver_encryption_config_controller_automatic_reloads_total{status=\"failure\"} 1").await;
    create(&cluster, "later").await;
    intact(&cluster, "late").await;
    write(&file, providers(&two));
    wait_for(&cluster, "apiserver_encryption_config_controller_automatic_reloads_total{status=\"success\"} 2").await;
    intact(&cluster, "later").await;
    cluster.end().await;

    let error = kube_apiserver::Server::start(config(cluster.dir())).await.unwrap_err().to_string();
    assert!(error.contains("/core/secrets/default/") && error.contains("aesgcm:v1:two"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_file_seals_secrets_and_counters_are_shown() {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    let key = cluster.dir().join("encryption.key");
    std::fs::write(&key, [7; 32]).unwrap();
    cluster.begin_with(|config| config.encryption_key_file = Some(key)).await;
    create(&cluster, "a").await;
    assert!(!log_has(&cluster, PLAIN) && log_has(&cluster, "k8s:enc:xchacha20poly1305:v1:"));
    intact(&cluster, "a").await;
    for counter in ["syncs", "batches", "writes", "written_bytes", "acknowledged_bytes"] {
        let zero = format!("kimg_store_{counter}_total 0");
        let any = format!("kimg_store_{counter}_total ");
        assert!(metric(&cluster, &any).await && !metric(&cluster, &zero).await, "{counter}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_of_two_keys_seals_by_the_first_and_the_other_may_go() {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    let path = cluster.dir().join("encryption.key");
    let (old, new) = ("Ag".to_string() + &"A".repeat(41) + "=\n", "Aw".to_string() + &"A".repeat(41) + "=\n");
    let id = |key: &str| {
        use base64::Engine as _;
        let raw = base64::engine::general_purpose::STANDARD.decode(key.trim()).unwrap();
        format!("xchacha20poly1305:v1:{}", &hex::encode(<sha2::Sha256 as sha2::Digest>::digest(raw))[..8])
    };
    let sealed = |key: &str, count: u32| format!("kimg_store_sealed_objects{{key=\"{}\"}} {count}", id(key));
    std::fs::write(&path, &old).unwrap();
    cluster.begin_with(|config| config.encryption_key_file = Some(path.clone())).await;
    create(&cluster, "a").await;
    cluster.end().await;

    std::fs::write(&path, format!("{new}{old}")).unwrap();
    cluster.begin_with(|config| config.encryption_key_file = Some(path.clone())).await;
    intact(&cluster, "a").await;
    wait_for(&cluster, &sealed(&new, 1)).await;
    for (place, key) in [&new, &old].into_iter().enumerate() {
        wait_for(&cluster, &format!("kimg_store_key_place{{key=\"{}\"}} {}", id(key), place + 1)).await;
    }
    assert!(!metric(&cluster, &sealed(&old, 1)).await, "sealed anew");
    create(&cluster, "b").await;
    cluster.end().await;

    std::fs::write(&path, &old).unwrap();
    let mut only_old = config(cluster.dir());
    only_old.encryption_key_file = Some(path.clone());
    let error = kube_apiserver::Server::start(only_old).await.unwrap_err().to_string();
    assert!(error.contains(&id(&new)), "the old key opens nothing any more: {error}");

    std::fs::write(&path, &new).unwrap();
    cluster.begin_with(|config| config.encryption_key_file = Some(path.clone())).await;
    intact(&cluster, "a").await;
    intact(&cluster, "b").await;
    cluster.end().await;
}
