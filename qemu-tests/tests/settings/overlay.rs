//! Host-gw: plain routes between nodes, which only an honest network carries. That vxlan works on either network is shown
//! on the shared cluster.

use anyhow::ensure;
use qemu_tests::{Cluster, Result, pods, wait};

pub fn honest(cluster: &Cluster) -> Result {
    pods::pair(cluster, "net")?;
    let links = cluster.kimg(&["node", "--node", "worker-1", "links"])?.success()?;
    ensure!(!links.contains("vxlan"), "there is a tunnel:\n{links}");
    pods::reach_each_other(cluster, "net")?;
    from_master(cluster, true)
}

/// The same cluster, while the network is a provider's; then it is honest again, and all is well.
pub fn provider(cluster: &Cluster) -> Result {
    cluster.kimg(&["switch", "--set", "all", "--check-source"])?.success()?;
    let result = nothing_passes(cluster);
    cluster.kimg(&["switch", "--set", "all", "--reset"])?.success()?;
    result?;
    pods::reach_each_other(cluster, "net")
}

fn nothing_passes(cluster: &Cluster) -> Result {
    let seen = pods::seen(cluster, "net")?;
    ensure!(seen.is_none(), "a pod is reached on another node, as {seen:?}");
    from_master(cluster, false)?;
    // What the nodes themselves say has their own addresses.
    cluster.all_ready()
}

/// The apiserver asks the pod `two` itself, from the master's address in the pod network.
fn from_master(cluster: &Cluster, works: bool) -> Result {
    let path = "/api/v1/namespaces/net/pods/two:8080/proxy/cgi-bin/who";
    let ask = || cluster.kubectl(&["get", "--raw", path, "--request-timeout=5s"]);
    if works {
        return wait::until("the pod to answer the master", wait::scale(15), || Ok(ask()?.ok.then_some(())));
    }
    let out = ask()?;
    ensure!(!out.ok, "the master reaches the pod: {}", out.all());
    Ok(())
}
