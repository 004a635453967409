//! The kubelet's server on 10250: logs, exec, attach, port-forward, figures. Who asks is told by
//! a client certificate or a bearer token, and what he may do is asked of the API server.

mod auth;
mod logs;
mod metrics;
mod port_forward;
mod routes;
mod spdy;
mod stats;
mod streams;
mod websocket;

use crate::join::files::Authorities;
use crate::kubelet::Kubelet;
pub use routes::json;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use node_client::revoked::{Guarded, Revoked};
use node_client::{CertificateFile, Places};
use rustls::server::WebPkiClientVerifier;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Body of an answer.
pub type Body = BoxBody<Bytes, std::io::Error>;
/// A whole answer.
pub type Answer = Response<Body>;

/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Everybody may begin a handshake here, and pods of other nodes come under their node's address: one address leaves
/// the others their places. What is upgraded, as exec is, was allowed, and counts no more.
const MOST_CONNECTIONS: usize = 1024;
const MOST_OF_ONE: usize = 256;

/// An answer of plain text.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    typed(status, "text/plain; charset=utf-8", Bytes::from(text.into()))
}

/// An answer of a certain type.
pub fn typed(status: StatusCode, kind: &'static str, content: Bytes) -> Answer {
    let body = Full::new(content).map_err(|never: Infallible| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}

/// Binds and serves.
pub async fn start(kubelet: &Arc<Kubelet>) -> Result<()> {
    let flags = &kubelet.options.flags;
    if flags.healthz_port != 0 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, flags.healthz_port));
        let listener = bind(address).await?;
        tokio::spawn(serve_health(listener, kubelet.clone()));
    }
    if flags.port == 0 {
        return Ok(());
    }
    let listener = bind(SocketAddr::from((flags.address, flags.port))).await?;
    let acceptor = acceptor(kubelet)?;
    let revoked = Arc::new(Revoked::default());
    tokio::spawn(revoked.clone().follow(kubelet.api.clone()));
    let access = Arc::new(auth::Access::new(kubelet.api.clone(), kubelet.options.node_name.clone(), revoked));
    let kubelet = kubelet.clone();
    let places = Places::new(MOST_CONNECTIONS, MOST_OF_ONE);
    tokio::spawn(async move {
        loop {
            let (stream, place) = places.accept(&listener).await;
            let work = connection(kubelet.clone(), access.clone(), acceptor.clone(), stream);
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = work.await {
                    tracing::debug!("connection: {error:#}");
                }
            });
        }
    });
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

fn acceptor(kubelet: &Kubelet) -> Result<TlsAcceptor> {
    let flags = &kubelet.options.flags;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authorities = Authorities::read(&flags.client_ca_file)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(authorities.roots(), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("setting up the check of client certificates")?;
    let certificate = Arc::new(CertificateFile::new(&flags.tls_cert_file, &flags.tls_private_key_file));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("setting up TLS")?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn connection(
    kubelet: Arc<Kubelet>,
    access: Arc<auth::Access>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await.context("TLS handshake")??;
    let chain = stream.get_ref().1.peer_certificates();
    let certificate = chain.and_then(|chain| auth::Certificate::read(chain.first()?));
    let stream = Guarded::new(stream, &access.revoked, certificate.as_ref().map(|one| one.shown.clone()));
    let service = service_fn(move |request| {
        let (kubelet, access, certificate) = (kubelet.clone(), access.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(routes::answer(kubelet, &access, certificate, request).await) }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await?;
    Ok(())
}

/// Plain HTTP on the loopback: whether the kubelet works.
async fn serve_health(listener: TcpListener, kubelet: Arc<Kubelet>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let kubelet = kubelet.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let answer = match request.uri().path() {
                    "/healthz" => routes::health(&kubelet),
                    other => text(StatusCode::NOT_FOUND, format!("{other} is not here; /healthz is\n")),
                };
                async move { Ok::<_, Infallible>(answer) }
            });
            // Whoever went away needs no answer.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}
