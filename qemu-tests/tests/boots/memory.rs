//! The example runs on three VMs with a master of 256 MiB and workers of 384 MiB.

use crate::Test;
use anyhow::{Context, ensure};
use qemu_tests::cluster::{condition, settings};
use qemu_tests::{Cluster, Result, bundle, tools, wait};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// MiB of the machines, as lines of `[local]`.
const MEMORY: &str = "master = { memory = 256 }\nworker = { memory = 384 }";

/// What a kernel says when it has run out of memory.
const OUT_OF_MEMORY: &[&str] = &["Out of memory", "oom-kill", "oom_reaper", "invoked oom-killer"];

pub(crate) fn tests() -> Vec<Test> {
    let test = |name: &'static str, long, seconds| {
        Test::new(format!("memory::{name}"), long, move |_| runs_for(name, Duration::from_secs(seconds)))
    };
    vec![
        test("the_example_runs_in_little_memory_for_half_a_minute", false, 30),
        test("the_example_runs_in_little_memory_for_five_minutes", true, 300),
    ]
}

fn runs_for(name: &str, length: Duration) -> Result {
    let dir = crate::root().join("memory");
    let result = Cluster::up(&dir, &settings("memory", 2, "", MEMORY)).and_then(|cluster| {
        example(&cluster)?;
        stays_ready(&cluster, length)?;
        memory_sufficed(&cluster)
    });
    // After a start that failed VMs may run too.
    let cluster = Cluster { dir, up_took: Duration::ZERO };
    let result = result.map_err(|error| match bundle::write(&cluster, &crate::root().join("failures"), name) {
        Ok(dir) => error.context(format!("bundle: {}", dir.display())),
        Err(fault) => error.context(format!("no bundle could be written: {fault}")),
    });
    let down = cluster.down();
    result.and(down)
}

fn example(cluster: &Cluster) -> Result {
    let manifests = tools::workspace().join("images/examples/web/manifests");
    cluster.k(&["apply", "-f", &manifests.display().to_string()])?;
    let timeout = format!("--timeout={}s", wait::scale(60).as_secs());
    cluster.k(&["-n", "example", "rollout", "status", "deployment/web", &timeout])?;
    Ok(())
}

/// All nodes are Ready and the example answers, again and again; and no node was unready in between.
fn stays_ready(cluster: &Cluster, length: Duration) -> Result {
    let before = ready_since(cluster)?;
    let end = Instant::now() + length;
    let mut answers = 0;
    wait::until("the end of the test", length + wait::scale(60), || {
        let fault = ready_since(cluster).and_then(|now| {
            ensure!(now == before, "a node was not Ready for a while: {before:?} became {now:?}");
            let said = cluster.k(&["get", "--raw", "/api/v1/namespaces/example/services/web:80/proxy/status/"])?;
            ensure!(said.contains("ok"), "the example says {said}");
            answers += 1;
            Ok(())
        });
        match fault {
            Err(error) => Ok(Some(Err(error))),
            Ok(()) => Ok((Instant::now() > end).then_some(Ok(()))),
        }
    })??;
    ensure!(answers > 3, "the example was asked only {answers} times");
    Ok(())
}

/// Since when each node has been Ready.
fn ready_since(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let nodes = cluster.json(&["get", "nodes"])?;
    let items = nodes["items"].as_array().context("no items")?;
    ensure!(items.len() == 3, "there are {} nodes", items.len());
    let mut since = BTreeMap::new();
    for node in items {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        ensure!(condition(node, "Ready") == Some("True"), "{name} is not Ready");
        let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?;
        since.insert(name, ready["lastTransitionTime"].as_str().unwrap_or_default().to_owned());
    }
    Ok(since)
}

fn memory_sufficed(cluster: &Cluster) -> Result {
    for node in cluster.nodes()? {
        let kernel = cluster.kimg(&["node", "--node", &node, "dmesg"])?.success()?;
        for text in [cluster.console(&node)?, kernel] {
            let bad = text.lines().find(|line| OUT_OF_MEMORY.iter().any(|words| line.contains(words)));
            ensure!(bad.is_none(), "{node}: {}", bad.unwrap_or_default());
        }
        let text = cluster.kimg(&["node", "--node", &node, "status", "--json"])?.success()?;
        let status: node_api::NodeStatus = serde_json::from_str(&text).context("reading kimg node status --json")?;
        eprintln!("{node}: {} of {} MiB are available", status.memory_available >> 20, status.memory_total >> 20);
        let services = cluster.kimg(&["node", "--node", &node, "services", "--json"])?.success()?;
        let services: Vec<node_api::Service> = serde_json::from_str(&services).context("reading kimg node services")?;
        let again: Vec<&str> = services.iter().filter(|s| s.restarts > 0).map(|s| s.name.as_str()).collect();
        ensure!(again.is_empty(), "{node}: services that ended and were started again: {again:?}");
    }
    Ok(())
}
