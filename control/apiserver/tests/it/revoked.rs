//! Credentials that are taken back are refused, also on what is open; others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Cluster, Events, ca, leaf};

const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

async fn revoke(cluster: &Cluster, key: &str, value: &str) {
    let patch =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kimg-revoked"}, "data": {key: value}});
    let path = format!("{MAPS}/kimg-revoked?fieldManager={key}");
    let answer = cluster.patch(&path, "apply-patch+yaml", patch).await;
    assert!(answer.code < 300, "{}", String::from_utf8_lossy(&answer.body));
}

/// Whether the watch ends without having told anything of `name`.
async fn ends_before(mut events: Events, name: &str) -> bool {
    while let Some((_, object)) = events.try_next().await {
        if object["metadata"]["name"] == name {
            return false;
        }
    }
    true
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_is_refused_at_once_and_nobody_else_is() {
    let cluster = Cluster::start().await;
    let (leaked, fingerprint) = cluster.client("kubernetes-admin", "system:masters", 1_700_000_000);
    let (renewed, _) = cluster.client("kubernetes-admin", "system:masters", 1_700_000_001);
    let (old, _) = cluster.client("joe", "system:masters", 1_700_000_000);
    let (new, _) = cluster.client("joe", "system:masters", 1_700_000_001);
    for client in [&leaked, &renewed, &old, &new] {
        client.get("/api/v1/nodes").await.expect(200);
    }
    // Somebody asks all the while.
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let others = tokio::spawn({
        let (stop, asked) = (stop.clone(), asked.clone());
        let (renewed, _) = cluster.client("kubernetes-admin", "system:masters", 1_700_000_002);
        async move {
            while !stop.load(Ordering::SeqCst) {
                renewed.get("/api/v1/nodes").await.expect(200);
                asked.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let watch = |client: &Cluster| {
        let path = format!("{MAPS}?watch=1&timeoutSeconds=60");
        let client = client.at_same_port();
        async move { client.watch(&path).await }
    };
    let (open, other) = (watch(&leaked).await, watch(&renewed).await);

    revoke(&cluster, &format!("certificate.{fingerprint}"), "kubernetes-admin").await;
    assert_eq!(leaked.get("/api/v1/nodes").await.failure(), (401, "Unauthorized".into()));
    renewed.get("/api/v1/nodes").await.expect(200);
    cluster.post(MAPS, map("after")).await.expect(201);
    assert!(ends_before(open, "after").await, "the watch of what was taken back went on");
    assert!(!ends_before(other, "after").await, "another's watch ended");

    let user = format!("user.{}", hex::encode(Sha256::digest("joe")));
    revoke(&cluster, &user, "2023-11-14T22:13:21Z joe").await;
    assert_eq!(old.get("/api/v1/nodes").await.failure(), (401, "Unauthorized".into()));
    new.get("/api/v1/nodes").await.expect(200);

    let before = asked.load(Ordering::SeqCst);
    while asked.load(Ordering::SeqCst) == before && !others.is_finished() {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    others.await.expect("nobody else was interrupted");
}

/// As a node's components do it: nothing but the file changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_its_own_certificate_s_and_not_that_of_an_earlier_one() {
    let cluster = Cluster::start().await;
    let (old, _) = cluster.client("joe", "system:masters", 1_700_000_000);
    let (new, _) = cluster.client("joe", "system:masters", 1_700_000_001);
    let (client, renew) = old.renewed_to(&new);
    for _ in 0..3 {
        client.get("/api/v1/nodes").await.expect(200);
    }
    renew();
    let user = format!("user.{}", hex::encode(Sha256::digest("joe")));
    revoke(&cluster, &user, "2023-11-14T22:13:21Z joe").await;
    client.get("/api/v1/nodes").await.expect(200);
}

/// As the cluster's own manifest lets them, by the requests of a watch of this one object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_the_registry_follow_the_list_and_read_no_other_config_map() {
    let cluster = Cluster::start().await;
    let manifest = include_str!("../../../../images/manifests/10-rbac.yaml");
    let documents = serde_yaml_ng::Deserializer::from_str(manifest)
        .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap());
    for object in documents.filter(|object| object["metadata"]["name"] == "kimg:revoked") {
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/{kind}s");
        cluster.post(&path, object).await.expect(201);
    }
    let list = format!("{MAPS}?fieldSelector=metadata.name%3Dkimg-revoked");
    for (user, group) in [("system:node:w", "system:nodes"), ("kimg:registry", "x")] {
        let (client, _) = cluster.client(user, group, 1_700_000_000);
        client.get(&list).await.expect(200);
        let mut events = client.watch(&format!("{list}&watch=1&timeoutSeconds=60")).await;
        cluster.post(MAPS, map("other")).await.expect(201);
        revoke(&cluster, &format!("certificate.{}", user.replace(':', "-")), "x").await;
        assert_eq!(events.next().await.unwrap().1["metadata"]["name"], "kimg-revoked", "{user}");
        for other in [MAPS.to_owned(), format!("{MAPS}/other")] {
            assert_eq!(client.get(&other).await.code, 403, "{user}: {other}");
        }
        cluster.delete(&format!("{MAPS}/other")).await.expect(200);
    }
    let (stranger, _) = cluster.client("joe", "x", 1_700_000_000);
    assert_eq!(stranger.get(&list).await.code, 403);
}

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_key_before_are_taken_until_it_leaves_the_trust() {
    let keys = tempfile::tempdir().unwrap();
    let (old, new) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    for (name, key) in [("old", &old), ("new", &new)] {
        std::fs::write(keys.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    // As an image has them: one file, the key of now first.
    std::fs::write(keys.path().join("both.pub"), new.public_key_pem() + &old.public_key_pem()).unwrap();
    std::fs::write(keys.path().join("new.pub"), new.public_key_pem()).unwrap();
    let at = |name: &str| keys.path().join(name);
    let mut cluster = Cluster::start_with(|config| config.service_account_signing_key_file = Some(at("old.key"))).await;
    cluster.post(ACCOUNTS, json!({"metadata": {"name": "app"}})).await.expect(201);
    async fn token(cluster: &Cluster) -> String {
        let request = json!({"spec": {"expirationSeconds": 3600}});
        let answer = cluster.post(&format!("{ACCOUNTS}/app/token"), request).await.expect(201);
        format!("Bearer {}", answer["status"]["token"].as_str().unwrap())
    }
    async fn code(cluster: &Cluster, token: &str) -> u16 {
        cluster.get_as_stranger("/api", &[("authorization", token)]).await.code
    }
    let before = token(&cluster).await;
    assert_eq!(code(&cluster, &before).await, 200);
    cluster.end().await;

    let begun = |config: &mut kube_apiserver::Config| {
        config.service_account_signing_key_file = Some(at("new.key"));
        config.service_account_key_file = vec![at("both.pub")];
    };
    cluster.begin_with(begun).await;
    let after = token(&cluster).await;
    assert_eq!((code(&cluster, &before).await, code(&cluster, &after).await), (200, 200));
    cluster.end().await;

    let finished = |config: &mut kube_apiserver::Config| {
        config.service_account_signing_key_file = Some(at("new.key"));
        config.service_account_key_file = vec![at("new.pub")];
    };
    cluster.begin_with(finished).await;
    assert_eq!((code(&cluster, &before).await, code(&cluster, &after).await), (401, 200));
    cluster.end().await;
}

/// Three images: the next authority in trust, then signing, then alone. Both are called the same, as a cluster's are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_authority_takes_the_place_of_the_one_before_and_who_trusts_both_is_never_refused() {
    let files = tempfile::tempdir().unwrap();
    let ((old_pem, old), (new_pem, new)) = (ca(), ca());
    for (name, authority) in [("old", &old), ("new", &new)] {
        let (certificate, key) = leaf(authority, "kube-apiserver", None, &["127.0.0.1"]);
        std::fs::write(files.path().join(format!("{name}.crt")), certificate).unwrap();
        std::fs::write(files.path().join(format!("{name}.key")), key).unwrap();
    }
    let both = format!("{old_pem}{new_pem}");
    // Those of before, those of nodes and kubeconfigs in between, those of afterwards.
    let asked = |cluster: &Cluster| {
        let clients = [(&old, &old_pem), (&old, &both), (&new, &both), (&new, &new_pem)];
        let clients = clients.map(|(authority, trusts)| cluster.admin_of(authority, trusts));
        async move {
            let mut codes = Vec::new();
            for client in clients {
                let answer = client.try_raw("GET", "/api/v1/nodes", &[], "").await;
                codes.push(answer.map_or(0, |answer| answer.status().as_u16()));
            }
            codes
        }
    };
    let image = |signs: &str, trusts: String| {
        let (certificate, key) = (files.path().join(format!("{signs}.crt")), files.path().join(format!("{signs}.key")));
        let trusted = files.path().join("trusted.crt");
        move |config: &mut kube_apiserver::Config| {
            std::fs::write(&trusted, trusts).unwrap();
            (config.tls_cert_file, config.tls_private_key_file) = (certificate, key);
            config.client_ca_file = Some(trusted);
        }
    };
    let mut cluster = Cluster::start_with(image("old", old_pem.clone())).await;
    assert_eq!(asked(&cluster).await, [200, 200, 401, 0]);
    cluster.end().await;

    cluster.begin_with(image("old", both.clone())).await;
    assert_eq!(asked(&cluster).await, [200, 200, 200, 0]);
    cluster.end().await;

    let signing = format!("{new_pem}{old_pem}");
    cluster.begin_with(image("new", signing.clone())).await;
    assert_eq!(asked(&cluster).await, [0, 200, 200, 200]);
    // What aggregated API servers and webhooks take clients by.
    let admin = cluster.admin_of(&new, &new_pem);
    let told = admin.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await;
    assert_eq!(told.expect(200)["data"]["client-ca-file"], signing.as_str());
    cluster.end().await;

    cluster.begin_with(image("new", new_pem.clone())).await;
    assert_eq!(asked(&cluster).await, [0, 401, 200, 200]);
    cluster.end().await;
}
