//! Certificates that live for 90 seconds, in the long set for ten minutes, and a cluster that does its work for nearly
//! three times as long.

use anyhow::{Context, ensure};
use qemu_tests::tools::{Kubectl, kubectl};
use qemu_tests::{Cluster, Result, pods, wait};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds that the certificates of this cluster's nodes live.
pub fn life() -> u64 {
    // Set by the long set.
    if std::env::var_os("KIMG_TESTS_EVERY_CALL").is_some() { 600 } else { 90 }
}

/// A new connection each time, one that stays open all the while, and what nodes ask and are asked themselves.
pub fn renewed(cluster: &Cluster) -> Result {
    pods::pair(cluster, "certificates")?;
    let (before, services, refused) = (dates(cluster)?, services(cluster)?, refused(cluster)?);
    ensure!(before.len() > 20, "only these: {before:?}");
    let config = cluster.kubeconfig();
    let mut watch = Command::new(kubectl(Kubectl::V1_32)?)
        .arg("--kubeconfig")
        .arg(&config)
        .args(["-n", "certificates", "get", "configmaps", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting kubectl")?;
    let begin = Instant::now();
    let mut rounds = 0;
    let result = (|| -> Result {
        while begin.elapsed() < Duration::from_secs(life() * 8 / 3) {
            let at = format!("after {} s", begin.elapsed().as_secs());
            let name = format!("round-{rounds}");
            cluster.k(&["-n", "certificates", "create", "configmap", &name]).context(at.clone())?;
            cluster.exec("certificates", "one", &["true"]).context(at.clone())?;
            cluster.k(&["-n", "certificates", "logs", "two", "--tail=1"]).context(at.clone())?;
            cluster.kimg(&["node", "--node", "master-1", "status", "--json"])?.success().context(at)?;
            cluster.all_ready()?;
            rounds += 1;
            std::thread::sleep(Duration::from_secs(2));
        }
        Ok(())
    })();
    watch.kill().context("ending kubectl")?;
    let seen = watch.wait_with_output().context("ending kubectl")?;
    result?;
    let seen = String::from_utf8_lossy(&seen.stdout).lines().filter(|line| line.contains("round-")).count();
    ensure!(seen == rounds, "the watch saw {seen} of {rounds} objects");
    let after = dates(cluster)?;
    for (certificate, begin) in &before {
        let now = after.get(certificate).with_context(|| format!("{certificate} is gone"))?;
        ensure!(now > begin, "{certificate} is that of {begin} still");
    }
    ensure!(self::services(cluster)? == services, "something was started again: {services:?}");
    let now = self::refused(cluster)?;
    ensure!(now == refused, "the API server refused somebody: {refused:?}, then {now:?}");
    // Those that only follow objects still do: a new Service has an address, a name and a way to its pod.
    cluster.k(&["-n", "certificates", "expose", "pod", "two", "--port=80", "--target-port=8080", "--name=late"])?;
    wait::until("the new Service by its name", wait::scale(30), || {
        let ask = ["exec", "-n", "certificates", "one", "--", "wget", "-qO-", "-T", "2", "http://late/cgi-bin/who"];
        Ok(cluster.kubectl(&ask)?.ok.then_some(()))
    })?;
    eprintln!("{rounds} rounds in {} s, certificates of {} s", begin.elapsed().as_secs(), life());
    Ok(())
}

/// When each certificate of a node begins, but for those that nobody else has signed.
fn dates(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let text = cluster.kimg(&["pki", "ls", "--json"])?.success()?;
    let all: Vec<Value> = serde_json::from_str(&text).context("reading kimg pki ls --json")?;
    let word = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let is_leaf = |one: &Value| one["node"].is_string() && one["subject"] != one["issuer"];
    let leaves = all.iter().filter(|one| is_leaf(one));
    Ok(leaves.map(|one| (format!("{} {}", word(one, "node"), word(one, "file")), word(one, "notBefore"))).collect())
}

/// How often each service of each node was started again.
fn services(cluster: &Cluster) -> Result<BTreeMap<String, u32>> {
    let mut all = BTreeMap::new();
    for node in cluster.nodes()? {
        let text = cluster.kimg(&["node", "--node", &node, "services", "--json"])?.success()?;
        let services: Vec<node_api::Service> = serde_json::from_str(&text).context("reading kimg node services")?;
        all.extend(services.into_iter().map(|service| (format!("{node} {}", service.name), service.restarts)));
    }
    Ok(all)
}

/// Requests that the API server answered with 401, as it counts them.
fn refused(cluster: &Cluster) -> Result<Vec<String>> {
    let metrics = cluster.k(&["get", "--raw", "/metrics"])?;
    let is_one = |line: &&str| line.starts_with("apiserver_request_total") && line.contains("code=\"401\"");
    Ok(metrics.lines().filter(is_one).map(str::to_owned).collect())
}
