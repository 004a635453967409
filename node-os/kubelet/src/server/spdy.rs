//! A small SPDY/3.1 client: what it takes to open the streams of the runtime's own streaming
//! server. Only with SPDY can the end of input be told to every runtime.
//!
//! Header blocks are sent as stored (not compressed) zlib blocks, which need no dictionary;
//! those of the other side are not needed and not read.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_util::codec::{Decoder, FramedRead};

/// Largest piece of data in one frame.
const PIECE: usize = 16 << 10;
/// Largest frame taken; the format itself allows 16 MiB.
const FRAME: usize = 16 << 20;
/// Largest answer head taken.
const HEAD: usize = 16 << 10;

/// A frame of the other side, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A stream was accepted.
    Reply(u32),
    /// Data, and whether it is the stream's last.
    Data(u32, Bytes, bool),
    /// A stream was refused or broken off.
    Reset(u32),
    /// A ping to be sent back.
    Ping(u32),
    /// The other side ends.
    GoAway,
    /// Anything else.
    Other,
}

struct Codec;

impl Decoder for Codec {
    type Item = Frame;
    type Error = std::io::Error;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, std::io::Error> {
        let Some(head) = source.get(..8) else { return Ok(None) };
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > FRAME {
            return Err(std::io::Error::other("a SPDY frame is larger than any may be"));
        }
        if source.len() < 8 + length {
            source.reserve(8 + length - source.len());
            return Ok(None);
        }
        source.advance(8);
        let payload = source.split_to(length).freeze();
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data(word, payload, flags & 1 != 0)));
        }
        let id = payload.get(..4).map_or(0, |b| u32::from_be_bytes([b[0] & 0x7f, b[1], b[2], b[3]]));
        Ok(Some(match word & 0xffff {
            2 => Frame::Reply(id),
            3 => Frame::Reset(id),
            6 => Frame::Ping(id),
            7 => Frame::GoAway,
            _ => Frame::Other,
        }))
    }
}

/// A connection with streams.
pub struct Connection {
    frames: FramedRead<ReadHalf<TcpStream>, Codec>,
    writer: WriteHalf<TcpStream>,
    next: u32,
    first_headers: bool,
}

impl Connection {
    /// Connects to `url`, which the runtime gave, and switches to SPDY.
    pub async fn open(url: &str, protocol: &str) -> Result<Connection, String> {
        let uri: http::Uri = url.parse().map_err(|e| format!("the runtime's streaming address {url:?}: {e}"))?;
        let authority =
            uri.authority().ok_or_else(|| format!("the runtime's streaming address {url:?} has no host"))?;
        let port = uri.port_u16().unwrap_or(80);
        let mut stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), port))
            .await
            .map_err(|e| format!("connecting to the runtime's streaming server {authority}: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let (head, rest) = read_head(&mut stream).await?;
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if status != "101" {
            let body = String::from_utf8_lossy(&rest).into_owned();
            return Err(format!("the runtime's streaming server answered {status}: {}", body.trim()));
        }
        let (reader, writer) = tokio::io::split(stream);
        let mut frames = FramedRead::new(reader, Codec);
        frames.read_buffer_mut().extend_from_slice(&rest);
        Ok(Connection { frames, writer, next: 1, first_headers: true })
    }

    /// Opens a stream and waits until it is accepted; its number.
    pub async fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32, String> {
        let id = self.next;
        self.next += 2;
        let block = header_block(headers, self.first_headers);
        self.first_headers = false;
        let mut frame = BytesMut::new();
        frame.put_u32(0x8003_0001);
        frame.put_u32((block.len() + 10) as u32);
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.extend_from_slice(&block);
        self.write(&frame).await?;
        Ok(id)
    }

    /// The next frame that matters. Cancel-safe, but for answering pings.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.frames.next().await {
                Some(Ok(Frame::Ping(id))) => {
                    let mut frame = BytesMut::new();
                    frame.put_u32(0x8003_0006);
                    frame.put_u32(4);
                    frame.put_u32(id);
                    self.write(&frame).await.ok()?;
                }
                Some(Ok(Frame::Other)) => {}
                Some(Ok(frame)) => return Some(frame),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Sends data on a stream; `last` ends it.
    pub async fn send(&mut self, id: u32, data: &[u8], last: bool) -> Result<(), String> {
        let mut pieces: Vec<&[u8]> = data.chunks(PIECE).collect();
        if pieces.is_empty() && last {
            pieces.push(&[]);
        }
        let count = pieces.len();
        for (index, piece) in pieces.into_iter().enumerate() {
            let mut frame = BytesMut::with_capacity(8 + piece.len());
            frame.put_u32(id);
            let flags = if last && index + 1 == count { 1_u32 } else { 0 };
            frame.put_u32(flags << 24 | piece.len() as u32);
            frame.extend_from_slice(piece);
            self.write(&frame).await?;
        }
        Ok(())
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), String> {
        self.writer.write_all(frame).await.map_err(|e| format!("the runtime's streaming server: {e}"))
    }
}

async fn read_head(stream: &mut TcpStream) -> Result<(String, Vec<u8>), String> {
    let mut buffer = Vec::new();
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&buffer).into_owned(), rest));
        }
        if buffer.len() > HEAD {
            return Err("the runtime's streaming server sent too long a head".into());
        }
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk).await {
            Ok(0) => return Err("the runtime's streaming server closed the connection".into()),
            Ok(length) => buffer.extend_from_slice(&chunk[..length]),
            Err(error) => return Err(format!("the runtime's streaming server: {error}")),
        }
    }
}

/// Headers as a stored zlib block, followed by an empty one, which makes the reader hand out what it has.
fn header_block(headers: &[(&str, &str)], first: bool) -> BytesMut {
    let mut plain = BytesMut::new();
    plain.put_u32(headers.len() as u32);
    for (name, value) in headers {
        for part in [name, value] {
            plain.put_u32(part.len() as u32);
            plain.extend_from_slice(part.as_bytes());
        }
    }
    let mut block = BytesMut::new();
    if first {
        block.put_u16(0x7801);
    }
    let length = plain.len() as u16;
    for part in [&plain[..], &[]] {
        let length = if part.is_empty() { 0 } else { length };
        block.put_u8(0);
        block.put_u16_le(length);
        block.put_u16_le(!length);
        block.extend_from_slice(part);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_whole() {
        let mut codec = Codec;
        let mut data = BytesMut::new();
        data.put_u32(5);
        data.put_u32(1 << 24 | 2);
        data.put_u8(b'h');
        assert_eq!(codec.decode(&mut data).unwrap(), None);
        data.put_u8(b'i');
        assert_eq!(codec.decode(&mut data).unwrap(), Some(Frame::Data(5, Bytes::from_static(b"hi"), true)));
        for (kind, frame) in
            [(2, Frame::Reply(3)), (3, Frame::Reset(3)), (6, Frame::Ping(3)), (7, Frame::GoAway), (9, Frame::Other)]
        {
            data.put_u32(0x8003_0000 | kind);
            data.put_u32(8);
            data.put_u32(3);
            data.put_u32(0);
            assert_eq!(codec.decode(&mut data).unwrap(), Some(frame));
        }
    }

    #[test]
    fn headers_are_stored_blocks() {
        let block = header_block(&[("a", "bc")], true);
        let expected = [
            0x78, 0x01, 0, 15, 0, 0xf0, 0xff, 0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c', 0, 0, 0, 0xff, 0xff,
        ];
        assert_eq!(&block[..], &expected[..]);
        assert_eq!(header_block(&[("a", "bc")], false).len(), block.len() - 2);
    }
}
