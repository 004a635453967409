//! Cluster DNS on every worker: pods of a node ask the DNS of that node, at the cluster DNS address,
//! which overlay puts on the node. Answers the cluster's zone from Services and EndpointSlices,
//! everything else from the node's own resolvers.

pub mod answer;
mod forward;
pub mod server;
pub mod zone;

use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use node_client::Health;
use server::Shared;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// Cluster DNS.
#[derive(Debug, Parser)]
#[command(name = "cluster-dns", version)]
struct Flags {
    /// Kubeconfig of this component.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Where to answer: the cluster DNS address.
    #[arg(long)]
    bind_address: IpAddr,
    /// Port to answer on.
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// Resolvers for names outside the cluster.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Health and metrics; port 9153 on the cluster DNS address unless said otherwise.
    #[arg(long)]
    metrics_bind_address: Option<SocketAddr>,
}

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    node_client::run("cluster-dns", async move { tokio::task::LocalSet::new().run_until(run(flags)).await })
}

/// Changes that come together make one new zone.
const GATHER: Duration = Duration::from_millis(50);

type Objects<K> = BTreeMap<String, K>;

async fn run(flags: Flags) -> anyhow::Result<()> {
    let client = node_client::connect(&flags.kubeconfig).await?;
    let shared = Shared::new(forward::Forwarder::new(flags.resolv_conf));
    let address = SocketAddr::from((flags.bind_address, flags.port));
    let metrics = flags.metrics_bind_address.unwrap_or_else(|| SocketAddr::from((flags.bind_address, 9153)));
    let all = watcher::Config::default;
    let follow = follow(client, all, &flags.cluster_domain, shared.clone());
    // Any of these ends only by failing, and then the whole component starts anew.
    tokio::try_join!(
        server::udp(address, shared.clone()),
        server::tcp(address, shared.clone()),
        node_client::serve(metrics, Rc::new(State(shared.clone()))),
        follow
    )?;
    Ok(())
}

async fn follow(
    client: kube::Client,
    all: fn() -> watcher::Config,
    domain: &str,
    shared: Rc<Shared>,
) -> anyhow::Result<()> {
    let mut services =
        std::pin::pin!(node_client::follow::<Service>(kube::Api::all(client.clone()), all(), "services"));
    let mut slices =
        std::pin::pin!(node_client::follow::<EndpointSlice>(kube::Api::all(client.clone()), all(), "endpointslices"));
    let mut namespaces = std::pin::pin!(node_client::follow::<Namespace>(kube::Api::all(client), all(), "namespaces"));
    let (mut known_services, mut known_slices, mut known_namespaces) = (Objects::new(), Objects::new(), Objects::new());
    let mut heard = [false; 3];
    let mut due: Option<tokio::time::Instant> = None;
    loop {
        tokio::select! {
            Some(change) = services.next() => heard[0] |= node_client::apply(&mut known_services, change),
            Some(change) = slices.next() => heard[1] |= node_client::apply(&mut known_slices, change),
            Some(change) = namespaces.next() => heard[2] |= node_client::apply(&mut known_namespaces, change),
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                due = None;
                let names = known_namespaces.values().filter_map(|n: &Namespace| n.metadata.name.as_deref());
                let zone = zone::Zone::new(domain, known_services.values(), known_slices.values(), names);
                if shared.zone.borrow_mut().replace(zone).is_none() {
                    node_sys::notify::ready();
                }
                continue;
            }
        }
        if heard.iter().all(|h| *h) && due.is_none() {
            due = Some(tokio::time::Instant::now() + GATHER);
        }
    }
}

#[derive(Debug)]
struct State(Rc<Shared>);

impl Health for State {
    fn healthy(&self) -> Result<(), String> {
        match &*self.0.zone.borrow() {
            Some(_) => Ok(()),
            None => Err("has not yet heard of services and endpoints".into()),
        }
    }
    fn metrics(&self) -> String {
        format!(
            "# TYPE coredns_dns_requests_total counter\ncoredns_dns_requests_total {}\n\
             # TYPE coredns_forward_requests_total counter\ncoredns_forward_requests_total {}\n",
            self.0.queries.get(),
            self.0.forwards.get()
        )
    }
}
