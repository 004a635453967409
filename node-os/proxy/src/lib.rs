//! kube-proxy: Services as nftables rules, one netlink transaction a change, the size of the change.
//! Also `api-balancer`, the loopback entrance to the API servers on nodes without one.

mod balancer;
mod conntrack;
mod model;
mod rules;
mod state;

pub use balancer::main as balancer_main;

use anyhow::Context;
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use node_client::Health;
use state::State;
use std::cell::RefCell;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Services to nftables.
#[derive(Debug, Parser)]
#[command(name = "kube-proxy", version)]
struct Flags {
    /// Kubeconfig of this component.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Name of this node.
    #[arg(long)]
    hostname_override: String,
    /// Pod addresses of the whole cluster: other sources are masqueraded.
    #[arg(long)]
    cluster_cidr: ipnet::Ipv4Net,
    /// Addresses of this node, where it answers for Services of type LoadBalancer; none on a master.
    #[arg(long, value_delimiter = ',')]
    node_ips: Vec<Ipv4Addr>,
    /// Address of the health port.
    #[arg(long, default_value = "127.0.0.1:10256")]
    healthz_bind_address: SocketAddr,
    /// Address of the metrics port.
    #[arg(long, default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
}

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    node_client::run("kube-proxy", async move { tokio::task::LocalSet::new().run_until(run(flags)).await })
}

/// Changes that come together are applied together; short enough to stay unnoticed.
const GATHER: Duration = Duration::from_millis(20);
/// After a refused transaction everything is written anew.
const RETRY: Duration = Duration::from_secs(2);

async fn run(flags: Flags) -> anyhow::Result<()> {
    let client = node_client::connect(&flags.kubeconfig).await?;
    let settings = rules::Settings { pod_cidr: (flags.cluster_cidr.network(), flags.cluster_cidr.prefix_len()) };
    let metrics = Rc::new(Metrics::default());
    for address in [flags.healthz_bind_address, flags.metrics_bind_address] {
        let metrics = metrics.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = node_client::serve(address, metrics).await {
                tracing::error!("{error:#}");
            }
        });
    }
    let ours = watcher::Config::default().labels(&format!("!{}", model::PROXY_NAME_LABEL));
    let mut services = std::pin::pin!(node_client::follow::<Service>(kube::Api::all(client.clone()), ours, "services"));
    let slices = watcher::Config::default();
    let mut slices =
        std::pin::pin!(node_client::follow::<EndpointSlice>(kube::Api::all(client), slices, "endpointslices"));

    let mut state = State::new(flags.hostname_override, flags.node_ips, settings);
    let mut due: Option<tokio::time::Instant> = None;
    loop {
        let end = state.next_end();
        let ends = end.is_some() && due.is_none() && state.complete();
        tokio::select! {
            Some(change) = services.next() => state.services(change, Instant::now()),
            Some(change) = slices.next() => state.slices(change),
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                due = None;
                let start = Instant::now();
                match state.sync(start).context("writing service rules") {
                    Ok(true) => metrics.synced(start.elapsed()),
                    Ok(false) => {}
                    Err(error) => {
                        metrics.failed(&error);
                        due = Some(tokio::time::Instant::now() + RETRY);
                    }
                }
                continue;
            }
            () = tokio::time::sleep_until(end.map_or_else(tokio::time::Instant::now, Into::into)), if ends => {}
        }
        if state.complete() && due.is_none() {
            due = Some(tokio::time::Instant::now() + GATHER);
        }
    }
}

#[derive(Debug, Default)]
struct Metrics {
    syncs: RefCell<u64>,
    last_secs: RefCell<f64>,
    problem: RefCell<Option<String>>,
}

impl Metrics {
    fn synced(&self, took: Duration) {
        if *self.syncs.borrow() == 0 {
            node_sys::notify::ready();
        }
        *self.syncs.borrow_mut() += 1;
        *self.last_secs.borrow_mut() = took.as_secs_f64();
        *self.problem.borrow_mut() = None;
    }
    fn failed(&self, error: &anyhow::Error) {
        tracing::error!("{error:#}; writing all rules anew in {} s", RETRY.as_secs());
        *self.problem.borrow_mut() = Some(format!("{error:#}"));
    }
}

impl Health for Metrics {
    fn healthy(&self) -> Result<(), String> {
        match (&*self.problem.borrow(), *self.syncs.borrow()) {
            (Some(problem), _) => Err(problem.clone()),
            (None, 0) => Err("has not yet heard of services and endpoints".into()),
            (None, _) => Ok(()),
        }
    }
    fn metrics(&self) -> String {
        format!(
            "# TYPE kubeproxy_sync_proxy_rules_total counter\nkubeproxy_sync_proxy_rules_total {}\n\
             # TYPE kubeproxy_sync_proxy_rules_last_duration_seconds gauge\nkubeproxy_sync_proxy_rules_last_duration_seconds {}\n",
            self.syncs.borrow(),
            self.last_secs.borrow()
        )
    }
}

/// Whether an address is one that IPv4 rules can use.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok()
}
