//! Pods that many tests use.

use crate::{Cluster, Kubectl, Result, wait};
use anyhow::{Context, ensure};

/// Debian's static busybox, baked into the worker image.
pub const TOOLBOX: &str = "localhost/kimg/toolbox:latest";

/// A pod that sleeps, on a node or wherever the scheduler likes.
pub fn toolbox(name: &str, node: Option<&str>, host_network: bool) -> String {
    let node = node.map(|n| format!("  nodeName: {n}\n")).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n{node}  hostNetwork: {host_network}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {TOOLBOX}\n    imagePullPolicy: IfNotPresent\n    \
         command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']\n"
    )
}

/// Starts the pods `one` on worker-1 and `two` on worker-2, in a fresh namespace; `two` tells who asks it.
///
/// # Errors
/// They do not start.
pub fn pair(cluster: &Cluster, namespace: &str) -> Result {
    cluster.namespace(namespace)?;
    for (name, node) in [("one", "worker-1"), ("two", "worker-2")] {
        let yaml = toolbox(name, Some(node), false);
        cluster.kubectl_of(Kubectl::V1_32, &["-n", namespace, "apply", "-f", "-"], Some(&yaml))?.success()?;
    }
    cluster.pod_ready(namespace, "one")?;
    cluster.pod_ready(namespace, "two")?;
    let server = "mkdir -p /tmp/www/cgi-bin; printf '#!/bin/sh\\necho\\necho $REMOTE_ADDR\\n' > /tmp/www/cgi-bin/who; \
                  chmod +x /tmp/www/cgi-bin/who; httpd -p 8080 -h /tmp/www";
    cluster.exec(namespace, "two", &["sh", "-c", server]).map(|_| ())
}

/// The address under which `two` sees `one`; none where it does not hear it.
///
/// # Errors
/// kubectl fails.
pub fn seen(cluster: &Cluster, namespace: &str) -> Result<Option<String>> {
    let script =
        format!("wget -q -T 3 -O - http://{}:8080/cgi-bin/who || echo nobody", address(cluster, namespace, "two")?);
    let text = cluster.exec(namespace, "one", &["sh", "-c", &script]).context("asking in pod one")?;
    // busybox listens on IPv6 and shows IPv4 addresses inside of it.
    let text = text.trim().trim_start_matches("[::ffff:").trim_end_matches(']');
    Ok((text != "nobody").then(|| text.to_owned()))
}

/// The pods reach each other, and the server sees the client's own address.
///
/// # Errors
/// They do not in time, or the address is another one.
pub fn reach_each_other(cluster: &Cluster, namespace: &str) -> Result {
    let seen = wait::until("the pod on the other node to answer", wait::scale(15), || seen(cluster, namespace))?;
    let own = address(cluster, namespace, "one")?;
    ensure!(seen == own, "the server sees '{seen}', the client is {own}");
    Ok(())
}

fn address(cluster: &Cluster, namespace: &str, pod: &str) -> Result<String> {
    cluster.k(&["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
}
