//! Pod to pod across nodes, and the provider's rule against foreign sources.

use anyhow::{Context, ensure};
use qemu_tests::{Cluster, Kubectl, Result, pods, wait};

pub(crate) const TESTS: &[super::Test] = &[
    ("a_pod_sees_the_address_of_a_pod_on_another_node", no_nat),
    ("a_pod_address_that_is_nobodys_is_unreachable", nobodys),
    ("vxlan_works_where_the_network_drops_foreign_sources", provider_network),
    ("pods_reach_the_api_and_the_world_of_the_node", pod_to_api),
    ("host_ports_answer", host_port),
    ("session_affinity_keeps_a_client_with_its_pod", affinity),
];

fn no_nat(cluster: &Cluster) -> Result {
    pods::pair(cluster, "net")?;
    pods::reach_each_other(cluster, "net")?;
    // What is full drops packets of whoever comes next: two minutes of 400 new connections a second fit.
    let tracked = cluster.exec("net", "one", &["cat", "/proc/sys/net/netfilter/nf_conntrack_max"])?;
    let tracked: u32 = tracked.trim().parse().with_context(|| format!("no number: {tracked}"))?;
    ensure!(tracked > 48_000, "the node tracks {tracked} connections at most");
    Ok(())
}

/// Neither of this node's pods nor of any node's: by the default route a stranger could answer.
fn nobodys(cluster: &Cluster) -> Result {
    let own = cluster.k(&["get", "node", "worker-1", "-o", "jsonpath={.spec.podCIDR}"])?;
    let (start, _) = own.rsplit_once('.').context("a pod CIDR")?;
    for address in [format!("{start}.250"), "10.200.250.1".to_owned()] {
        // The node's kernel says so once in two seconds, or five times after a pause; and the pod's believes it of a second
        // SYN only, where one processor does both and the first one's socket is still being worked on.
        let knock = format!("sleep 6; nc -w 3 {address} 80 </dev/null 2>&1; true");
        wait::until(&format!("{address} to be unreachable"), wait::scale(20), || {
            Ok(cluster.exec("net", "one", &["sh", "-c", &knock])?.contains("No route to host").then_some(()))
        })?;
    }
    Ok(())
}

/// As providers do: a frame whose source is not the sender's own address is lost.
fn provider_network(cluster: &Cluster) -> Result {
    cluster.kimg(&["switch", "--set", "all", "--check-source"])?.success()?;
    let works = pods::reach_each_other(cluster, "net");
    cluster.kimg(&["switch", "--set", "all", "--reset"])?.success()?;
    works
}

fn pod_to_api(cluster: &Cluster) -> Result {
    let text = cluster.exec("net", "one", &["sh", "-c", "nc -w 3 kubernetes.default 443 </dev/null && echo open"])?;
    ensure!(text.contains("open"), "the API's service address does not answer a pod: {text}");
    Ok(())
}

fn host_port(cluster: &Cluster) -> Result {
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: hostport}\nspec:\n  nodeName: worker-2\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: localhost/kimg/toolbox:latest\n    imagePullPolicy: IfNotPresent\n    command: [sh, -c, 'echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp']\n    ports: [{containerPort: 80, hostPort: 8099}]\n";
    cluster.kubectl_of(Kubectl::V1_32, &["-n", "net", "apply", "-f", "-"], Some(yaml))?.success()?;
    cluster.pod_ready("net", "hostport")?;
    let text = wait::until("the host port", wait::scale(15), || {
        let out = cluster.kubectl(&[
            "-n",
            "net",
            "exec",
            "one",
            "--",
            "wget",
            "-q",
            "-T",
            "3",
            "-O",
            "-",
            "http://10.77.0.12:8099/index.html",
        ])?;
        Ok(out.ok.then_some(out.out))
    });
    // A stranger may reach it too, and would find a port that no document lists.
    cluster.k(&["-n", "net", "delete", "pod", "hostport", "--wait=false"])?;
    ensure!(text.context("through the host port")?.contains("hello"), "another answer");
    Ok(())
}

fn affinity(cluster: &Cluster) -> Result {
    cluster.k(&["-n", "example", "patch", "service", "web", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#])?;
    let ip = cluster.k(&["-n", "example", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let script = format!("for i in $(seq 12); do wget -q -T 5 -O - http://{ip}/status/; echo; done");
    let one = wait::until("one pod to answer all", wait::scale(15), || {
        let text = cluster.exec("example", "client", &["sh", "-c", &script])?;
        let pods: std::collections::BTreeSet<&str> = text.lines().filter(|l| !l.is_empty()).collect();
        Ok((pods.len() == 1).then_some(()))
    });
    cluster.k(&["-n", "example", "patch", "service", "web", "-p", r#"{"spec":{"sessionAffinity":"None"}}"#])?;
    one
}
