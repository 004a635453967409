//! SPDY/3.1, the server's side of what kubectl's older streams need: the client opens
//! streams, both write on them. No flow-control windows are kept, as upstream's ends keep none.

mod headers;

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use headers::{Deflater, Inflater};

pub use headers::Headers;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// Largest frame taken; the format allows 16 MiB.
const MAX_FRAME: usize = 4 << 20;
/// Data is cut into frames of this size.
const CHUNK: usize = 32 << 10;
const QUEUE: usize = 32;

/// What the client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new stream; `fin`: the client will not write on it.
    Open {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    Data {
        id: u32,
        data: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
    },
}

#[derive(Debug)]
enum Out {
    Reply(u32),
    Data(u32, Bytes, bool),
    Reset(u32),
    Pong(u32),
    GoAway,
}

/// Writes to the client; may be cloned.
#[derive(Debug, Clone)]
pub struct Session(mpsc::Sender<Out>);

/// The client has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's connection was closed")]
pub struct Closed;

impl Session {
    async fn put(&self, out: Out) -> Result<(), Closed> {
        self.0.send(out).await.map_err(|_| Closed)
    }

    /// Accepts a stream.
    pub async fn reply(&self, id: u32) -> Result<(), Closed> {
        self.put(Out::Reply(id)).await
    }

    /// Writes on a stream; `fin` ends our half of it.
    pub async fn data(&self, id: u32, data: impl Into<Bytes>, fin: bool) -> Result<(), Closed> {
        self.put(Out::Data(id, data.into(), fin)).await
    }

    /// Breaks a stream off.
    pub async fn reset(&self, id: u32) -> Result<(), Closed> {
        self.put(Out::Reset(id)).await
    }

    /// Says that no more streams are taken.
    pub async fn goodbye(&self) -> Result<(), Closed> {
        self.put(Out::GoAway).await
    }
}

/// Serves SPDY on a connection: tasks read and write until the client closes or both
/// [`Session`] and events are dropped.
pub fn start<I>(io: I) -> (Session, mpsc::Receiver<Event>)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let (out, queue) = mpsc::channel(QUEUE);
    let (tx, events) = mpsc::channel(QUEUE);
    let session = Session(out);
    tokio::spawn(write_frames(write, queue));
    // The reader must not keep the writer alive for ever: it holds a weak end.
    let weak = session.0.downgrade();
    tokio::spawn(async move {
        if let Err(e) = read_frames(read, tx, weak).await {
            tracing::debug!("SPDY connection: {e}");
        }
    });
    (session, events)
}

async fn write_frames<W: AsyncWrite + Unpin>(mut write: W, mut queue: mpsc::Receiver<Out>) {
    let mut deflater = Deflater::default();
    let mut buffer = BytesMut::new();
    while let Some(out) = queue.recv().await {
        encode(&mut buffer, out, &mut deflater);
        if !queue.is_empty() && buffer.len() < CHUNK {
            continue;
        }
        if write.write_all(&buffer).await.is_err() || write.flush().await.is_err() {
            break;
        }
        buffer.clear();
    }
    // The reader learns of a broken connection by itself.
    let _ = write.shutdown().await;
}

fn control(buffer: &mut BytesMut, kind: u16, body: &[u8]) {
    buffer.put_u16(0x8003);
    buffer.put_u16(kind);
    buffer.put_u32(body.len() as u32);
    buffer.put_slice(body);
}

fn encode(buffer: &mut BytesMut, out: Out, deflater: &mut Deflater) {
    match out {
        Out::Reply(id) => {
            let mut body = id.to_be_bytes().to_vec();
            body.extend(deflater.write(&[]));
            control(buffer, SYN_REPLY, &body);
        }
        Out::Data(id, mut data, fin) => loop {
            let piece = data.split_to(data.len().min(CHUNK));
            let last = data.is_empty();
            buffer.put_u32(id & 0x7fff_ffff);
            let flags = if fin && last { FIN } else { 0 };
            buffer.put_u32(u32::from(flags) << 24 | piece.len() as u32);
            buffer.put_slice(&piece);
            if last {
                break;
            }
        },
        Out::Reset(id) => {
            let mut body = id.to_be_bytes().to_vec();
            body.extend_from_slice(&5u32.to_be_bytes());
            control(buffer, RST_STREAM, &body);
        }
        Out::Pong(id) => control(buffer, PING, &id.to_be_bytes()),
        Out::GoAway => control(buffer, GOAWAY, &[0; 8]),
    }
}

async fn read_frames<R: AsyncRead + Unpin>(
    mut read: R,
    events: mpsc::Sender<Event>,
    out: mpsc::WeakSender<Out>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(8192);
    let mut inflater = Inflater::default();
    loop {
        while let Some(frame) = split_frame(&mut buffer)? {
            let Some(event) = understand(frame, &mut inflater)? else { continue };
            match event {
                Understood::Event(event) => {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
                Understood::Ping(id) => match out.upgrade() {
                    Some(sender) => {
                        let _ = sender.send(Out::Pong(id)).await;
                    }
                    None => return Ok(()),
                },
                Understood::GoAway => return Ok(()),
            }
        }
        buffer.reserve(8192);
        let more = tokio::select! {
            n = read.read_buf(&mut buffer) => n?,
            () = events.closed() => 0,
        };
        if more == 0 {
            return Ok(());
        }
    }
}

/// Header word, flags and payload of a whole frame.
struct Frame {
    word: u32,
    flags: u8,
    body: Bytes,
}

fn split_frame(buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
    if buffer.len() < 8 {
        return Ok(None);
    }
    let word = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
    let length = u32::from_be_bytes([0, buffer[5], buffer[6], buffer[7]]) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "SPDY: a frame is too large"));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    let flags = buffer[4];
    buffer.advance(8);
    Ok(Some(Frame { word, flags, body: buffer.split_to(length).freeze() }))
}

enum Understood {
    Event(Event),
    Ping(u32),
    GoAway,
}

fn understand(mut frame: Frame, inflater: &mut Inflater) -> io::Result<Option<Understood>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "SPDY: a frame is cut off");
    let fin = frame.flags & FIN != 0;
    if frame.word & 0x8000_0000 == 0 {
        return Ok(Some(Understood::Event(Event::Data { id: frame.word, data: frame.body, fin })));
    }
    let kind = (frame.word & 0xffff) as u16;
    let needed = if kind == SYN_STREAM { 10 } else { 4 };
    if matches!(kind, SYN_STREAM | RST_STREAM | PING | 8) && frame.body.len() < needed {
        return Err(short());
    }
    Ok(match kind {
        SYN_STREAM => {
            let id = frame.body.get_u32() & 0x7fff_ffff;
            frame.body.advance(6);
            let headers = inflater.read(&frame.body)?;
            Some(Understood::Event(Event::Open { id, headers, fin }))
        }
        // HEADERS: nothing of ours needs them, but the stream of compression goes on through them.
        8 => {
            frame.body.advance(4);
            inflater.read(&frame.body)?;
            None
        }
        RST_STREAM => Some(Understood::Event(Event::Reset { id: frame.body.get_u32() & 0x7fff_ffff })),
        PING => Some(Understood::Ping(frame.body.get_u32())),
        GOAWAY => Some(Understood::GoAway),
        _ => None,
    })
}

/// First value of a stream's header.
pub fn header<'a>(headers: &'a Headers, name: &str) -> &'a str {
    headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A client's SYN_STREAM.
    pub(crate) struct Client {
        deflater: Deflater,
    }

    impl Client {
        pub(crate) fn new() -> Self {
            Self { deflater: Deflater::default() }
        }
        pub(crate) fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut body = id.to_be_bytes().to_vec();
            body.extend_from_slice(&[0; 6]);
            body.extend(self.deflater.write(headers));
            let mut out = BytesMut::new();
            control(&mut out, SYN_STREAM, &body);
            out.to_vec()
        }
        pub(crate) fn data(&mut self, id: u32, data: &[u8], fin: bool) -> Vec<u8> {
            let mut out = BytesMut::new();
            encode(&mut out, Out::Data(id, Bytes::copy_from_slice(data), fin), &mut self.deflater);
            out.to_vec()
        }
    }

    #[tokio::test]
    async fn streams_open_carry_and_end() {
        let (mut ours, theirs) = tokio::io::duplex(100_000);
        let (session, mut events) = start(theirs);
        let mut client = Client::new();
        ours.write_all(&client.open(1, &[("streamtype", "data")])).await.expect("write");
        match events.recv().await.expect("open") {
            Event::Open { id: 1, headers, fin: false } => assert_eq!(header(&headers, "streamtype"), "data"),
            other => panic!("{other:?}"),
        }
        ours.write_all(&client.data(1, b"hello", true)).await.expect("write");
        assert_eq!(events.recv().await, Some(Event::Data { id: 1, data: Bytes::from_static(b"hello"), fin: true }));
        session.reply(1).await.expect("reply");
        session.data(1, vec![9u8; CHUNK + 1], true).await.expect("data");
        let mut head = [0; 8];
        ours.read_exact(&mut head).await.expect("reply frame");
        assert_eq!(head[..4], [0x80, 3, 0, 2]);
        let mut rest = vec![0; head[7] as usize + 8 + CHUNK];
        ours.read_exact(&mut rest).await.expect("data frame");
        ours.read_exact(&mut head).await.expect("last frame");
        assert_eq!(head, [0, 0, 0, 1, FIN, 0, 0, 1]);
        drop((session, ours));
        assert_eq!(events.recv().await, None);
    }

    #[test]
    fn rubbish_is_refused() {
        let mut inflater = Inflater::default();
        for kind in [SYN_STREAM, RST_STREAM, PING] {
            let frame = Frame { word: 0x8003_0000 | u32::from(kind), flags: 0, body: Bytes::from_static(b"x") };
            assert!(understand(frame, &mut inflater).is_err());
        }
        assert!(split_frame(&mut BytesMut::from(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff][..])).is_err());
    }
}
