//! What a stranger finds who sits on the nodes' own network: no more than the design lists (section 2, 7).

use anyhow::{Context, ensure};
use qemu_tests::stranger::{Answer, Stranger};
use qemu_tests::{Cluster, Result, wait};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

pub(crate) const TESTS: &[super::Test] = &[
    ("a_stranger_finds_only_the_documented_tcp_ports", tcp_ports),
    ("a_stranger_finds_only_node_ports_by_udp", udp_ports),
    ("a_stranger_reaches_no_service_and_no_pod_through_a_node", behind_a_node),
];

const MASTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const WORKERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(10, 77, 0, 12)];
const API: u16 = 6443;
const NODE_API: u16 = 10270;
/// Of the master, as the cluster has one.
const STATUS_PAGE: u16 = 10272;
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

fn stranger(cluster: &Cluster) -> Result<Stranger> {
    Stranger::plug_in(cluster, 1, Ipv4Addr::new(10, 77, 0, 200))
}

/// Every port of every node.
fn tcp_ports(cluster: &Cluster) -> Result {
    let stranger = stranger(cluster)?;
    let found = stranger.tcp(MASTER, 1..=u16::MAX)?;
    ensure!(
        open(&found) == BTreeSet::from([API, NODE_API, STATUS_PAGE]),
        "open on the master: {}",
        ranges(&open(&found))
    );
    ensure!(found.len() == 3, "the master lets strangers ask at {}", ranges(&found.into_keys().collect()));

    for worker in WORKERS {
        let found = stranger.tcp(worker, 1..=u16::MAX)?;
        let listening: BTreeSet<u16> = node_ports(cluster)?.into_iter().chain([NODE_API]).collect();
        ensure!(open(&found) == listening, "open on {worker}: {}", ranges(&open(&found)));
        let asked: BTreeSet<u16> = found.into_keys().collect();
        let expected: BTreeSet<u16> = NODE_PORTS.chain([80, 443, NODE_API]).collect();
        ensure!(asked == expected, "{worker} lets strangers ask at {}", ranges(&asked));
    }
    Ok(())
}

fn open(found: &BTreeMap<u16, Answer>) -> BTreeSet<u16> {
    found.iter().filter(|(_, answer)| **answer == Answer::Open).map(|(port, _)| *port).collect()
}

/// Ports for people: `80, 443, 30000-32767`.
fn ranges(ports: &BTreeSet<u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == *port => *end = *port,
            _ => runs.push((*port, *port)),
        }
    }
    let texts =
        runs.iter().map(|(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") });
    texts.collect::<Vec<_>>().join(", ")
}

/// The NodePorts of the cluster's services.
fn node_ports(cluster: &Cluster) -> Result<BTreeSet<u16>> {
    let text = cluster.k(&["get", "services", "-A", "-o", "jsonpath={.items[*].spec.ports[*].nodePort}"])?;
    text.split_whitespace().map(|word| word.parse().with_context(|| format!("{word} is no port"))).collect()
}

/// Where something of a node's own listens or might, by UDP; the kernel says only a few times a second that
/// nobody listens, so not every port can be asked.
fn udp_ports(cluster: &Cluster) -> Result {
    let stranger = stranger(cluster)?;
    // Who is the root's name server; VXLAN of network 1 with an empty frame.
    let mut dns = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    dns.extend([0, 2, 0, 1]);
    let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
    vxlan.extend([0; 60]);
    let knocks: Vec<(u16, Vec<u8>)> =
        [(53, dns), (68, vec![0; 300]), (123, vec![0x1b; 48]), (8472, vxlan), (10250, vec![0; 8]), (51820, vec![0; 8])]
            .into();
    for node in [MASTER, WORKERS[0], WORKERS[1]] {
        let found = stranger.udp(node, &knocks)?;
        ensure!(found.is_empty(), "{node} answers a stranger by UDP: {found:?}");
    }
    let unused = (32_000, vec![0; 8]);
    let found = stranger.udp(WORKERS[0], std::slice::from_ref(&unused))?;
    ensure!(
        found.get(&32_000) == Some(&Answer::Refused),
        "a worker says nothing about a NodePort of nobody's: {found:?}"
    );
    let found = stranger.udp(MASTER, &[unused])?;
    ensure!(found.is_empty(), "the master knows NodePorts: {found:?}");
    Ok(())
}

/// Whoever sends packets to a node's hardware address may put any address on them.
fn behind_a_node(cluster: &Cluster) -> Result {
    let stranger = stranger(cluster)?;
    let address = |args: &[&str]| {
        wait::until(&format!("the address: kubectl {}", args.join(" ")), wait::scale(20), || {
            let text = cluster.k(args)?;
            text.trim().parse::<Ipv4Addr>().map(Some).with_context(|| format!("{text:?} is no address"))
        })
    };
    let kubernetes = address(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"])?;
    let dns = address(&["-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}"])?;
    let web = address(&["-n", "example", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let pod = address(&["-n", "example", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"])?;
    for node in [MASTER, WORKERS[0]] {
        for (what, target, ports) in [
            ("the API's service", kubernetes, vec![443]),
            ("DNS", dns, vec![53, 9153]),
            ("the example's service", web, vec![80]),
            ("a pod of the example", pod, vec![80, 8080]),
        ] {
            let found = stranger.tcp_behind(node, target, ports)?;
            ensure!(found.is_empty(), "through {node} a stranger reaches {what} {target}: {found:?}");
        }
    }
    Ok(())
}
