//! kimg-status: a page on the master that shows what the cluster does, to who has a link of `kimg status --link`.
//!
//! It writes nothing anywhere. It is a client of the API server with an identity of its own, which sees no Secret, and who
//! looks at the page lends it no rights. A link's token is worth nothing at the API server ([`login`]).
//! Everything that it answers is under a policy by which a browser runs nothing but one script of the login page.

mod collect;
mod html;
mod kubelet;
pub mod login;
mod page;
mod server;

use anyhow::{Context, Result};
use clap::Parser;
use control_client::{connect, notify, process};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

pub use server::Page;

/// As it is called.
pub const NAME: &str = "kimg-status";

/// Its flags.
#[derive(Debug, Clone, Parser)]
#[command(name = NAME, about = "Shows what the cluster does, on one page", next_line_help = true)]
pub struct Settings {
    /// How to reach the API server, and as whom.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The cluster's name.
    #[arg(long)]
    pub cluster: String,
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:10272")]
    pub listen: SocketAddr,
    /// Its certificate; read again once a minute.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// The certificate's key.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
}

/// Serves until it is told to end.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let settings: Settings = match process::settings(NAME, args) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    process::run(NAME, async {
        let page = Page::open(settings).await?;
        notify::ready("showing the cluster to who has a link of kimg status --link");
        page.serve().await
    })
}

fn client(settings: &Settings) -> Result<kube::Client> {
    let agent = concat!("kimg-status/v", env!("CARGO_PKG_VERSION"));
    connect::client(&settings.kubeconfig, agent).context("reading --kubeconfig")
}
