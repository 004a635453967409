//! The cluster's own registry, on its master: a small server of the OCI distribution API.
//!
//! [`names`] says what a name and a digest are, [`store`] what lies on the disk, [`routes`] answers requests, [`tls`]
//! says who comes. Nodes read over TLS with the certificate of their kubelet; the operator writes through the node API,
//! which is the only one that opens the socket. Whoever is neither gets no answer at all.

pub mod names;
pub mod routes;
pub mod store;
mod tls;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use clap::Parser;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use node_client::Places;
use node_client::revoked::Revoked;
use routes::{Caller, Serving};
use std::convert::Infallible;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tls::Tls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// The cluster's own registry.
#[derive(Debug, Parser)]
#[command(name = "cluster-registry", version)]
struct Flags {
    /// Where nodes ask
    #[arg(long)]
    listen: SocketAddr,
    /// Where the node API asks, for the operator
    #[arg(long)]
    socket: PathBuf,
    /// Folder of what is held
    #[arg(long)]
    data_dir: PathBuf,
    /// The most that is held, MiB
    #[arg(long)]
    size_mib: u64,
    /// Certificate to show
    #[arg(long)]
    tls_cert_file: PathBuf,
    /// Its key
    #[arg(long)]
    tls_private_key_file: PathBuf,
    /// Authority of the nodes' certificates
    #[arg(long)]
    client_ca_file: PathBuf,
    /// By which the API server says which of them were taken back
    #[arg(long)]
    kubeconfig: PathBuf,
}

/// More nodes pull at the same time only on paper: containerd asks for two layers at once.
const MOST_CONNECTIONS: usize = 128;
/// Pods may begin a handshake here, too, under their node's address.
const MOST_OF_ONE: usize = 32;
const HANDSHAKE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    node_client::run("cluster-registry", async move { tokio::task::LocalSet::new().run_until(run(flags)).await })
}

async fn run(flags: Flags) -> Result<()> {
    let store = Store::open(&flags.data_dir, flags.size_mib << 20)?;
    let revoked = Arc::new(Revoked::default());
    let tls = Tls::read(&flags.tls_cert_file, &flags.tls_private_key_file, &flags.client_ca_file, revoked.clone())?;
    let client = node_client::connect(&flags.kubeconfig).await?;
    let socket = listen_on(&flags.socket)?;
    let port = TcpListener::bind(flags.listen).await.with_context(|| format!("binding {}", flags.listen))?;
    node_sys::notify::status(&store.summary()?);
    node_sys::notify::ready();
    let serving = Serving::new(store);
    tokio::task::spawn_local(serve_operator(socket, serving.clone()));
    tokio::task::spawn_local(revoked.follow(client));
    serve_nodes(port, tls, serving).await
}

/// The socket, which only root may open. What an earlier run left is in the way.
fn listen_on(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", path.display()))?;
    Ok(listener)
}

async fn serve_operator(listener: UnixListener, serving: Rc<Serving>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(converse(stream, Caller::Operator, serving.clone()));
            }
            Err(error) => {
                tracing::warn!("cannot take a connection of the node API: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn serve_nodes(listener: TcpListener, tls: Tls, serving: Rc<Serving>) -> ! {
    let places = Places::new(MOST_CONNECTIONS, MOST_OF_ONE);
    loop {
        let (stream, place) = places.accept(&listener).await;
        let (tls, serving) = (tls.clone(), serving.clone());
        tokio::task::spawn_local(async move {
            let _place = place;
            // A stranger's failed handshake is no news.
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                converse(stream, Caller::Node, serving).await;
            }
        });
    }
}

/// One connection.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S, caller: Caller, serving: Rc<Serving>) {
    let service = service_fn(move |request| {
        let serving = serving.clone();
        async move { Ok::<_, Infallible>(routes::answer(&serving, caller, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!("a client went away: {error}");
    }
}
