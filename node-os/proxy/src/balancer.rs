//! The loopback entrance to the API servers: 127.0.0.1:6443 on every node without one.
//! It passes bytes on; TLS stays between client and API server.
//! The first list comes from the node's metadata, then the EndpointSlice of `default/kubernetes`
//! says which servers there are; the last list heard is kept on STATE for the next start.
//!
//! A master that lost its power, or was made anew, says nothing to connections of before, and who watches on one says
//! nothing either. So this entrance asks for signs of life, for all of the node's components, and ends what is dead.

use anyhow::Context;
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use node_client::{Change, News};
use rustix::net::sockopt;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Loopback entrance to the API servers.
#[derive(Debug, Parser)]
#[command(name = "api-balancer", version)]
struct Flags {
    /// API servers to begin with, `address:port`.
    #[arg(long = "server", required = true)]
    servers: Vec<SocketAddr>,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Another port of the masters, to which the same port of this address leads.
    #[arg(long)]
    also: Option<u16>,
    /// Kubeconfig to follow the list of API servers with, once it is there.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// File that keeps the last list.
    #[arg(long, default_value = "/var/lib/kimg/api-servers")]
    state_file: PathBuf,
}

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    node_client::run("api-balancer", async move { tokio::task::LocalSet::new().run_until(run(flags)).await })
}

type Servers = Rc<RefCell<Vec<SocketAddr>>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(5);
/// After so long without a byte the kernel asks the server whether it is there, and again and again.
const SILENT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(2);
const TIMES: u32 = 3;

async fn run(flags: Flags) -> anyhow::Result<()> {
    let listener = listen(flags.listen).await?;
    let mut first = flags.servers.clone();
    for kept in read_list(&flags.state_file) {
        if !first.contains(&kept) {
            first.push(kept);
        }
    }
    let servers: Servers = Rc::new(RefCell::new(first));
    let also = match flags.also {
        Some(port) => Some(listen(SocketAddr::new(flags.listen.ip(), port)).await?),
        None => None,
    };
    node_sys::notify::ready();
    tokio::task::spawn_local(keep_list(flags.kubeconfig, flags.state_file, servers.clone()));
    let beside = async {
        match also {
            Some(listener) => pass_on(listener, &servers, flags.also).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = pass_on(listener, &servers, None) => ended,
        ended = beside => ended,
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("binding {address}"))
}

/// Passes each connection on to a server, at its own port or at this one.
async fn pass_on(listener: TcpListener, servers: &Servers, port: Option<u16>) -> anyhow::Result<()> {
    let mut next = 0usize;
    let said = Rc::new(RefCell::new(News::default()));
    loop {
        let (client, _) = listener.accept().await.context("accepting a connection")?;
        let mut list = servers.borrow().clone();
        if let Some(port) = port {
            list.iter_mut().for_each(|server| server.set_port(port));
        }
        next = next.wrapping_add(1);
        let said = said.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = forward(client, &list, next).await {
                let why = format!("{error:#}");
                if said.borrow_mut().is(&why, Instant::now()) {
                    tracing::warn!("{why}");
                }
            }
        });
    }
}

/// Connects to the first server that answers, beginning at `start`, and passes bytes on until both sides are done.
async fn forward(mut client: TcpStream, servers: &[SocketAddr], start: usize) -> anyhow::Result<()> {
    let mut why = String::from("the list of servers is empty");
    for i in 0..servers.len() {
        let Some(server) = servers.get((start + i) % servers.len()) else { continue };
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await {
            Ok(Ok(mut upstream)) => {
                // Small requests must not wait for each other's acknowledgement.
                client.set_nodelay(true)?;
                upstream.set_nodelay(true)?;
                notice_death(&upstream).with_context(|| format!("connection to {server}"))?;
                // Either side may just go away.
                drop(tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, 4096, 4096).await);
                return Ok(());
            }
            Ok(Err(error)) => why = format!("{server}: {error}"),
            Err(_) => why = format!("{server} does not answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    anyhow::bail!("no server can be reached: {why}")
}

/// Has the kernel end a connection whose other end is gone, within a dozen seconds.
fn notice_death(connection: &TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_keepalive(connection, true)?;
    sockopt::set_tcp_keepidle(connection, SILENT)?;
    sockopt::set_tcp_keepintvl(connection, AGAIN)?;
    sockopt::set_tcp_keepcnt(connection, TIMES)?;
    // Where something was sent, the kernel asks nothing, and would send it again for a quarter of an hour.
    let limit = SILENT + AGAIN * TIMES;
    sockopt::set_tcp_user_timeout(connection, limit.as_millis().try_into().unwrap_or(u32::MAX))?;
    Ok(())
}

async fn keep_list(kubeconfig: PathBuf, file: PathBuf, servers: Servers) {
    loop {
        // The kubeconfig belongs to the kubelet; the status line stays the balancer's own.
        while !kubeconfig.exists() {
            tokio::time::sleep(RETRY).await;
        }
        match node_client::connect(&kubeconfig).await {
            Ok(client) => follow(client, &file, &servers).await,
            Err(error) => tracing::warn!("{error:#}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(client: kube::Client, file: &Path, servers: &Servers) {
    let config = watcher::Config::default().labels("kubernetes.io/service-name=kubernetes");
    let api = kube::Api::<EndpointSlice>::namespaced(client, "default");
    let mut changes = std::pin::pin!(node_client::follow(api, config, "the API servers' endpoints"));
    let mut slices = BTreeMap::new();
    while let Some(change) = changes.next().await {
        let change: Change<EndpointSlice> = change;
        node_client::apply(&mut slices, change);
        let list = addresses(slices.values());
        // An empty list would cut the node off for good; the old one may still be true.
        if !list.is_empty() && *servers.borrow() != list {
            tracing::info!("API servers: {list:?}");
            if let Err(error) = write_list(file, &list) {
                tracing::warn!("cannot keep the list of API servers in {}: {error}", file.display());
            }
            *servers.borrow_mut() = list;
        }
    }
}

fn addresses<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<SocketAddr> {
    let mut out = Vec::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find(|p| p.name.as_deref() == Some("https"));
        let Some(port) = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        let ready =
            slice.endpoints.iter().flatten().filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
        for address in ready.flat_map(|e| e.addresses.iter()).filter_map(|a| crate::parse_v4(a)) {
            out.push(SocketAddr::from((address, port)));
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

fn read_list(file: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

fn write_list(file: &Path, list: &[SocketAddr]) -> std::io::Result<()> {
    let text: String = list.iter().map(|a| format!("{a}\n")).collect();
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_server_is_noticed_by_the_kernel() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listening");
        let connection = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connected");
        assert!(!sockopt::socket_keepalive(&connection).expect("option"));
        notice_death(&connection).expect("options");
        assert!(sockopt::socket_keepalive(&connection).expect("option"));
        let most = sockopt::tcp_keepidle(&connection).expect("option")
            + sockopt::tcp_keepintvl(&connection).expect("option") * sockopt::tcp_keepcnt(&connection).expect("option");
        assert_eq!(most, Duration::from_secs(11));
        assert_eq!(sockopt::tcp_user_timeout(&connection).expect("option"), 11_000);
    }
}
