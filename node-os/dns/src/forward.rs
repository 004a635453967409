//! Names outside the cluster: asked of the node's own resolvers, and kept for as long as they say.

use hickory_proto::op::{Message, ResponseCode};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const TIMEOUT: Duration = Duration::from_secs(2);
/// An hour at most and five seconds at least, as CoreDNS's cache.
const MAX_KEEP_SECS: u32 = 3600;
const MIN_KEEP_SECS: u32 = 5;
/// Most are of some hundred bytes, and none is longer: pods choose what is asked, and strangers what is answered.
const MAX_ENTRIES: usize = 2000;
const MAX_ENTRY: usize = 4096;

/// Until when, and the answer as it is sent: a message's records take twenty times the memory.
type Kept = (Instant, Vec<u8>);

/// Asks upstream, with a cache.
#[derive(Debug)]
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    cache: RefCell<HashMap<(String, u16), Kept>>,
}

impl Forwarder {
    /// The resolvers are read from `resolv_conf` at each question: DHCP may change them.
    pub(crate) fn new(resolv_conf: PathBuf) -> Self {
        Forwarder { resolv_conf, cache: RefCell::new(HashMap::new()) }
    }

    /// The answer to a question with exactly one query.
    pub(crate) async fn ask(&self, request: &Message) -> Message {
        let key = request.queries.first().map(|q| (crate::answer::plain(q.name()), u16::from(q.query_type())));
        if let Some(mut kept) = key.as_ref().and_then(|k| self.kept(k)) {
            kept.metadata.id = request.metadata.id;
            kept.queries = request.queries.clone();
            return kept;
        }
        let mut why = "no resolver is known to this node".to_owned();
        for server in self.servers() {
            match exchange(server, request).await {
                Ok(reply) => {
                    if let Some(key) = key {
                        self.keep(key, &reply);
                    }
                    return reply;
                }
                Err(error) => why = format!("{server}: {error}"),
            }
        }
        tracing::debug!("upstream: {why}");
        crate::answer::failure(request, ResponseCode::ServFail)
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        let addresses = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
        addresses.map(|ip| SocketAddr::from((ip, 53))).collect()
    }

    fn kept(&self, key: &(String, u16)) -> Option<Message> {
        let cache = self.cache.borrow();
        let (until, bytes) = cache.get(key)?;
        let left = until.checked_duration_since(Instant::now())?;
        let mut message = Message::from_vec(bytes).ok()?;
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = record.ttl.min(u32::try_from(left.as_secs()).unwrap_or(MAX_KEEP_SECS));
        }
        Some(message)
    }

    fn keep(&self, key: (String, u16), reply: &Message) {
        let good = matches!(reply.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
        if !good || reply.metadata.truncation {
            return;
        }
        let Some(bytes) = reply.to_vec().ok().filter(|bytes| bytes.len() <= MAX_ENTRY) else { return };
        let ttl = reply.answers.iter().chain(&reply.authorities).map(|r| r.ttl).min().unwrap_or(MIN_KEEP_SECS);
        let until = Instant::now() + Duration::from_secs(u64::from(ttl.clamp(MIN_KEEP_SECS, MAX_KEEP_SECS)));
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= MAX_ENTRIES {
            let now = Instant::now();
            cache.retain(|_, (until, _)| *until > now);
        }
        // A pod that asks for very many names keeps the others out for no longer than it asks.
        if cache.len() >= MAX_ENTRIES
            && let Some(any) = cache.keys().next().cloned()
        {
            cache.remove(&any);
        }
        cache.insert(key, (until, bytes));
    }
}

/// One question by UDP under a fresh id, and by TCP where the answer was cut.
async fn exchange(server: SocketAddr, request: &Message) -> anyhow::Result<Message> {
    let id = random_id()?;
    let mut question = request.clone();
    question.metadata.id = id;
    let bytes = question.to_vec()?;
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    let mut reply = tokio::time::timeout(TIMEOUT, async {
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Anything else that reaches the port is not the answer to this question.
            if let Ok(message) = Message::from_vec(buffer.get(..length).unwrap_or(&[]))
                && message.metadata.id == id
                && message.queries == question.queries
            {
                return Ok::<_, anyhow::Error>(message);
            }
        }
    })
    .await??;
    if reply.metadata.truncation {
        reply = tokio::time::timeout(TIMEOUT, by_tcp(server, &bytes)).await??;
    }
    reply.metadata.id = request.metadata.id;
    Ok(reply)
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> anyhow::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(u16::try_from(question.len())?).await?;
    stream.write_all(question).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    Ok(Message::from_vec(&buffer)?)
}

/// From the kernel: a guessable id would let strangers answer.
fn random_id() -> std::io::Result<u16> {
    use std::io::Read;
    let mut bytes = [0; 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use std::str::FromStr;

    fn reply(name: &str, records: u16) -> Message {
        let name = Name::from_str(name).expect("a name");
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        for number in 0..records {
            let [high, low] = number.to_be_bytes();
            message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, high, low))));
        }
        message
    }

    #[test]
    fn what_is_kept_is_small_and_comes_back_as_it_was() {
        let forwarder = Forwarder::new(PathBuf::new());
        let key = |name: &str| (name.to_owned(), 1);
        let small = reply("a.example.", 3);
        forwarder.keep(key("a.example"), &small);
        let kept = forwarder.kept(&key("a.example")).expect("kept");
        assert_eq!((&kept.queries, kept.metadata.response_code), (&small.queries, small.metadata.response_code));
        let data = |message: &Message| message.answers.iter().map(|record| record.data.clone()).collect::<Vec<_>>();
        assert_eq!(data(&kept), data(&small));
        assert!(kept.answers.iter().all(|record| record.ttl <= 60));
        // By TCP an answer may have 64 KiB.
        forwarder.keep(key("b.example"), &reply("b.example.", 4000));
        assert!(forwarder.kept(&key("b.example")).is_none());
        for number in 0..2 * MAX_ENTRIES {
            forwarder.keep(key(&format!("{number}.example")), &reply("c.example.", 200));
        }
        assert!(forwarder.kept(&key(&format!("{}.example", 2 * MAX_ENTRIES - 1))).is_some(), "the newest has a place");
        let cache = forwarder.cache.borrow();
        assert_eq!(cache.len(), MAX_ENTRIES);
        assert!(cache.values().map(|(_, bytes)| bytes.len()).sum::<usize>() <= MAX_ENTRIES * MAX_ENTRY);
    }
}
