//! The server's side of WebSocket channels: one byte of channel, then data.

use super::{Answer, Body, text};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// Largest message sent or taken, with its channel.
pub const MESSAGE: usize = 32 << 10;

/// A connection of channels.
pub struct Channels {
    socket: WebSocketStream<TokioIo<Upgraded>>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming_ {
    /// Data of a channel.
    Data(u8, Bytes),
    /// A channel's end.
    End(u8),
    /// The other side went away.
    Gone,
}

impl Channels {
    /// The next message. Cancel-safe.
    pub async fn next(&mut self) -> Incoming_ {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(_)) | None => return Incoming_::Gone,
            };
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text.as_bytes().to_vec()),
                Message::Close(_) => return Incoming_::Gone,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            match data.first() {
                None => continue,
                Some(255) => return Incoming_::End(data.get(1).copied().unwrap_or(0)),
                Some(channel) => return Incoming_::Data(*channel, data.slice(1..)),
            }
        }
    }

    /// Sends data on a channel, in pieces where it is large. An error means that the other side is gone.
    pub async fn send(&mut self, channel: u8, data: &[u8]) -> Result<(), ()> {
        let pieces: Vec<&[u8]> = if data.is_empty() { vec![data] } else { data.chunks(MESSAGE - 1).collect() };
        for piece in pieces {
            let mut message = Vec::with_capacity(piece.len() + 1);
            message.push(channel);
            message.extend_from_slice(piece);
            self.socket.send(Message::Binary(Bytes::from(message))).await.map_err(|_| ())?;
        }
        Ok(())
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // Whoever is gone already needs no goodbye.
        self.socket.close(None).await.ok();
    }
}

/// Accepts the upgrade with one of the protocols; `work` has the connection once it is there.
pub fn upgrade<F, W>(mut request: Request<Incoming>, protocols: &[&'static str], work: W) -> Answer
where
    W: FnOnce(Channels) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let wants = |name: header::HeaderName, word: &str| {
        let values = request.headers().get_all(name);
        values.iter().any(|v| v.to_str().is_ok_and(|t| t.to_lowercase().split(',').any(|p| p.trim() == word)))
    };
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let (true, Some(key)) = (wants(header::UPGRADE, "websocket") && wants(header::CONNECTION, "upgrade"), key) else {
        return text(StatusCode::BAD_REQUEST, "this needs an upgrade to WebSocket\n");
    };
    let Some(protocol) = choose(&request, protocols) else {
        return text(
            StatusCode::BAD_REQUEST,
            format!("none of the subprotocols is known here; there are: {}\n", protocols.join(", ")),
        );
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(4 << 20))
                    .max_frame_size(Some(4 << 20))
                    .read_buffer_size(16 << 10)
                    .write_buffer_size(0);
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
                work(Channels { socket }).await;
            }
            Err(error) => tracing::debug!("upgrade: {error}"),
        }
    });
    let body: Body = Empty::new().map_err(|never: Infallible| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer
}

fn choose<B>(request: &Request<B>, known: &[&'static str]) -> Option<&'static str> {
    let offered: Vec<String> = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(|p| p.trim().to_string()))
        .collect();
    known.iter().copied().find(|k| offered.iter().any(|o| o == k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_chosen_by_what_is_known() {
        let request = |value: &str| Request::get("/").header(header::SEC_WEBSOCKET_PROTOCOL, value).body(()).unwrap();
        let known = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        assert_eq!(choose(&request("v4.channel.k8s.io, v5.channel.k8s.io"), &known), Some("v5.channel.k8s.io"));
        assert_eq!(choose(&request("other"), &known), None);
    }
}
