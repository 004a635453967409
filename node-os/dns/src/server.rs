//! UDP and TCP sockets.

use crate::answer::{self, Step};
use crate::forward::Forwarder;
use crate::zone::Zone;
use anyhow::Context;
use hickory_proto::op::{Message, Query, ResponseCode};
use node_client::Places;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Without EDNS a UDP answer has at most this many bytes (RFC 1035).
const PLAIN_UDP: usize = 512;
/// Larger UDP answers would be fragmented.
const MAX_UDP: usize = 1232;
/// A question has some hundred bytes. What is longer is not read: its records would take twenty times the memory.
const MAX_QUERY: usize = 4096;
/// Questions in flight to upstream at most, in all and of one client; the others are refused at once.
const MAX_FORWARDS: usize = 512;
const MAX_FORWARDS_OF_ONE: usize = 128;
/// Connections at most, in all and of one client: a pod with many of them leaves the others theirs.
const MAX_CONNECTIONS: usize = 256;
const MAX_OF_ONE: usize = 16;
const TCP_IDLE: Duration = Duration::from_secs(10);

/// What all sockets share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) zone: RefCell<Option<Zone>>,
    pub(crate) forwarder: Forwarder,
    pub(crate) queries: Cell<u64>,
    pub(crate) forwards: Cell<u64>,
    flying: Places,
}

impl Shared {
    pub(crate) fn new(forwarder: Forwarder) -> Rc<Shared> {
        Rc::new(Shared {
            zone: RefCell::new(None),
            forwarder,
            queries: Cell::new(0),
            forwards: Cell::new(0),
            flying: Places::new(MAX_FORWARDS, MAX_FORWARDS_OF_ONE),
        })
    }

    async fn resolve(&self, request: &Message, client: IpAddr) -> Message {
        self.queries.set(self.queries.get() + 1);
        let step = match &*self.zone.borrow() {
            // Before the zone is known a wrong "no such name" would be kept by resolvers.
            None => return answer::failure(request, ResponseCode::ServFail),
            Some(zone) => answer::step(zone, request),
        };
        match step {
            Step::Reply(reply) => *reply,
            Step::Forward => self.forward(request, client).await,
            Step::Follow(mut reply, target) => {
                let mut question = request.clone();
                let kind = request.queries.first().map(Query::query_type);
                question.queries = kind.map(|k| Query::query(target, k)).into_iter().collect();
                let upstream = self.forward(&question, client).await;
                reply.answers.extend(upstream.answers);
                *reply
            }
        }
    }

    async fn forward(&self, request: &Message, client: IpAddr) -> Message {
        let Some(_place) = self.flying.take(client) else {
            return answer::failure(request, ResponseCode::ServFail);
        };
        self.forwards.set(self.forwards.get() + 1);
        self.forwarder.ask(request).await
    }
}

/// Answers datagrams until the socket fails.
pub(crate) async fn udp(address: SocketAddr, shared: Rc<Shared>) -> anyhow::Result<()> {
    let socket = Rc::new(UdpSocket::bind(address).await.with_context(|| format!("binding {address}/udp"))?);
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.context("receiving a query")?;
        let Ok(request) = Message::from_vec(buffer.get(..length).unwrap_or(&[])) else { continue };
        let (socket, shared) = (socket.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            let reply = shared.resolve(&request, client.ip()).await;
            let limit =
                request.edns.as_ref().map_or(PLAIN_UDP, |e| usize::from(e.max_payload()).clamp(PLAIN_UDP, MAX_UDP));
            if let Some(bytes) = encode(&reply, limit)
                && let Err(error) = socket.send_to(&bytes, client).await
            {
                tracing::debug!("answering {client}: {error}");
            }
        });
    }
}

/// The message as bytes; cut, and marked as cut, where it does not fit.
pub fn encode(reply: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    reply.truncate().to_vec().ok()
}

/// Answers connections for ever.
pub(crate) async fn tcp(address: SocketAddr, shared: Rc<Shared>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("binding {address}/tcp"))?;
    let places = Places::new(MAX_CONNECTIONS, MAX_OF_ONE);
    loop {
        let (stream, place) = places.accept(&listener).await;
        let shared = shared.clone();
        tokio::task::spawn_local(async move {
            let _place = place;
            // A client that goes away or keeps silent is no event.
            drop(connection(stream, &shared).await);
        });
    }
}

async fn connection(mut stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    let client = stream.peer_addr()?.ip();
    loop {
        let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
        anyhow::ensure!(usize::from(length) <= MAX_QUERY, "a question of {length} bytes");
        let mut buffer = vec![0; usize::from(length)];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut buffer)).await??;
        let request = Message::from_vec(&buffer)?;
        let bytes = shared.resolve(&request, client).await.to_vec()?;
        // In one piece, and to a client that reads: others keep their place for ever.
        let reply = [&u16::try_from(bytes.len())?.to_be_bytes()[..], &bytes[..]].concat();
        tokio::time::timeout(TCP_IDLE, stream.write_all(&reply)).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    #[tokio::test]
    async fn who_asks_too_much_at_a_time_is_refused_and_others_are_not() {
        let shared = Shared::new(Forwarder::new("/nowhere".into()));
        let client = |n: u8| IpAddr::from([10, 200, 0, n]);
        let mut question = Message::query();
        question.add_query(Query::query(Name::root(), RecordType::A));
        let _flying: Vec<_> = std::iter::from_fn(|| shared.flying.take(client(1))).collect();
        shared.forward(&question, client(1)).await;
        assert_eq!(shared.forwards.get(), 0);
        shared.forward(&question, client(2)).await;
        assert_eq!(shared.forwards.get(), 1);
    }

    #[tokio::test]
    async fn a_long_question_by_tcp_is_not_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listening");
        let address = listener.local_addr().expect("address");
        let shared = Shared::new(Forwarder::new("/nowhere".into()));
        for (records, answered) in [(0, true), (250, true), (300, false)] {
            let mut question = Message::query();
            question.add_query(Query::query(Name::root(), RecordType::A));
            for _ in 0..records {
                question.add_additional(Record::from_rdata(Name::root(), 0, RData::A(A::new(192, 0, 2, 1))));
            }
            let bytes = question.to_vec().expect("a message");
            assert_eq!(bytes.len() <= MAX_QUERY, answered);
            let mut client = TcpStream::connect(address).await.expect("connected");
            let (stream, _) = listener.accept().await.expect("accepted");
            let ask = async {
                client.write_u16(u16::try_from(bytes.len()).expect("length")).await.expect("sent");
                // It may be hung up on in the middle.
                drop(client.write_all(&bytes).await);
                let answer = client.read_u16().await;
                drop(client);
                answer
            };
            let (answer, _) = tokio::join!(ask, connection(stream, &shared));
            assert_eq!(answer.is_ok(), answered, "{records}");
        }
    }
}
