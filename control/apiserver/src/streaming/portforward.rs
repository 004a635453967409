//! Port-forward: each forwarded connection is one WebSocket to the kubelet; the client's side is
//! SPDY, SPDY inside a WebSocket, or WebSocket channels.

use std::collections::HashMap;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::backend::{self, KubeletReceiver, Target};
use super::handshake::{self, Wanted};
use super::spdy::{self, Event, Session};
use super::target;
use super::websocket::{self, Role, Sender};
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::RequestInfo;
use crate::state::AppState;

const SPDY: [&str; 1] = ["portforward.k8s.io"];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
const KUBELET: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
const QUEUE: usize = 32;

/// Where forwarded connections go.
#[derive(Clone)]
struct Place {
    kubelet: Target,
    path: String,
}

impl Place {
    async fn open(&self, port: u16) -> Result<(Sender, KubeletReceiver)> {
        backend::open_websocket(&self.kubelet, &format!("{}?port={port}", self.path), KUBELET).await
    }
}

/// Answers a request for port-forward.
pub async fn handle(state: &AppState, info: &RequestInfo, request: Request<Incoming>) -> Result<Response<Body>> {
    let pod = target::pod(state, info, &info.name)?;
    let wanted = handshake::wanted(request.headers())?;
    let place = Place {
        kubelet: target::kubelet_of(state, &pod)?,
        path: format!("/portForward/{}/{}", info.namespace, info.name),
    };
    match wanted {
        Wanted::Spdy { protocols } => {
            let chosen =
                handshake::choose(&protocols, &SPDY).ok_or_else(|| handshake::no_common_protocol(&protocols, &SPDY))?;
            spawn(request, move |io| over_spdy(io, place));
            Ok(handshake::accept_spdy(chosen))
        }
        Wanted::WebSocket { key, protocols } => {
            let chosen =
                if protocols.is_empty() { Some(WEBSOCKET[1]) } else { handshake::choose(&protocols, &WEBSOCKET) };
            let chosen = chosen.ok_or_else(|| handshake::no_common_protocol(&protocols, &WEBSOCKET))?;
            if chosen == TUNNEL {
                spawn(request, move |io| tunnelled(io, place));
            } else {
                let ports = ports(info)?;
                let base64 = chosen.contains("base64");
                spawn(request, move |io| over_channels(io, place, ports, base64));
            }
            handshake::accept_websocket(&key, (!protocols.is_empty()).then_some(chosen))
        }
    }
}

fn spawn<F, T>(request: Request<Incoming>, serve: F)
where
    F: FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(io) => serve(TokioIo::new(io)).await,
            Err(e) => tracing::debug!("port-forward client went away before its upgrade: {e}"),
        }
    });
}

fn ports(info: &RequestInfo) -> Result<Vec<u16>> {
    let all = info.query.all("ports").flat_map(|p| p.split(','));
    let ports: Option<Vec<u16>> = all.map(|p| p.trim().parse().ok().filter(|p| *p != 0)).collect();
    match ports {
        Some(ports) if ports.is_empty() => Err(ApiError::bad_request("query parameter \"ports\" is required")),
        Some(ports) if ports.len() <= 100 => Ok(ports),
        _ => Err(ApiError::bad_request("query parameter \"ports\" must name at most 100 ports from 1 to 65535")),
    }
}

/// SPDY frames in binary messages: unwrapped, it is SPDY.
async fn tunnelled<I>(io: I, place: Place)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (sender, mut receiver) = websocket::start(io, Role::Server);
    let (inner, outer) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(outer);
    let upward = tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            if sender.binary(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                return;
            }
        }
        let _ = sender.close().await;
    });
    let downward = async move {
        while let Ok(Some(message)) = receiver.next().await {
            if write.write_all(&message.data).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    tokio::join!(over_spdy(inner, place), downward);
    upward.abort();
}

/// What the client sends on one forwarded connection: data, and whether it was the last.
type FromClient = mpsc::Sender<(Bytes, bool)>;

/// Serves a SPDY client: pairs of streams, one pair for each connection.
async fn over_spdy<I>(io: I, place: Place)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (client, mut events) = spdy::start(io);
    let mut error_streams: HashMap<String, u32> = HashMap::new();
    let mut connections: HashMap<u32, FromClient> = HashMap::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Open { id, headers, fin } => {
                if client.reply(id).await.is_err() {
                    break;
                }
                let request = spdy::header(&headers, "requestid").to_string();
                if spdy::header(&headers, "streamtype") == "error" {
                    error_streams.insert(request, id);
                    continue;
                }
                let error = error_streams.remove(&request);
                let Ok(port) = spdy::header(&headers, "port").parse::<u16>() else {
                    let _ = client.reset(id).await;
                    continue;
                };
                connections.retain(|_, tx| !tx.is_closed());
                let (tx, rx) = mpsc::channel(QUEUE);
                if fin {
                    drop(tx.try_send((Bytes::new(), true)));
                }
                connections.insert(id, tx);
                tokio::spawn(forward(client.clone(), place.clone(), port, id, error, rx));
            }
            Event::Data { id, data, fin } => {
                let Some(tx) = connections.get(&id) else { continue };
                if tx.send((data, fin)).await.is_err() || fin {
                    connections.remove(&id);
                }
            }
            Event::Reset { id } => drop(connections.remove(&id)),
        }
    }
}

/// One forwarded connection of a SPDY client.
async fn forward(
    client: Session,
    place: Place,
    port: u16,
    data: u32,
    error: Option<u32>,
    from_client: mpsc::Receiver<(Bytes, bool)>,
) {
    let (sentence, ended) = match place.open(port).await {
        Ok((kubelet, from_kubelet)) => shuttle(&client, data, kubelet, from_kubelet, from_client).await,
        Err(e) => (Some(format!("error forwarding port {port}: {e}")), false),
    };
    let end = async {
        if let Some(error) = error {
            client.data(error, sentence.unwrap_or_default(), true).await?;
        }
        if ended { Ok(()) } else { client.data(data, Bytes::new(), true).await }
    };
    // A client that has gone needs no end.
    let _ = end.await;
}

/// Carries data until both sides have ended; an error's sentence comes back, and whether the
/// client has been told the end of its data.
async fn shuttle(
    client: &Session,
    stream: u32,
    kubelet: Sender,
    mut from_kubelet: KubeletReceiver,
    mut from_client: mpsc::Receiver<(Bytes, bool)>,
) -> (Option<String>, bool) {
    let mut seen = [false; 2];
    let mut sentence = None;
    let (mut client_open, mut kubelet_open) = (true, true);
    while kubelet_open || client_open {
        tokio::select! {
            message = from_client.recv(), if client_open => {
                let (data, fin) = match message {
                    Some(message) => message,
                    // Reset: nothing more will be read either.
                    None => break,
                };
                if !data.is_empty() && kubelet.channel(DATA, &data).await.is_err() {
                    break;
                }
                if fin {
                    client_open = false;
                    if kubelet.channel(DATA, &[]).await.is_err() {
                        break;
                    }
                }
            }
            message = from_kubelet.next() => {
                let Ok(Some(message)) = message else { break };
                let Some((&channel, rest)) = message.data.split_first() else { continue };
                let Some(known) = seen.get_mut(usize::from(channel)) else { continue };
                // The first message on each channel is the port.
                if !std::mem::replace(known, true) {
                    continue;
                }
                if channel == ERROR {
                    sentence = Some(String::from_utf8_lossy(rest).into_owned());
                    break;
                }
                if rest.is_empty() {
                    kubelet_open = false;
                }
                if client.data(stream, message.data.slice(1..), rest.is_empty()).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = kubelet.close().await;
    (sentence, !kubelet_open)
}

/// Serves a client of WebSocket channels: 2i is data and 2i+1 errors of port i, one connection each.
async fn over_channels<I>(io: I, place: Place, ports: Vec<u16>, base64: bool)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (client, mut from_client) = websocket::start(io, Role::Server);
    let mut writers: Vec<mpsc::Sender<Bytes>> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let (tx, rx) = mpsc::channel(QUEUE);
        writers.push(tx);
        tokio::spawn(channel_pair(client.clone(), place.clone(), *port, (2 * i) as u8, base64, rx));
    }
    while let Ok(Some(message)) = from_client.next().await {
        let Some((channel, data)) = client_frame(&message.data, base64) else { continue };
        // Only data channels are written by clients.
        if let Some(writer) = writers.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0) {
            let _ = writer.send(data).await;
        }
    }
}

fn client_frame(data: &Bytes, base64: bool) -> Option<(u8, Bytes)> {
    use base64::Engine as _;
    let first = *data.first()?;
    if !base64 {
        return Some((first, data.slice(1..)));
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(&data[1..]).ok()?;
    Some((first.checked_sub(b'0')?, decoded.into()))
}

async fn put(client: &Sender, channel: u8, data: &[u8], base64: bool) -> Result<(), websocket::Closed> {
    use base64::Engine as _;
    if base64 {
        let text = base64::engine::general_purpose::STANDARD.encode(data);
        return client.text(format!("{}{text}", (b'0' + channel) as char)).await;
    }
    client.channel(channel, data).await
}

async fn channel_pair(
    client: Sender,
    place: Place,
    port: u16,
    data: u8,
    base64: bool,
    mut from_client: mpsc::Receiver<Bytes>,
) {
    for channel in [data, data + 1] {
        if put(&client, channel, &port.to_le_bytes(), base64).await.is_err() {
            return;
        }
    }
    let (kubelet, mut from_kubelet) = match place.open(port).await {
        Ok(open) => open,
        Err(e) => {
            let _ = put(&client, data + 1, format!("error forwarding port {port}: {e}").as_bytes(), base64).await;
            return;
        }
    };
    let mut seen = [false; 2];
    loop {
        tokio::select! {
            message = from_client.recv() => {
                let Some(bytes) = message else { break };
                if !bytes.is_empty() && kubelet.channel(DATA, &bytes).await.is_err() {
                    break;
                }
            }
            message = from_kubelet.next() => {
                let Ok(Some(message)) = message else { break };
                let Some((&channel, rest)) = message.data.split_first() else { continue };
                let Some(known) = seen.get_mut(usize::from(channel)) else { continue };
                if !std::mem::replace(known, true) {
                    continue;
                }
                // Channels cannot be half closed: the end of data is the end.
                if rest.is_empty() || put(&client, data + channel, rest, base64).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = kubelet.close().await;
    let _ = client.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_checked() {
        let of = |query: &str| {
            ports(&RequestInfo::parse(&http::Method::GET, "/api/v1/namespaces/a/pods/p/portforward", query))
        };
        assert_eq!(of("ports=80&ports=443").expect("two"), [80, 443]);
        assert_eq!(of("ports=80,443").expect("two"), [80, 443]);
        for bad in ["", "ports=0", "ports=x", "ports=70000"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
