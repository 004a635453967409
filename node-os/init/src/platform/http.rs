//! HTTP to metadata servers, with the patience that they need: a server that is not there is given up on at once, one
//! that is slow in the machine's first seconds or has too much to do is asked again.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use node_metadata::sources::{Answer, Request, SourceError};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// No document is larger.
pub const MOST_BYTES: usize = 256 * 1024;
/// In a URL: this link-local address on every interface.
const ANY_INTERFACE: &str = "%25nic";
/// Ports that only administrators can use; those below 600 belong to others.
const LOW_PORTS: std::ops::Range<u16> = 600..1024;

/// How long a server is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer.
    pub answer: Duration,
    /// How often a server that refuses, or that answers nonsense, is asked; one that says nothing is asked twice.
    pub attempts: u32,
    /// How long a server that says that it has too much to do is asked again.
    pub busy: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_millis(1500),
            answer: Duration::from_secs(10),
            attempts: 3,
            busy: Duration::from_secs(30),
        }
    }
}

/// The client.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// How long servers are waited for.
    pub patience: Patience,
    /// Where connections go instead of the URL's host: a server that stands in for all of them.
    pub connect_to: Option<SocketAddr>,
}

/// Why an attempt has failed.
#[derive(Debug)]
pub enum Trouble {
    /// There is no way to the server.
    Unreachable(String),
    /// The other side refuses, or the connection ends.
    Silent(String),
    /// Nobody says anything, for as long as it was waited for.
    Timeout(String),
    /// It asks for patience, of this length if it says so.
    Busy(u16, Option<Duration>),
    /// What comes is no answer.
    Broken(String),
}

impl Client {
    /// Sends a request and waits for a final answer. Blocks: for a thread that may.
    pub fn send(&self, request: &Request) -> Result<Answer, SourceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| SourceError::Unusable(format!("cannot ask {}: {error}", request.url)))?;
        runtime.block_on(self.until_final(request))
    }

    async fn until_final(&self, request: &Request) -> Result<Answer, SourceError> {
        let begin = Instant::now();
        // What has too much to do is there: its wishes do not wear out the patience with its faults.
        let (mut put_off, mut failed) = (0, 0);
        loop {
            let trouble = match self.attempt(request).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => trouble,
            };
            let attempt = if matches!(trouble, Trouble::Busy(..)) { &mut put_off } else { &mut failed };
            *attempt += 1;
            match pause(&trouble, *attempt, begin.elapsed(), self.patience) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(final_error(trouble, &request.url)),
            }
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Answer, Trouble> {
        let (host, path) = split(&request.url)?;
        let stream = self.connect(host, request.low_port).await?;
        match timeout(self.patience.answer, exchange(stream, host, path, request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Trouble::Timeout(format!("no answer within {} s", self.patience.answer.as_secs()))),
        }
    }

    /// The first of the host's addresses at which somebody is; all are tried at once.
    async fn connect(&self, host: &str, low_port: bool) -> Result<TcpStream, Trouble> {
        let addresses = match self.connect_to {
            Some(address) => vec![address],
            None => addresses(host).await?,
        };
        let mut last = Trouble::Unreachable(format!("{host} has no address"));
        let tries = addresses.into_iter().map(|address| timeout(self.patience.connect, open(address, low_port)));
        let mut tries: FuturesUnordered<_> = tries.collect();
        while let Some(outcome) = tries.next().await {
            match outcome {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = trouble_of(&error),
                Err(_) => last = Trouble::Timeout("nobody takes the connection".to_owned()),
            }
        }
        Err(last)
    }
}

/// How long to wait before the next attempt; `None`: there is none.
fn pause(trouble: &Trouble, attempt: u32, elapsed: Duration, patience: Patience) -> Option<Duration> {
    let growing = |first: Duration| first * 2u32.saturating_pow((attempt - 1).min(6));
    match trouble {
        Trouble::Unreachable(_) => None,
        Trouble::Silent(_) | Trouble::Broken(_) => {
            (attempt < patience.attempts).then(|| growing(Duration::from_millis(250)))
        }
        // It has cost its time already: once more, in case a first packet was lost.
        Trouble::Timeout(_) => (attempt < patience.attempts.min(2)).then_some(Duration::ZERO),
        Trouble::Busy(_, wanted) => {
            let pause = wanted.unwrap_or_else(|| growing(Duration::from_millis(500))).min(Duration::from_secs(8));
            (elapsed + pause <= patience.busy).then_some(pause)
        }
    }
}

fn final_error(trouble: Trouble, url: &str) -> SourceError {
    match trouble {
        Trouble::Unreachable(why) | Trouble::Silent(why) | Trouble::Timeout(why) => {
            SourceError::Absent(format!("{url}: {why}"))
        }
        Trouble::Busy(status, _) => SourceError::Refused { url: url.to_owned(), status },
        Trouble::Broken(why) => SourceError::Unusable(format!("{url}: {why}")),
    }
}

fn trouble_of(error: &std::io::Error) -> Trouble {
    match error.kind() {
        ErrorKind::NetworkUnreachable
        | ErrorKind::HostUnreachable
        | ErrorKind::AddrNotAvailable
        | ErrorKind::NetworkDown
        | ErrorKind::PermissionDenied => Trouble::Unreachable(error.to_string()),
        _ => Trouble::Silent(error.to_string()),
    }
}

fn split(url: &str) -> Result<(&str, &str), Trouble> {
    let rest = url.strip_prefix("http://").ok_or_else(|| Trouble::Broken("only http:// is known".to_owned()))?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    Ok((host, if path.is_empty() { "/" } else { path }))
}

async fn addresses(host: &str) -> Result<Vec<SocketAddr>, Trouble> {
    let unknown = |why: String| Trouble::Unreachable(format!("{host} is unknown: {why}"));
    if let Some((address, port)) = bracketed(host) {
        let (text, everywhere) = match address.strip_suffix(ANY_INTERFACE) {
            Some(text) => (text, true),
            None => (address, false),
        };
        let ip: Ipv6Addr = text.parse().map_err(|_| unknown("it is no IPv6 address".to_owned()))?;
        let scopes = if everywhere { interfaces() } else { vec![0] };
        return Ok(scopes.into_iter().map(|scope| SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))).collect());
    }
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    if let Ok(address) = with_port.parse() {
        return Ok(vec![address]);
    }
    let found = tokio::net::lookup_host(with_port).await.map_err(|error| unknown(error.to_string()))?;
    Ok(found.collect())
}

/// `[ADDRESS]` with or without `:PORT`.
fn bracketed(host: &str) -> Option<(&str, u16)> {
    let (address, rest) = host.strip_prefix('[')?.split_once(']')?;
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None => 80,
    };
    Some((address, port))
}

/// Indices of all interfaces beside the loopback.
fn interfaces() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    let index =
        |name: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok();
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name != "lo");
    let mut found: Vec<u32> = names.filter_map(|name| index(&name)).collect();
    found.sort_unstable();
    found
}

async fn open(address: SocketAddr, low_port: bool) -> std::io::Result<TcpStream> {
    if !low_port {
        return TcpStream::connect(address).await;
    }
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port that somebody has, or that waits after its last use, is passed over.
    for port in LOW_PORTS.rev() {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        match socket.bind(SocketAddr::new(any, port)) {
            Ok(()) => match socket.connect(address).await {
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {}
                outcome => return outcome,
            },
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// One request over a connection, and what the other side makes of it.
pub async fn exchange<S>(stream: S, host: &str, path: &str, request: &Request) -> Result<Answer, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: &dyn std::fmt::Display| Trouble::Broken(format!("the answer is no HTTP ({error})"));
    // Header names have no case, but not every metadata server knows that.
    let mut http = hyper::client::conn::http1::Builder::new();
    let (mut sender, connection) =
        http.title_case_headers(true).handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    // It ends with the stream.
    let driver = tokio::spawn(connection);
    let mut message = http::Request::builder()
        .method(request.method.as_str())
        .uri(path)
        .header("Host", host.replace(ANY_INTERFACE, ""))
        .header("User-Agent", concat!("kimg/", env!("CARGO_PKG_VERSION")))
        .header("Connection", "close");
    for (name, value) in &request.headers {
        message = message.header(*name, value.as_str());
    }
    // A token with a line end in it is none.
    let message = message.body(Full::new(Bytes::from(request.body.clone()))).map_err(|error| broken(&error))?;
    let answer = sender.send_request(message).await.map_err(|error| broken(&error))?;
    let status = answer.status().as_u16();
    if is_busy(status) {
        let seconds = answer.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        return Err(Trouble::Busy(status, seconds.map(Duration::from_secs)));
    }
    let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await.map_err(|error| broken(&error))?;
    driver.abort();
    Ok(Answer { status, body: body.to_bytes().to_vec() })
}

/// These ask for another attempt later; what else is wrong stays so.
fn is_busy(status: u16) -> bool {
    matches!(status, 408 | 410 | 425 | 429) || (500..600).contains(&status) && status != 501 && status != 505
}
