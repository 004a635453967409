//! `kimg roll` while somebody outside visits: nodes get a new image, and not one request is lost.
//!
//! The visitor is a machine of nobody's on the switch; it asks at the addresses that
//! `status.loadBalancer` of the Service holds at that moment, and tries nothing twice.

mod visits;

use anyhow::{Context, ensure};
use qemu_tests::cluster::settings;
use qemu_tests::suite::{self, Suite};
use qemu_tests::writes::{self, Writer};
use qemu_tests::{Cluster, Result, wait};
use serde_json::Value;
use std::process::ExitCode;
use visits::Visitor;

/// The example as somebody runs it who wants it to be there: two pods on two nodes where there are two, a budget, a
/// readiness probe, and a while between the word to end and the end.
const WEB: &str = include_str!("web.yaml");
/// A word for the kernel that changes the image and nothing else.
const CHANGED: &str = "tests.image=changed";
/// With it the node boots, and finds no network.
const BROKEN: &str = "module_blacklist=virtio_net";
/// With it the kernel panics, before PID 1 could do anything with the disk.
const DEAD: &str = "mem=16M";

fn main() -> ExitCode {
    let tests: Vec<suite::Test> = vec![
        ("a_worker_is_replaced_and_no_request_is_lost", one_worker),
        ("a_claim_that_is_bound_to_a_node_keeps_its_data", claim),
        ("a_claim_is_copied_to_a_new_disk", copied),
        ("an_image_whose_node_is_never_ready_stops_the_roll", broken),
        ("killed_in_between_it_goes_on_with_all_workers", killed),
        ("a_spare_stands_in_for_workers_and_is_gone_in_the_end", surged),
        ("all_nodes_are_replaced_and_no_acknowledged_write_is_lost", all_nodes),
        ("all_nodes_are_replaced_and_open_connections_lose_no_request", all_nodes_kept),
        ("an_image_whose_api_server_never_answers_goes_back", mute_master),
        ("an_image_that_never_boots_goes_back_with_all_data", dead),
        ("a_worker_that_was_killed_is_healed", healed),
        ("a_worker_comes_and_goes_and_no_request_is_lost", scaled),
        ("another_cluster_ca_takes_over_and_no_request_is_lost", another_ca),
        ("a_cluster_that_was_stopped_starts_with_its_data", stopped),
    ];
    let long = &[
        "a_claim_that_is_bound_to_a_node_keeps_its_data",
        "a_claim_is_copied_to_a_new_disk",
        "an_image_whose_node_is_never_ready_stops_the_roll",
        "killed_in_between_it_goes_on_with_all_workers",
        "a_spare_stands_in_for_workers_and_is_gone_in_the_end",
        "all_nodes_are_replaced_and_no_acknowledged_write_is_lost",
        "all_nodes_are_replaced_and_open_connections_lose_no_request",
        "an_image_whose_api_server_never_answers_goes_back",
        "an_image_that_never_boots_goes_back_with_all_data",
        "a_worker_that_was_killed_is_healed",
        "a_worker_comes_and_goes_and_no_request_is_lost",
        "another_cluster_ca_takes_over_and_no_request_is_lost",
        "a_cluster_that_was_stopped_starts_with_its_data",
    ];
    let cluster = settings("roll", 2, "secrets = \"plain\"", "spare-ports = 1");
    suite::main(Suite { name: "roll", cluster, tests, long, end: || () })
}

/// Starts the application once, and waits until it answers at both workers.
fn web(cluster: &Cluster) -> Result {
    cluster.apply(WEB)?;
    let timeout = format!("--timeout={}s", wait::scale(60).as_secs());
    cluster.k(&["-n", "shop", "rollout", "status", "deployment/web", &timeout])?;
    wait::until("both workers in the Service's status", wait::scale(20), || {
        Ok((visits::addresses(&writes::api(&cluster.dir)?)?.len() == 2).then_some(()))
    })
}

/// Builds images of which the worker's differs from the last one by a word of the kernel's command line; the master's stays
/// as it is.
fn build(cluster: &Cluster, word: &str) -> Result {
    set_word(cluster, "worker", word)?;
    cluster.kimg(&["build", "all"])?.success().map(drop)
}

/// The words of a role's image on the kernel's command line, in `cluster.toml`.
fn set_word(cluster: &Cluster, role: &str, word: &str) -> Result {
    let path = cluster.dir.join("cluster.toml");
    let text = std::fs::read_to_string(&path).context("reading cluster.toml")?;
    let section = format!("[image.{role}]");
    let text = if text.contains(&section) { text } else { text.replace("[local]", &format!("{section}\n\n[local]")) };
    let (before, after) = text.split_once(&section).context("no such section")?;
    let after = after.trim_start();
    let after = match after.starts_with("kernel-args") {
        true => after.split_once('\n').map_or("", |(_, rest)| rest),
        false => after,
    };
    let words = if word.is_empty() { String::new() } else { format!("kernel-args = [\"{word}\"]\n") };
    std::fs::write(&path, format!("{before}{section}\n{words}{after}")).context("writing cluster.toml")
}

/// Name, boot and whether it takes pods, of each node.
fn boots(cluster: &Cluster) -> Result<Vec<(String, String, bool)>> {
    let nodes = cluster.json(&["get", "nodes"])?;
    let items = nodes["items"].as_array().context("no nodes")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |node: &Value| {
        let boot = text(&node["status"]["nodeInfo"]["bootID"]);
        (text(&node["metadata"]["name"]), boot, node["spec"]["unschedulable"] != true)
    };
    Ok(items.iter().map(one).collect())
}

fn boot_of(boots: &[(String, String, bool)], node: &str) -> String {
    boots.iter().find(|(name, ..)| name == node).map(|(_, boot, _)| boot.clone()).unwrap_or_default()
}

/// All nodes are Ready and take pods, and nothing of a roll is left.
fn check_whole(cluster: &Cluster) -> Result {
    let status = cluster.kimg(&["status", "--json"])?;
    ensure!(status.ok, "not all nodes are Ready: {}", status.all());
    let boots = boots(cluster)?;
    ensure!(boots.iter().all(|(.., takes_pods)| *takes_pods), "{boots:?}");
    let lease = cluster.kubectl(&["-n", "kube-system", "get", "lease", "kimg-roll"])?;
    ensure!(lease.err.contains("NotFound"), "the lock is left: {}", lease.all());
    let tokens = cluster.k(&[
        "-n",
        "kube-system",
        "get",
        "secrets",
        "--field-selector=type=bootstrap.kubernetes.io/token",
        "-o",
        "name",
    ])?;
    ensure!(tokens.trim().is_empty(), "tokens are left: {tokens}");
    Ok(())
}

fn one_worker(cluster: &Cluster) -> Result {
    web(cluster)?;
    build(cluster, CHANGED)?;
    let before = boots(cluster)?;
    let plan = cluster.kimg(&["roll", "worker-1", "--dry-run"])?.success()?;
    ensure!(plan.contains("worker-1: image ") && !plan.contains("worker-2"), "{plan}");
    let visitor = Visitor::start(cluster)?;
    let said = cluster.kimg(&["roll", "worker-1", "--yes", "--settle", "3"])?;
    let visits = visitor.stop()?;
    ensure!(said.ok, "{}", said.all());
    visits.check_all_seen()?;
    let after = boots(cluster)?;
    ensure!(boot_of(&after, "worker-1") != boot_of(&before, "worker-1"), "worker-1 did not boot anew");
    ensure!(boot_of(&after, "worker-2") == boot_of(&before, "worker-2"), "worker-2 was touched");
    let again = cluster.kimg(&["roll", "worker-1", "--yes"])?.success()?;
    ensure!(again.contains("nothing to do"), "{again}");
    check_whole(cluster)
}

const CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: row, namespace: shop}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: shop}
spec:
  nodeSelector: {kubernetes.io/hostname: worker-2}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/kimg/toolbox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']
    volumeMounts: [{name: row, mountPath: /row}]
  volumes: [{name: row, persistentVolumeClaim: {claimName: row}}]
"#;

fn write_row(cluster: &Cluster) -> Result {
    cluster.apply(CLAIM)?;
    cluster.pod_ready("shop", "writer")?;
    cluster.exec("shop", "writer", &["sh", "-c", "echo kept > /row/row; sync"]).map(drop)
}

fn check_row(cluster: &Cluster) -> Result {
    cluster.apply(CLAIM)?;
    cluster.pod_ready("shop", "writer")?;
    let row = cluster.exec("shop", "writer", &["cat", "/row/row"])?;
    ensure!(row.trim() == "kept", "the row says '{row}'");
    cluster.k(&["-n", "shop", "delete", "pod", "writer"]).map(drop)
}

/// What the plan says of it; and that nothing is lost without a decision.
fn claim(cluster: &Cluster) -> Result {
    web(cluster)?;
    build(cluster, CHANGED)?;
    write_row(cluster)?;
    let refused = cluster.kimg(&["roll", "worker-2", "--dry-run"])?;
    ensure!(refused.code == 2 && refused.err.contains("shop/writer"), "{}", refused.all());
    let plan = cluster.kimg(&["roll", "worker-2", "--dry-run", "--lose-pods"])?.success()?;
    ensure!(plan.contains("keeps its data\n  stays: claim shop/row (10Mi, writer)"), "{plan}");
    let visitor = Visitor::start(cluster)?;
    let said = cluster.kimg(&["roll", "worker-2", "--yes", "--lose-pods", "--settle", "3"])?;
    let visits = visitor.stop()?;
    ensure!(said.ok, "{}", said.all());
    visits.check_all_seen()?;
    check_row(cluster)?;
    check_whole(cluster)
}

/// As at a provider whose machines keep nothing; killed where the data is on this machine only.
fn copied(cluster: &Cluster) -> Result {
    web(cluster)?;
    build(cluster, "tests.image=copied")?;
    cluster.apply(CLAIM)?;
    cluster.pod_ready("shop", "writer")?;
    let script = "rm -rf /row/*; echo copied > /row/row; chown 1234:99 /row/row; chmod 2750 /row/row; ln -s row /row/link; \
                  ln /row/row /row/hard; mkdir /row/deep; touch /row/deep/empty; dd if=/dev/urandom of=/row/large bs=1024 \
                  count=9000; sync; cd /row; find . -type f | sort | xargs md5sum";
    let sums = cluster.exec("shop", "writer", &["sh", "-c", script])?;
    let disk = || {
        let path = "jsonpath={.status.nodeInfo.machineID}";
        cluster.k(&["get", "node", "worker-2", "-o", path])
    };
    let before = disk()?;
    let plan = |claim: &str| cluster.kimg(&["roll", "worker-2", "--dry-run", "--lose-pods", "--copy-data", claim]);
    let refused = plan("shop/other")?;
    ensure!(refused.code == 2 && refused.err.contains("--copy-data shop/other"), "{}", refused.all());
    let said = plan("shop/row")?.success()?;
    ensure!(
        said.contains("gets a new disk\n  is copied through this machine: claim shop/row (10Mi, writer)"),
        "{said}"
    );
    let visitor = Visitor::start(cluster)?;
    let roll = ["roll", "worker-2", "--yes", "--lose-pods", "--copy-data", "shop/row", "--settle", "3"];
    let killed = cluster.kimg(&[&roll[..], &["--fail-at", "rebuilt:worker-2"]].concat())?;
    ensure!(killed.code == 137, "{}", killed.all());
    let copies = cluster.dir.join("run/kept_volumes/worker-2");
    let kept = std::fs::read_dir(&copies).context("the copy is not here")?.count();
    ensure!(kept == 1, "{kept} copies");
    let said = cluster.kimg(&["roll", "--yes"])?;
    let visits = visitor.stop()?;
    ensure!(said.ok, "{}", said.all());
    visits.check_all_seen()?;
    ensure!(disk()? != before, "the disk is the old one");
    ensure!(!copies.exists(), "a copy is left");
    cluster.apply(CLAIM)?;
    cluster.pod_ready("shop", "writer")?;
    let again = "cd /row; find . -type f | sort | xargs md5sum";
    let after = cluster.exec("shop", "writer", &["sh", "-c", again])?;
    ensure!(sums.ends_with(&after) && after.lines().count() == 4, "before:\n{sums}\nafter:\n{after}");
    let said = cluster.exec("shop", "writer", &["sh", "-c", "cat /row/link; stat -c '%u:%g %a %h' /row/hard"])?;
    ensure!(said.trim() == "copied\n1234:99 2750 2", "{said}");
    cluster.k(&["-n", "shop", "delete", "pod", "writer"])?;
    check_whole(cluster)
}

fn broken(cluster: &Cluster) -> Result {
    web(cluster)?;
    build(cluster, BROKEN)?;
    let before = boots(cluster)?;
    let visitor = Visitor::start(cluster)?;
    let said = cluster.kimg(&["roll", "--yes", "--keep-data", "--ready-timeout", "45"])?;
    ensure!(said.code == 1 && said.out.contains("failed: worker-1: "), "{}", said.all());
    ensure!(said.out.contains("not touched: worker-2") && said.out.contains("--rollback"), "{}", said.out);
    let nodes = boots(cluster)?;
    ensure!(boot_of(&nodes, "worker-2") == boot_of(&before, "worker-2"), "worker-2 was touched");
    let back = cluster.kimg(&["roll", "--rollback", "--yes", "--settle", "3"])?;
    let visits = visitor.stop()?;
    ensure!(back.ok, "{}", back.all());
    visits.check_all_seen()?;
    build(cluster, CHANGED)?;
    check_whole(cluster)
}

/// Both workers, in three runs: two are ended by SIGKILL's effect in the middle of a step.
fn killed(cluster: &Cluster) -> Result {
    web(cluster)?;
    build(cluster, "tests.image=other")?;
    let before = boots(cluster)?;
    let visitor = Visitor::start(cluster)?;
    for point in ["rebuilt:worker-1", "token-made:worker-2"] {
        let out = cluster.kimg(&["roll", "--yes", "--settle", "3", "--fail-at", point])?;
        ensure!(out.code == 137 && out.err.contains(&format!("ended at {point}")), "{}", out.all());
    }
    let said = cluster.kimg(&["roll", "--yes"])?;
    let visits = visitor.stop()?;
    ensure!(said.ok, "{}", said.all());
    ensure!(said.out.contains("replaced: worker-1, worker-2"), "{}", said.out);
    visits.check_all_seen()?;
    let after = boots(cluster)?;
    for node in ["worker-1", "worker-2"] {
        ensure!(boot_of(&after, node) != boot_of(&before, node), "{node} did not boot anew");
    }
    check_whole(cluster)
}

/// Two workers take pods at any time, also where the roll is ended with the spare just made, and with a worker away.
fn surged(cluster: &Cluster) -> Result {
    web(cluster)?;
    build(cluster, "tests.image=surge")?;
    let path = cluster.dir.join("cluster.toml");
    let written = || std::fs::read_to_string(&path).context("reading cluster.toml");
    let (before, begun) = (written()?, boots(cluster)?);
    let plan = cluster.kimg(&["roll", "--dry-run", "--max-surge", "1"])?.success()?;
    ensure!(plan.contains("worker-3: is made as a spare") && plan.contains("another VM on this machine"), "{plan}");
    ensure!(written()? == before, "the dry run has changed cluster.toml");
    // The switch starts anew for another node, which no provider's does.
    let made = ["roll", "--yes", "--settle", "3", "--max-surge", "1", "--fail-at", "rebuilt:worker-3"];
    let killed = cluster.kimg(&made)?;
    ensure!(killed.code == 137 && written()?.contains("spare = true"), "{}", killed.all());
    let visitor = Visitor::start(cluster)?;
    let killed = cluster.kimg(&["roll", "--yes", "--fail-at", "rebuilt:worker-1"])?;
    ensure!(killed.code == 137, "{}", killed.all());
    let said = cluster.kimg(&["roll", "--yes"])?;
    let visits = visitor.stop()?;
    ensure!(said.ok, "{}", said.all());
    ensure!(said.out.contains("replaced: worker-1, worker-2\nremoved: worker-3"), "{}", said.out);
    visits.check_all_seen()?;
    ensure!(visits.fewest >= 2, "only {} workers took pods", visits.fewest);
    let after = boots(cluster)?;
    ensure!(after.len() == begun.len(), "{after:?}");
    for node in ["worker-1", "worker-2"] {
        ensure!(boot_of(&after, node) != boot_of(&begun, node), "{node} did not boot anew");
    }
    ensure!(!cluster.dir.join("run/worker-3").exists(), "its disk is left");
    let left = written()?;
    ensure!(left == before, "cluster.toml is another:\n{left}");
    check_whole(cluster)
}

const NODES: [&str; 3] = ["master-1", "worker-1", "worker-2"];

/// The whole cluster, while somebody visits and somebody writes.
fn all_nodes(cluster: &Cluster) -> Result {
    replace_all(cluster, "tests.image=all", Visitor::start)
}

/// The same for somebody whose connections stay open.
fn all_nodes_kept(cluster: &Cluster) -> Result {
    replace_all(cluster, "tests.image=kept", Visitor::start_keeping)
}

fn replace_all(cluster: &Cluster, word: &str, visit: fn(&Cluster) -> Result<Visitor>) -> Result {
    web(cluster)?;
    set_word(cluster, "master", word)?;
    build(cluster, word)?;
    let before = boots(cluster)?;
    let plan = cluster.kimg(&["roll", "--dry-run"])?.success()?;
    ensure!(plan.starts_with("master-1: image ") && plan.contains("the API is away for about"), "{plan}");
    ensure!(plan.contains("worker-1: image ") && plan.contains("worker-2: image "), "{plan}");
    let visitor = visit(cluster)?;
    let writer = Writer::start(cluster)?;
    let said = cluster.kimg(&["roll", "--yes", "--settle", "3"])?;
    let (visits, writes) = (visitor.stop()?, writer.stop()?);
    ensure!(said.ok, "{}", said.all());
    ensure!(said.out.contains("replaced: master-1, worker-1, worker-2"), "{}", said.out);
    ensure!(said.err.contains("the API answers again; it was away for "), "{}", said.err);
    writes.check_all_there(cluster)?;
    visits.check_all_seen()?;
    let after = boots(cluster)?;
    for node in NODES {
        ensure!(boot_of(&after, node) != boot_of(&before, node), "{node} did not boot anew");
    }
    // Before the roll, and before the master; each was read through when it was made.
    ensure!(said.err.matches("backup of the store:").count() == 2, "{}", said.err);
    check_whole(cluster)
}

/// A master that finds no network: what is known of the roll is on this machine only.
fn mute_master(cluster: &Cluster) -> Result {
    web(cluster)?;
    set_word(cluster, "master", BROKEN)?;
    build(cluster, CHANGED)?;
    let before = boots(cluster)?;
    let visitor = Visitor::start(cluster)?;
    let writer = Writer::start(cluster)?;
    let said = cluster.kimg(&["roll", "master", "--yes", "--ready-timeout", "45"])?;
    ensure!(said.code == 1 && said.out.contains("failed: master-1: its API server does not answer"), "{}", said.all());
    let refused = cluster.kimg(&["roll", "--yes"])?;
    ensure!(refused.code == 1 && refused.err.contains("roll --rollback"), "{}", refused.all());
    let back = cluster.kimg(&["roll", "--rollback", "--yes", "--settle", "3"])?;
    let (visits, writes) = (visitor.stop()?, writer.stop()?);
    ensure!(back.ok, "{}", back.all());
    writes.check_all_there(cluster)?;
    visits.check_all_seen()?;
    let after = boots(cluster)?;
    ensure!(boot_of(&after, "master-1") != boot_of(&before, "master-1"), "master-1 did not boot anew");
    ensure!(boot_of(&after, "worker-1") == boot_of(&before, "worker-1"), "worker-1 was touched");
    set_word(cluster, "master", "")?;
    build(cluster, CHANGED)?;
    check_whole(cluster)
}

/// A kernel that panics is not waited for, on the master and on a worker, and what the nodes held is there after the way
/// back.
fn dead(cluster: &Cluster) -> Result {
    web(cluster)?;
    write_row(cluster)?;
    let visitor = Visitor::start(cluster)?;
    let writer = Writer::start(cluster)?;
    set_word(cluster, "master", DEAD)?;
    build(cluster, CHANGED)?;
    go_back_from_dead(cluster, "master-1")?;
    let writes = writer.stop()?;
    set_word(cluster, "master", "")?;
    build(cluster, DEAD)?;
    go_back_from_dead(cluster, "worker-2")?;
    let visits = visitor.stop()?;
    writes.check_all_there(cluster)?;
    visits.check_all_seen()?;
    check_row(cluster)?;
    build(cluster, CHANGED)?;
    check_whole(cluster)
}

fn go_back_from_dead(cluster: &Cluster, node: &str) -> Result {
    let said = cluster.kimg(&["roll", node, "--yes", "--lose-pods"])?;
    let why = "Kernel panic - not syncing";
    ensure!(said.code == 1 && said.out.contains("does not boot") && said.out.contains(why), "{}", said.all());
    let back = cluster.kimg(&["roll", "--rollback", "--yes", "--settle", "3"])?;
    ensure!(back.ok, "{}", back.all());
    Ok(())
}

/// A worker whose machine is gone comes back without a word from anybody, and once.
fn healed(cluster: &Cluster) -> Result {
    web(cluster)?;
    let whole = cluster.kimg(&["heal", "--yes", "--patience", "5"])?.success()?;
    ensure!(whole.contains("all workers are whole"), "{whole}");
    let before = boots(cluster)?;
    cluster.kimg(&["node", "--node", "worker-2", "poweroff"])?.success()?;
    wait::until("worker-2's VM has ended", wait::scale(60), || {
        let status: Value = serde_json::from_str(&cluster.kimg(&["status", "--json"])?.out).context("status")?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        Ok(nodes.iter().any(|node| node["node"] == "worker-2" && node["vm"] == "stopped").then_some(()))
    })?;
    let said = cluster.kimg(&["heal", "--yes", "--patience", "5"])?;
    ensure!(said.ok && said.out.contains("replaced: worker-2"), "{}", said.all());
    let after = boots(cluster)?;
    ensure!(boot_of(&after, "worker-2") != boot_of(&before, "worker-2"), "worker-2 did not boot anew");
    ensure!(boot_of(&after, "worker-1") == boot_of(&before, "worker-1"), "worker-1 was touched");
    check_whole(cluster)
}

/// A third worker, and without it again; killed in between.
fn scaled(cluster: &Cluster) -> Result {
    web(cluster)?;
    let path = cluster.dir.join("cluster.toml");
    let before = std::fs::read_to_string(&path).context("reading cluster.toml")?;
    let images = || -> Result<Vec<String>> {
        cluster.kimg(&["build", "all"])?.success()?;
        let read = |role| std::fs::read_to_string(cluster.dir.join("build").join(role).join("manifest.json"));
        ["master", "worker"].into_iter().map(|role| read(role).context("reading a manifest")).collect()
    };
    let built = images()?;
    let grown = cluster.kimg(&["scale", "workers", "3", "--yes"])?;
    ensure!(images()? == built, "with another worker the images are others");
    ensure!(grown.ok && grown.out.contains("cluster.toml gets worker-3"), "{}", grown.all());
    ensure!(boots(cluster)?.iter().any(|(name, ..)| name == "worker-3"), "{:?}", boots(cluster)?);
    // The switch starts anew for another node, which no provider's does.
    let visitor = Visitor::start(cluster)?;
    let killed = cluster.kimg(&["scale", "workers", "2", "--yes", "--fail-at", "removed:worker-3"])?;
    ensure!(killed.code == 137, "{}", killed.all());
    let smaller = cluster.kimg(&["scale", "workers", "2", "--yes"])?;
    let visits = visitor.stop()?;
    ensure!(smaller.ok && smaller.out.contains("removed: worker-3"), "{}", smaller.all());
    visits.check_all_seen()?;
    ensure!(boots(cluster)?.iter().all(|(name, ..)| name != "worker-3"), "{:?}", boots(cluster)?);
    ensure!(!cluster.dir.join("run/worker-3").exists(), "its disk is left");
    let after = std::fs::read_to_string(&path).context("reading cluster.toml")?;
    ensure!(after == before, "cluster.toml is another:\n{after}");
    check_whole(cluster)
}

/// Three times all nodes, while somebody visits and somebody writes; what the old authority has signed is refused at the
/// end, and whom it has signed is not believed.
fn another_ca(cluster: &Cluster) -> Result {
    web(cluster)?;
    std::fs::copy(cluster.kubeconfig(), cluster.dir.join("before")).context("copying the kubeconfig")?;
    let by_old = || cluster.kubectl(&["--kubeconfig", "before", "get", "nodes"]);
    let rotate = |step: &[&str]| cluster.kimg(&[&["pki", "rotate", "ca"], step].concat());
    for step in [&[][..], &["--sign"], &["--finish"]] {
        rotate(step)?.success()?;
        // The next step needs the images of this one.
        let early = rotate(if step.is_empty() { &["--sign"] } else { &["--finish"] })?;
        ensure!(early.code == 2, "{step:?}: {}", early.all());
        cluster.kimg(&["build", "all"])?.success()?;
        let (visitor, writer) = (Visitor::start(cluster)?, Writer::start(cluster)?);
        let said = cluster.kimg(&["roll", "--yes", "--settle", "3"])?;
        let (visits, writes) = (visitor.stop()?, writer.stop()?);
        ensure!(said.ok && said.out.contains("replaced: master-1, worker-1, worker-2"), "{step:?}: {}", said.all());
        writes.check_all_there(cluster)?;
        visits.check_all_seen()?;
        check_whole(cluster)?;
        ensure!(by_old()?.ok == step.is_empty(), "{step:?}: {}", by_old()?.all());
        let logs = cluster.kubectl(&["-n", "shop", "logs", "deployment/web"])?;
        ensure!(logs.ok, "{step:?}: {}", logs.all());
    }
    // Who trusts the new one, and shows what the old one has signed.
    let admin = std::fs::read_to_string(cluster.kubeconfig()).context("reading the kubeconfig")?;
    let authority =
        |text: &str| text.lines().find(|line| line.contains("certificate-authority-data")).map(String::from);
    let before = std::fs::read_to_string(cluster.dir.join("before")).context("reading the copy")?;
    let (old, new) = (authority(&before).context("no authority")?, authority(&admin).context("no authority")?);
    std::fs::write(cluster.dir.join("before"), before.replace(&old, &new)).context("writing the copy")?;
    let refused = by_old()?;
    ensure!(!refused.ok && refused.all().contains("Unauthorized"), "{}", refused.all());
    Ok(())
}

/// Also what was written right before.
fn stopped(cluster: &Cluster) -> Result {
    web(cluster)?;
    cluster.k(&["-n", "shop", "create", "configmap", "written-last", "--from-literal=a=b"])?;
    let stopped = cluster.kimg(&["stop"])?.success()?;
    ensure!(stopped.contains("stopped worker-1, worker-2, master-1") && !stopped.contains("were ended"), "{stopped}");
    cluster.kimg(&["start"])?.success()?;
    cluster.k(&["-n", "shop", "delete", "configmap", "written-last"])?;
    web(cluster)?;
    check_whole(cluster)
}
