//! The load: one kind of request on some connections for some time.

use crate::client::{Call, Client};
use crate::process::Process;
use anyhow::{Context, Result};
use futures::future::try_join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What a run measured.
#[derive(Debug, Clone)]
pub struct Measured {
    pub requests: usize,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    /// Of all the server's processes, for each request.
    pub cpu_ms: f64,
    /// Bytes that the server's processes gave to the disk, for each request.
    pub written: f64,
}

/// The value below which this part of the sorted values lies.
pub fn percentile(sorted: &[Duration], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = ((sorted.len() as f64 * part) as usize).min(last);
    sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
}

/// Makes the calls that `make` gives for 0, 1, 2, … on each of the connections in turn, until it gives none or
/// the time is over.
pub async fn run(
    client: &Client,
    connections: usize,
    time: Duration,
    processes: &[Process],
    make: impl Fn(usize) -> Option<Call> + Send + Sync + 'static,
) -> Result<Measured> {
    let mut open = try_join_all((0..connections).map(|_| client.connect())).await?;
    let make = Arc::new(make);
    let next = Arc::new(AtomicUsize::new(0));
    let before: Vec<_> = processes.iter().map(Process::usage).collect::<Result<_>>()?;
    let start = Instant::now();
    let tasks = open.drain(..).map(|mut connection| {
        let (make, next) = (make.clone(), next.clone());
        tokio::spawn(async move {
            let mut took = Vec::with_capacity(4096);
            while start.elapsed() < time {
                let Some(call) = make(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let asked = Instant::now();
                connection.call(&call).await?;
                took.push(asked.elapsed());
            }
            anyhow::Ok(took)
        })
    });
    let mut took = Vec::new();
    for task in try_join_all(tasks).await.context("a connection's task")? {
        took.extend(task?);
    }
    let elapsed = start.elapsed();
    let (mut cpu, mut written) = (Duration::ZERO, 0);
    for (process, before) in processes.iter().zip(before) {
        let after = process.usage()?;
        cpu += after.cpu.saturating_sub(before.cpu);
        written += after.written.saturating_sub(before.written);
    }
    took.sort_unstable();
    let requests = took.len();
    Ok(Measured {
        requests,
        per_second: requests as f64 / elapsed.as_secs_f64(),
        p50_ms: percentile(&took, 0.5),
        p90_ms: percentile(&took, 0.9),
        p99_ms: percentile(&took, 0.99),
        cpu_ms: cpu.as_secs_f64() * 1000.0 / requests.max(1) as f64,
        written: written as f64 / requests.max(1) as f64,
    })
}
