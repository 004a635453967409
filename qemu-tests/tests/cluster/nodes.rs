//! The nodes are what their metadata said.

use anyhow::{Context, anyhow, ensure};
use node_metadata::OwnComponent;
use qemu_tests::{Cluster, Result, cluster::condition, tools, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[super::Test] = &[
    ("nodes_are_ready_with_the_addresses_of_their_metadata", ready_with_addresses),
    ("get_nodes_wide_shows_what_a_node_is", wide),
    ("a_second_up_changes_nothing", second_up),
    ("kimg_node_shows_every_part_of_a_node", node_api),
    ("kimg_logs_merges_the_logs_of_all_nodes", logs),
    ("a_component_of_the_user_s_own_runs_as_nobody_and_kimg_logs_shows_what_it_says", own_component_runs),
    ("kimg_pki_ls_lists_the_certificates_of_all_nodes", certificates),
    ("what_leaked_is_taken_back_and_the_node_runs_on", taken_back),
    ("no_node_ran_out_of_memory_or_panicked", consoles_are_clean),
];

fn ready_with_addresses(cluster: &Cluster) -> Result {
    let nodes = cluster.json(&["get", "nodes"])?;
    for (name, address) in [("master-1", "10.77.0.10"), ("worker-1", "10.77.0.11"), ("worker-2", "10.77.0.12")] {
        let items = nodes["items"].as_array().context("no items")?;
        let node = items.iter().find(|n| n["metadata"]["name"] == name).with_context(|| format!("no node {name}"))?;
        ensure!(condition(node, "Ready") == Some("True"), "{name} is not Ready");
        let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
        let internal = addresses.iter().find(|a| a["type"] == "InternalIP").context("no InternalIP")?;
        ensure!(internal["address"] == address, "{name} has {internal}");
    }
    let label = cluster.k(&["get", "nodes", "-l", "disk=ssd", "-o", "name"])?;
    ensure!(label.trim() == "node/worker-1", "the label of cluster.toml is on {label}");
    Ok(())
}

fn wide(cluster: &Cluster) -> Result {
    let text = cluster.k(&["get", "nodes", "-o", "wide"])?;
    for word in [
        "NAME",
        "ROLES",
        "VERSION",
        "INTERNAL-IP",
        "OS-IMAGE",
        "KERNEL-VERSION",
        "CONTAINER-RUNTIME",
        "control-plane",
        "v1.36.",
        "kimg ",
        "containerd://",
    ] {
        ensure!(text.contains(word), "'{word}' is not in\n{text}");
    }
    Ok(())
}

fn second_up(cluster: &Cluster) -> Result {
    let before = cluster.k(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.bootID}"])?;
    cluster.kimg(&["up"])?.success()?;
    let after = cluster.k(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.bootID}"])?;
    ensure!(before == after, "a node was booted again: {before} / {after}");
    Ok(())
}

fn node_api(cluster: &Cluster) -> Result {
    for (node, what, word) in [
        ("master-1", "services", "kube-apiserver"),
        ("worker-1", "services", "containerd"),
        ("worker-1", "dmesg", "Linux version"),
        ("worker-1", "pods", ""),
        ("worker-1", "containers", ""),
        ("worker-1", "images", "pause"),
        ("worker-1", "routes", "10.200."),
        ("worker-1", "links", "kimg.vxlan"),
        ("worker-1", "conntrack", ""),
        ("worker-1", "nft", "kube-proxy"),
        ("worker-1", "sockets", "10250"),
        ("worker-1", "disk", "/state"),
        ("worker-1", "boot-chart", "<svg"),
    ] {
        let text =
            cluster.kimg(&["node", "--node", node, what])?.success().with_context(|| format!("kimg node {what}"))?;
        ensure!(text.contains(word), "kimg node {what} of {node} does not show '{word}':\n{text}");
    }
    let logs = cluster.kimg(&["node", "--node", "worker-1", "logs", "kubelet"])?.success()?;
    ensure!(!logs.trim().is_empty(), "the kubelet's log is empty");
    Ok(())
}

fn logs(cluster: &Cluster) -> Result {
    let all = cluster.kimg(&["logs", "init", "kernel", "kubelet", "--tail", "100000"])?.success()?;
    let words = |line: &str| line.split_whitespace().take(3).map(String::from).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = all.lines().map(words).collect();
    for node in cluster.nodes()? {
        for service in ["init", "kernel", "kubelet"] {
            ensure!(lines.iter().any(|l| l.starts_with(&[node.clone(), service.into()])), "{node} has no {service}");
        }
    }
    // All of these write their times in one form, which sorts as text does. A log stays as it was written (a kernel that
    // finds its clock counts back once): a line is as old as the oldest behind it in its log.
    let mut oldest: BTreeMap<&[String], &String> = BTreeMap::new();
    let mut times = Vec::new();
    for line in lines.iter().rev().filter(|line| line.get(2).is_some_and(|time| time.ends_with('Z'))) {
        let oldest = oldest.entry(&line[..2]).or_insert(&line[2]);
        *oldest = (*oldest).min(&line[2]);
        times.push(*oldest);
    }
    ensure!(times.len() > 100 && times.iter().rev().is_sorted(), "the lines are not in order:\n{all}");
    let refused = cluster.kimg(&["logs", "worker-1", "nothing"])?;
    ensure!(refused.code == 2 && refused.err.contains("containerd"), "{}", refused.all());
    let audit = followed(cluster, "logged-by-the-audit-log")?;
    ensure!(audit.starts_with("master-1") && audit.contains("kubernetes-admin"), "{audit}");
    // A machine that hangs takes connections, for QEMU takes them, and says nothing.
    let file = kimg::config::load(&cluster.dir)?.run_dir().join("worker-2/pid");
    let pid = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let qemu = Pid::from_raw(pid.trim().parse().context("the number in a pid file")?).context("a pid file with 0")?;
    kill_process(qemu, Signal::STOP).context("stopping a VM's process")?;
    let rest = cluster.kimg(&["logs", "kubelet", "--since", "1d"]);
    kill_process(qemu, Signal::CONT).context("letting it go on")?;
    let rest = rest?;
    ensure!(rest.code == 1 && rest.err.contains("worker-2"), "{} {}", rest.code, rest.err);
    ensure!(rest.out.contains("worker-1") && rest.out.contains("master-1"), "the others are gone:\n{}", rest.out);
    cluster.all_ready()
}

/// What the workers' image runs as its own component: it says who it is, and what it can and cannot do. By its name
/// busybox is the program that its first argument names.
const OWN_COMPONENT: &str = "busybox";
const SAYS: &str = "b=/usr/lib/kimg/components/busybox; $b cat /proc/self/status; $b cat /proc/self/cgroup; \
                    echo folder $($b pwd) $HOME; echo kept > file && echo wrote its own; \
                    for secret in /run/kimg/config/cluster.json /var/lib/kimg/pki/kubelet.crt /var/lib/kubelet/pods; \
                    do $b ls -d $secret && echo reached $secret; done; echo has looked; exec $b sleep 1000000";

/// The lines of `cluster.toml` for it.
pub(crate) fn own_component(busybox: &Path) -> String {
    format!(
        "[image.worker.components.{OWN_COMPONENT}]\nbinary = '{}'\nargs = ['sh', '-c', '{SAYS}']\nmemory = '16Mi'\n",
        busybox.display()
    )
}

fn own_component_runs(cluster: &Cluster) -> Result {
    let said = wait::until("what the component says", wait::scale(60), || {
        let text = cluster.kimg(&["logs", "worker-1", OWN_COMPONENT, "--tail", "100"])?.success()?;
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(words.contains("has looked").then_some(words))
    })?;
    let user = OwnComponent::user(OWN_COMPONENT);
    for words in [
        &format!("Uid: {user} {user} {user} {user}"),
        &format!("Gid: {user} {user} {user} {user}"),
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "0::/kimg/busybox",
        "folder /var/lib/components/busybox /var/lib/components/busybox",
        "wrote its own",
    ] {
        ensure!(said.contains(words), "the component does not say '{words}': {said}");
    }
    ensure!(!said.contains("reached "), "the component sees what is the node's alone: {said}");
    let services = cluster.kimg(&["node", "--node", "worker-1", "services"])?.success()?;
    let line = services.lines().find(|line| line.starts_with(OWN_COMPONENT));
    ensure!(line.is_some_and(|line| line.contains("ready")), "kimg node services does not show it:\n{services}");
    let master = cluster.kimg(&["node", "--node", "master-1", "services"])?.success()?;
    ensure!(!master.contains(OWN_COMPONENT), "it is the workers' alone:\n{master}");
    Ok(())
}

/// The first line about a ConfigMap of this name that comes while the audit log is followed.
fn followed(cluster: &Cluster, name: &str) -> Result<String> {
    let mut child = Command::new(tools::kimg())
        .args(["logs", "--follow", "audit", "--tail", "0"])
        .current_dir(&cluster.dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting kimg")?;
    let out = child.stdout.take().context("no output")?;
    let found = std::thread::scope(|scope| {
        let reader =
            scope.spawn(|| BufReader::new(out).lines().map_while(std::io::Result::ok).find(|l| l.contains(name)));
        // When it has begun to follow is not known: something is changed again and again.
        let came = wait::until("a line in the audit log", wait::scale(60), || {
            cluster.k(&["create", "configmap", name])?;
            cluster.k(&["delete", "configmap", name])?;
            Ok(reader.is_finished().then_some(()))
        });
        child.kill().context("ending kimg")?;
        came?;
        reader.join().map_err(|_| anyhow!("the reader has panicked"))
    });
    child.wait().context("ending kimg")?;
    found?.context("kimg logs ended by itself")
}

/// The administrator's kubeconfig and a worker's certificates, while both go on; the node is not started anew.
fn taken_back(cluster: &Cluster) -> Result {
    std::fs::copy(cluster.kubeconfig(), cluster.dir.join("leaked")).context("copying the kubeconfig")?;
    let leaked = || cluster.kubectl(&["--kubeconfig", "leaked", "get", "nodes"]);
    leaked()?.success()?;
    cluster.kimg(&["pki", "rotate", "admin"])?.success()?;
    let refused = leaked()?;
    ensure!(!refused.ok && refused.all().contains("Unauthorized"), "what leaked is still taken: {}", refused.all());
    let boot = || cluster.k(&["get", "node", "worker-1", "-o", "jsonpath={.status.nodeInfo.bootID}"]);
    let left = |name: &str| -> Result<i64> {
        let said = cluster.kimg(&["pki", "ls", "--json"])?.success()?;
        let all: Vec<serde_json::Value> = serde_json::from_str(&said).context("its JSON")?;
        let held = all.iter().find(|c| c["node"] == "worker-1" && c["name"] == name);
        held.and_then(|c| c["secondsLeft"].as_i64()).with_context(|| format!("no {name} of worker-1"))
    };
    let (begun, kubelet, overlay) = (boot()?, left("kubelet")?, left("overlay")?);
    cluster.kimg(&["pki", "rotate", "node", "worker-1"])?.success()?;
    ensure!(left("kubelet")? > kubelet && left("overlay")? > overlay, "they are those of before");
    // A Lease that is renewed from now on comes from the new certificate.
    let lease =
        || cluster.k(&["-n", "kube-node-lease", "get", "lease", "worker-1", "-o", "jsonpath={.spec.renewTime}"]);
    let renewed = lease()?;
    wait::until("the worker's next Lease", wait::scale(60), || Ok((lease()? != renewed).then_some(())))?;
    ensure!(boot()? == begun, "the node was started anew");
    cluster.kimg(&["status"])?.success().map(drop)
}

fn certificates(cluster: &Cluster) -> Result {
    let list = |args: &[&str]| -> Result<(Vec<serde_json::Value>, String)> {
        let said = cluster.kimg(&[&["pki", "ls", "--json"], args].concat())?;
        ensure!(said.ok, "{}", said.all());
        Ok((serde_json::from_str(&said.out).context("its JSON")?, said.err))
    };
    let (all, said) = list(&[])?;
    for (node, name) in [
        ("master-1", "apiserver"),
        ("master-1", "kubelet"),
        ("worker-1", "kubelet"),
        ("worker-2", "kubelet-server"),
        ("worker-2", "overlay"),
    ] {
        let held = all.iter().find(|c| c["node"] == node && c["name"] == name);
        let held = held.with_context(|| format!("no {name} of {node} in {all:?}"))?;
        ensure!(held["state"] == "ok" && held["subject"].is_string() && held["issuer"].is_string(), "{held}");
    }
    let own = |name: &str| all.iter().any(|c| c["node"].is_null() && c["name"] == name);
    ensure!(own("cluster-ca") && own("kubeconfig"), "the operator's own are not there: {all:?}");
    ensure!(all.iter().map(|c| c["secondsLeft"].as_i64()).is_sorted(), "{all:?}");
    ensure!(!said.contains("expire"), "{said}");
    let (all, said) = list(&["--warn-below", "36500d"])?;
    ensure!(all.iter().all(|c| c["state"] == "soon") && said.contains("expire soon"), "{said} {all:?}");
    let text = cluster.kimg(&["pki", "ls"])?.success()?;
    ensure!(text.starts_with("NODE") && text.contains("system:node:worker-1"), "{text}");
    Ok(())
}

/// What no console and kernel log may hold.
const BAD: &[&str] = &["Out of memory", "oom-kill", "Kernel panic", "BUG:", "panicked at", "Call Trace"];

pub(crate) fn consoles_are_clean(cluster: &Cluster) -> Result {
    for node in cluster.nodes()? {
        let dmesg = cluster.kimg(&["node", "--node", &node, "dmesg"])?.success()?;
        for text in [cluster.console(&node)?, dmesg] {
            let bad = text.lines().find(|l| BAD.iter().any(|b| l.contains(b)));
            ensure!(bad.is_none(), "{node}: {}", bad.unwrap_or_default());
        }
    }
    Ok(())
}
