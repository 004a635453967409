//! Three masters on etcd: any one of them may be lost, cut off or full, and nobody who tries again notices; they are
//! replaced one by one, and come and go.

mod writers;

use anyhow::{Context, ensure};
use kimg::local::qmp;
use qemu_tests::cluster::settings;
use qemu_tests::suite::{self, Suite};
use qemu_tests::tools::Kubectl;
use qemu_tests::{Cluster, Result, wait};
use serde_json::{Value, json};
use std::process::ExitCode;
use writers::Writers;

const MASTERS: [&str; 3] = ["master-1", "master-2", "master-3"];
/// A word for the kernel that changes the image and nothing else.
const CHANGED: &str = "[image.master]\nkernel-args = [\"tests.image=changed\"]\n";
/// Enough for the image and what etcd needs at the least.
const SMALL_MIB: u32 = 512;
/// Bytes of a large object.
const LARGE: usize = 900_000;

const LONG: &[&str] = &[
    "one_master_becomes_three",
    "any_one_of_three_is_lost_and_nobody_is_held_up",
    "one_whose_disk_is_full_holds_nobody_up",
    "all_masters_are_replaced_and_the_api_never_goes_away",
    "a_master_that_is_lost_with_its_disk_is_healed",
    "three_masters_become_one",
];

fn main() -> ExitCode {
    let all = [grows as fn(&Cluster) -> Result, lost, full, replaced, healed, shrinks];
    let tests: Vec<suite::Test> = LONG.iter().copied().zip(all).collect();
    let cluster = settings("masters", 1, "", "");
    suite::main(Suite { name: "masters", cluster, tests, long: LONG, end: || () })
}

/// Makes three of the one that the cluster begins with, where it has not been done yet.
fn three(cluster: &Cluster) -> Result {
    if cluster.nodes()?.iter().any(|name| name == MASTERS[2]) {
        return Ok(());
    }
    cluster.kimg(&["scale", "masters", "3", "--yes"])?.success()?;
    whole(cluster)
}

/// All nodes are Ready, and etcd has a healthy voter on each master.
fn whole(cluster: &Cluster) -> Result {
    cluster.all_ready()?;
    let names = cluster.nodes()?.into_iter().filter(|name| name.starts_with("master")).count();
    wait::until("all members to be healthy", wait::scale(60), || {
        let members = members(cluster)?;
        let healthy = |m: &&Value| m["healthy"] == true && m["learner"] == false;
        let sound = members.iter().filter(healthy).count();
        ensure!(sound == names && members.len() == names, "{members:?}");
        Ok(Some(()))
    })
}

fn members(cluster: &Cluster) -> Result<Vec<Value>> {
    let said = cluster.kimg(&["store", "members", "--json"])?.success()?;
    serde_json::from_str(&said).context("reading kimg store members --json")
}

/// Endpoints of the Service `kubernetes`.
fn servers(cluster: &Cluster) -> Result<usize> {
    let slice = cluster.json(&["-n", "default", "get", "endpointslice", "kubernetes"])?;
    Ok(slice["endpoints"].as_array().context("no endpoints")?.iter().map(addresses).sum())
}

fn addresses(endpoint: &Value) -> usize {
    endpoint["addresses"].as_array().map_or(0, Vec::len)
}

fn boot_of(cluster: &Cluster, node: &str) -> Result<String> {
    cluster.k(&["get", "node", node, "-o", "jsonpath={.status.nodeInfo.bootID}"])
}

/// What was written to the one is there with three.
fn grows(cluster: &Cluster) -> Result {
    cluster.k(&["-n", "default", "create", "configmap", "before", "--from-literal=a=b"])?;
    three(cluster)?;
    let value = cluster.k(&["-n", "default", "get", "configmap", "before", "-o", "jsonpath={.data.a}"])?;
    ensure!(value == "b", "the data is gone: {value}");
    wait::until("three servers of the API", wait::scale(30), || Ok((servers(cluster)? == 3).then_some(())))?;
    let again = cluster.kimg(&["scale", "masters", "3", "--yes"])?.success()?;
    ensure!(again.contains("all nodes were running"), "{again}");
    Ok(())
}

/// Killed, and then another one cut off.
fn lost(cluster: &Cluster) -> Result {
    three(cluster)?;
    let writers = Writers::start(cluster)?;
    writers.some_more(50)?;
    qmp::execute(&cluster.dir.join("run/master-1"), "qmp.sock", "quit", None)?;
    writers.some_more(200)?;
    follow(cluster)?;
    wait::until("the dead server to be no endpoint", wait::scale(40), || Ok((servers(cluster)? == 2).then_some(())))?;
    cluster.kimg(&["up"])?.success()?;
    whole(cluster)?;
    cluster.kimg(&["switch", "--set", "master-2", "--cut"])?.success()?;
    writers.some_more(200)?;
    cluster.kimg(&["switch", "--set", "master-2", "--reset"])?.success()?;
    whole(cluster)?;
    let written = writers.stop()?;
    written.check(cluster)
}

/// What all members keep fits on two disks and not on the third one.
fn full(cluster: &Cluster) -> Result {
    three(cluster)?;
    let path = cluster.dir.join("cluster.toml");
    let text = std::fs::read_to_string(&path).context("reading cluster.toml")?;
    let small = format!("{}\n[local.master]\ndisk = {SMALL_MIB}\n", text.trim_end());
    std::fs::write(&path, small).context("writing cluster.toml")?;
    anew(cluster, MASTERS[2])?;
    std::fs::write(&path, text).context("writing cluster.toml")?;
    whole(cluster)?;
    let writers = Writers::start(cluster)?;
    let value = "x".repeat(LARGE);
    let mut number = 0;
    wait::until("the small disk to be full", wait::scale(300), || {
        for _ in 0..10 {
            number += 1;
            // One object: each revision takes room in etcd's log and database, and the API servers remember one alone.
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"value": format!("{number} {value}")},
                "metadata": {"name": "large", "namespace": "default"}});
            // One whose server goes meanwhile is none.
            let said = cluster.kubectl_of(
                Kubectl::V1_32,
                &["apply", "--server-side", "-f", "-"],
                Some(&object.to_string()),
            )?;
            if !said.ok {
                eprintln!("large revision {number}: {}", said.all().trim());
            }
        }
        let disk = cluster.kimg(&["node", "--node", MASTERS[2], "disk"])?.all();
        eprintln!("{number} large revisions; {disk}");
        let members = members(cluster)?;
        Ok(members.iter().any(|m| m["healthy"] != true).then_some(()))
    })?;
    writers.some_more(100)?;
    let written = writers.stop()?;
    written.check(cluster)?;
    cluster.k(&["-n", "default", "delete", "configmap", "large"])?;
    anew(cluster, MASTERS[2])?;
    whole(cluster)
}

/// The machine of a master is gone, and it is healed.
fn anew(cluster: &Cluster, name: &str) -> Result {
    qmp::execute(&cluster.dir.join("run").join(name), "qmp.sock", "quit", None)?;
    cluster.kimg(&["heal", name, "--discard-disk", "--yes"])?.success().map(drop)
}

/// The kubeconfig names one master; it gets one that runs. A VM that was told to end may take a moment.
fn follow(cluster: &Cluster) -> Result {
    wait::until("a master that serves", wait::scale(30), || {
        let text = cluster.kimg(&["kubeconfig"])?.success()?;
        std::fs::write(cluster.kubeconfig(), text).context("writing the kubeconfig")?;
        Ok(cluster.kubectl_of(Kubectl::V1_32, &["get", "--raw", "/readyz"], None)?.ok.then_some(()))
    })
}

/// Each gets another image, one at a time, while somebody writes.
fn replaced(cluster: &Cluster) -> Result {
    three(cluster)?;
    let before = MASTERS.iter().map(|name| boot_of(cluster, name)).collect::<Result<Vec<_>>>()?;
    let path = cluster.dir.join("cluster.toml");
    let text = std::fs::read_to_string(&path).context("reading cluster.toml")?;
    std::fs::write(&path, text.replace("[local]", &format!("{CHANGED}\n[local]"))).context("writing cluster.toml")?;
    cluster.kimg(&["build", "all"])?.success()?;
    let writers = Writers::start(cluster)?;
    let said = cluster.kimg(&["roll", "masters", "--yes", "--settle", "3"])?;
    let written = writers.stop()?;
    ensure!(said.ok, "{}", said.all());
    written.check(cluster)?;
    for (name, before) in MASTERS.iter().zip(before) {
        ensure!(boot_of(cluster, name)? != before, "{name} did not boot anew");
    }
    whole(cluster)
}

fn healed(cluster: &Cluster) -> Result {
    three(cluster)?;
    let before = boot_of(cluster, MASTERS[0])?;
    qmp::execute(&cluster.dir.join("run/master-1"), "qmp.sock", "quit", None)?;
    follow(cluster)?;
    let writers = Writers::start(cluster)?;
    let said = cluster.kimg(&["heal", "master-1", "--discard-disk", "--yes"])?;
    let written = writers.stop()?;
    ensure!(said.ok, "{}", said.all());
    written.check(cluster)?;
    ensure!(boot_of(cluster, MASTERS[0])? != before, "master-1 did not boot anew");
    whole(cluster)
}

fn shrinks(cluster: &Cluster) -> Result {
    three(cluster)?;
    let writers = Writers::start(cluster)?;
    let said = cluster.kimg(&["scale", "masters", "1", "--yes"])?;
    let written = writers.stop()?;
    ensure!(said.ok, "{}", said.all());
    follow(cluster)?;
    written.check(cluster)?;
    let nodes = cluster.nodes()?;
    ensure!(nodes.iter().filter(|name| name.starts_with("master")).count() == 1, "{nodes:?}");
    wait::until("one server of the API", wait::scale(40), || Ok((servers(cluster)? == 1).then_some(())))?;
    whole(cluster)
}
