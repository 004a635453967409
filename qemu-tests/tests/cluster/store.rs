//! The store through `kimg`: snapshot, integrity check, restore, and the workers' backups.

use anyhow::{Context, ensure};
use qemu_tests::tools::Kubectl;
use qemu_tests::{Cluster, Result, pods, wait};
use std::collections::BTreeSet;
use std::time::Duration;

pub(crate) const TESTS: &[super::Test] = &[
    ("workers_keep_backups_that_only_the_operator_reads", backups),
    ("the_store_is_snapshot_checked_and_restored", snapshot_and_restore),
    ("a_worker_s_backup_brings_the_store_back", restore_backup),
    ("a_lost_master_is_healed_and_pods_run_on", heal),
    ("everything_is_lost_and_a_copy_elsewhere_brings_it_back", restore_all),
];

/// Name, node and revision of the backups there are, newest first.
fn kept(cluster: &Cluster) -> Result<Vec<(String, String, u64)>> {
    let listed = cluster.kimg(&["backup", "ls", "--json"])?.success()?;
    let listed: serde_json::Value = serde_json::from_str(&listed).context("reading `kimg backup ls --json`")?;
    let one = |b: &serde_json::Value| {
        let (taken, revision) = (b["taken_unix_ms"].as_u64()?, b["revision"].as_u64()?);
        Some((format!("{}-{revision}.age", taken / 1000), b["node"].as_str()?.to_owned(), revision))
    };
    Ok(listed["backups"].as_array().into_iter().flatten().filter_map(one).collect())
}

fn backups(cluster: &Cluster) -> Result {
    let both = wait::until("backups on both workers", wait::scale(60), || {
        let nodes: BTreeSet<String> = kept(cluster)?.into_iter().map(|(_, node, _)| node).collect();
        Ok((nodes.len() == 2).then_some(nodes))
    })?;
    ensure!(both.iter().all(|node| node.starts_with("worker")), "{both:?}");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("snapshot");
    cluster.kimg(&["backup", "get", &file.display().to_string()])?.success()?;
    let bytes = std::fs::read(&file)?;
    ensure!(bytes.starts_with(b"KIMG-STORE-LOG-"), "what came is no snapshot");
    ensure!(bytes.windows(11).any(|w| w == b"kube-system"), "it does not hold what every cluster has");
    let missing = cluster.kimg(&["backup", "get", "--name", "1-1.age", &dir.path().join("x").display().to_string()])?;
    ensure!(missing.code == 2 && missing.all().contains("kimg backup ls"), "{}", missing.all());
    // A node's own identity, and everybody else but administrators, is refused.
    let refused =
        cluster.kubectl(&["--as=system:node:worker-1", "--as-group=system:nodes", "get", "--raw", "/kimg/backup"])?;
    ensure!(!refused.ok && refused.all().contains("orbidden"), "{}", refused.all());
    Ok(())
}

fn restore_backup(cluster: &Cluster) -> Result {
    cluster.k(&["-n", "default", "create", "configmap", "before-backup"])?;
    let version = "-o=jsonpath={.metadata.resourceVersion}";
    let written: u64 = cluster.k(&["-n", "default", "get", "configmap", "before-backup", version])?.trim().parse()?;
    let name = wait::until("a backup of what was written", wait::scale(150), || {
        Ok(kept(cluster)?.into_iter().find(|(_, _, revision)| *revision >= written).map(|(name, ..)| name))
    })?;
    cluster.k(&["-n", "default", "delete", "configmap", "before-backup"])?;
    cluster.kimg(&["backup", "restore", "--yes", "--name", &name])?.success()?;
    wait::until("what was deleted", wait::scale(60), || {
        Ok(exists(cluster, "before-backup").ok().filter(|there| *there))
    })?;
    cluster.k(&["-n", "default", "delete", "configmap", "before-backup"])?;
    cluster.all_ready()
}

/// The pod's container, and how often it was started.
fn container(cluster: &Cluster) -> Result<String> {
    let path = "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    cluster.k(&["-n", "healed", "get", "pod", "runs-on", "-o", path])
}

/// The master's VM and its disk are gone; what the newest backup has is there again.
fn heal(cluster: &Cluster) -> Result {
    cluster.namespace("healed")?;
    let pod = pods::toolbox("runs-on", Some("worker-1"), false);
    cluster.kubectl_of(Kubectl::V1_32, &["-n", "healed", "apply", "-f", "-"], Some(&pod))?.success()?;
    cluster.pod_ready("healed", "runs-on")?;
    let ran = container(cluster)?;
    let version = "-o=jsonpath={.metadata.resourceVersion}";
    let written: u64 = cluster.k(&["-n", "healed", "get", "pod", "runs-on", version])?.trim().parse()?;
    wait::until("a backup of what was written", wait::scale(150), || {
        Ok(kept(cluster)?.into_iter().any(|(_, _, revision)| revision >= written).then_some(()))
    })?;
    let refused = cluster.kimg(&["heal", "master", "--yes"])?;
    ensure!(refused.code == 2 && refused.all().contains("its API server answers"), "{}", refused.all());

    let run = cluster.dir.join("run");
    let state = kimg::local::state::State::load(&run)?;
    let vm = state.vms.get("master-1").and_then(|vm| vm.process).context("no VM of the master")?;
    vm.end(Duration::ZERO)?;
    let stopped = cluster.kimg(&["heal", "master", "--yes"])?;
    ensure!(stopped.code == 2 && stopped.all().contains("its disk is there"), "{}", stopped.all());
    std::fs::remove_file(run.join("master-1/disk.raw"))?;
    let refused = cluster.kimg(&["up"])?;
    ensure!(!refused.ok && refused.all().contains("kimg heal master"), "{}", refused.all());

    let healed = cluster.kimg(&["heal", "master", "--yes"])?;
    ensure!(healed.ok, "{}", healed.all());
    eprintln!("{}", healed.out.trim());
    ensure!(container(cluster)? == ran, "the pod did not run on: {ran}, now {}", container(cluster)?);
    let inside = cluster.exec("healed", "runs-on", &["echo", "here"])?;
    ensure!(inside.trim() == "here", "{inside}");
    cluster.k(&["delete", "namespace", "healed"])?;
    cluster.all_ready()
}

/// All VMs and their disks are gone; the folder, the secrets and a copy that was sent elsewhere are there.
fn restore_all(cluster: &Cluster) -> Result {
    let path = cluster.dir.join("cluster.toml");
    let before = std::fs::read_to_string(&path).context("reading cluster.toml")?;
    let elsewhere = tempfile::tempdir()?;
    let to = format!("to = \"{}\"\n", elsewhere.path().display());
    let text = match before.split_once("[backup]\n") {
        Some((head, tail)) => format!("{head}[backup]\n{to}{tail}"),
        None => format!("{before}\n[backup]\n{to}"),
    };
    std::fs::write(&path, text).context("writing cluster.toml")?;
    cluster.namespace("restored")?;
    let refused = cluster.kimg(&["restore", "--yes"])?;
    ensure!(refused.code == 2 && refused.all().contains("the cluster is not lost"), "{}", refused.all());
    let pod = pods::toolbox("begins-anew", Some("worker-1"), false);
    cluster.kubectl_of(Kubectl::V1_32, &["-n", "restored", "apply", "-f", "-"], Some(&pod))?.success()?;
    cluster.pod_ready("restored", "begins-anew")?;
    let sent = cluster.kimg(&["backup", "send"])?.success()?;
    ensure!(sent.contains("also in"), "{sent}");
    let run = cluster.dir.join("run");
    let state = kimg::local::state::State::load(&run)?;
    for process in state.vms.values().filter_map(|vm| vm.process).chain(state.switch) {
        process.end(Duration::ZERO)?;
    }
    std::fs::remove_dir_all(&run)?;
    let restored = cluster.kimg(&["restore", "--yes"])?;
    ensure!(restored.ok, "{}", restored.all());
    eprintln!("{}", restored.out.trim());
    cluster.pod_ready("restored", "begins-anew")?;
    let inside = cluster.exec("restored", "begins-anew", &["echo", "here"])?;
    ensure!(inside.trim() == "here", "{inside}");
    cluster.k(&["delete", "namespace", "restored"])?;
    std::fs::write(&path, before).context("writing cluster.toml")?;
    cluster.all_ready()
}

fn exists(cluster: &Cluster, name: &str) -> Result<bool> {
    let out = cluster.kubectl(&["-n", "default", "get", "configmap", name])?;
    ensure!(out.ok || out.all().contains("NotFound"), "asking for {name}: {}", out.all());
    Ok(out.ok)
}

fn snapshot_and_restore(cluster: &Cluster) -> Result {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("snapshot").display().to_string();
    cluster.k(&["-n", "default", "create", "configmap", "before-snapshot"])?;
    cluster.kimg(&["store", "snapshot", &file])?.success()?;
    let bytes = std::fs::read(&file)?;
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
    ensure!(holds(b"before-snapshot"), "the snapshot does not have what was written before it");
    let again = cluster.kimg(&["store", "snapshot", &file])?;
    ensure!(!again.ok && again.all().contains("exists"), "a file was overwritten: {}", again.all());
    let checked = cluster.kimg(&["store", "check"])?.success()?;
    ensure!(checked.contains("compared with the server's memory"), "{checked}");

    let no_etcd = cluster.kimg(&["store", "migrate", "--to", "etcd"])?;
    ensure!(!no_etcd.ok && no_etcd.all().contains("store = \"etcd\""), "an image without etcd: {}", no_etcd.all());

    cluster.k(&["-n", "default", "create", "configmap", "after-snapshot"])?;
    let damaged = dir.path().join("damaged").display().to_string();
    let mut wrong = bytes.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    std::fs::write(&damaged, wrong)?;
    let refused = cluster.kimg(&["store", "restore", "--yes", &damaged])?;
    ensure!(!refused.ok && refused.all().contains("damaged"), "a damaged snapshot: {}", refused.all());
    wait::until("the API server after the damaged snapshot", wait::scale(30), || {
        Ok(exists(cluster, "after-snapshot").ok().filter(|there| *there))
    })?;

    cluster.kimg(&["store", "restore", "--yes", &file])?.success()?;
    wait::until("the API server after the restore", wait::scale(30), || Ok(exists(cluster, "before-snapshot").ok()))?;
    ensure!(exists(cluster, "before-snapshot")? && !exists(cluster, "after-snapshot")?, "not what the snapshot holds");
    cluster.k(&["-n", "default", "delete", "configmap", "before-snapshot"])?;
    // Controllers, kubelets and proxies list anew, and go on.
    cluster.all_ready()
}
