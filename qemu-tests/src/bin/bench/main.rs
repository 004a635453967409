//! `make bench`: the API server's rates, memory, fan-out and start, measured over HTTPS with client certificates.
//! Prints each figure against the peer's or the target, and writes them flat to `target/bench.json`.
//!
//! `BENCH_SECONDS` is how long each rate is measured (1 by default), `BENCH_CONNECTIONS` a list of widths,
//! `BENCH_ONLY` one of `rates`, `memory`, `watches`, `idle`. `bench hollow` is a crowd of nodes alone ([`hollow`]).
//! The load takes its share of the same cores; what the server itself costs is `cpu_ms`.

mod client;
mod engine;
mod figures;
mod hollow;
mod load;
mod memory;
mod plane;
mod process;
mod requests;
mod watches;

use anyhow::{Context, Result};
use engine::Engine;
use figures::Figures;
use qemu_tests::tools::workspace;
use std::time::Duration;

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

fn main() -> Result<()> {
    let seconds = match setting("BENCH_SECONDS") {
        Some(text) => text.parse().with_context(|| format!("BENCH_SECONDS is '{text}', not a number"))?,
        None => 1.0,
    };
    let widths: Vec<usize> = match setting("BENCH_CONNECTIONS") {
        Some(text) => text
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("BENCH_CONNECTIONS is '{text}', not a list of numbers"))?,
        None => vec![1, 16, 64],
    };
    let only = setting("BENCH_ONLY");
    let wanted = |part: &str| only.as_deref().is_none_or(|o| o == part);
    // One core for the load, so that the server has the other.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let mut figures = Figures::default();
    if let Some(part) = std::env::args().nth(1) {
        anyhow::ensure!(part == "hollow", "bench knows 'hollow' by name, not '{part}'");
        let nodes = number("BENCH_NODES", 1000)?;
        let pods = nodes * number("BENCH_PODS", 30)?;
        runtime.block_on(hollow::run(&mut figures, nodes, pods))?;
        return write(figures, "target/bench-hollow.json");
    }
    if wanted("idle") {
        plane::run(&mut figures).context("the idle control plane")?;
    }
    runtime.block_on(async {
        if wanted("memory") {
            memory::run(&mut figures).await.context("memory")?;
        }
        if wanted("watches") {
            watches::run(&mut figures).await.context("watches")?;
        }
        if wanted("rates") {
            let time = Duration::from_secs_f64(seconds);
            requests::run(&Engine::embedded()?, time, &widths, &mut figures).await?;
            requests::run(&Engine::etcd()?, time, &widths, &mut figures).await?;
        }
        anyhow::Ok(())
    })?;
    write(figures, "target/bench.json")
}

fn number(name: &str, otherwise: usize) -> Result<usize> {
    let Some(text) = setting(name) else { return Ok(otherwise) };
    text.parse().with_context(|| format!("{name} is '{text}', not a number"))
}

fn write(figures: Figures, path: &str) -> Result<()> {
    let file = workspace().join(path);
    std::fs::write(&file, figures.json()).with_context(|| format!("writing {}", file.display()))
}
