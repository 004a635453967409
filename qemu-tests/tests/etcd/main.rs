//! A cluster whose master keeps the store in etcd: it works, keeps its data when the machine starts anew, and moves
//! to the embedded store and back without loss. The image says which engine it has, so this needs a cluster of its own.

use anyhow::{Context, ensure};
use qemu_tests::cluster::settings;
use qemu_tests::suite::{self, Suite};
use qemu_tests::{Cluster, Result, wait};
use std::collections::BTreeMap;
use std::process::ExitCode;

const LONG: &[&str] = &[
    "the_store_is_in_etcd",
    "etcd_keeps_its_data_when_the_master_starts_anew",
    "a_store_moves_to_the_embedded_engine_and_back",
    "the_master_has_memory_to_spare",
];

fn main() -> ExitCode {
    let tests: Vec<suite::Test> =
        LONG.iter().copied().zip([in_etcd as fn(&Cluster) -> Result, reboot, moves, memory]).collect();
    let cluster = settings("etcd", 1, "store = \"etcd\"", "");
    suite::main(Suite { name: "etcd", cluster, tests, long: LONG, end: || () })
}

/// The services of the master.
fn services(cluster: &Cluster) -> Result<Vec<node_api::Service>> {
    let text = cluster.kimg(&["node", "--node", "master-1", "services", "--json"])?.success()?;
    serde_json::from_str(&text).context("reading kimg node services --json")
}

fn checked(cluster: &Cluster) -> Result<String> {
    cluster.kimg(&["store", "check"])?.success()
}

fn in_etcd(cluster: &Cluster) -> Result {
    let services = services(cluster)?;
    let etcd = services.iter().find(|s| s.name == "etcd").context("there is no service etcd")?;
    ensure!(etcd.state == node_api::ServiceState::Ready, "etcd is {:?}", etcd.state);
    keep(cluster)?;
    let said = checked(cluster)?;
    ensure!(said.contains("etcd at") && said.contains("compared with the server's memory"), "{said}");
    // Nobody outside reaches it, and nobody without a certificate: the flags say loopback and mutual TLS.
    let text = cluster.kimg(&["node", "--node", "master-1", "sockets", "--json"])?.success()?;
    let sockets: Vec<node_api::Socket> = serde_json::from_str(&text).context("reading kimg node sockets --json")?;
    for port in [":2379", ":2380"] {
        let listening: Vec<&str> = sockets
            .iter()
            .filter(|s| s.state == "LISTEN")
            .map(|s| s.local.as_str())
            .filter(|l| l.ends_with(port))
            .collect();
        ensure!(listening == [format!("127.0.0.1{port}")], "at {port} there is {listening:?}");
    }
    large(cluster)
}

/// More than etcd takes unless it is told otherwise, and less than the API server's own limit.
fn large(cluster: &Cluster) -> Result {
    let names: Vec<String> = (0..26_000).map(|i| format!("{i:0>95}")).collect();
    let role = serde_json::json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "large"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": names}],
    });
    let text = role.to_string();
    ensure!(text.len() > 2_500_000, "{} bytes", text.len());
    let made = cluster.kubectl_of(qemu_tests::tools::Kubectl::V1_32, &["create", "-f", "-"], Some(&text))?;
    made.success().context("an object of 2.5 MB")?;
    cluster.k(&["delete", "clusterrole", "large"]).map(drop)
}

/// Makes what [`kept`] looks for.
fn keep(cluster: &Cluster) -> Result {
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {a: b}\n";
    let apply = ["-n", "default", "apply", "-f", "-"];
    cluster.kubectl_of(qemu_tests::tools::Kubectl::V1_32, &apply, Some(map))?.success().map(drop)
}

fn kept(cluster: &Cluster) -> Result {
    let value = cluster.k(&["-n", "default", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"])?;
    ensure!(value == "b", "the data is gone: {value}");
    Ok(())
}

fn reboot(cluster: &Cluster) -> Result {
    keep(cluster)?;
    let boot_id =
        || cluster.kubectl(&["get", "node", "master-1", "-o", "jsonpath={.status.nodeInfo.bootID}"]).map(|o| o.out);
    let before = boot_id()?;
    cluster.kimg(&["node", "--node", "master-1", "reboot"])?.success()?;
    wait::until("the master to come back", wait::scale(90), || {
        let now = boot_id()?;
        Ok((!now.is_empty() && now != before).then_some(()))
    })?;
    cluster.all_ready()?;
    kept(cluster)
}

/// Version of each object that nobody writes while the test runs.
fn quiet(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for kind in ["configmaps", "secrets", "serviceaccounts", "services", "clusterroles", "namespaces", "deployments"] {
        let list = cluster.json(&["get", kind, "--all-namespaces"])?;
        for object in list["items"].as_array().context("no items")? {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            versions.insert(format!("{kind}/{}/{}", text("namespace"), text("name")), text("resourceVersion"));
        }
    }
    Ok(versions)
}

fn moves(cluster: &Cluster) -> Result {
    keep(cluster)?;
    let mut expected = quiet(cluster)?;
    ensure!(expected.len() > 50, "only {} objects", expected.len());
    for (round, to) in ["embedded", "etcd", "embedded"].into_iter().enumerate() {
        let said = cluster.kimg(&["store", "migrate", "--to", to])?.success()?;
        ensure!(said.contains("compared"), "{said}");
        wait::until("the API server after the migration", wait::scale(60), || {
            Ok(cluster.kubectl(&["get", "--raw", "/readyz"])?.ok.then_some(()))
        })?;
        let found = quiet(cluster)?;
        for (name, version) in &expected {
            ensure!(found.get(name) == Some(version), "{name} was at {version}, and is at {:?}", found.get(name));
        }
        let said = checked(cluster)?;
        ensure!(said.contains("etcd at") == (to == "etcd"), "{said}");
        cluster.k(&["-n", "default", "create", "configmap", &format!("round-{round}")])?;
        expected = quiet(cluster)?;
    }
    let again = cluster.kimg(&["store", "migrate", "--to", "embedded"])?.success()?;
    ensure!(again.contains("already"), "{again}");
    cluster.all_ready()?;
    // What was moved is what the next boot finds, too.
    reboot(cluster)?;
    ensure!(!checked(cluster)?.contains("etcd at"), "the machine started with the engine that was left");
    let back = cluster.kimg(&["store", "migrate", "--to", "etcd"])?.success()?;
    ensure!(back.contains("compared"), "{back}");
    cluster.all_ready()?;
    kept(cluster)
}

fn memory(cluster: &Cluster) -> Result {
    let text = cluster.kimg(&["node", "--node", "master-1", "status", "--json"])?.success()?;
    let status: node_api::NodeStatus = serde_json::from_str(&text).context("reading kimg node status --json")?;
    for service in services(cluster)? {
        eprintln!("{:>8} KiB  {}", service.memory >> 10, service.name);
    }
    eprintln!("{:>8} MiB  available on the master", status.memory_available >> 20);
    ensure!(status.memory_available > 64 << 20, "{} bytes are available", status.memory_available);
    let kernel = cluster.kimg(&["node", "--node", "master-1", "dmesg"])?.success()?;
    ensure!(!kernel.contains("Out of memory"), "the master ran out of memory");
    Ok(())
}
