//! What every component on a node that talks to the API server does in the same way:
//! start (logging, runtime, signals), connect with its kubeconfig, follow objects, answer health checks.

mod component;
mod health;
mod news;
mod places;
pub mod revoked;
mod watch;

pub use component::{flags, run};
pub use health::{Health, serve};
pub use news::News;
pub use places::{Place, Places};
pub use watch::{Change, apply, follow};

use anyhow::Context;
use std::path::Path;
use std::time::Duration;

/// Connects with a kubeconfig, waiting for the file: it appears once the node has joined.
///
/// # Errors
/// The file is there and cannot be used.
pub async fn connect(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    while !kubeconfig.exists() {
        node_sys::notify::status(&format!(
            "waits for {}, which is written when this node has joined",
            kubeconfig.display()
        ));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let parsed =
        kube::config::Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &Default::default())
        .await
        .with_context(|| format!("using {}", kubeconfig.display()))?;
    // A watch ends by the server's clock; a dead server is noticed by `api-balancer`, through which all connections go.
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(320));
    kube::Client::try_from(config).with_context(|| format!("connecting as {} says", kubeconfig.display()))
}
