//! Requests and their answers.

use super::doors::{Doors, Place};
use super::{backups, certificates, kubelet, masters, proc, registry, store, streams, tls::Tls, volumes};
use crate::machine::{Command, Shared};
use crate::network::Network;
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use node_api::{ApiError, Done, Unseal, path};
use node_sys::machine::Ending;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The body of every answer.
pub(super) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// Strangers must not be able to fill memory with handshakes.
const MOST_CONNECTIONS: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
const MOST_REQUEST_BYTES: usize = 64 * 1024;

/// What handlers need.
pub(super) struct Serving {
    pub(super) machine: Shared,
    pub(super) network: Rc<Network>,
}

/// A refusal with its status.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Refusal {
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
    }
}

/// Opens the port and serves for ever. `keep` says whether STATE is there for the node's own key.
pub fn start(machine: Shared, network: Rc<Network>, keep: bool) -> Result<()> {
    let tls = Tls::start(&machine, keep)?;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, node_api::PORT));
    let listener = std::net::TcpListener::bind(address)
        .or_else(|_| std::net::TcpListener::bind(("0.0.0.0", node_api::PORT)))
        .with_context(|| format!("cannot open port {}", node_api::PORT))?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let context = Rc::new(Serving { machine, network });
    tokio::task::spawn_local(accept(listener, tls, context));
    Ok(())
}

async fn accept(listener: TcpListener, tls: Tls, context: Rc<Serving>) {
    let doors = Doors::new(MOST_CONNECTIONS);
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("the node API cannot take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (tls, context) = (tls.clone(), context.clone());
        doors.admit(|place| async move { serve(stream, remote, &tls, context, place).await });
    }
}

/// One connection. A stranger's failed handshake is no news.
async fn serve(stream: TcpStream, remote: SocketAddr, tls: &Tls, context: Rc<Serving>, place: Place) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(stream)).await else { return };
    place.is_known();
    let subject = stream.get_ref().1.peer_certificates().and_then(|chain| certificates::subject(chain.first()?));
    let client: Rc<str> = format!("{} from {}", subject.unwrap_or_default(), remote.ip().to_canonical()).into();
    let service = service_fn(move |request: Request<Incoming>| {
        let (context, client) = (context.clone(), client.clone());
        async move {
            let told = is_told(request.method(), request.uri().path());
            let asked = told.then(|| format!("{} {}", request.method(), request.uri().path()));
            let response = answer(&context, request).await;
            if let Some(asked) = asked {
                tracing::info!("node API: {client}: {asked}: {}", response.status());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!("a client of the node API went away: {error}");
    }
}

/// Whether the log says who asked: for what changes the node, and for copies of the store and of volumes. Pieces of an
/// upload say nothing.
fn is_told(method: &Method, path: &str) -> bool {
    let copies = path == path::STORE_SNAPSHOT || of_volume(path).is_some();
    !matches!(*method, Method::GET | Method::HEAD | Method::PATCH) || copies
}

/// The volume that a path is of.
fn of_volume(path: &str) -> Option<&str> {
    path.strip_prefix(path::VOLUMES)?.strip_prefix('/')
}

async fn answer(context: &Rc<Serving>, request: Request<Incoming>) -> Response<Body> {
    match route(context, request).await {
        Ok(response) => response,
        Err(Refusal(status, error)) => with_status(json(&ApiError { error }), status),
    }
}

async fn route(context: &Rc<Serving>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let machine = &context.machine;
    let target = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (request.method(), target.as_str()) {
        (&Method::GET, path::STATUS) => {
            let mut status = machine.status();
            let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            status.memory_available = proc::meminfo(&memory, "MemAvailable");
            Ok(json(&status))
        }
        (&Method::GET, path::SERVICES) => Ok(json(&machine.services())),
        (&Method::GET, path::BOOT) => Ok(json(&machine.timeline())),
        (&Method::GET, path::CERTIFICATES) => Ok(json(&certificates::all())),
        (&Method::GET, path::PODS | path::CONTAINERS | path::IMAGES) => kubelet::ask(&target).await,
        (&Method::GET, path::ROUTES) => Ok(json(&context.network.links().describe_routes().await?)),
        (&Method::GET, path::LINKS) => Ok(json(&context.network.links().describe_links().await?)),
        (&Method::GET, path::CONNTRACK) => Ok(json(&connections()?)),
        (&Method::GET, path::NFT) => Ok(text(rules()?)),
        (&Method::GET, path::SOCKETS) => Ok(json(&proc::sockets())),
        (&Method::GET, path::DISK) => Ok(json(&proc::disks())),
        (&Method::GET, path::PROCESSES) => Ok(json(&proc::processes())),
        (&Method::GET, path::DMESG) => streams::kernel_log(&query),
        (&Method::GET, other) if other.starts_with(path::LOGS) => streams::log(context, other, &query),
        (&Method::GET, path::BACKUPS) => backups::list().await,
        (&Method::GET, other) if other.strip_prefix(path::BACKUPS).is_some_and(|rest| rest.starts_with('/')) => {
            backups::send(&other[path::BACKUPS.len() + 1..]).await
        }
        (&Method::GET, path::VOLUMES) => volumes::list().await,
        (&Method::GET, other) if let Some(name) = of_volume(other) => volumes::send(name),
        (_, other) if other.starts_with(path::REGISTRY) => registry::pass_on(context, request).await,
        (&Method::GET, path::STORE_SNAPSHOT) => store::ask("/snapshot").await,
        (&Method::GET, path::STORE_CHECK) => store::ask("/check").await,
        (&Method::GET, path::STORE_MEMBERS) => store::members(context, None).await,
        (&Method::GET, path::STORE_MASTERS) => masters::told(),
        (&Method::GET, path::STORE_FORMAT) => store::format(context).await,
        // The key may be the very thing that a node waits for; nothing else is changed before it has joined.
        (&Method::POST, path::UNSEAL) => unseal(machine, request).await,
        (&Method::POST, _) if !machine.has_joined() => Err(Refusal(
            StatusCode::FORBIDDEN,
            "this node has not joined the cluster: until then its API only shows; end or restart the machine from outside"
                .to_owned(),
        )),
        (&Method::POST, path::STORE_RESTORE) => store::restore(context, request).await,
        (&Method::POST, path::STORE_BEGIN) => store::begin(context, request).await,
        (&Method::POST, path::STORE_TAKE) => store::take(context).await,
        (&Method::POST, path::STORE_FENCE) => store::fence(context).await,
        (&Method::POST, path::STORE_UNFENCE) => store::unfence(context).await,
        (&Method::POST, path::STORE_MIGRATE) => store::migrate(context, body(request).await?).await,
        (&Method::POST, path::STORE_RAISE) => store::raise(context).await,
        (&Method::POST, path::STORE_MASTERS) => masters::tell(body(request).await?).await,
        (&Method::POST, path::STORE_MEMBERS_REMOVE) => store::members(context, Some(body(request).await?)).await,
        (&Method::POST, other) if let Some(name) = of_volume(other) => volumes::take(name, request).await,
        (&Method::POST, path::REBOOT) => Ok(end(machine, Ending::Reboot, "the node stops its services and restarts")),
        (&Method::POST, path::POWEROFF) => {
            Ok(end(machine, Ending::PowerOff, "the node stops its services and powers off"))
        }
        (&Method::POST, other) => restart(machine, other),
        (_, other) => Err(Refusal(
            StatusCode::NOT_FOUND,
            format!("the node API has no {other}; kimg and the image may be of different versions"),
        )),
    }
}

fn connections() -> Result<Vec<node_api::Connection>> {
    let flows = node_sys::conntrack::list().context("cannot read the table of connections")?;
    Ok(flows.iter().map(connection).collect())
}

fn connection(flow: &node_sys::conntrack::Flow) -> node_api::Connection {
    let protocol = match flow.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    node_api::Connection {
        protocol,
        source: format!("{}:{}", flow.original_source, flow.source_port),
        destination: format!("{}:{}", flow.original_destination, flow.destination_port),
        reply_source: format!("{}:{}", flow.reply_source, flow.reply_port),
        reply_destination: flow.reply_destination.to_string(),
        timeout_s: flow.timeout_secs,
        ..node_api::Connection::default()
    }
}

fn rules() -> Result<String> {
    node_sys::nft_dump::dump().context("cannot read the nftables rules")
}

fn end(machine: &Shared, ending: Ending, message: &str) -> Response<Body> {
    let later = machine.clone();
    tokio::task::spawn_local(async move {
        // The answer goes out first.
        tokio::time::sleep(Duration::from_millis(200)).await;
        later.command(Command::End(ending));
    });
    json(&Done { message: message.to_owned() })
}

fn restart(machine: &Shared, target: &str) -> Result<Response<Body>, Refusal> {
    let name = target
        .strip_prefix(path::SERVICES)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.strip_suffix(path::RESTART_SUFFIX));
    let known = machine.services().into_iter().any(|service| Some(service.name.as_str()) == name);
    match name {
        Some(name) if known => {
            machine.command(Command::Restart(name.to_owned()));
            Ok(json(&Done { message: format!("{name} is started again") }))
        }
        Some(name) => {
            let names: Vec<String> = machine.services().into_iter().map(|service| service.name).collect();
            Err(Refusal(StatusCode::NOT_FOUND, format!("this node has no service {name}; it has {}", names.join(", "))))
        }
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("the node API has no {target}"))),
    }
}

/// A request's body, which is small.
async fn body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    let body = Limited::new(request.into_body(), MOST_REQUEST_BYTES)
        .collect()
        .await
        .map_err(|error| bad(format!("the request is unreadable: {error}")))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(format!("the request is wrong: {error}")))
}

async fn unseal(machine: &Shared, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let unseal: Unseal = body(request).await?;
    node_metadata::SealKey::from_base64(&unseal.key)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    machine.command(Command::Unseal(unseal.key));
    Ok(json(&Done { message: "the node tries the key".to_owned() }))
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed("application/json", Full::new(Bytes::from(bytes)).boxed_unsync()),
        Err(error) => with_status(text(format!("{{\"error\": \"{error}\"}}")), StatusCode::INTERNAL_SERVER_ERROR),
    }
}

pub(super) fn text(text: impl Into<Bytes>) -> Response<Body> {
    typed("text/plain; charset=utf-8", Full::new(text.into()).boxed_unsync())
}

pub(super) fn typed(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn with_status(mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_a_node_is_told() {
        for (method, path, told) in [
            (Method::POST, path::REBOOT, true),
            (Method::POST, path::STORE_RESTORE, true),
            (Method::POST, path::UNSEAL, true),
            (Method::POST, path::STORE_MEMBERS_REMOVE, true),
            (Method::GET, path::STORE_MEMBERS, false),
            (Method::GET, path::STORE_SNAPSHOT, true),
            (Method::GET, "/v1/volumes/pvc-1", true),
            (Method::GET, path::VOLUMES, false),
            (Method::GET, path::STATUS, false),
            (Method::PATCH, path::REGISTRY, false),
        ] {
            assert_eq!(is_told(&method, path), told, "{method} {path}");
        }
    }
}
