//! `make test-long`: everything, by named parts. A part whose last result is of this commit and green is
//! not run again. Part, commit, duration and result go to `target/long.json`.

use anyhow::{Context, Result, bail};
use qemu_tests::tools::workspace;
use serde_json::{Map, Value, json};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Name and what cargo is asked for.
const PARTS: &[(&str, &[&str])] = &[
    ("unit", &["test", "--workspace", "--exclude", "qemu-tests"]),
    ("tidy", &["test", "--workspace", "--test", "tidy"]),
    ("harness", &["test", "--workspace", "--lib", "--", "load::", "nbd::", "stranger::"]),
    ("reproducible", &["test", "--release", "--workspace", "--test", "reproducible", "--", "--include-ignored"]),
    ("store", &["test", "--release", "-p", "store", "--lib", "--", "--ignored", "--nocapture"]),
    (
        "torture",
        &["run", "--release", "-p", "kimg-control", "--", "kube-apiserver", "store", "torture", "--runs", "1000"],
    ),
    ("formats", &["test", "--release", "--workspace", "--test", "formats", "--", "--include-ignored"]),
    ("registry", &["test", "--release", "--workspace", "--test", "registry", "--", "--include-ignored"]),
    ("secrets", &["test", "--release", "--workspace", "--test", "secrets", "--", "--include-ignored"]),
    ("sbom", &["test", "--release", "--workspace", "--test", "sbom", "--", "--include-ignored"]),
    ("signatures", &["test", "--release", "--workspace", "--test", "signatures", "--", "--include-ignored"]),
    ("faults", &["test", "--release", "--workspace", "--test", "faults", "--", "--include-ignored"]),
    ("clients", &["test", "--release", "--workspace", "--test", "clients", "--", "--include-ignored"]),
    ("fuzz", &["test", "--workspace", "--test", "fuzz", "--", "--ignored", "--nocapture"]),
    ("cluster", &["test", "--release", "--workspace", "--test", "cluster", "--", "--include-ignored"]),
    ("overlay", &["test", "--release", "--workspace", "--test", "overlay"]),
    ("etcd", &["test", "--release", "--workspace", "--test", "etcd", "--", "--include-ignored"]),
    ("boots", &["test", "--release", "--workspace", "--test", "boots", "--", "--include-ignored", "boot::"]),
    ("plug", &["test", "--release", "--workspace", "--test", "boots", "--", "--include-ignored", "plug::"]),
    ("memory", &["test", "--release", "--workspace", "--test", "boots", "--", "--ignored", "memory::"]),
];

fn main() -> Result<ExitCode> {
    let wanted = std::env::args().nth(1);
    if let Some(name) = &wanted
        && !PARTS.iter().any(|(part, _)| part == name)
    {
        let known: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        bail!("there is no part '{name}'; there are: {}", known.join(", "));
    }
    let file = workspace().join("target/long.json");
    let mut results: Map<String, Value> = match std::fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?,
        Err(_) => Map::new(),
    };
    let commit = commit()?;
    let mut failed = false;
    for (part, arguments) in PARTS.iter().filter(|(part, _)| wanted.as_deref().is_none_or(|w| w == *part)) {
        // Which changes a tree had that differed from its commit, nobody knows any more.
        let known = !commit.ends_with("-dirty");
        let done =
            known && results.get(*part).is_some_and(|r| r["commit"] == commit.as_str() && r["result"] == "passed");
        if done && wanted.is_none() {
            continue;
        }
        let start = Instant::now();
        let status =
            Command::new("cargo").args(*arguments).current_dir(workspace()).status().context("starting cargo")?;
        let result = if status.success() { "passed" } else { "failed" };
        failed |= !status.success();
        results
            .insert((*part).into(), json!({"commit": commit, "seconds": start.elapsed().as_secs(), "result": result}));
        let text = serde_json::to_string_pretty(&results).context("writing JSON")?;
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The commit that is tested, marked where files differ from it.
fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git").args(args).current_dir(workspace()).output().context("starting git")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let dirty = if git(&["status", "--porcelain"])?.is_empty() { "" } else { "-dirty" };
    Ok(format!("{}{dirty}", git(&["rev-parse", "HEAD"])?))
}
