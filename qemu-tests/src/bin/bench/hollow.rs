//! A crowd of hollow nodes: kubelets without containers, each with its own identity and connection, against one
//! control plane. They register, pods are scheduled to them, and all of them are replaced.
//!
//! `BENCH_NODES` (1000) and `BENCH_PODS` (30 for each node) set how many.

use crate::client::{Call, Client, Connection, Protocol};
use crate::figures::{Figures, say};
use crate::plane::Component;
use crate::process::Process;
use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use qemu_tests::apiserver::Apiserver;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

const SPACE: &str = "crowd";
/// Pods of one Deployment.
const REPLICAS: usize = 100;
/// Nodes replaced at a time: as many come before they go.
const SURGE: usize = 50;
/// Connections that evict.
const EVICTORS: usize = 8;
/// As a kubelet renews its Lease.
const HEARTBEAT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(1);
/// How long a phase may go without a step forward.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the full cluster is left alone.
const QUIET: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Tally {
    /// Pods that were reported running and are not gone.
    running: AtomicUsize,
    throttled: AtomicUsize,
    blocked: AtomicUsize,
    failed: Mutex<Option<String>>,
}

impl Tally {
    fn fail(&self, why: String) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn check(&self) -> Result<()> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    object: Pod,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    deletion_timestamp: Option<String>,
}

/// One kubelet without containers.
struct Hollow {
    name: String,
    number: usize,
    connection: Connection,
    /// Uids of its pods, and whether they were reported running.
    pods: HashMap<String, bool>,
    tally: Arc<Tally>,
}

impl Hollow {
    async fn ask(&mut self, method: Method, path: &str, body: Value) -> Result<(StatusCode, Value)> {
        let merge = method == Method::PATCH;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut call = Call::new(method, path, body);
        if merge {
            call.content_type = "application/strategic-merge-patch+json";
        }
        patiently(&mut self.connection, &call, &self.tally.throttled).await
    }

    async fn must(&mut self, method: Method, path: &str, body: Value) -> Result<Value> {
        let (status, answer) = self.ask(method.clone(), path, body).await?;
        ensure!(status.is_success(), "{}: {method} {path}: {status} {}", self.name, answer["message"]);
        Ok(answer)
    }

    async fn run(mut self) -> Result<()> {
        let resources = json!({"cpu": "4", "memory": "8Gi", "ephemeral-storage": "50Gi", "pods": "110"});
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Hollow", "lastHeartbeatTime": now(), "lastTransitionTime": now()});
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"}},
            "status": {
                "capacity": resources, "allocatable": resources,
                "addresses": [{"type": "InternalIP", "address": self.address()}, {"type": "Hostname", "address": self.name}],
                "conditions": [
                    condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
                    condition("PIDPressure", "False"), condition("Ready", "True"),
                ],
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "hollow://1", "kernelVersion": "6.1",
                    "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "", "operatingSystem": "linux",
                    "osImage": "hollow", "systemUUID": "",
                },
            },
        });
        self.must(Method::POST, "/api/v1/nodes", node).await?;
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let made = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now_micros()},
        });
        self.must(Method::POST, lease, made).await?;
        let lease = format!("{lease}/{}", self.name);
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let path = format!("/api/v1/pods?watch=1&timeoutSeconds=1800&fieldSelector=spec.nodeName%3D{}", self.name);
            let response = self.connection.open(&Call::get(&path)).await?;
            if response.status() == StatusCode::TOO_MANY_REQUESTS {
                self.tally.throttled.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(POLL).await;
                continue;
            }
            ensure!(response.status().is_success(), "{}: the watch was answered with {}", self.name, response.status());
            let (mut body, mut text) = (response.into_body(), Vec::new());
            loop {
                let frame = tokio::select! {
                    frame = body.frame() => frame,
                    _ = beat.tick() => {
                        let patch = json!({"spec": {"renewTime": now_micros()}});
                        self.must(Method::PATCH, &lease, patch).await?;
                        continue;
                    }
                };
                let Some(frame) = frame else { break };
                text.extend_from_slice(frame.context("the watch")?.data_ref().map_or(&[][..], |d| d));
                while let Some(end) = text.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    self.seen(serde_json::from_slice(&line).context("an event")?).await?;
                }
            }
        }
    }

    async fn seen(&mut self, event: Event) -> Result<()> {
        let Metadata { name, uid, deletion_timestamp } = event.object.metadata;
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" if deletion_timestamp.is_some() => {
                let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
                let path = format!("/api/v1/namespaces/{SPACE}/pods/{name}");
                let (status, answer) = self.ask(Method::DELETE, &path, body).await?;
                let gone = [StatusCode::NOT_FOUND, StatusCode::CONFLICT].contains(&status);
                ensure!(status.is_success() || gone, "{}: deleting {name}: {status} {}", self.name, answer["message"]);
            }
            "ADDED" | "MODIFIED" if !self.pods.contains_key(&uid) => {
                self.pods.insert(uid.clone(), false);
                self.start(&name, &uid).await?;
            }
            "DELETED" if self.pods.remove(&uid) == Some(true) => {
                self.tally.running.fetch_sub(1, Ordering::Relaxed);
            }
            "ERROR" => bail!("{}: the watch ended: {}", self.name, event.object.message),
            _ => {}
        }
        Ok(())
    }

    /// What a kubelet asks and tells until a pod runs.
    async fn start(&mut self, name: &str, uid: &str) -> Result<()> {
        let space = format!("/api/v1/namespaces/{SPACE}");
        self.must(Method::GET, &format!("{space}/services"), Value::Null).await?;
        self.must(Method::GET, &format!("{space}/configmaps/kube-root-ca.crt"), Value::Null).await?;
        let bound = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {
                "audiences": [], "expirationSeconds": 3607,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid},
            },
        });
        let path = format!("{space}/serviceaccounts/default/token");
        let (status, answer) = self.ask(Method::POST, &path, bound).await?;
        // Somebody may have deleted the pod meanwhile.
        let gone = [StatusCode::NOT_FOUND, StatusCode::CONFLICT].contains(&status);
        ensure!(status.is_success() || gone, "{}: a token for {name}: {status} {}", self.name, answer["message"]);
        let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": SPACE, "uid": uid});
        for reason in ["Created", "Started"] {
            let event = json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("{name}.{}", reason.to_lowercase())},
                "involvedObject": reference, "reason": reason, "message": "hollow", "type": "Normal",
                "source": {"component": "kubelet", "host": self.name},
                "firstTimestamp": now(), "lastTimestamp": now(), "count": 1,
            });
            self.must(Method::POST, &format!("{space}/events"), event).await?;
        }
        let address = format!("{}.{}", self.network(), self.pods.len() % 250 + 2);
        let conditions: Vec<Value> = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now()}))
            .collect();
        let status = json!({"metadata": {"uid": uid}, "status": {
            "phase": "Running", "startTime": now(), "hostIP": self.address(), "hostIPs": [{"ip": self.address()}],
            "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions,
            "containerStatuses": [{
                "name": "web", "image": "example.com/web:1.2.3", "imageID": "example.com/web@sha256:0", "ready": true,
                "started": true, "restartCount": 0, "containerID": format!("hollow://{uid}"),
                "state": {"running": {"startedAt": now()}},
            }],
        }});
        let (code, answer) = self.ask(Method::PATCH, &format!("{space}/pods/{name}/status"), status).await?;
        let gone = [StatusCode::NOT_FOUND, StatusCode::CONFLICT].contains(&code);
        ensure!(code.is_success() || gone, "{}: the status of {name}: {code} {}", self.name, answer["message"]);
        if code.is_success() {
            self.pods.insert(uid.to_owned(), true);
            self.tally.running.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn network(&self) -> String {
        format!("10.{}.{}", self.number / 250, self.number % 250)
    }

    fn address(&self) -> String {
        format!("{}.1", self.network())
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn now_micros() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Makes a call, again as long as the server has too much to do.
async fn patiently(connection: &mut Connection, call: &Call, throttled: &AtomicUsize) -> Result<(StatusCode, Value)> {
    loop {
        let response = connection.open(call).await.with_context(|| format!("{} {}", call.method, call.path))?;
        let status = response.status();
        let bytes = response.into_body().collect().await.context("an answer")?.to_bytes();
        let answer = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status != StatusCode::TOO_MANY_REQUESTS {
            return Ok((status, answer));
        }
        throttled.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(POLL).await;
    }
}

/// The control plane, its nodes, and the administrator who looks.
struct Crowd {
    server: Apiserver,
    components: Vec<(&'static str, Component)>,
    admin: Connection,
    tally: Arc<Tally>,
    nodes: HashMap<String, JoinHandle<()>>,
    made: usize,
}

impl Crowd {
    async fn start() -> Result<Crowd> {
        let server = Apiserver::start(&["--log-level=warn"])?;
        let path = |name: &str| server.dir().join(name).display().to_string();
        let manager = [
            "--cluster-cidr=10.0.0.0/8".to_owned(),
            format!("--service-account-private-key-file={}", path("sa.key")),
            format!("--root-ca-file={}", path("ca.crt")),
        ];
        let components = vec![
            ("kube-controller-manager", Component::start(&server, "kube-controller-manager", 21_257, &manager)?),
            ("kube-scheduler", Component::start(&server, "kube-scheduler", 21_259, &[])?),
        ];
        let admin = Client::new(&server, Protocol::Http2)?.connect().await?;
        Ok(Crowd { server, components, admin, tally: Arc::default(), nodes: HashMap::new(), made: 0 })
    }

    fn processes(&self) -> Result<Vec<(&'static str, Process)>> {
        let server = Process(self.server.pid().context("the API server does not run")?);
        let others = self.components.iter().map(|(name, component)| (*name, component.process()));
        Ok(std::iter::once(("kube-apiserver", server)).chain(others).collect())
    }

    async fn get(&mut self, path: &str) -> Result<Value> {
        let (status, answer) = patiently(&mut self.admin, &Call::get(path), &self.tally.throttled).await?;
        ensure!(status.is_success(), "GET {path}: {status} {}", answer["message"]);
        Ok(answer)
    }

    async fn send(&mut self, method: Method, path: &str, body: Value) -> Result<()> {
        let call = Call::new(method.clone(), path, body.to_string());
        let (status, answer) = patiently(&mut self.admin, &call, &self.tally.throttled).await?;
        ensure!(status.is_success(), "{method} {path}: {status} {}", answer["message"]);
        Ok(())
    }

    /// New nodes; their names.
    async fn join(&mut self, count: usize) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for _ in 0..count {
            let (number, name) = (self.made, format!("hollow-{}", self.made));
            self.made += 1;
            let who = self.server.issue(&format!("system:node:{name}"), "system:nodes")?;
            let connection = Client::of(&self.server, Protocol::Http2, &who)?.connect().await?;
            let tally = self.tally.clone();
            let node = Hollow { name: name.clone(), number, connection, pods: HashMap::new(), tally: tally.clone() };
            let task = tokio::spawn(async move {
                if let Err(error) = node.run().await {
                    tally.fail(format!("{error:#}"));
                }
            });
            self.nodes.insert(name.clone(), task);
            names.push(name);
        }
        Ok(names)
    }

    /// Looks until `count` gives `wanted`, as long as it goes on.
    async fn until(&mut self, what: &str, wanted: usize, path: &str, count: fn(&Value) -> usize) -> Result<()> {
        let (mut best, mut since) = (0, Instant::now());
        loop {
            self.tally.check()?;
            let items = self.get(path).await?;
            let found = count(&items["items"]);
            if found == wanted {
                return Ok(());
            }
            if found != best {
                (best, since) = (found, Instant::now());
            }
            ensure!(since.elapsed() < PATIENCE, "{what}: {found} of {wanted}, and no other number for {PATIENCE:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ready(&mut self, wanted: usize) -> Result<()> {
        self.until("nodes that take pods", wanted, "/api/v1/nodes", |items| {
            let takes = |node: &&Value| {
                let conditions = node["status"]["conditions"].as_array().map_or(&[][..], |c| c);
                let untainted = node["spec"]["taints"].as_array().is_none_or(Vec::is_empty);
                untainted && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            items.as_array().map_or(0, |items| items.iter().filter(takes).count())
        })
        .await
    }

    async fn available(&mut self, wanted: usize) -> Result<()> {
        let path = format!("/apis/apps/v1/namespaces/{SPACE}/deployments");
        self.until("pods that are available", wanted, &path, |items| {
            let of = |d: &Value| d["status"]["availableReplicas"].as_u64().unwrap_or(0) as usize;
            items.as_array().map_or(0, |items| items.iter().map(of).sum())
        })
        .await
    }

    async fn deploy(&mut self, pods: usize) -> Result<()> {
        for number in 0..pods.div_ceil(REPLICAS) {
            let replicas = REPLICAS.min(pods - number * REPLICAS);
            let (name, labels) = (format!("web-{number}"), json!({"app": format!("web-{number}")}));
            let deployment = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
                "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{
                        "name": "web", "image": "example.com/web:1.2.3", "ports": [{"containerPort": 8080}],
                        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
                    }]},
                }},
            });
            let budget = json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name},
                "spec": {"maxUnavailable": "25%", "selector": {"matchLabels": labels}},
            });
            let path = format!("/apis/policy/v1/namespaces/{SPACE}/poddisruptionbudgets");
            self.send(Method::POST, &path, budget).await?;
            self.send(Method::POST, &format!("/apis/apps/v1/namespaces/{SPACE}/deployments"), deployment).await?;
        }
        Ok(())
    }

    /// Cordons the nodes, evicts their pods, and removes them once those are gone.
    async fn leave(&mut self, names: &[String]) -> Result<()> {
        let mut evictions = Vec::new();
        for name in names {
            let mut cordon =
                Call::new(Method::PATCH, format!("/api/v1/nodes/{name}"), r#"{"spec":{"unschedulable":true}}"#);
            cordon.content_type = "application/merge-patch+json";
            self.admin.call(&cordon).await?;
            let pods = self.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}")).await?;
            for pod in pods["items"].as_array().map_or(&[][..], |p| p) {
                let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
                let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": SPACE}});
                let path = format!("/api/v1/namespaces/{SPACE}/pods/{pod}/eviction");
                evictions.push(Call::new(Method::POST, path, body.to_string()));
            }
        }
        let client = Client::new(&self.server, Protocol::Http2)?;
        let shares = evictions.chunks(evictions.len().div_ceil(EVICTORS).max(1));
        try_join_all(shares.map(|share| {
            let (client, tally) = (&client, &self.tally);
            async move {
                let mut connection = client.connect().await?;
                for call in share {
                    // 429 is also what a budget says that is used up.
                    let (status, answer) = patiently(&mut connection, call, &tally.blocked).await?;
                    let done = status.is_success() || status == StatusCode::NOT_FOUND;
                    ensure!(done, "{}: {status} {}", call.path, answer["message"]);
                }
                anyhow::Ok(())
            }
        }))
        .await?;
        for name in names {
            let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}");
            self.until("pods left on a drained node", 0, &path, |items| items.as_array().map_or(0, Vec::len)).await?;
            self.send(Method::DELETE, &format!("/api/v1/nodes/{name}"), json!({})).await?;
            if let Some(task) = self.nodes.remove(name) {
                task.abort();
            }
        }
        Ok(())
    }
}

/// What the processes have used up to now.
fn used(crowd: &Crowd) -> Result<Vec<Duration>> {
    crowd.processes()?.iter().map(|(_, process)| process.usage().map(|u| u.cpu)).collect()
}

/// Prints a phase, and puts it down.
fn phase(figures: &mut Figures, crowd: &Crowd, name: &str, start: Instant, before: &[Duration]) -> Result<()> {
    let took = start.elapsed().as_secs_f64();
    figures.put(format!("hollow.{name}.seconds"), took);
    let mut line = format!("{name:<12}{took:>8.1} s");
    for ((process, of), (after, before)) in crowd.processes()?.iter().zip(used(crowd)?.iter().zip(before)) {
        let cpu = after.saturating_sub(*before).as_secs_f64();
        let mib = of.pss_kib()? as f64 / 1024.0;
        figures.put(format!("hollow.{name}.{process}.cpu_seconds"), cpu);
        figures.put(format!("hollow.{name}.{process}.memory_mib"), mib);
        line += &format!("   {process} {cpu:.1} s, {mib:.0} MiB");
    }
    say(&line);
    Ok(())
}

pub async fn run(figures: &mut Figures, nodes: usize, pods: usize) -> Result<()> {
    let mut crowd = Crowd::start().await?;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}});
    crowd.send(Method::POST, "/api/v1/namespaces", space).await?;
    say(&format!("{nodes} nodes, {pods} pods; CPU and memory of each process in each phase:"));

    let (start, before) = (Instant::now(), used(&crowd)?);
    let mut old = crowd.join(nodes).await?;
    crowd.ready(nodes).await.context("registering")?;
    phase(figures, &crowd, "registered", start, &before)?;

    let (start, before) = (Instant::now(), used(&crowd)?);
    crowd.deploy(pods).await?;
    crowd.available(pods).await.context("scheduling")?;
    phase(figures, &crowd, "scheduled", start, &before)?;
    figures.put("hollow.scheduled.pods_per_second", pods as f64 / start.elapsed().as_secs_f64());

    let (start, before) = (Instant::now(), used(&crowd)?);
    tokio::time::sleep(QUIET).await;
    crowd.tally.check()?;
    phase(figures, &crowd, "quiet", start, &before)?;

    let (start, before) = (Instant::now(), used(&crowd)?);
    while !old.is_empty() {
        let leaving: Vec<String> = old.drain(..SURGE.min(old.len())).collect();
        crowd.join(leaving.len()).await?;
        crowd.ready(nodes + leaving.len()).await.context("more nodes")?;
        crowd.leave(&leaving).await.context("draining")?;
        crowd.available(pods).await.context("rescheduling")?;
    }
    phase(figures, &crowd, "rolled", start, &before)?;
    let running = crowd.tally.running.load(Ordering::Relaxed);
    ensure!(running == pods, "{running} pods run at the end, and {pods} were wanted");
    for (what, count) in [("throttled", &crowd.tally.throttled), ("blocked_by_a_budget", &crowd.tally.blocked)] {
        figures.put(format!("hollow.{what}"), count.load(Ordering::Relaxed) as f64);
        say(&format!("{what}: {}", count.load(Ordering::Relaxed)));
    }
    Ok(())
}
