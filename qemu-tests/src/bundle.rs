//! What is kept when a test fails: consoles, logs of the nodes' services, and all API objects.

use crate::Cluster;
use std::path::{Path, PathBuf};

/// Writes the bundle of a failed test; where it is. What cannot be had is said in its place.
pub fn write(cluster: &Cluster, root: &Path, test: &str) -> std::io::Result<PathBuf> {
    let dir = root.join(test);
    std::fs::create_dir_all(&dir)?;
    let put = |name: &str, text: &str| std::fs::write(dir.join(name), text);
    for node in known_nodes(cluster) {
        let console = cluster.console(&node).unwrap_or_else(|e| format!("{e:#}"));
        put(&format!("{node}.console.log"), &console)?;
        for what in ["services", "dmesg", "pods", "routes", "nft"] {
            let said = cluster.kimg(&["node", "--node", &node, what]);
            put(&format!("{node}.{what}.txt"), &said.map_or_else(|e| format!("{e:#}"), |o| o.all()))?;
        }
        let said = cluster.kimg(&["node", "--node", &node, "logs", "--tail", "1000000"]);
        put(&format!("{node}.logs.txt"), &said.map_or_else(|e| format!("{e:#}"), |o| o.all()))?;
    }
    for (name, args) in [
        (
            "objects.yaml",
            &["get", "nodes,pods,services,endpointslices,deployments,replicasets,jobs,pvc,pv", "-A", "-o", "yaml"][..],
        ),
        ("events.txt", &["get", "events", "-A", "--sort-by=.metadata.creationTimestamp"][..]),
        ("pods.txt", &["get", "pods", "-A", "-o", "wide"][..]),
    ] {
        let said = cluster.kubectl(args);
        put(name, &said.map_or_else(|e| format!("{e:#}"), |o| o.all()))?;
    }
    Ok(dir)
}

fn known_nodes(cluster: &Cluster) -> Vec<String> {
    let run = cluster.dir.join("run");
    let entries = std::fs::read_dir(run).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let nodes = entries.into_iter().filter(|e| e.path().join("console.log").exists());
    nodes.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
