//! Copies of the store on workers: every so often the first two ready workers fetch a snapshot from the API server.
//! It is encrypted to the operator's key before it leaves the master, so that a worker holds nothing it could read.

mod keep;
mod plan;

use anyhow::{Context, Result};
use clap::Parser;
use futures::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use keep::Keep;
use node_api::Backup;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The API server's path.
const PATH: &str = "/kimg/backup";
/// Its header with the snapshot's revision.
const REVISION: &str = "kimg-revision";
/// How often it is asked who keeps copies, at most, and while there is none.
const LOOK: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_secs(5);
/// No answer for so long is none.
const PATIENCE: Duration = Duration::from_secs(120);

/// Copies of the store.
#[derive(Debug, Parser)]
#[command(name = "backup", version)]
struct Flags {
    /// Kubeconfig of this component.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Name of this node.
    #[arg(long)]
    node_name: String,
    /// Seconds between two copies.
    #[arg(long, default_value_t = 600)]
    every: u64,
    /// Where they are kept.
    #[arg(long, default_value = node_api::BACKUP_DIR)]
    dir: PathBuf,
}

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    node_client::run("backup", run(flags))
}

async fn run(flags: Flags) -> Result<()> {
    let keep = Keep::open(&flags.dir)?;
    let client = node_client::connect(&flags.kubeconfig).await?;
    let every = Duration::from_secs(flags.every.max(1));
    node_sys::notify::ready();
    let mut said = String::new();
    loop {
        let status = match round(&client, &keep, &flags.node_name, every).await {
            Ok(status) => status,
            Err(error) => format!("no backup: {error:#}"),
        };
        node_sys::notify::status(&status);
        let failed = status.starts_with("no ");
        if failed && status != said {
            tracing::warn!("{status}");
        }
        said = status;
        let none = failed && keep.list().is_ok_and(|kept| kept.is_empty());
        tokio::time::sleep(if none { FIRST } else { LOOK.min(every / 2) }).await;
    }
}

/// Takes a copy if this node keeps some and one is due; says how it stands.
async fn round(client: &kube::Client, keep: &Keep, name: &str, every: Duration) -> Result<String> {
    let nodes =
        kube::Api::<Node>::all(client.clone()).list(&Default::default()).await.context("asking for the nodes")?;
    let keepers = plan::keepers(&nodes.items);
    if !keepers.contains(name) {
        return Ok(match keepers.len() {
            0 => "no worker is ready to keep backups".to_owned(),
            _ => format!("{} keep the backups", Vec::from_iter(keepers).join(" and ")),
        });
    }
    let mut kept = keep.list()?;
    let now = unix_ms();
    if plan::is_due(&kept, now, u64::try_from(every.as_millis()).unwrap_or(u64::MAX)) {
        kept.push(fetch(client, keep, &kept, now).await?);
        keep.remove(&plan::outdated(&kept, now))?;
    }
    let newest = kept.iter().max().context("there is no backup yet")?;
    Ok(format!("newest backup: revision {}, {} bytes", newest.revision, newest.bytes))
}

async fn fetch(client: &kube::Client, keep: &Keep, kept: &[Backup], now: u64) -> Result<Backup> {
    let request = http::Request::get(PATH).body(kube::client::Body::empty()).context("writing the request")?;
    let response = in_time(client.send(request)).await?.context("asking the API server")?;
    let (parts, body) = response.into_parts();
    anyhow::ensure!(parts.status.is_success(), "the API server answers {PATH} with {}", parts.status);
    let number = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let revision = number(REVISION).context("the API server does not say the backup's revision")?;
    if let Some(older) = plan::older_store(kept, revision, now) {
        anyhow::bail!(
            "the store has begun anew (revision {revision}), and {} is of the one before: `kimg backup restore` brings \
             that back; none is taken until then, or for a week",
            older.name()
        );
    }
    let mut incoming = keep.begin()?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = in_time(pieces.next()).await? {
        incoming.write(&piece.context("the backup was cut off")?)?;
    }
    incoming.end(now, revision, number("content-length"))
}

async fn in_time<T>(asked: impl Future<Output = T>) -> Result<T> {
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.with_context(|| format!("the API server did not answer for {} s", PATIENCE.as_secs()))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
