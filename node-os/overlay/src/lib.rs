//! The pod network between nodes: each node's pod CIDR is reached through every other node's address.
//! Follows Node objects; nothing else is stored or published: a peer's tunnel address follows from
//! its node address and pod CIDR alone.
//!
//! Also here, because they follow Node objects too: the CNI configuration of this node,
//! and the host firewall's set of node addresses.

mod apply;
mod links;
mod plan;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use node_client::Change;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How packets between pods travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// In UDP 8472 between node addresses.
    Vxlan,
    /// By plain routes; only where the network carries foreign source addresses.
    HostGw,
}

/// Pod network between nodes.
#[derive(Debug, Parser)]
#[command(name = "overlay", version)]
struct Flags {
    /// Kubeconfig of this component.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Name of this node.
    #[arg(long)]
    node_name: String,
    /// Address of this node; tunnels begin here.
    #[arg(long)]
    node_ip: Ipv4Addr,
    /// Pod addresses of the whole cluster.
    #[arg(long)]
    cluster_cidr: ipnet::Ipv4Net,
    /// Service addresses.
    #[arg(long)]
    service_cidr: ipnet::Ipv4Net,
    /// Cluster DNS address, put on this node; without it the node answers no DNS.
    #[arg(long)]
    dns_address: Option<Ipv4Addr>,
    /// How packets travel.
    #[arg(long, value_enum, default_value = "vxlan")]
    mode: Mode,
    /// Where the CNI configuration goes; without it none is written.
    #[arg(long)]
    cni_conf_dir: Option<PathBuf>,
}

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    node_client::run("overlay", run(flags))
}

/// Changes that come together are applied together.
const GATHER: Duration = Duration::from_millis(50);
/// What the kernel lost or refused is put right again.
const RESYNC: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);

async fn run(flags: Flags) -> anyhow::Result<()> {
    let mut network = apply::Network::new(&flags).await.context("preparing the node's network")?;
    let client = node_client::connect(&flags.kubeconfig).await?;
    let config = watcher::Config::default();
    let mut changes = std::pin::pin!(node_client::follow::<Node>(kube::Api::all(client), config, "nodes"));
    let mut nodes: BTreeMap<String, plan::NodeFacts> = BTreeMap::new();
    let mut heard = false;
    let mut ready = false;
    let mut due = tokio::time::Instant::now() + RESYNC;
    loop {
        tokio::select! {
            Some(change) = changes.next() => {
                heard |= matches!(change, Change::All(_));
                if heard && take(&mut nodes, change) {
                    due = due.min(tokio::time::Instant::now() + GATHER);
                }
            }
            () = tokio::time::sleep_until(due), if heard => {
                let wanted = plan::plan(&nodes, &flags.node_name);
                due = tokio::time::Instant::now() + RESYNC;
                match network.bring_to(&wanted).await {
                    Ok(()) if wanted.own_cidr.is_some() => {
                        if !ready {
                            node_sys::notify::ready();
                            ready = true;
                        }
                        node_sys::notify::status(&format!("{} other nodes reached", wanted.peers.len()));
                    }
                    Ok(()) => node_sys::notify::status(&format!("waits for node {} to get a pod CIDR", flags.node_name)),
                    Err(error) => {
                        tracing::error!("{error:#}; trying again");
                        node_sys::notify::status(&format!("{error:#}"));
                        due = tokio::time::Instant::now() + RETRY;
                    }
                }
            }
        }
    }
}

/// Notes a change; true if something that matters here is different now.
fn take(nodes: &mut BTreeMap<String, plan::NodeFacts>, change: Change<Node>) -> bool {
    let before = nodes.clone();
    match change {
        Change::All(all) => *nodes = all.iter().filter_map(plan::facts).collect(),
        Change::Apply(node) => {
            if let Some((name, facts)) = plan::facts(&node) {
                nodes.insert(name, facts);
            }
        }
        Change::Delete(node) => {
            nodes.remove(node.metadata.name.as_deref().unwrap_or(""));
        }
    }
    *nodes != before
}
