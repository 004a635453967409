//! kube-scheduler: finds a node for each pod that has none.
//!
//! The cycle is pure: it looks at a snapshot that follows the watches change by change, and
//! names a node or the reasons why there is none. Around it stand the queue, the binding, and
//! the words that people see.

mod bind;
mod cycle;
#[cfg(test)]
mod fake;
mod node_affinity;
mod pod_affinity;
mod preempt;
mod queue;
mod reason;
mod resources;
mod scheduler;
mod score;
mod snapshot;
mod spread;
mod volumes;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use clap::{ArgAction, Parser};
use control_client::health::{self, Health};
use control_client::{Client, Recorder, leader, notify, process};

use crate::scheduler::Scheduler;

pub const NAME: &str = "kube-scheduler";
const PORT: u16 = 10259;

#[derive(Debug, Parser)]
#[command(name = "kube-scheduler", about = "Finds a node for each pod", next_line_help = true)]
struct Settings {
    /// How to reach the API server, and as whom.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Whether to take a Lease first, where there are several masters.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    leader_elect: bool,
    /// Port of health and metrics on 127.0.0.1.
    #[arg(long = "secure-port")]
    port: Option<u16>,
}

/// Runs the scheduler until it is told to end.
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
    let running: Arc<OnceLock<Arc<Scheduler>>> = Arc::default();
    let for_metrics = running.clone();
    let health = Health::new(move || for_metrics.get().map(|s| s.metrics()).unwrap_or_default());
    health::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, settings.port.unwrap_or(PORT))), health.clone()).await?;
    let client = Client::connect(&settings.kubeconfig, NAME)?;
    let work = async {
        let events = Recorder::start(client.clone(), |_| "default-scheduler", leader::identity());
        let scheduler = Scheduler::start(&client, events);
        notify::status("filling the caches");
        scheduler.synced().await;
        // Set once: this function runs once.
        let _ = running.set(scheduler.clone());
        health.set_ready();
        notify::ready("scheduling");
        tracing::info!("scheduling");
        scheduler.run().await;
        Ok(())
    };
    if settings.leader_elect { leader::lead(&client, NAME, &health, work).await } else { work.await }
}
