//! WebSocket framing (RFC 6455), for clients of ours and towards kubelets.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use rand::RngCore;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Nobody sends larger messages; who does is cut off.
const MAX_MESSAGE: usize = 4 << 20;
const QUEUE: usize = 32;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Which end we are; clients mask what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub text: bool,
    pub data: Bytes,
}

/// Sends messages; may be cloned.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<(u8, Bytes)>);

/// The other end has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection was closed")]
pub struct Closed;

impl Sender {
    async fn frame(&self, opcode: u8, data: Bytes) -> Result<(), Closed> {
        self.0.send((opcode, data)).await.map_err(|_| Closed)
    }

    /// Sends a binary message.
    pub async fn binary(&self, data: impl Into<Bytes>) -> Result<(), Closed> {
        self.frame(BINARY, data.into()).await
    }

    /// Sends a text message.
    pub async fn text(&self, data: impl Into<Bytes>) -> Result<(), Closed> {
        self.frame(TEXT, data.into()).await
    }

    /// Sends a binary message that begins with a channel's number.
    pub async fn channel(&self, channel: u8, data: &[u8]) -> Result<(), Closed> {
        let mut out = BytesMut::with_capacity(data.len() + 1);
        out.put_u8(channel);
        out.put_slice(data);
        self.binary(out.freeze()).await
    }

    /// Says goodbye; nothing is sent after it.
    pub async fn close(&self) -> Result<(), Closed> {
        self.frame(CLOSE, Bytes::from_static(&[0x03, 0xe8])).await
    }
}

/// Receives messages, and answers pings.
#[derive(Debug)]
pub struct Receiver<R> {
    inner: R,
    buffer: BytesMut,
    partial: Option<(u8, BytesMut)>,
    sender: Sender,
}

/// Splits a connection after its handshake; a task writes until every sender is gone.
pub fn start<I>(io: I, role: Role) -> (Sender, Receiver<tokio::io::ReadHalf<I>>)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let (tx, rx) = mpsc::channel(QUEUE);
    tokio::spawn(write_frames(write, rx, role));
    let sender = Sender(tx);
    (sender.clone(), Receiver { inner: read, buffer: BytesMut::with_capacity(8192), partial: None, sender })
}

async fn write_frames<W: AsyncWrite + Unpin>(mut write: W, mut queue: mpsc::Receiver<(u8, Bytes)>, role: Role) {
    let mut out = BytesMut::new();
    while let Some((opcode, data)) = queue.recv().await {
        out.clear();
        encode(&mut out, opcode, &data, role);
        let closing = opcode == CLOSE;
        let broken =
            write.write_all(&out).await.is_err() || (queue.is_empty() || closing) && write.flush().await.is_err();
        if broken || closing {
            break;
        }
    }
    // The reader learns of a broken connection by itself.
    let _ = write.shutdown().await;
}

fn encode(out: &mut BytesMut, opcode: u8, data: &[u8], role: Role) {
    out.put_u8(0x80 | opcode);
    let mask_bit = if role == Role::Client { 0x80 } else { 0 };
    match data.len() {
        n @ 0..=125 => out.put_u8(mask_bit | n as u8),
        n @ 126..=65535 => {
            out.put_u8(mask_bit | 126);
            out.put_u16(n as u16);
        }
        n => {
            out.put_u8(mask_bit | 127);
            out.put_u64(n as u64);
        }
    }
    if role == Role::Client {
        let mut mask = [0; 4];
        rand::rng().fill_bytes(&mut mask);
        out.put_slice(&mask);
        let at = out.len();
        out.put_slice(data);
        apply_mask(&mut out[at..], mask);
    } else {
        out.put_slice(data);
    }
}

fn apply_mask(data: &mut [u8], mask: [u8; 4]) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte ^= mask[i & 3];
    }
}

struct Frame {
    fin: bool,
    opcode: u8,
    data: BytesMut,
}

/// Takes one frame off the buffer; Ok(None) asks for more bytes.
fn decode(buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {what}"));
    if buffer.len() < 2 {
        return Ok(None);
    }
    let (first, second) = (buffer[0], buffer[1]);
    if first & 0x70 != 0 {
        return Err(bad("reserved bits are set"));
    }
    let (extra, mut length) = match second & 0x7f {
        126 => (2, 0),
        127 => (8, 0),
        n => (0, u64::from(n)),
    };
    let masked = second & 0x80 != 0;
    let header = 2 + extra + if masked { 4 } else { 0 };
    if buffer.len() < header {
        return Ok(None);
    }
    for byte in &buffer[2..2 + extra] {
        length = length << 8 | u64::from(*byte);
    }
    let length =
        usize::try_from(length).ok().filter(|n| *n <= MAX_MESSAGE).ok_or_else(|| bad("a frame is too large"))?;
    if buffer.len() < header + length {
        buffer.reserve(header + length - buffer.len());
        return Ok(None);
    }
    let mut mask = [0; 4];
    if masked {
        mask.copy_from_slice(&buffer[header - 4..header]);
    }
    buffer.advance(header);
    let mut data = buffer.split_to(length);
    if masked {
        apply_mask(&mut data, mask);
    }
    Ok(Some(Frame { fin: first & 0x80 != 0, opcode: first & 0x0f, data }))
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// The next message; None when the other end closed.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            let Some(frame) = self.frame().await? else { return Ok(None) };
            match frame.opcode {
                PING => {
                    let _ = self.sender.frame(PONG, frame.data.freeze()).await;
                }
                PONG => {}
                CLOSE => {
                    let _ = self.sender.close().await;
                    return Ok(None);
                }
                CONTINUATION | TEXT | BINARY => {
                    if let Some(message) = self.assemble(frame)? {
                        return Ok(Some(message));
                    }
                }
                other => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("WebSocket: unknown opcode {other}"),
                    ));
                }
            }
        }
    }

    fn assemble(&mut self, frame: Frame) -> io::Result<Option<Message>> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {what}"));
        let (opcode, mut data) = match (self.partial.take(), frame.opcode) {
            (Some((opcode, mut data)), CONTINUATION) => {
                data.extend_from_slice(&frame.data);
                (opcode, data)
            }
            (None, CONTINUATION) => return Err(bad("a continuation without a beginning")),
            (Some(_), _) => return Err(bad("a message inside a message")),
            (None, opcode) => (opcode, frame.data),
        };
        if data.len() > MAX_MESSAGE {
            return Err(bad("a message is too large"));
        }
        if !frame.fin {
            self.partial = Some((opcode, data));
            return Ok(None);
        }
        Ok(Some(Message { text: opcode == TEXT, data: data.split().freeze() }))
    }

    async fn frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(4096);
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// The answer to a `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    STANDARD.encode(digest.as_ref())
}

/// A fresh `Sec-WebSocket-Key`.
pub fn new_key() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_example() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn messages_of_all_sizes_go_both_ways() {
        let (a, b) = tokio::io::duplex(1000);
        let (client, mut from_server) = start(a, Role::Client);
        let (server, mut from_client) = start(b, Role::Server);
        for size in [0, 1, 125, 126, 65535, 65536, 200_000] {
            let data = Bytes::from(vec![7u8; size]);
            let sent = data.clone();
            let (got, _) = tokio::join!(from_client.next(), client.binary(sent));
            assert_eq!(got.expect("read"), Some(Message { text: false, data: data.clone() }), "{size}");
            let (got, _) = tokio::join!(from_server.next(), server.text(data.clone()));
            assert_eq!(got.expect("read").map(|m| m.data), Some(data));
        }
        client.frame(PING, Bytes::from_static(b"x")).await.expect("ping");
        client.close().await.expect("close");
        assert_eq!(from_client.next().await.expect("closed"), None);
    }

    #[test]
    fn fragments_and_rubbish() {
        let mut frame = BytesMut::from(&[0x02u8, 0x01, b'a', 0x80, 0x01, b'b'][..]);
        let first = decode(&mut frame).expect("ok").expect("frame");
        assert!(!first.fin && first.opcode == BINARY);
        assert!(decode(&mut BytesMut::from(&[0x82u8, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 0][..])).is_err(), "too large");
        assert!(decode(&mut BytesMut::from(&[0xf2u8, 0][..])).is_err(), "reserved bits");
        assert!(decode(&mut BytesMut::from(&[0x82u8][..])).expect("ok").is_none());
    }
}
