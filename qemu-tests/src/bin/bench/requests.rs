//! Rates: create, get, list, update, patch and delete of ConfigMaps and Pods.

use crate::client::{Call, Client, Protocol};
use crate::engine::Engine;
use crate::figures::{Figures, PEER, say};
use crate::load::{self, Measured};
use anyhow::{Context, Result};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

/// Objects in each list that is read.
const LISTED: usize = 2000;

/// A kind under load.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    plural: &'static str,
    make: fn(&str) -> Value,
}

pub const KINDS: [Kind; 2] = [
    Kind { name: "configmap", plural: "configmaps", make: config_map },
    Kind { name: "pod", plural: "pods", make: pod },
];

/// A ConfigMap of 1 KiB.
fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(920)}})
}

/// A Pod as a small Deployment makes it.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web", "pod-template-hash": "5d59d67564"}},
        "spec": {"nodeName": "", "containers": [{
            "name": "web", "image": "example.com/web:1.2.3",
            "ports": [{"containerPort": 8080}],
            "env": [{"name": "MODE", "value": "production"}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        }]},
    })
}

impl Kind {
    fn collection(self, namespace: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/{}", self.plural)
    }

    fn create(self, namespace: &str, name: &str) -> Call {
        Call::new(Method::POST, self.collection(namespace), (self.make)(name).to_string())
    }
}

/// A namespace in which pods can be made.
pub async fn namespace(client: &Client, name: &str) -> Result<()> {
    let mut connection = client.connect().await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    connection.call(&Call::new(Method::POST, "/api/v1/namespaces", namespace.to_string())).await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
    connection.call(&Call::new(Method::POST, path, account.to_string())).await.map(|_| ())
}

/// Makes `count` objects `o-0`, `o-1`, ….
pub async fn fill(client: &Client, engine: &Engine, kind: Kind, space: &str, count: usize) -> Result<Measured> {
    let space = space.to_owned();
    let make = move |i| (i < count).then(|| kind.create(&space, &format!("o-{i}")));
    load::run(client, 16, Duration::from_secs(600), &engine.processes()?, make).await
}

/// All rates of one engine.
pub async fn run(engine: &Engine, time: Duration, widths: &[usize], figures: &mut Figures) -> Result<()> {
    let any = Client::new(&engine.server, Protocol::Http2)?;
    namespace(&any, "lists").await?;
    for kind in KINDS {
        fill(&any, engine, kind, "lists", LISTED).await.context("filling the lists")?;
    }
    say(&format!(
        "{:<9}{:<6}{:>4}  {:<10}{:<7}{:>9}{:>9}{:>9}{:>9}{:>8}{:>9}",
        "engine", "http", "conn", "kind", "verb", "req/s", "p50 ms", "p90 ms", "p99 ms", "cpu ms", "B/req"
    ));
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = Client::new(&engine.server, protocol)?;
        for width in widths {
            for kind in KINDS {
                let space = format!("{}-{width}-{}", protocol.name(), kind.name);
                namespace(&client, &space).await?;
                let run = Run { engine, client: &client, protocol, width: *width, kind, space: &space, time };
                run.verbs(figures).await.with_context(|| format!("{space} on {}", engine.name))?;
            }
        }
    }
    compare(engine.name, figures);
    Ok(())
}

struct Run<'a> {
    engine: &'a Engine,
    client: &'a Client,
    protocol: Protocol,
    width: usize,
    kind: Kind,
    space: &'a str,
    time: Duration,
}

impl Run<'_> {
    async fn measure(
        &self,
        verb: &str,
        figures: &mut Figures,
        make: impl Fn(usize) -> Option<Call> + Send + Sync + 'static,
    ) -> Result<usize> {
        let before = counters(self.client).await?;
        let measured = load::run(self.client, self.width, self.time, &self.engine.processes()?, make).await?;
        let after = counters(self.client).await?;
        let name = format!("{}.{}.c{}.{}.{verb}", self.engine.name, self.protocol.name(), self.width, self.kind.name);
        for (what, value) in [
            ("per_second", measured.per_second),
            ("p50_ms", measured.p50_ms),
            ("p90_ms", measured.p90_ms),
            ("p99_ms", measured.p99_ms),
            ("cpu_ms", measured.cpu_ms),
            ("written_bytes", measured.written),
        ] {
            figures.put(format!("{name}.{what}"), value);
        }
        // Of the embedded store only, and of requests that write.
        if after.writes > before.writes {
            let writes = after.writes - before.writes;
            figures.put(format!("{name}.syncs_per_write"), (after.syncs - before.syncs) / writes);
            let bytes = (after.written - before.written) / (after.acknowledged - before.acknowledged);
            figures.put(format!("{name}.bytes_per_acknowledged_byte"), bytes);
        }
        say(&format!(
            "{:<9}{:<6}{:>4}  {:<10}{:<7}{:>9.0}{:>9.2}{:>9.2}{:>9.2}{:>8.3}{:>9.0}",
            self.engine.name,
            self.protocol.name(),
            self.width,
            self.kind.name,
            verb,
            measured.per_second,
            measured.p50_ms,
            measured.p90_ms,
            measured.p99_ms,
            measured.cpu_ms,
            measured.written
        ));
        Ok(measured.requests)
    }

    async fn verbs(&self, figures: &mut Figures) -> Result<()> {
        let (kind, space) = (self.kind, self.space.to_owned());
        let object = {
            let collection = kind.collection(&space);
            move |i: usize| format!("{collection}/o-{i}")
        };
        let created = {
            let space = space.clone();
            self.measure("create", figures, move |i| Some(kind.create(&space, &format!("o-{i}")))).await?
        };
        let named = object.clone();
        self.measure("get", figures, move |i| Some(Call::get(named(i * 7919 % created)))).await?;
        let lists = kind.collection("lists");
        self.measure("list", figures, move |_| Some(Call::get(&lists))).await?;
        self.update(figures, created, object.clone()).await?;
        let named = object.clone();
        self.measure("patch", figures, move |i| {
            let body = format!(r#"{{"metadata":{{"labels":{{"n":"{i}"}}}}}}"#);
            let mut call = Call::new(Method::PATCH, named(i % created), body);
            call.content_type = "application/merge-patch+json";
            Some(call)
        })
        .await?;
        let named = object;
        let now = r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}"#;
        self.measure("delete", figures, move |i| {
            (i < created).then(|| Call::new(Method::DELETE, named(i), Bytes::from_static(now.as_bytes())))
        })
        .await?;
        let rest = Call::new(Method::DELETE, kind.collection(&space), Bytes::from_static(now.as_bytes()));
        self.client.connect().await?.call(&rest).await.map(|_| ())
    }

    /// Writes whole objects with one annotation changed, as they were read before, without a version.
    async fn update(&self, figures: &mut Figures, created: usize, named: impl Fn(usize) -> String) -> Result<()> {
        let mut connection = self.client.connect().await?;
        let mut bodies = Vec::new();
        for i in 0..created.min(256) {
            let path = named(i);
            let mut object: Value = serde_json::from_slice(&connection.fetch(&Call::get(&path)).await?)?;
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
                metadata.insert("annotations".into(), json!({"n": "@@@@@@"}));
            }
            bodies.push((path, object.to_string()));
        }
        self.measure("update", figures, move |i| {
            let (path, body) = &bodies[i % bodies.len()];
            Some(Call::new(Method::PUT, path, body.replace("@@@@@@", &format!("{i:06}"))))
        })
        .await
        .map(|_| ())
    }
}

/// What the embedded store counts; zero where it is another one.
#[derive(Debug, Default)]
struct Counters {
    writes: f64,
    syncs: f64,
    acknowledged: f64,
    written: f64,
}

async fn counters(client: &Client) -> Result<Counters> {
    let bytes = client.connect().await?.fetch(&Call::get("/metrics")).await.context("reading /metrics")?;
    let text = String::from_utf8_lossy(&bytes);
    let value = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|v| v.parse().ok()).unwrap_or(0.0)
    };
    Ok(Counters {
        writes: value("kimg_store_writes_total"),
        syncs: value("kimg_store_syncs_total"),
        acknowledged: value("kimg_store_acknowledged_bytes_total"),
        written: value("kimg_store_written_bytes_total"),
    })
}

/// The peer's figures are of 16 connections.
fn compare(engine: &str, figures: &mut Figures) {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for (name, theirs) in PEER {
            let full = format!("{engine}.{}.c16.{name}", protocol.name());
            let Some(ours) = figures.get(&full) else { continue };
            let ratio = if name.ends_with("_ms") { theirs / ours } else { ours / theirs };
            let demanded = if name.contains(".list.") { 10.0 } else { 3.0 };
            figures.put(format!("{full}.peer"), *theirs);
            figures.put(format!("{full}.ratio"), ratio);
            let held = if ratio >= demanded { "held" } else { "MISSED" };
            say(&format!("{full:<48}{ours:>10.2}  peer {theirs:>8.2}  {ratio:>6.2}x of {demanded}x {held}"));
        }
    }
}
