//! The example application runs as a user would run it.

use anyhow::{Context, ensure};
use qemu_tests::{Cluster, Result, tools, wait};
use std::collections::BTreeSet;

pub(crate) const TESTS: &[super::Test] = &[
    ("the_example_runs_on_two_workers", runs),
    ("its_service_is_answered_by_both_pods", service),
    ("its_node_port_answers_from_outside", node_port),
    ("dns_answers_for_its_service", dns),
    ("its_job_completes_and_names_its_node", job),
    ("the_service_proxy_reaches_it_from_the_master", proxy),
];

pub(crate) use qemu_tests::pods::toolbox;

fn runs(cluster: &Cluster) -> Result {
    let manifests = tools::workspace().join("images/examples/web/manifests");
    cluster.k(&["apply", "-f", &manifests.display().to_string()])?;
    let timeout = format!("--timeout={}s", wait::scale(60).as_secs());
    cluster.k(&["-n", "example", "rollout", "status", "deployment/web", &timeout])?;
    let nodes =
        cluster.k(&["-n", "example", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    let nodes: BTreeSet<&str> = nodes.split_whitespace().collect();
    ensure!(nodes.len() == 2, "both pods run on {nodes:?}");
    Ok(())
}

/// Asks the service 30 times; which pods answered.
fn answers(cluster: &Cluster, pod: &str) -> Result<BTreeSet<String>> {
    let ip = cluster.k(&["-n", "example", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let script = format!("for i in $(seq 30); do wget -q -T 5 -O - http://{ip}/status/ || echo FAILED; echo; done");
    let text = cluster.exec("example", pod, &["sh", "-c", &script])?;
    ensure!(!text.contains("FAILED"), "a request failed:\n{text}");
    Ok(text.lines().filter(|l| l.contains("ok")).map(str::to_owned).collect())
}

fn service(cluster: &Cluster) -> Result {
    for (name, host_network) in [("client", false), ("host-client", true)] {
        cluster
            .kubectl_of(
                tools::Kubectl::V1_32,
                &["-n", "example", "apply", "-f", "-"],
                Some(&toolbox(name, Some("worker-1"), host_network)),
            )?
            .success()?;
        cluster.pod_ready("example", name)?;
        let who = answers(cluster, name)?;
        ensure!(who.len() == 2, "30 requests of {name} were answered by {who:?}");
    }
    let flows = cluster.kimg(&["node", "--node", "worker-1", "conntrack"])?.success()?;
    let pods =
        cluster.k(&["-n", "example", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"])?;
    for ip in pods.split_whitespace() {
        ensure!(flows.contains(ip), "kimg node conntrack shows no flow to {ip}:\n{flows}");
    }
    Ok(())
}

fn node_port(cluster: &Cluster) -> Result {
    let status = cluster.kimg(&["status", "--json"])?.success()?;
    let status: serde_json::Value = serde_json::from_str(&status).context("reading kimg status --json")?;
    let port = status["nodePorts"]["30080"].as_u64().with_context(|| format!("no NodePort 30080 in {status}"))?;
    let text = wait::until("the NodePort to answer", wait::scale(20), || {
        let out = qemu_tests::cluster::run_in(
            &cluster.dir,
            "curl".into(),
            &["-s", "-m", "5", &format!("http://127.0.0.1:{port}/status/")],
            None,
        )?;
        Ok(out.ok.then_some(out.out))
    })?;
    ensure!(text.contains("ok"), "it said {text}");
    Ok(())
}

fn dns(cluster: &Cluster) -> Result {
    for name in ["web.example.svc.cluster.local", "kubernetes.default.svc.cluster.local"] {
        let text = cluster.exec("example", "client", &["nslookup", name])?;
        ensure!(text.contains("10.32.0."), "{name}: {text}");
    }
    // busybox's nslookup asks for every suffix of the search list and fails if one is missing; its wget resolves as the C library does.
    let text = cluster.exec("example", "client", &["wget", "-q", "-T", "5", "-O", "-", "http://web/status/"])?;
    ensure!(text.contains("ok"), "by its short name: {text}");
    Ok(())
}

fn job(cluster: &Cluster) -> Result {
    let timeout = format!("--timeout={}s", wait::scale(60).as_secs());
    let jobs = cluster.k(&["-n", "example", "get", "jobs", "-o", "name"])?;
    let job = jobs.split_whitespace().next().context("the example has no Job")?;
    cluster.k(&["-n", "example", "wait", "--for=condition=Complete", &timeout, job])?;
    let pod = cluster.k(&[
        "-n",
        "example",
        "get",
        "pods",
        "-l",
        &format!("batch.kubernetes.io/job-name={}", job.trim_start_matches("job.batch/")),
        "-o",
        "jsonpath={.items[0].metadata.name} {.items[0].spec.nodeName}",
    ])?;
    let (name, node) = pod.split_once(' ').context("the Job has no pod")?;
    let events = cluster.k(&[
        "-n",
        "example",
        "get",
        "events",
        "--field-selector",
        &format!("involvedObject.name={name},reason=Scheduled"),
        "-o",
        "jsonpath={.items[*].message}",
    ])?;
    ensure!(events.contains(node), "the Scheduled event says '{events}', the pod ran on {node}");
    Ok(())
}

fn proxy(cluster: &Cluster) -> Result {
    let text = cluster.k(&["get", "--raw", "/api/v1/namespaces/example/services/web:80/proxy/status/"])?;
    ensure!(text.contains("ok"), "it said {text}");
    Ok(())
}
