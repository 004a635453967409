//! The cluster's own registry: filled by `kimg push`, read by the nodes, closed to everybody else.

use anyhow::{Context, ensure};
use http::Method;
use kimg::client::{Answer, Https, block_on, tls};
use kimg::pki::{Authority, ClientCertificate, Secrets, Subject, issue};
use node_metadata::REGISTRY;
use qemu_tests::pods::toolbox;
use qemu_tests::{Cluster, Kubectl, Result, tools, wait};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

pub(crate) const TESTS: &[super::Test] = &[
    ("the_registry_gives_both_workers_what_was_pushed", runs),
    ("the_registry_lacks_an_image_and_the_pod_says_so", missed),
    ("the_registry_does_not_answer_pods", closed),
    ("the_registry_keeps_its_images_over_a_restart", restart),
];

const NAME: &str = "registry.kimg.local/team/tool:1";
const NAMESPACE: &str = "registry";

/// A pod of an image that is asked for anew at each start.
fn pod(name: &str, image: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, image: \"{image}\", imagePullPolicy: Always}}\n"
    )
}

fn apply(cluster: &Cluster, yaml: &str) -> Result<String> {
    cluster.kubectl_of(Kubectl::V1_32, &["-n", NAMESPACE, "apply", "-f", "-"], Some(yaml))?.success()
}

fn runs(cluster: &Cluster) -> Result {
    cluster.namespace(NAMESPACE)?;
    // No node can have seen this layer.
    let mark = format!("{:?}", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO));
    let source = cluster.dir.join("tool");
    std::fs::create_dir_all(&source).context("making a folder")?;
    let recipe = format!(
        "name = \"{NAME}\"\nentrypoint = [\"/usr/bin/busybox\", \"sleep\", \"100000\"]\n\
         [[package]]\nname = \"busybox-static\"\nfiles = [\"/usr/bin/busybox\"]\nfollow = []\n\
         [[file]]\npath = \"/etc/mark\"\ntext = \"{mark}\"\n"
    );
    std::fs::write(source.join("image.toml"), recipe).context("writing a recipe")?;
    cluster.kimg(&["build", "image", "tool", "--output", "tool.tar", "--gzip"])?.success()?;

    let first = cluster.kimg(&["push", "tool.tar"])?.success()?;
    ensure!(first.contains("2 parts sent"), "pushed: {first}");
    let second = cluster.kimg(&["push", "tool.tar"])?.success()?;
    ensure!(second.contains("0 parts sent") && second.contains("2 were there"), "pushed again: {second}");
    for (name, node) in [("one", "worker-1"), ("two", "worker-2")] {
        apply(cluster, &pod(name, NAME, node))?;
    }
    for name in ["one", "two"] {
        cluster.pod_ready(NAMESPACE, name)?;
        let text = cluster.exec(NAMESPACE, name, &["/usr/bin/busybox", "cat", "/etc/mark"])?;
        ensure!(text.trim() == mark, "{name} runs an image with the mark {text}");
    }
    let pulled = cluster.kimg(&["pull", NAME, "--output", "pulled.tar"])?.success()?;
    let pushed = first.lines().next().context("nothing was said of the push")?;
    ensure!(pulled.contains(pushed), "pushed: {first}\npulled: {pulled}");
    Ok(())
}

fn missed(cluster: &Cluster) -> Result {
    apply(cluster, &pod("missing", "registry.kimg.local/team/tool:2", "worker-1"))?;
    let said = wait::until("the pod to wait for its image", wait::scale(30), || {
        let pod = cluster.json(&["-n", NAMESPACE, "get", "pod", "missing"])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let pulls = waiting["reason"].as_str().is_some_and(|reason| reason.contains("Pull"));
        Ok(waiting["message"].as_str().filter(|_| pulls).map(str::to_owned))
    })?;
    ensure!(said.contains("not found") && said.contains("`kimg push` brings images"), "the pod says: {said}");
    cluster.k(&["-n", NAMESPACE, "delete", "pod", "missing", "--wait=false"]).map(|_| ())
}

/// Over the pod network and from a node's own, by a relay in a pod; a stranger's whole view is in `outside`.
fn closed(cluster: &Cluster) -> Result {
    let secrets = Secrets::of_cluster(&cluster.dir.join("secrets"), "shared")?;
    let node = Subject { user: "system:node:worker-1".into(), groups: vec!["system:nodes".into()] };
    let node = issue::issue(&secrets, Authority::Cluster, &node, issue::BREAK_GLASS_LIFE)?;
    let others = [("the administrator", issue::admin(&secrets)?), ("the operator", issue::node_operator(&secrets)?)];
    for (name, host_network, registry) in [("pod", false, "10.77.0.10"), ("host", true, "127.0.0.1")] {
        apply(cluster, &toolbox(name, Some("worker-1"), host_network))?;
        cluster.pod_ready(NAMESPACE, name)?;
        let relay = format!("(while true; do nc -l -p 8443 -e nc {registry} 10271; done) >/dev/null 2>&1 </dev/null &");
        cluster.exec(NAMESPACE, name, &["sh", "-c", &relay])?;
        // kubectl ends its forward when a connection in it was broken off, as a refusal does.
        let ask = |who: &ClientCertificate, method: Method, path: &str| {
            Forward::start(cluster, name)?.ask(&secrets, who, method, path)
        };
        // The relay takes one connection after the other.
        let answered = |what: &str, method: &Method, path: &str| {
            wait::until(what, wait::scale(20), || Ok(ask(&node, method.clone(), path).ok()))
        };
        let answer = answered("the registry to answer a node", &Method::GET, "/v2/")?;
        ensure!(answer.status == 200, "the registry says {answer:?} to a node");
        for (who, certificate) in &others {
            let refused = wait::until("the registry's refusal", wait::scale(20), || {
                match ask(certificate, Method::GET, "/v2/") {
                    Ok(answer) => Ok(Some(format!("answered: {answer:?}"))),
                    // Who has shown a certificate and has no answer was judged by it.
                    Err(error) if format!("{error:#}").contains("asking") => Ok(Some(format!("{error:#}"))),
                    Err(error) => Err(error),
                }
            })?;
            ensure!(!refused.starts_with("answered"), "{who} is {refused}");
        }
        let answer = answered("the registry to answer a node's push", &Method::PUT, "/v2/team/tool/manifests/1")?;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        ensure!(
            answer.status == 403 && said.contains("nodes only read"),
            "the registry says {answer:?} to a node's push"
        );
        cluster.k(&["-n", NAMESPACE, "delete", "pod", name, "--wait=false"])?;
    }
    Ok(())
}

/// kubectl's port-forward to a relay.
struct Forward {
    process: Child,
    /// It ends when nobody can read what it says.
    said: BufReader<ChildStdout>,
    target: String,
}

impl Forward {
    fn start(cluster: &Cluster, pod: &str) -> Result<Forward> {
        let mut process = Command::new(tools::kubectl(Kubectl::V1_32)?)
            .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
            .args(["-n", NAMESPACE, "port-forward", &format!("pod/{pod}"), ":8443"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let said = BufReader::new(process.stdout.take().context("kubectl has no output")?);
        let mut forward = Forward { process, said, target: String::new() };
        let mut line = String::new();
        forward.said.read_line(&mut line).context("reading what kubectl says")?;
        let target = line.split_whitespace().nth(2).map(str::to_owned);
        forward.target = target.with_context(|| format!("kubectl says {line:?}"))?;
        Ok(forward)
    }

    fn ask(&self, secrets: &Secrets, who: &ClientCertificate, method: Method, path: &str) -> Result<Answer> {
        let tls = tls::config(&secrets.read(&Authority::Cluster.certificate_file())?, who, None)?;
        let https = Https::new(self.target.clone(), REGISTRY.into(), tls);
        // A connection that came while the relay had another one may hang; what waits for an answer asks again.
        block_on(async {
            let answer = tokio::time::timeout(wait::scale(5), https.send(method, path, None)).await;
            answer.context("no answer in time")?
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn restart(cluster: &Cluster) -> Result {
    let pid = || -> Result<u64> {
        let text = cluster.kimg(&["node", "--node", "master-1", "services", "--json"])?.success()?;
        let all: serde_json::Value = serde_json::from_str(&text).context("reading kimg node services --json")?;
        let list = all["services"].as_array().or(all.as_array()).context("no list of services")?;
        let registry = list.iter().find(|service| service["name"] == "cluster-registry");
        registry.and_then(|service| service["pid"].as_u64()).filter(|pid| *pid > 0).context("it does not run")
    };
    let before = pid()?;
    cluster.kimg(&["node", "--node", "master-1", "restart", "cluster-registry"])?.success()?;
    wait::until("another process of the registry", wait::scale(20), || Ok(pid().ok().filter(|pid| *pid != before)))?;
    let listed = wait::until("the registry to answer", wait::scale(20), || {
        let out = cluster.kimg(&["registry", "ls"])?;
        Ok(out.ok.then_some(out.out))
    })?;
    ensure!(listed.trim() == NAME, "it holds {listed}");
    cluster.k(&["-n", NAMESPACE, "delete", "pod", "one", "--wait=true"])?;
    apply(cluster, &pod("one", NAME, "worker-1"))?;
    cluster.pod_ready(NAMESPACE, "one")?;

    cluster.kimg(&["registry", "rm", NAME])?.success()?;
    let listed = cluster.kimg(&["registry", "ls"])?.success()?;
    ensure!(listed.is_empty(), "it still holds {listed}");
    let again = cluster.kimg(&["registry", "rm", NAME])?;
    ensure!(again.code == 2 && again.err.contains("has no"), "removing twice: {again:?}");
    cluster.k(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(|_| ())
}
