//! Fan-out: from a write to those who watch.

use crate::client::{Call, Client, Connection, Protocol};
use crate::engine::Engine;
use crate::figures::{Figures, say};
use crate::load::percentile;
use crate::requests;
use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const WRITES: usize = 60;
/// Watches of one namespace's ConfigMaps, on as many connections as are needed.
pub struct Watches {
    _connections: Vec<Connection>,
    streams: Vec<Incoming>,
}

/// Opens watches; the namespace should be empty, as its objects would be the first events.
pub async fn open(client: &Client, space: &str, count: usize, per_connection: usize) -> Result<Watches> {
    let path = format!("/api/v1/namespaces/{space}/configmaps?watch=1&timeoutSeconds=600");
    let (mut connections, mut streams) = (Vec::new(), Vec::new());
    while streams.len() < count {
        let mut connection = client.connect().await?;
        for _ in 0..per_connection {
            let response = connection.open(&Call::get(&path)).await?;
            ensure!(response.status().is_success(), "a watch was answered with {}", response.status());
            streams.push(response.into_body());
        }
        connections.push(connection);
    }
    Ok(Watches { _connections: connections, streams })
}

/// Time from each write to each watcher: from the request, and from its answer.
async fn fan_out(engine: &Engine, count: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let client = Client::new(&engine.server, Protocol::Http2)?;
    let space = format!("watched-{count}");
    requests::namespace(&client, &space).await?;
    let watches = open(&client, &space, count, count.min(100)).await?;
    let (tell, mut told) = mpsc::unbounded_channel::<Instant>();
    for mut stream in watches.streams {
        let tell = tell.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = stream.frame().await {
                // An event may come in pieces; its end is the line's.
                let ends = frame.data_ref().is_some_and(|data| data.ends_with(b"\n"));
                if ends && tell.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }
    let mut writer = client.connect().await?;
    let path = format!("/api/v1/namespaces/{space}/configmaps");
    let (mut from_request, mut from_answer) = (Vec::new(), Vec::new());
    for i in 0..WRITES {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("w-{count}-{i}")},
            "data": {"text": "x".repeat(900)},
        });
        let call = Call::new(Method::POST, &path, map.to_string());
        let asked = Instant::now();
        writer.call(&call).await?;
        let answered = Instant::now();
        for _ in 0..count {
            let seen = tokio::time::timeout(Duration::from_secs(10), told.recv()).await;
            let seen = seen.context("a watcher saw nothing for 10 s")?.context("the watchers are gone")?;
            from_request.push(seen.duration_since(asked));
            from_answer.push(seen.saturating_duration_since(answered));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    from_request.sort_unstable();
    from_answer.sort_unstable();
    Ok((from_request, from_answer))
}

pub async fn run(figures: &mut Figures) -> Result<()> {
    let engine = Engine::embedded()?;
    for (name, count) in [("one", 1), ("1000", 1000)] {
        let (from_request, from_answer) = fan_out(&engine, count).await?;
        for (what, sorted) in [("request", from_request), ("answer", from_answer)] {
            figures.put(format!("watch.{name}.from_{what}_p50_ms"), percentile(&sorted, 0.5));
            figures.put(format!("watch.{name}.from_{what}_p99_ms"), percentile(&sorted, 0.99));
        }
    }
    say("");
    figures.against("watch.one.from_answer_p99_ms", 5.0, "ms");
    figures.against("watch.1000.from_answer_p99_ms", 50.0, "ms");
    figures.against("watch.1000.from_request_p99_ms", 50.0, "ms");
    Ok(())
}
