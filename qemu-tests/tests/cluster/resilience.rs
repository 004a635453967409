//! Everything may be killed; the cluster is whole again.

use anyhow::{Context, ensure};
use kimg::local::qmp;
use qemu_tests::{Cluster, Result, pods, wait};

/// Of a cluster that has only just come up.
pub(crate) const FIRST: &[super::Test] = &[("a_worker_whose_power_went_at_its_first_pod_runs_it_again", power_cut)];

pub(crate) const TESTS: &[super::Test] = &[
    ("every_service_may_be_killed", kill_services),
    ("every_vm_may_be_rebooted", reboot),
    ("no_node_ran_out_of_memory_after_all_this", super::nodes::consoles_are_clean),
];

/// What the images and the pod's first start have written is seconds old then, and only partly on the disk.
fn power_cut(cluster: &Cluster) -> Result {
    pods::pair(cluster, "power")?;
    qmp::execute(&cluster.dir.join("run/worker-1"), "qmp.sock", "quit", None)?;
    cluster.kimg(&["up"])?.success()?;
    wait::until("the pod to run again", wait::scale(60), || {
        let pod = cluster.json(&["-n", "power", "get", "pod", "one"])?;
        let container = &pod["status"]["containerStatuses"][0];
        Ok((container["restartCount"] == 1 && container["ready"] == true).then_some(()))
    })
    .with_context(|| cluster.k(&["-n", "power", "describe", "pod", "one"]).unwrap_or_else(|error| error.to_string()))?;
    pods::reach_each_other(cluster, "power")
}

fn example_answers(cluster: &Cluster) -> Result {
    wait::until("the example to answer", wait::scale(60), || {
        let out = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/example/services/web:80/proxy/status/"])?;
        Ok((out.ok && out.out.contains("ok")).then_some(()))
    })
}

/// Names of the services that run for good on a node.
fn services(cluster: &Cluster, node: &str) -> Result<Vec<(String, u64)>> {
    let text = cluster.kimg(&["node", "--node", node, "services", "--json"])?.success()?;
    let list: serde_json::Value = serde_json::from_str(&text).context("reading kimg node services --json")?;
    let all = list["services"].as_array().or(list.as_array()).context("no list of services")?;
    Ok(all
        .iter()
        .filter(|s| s["pid"].as_u64().is_some_and(|p| p > 0))
        .map(|s| (s["name"].as_str().unwrap_or_default().to_owned(), s["pid"].as_u64().unwrap_or(0)))
        .collect())
}

fn kill_services(cluster: &Cluster) -> Result {
    for node in ["master-1", "worker-1"] {
        for (name, pid) in services(cluster, node)? {
            cluster
                .kimg(&["node", "--node", node, "restart", &name])?
                .success()
                .with_context(|| format!("ending {name} on {node}"))?;
            wait::until(&format!("{name} on {node} to run again"), wait::scale(30), || {
                Ok(services(cluster, node)?.iter().any(|(n, p)| *n == name && *p != pid).then_some(()))
            })?;
        }
        cluster.all_ready()?;
        example_answers(cluster)?;
    }
    Ok(())
}

fn reboot(cluster: &Cluster) -> Result {
    cluster.k(&["-n", "default", "create", "configmap", "before-reboot", "--from-literal=a=b"])?;
    for node in ["worker-1", "worker-2", "master-1"] {
        let boot_id =
            |c: &Cluster| c.kubectl(&["get", "node", node, "-o", "jsonpath={.status.nodeInfo.bootID}"]).map(|o| o.out);
        let before = boot_id(cluster)?;
        cluster.kimg(&["node", "--node", node, "reboot"])?.success()?;
        wait::until(&format!("{node} to come back"), wait::scale(90), || {
            let now = boot_id(cluster)?;
            Ok((!now.is_empty() && now != before).then_some(()))
        })?;
        cluster.all_ready()?;
        example_answers(cluster)?;
    }
    let kept = cluster.k(&["-n", "default", "get", "configmap", "before-reboot", "-o", "jsonpath={.data.a}"])?;
    ensure!(kept == "b", "the data is gone: {kept}");
    Ok(())
}
