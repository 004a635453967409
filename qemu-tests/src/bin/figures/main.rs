//! `make figures`: sizes, times and memory of a cluster as the demo has it,
//! printed and written flat to `target/figures.json`. Everything is measured in this run.
//!
//! `figures mkosi` holds a build against one of mkosi's, into `target/figures-mkosi.json`; where mkosi cannot be had it
//! says why, and ends with 77.

mod boot;
mod build;
mod measured;
mod mkosi;

use anyhow::{Context, Result, bail};
use qemu_tests::cluster::{Cluster, accelerated};
use qemu_tests::suite::SKIPPED;
use qemu_tests::tools::workspace;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::ExitCode;

const CLUSTER: &str = "name = \"figures\"\nsecrets = \"plain\"\nnodes = [{ name = \"master-1\", role = \"master\" }, { name = \"worker-1\", role = \"worker\" }, { name = \"worker-2\", role = \"worker\" }]\n";

fn main() -> Result<ExitCode> {
    let what = std::env::args().nth(1);
    let dir = workspace().join("target/figures");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).context("removing the last run's folder")?;
    }
    std::fs::create_dir_all(&dir).context("making a folder")?;
    std::fs::write(dir.join("cluster.toml"), CLUSTER).context("writing cluster.toml")?;
    let mut figures = Map::new();
    let measured = match what.as_deref() {
        None => of_a_cluster(&dir, &mut figures).map(|()| true)?,
        Some("mkosi") => mkosi::figures(&dir, &mut figures)?,
        Some(other) => {
            bail!("there are no figures of {other:?}; there are those of mkosi, and the others without a word")
        }
    };
    let text = serde_json::to_string_pretty(&Value::Object(figures)).context("writing JSON")?;
    let file = format!("target/figures{}.json", what.map(|what| format!("-{what}")).unwrap_or_default());
    std::fs::write(workspace().join(&file), &text).with_context(|| format!("writing {file}"))?;
    say(&text);
    Ok(if measured { ExitCode::SUCCESS } else { ExitCode::from(SKIPPED) })
}

fn of_a_cluster(dir: &Path, figures: &mut Map<String, Value>) -> Result<()> {
    figures.insert("accel".into(), json!(if accelerated() { "kvm" } else { "tcg" }));
    build::figures(dir, figures)?;
    boot::figures(&dir.join("alone"), CLUSTER, figures)?;
    let cluster = Cluster::up(dir, CLUSTER)?;
    figures.insert("boot.three_ready_s".into(), json!(cluster.up_took.as_secs_f64()));
    for (role, node) in [("master", "master-1"), ("worker", "worker-1")] {
        let (total, parts) = pss(&cluster, node)?;
        figures.insert(format!("pss.{role}_kib"), json!(total));
        for (name, kib) in parts {
            figures.insert(format!("pss.{role}.{name}_kib"), json!(kib));
        }
    }
    cluster.down()
}

#[allow(clippy::print_stdout, reason = "the figures are this program's output")]
fn say(text: &str) {
    println!("{text}");
}

/// Sum of the processes' proportional set sizes, and each program's share. Pods do not count.
fn pss(cluster: &Cluster, node: &str) -> Result<(u64, Vec<(String, u64)>)> {
    let text = cluster.kimg(&["node", "--node", node, "processes", "--json"])?.success()?;
    let list: Value = serde_json::from_str(&text).context("reading kimg node processes --json")?;
    let mut parts = std::collections::BTreeMap::new();
    for process in list.as_array().context("no list of processes")? {
        if process["cgroup"].as_str().is_some_and(|c| c.contains("kubepods")) {
            continue;
        }
        let command = process["command"].as_str().unwrap_or_default();
        let program = command.split_whitespace().next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default().to_owned();
        *parts.entry(name).or_insert(0) += process["pss_kib"].as_u64().unwrap_or(0);
    }
    Ok((parts.values().sum(), parts.into_iter().filter(|(_, k)| *k > 0).collect()))
}
