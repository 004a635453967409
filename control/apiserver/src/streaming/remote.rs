//! exec and attach: the client's WebSocket or SPDY streams on one side, the kubelet's WebSocket on the other.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::backend::{self, KubeletReceiver, escape};
use super::handshake::{self, Wanted};
use super::spdy::{self, Event};
use super::target;
use super::websocket::{self, Message, Role, Sender};
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::RequestInfo;
use crate::state::AppState;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What this server speaks over WebSocket, best first.
const WEBSOCKET: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.channel.k8s.io", "channel.k8s.io"];
/// What this server speaks over SPDY, best first.
const SPDY: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// The client must open its SPDY streams within this.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to close after it has been told the end.
const LINGER: Duration = Duration::from_secs(10);

/// The message on the error channel that stands for a kubelet that went away.
const LOST: &[u8] = b"\x03{\"metadata\":{},\"status\":\"Failure\",\"reason\":\"InternalError\",\"code\":500,\"message\":\"the kubelet closed the connection\"}";

/// Which streams the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    fn read(info: &RequestInfo) -> Result<Streams> {
        let on = |name: &str| info.query.flag(name);
        let tty = on("tty");
        let streams = Streams { stdin: on("stdin"), stdout: on("stdout"), stderr: on("stderr") && !tty, tty };
        if !streams.stdin && !streams.stdout && !streams.stderr {
            return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(streams)
    }

    fn query(&self) -> String {
        let all = [("input", self.stdin), ("output", self.stdout), ("error", self.stderr), ("tty", self.tty)];
        all.iter().filter(|(_, on)| *on).map(|(n, _)| format!("{n}=1")).collect::<Vec<_>>().join("&")
    }
}

/// Answers a request for exec or attach.
pub async fn handle(state: &AppState, info: &RequestInfo, request: Request<Incoming>) -> Result<Response<Body>> {
    let pod = target::pod(state, info, &info.name)?;
    let container = target::container(&pod, info.query.get("container"))?;
    let streams = Streams::read(info)?;
    let mut query = streams.query();
    if info.subresource == "exec" {
        let command: Vec<String> = info.query.all("command").map(|c| format!("&command={}", escape(c))).collect();
        if command.is_empty() {
            return Err(ApiError::bad_request("you must specify at least one command"));
        }
        query.push_str(&command.concat());
    }
    let wanted = handshake::wanted(request.headers())?;
    let kubelet = target::kubelet_of(state, &pod)?;
    let path = format!("/{}/{}/{}/{container}?{query}", info.subresource, info.namespace, info.name);
    match wanted {
        Wanted::WebSocket { key, protocols } => {
            // Without an offer the old binary channels are meant.
            let chosen = handshake::choose(&protocols, &WEBSOCKET);
            let chosen = chosen.ok_or_else(|| handshake::no_common_protocol(&protocols, &WEBSOCKET))?;
            let backend = backend::open_websocket(&kubelet, &path, WEBSOCKET[0]).await?;
            let answer = handshake::accept_websocket(&key, (!protocols.is_empty()).then_some(chosen))?;
            tokio::spawn(async move {
                match hyper::upgrade::on(request).await {
                    Ok(io) => over_websocket(TokioIo::new(io), chosen, backend).await,
                    Err(e) => tracing::debug!("exec client went away before its upgrade: {e}"),
                }
            });
            Ok(answer)
        }
        Wanted::Spdy { protocols } => {
            let chosen =
                handshake::choose(&protocols, &SPDY).ok_or_else(|| handshake::no_common_protocol(&protocols, &SPDY))?;
            let backend = backend::open_websocket(&kubelet, &path, WEBSOCKET[0]).await?;
            let answer = handshake::accept_spdy(chosen);
            tokio::spawn(async move {
                match hyper::upgrade::on(request).await {
                    Ok(io) => over_spdy(TokioIo::new(io), chosen, streams, backend).await,
                    Err(e) => tracing::debug!("exec client went away before its upgrade: {e}"),
                }
            });
            Ok(answer)
        }
    }
}

/// The sentence that protocols before v4 get instead of a Status; empty on success.
fn plain_error(status: &[u8]) -> String {
    let value: Value = serde_json::from_slice(status).unwrap_or_default();
    if value["status"] == "Success" {
        String::new()
    } else {
        value["message"].as_str().unwrap_or("the command failed").to_string()
    }
}

/// Serves a WebSocket client until either end is done.
pub(super) async fn over_websocket<I>(io: I, protocol: &str, (kubelet, mut from_kubelet): (Sender, KubeletReceiver))
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let base64 = protocol.contains("base64");
    let status_json = protocol.starts_with('v');
    let (client, mut from_client) = websocket::start(io, Role::Server);
    // Old clients wait for a first message to know that they are connected.
    if send_channel(&client, STDOUT, &[], base64).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            message = from_client.next() => {
                let Ok(Some(message)) = message else { break };
                let Some((channel, data)) = client_frame(message, base64) else { continue };
                if matches!(channel, STDIN | RESIZE | CLOSE) && kubelet.channel(channel, &data).await.is_err() {
                    break;
                }
            }
            message = from_kubelet.next() => {
                let data = match message {
                    Ok(Some(Message { data, .. })) => data,
                    _ => Bytes::from_static(LOST),
                };
                let Some((&channel, rest)) = data.split_first() else { continue };
                let sentence;
                let rest = if channel == ERROR && !status_json {
                    sentence = plain_error(rest);
                    sentence.as_bytes()
                } else {
                    rest
                };
                if send_channel(&client, channel, rest, base64).await.is_err() {
                    break;
                }
                if channel == ERROR {
                    break;
                }
            }
        }
    }
    // Either may be gone already; then there is nobody to tell.
    let _ = kubelet.close().await;
    let _ = client.close().await;
    let _ = tokio::time::timeout(LINGER, async { while let Ok(Some(_)) = from_client.next().await {} }).await;
}

/// Channel and data of a client's message.
fn client_frame(message: Message, base64: bool) -> Option<(u8, Bytes)> {
    let first = *message.data.first()?;
    if base64 {
        let data = STANDARD.decode(&message.data[1..]).ok()?;
        return Some((first.checked_sub(b'0')?, data.into()));
    }
    Some((first, message.data.slice(1..)))
}

async fn send_channel(client: &Sender, channel: u8, data: &[u8], base64: bool) -> Result<(), websocket::Closed> {
    if base64 {
        return client.text(format!("{channel}{}", STANDARD.encode(data))).await;
    }
    client.channel(channel, data).await
}

/// The streams a SPDY client opened.
#[derive(Debug, Default)]
struct Opened {
    by_type: HashMap<String, u32>,
}

impl Opened {
    fn id(&self, kind: &str) -> Option<u32> {
        self.by_type.get(kind).copied()
    }

    fn complete(&self, streams: Streams) -> bool {
        let wanted =
            [("error", true), ("stdin", streams.stdin), ("stdout", streams.stdout), ("stderr", streams.stderr)];
        wanted.iter().all(|(kind, on)| !on || self.by_type.contains_key(*kind))
    }
}

/// Serves a SPDY client until either end is done.
async fn over_spdy<I>(io: I, protocol: &str, streams: Streams, (kubelet, mut from_kubelet): (Sender, KubeletReceiver))
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (client, mut events) = spdy::start(io);
    let mut opened = Opened::default();
    let mut early = Vec::new();
    let all_open = async {
        while !opened.complete(streams) {
            match events.recv().await {
                Some(Event::Open { id, headers, .. }) => {
                    opened.by_type.insert(spdy::header(&headers, "streamtype").to_string(), id);
                    if client.reply(id).await.is_err() {
                        return false;
                    }
                }
                Some(other) => early.push(other),
                None => return false,
            }
        }
        true
    };
    if !tokio::time::timeout(STREAMS_TIMEOUT, all_open).await.unwrap_or(false) {
        tracing::debug!("a SPDY client did not open the streams it asked for");
        let _ = kubelet.close().await;
        return;
    }
    for event in early {
        client_event(event, &mut opened, &client, &kubelet).await;
    }
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { break };
                if !client_event(event, &mut opened, &client, &kubelet).await {
                    break;
                }
            }
            message = from_kubelet.next() => {
                let status = match message {
                    Ok(Some(Message { data, .. })) => match kubelet_message(data, &opened, &client).await {
                        Ok(None) => continue,
                        Ok(Some(status)) => status,
                        Err(_) => break,
                    },
                    _ => Bytes::from_static(&LOST[1..]),
                };
                finish(&client, &opened, protocol, &status).await;
                // Until the client closes, its last frames are read and dropped.
                let _ = tokio::time::timeout(LINGER, async { while events.recv().await.is_some() {} }).await;
                break;
            }
        }
    }
    let _ = kubelet.close().await;
}

/// Passes on what the client did; false when the kubelet is gone.
async fn client_event(event: Event, opened: &mut Opened, client: &spdy::Session, kubelet: &Sender) -> bool {
    match event {
        Event::Open { id, headers, .. } => {
            opened.by_type.insert(spdy::header(&headers, "streamtype").to_string(), id);
            client.reply(id).await.is_ok()
        }
        Event::Data { id, data, fin } if Some(id) == opened.id("stdin") => {
            if !data.is_empty() && kubelet.channel(STDIN, &data).await.is_err() {
                return false;
            }
            !fin || kubelet.channel(CLOSE, &[STDIN]).await.is_ok()
        }
        Event::Data { id, data, .. } if Some(id) == opened.id("resize") => {
            for line in data.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                if kubelet.channel(RESIZE, line).await.is_err() {
                    return false;
                }
            }
            true
        }
        Event::Reset { id } if Some(id) == opened.id("stdin") => kubelet.channel(CLOSE, &[STDIN]).await.is_ok(),
        Event::Data { .. } | Event::Reset { .. } => true,
    }
}

/// Passes on what the kubelet sent; the final status comes back.
async fn kubelet_message(data: Bytes, opened: &Opened, client: &spdy::Session) -> Result<Option<Bytes>, spdy::Closed> {
    let Some(&channel) = data.first() else { return Ok(None) };
    let rest = data.slice(1..);
    let kind = match channel {
        STDOUT => "stdout",
        STDERR => "stderr",
        ERROR => return Ok(Some(rest)),
        _ => return Ok(None),
    };
    if let Some(id) = opened.id(kind).filter(|_| !rest.is_empty()) {
        client.data(id, rest, false).await?;
    }
    Ok(None)
}

async fn finish(client: &spdy::Session, opened: &Opened, protocol: &str, status: &Bytes) {
    let text = if protocol == "v4.channel.k8s.io" { status.clone() } else { Bytes::from(plain_error(status)) };
    let end = async {
        for kind in ["stdout", "stderr"] {
            if let Some(id) = opened.id(kind) {
                client.data(id, Bytes::new(), true).await?;
            }
        }
        if let Some(id) = opened.id("error") {
            client.data(id, text, true).await?;
        }
        for kind in ["stdin", "resize"] {
            if let Some(id) = opened.id(kind) {
                client.data(id, Bytes::new(), true).await?;
            }
        }
        client.goodbye().await
    };
    if let Err(e) = end.await {
        tracing::debug!("SPDY client: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_clients() {
        let message = |data: &'static [u8]| Message { text: false, data: Bytes::from_static(data) };
        assert_eq!(client_frame(message(b"\x00hi"), false), Some((0, Bytes::from_static(b"hi"))));
        assert_eq!(client_frame(message(b"0aGk="), true), Some((0, Bytes::from_static(b"hi"))));
        assert_eq!(client_frame(message(b""), false), None);
        assert_eq!(client_frame(message(b"0!!"), true), None);
    }

    #[test]
    fn old_protocols_get_a_sentence() {
        assert_eq!(plain_error(br#"{"status":"Success"}"#), "");
        assert_eq!(
            plain_error(br#"{"status":"Failure","message":"command terminated with exit code 3"}"#),
            "command terminated with exit code 3"
        );
    }
}
