//! Connections to kubelets and to addresses in the cluster.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::websocket::{self, Receiver, Role, Sender};
use crate::authn::WEBSOCKET_TOKEN;
use crate::authn::view::{items_at, str_at};
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::state::AppState;

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A kubelet's sentence about a failure is no longer than this.
const MAX_SENTENCE: usize = 64 << 10;
const KUBELET_PORT: u16 = 10250;

/// Anything bytes go through.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The read half of a kubelet's WebSocket.
pub type KubeletReceiver = Receiver<tokio::io::ReadHalf<TokioIo<Upgraded>>>;

/// Where to connect to.
#[derive(Clone)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub tls: Option<Arc<ClientConfig>>,
    /// The host's addresses, where they have been looked up; it is never looked up twice, as it may be told another.
    pub ips: Vec<IpAddr>,
}

impl Target {
    /// `host:port`, with brackets around IPv6.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The kubelet of a node.
pub fn kubelet(state: &AppState, node: &str) -> Result<Target> {
    let object =
        state.registry.get("", "nodes", "", node).ok_or_else(|| ApiError::not_found("", "nodes", node))?.value();
    let host = address(&object)
        .ok_or_else(|| ApiError::unavailable(format!("node {node:?} has no address in its status yet")))?;
    let port = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(KUBELET_PORT);
    let tls = state.streaming.kubelet_tls(&state.config);
    let tls = tls.ok_or_else(|| {
        ApiError::unavailable("this server has no client certificate for kubelets (--kubelet-client-certificate)")
    })?;
    Ok(Target { host, port, tls: Some(tls), ips: Vec::new() })
}

/// A node's address, the one inside the cluster's network first.
pub fn address(node: &Value) -> Option<String> {
    let all = items_at(node, "/status/addresses");
    let of = |kind: &str| all.iter().find(|a| str_at(a, "/type") == kind).map(|a| str_at(a, "/address").to_string());
    ["InternalIP", "ExternalIP", "InternalDNS", "Hostname"].iter().find_map(|kind| of(kind)).filter(|a| !a.is_empty())
}

/// Opens a connection, with TLS if the target has it.
pub async fn connect(target: &Target) -> Result<Box<dyn Io>> {
    let place = target.authority();
    let failed = |e: &dyn std::fmt::Display| ApiError::unavailable(format!("error trying to reach {place}: {e}"));
    let dial = async {
        let known: Vec<SocketAddr> = target.ips.iter().map(|ip| SocketAddr::new(*ip, target.port)).collect();
        let stream = match known.as_slice() {
            [] => TcpStream::connect((target.host.as_str(), target.port)).await,
            known => TcpStream::connect(known).await,
        };
        let stream = stream.map_err(|e| failed(&e))?;
        // Keystrokes are small and want to be seen.
        stream.set_nodelay(true).map_err(|e| failed(&e))?;
        let Some(tls) = &target.tls else { return Ok(Box::new(stream) as Box<dyn Io>) };
        let name = ServerName::try_from(target.host.clone()).map_err(|e| failed(&e))?;
        let stream =
            tokio_rustls::TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|e| failed(&e))?;
        Ok(Box::new(stream) as Box<dyn Io>)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, dial).await.map_err(|_| failed(&"no answer within 10 s"))?
}

/// Sends one request on a connection of its own.
pub async fn send<B>(target: &Target, mut request: Request<B>) -> Result<Response<Incoming>>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let failed = |e: hyper::Error| ApiError::unavailable(format!("error trying to reach {}: {e}", target.authority()));
    if !request.headers().contains_key(HOST) {
        let host = HeaderValue::from_str(&target.authority()).map_err(ApiError::internal)?;
        request.headers_mut().insert(HOST, host);
    }
    let io = TokioIo::new(connect(target).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, BoxedBody>(io).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("connection to a backend: {e}");
        }
    });
    let request = request.map(|b| b.map_err(Into::into).boxed_unsync());
    sender.send_request(request).await.map_err(failed)
}

type BoxedBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Opens a WebSocket; a refusal becomes an error with the other end's sentence.
pub async fn open_websocket(
    target: &Target,
    path: &str,
    subprotocol: &'static str,
) -> Result<(Sender, KubeletReceiver)> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", websocket::new_key())
        .header("Sec-WebSocket-Protocol", subprotocol)
        .body(Empty::<Bytes>::new())
        .map_err(ApiError::internal)?;
    let response = send(target, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(ApiError::internal)?;
    Ok(websocket::start(TokioIo::new(upgraded), Role::Client))
}

/// The error that an answer of a kubelet stands for.
pub async fn refusal(response: Response<Incoming>) -> ApiError {
    let code = response.status().as_u16();
    let body =
        Limited::new(response.into_body(), MAX_SENTENCE).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&body).trim().to_string();
    // A kubelet may answer with a Status of its own.
    let status: Option<Value> = serde_json::from_str(&text).ok();
    let message =
        status.as_ref().map(|s| str_at(s, "/message")).filter(|m| !m.is_empty()).map(str::to_string).unwrap_or(text);
    let message = if message.is_empty() { format!("the kubelet answered with status {code}") } else { message };
    let reason = match code {
        400 => "BadRequest",
        401 => return ApiError::internal(format!("the kubelet does not accept this server's certificate: {message}")),
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    ApiError::new(if (400..600).contains(&code) { code } else { 500 }, reason, message)
}

/// Turns an answer's body into one of ours.
pub fn body_of(response: Response<Incoming>) -> Response<Body> {
    response.map(|b| b.map_err(std::io::Error::other).boxed_unsync())
}

/// Removes what concerns one connection only, and credentials meant for this server.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(|p| p.trim().to_ascii_lowercase()).collect::<Vec<_>>())
        .collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
        "authorization",
        "host",
    ] {
        headers.remove(name);
    }
    let private: Vec<_> = headers
        .keys()
        .filter(|k| k.as_str().starts_with("impersonate-") || k.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in private {
        headers.remove(name);
    }
    strip_token(headers);
}

/// Takes a browser's token out of the subprotocols that it offers.
fn strip_token(headers: &mut HeaderMap) {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let others = offered.flat_map(|v| v.split(',')).map(str::trim).filter(|p| !p.starts_with(WEBSOCKET_TOKEN));
    let others = others.collect::<Vec<_>>().join(", ");
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    // The parts of values are a value.
    if let Some(value) = HeaderValue::try_from(others).ok().filter(|value| !value.is_empty()) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// Percent-encodes a path segment or a query value.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_and_escapes() {
        let node = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}]}});
        assert_eq!(address(&node).as_deref(), Some("10.0.0.1"));
        assert_eq!(address(&json!({})), None);
        assert_eq!(escape("a b/ü"), "a%20b%2F%C3%BC");
        let six = Target { host: "fd00::1".into(), port: 1, tls: None, ips: Vec::new() };
        assert_eq!(six.authority(), "[fd00::1]:1");
    }

    #[tokio::test]
    async fn hosts_are_looked_up_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let known =
            Target { host: "node.invalid".into(), port, tls: None, ips: vec!["127.0.0.1".parse().expect("ip")] };
        assert!(connect(&known).await.is_ok());
        assert!(connect(&Target { ips: Vec::new(), ..known }).await.is_err());
    }

    #[test]
    fn credentials_do_not_travel() {
        let mut headers = HeaderMap::new();
        for (k, v) in [
            ("authorization", "Bearer x"),
            ("connection", "x-drop, upgrade"),
            ("x-drop", "1"),
            ("impersonate-user", "u"),
            ("x-remote-user", "u"),
            ("accept", "*/*"),
        ] {
            headers.insert(k, v.parse().expect("value"));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(|k| k.as_str()).collect::<Vec<_>>(), ["accept"]);

        // With its protocols in one header, in several, and with none but the token.
        let token = format!("{WEBSOCKET_TOKEN}YS5iLmM");
        let one = format!("v5.channel.k8s.io,{token}, v4.channel.k8s.io");
        for (offered, kept) in [
            (vec![one.as_str()], Some("v5.channel.k8s.io, v4.channel.k8s.io")),
            (vec![&token, "v4.channel.k8s.io"], Some("v4.channel.k8s.io")),
            (vec![&token], None),
            (vec!["v4.channel.k8s.io"], Some("v4.channel.k8s.io")),
        ] {
            let mut headers = HeaderMap::new();
            for value in offered {
                headers.append(SEC_WEBSOCKET_PROTOCOL, value.parse().expect("value"));
            }
            strip(&mut headers);
            let left: Vec<_> =
                headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().map(|v| v.to_str().expect("text")).collect();
            assert_eq!(left, Vec::from_iter(kept));
        }
    }
}
