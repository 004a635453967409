//! `kimg node …`.

use super::write_out;
use crate::client::block_on;
use crate::client::node::NodeClient;
use crate::config::{SecretsForm, Settings};
use crate::input::{self, BadInput};
use crate::node::print::{Row, table};
use crate::node::{Target, chart, print};
use anyhow::{Context, Result};
use node_api::{BootTimeline, Done, NodeStatus, path};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct NodeArgs {
    /// Node of cluster.toml [default: the first master]
    #[arg(long, short, global = true)]
    node: Option<String>,
    /// Address of the node, where it is not the one in cluster.toml
    #[arg(long, global = true)]
    address: Option<String>,
    /// SHA-256 of the node's certificate, from its console, for a node that has not joined
    #[arg(long, global = true)]
    fingerprint: Option<String>,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, clap::Subcommand)]
enum NodeCommand {
    /// Who the node is, what it waits for
    Status,
    /// Services and their state
    Services,
    /// Its logs by time, also of a node that is not in cluster.toml; `kimg logs` has those of all nodes
    Logs {
        /// Services: `init` is PID 1 [default: all but audit]
        services: Vec<String>,
        #[command(flatten)]
        which: super::logs::WhichLines,
    },
    /// The kernel's log
    Dmesg {
        /// Go on with new lines
        #[arg(long, short)]
        follow: bool,
    },
    /// The last boot's timeline as SVG
    BootChart {
        /// File to write [default: standard output]
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Pod sandboxes of the container runtime
    Pods,
    /// Containers of the container runtime
    Containers,
    /// Container images
    Images,
    /// Routes
    Routes,
    /// Network interfaces
    Links,
    /// Tracked connections
    Conntrack,
    /// The nftables rule set
    Nft,
    /// Sockets
    Sockets,
    /// File systems and block devices
    Disk,
    /// Processes and their memory
    Processes,
    /// Certificates on the node
    Certificates,
    /// Start a service anew
    Restart {
        /// Service
        service: String,
    },
    /// Open the sealed secrets of a master that waits for its key
    Unseal,
    /// Restart the node
    Reboot,
    /// Switch the node off
    Poweroff,
}

pub(super) fn run(args: &NodeArgs, settings: &Settings) -> Result<ExitCode> {
    if let Some(name) = &args.node
        && args.address.is_none()
    {
        settings.node(name)?;
    }
    if matches!(args.command, NodeCommand::Unseal) && settings.secrets == SecretsForm::Plain {
        return input::bad(
            "cluster.toml says secrets = \"plain\": the master's image carries its keys in clear, and nothing is sealed",
        );
    }
    if let NodeCommand::BootChart { output: Some(path) } = &args.command {
        input::writable_place(path)?;
    }
    let target =
        Target { node: args.node.clone(), address: args.address.clone(), fingerprint: args.fingerprint.clone() };
    let client = target.client(settings)?;
    block_on(ask(args, settings, &client))
}

async fn ask(args: &NodeArgs, settings: &Settings, client: &NodeClient) -> Result<ExitCode> {
    let json = args.json;
    let shown = match &args.command {
        NodeCommand::Logs { services, which } => {
            let name = args.node.as_deref().unwrap_or("the master");
            return super::logs::of_node(name, client.clone(), services, which).await;
        }
        NodeCommand::Status => {
            let status: NodeStatus = client.get(path::STATUS).await?;
            if json { print_json(&status) } else { write_out(print::status(&status).as_bytes()) }
        }
        NodeCommand::Services => list::<node_api::Service>(client, path::SERVICES, json).await,
        NodeCommand::Dmesg { follow } => {
            client.text(&format!("{}?follow={}", path::DMESG, u8::from(*follow)), write_out).await
        }
        NodeCommand::BootChart { output } => boot_chart(client, output.as_ref(), args, json).await,
        NodeCommand::Pods => list::<node_api::Pod>(client, path::PODS, json).await,
        NodeCommand::Containers => list::<node_api::Container>(client, path::CONTAINERS, json).await,
        NodeCommand::Images => list::<node_api::Image>(client, path::IMAGES, json).await,
        NodeCommand::Routes => list::<node_api::Route>(client, path::ROUTES, json).await,
        NodeCommand::Links => list::<node_api::Link>(client, path::LINKS, json).await,
        NodeCommand::Conntrack => list::<node_api::Connection>(client, path::CONNTRACK, json).await,
        NodeCommand::Nft => client.text(path::NFT, write_out).await,
        NodeCommand::Sockets => list::<node_api::Socket>(client, path::SOCKETS, json).await,
        NodeCommand::Disk => list::<node_api::Disk>(client, path::DISK, json).await,
        NodeCommand::Processes => list::<node_api::Process>(client, path::PROCESSES, json).await,
        NodeCommand::Certificates => list::<node_api::Certificate>(client, path::CERTIFICATES, json).await,
        NodeCommand::Restart { service } => {
            let path = format!("{}/{}{}", path::SERVICES, segment(service)?, path::RESTART_SUFFIX);
            done(client, &path, None).await
        }
        NodeCommand::Unseal => {
            let key = crate::pki::Secrets::open(&settings.secrets_dir()).seal_key()?.to_base64();
            done(client, path::UNSEAL, Some(&serde_json::json!({ "key": key }))).await
        }
        NodeCommand::Reboot => done(client, path::REBOOT, None).await,
        NodeCommand::Poweroff => done(client, path::POWEROFF, None).await,
    };
    shown.map(|()| ExitCode::SUCCESS)
}

async fn list<T: Row + Serialize + DeserializeOwned>(client: &NodeClient, path: &str, json: bool) -> Result<()> {
    let list: Vec<T> = client.get(path).await?;
    if json { print_json(&list) } else { write_out(table(&list).as_bytes()) }
}

async fn done(client: &NodeClient, path: &str, body: Option<&serde_json::Value>) -> Result<()> {
    let done: Done = client.post(path, body).await?;
    write_out(format!("{}\n", done.message).as_bytes())
}

async fn boot_chart(client: &NodeClient, output: Option<&PathBuf>, args: &NodeArgs, json: bool) -> Result<()> {
    let boot: BootTimeline = client.get(path::BOOT).await?;
    if json {
        return print_json(&boot);
    }
    let drawn = chart::svg(args.node.as_deref().unwrap_or("the master"), &boot);
    match output {
        Some(path) => {
            std::fs::write(path, drawn).with_context(|| format!("writing {}", path.display()))?;
            write_out(format!("{}\n", path.display()).as_bytes())
        }
        None => write_out(drawn.as_bytes()),
    }
}

/// A service's name as a part of a path.
fn segment(name: &str) -> Result<&str> {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Ok(name);
    }
    Err(BadInput(format!("`{name}` is no service; `kimg node services` lists them")).into())
}

fn print_json(value: &impl Serialize) -> Result<()> {
    write_out(format!("{}\n", serde_json::to_string_pretty(value).context("writing JSON")?).as_bytes())
}
