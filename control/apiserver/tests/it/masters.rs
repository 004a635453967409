//! Several servers on one etcd, each in a process of its own.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use store::{Etcd, EtcdOptions, Key, Keyring, Members, Sealed, Store as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::client::{Answer, Cluster, arguments};
use crate::customs::{CRDS, FOOS, crd, established, established_in, foo};
use crate::etcd::flags;
use crate::kept::until;

const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

/// A server in a process of its own, as the program would run; ends with this.
struct Master {
    process: Child,
    client: Cluster,
}

impl Drop for Master {
    fn drop(&mut self) {
        // One that has ended by itself is gone as well.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Master {
    /// Begins the server whose address is 192.0.2.`number`.
    fn begin(cluster: &Cluster, number: u8, flags: &[String]) -> Master {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let own = cluster.dir().join(format!("store-{number}"));
        let mut all = arguments(cluster.dir(), port);
        all.retain(|flag| !flag.starts_with("--store-dir="));
        all.extend([format!("--store-dir={}", own.display()), format!("--advertise-address=192.0.2.{number}")]);
        all.extend(flags.iter().cloned());
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "etcd::command", "--nocapture"])
            .env(crate::etcd::COMMAND, all.join("\n"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Master { process, client: cluster.at(port) }
    }

    async fn ready(&self) {
        for _ in 0..1200 {
            let answer = self.client.try_raw("GET", "/readyz", &[], "").await;
            if answer.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server did not start");
    }

    /// Tells it to end, and waits until it has.
    async fn end(mut self) {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(told.success());
        let ended = tokio::task::spawn_blocking(move || self.process.wait().unwrap()).await.unwrap();
        assert!(ended.success(), "{ended}");
    }
}

/// Servers that begin at the same moment, on an etcd that has nothing.
async fn masters(cluster: &Cluster, flags: &[String], numbers: &[u8]) -> Vec<Master> {
    let masters: Vec<Master> = numbers.iter().map(|number| Master::begin(cluster, *number, flags)).collect();
    for master in &masters {
        master.ready().await;
    }
    masters
}

/// Certificates and an administrator, and no server.
async fn authority() -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    cluster
}

fn in_slice(slice: &Value) -> Vec<&str> {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str()).collect()
}

fn in_endpoints(endpoints: &Value) -> Vec<&str> {
    let addresses = endpoints["subsets"][0]["addresses"].as_array().into_iter().flatten();
    addresses.filter_map(|address| address["ip"].as_str()).collect()
}

async fn until_servers_are(client: &Cluster, wanted: &[&str]) {
    until(client, SLICE, |slice| in_slice(slice) == wanted).await;
    until(client, ENDPOINTS, |endpoints| in_endpoints(endpoints) == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoints_are_the_servers_that_live() {
    let etcd = test_etcd::Etcd::start(1);
    let (cluster, flags) = (authority().await, flags(&etcd));
    let mut three = masters(&cluster, &flags, &[1, 2, 3]).await;
    let (third, mut second, first) = (three.pop().unwrap(), three.pop().unwrap(), three.pop().unwrap());
    until_servers_are(&first.client, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]).await;

    // One that is killed leaves with its lease; no server that lives leaves meanwhile, and no list is empty.
    let slices = SLICE.trim_end_matches("/kubernetes");
    let list = first.client.get(slices).await.expect(200);
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = first
        .client
        .watch(&format!("{slices}?watch=1&fieldSelector=metadata.name%3Dkubernetes&resourceVersion={version}"))
        .await;
    second.process.kill().unwrap();
    let (_, slice) = events.next().await.unwrap();
    assert_eq!(in_slice(&slice), ["192.0.2.1", "192.0.2.3"]);
    until_servers_are(&first.client, &["192.0.2.1", "192.0.2.3"]).await;

    // One that ends well has left when it is gone.
    third.end().await;
    let slice = first.client.get(SLICE).await.expect(200);
    assert_eq!(in_slice(&slice), ["192.0.2.1"]);
    assert_eq!(in_endpoints(&first.client.get(ENDPOINTS).await.expect(200)), ["192.0.2.1"]);

    // One that begins puts nobody out.
    let second = Master::begin(&cluster, 2, &flags);
    second.ready().await;
    until_servers_are(&second.client, &["192.0.2.1", "192.0.2.2"]).await;
    let patch = json!({"endpoints": [{"addresses": ["192.0.2.9"]}]});
    first.client.patch(SLICE, "merge-patch+json", patch).await.expect(200);
    until_servers_are(&first.client, &["192.0.2.1", "192.0.2.2"]).await;

    // The last one leaves the list as it is: an empty one would lead nobody anywhere.
    second.end().await;
    first.end().await;
    let again = Master::begin(&cluster, 4, &flags);
    again.ready().await;
    let mut names: Vec<String> = Vec::new();
    let slice = again.client.get(SLICE).await.expect(200);
    names.extend(in_slice(&slice).iter().map(ToString::to_string));
    assert!(names == ["192.0.2.1"] || names == ["192.0.2.4"], "{names:?}");
    until_servers_are(&again.client, &["192.0.2.4"]).await;
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}})
}

/// The way from etcd to one server, on which what etcd says can be held up.
struct Gate {
    port: u16,
    held: watch::Sender<bool>,
}

impl Gate {
    async fn new(etcd: &test_etcd::Etcd) -> Gate {
        let to: u16 = etcd.endpoints()[0].rsplit(':').next().unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, held) = (listener.local_addr().unwrap().port(), watch::Sender::new(false));
        let closed = held.subscribe();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(etcd) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
                let ((mut from_server, mut to_server), (mut from_etcd, mut to_etcd)) =
                    (stream.into_split(), etcd.into_split());
                // Either side may just go away.
                tokio::spawn(async move { drop(tokio::io::copy(&mut from_server, &mut to_etcd).await) });
                let mut closed = closed.clone();
                tokio::spawn(async move {
                    let mut piece = vec![0; 16 << 10];
                    while let Ok(length @ 1..) = from_etcd.read(&mut piece).await {
                        if closed.wait_for(|held| !*held).await.is_err()
                            || to_server.write_all(&piece[..length]).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        Gate { port, held }
    }

    /// What a server is asked that has not heard of `written` yet.
    async fn behind(&self, written: impl Future<Output = ()>, asked: impl Future<Output = Answer>) -> Answer {
        self.held.send_replace(true);
        written.await;
        let mut asked = std::pin::pin!(asked);
        let early = tokio::select! {
            answer = &mut asked => Some(answer),
            // It waits for etcd; one that does not has answered by now.
            () = tokio::time::sleep(Duration::from_millis(400)) => None,
        };
        self.held.send_replace(false);
        match early {
            Some(answer) => answer,
            None => asked.await,
        }
    }
}

/// What one server has answered holds on every other one, however far its memory is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_behind_asks_before_it_refuses() {
    let etcd = test_etcd::Etcd::start(1);
    let (cluster, flags) = (authority().await, flags(&etcd));
    let gate = Gate::new(&etcd).await;
    let mut through = flags.clone();
    through[0] = format!("--etcd-servers=https://127.0.0.1:{}", gate.port);
    let (near, far) = (Master::begin(&cluster, 1, &flags), Master::begin(&cluster, 2, &through));
    near.ready().await;
    far.ready().await;
    let (near, far) = (&near.client, &far.client);

    let made = async { drop(near.post(MAPS, map("a")).await.expect(201)) };
    gate.behind(made, far.get(&format!("{MAPS}/a"))).await.expect(200);

    // The next page of a list of another server.
    near.post(MAPS, map("b")).await.expect(201);
    let token = tokio::sync::OnceCell::new();
    let listed = async {
        near.post(MAPS, map("c")).await.expect(201);
        let page = near.get(&format!("{MAPS}?limit=1")).await.expect(200);
        token.set(page["metadata"]["continue"].as_str().unwrap().to_string()).unwrap();
    };
    let rest = async { far.get(&format!("{MAPS}?continue={}", token.get().unwrap())).await };
    let rest = gate.behind(listed, rest).await.expect(200);
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().filter_map(|o| o["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["b", "c"]);

    // A right that was given a moment ago.
    let maps = |client: &Cluster| {
        let client = client.at_same_port();
        async move { client.send_as("joe", "GET", MAPS).await }
    };
    assert_eq!(maps(far).await.code, 403);
    let given = async {
        let rights = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        let rules = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]);
        near.post(&format!("{rights}/roles"), json!({"metadata": {"name": "r"}, "rules": rules})).await.expect(201);
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
        let joe = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}]);
        let binding = json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": joe});
        near.post(&format!("{rights}/rolebindings"), binding).await.expect(201);
    };
    gate.behind(given, maps(far)).await.expect(200);

    // A kind that was established a moment ago, and a field that it got a moment ago.
    let defined = async {
        near.post(CRDS, crd()).await.expect(201);
        established(near).await;
    };
    gate.behind(defined, far.post(FOOS, foo("a", json!({"size": 1})))).await.expect(201);
    let changed = async {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"new": {"type": "string"}}}}});
        let mut crd = near.get(&format!("{CRDS}/foos.example.com")).await.expect(200);
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
        crd["spec"]["versions"][0]["subresources"] = Value::Null;
        near.put(&format!("{CRDS}/foos.example.com"), &crd).await.expect(200);
    };
    let made = gate.behind(changed, far.post(FOOS, foo("b", json!({"new": "kept"})))).await.expect(201);
    assert_eq!(made["spec"]["new"], "kept");
    let defined = async {
        let mut other = crd();
        other["metadata"]["name"] = "foos.example.org".into();
        other["spec"]["group"] = "example.org".into();
        near.post(CRDS, other).await.expect(201);
        established_in(near, "example.org").await;
    };
    gate.behind(defined, far.get("/apis/example.org/v1")).await.expect(200);
}

/// What comes after the namespace's end was taken back, or refused: its controller has looked by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_in_what_another_server_is_deleting() {
    let etcd = test_etcd::Etcd::start(1);
    let (cluster, flags) = (authority().await, flags(&etcd));
    let two = masters(&cluster, &flags, &[1, 2]).await;
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let mut refused = 0;
    for round in 0..12 {
        let namespace = format!("n{round}");
        let body = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace}});
        two[0].client.post("/api/v1/namespaces", body).await.expect(201);
        let (path, maps) =
            (format!("/api/v1/namespaces/{namespace}"), format!("/api/v1/namespaces/{namespace}/configmaps"));
        let writes = (0..16).map(|i| {
            let (client, maps) = (&two[i % 2].client, &maps);
            async move { client.post(maps, map(&format!("m{i}"))).await }
        });
        let (answers, ended) = tokio::join!(futures::future::join_all(writes), async {
            two[round % 2].client.delete(&path).await.expect(200)
        });
        let end = version(&ended);
        for answer in answers {
            if answer.code == 201 {
                assert!(version(&answer.json()) < end, "{}", answer.json());
            } else {
                assert_eq!(answer.failure(), (403, "Forbidden".into()));
                refused += 1;
            }
        }
        let left = two[0].client.get(&maps).await.expect(200);
        for object in left["items"].as_array().unwrap() {
            assert!(version(object) < end, "{object}");
        }
    }
    assert!(refused > 0, "some came too late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_on_one_etcd_keep_a_quota_together() {
    let etcd = test_etcd::Etcd::start(1);
    let (cluster, flags) = (authority().await, flags(&etcd));
    let two = masters(&cluster, &flags, &[1, 2]).await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "100"}}});
    two[0].client.post(quotas, quota).await.expect(201);
    let writes = (0..140).map(|i| {
        let client = &two[i % 2].client;
        async move { client.post(MAPS, map(&format!("m{i}"))).await }
    });
    let answers = futures::future::join_all(writes).await;
    let mut codes: Vec<u16> = answers.iter().map(|answer| answer.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [vec![201; 100], vec![403; 40]].concat());
    let quota = two[1].client.get(&format!("{quotas}/q")).await.expect(200);
    assert_eq!(quota["status"]["used"]["configmaps"], "100");
}

/// Each master has a status page, which remembers the links that it has seen itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_the_status_page_is_good_once_on_all_servers() {
    let etcd = test_etcd::Etcd::start(1);
    let (cluster, mut flags) = (authority().await, flags(&etcd));
    let key = cluster.dir().join("sa.key");
    std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    flags.extend(["signing-key", "key"].map(|flag| format!("--service-account-{flag}-file={}", key.display())));
    let two = masters(&cluster, &flags, &[1, 2]).await;
    let accounts = "/api/v1/namespaces/kube-system/serviceaccounts";
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "kimg-status"}});
    two[0].client.post(accounts, account).await.expect(201);
    let token = async |audience: &str| {
        let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"audiences": [audience], "expirationSeconds": 600}});
        let made = two[1].client.post(&format!("{accounts}/kimg-status/token"), request).await.expect(201);
        made["status"]["token"].as_str().unwrap().to_string()
    };
    let knows = async |at: usize, audience: &str, token: &str| {
        let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token, "audiences": [audience]}});
        let answer = two[at].client.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.expect(201);
        answer["status"]["authenticated"] == true
    };
    let link = token("kimg-status").await;
    assert!(knows(0, "kimg-status", &link).await);
    assert!(!knows(1, "kimg-status", &link).await && !knows(0, "kimg-status", &link).await);
    assert!(knows(1, "kimg-status", &token("kimg-status").await).await);
    let other = token("other").await;
    assert!(knows(0, "other", &other).await && knows(1, "other", &other).await);
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// What a server with both keys says: the first one seals, and the other one has sealed nothing.
async fn until_all_is_sealed_by(first: &str, other: &str, server: &Cluster) {
    let (place, left) = (
        format!("kimg_store_key_place{{key=\"{first}\"}} 1\n"),
        format!("kimg_store_sealed_objects{{key=\"{other}\"}}"),
    );
    for _ in 0..300 {
        let said = server.get("/metrics").await.body;
        let said = String::from_utf8_lossy(&said);
        if said.contains(&place) && !said.contains(&left) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("something is still sealed by {other}");
}

/// Servers start one after the other, each on its own member of etcd: with the next key behind the old one, in front of
/// it, and alone; and back again, as far as `kimg roll --rollback` goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_seals_step_by_step_and_every_server_opens_all_at_every_moment() {
    const COUNT: usize = 40;
    let etcd = test_etcd::Etcd::start(3);
    let cluster = authority().await;
    let keys = [[1; 32], [2; 32]].map(|raw| (STANDARD.encode(raw) + "\n", Key::from_file(&raw).unwrap()));
    let [(old, old_key), (new, new_key)] = &keys;
    let begin = |number: u8, keys: &str| {
        let file = cluster.dir().join(format!("encryption-{number}.key"));
        std::fs::write(&file, keys).unwrap();
        let mut flags = flags(&etcd);
        flags[0] = format!("--etcd-servers={}", etcd.endpoints()[usize::from(number)]);
        flags.push(format!("--encryption-key-file={}", file.display()));
        Master::begin(&cluster, number, &flags)
    };
    let two = vec![begin(1, old), begin(2, old)];
    for server in &two {
        server.ready().await;
    }
    for number in 0..COUNT {
        let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": format!("s{number}")}});
        two[0].client.post(SECRETS, secret).await.expect(201);
    }
    let (servers, ended) = (tokio::sync::RwLock::new(two), AtomicBool::new(false));
    let rounds = async {
        let mut round = 0;
        while !ended.load(Ordering::Relaxed) {
            // Who takes a server away waits for the round's end.
            let servers = servers.read().await;
            let (path, value) = (format!("{SECRETS}/s{}", round % COUNT), STANDARD.encode(round.to_string()));
            let patch = json!({"data": {"round": value}});
            servers[round % servers.len()].client.patch(&path, "merge-patch+json", patch).await.expect(200);
            for Master { client, .. } in servers.iter() {
                assert_eq!(client.get(&path).await.expect(200)["data"]["round"], value);
                let list = client.get(SECRETS).await.expect(200);
                assert_eq!(list["items"].as_array().unwrap().len(), COUNT);
            }
            round += 1;
        }
        round
    };
    let (known, sealing) = (format!("{old}{new}"), format!("{new}{old}"));
    let steps = async {
        for keys in [&known, old, &known, &sealing, &known, &sealing, new, &sealing, new] {
            if keys == new {
                for server in servers.read().await.iter() {
                    until_all_is_sealed_by(new_key.id(), old_key.id(), &server.client).await;
                }
            }
            for number in [1, 2] {
                let before = servers.write().await.remove(0);
                before.end().await;
                let after = begin(number, keys);
                after.ready().await;
                servers.write().await.push(after);
            }
        }
        ended.store(true, Ordering::Relaxed);
    };
    let (rounds, ()) = tokio::join!(rounds, steps);
    assert!(rounds > COUNT, "each was written: {rounds}");

    let members = Members {
        endpoints: etcd.endpoints(),
        ca_file: Some(etcd.file("ca.crt")),
        cert_file: Some(etcd.file("client.crt")),
        key_file: Some(etcd.file("client.key")),
    };
    let raw = Arc::new(Etcd::open(EtcdOptions { members, ..EtcdOptions::default() }).await.unwrap());
    let (entries, _) = raw.range("/core/secrets/default/", "", 0).await.unwrap();
    assert_eq!(entries.len(), COUNT);
    let begin = format!("k8s:enc:{}:", new_key.id());
    assert!(entries.iter().all(|entry| entry.value.starts_with(begin.as_bytes())));
    let stolen = Keyring::single(Key::from_file(&[1; 32]).unwrap(), "/core/secrets/");
    let refused = Sealed::open(raw, stolen).await.unwrap_err().to_string();
    assert!(refused.contains(new_key.id()), "the old key opens nothing any more: {refused}");
}
