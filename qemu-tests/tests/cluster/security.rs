//! Who may do what, and who is heard at all.

use crate::example::toolbox;
use anyhow::{Context, ensure};
use qemu_tests::{Cluster, Kubectl, Result};

pub(crate) const TESTS: &[super::Test] = &[
    ("a_service_account_without_rights_is_refused", without_rights),
    ("a_node_may_only_what_concerns_itself", node_restriction),
    ("pods_reach_neither_metadata_nor_node_api", closed_addresses),
    ("a_node_has_only_its_documented_ports_open", ports),
];

fn without_rights(cluster: &Cluster) -> Result {
    let out = cluster.kubectl(&["-n", "default", "get", "pods", "--as=system:serviceaccount:default:default"])?;
    let expected = r#"pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" in API group "" in the namespace "default""#;
    ensure!(out.err.contains(expected), "refused with: {}", out.err);
    Ok(())
}

/// As the kubelet of worker-1 would ask, by impersonation (which keeps the Node authorizer and NodeRestriction in the way).
fn node_restriction(cluster: &Cluster) -> Result {
    let node = |args: &[&str]| {
        let all: Vec<&str> =
            ["--as=system:node:worker-1", "--as-group=system:nodes", "--as-group=system:authenticated"]
                .into_iter()
                .chain(args.iter().copied())
                .collect();
        cluster.kubectl(&all)
    };
    cluster.k(&["-n", "default", "create", "secret", "generic", "foreign", "--from-literal=a=b"])?;
    let out = node(&["-n", "default", "get", "secret", "foreign"])?;
    ensure!(!out.ok && out.err.contains("forbidden"), "a foreign secret was shown: {}", out.all());
    let out = node(&["annotate", "node", "worker-2", "a=b"])?;
    ensure!(!out.ok && out.err.to_lowercase().contains("forbidden"), "another node was changed: {}", out.all());
    let out = node(&["label", "node", "worker-1", "node-restriction.kubernetes.io/x=y"])?;
    ensure!(!out.ok, "a restricted label was taken: {}", out.all());
    cluster.k(&["-n", "default", "delete", "secret", "foreign"]).map(|_| ())
}

fn closed_addresses(cluster: &Cluster) -> Result {
    cluster.namespace("closed")?;
    for (name, host_network) in [("ordinary", false), ("host", true)] {
        let yaml = toolbox(name, Some("worker-1"), host_network);
        cluster.kubectl_of(Kubectl::V1_32, &["-n", "closed", "apply", "-f", "-"], Some(&yaml))?.success()?;
        cluster.pod_ready("closed", name)?;
        for target in ["169.254.169.254 80", "10.77.0.11 10270", "10.77.0.10 10270"] {
            let script = format!("nc -w 3 {target} </dev/null && echo OPEN || echo closed");
            let text = cluster.exec("closed", name, &["sh", "-c", &script])?;
            ensure!(text.contains("closed"), "pod {name} reaches {target}: {text}");
        }
    }
    Ok(())
}

/// From a pod of another node's host network is not from outside: the scan runs over the second interface of worker-2's VM
/// would be blind too. What counts is what the firewall's own rules say to strangers, so a stranger asks.
fn ports(cluster: &Cluster) -> Result {
    let text = cluster.kimg(&["node", "--node", "worker-1", "nft"])?.success()?;
    ensure!(text.contains("kimg-host"), "no host firewall:\n{text}");
    let sockets = cluster.kimg(&["node", "--node", "worker-1", "sockets"])?.success()?;
    let known = ["6443", "10250", "10248", "10249", "10256", "10270", ":53", "9153", "8472"];
    for line in sockets.lines().filter(|l| l.to_lowercase().contains("listen")) {
        let loopback = line.contains("127.0.0.1") || line.contains("[::1]");
        ensure!(loopback || known.iter().any(|p| line.contains(p)), "an undocumented port: {line}");
    }
    ensure!(!sockets.is_empty(), "no sockets listed");
    Ok::<(), anyhow::Error>(()).context("ports")
}
