//! Memory, start and idle CPU.

use crate::client::{Call, Client, Protocol};
use crate::engine::Engine;
use crate::figures::{Figures, say};
use crate::requests::{self, KINDS};
use crate::watches;
use anyhow::{Context, Result};
use qemu_tests::apiserver::End;
use std::time::Duration;

const PODS: usize = 10_000;
const WATCHES: usize = 1_000;

/// How long a server is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// Memory when idle, with many pods, with many watches; the time to be ready, empty and full.
pub async fn run(figures: &mut Figures) -> Result<()> {
    let mut engine = Engine::embedded()?;
    figures.put("start.empty_ms", engine.server.ready_after.as_secs_f64() * 1000.0);
    let idle = settled(&engine).await?;
    figures.put("memory.idle_mib", idle / 1024.0);

    let client = Client::new(&engine.server, Protocol::Http2)?;
    requests::namespace(&client, "many").await?;
    requests::fill(&client, &engine, KINDS[1], "many", PODS).await.context("making pods")?;
    let bytes = client.connect().await?.call(&Call::get("/api/v1/namespaces/many/pods")).await?;
    let stored_kib = bytes as f64 / 1024.0;
    let full = settled(&engine).await?;
    figures.put("memory.pod_bytes", bytes as f64 / PODS as f64);
    figures.put("memory.10000_pods_mib", full / 1024.0);
    figures.put("memory.kib_per_stored_kib", (full - idle) / stored_kib);

    engine.server.restart(End::InOrder)?;
    figures.put("start.10000_pods_ms", engine.server.ready_after.as_secs_f64() * 1000.0);
    let again = settled(&engine).await?;
    figures.put("memory.10000_pods_restarted_mib", again / 1024.0);
    figures.put("memory.kib_per_stored_kib_restarted", (again - idle) / stored_kib);
    drop(engine);

    for (name, protocol, per_connection) in
        [("own_connections", Protocol::Http1, 1), ("shared_connections", Protocol::Http2, 100)]
    {
        let engine = Engine::embedded()?;
        let before = settled(&engine).await?;
        let client = Client::new(&engine.server, protocol)?;
        let open = watches::open(&client, "default", WATCHES, per_connection).await?;
        let after = settled(&engine).await?;
        figures.put(format!("memory.kib_per_watch_{name}"), (after - before) / WATCHES as f64);
        drop(open);
    }
    say("");
    figures.against("start.empty_ms", 100.0, "ms");
    figures.against("start.10000_pods_ms", 500.0, "ms");
    figures.against("memory.idle_mib", 24.0, "MiB");
    figures.against("memory.kib_per_stored_kib", 1.5, "KiB");
    figures.against("memory.kib_per_stored_kib_restarted", 1.5, "KiB");
    figures.against("memory.kib_per_watch_own_connections", 32.0, "KiB");
    figures.against("memory.kib_per_watch_shared_connections", 32.0, "KiB");
    Ok(())
}

/// Its memory in KiB once it has settled.
async fn settled(engine: &Engine) -> Result<f64> {
    tokio::time::sleep(SETTLE).await;
    Ok(engine.process()?.pss_kib()? as f64)
}
