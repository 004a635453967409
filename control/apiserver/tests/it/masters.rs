//! Several servers on one etcd, each in a process of its own.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Cluster, arguments};
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
    let version = first.client.get(SLICE).await.expect(200)["metadata"]["resourceVersion"].clone();
    let watched = SLICE.replace("/kubernetes", "?watch=1&fieldSelector=metadata.name%3Dkubernetes&resourceVersion=");
    let mut events = first.client.watch(&format!("{watched}{}", version.as_str().unwrap())).await;
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
