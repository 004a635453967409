//! The loopback entrance to the API servers: 127.0.0.1:6443 on every node without one.
//! It passes bytes on; TLS stays between client and API server.
//! The first list comes from the node's metadata, then the EndpointSlice of `default/kubernetes`
//! says which servers there are; the last list heard is kept on STATE for the next start.
//! Where there are several, each is asked once a second whether it is ready: connections go to those that are, and end
//! where a server says nothing any more while another one is ready ([`servers`]).
//!
//! A master that lost its power, or was made anew, says nothing to connections of before, and who watches on one says
//! nothing either. So this entrance asks for signs of life, for all of the node's components, and ends what is dead.

mod probe;
mod servers;

use anyhow::Context;
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use node_client::{Change, News, Places};
use rustix::net::sockopt;
use servers::Servers;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::io::InspectReader;

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
    /// What the API servers' certificates are checked with when they are asked whether they are ready.
    #[arg(long, default_value = "/run/kimg/config/pki/cluster-ca.crt")]
    certificate_authority: PathBuf,
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

/// The servers, and who waits for news of them.
struct Shared {
    servers: RefCell<Servers>,
    news: watch::Sender<()>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where another server is tried next.
const CONNECT_ELSE: Duration = Duration::from_secs(1);
/// How often a server is asked whether it is ready.
const LOOK: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);
/// All clients are of this node, and pods that share its network are among them.
const MOST_CONNECTIONS: usize = 4096;
/// After so long without a byte the kernel asks the server whether it is there, and again and again.
const SILENT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(2);
const TIMES: u32 = 3;

async fn run(flags: Flags) -> anyhow::Result<()> {
    let listener = listen(flags.listen).await?;
    let shared = Shared::new(flags.servers.clone(), &read_list(&flags.state_file));
    match probe::tls(&flags.certificate_authority) {
        Ok(tls) => drop(tokio::task::spawn_local(look(shared.clone(), tls))),
        Err(error) => tracing::warn!("the API servers are not asked whether they are ready: {error:#}"),
    }
    let also = match flags.also {
        Some(port) => Some(listen(SocketAddr::new(flags.listen.ip(), port)).await?),
        None => None,
    };
    node_sys::notify::ready();
    tokio::task::spawn_local(keep_list(flags.kubeconfig, flags.state_file, shared.clone()));
    let beside = async {
        match also {
            Some(listener) => pass_on(listener, &shared, flags.also).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        never = pass_on(listener, &shared, None) => never,
        never = beside => never,
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("binding {address}"))
}

impl Shared {
    fn new(first: Vec<SocketAddr>, kept: &[SocketAddr]) -> Rc<Shared> {
        Rc::new(Shared { servers: RefCell::new(Servers::new(first, kept)), news: watch::Sender::new(()) })
    }

    /// Returns when a connection to this server, which began at `opened`, is to end.
    async fn given_up(&self, server: SocketAddr, opened: Instant, has_spoken: &Cell<bool>) {
        let mut news = self.news.subscribe();
        while !self.servers.borrow().is_given_up(server, opened, has_spoken.get()) {
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Counts a connection for as long as it lives.
struct Open<'a>(&'a Shared, SocketAddr);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared, server: SocketAddr) -> Open<'a> {
        shared.servers.borrow_mut().opened(server);
        Open(shared, server)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.servers.borrow_mut().closed(self.1);
    }
}

/// Looks at all servers that are wanted, each by itself.
async fn look(shared: Rc<Shared>, tls: std::sync::Arc<rustls::ClientConfig>) {
    let looked_at: Rc<RefCell<HashSet<SocketAddr>>> = Rc::default();
    loop {
        let wanted = shared.servers.borrow().wanted();
        for server in wanted {
            if looked_at.borrow_mut().insert(server) {
                let (shared, looked_at, tls) = (shared.clone(), looked_at.clone(), tls.clone());
                tokio::task::spawn_local(async move {
                    look_at(&shared, server, tls).await;
                    looked_at.borrow_mut().remove(&server);
                });
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Looks at one server for as long as it is wanted.
async fn look_at(shared: &Shared, server: SocketAddr, tls: std::sync::Arc<rustls::ClientConfig>) {
    let mut probe = probe::Probe::new(server, tls);
    let mut last = None;
    while shared.servers.borrow().wanted().contains(&server) {
        let begun = Instant::now();
        let seen = probe.look().await;
        shared.servers.borrow_mut().saw(server, begun, seen);
        if last != Some(seen) {
            match (seen, last) {
                (servers::Seen::Ready, None) => {}
                (servers::Seen::Ready, _) => tracing::info!("{server} is ready"),
                (servers::Seen::NotReady, _) => tracing::warn!("{server} says that it is not ready"),
                (servers::Seen::Nothing, _) => tracing::warn!("{server} says nothing"),
            }
        }
        // Also the third time in a row means something.
        if last != Some(seen) || seen != servers::Seen::Ready {
            shared.news.send_replace(());
        }
        last = Some(seen);
        tokio::time::sleep(LOOK).await;
    }
    shared.servers.borrow_mut().forget(server);
}

/// Passes each connection on to a server, at its own port or at this one.
async fn pass_on(listener: TcpListener, shared: &Rc<Shared>, port: Option<u16>) -> ! {
    let places = Places::new(MOST_CONNECTIONS, MOST_CONNECTIONS);
    let mut next = 0usize;
    let said = Rc::new(RefCell::new(News::default()));
    loop {
        let (client, place) = places.accept(&listener).await;
        next = next.wrapping_add(1);
        let (said, shared) = (said.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            let _place = place;
            if let Err(error) = forward(client, &shared, port, next).await {
                let why = format!("{error:#}");
                if said.borrow_mut().is(&why, Instant::now()) {
                    tracing::warn!("{why}");
                }
            }
        });
    }
}

/// Connects to the first server that answers, beginning at the `turn`th, and passes bytes on until both sides are done
/// or the server is given up.
async fn forward(mut client: TcpStream, shared: &Shared, port: Option<u16>, turn: usize) -> anyhow::Result<()> {
    let mut why = String::from("the list of servers is empty");
    let servers = shared.servers.borrow().order(turn);
    let timeout = if servers.len() > 1 { CONNECT_ELSE } else { CONNECT_TIMEOUT };
    for server in servers {
        let address = SocketAddr::new(server.ip(), port.unwrap_or(server.port()));
        let opened = Instant::now();
        match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Ok(Ok(upstream)) => {
                // Small requests must not wait for each other's acknowledgement.
                client.set_nodelay(true)?;
                upstream.set_nodelay(true)?;
                notice_death(&upstream).with_context(|| format!("connection to {address}"))?;
                let open = port.is_none().then(|| Open::new(shared, server));
                let has_spoken = Cell::new(false);
                let given_up = async {
                    match &open {
                        Some(_) => shared.given_up(server, opened, &has_spoken).await,
                        // Of what is behind another port nothing is known.
                        None => std::future::pending().await,
                    }
                };
                let mut upstream = InspectReader::new(upstream, |bytes| {
                    if !bytes.is_empty() {
                        has_spoken.set(true);
                    }
                });
                tokio::select! {
                    // Either side may just go away.
                    _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, 4096, 4096) => {}
                    () = given_up => tracing::debug!("a connection to {server} ends: another server is ready"),
                }
                return Ok(());
            }
            Ok(Err(error)) => why = format!("{address}: {error}"),
            Err(_) => why = format!("{address} does not answer within {} s", timeout.as_secs()),
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

async fn keep_list(kubeconfig: PathBuf, file: PathBuf, shared: Rc<Shared>) {
    loop {
        // The kubeconfig belongs to the kubelet; the status line stays the balancer's own.
        while !kubeconfig.exists() {
            tokio::time::sleep(RETRY).await;
        }
        match node_client::connect(&kubeconfig).await {
            Ok(client) => follow(client, &file, &shared).await,
            Err(error) => tracing::warn!("{error:#}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(client: kube::Client, file: &Path, shared: &Shared) {
    let config = watcher::Config::default().labels("kubernetes.io/service-name=kubernetes");
    let api = kube::Api::<EndpointSlice>::namespaced(client, "default");
    let mut changes = std::pin::pin!(node_client::follow(api, config, "the API servers' endpoints"));
    let mut slices = BTreeMap::new();
    while let Some(change) = changes.next().await {
        let change: Change<EndpointSlice> = change;
        node_client::apply(&mut slices, change);
        let list = addresses(slices.values());
        // An empty list would cut the node off for good; the old one may still be true.
        if !list.is_empty() && shared.servers.borrow().list() != list {
            tracing::info!("API servers: {list:?}");
            if let Err(error) = write_list(file, &list) {
                tracing::warn!("cannot keep the list of API servers in {}: {error}", file.display());
            }
            shared.servers.borrow_mut().set(list);
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
    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper::client::conn::http1::SendRequest;
    use hyper_util::rt::TokioIo;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::sync::Arc;

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

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Mode {
        Ready,
        /// Says that it is not ready, and serves.
        Unready,
        /// Takes connections, and says nothing, also on those of before.
        Mute,
        /// Serves, and does not get round to saying whether it is ready.
        Slow,
    }

    /// An API server as far as the balancer knows one; `/who` is answered with its own code.
    async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, mode: Rc<Cell<Mode>>, code: u16) {
        loop {
            let (stream, _) = listener.accept().await.expect("accepting");
            let (tls, mode) = (tls.clone(), mode.clone());
            tokio::task::spawn_local(async move {
                if mode.get() == Mode::Mute {
                    let _stream = stream;
                    return std::future::pending().await;
                }
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let mode = mode.clone();
                    async move {
                        let code = match (mode.get(), request.uri().path()) {
                            (Mode::Mute, _) | (Mode::Slow, "/readyz") => std::future::pending().await,
                            (Mode::Unready, "/readyz") => 500,
                            (_, "/readyz") => 200,
                            _ => code,
                        };
                        http::Response::builder().status(code).body(Empty::<Bytes>::new())
                    }
                });
                // The client may just go away.
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    }

    fn certificates() -> (tempfile::NamedTempFile, Arc<rustls::ServerConfig>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), params.self_signed(&key).expect("CA").pem()).expect("written");
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).expect("names");
        let chain = params.signed_by(&key, &issuer).expect("certificate").pem();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM")],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("PEM"),
            )
            .expect("TLS");
        (file, Arc::new(tls))
    }

    async fn local() -> (TcpListener, SocketAddr) {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listening");
        let address = listener.local_addr().expect("address");
        (listener, address)
    }

    /// Three servers, and maybe others, behind a balancer, and a client of it.
    struct Cluster {
        modes: Vec<Rc<Cell<Mode>>>,
        tasks: Vec<tokio::task::JoinHandle<()>>,
        entrance: SocketAddr,
        addresses: Vec<SocketAddr>,
        shared: Rc<Shared>,
        tls: Arc<rustls::ClientConfig>,
        _authority: tempfile::NamedTempFile,
    }

    impl Cluster {
        async fn start(others: &[SocketAddr]) -> Cluster {
            let (authority, server) = certificates();
            let (mut modes, mut tasks, mut addresses) = (Vec::new(), Vec::new(), others.to_vec());
            for number in 0..3 {
                let (listener, address) = local().await;
                let mode = Rc::new(Cell::new(Mode::Ready));
                tasks.push(tokio::task::spawn_local(serve(listener, server.clone(), mode.clone(), 210 + number)));
                modes.push(mode);
                addresses.push(address);
            }
            let (listener, entrance) = local().await;
            let shared = Shared::new(addresses.clone(), &[]);
            let tls = probe::tls(authority.path()).expect("TLS");
            tokio::task::spawn_local(look(shared.clone(), tls.clone()));
            let passing = shared.clone();
            tokio::task::spawn_local(async move { pass_on(listener, &passing, None).await });
            Cluster { modes, tasks, entrance, addresses, shared, tls, _authority: authority }
        }

        /// A new connection, and which server is behind it.
        async fn connect(&self) -> Option<(SendRequest<Empty<Bytes>>, usize)> {
            let mut connection = probe::connect(self.entrance, &self.tls).await.ok()?;
            let code = probe::ask(&mut connection, "/who").await.ok()?;
            Some((connection, usize::from(code) - 210))
        }

        async fn connect_to(&self, number: usize) -> SendRequest<Empty<Bytes>> {
            loop {
                if let Some((connection, behind)) = self.connect().await
                    && behind == number
                {
                    return connection;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }

        /// One of the three becomes so; its connections end, and others go elsewhere until it is well again.
        async fn suffers(&self, number: usize, mode: Mode) {
            let mut long = self.connect_to(number).await;
            self.modes[number].set(mode);
            while probe::ask(&mut long, "/who").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for _ in 0..12 {
                let (_, behind) = self.connect().await.expect("a healthy one");
                assert_ne!(behind, number, "{mode:?}");
            }
            self.modes[number].set(Mode::Ready);
            self.connect_to(number).await;
        }
    }

    async fn within_a_minute(test: impl Future<Output = ()>) {
        let set = tokio::task::LocalSet::new();
        tokio::time::timeout(Duration::from_secs(60), set.run_until(test)).await.expect("in time");
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_left() {
        within_a_minute(async { Cluster::start(&[]).await.suffers(1, Mode::Mute).await }).await;
    }

    #[tokio::test]
    async fn a_server_that_is_not_ready_is_left() {
        within_a_minute(async { Cluster::start(&[]).await.suffers(2, Mode::Unready).await }).await;
    }

    #[tokio::test]
    async fn what_works_goes_on_when_one_look_is_slow() {
        within_a_minute(async {
            let cluster = Cluster::start(&[]).await;
            let mut long = cluster.connect_to(1).await;
            cluster.modes[1].set(Mode::Slow);
            while cluster.shared.servers.borrow().order(0).last() != Some(&cluster.addresses[1]) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for _ in 0..3 {
                assert_eq!(probe::ask(&mut long, "/who").await.expect("it is connected"), 211);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_server_that_is_gone_or_drops_packets_is_passed_over() {
        within_a_minute(async {
            // Its queue is full, so that the kernel drops what asks for a connection.
            let (full, address) = local().await;
            rustix::net::listen(&full, 0).expect("a short queue");
            let mut waiting = Vec::new();
            while let Ok(connected) =
                tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
            {
                waiting.push(connected.expect("connected"));
            }
            let cluster = Cluster::start(&[address]).await;
            cluster.tasks[0].abort();
            let mut seen = HashSet::new();
            for _ in 0..12 {
                seen.insert(cluster.connect().await.expect("a healthy one").1);
            }
            assert_eq!(seen, HashSet::from([1, 2]));
        })
        .await;
    }
}
