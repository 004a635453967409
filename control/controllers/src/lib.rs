//! kube-controller-manager: what makes the cluster become what its objects say.
//!
//! Each controller is a watch and a timer, takes keys from a queue, and is idempotent:
//! a pure plan of what to do, from what is observed, and the few lines that do it.
//! All of them share the caches in `caches`, one watch a kind, and one connection.

mod caches;
mod context;
mod discovery;
mod quota;
mod runner;
mod settings;

mod account_tokens;
mod addons;
mod aggregation;
mod certificates;
mod disruption;
mod endpoints;
mod garbage;
mod load_balancers;
mod namespaces;
mod nodes;
mod pod_collector;
mod service_accounts;
mod storage;
mod workloads;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use control_client::health::{self, Health};
use control_client::{Client, Recorder, leader, notify, process};

use crate::caches::Caches;
use crate::context::Context;
use crate::settings::Settings;

pub const NAME: &str = "kube-controller-manager";
const PORT: u16 = 10257;

/// Runs the controller-manager until it is told to end.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let settings: Settings = match process::settings(NAME, args) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let (kubeconfig, leads) = (settings.kubeconfig.clone(), settings.leader_elect);
    process::run_then(NAME, run(settings), async move {
        if leads {
            leader::let_go(Client::connect(&kubeconfig, NAME), NAME).await;
        }
    })
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let health = Health::new(runner::metrics);
    health::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, settings.port.unwrap_or(PORT))), health.clone()).await?;
    let client = Client::connect(&settings.kubeconfig, NAME)?;
    let leads = settings.leader_elect;
    let work = async {
        let context = Arc::new(Context {
            events: Recorder::start(client.clone(), component_for, leader::identity()),
            caches: Caches::start(&client),
            client: client.clone(),
            settings,
        });
        notify::status("filling the caches");
        context.caches.synced().await;
        start_controllers(&context)?;
        health.set_ready();
        notify::ready("controllers run");
        tracing::info!("controllers run");
        std::future::pending::<anyhow::Result<()>>().await
    };
    if leads { leader::lead(&client, NAME, &health, work).await } else { work.await }
}

fn start_controllers(context: &Arc<Context>) -> anyhow::Result<()> {
    nodes::start(context).context("starting the node controllers")?;
    certificates::start(context).context("starting the certificate controllers")?;
    service_accounts::start(context).context("starting the service account controllers")?;
    account_tokens::start(context).context("starting the service account token controller")?;
    namespaces::start(context);
    endpoints::start(context);
    load_balancers::start(context);
    workloads::start(context);
    storage::start(context);
    disruption::start(context);
    quota::start(context);
    aggregation::start(context);
    pod_collector::start(context);
    garbage::start(context);
    addons::start(context);
    Ok(())
}

/// The source that events name, as upstream calls the controller of the kind.
fn component_for(kind: &str) -> &'static str {
    match kind {
        "Deployment" => "deployment-controller",
        "ReplicaSet" => "replicaset-controller",
        "ReplicationController" => "replication-controller",
        "DaemonSet" => "daemonset-controller",
        "StatefulSet" => "statefulset-controller",
        "Job" => "job-controller",
        "CronJob" => "cronjob-controller",
        "Node" => "node-controller",
        "Service" => "service-controller",
        "Pod" => "taint-eviction-controller",
        "PersistentVolume" | "PersistentVolumeClaim" => "persistentvolume-controller",
        "PodDisruptionBudget" => "controllermanager",
        _ => NAME,
    }
}
