//! A server for tests that keeps what it was told, fails where it is told to, and a clock that does not wait.

use super::{Client, Clock, Interrupted};
use anyhow::Result;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Query as it was sent.
    pub query: String,
    /// Header fields in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Call {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The fields of a form (RFC 7578, or packed into one line): name, name of the file, content.
    pub(crate) fn form(&self) -> Vec<(String, Option<String>, Vec<u8>)> {
        if self.header("content-type") == "application/x-www-form-urlencoded" {
            let text = std::str::from_utf8(&self.body).unwrap();
            let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap());
            return pairs.map(|(name, value)| (name.to_string(), None, unescaped(value))).collect();
        }
        let border = self.header("content-type").strip_prefix("multipart/form-data; boundary=").unwrap();
        let border = [b"\r\n--", border.as_bytes()].concat();
        let body = [b"\r\n", &self.body[..]].concat();
        let at: Vec<usize> = memchr::memmem::find_iter(&body, &border).collect();
        assert_eq!(&body[at[at.len() - 1] + border.len()..], b"--\r\n", "a form has an end");
        let parts = at.windows(2).map(|pair| &body[pair[0] + border.len() + 2..pair[1]]);
        let quoted = |head: &str, key: &str| {
            let (_, rest) = head.split_once(&format!(" {key}=\""))?;
            Some(rest.split('"').next().unwrap().to_string())
        };
        parts
            .map(|part| {
                let end = memchr::memmem::find(part, b"\r\n\r\n").unwrap();
                let head = std::str::from_utf8(&part[..end]).unwrap();
                (quoted(head, "name").unwrap(), quoted(head, "filename"), part[end + 4..].to_vec())
            })
            .collect()
    }

    /// The value of a query parameter, percent-decoding left out.
    pub(crate) fn asked(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|p| p.split_once('=').or(Some((p, "")))).find(|(n, _)| *n == name).map(|p| p.1)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Reply {
        Reply { status, headers: Vec::new(), body: body.to_string().into_bytes() }
            .header("content-type", "application/json")
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Reply {
        self.body = body.to_vec();
        self
    }
}

/// What goes wrong with one call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection ends when so many bytes of the body were read; nothing is done.
    CutRequest(usize),
    /// It is done, and the connection ends after so many bytes of the answer.
    CutAnswer(usize),
    /// It is done, and after so many bytes of the answer nothing comes any more, and no end either.
    Stall(usize),
    /// It is done, and this is answered.
    After(Reply),
    /// This is answered, and nothing is done.
    Instead(Reply),
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(part[2..].bytes());
    }
    bytes
}

type Handler = dyn Fn(&Call) -> Reply + Send + Sync;

/// A server on loopback. What it was sent goes with it: thousands of them take part in one test, and each child of a
/// process that kept all of it would take long to begin.
pub(crate) struct Server {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    faults: Arc<Mutex<BTreeMap<usize, Fault>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let faults = Arc::new(Mutex::new(BTreeMap::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let server = Server { address, ended: ended.clone(), calls: calls.clone(), faults: faults.clone() };
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Relaxed) {
                    return;
                }
                let (handler, calls, faults) = (handler.clone(), calls.clone(), faults.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &*handler, &calls, &faults));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Call number `n` (from 0) fails like this.
    pub(crate) fn fail(&self, n: usize, fault: Fault) {
        self.faults.lock().unwrap().insert(n, fault);
    }

    /// All calls until now.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Method and path of all calls.
    pub(crate) fn log(&self) -> Vec<String> {
        self.calls().iter().map(|c| format!("{} {}", c.method, c.path)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        // It is seen when somebody connects. Where nobody listens any more, the end has been seen.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(mut stream: &TcpStream, handler: &Handler, calls: &Mutex<Vec<Call>>, faults: &Mutex<BTreeMap<usize, Fault>>) {
    let mut reader = BufReader::new(stream);
    let Some(mut call) = read_head(&mut reader) else { return };
    let number = {
        let mut calls = calls.lock().unwrap();
        calls.push(call.clone());
        calls.len() - 1
    };
    let fault = faults.lock().unwrap().remove(&number);
    let limit = if let Some(Fault::CutRequest(limit)) = &fault { Some(*limit) } else { None };
    if read_body(&mut reader, &mut call, limit).is_none() {
        return;
    }
    calls.lock().unwrap()[number] = call.clone();
    let stalls = matches!(fault, Some(Fault::Stall(_)));
    let (reply, cut) = match fault {
        Some(Fault::CutRequest(_)) => return,
        Some(Fault::Stall(bytes)) => (handler(&call), bytes),
        Some(Fault::Instead(reply)) => (reply, usize::MAX),
        Some(Fault::After(reply)) => {
            handler(&call);
            (reply, usize::MAX)
        }
        Some(Fault::CutAnswer(bytes)) => (handler(&call), bytes),
        None => (handler(&call), usize::MAX),
    };
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    // The answer to HEAD says how long the body would be.
    if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    if call.method != "HEAD" {
        bytes.extend(&reply.body);
    }
    bytes.truncate(cut);
    // Who has gone away needs no answer.
    let _ = stream.write_all(&bytes);
    if stalls {
        // Until the other side gives up.
        let _ = reader.read(&mut [0]);
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<Call> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let method = words.next()?.to_string();
    let target = words.next()?.to_string();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    Some(Call { method, path: path.into(), query: query.into(), headers, body: Vec::new() })
}

fn read_body(reader: &mut impl BufRead, call: &mut Call, limit: Option<usize>) -> Option<()> {
    if call.header("transfer-encoding") == "chunked" {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            call.body.extend(&chunk[..size]);
            if size == 0 {
                return Some(());
            }
        }
    }
    let length: usize = call.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; limit.map_or(length, |limit| length.min(limit))];
    reader.read_exact(&mut body).ok()?;
    call.body = body;
    Some(())
}

/// A clock whose time passes only when somebody sleeps.
#[derive(Debug)]
pub(crate) struct Virtual {
    now: Mutex<jiff::Timestamp>,
    pub slept: Mutex<Vec<Duration>>,
    /// Whether the user has interrupted the command.
    pub stopped: AtomicBool,
}

impl Virtual {
    pub(crate) fn new() -> Arc<Virtual> {
        let start = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        Arc::new(Virtual { now: Mutex::new(start), slept: Mutex::default(), stopped: AtomicBool::new(false) })
    }

    /// A client by this clock.
    pub(crate) fn client(self: &Arc<Virtual>) -> Client {
        // Reading this machine's authorities is what takes time.
        static CLIENT: OnceLock<Client> = OnceLock::new();
        let client = CLIENT.get_or_init(|| Client::new(None).unwrap()).clone();
        client.with_clock(Arc::new(Shared { clock: self.clone(), deaf: false }))
    }

    pub(crate) fn slept_secs(&self) -> Vec<u64> {
        self.slept.lock().unwrap().iter().map(Duration::as_secs).collect()
    }
}

/// One more call was answered; behind the one after so many, the user interrupts kimg by this clock.
pub(crate) fn count(answered: &mut usize, stops: Option<&(Arc<Virtual>, usize)>) {
    *answered += 1;
    if let Some((clock, _)) = stops.filter(|(_, before)| *answered == before + 1) {
        clock.stopped.store(true, Relaxed);
    }
}

struct Shared {
    clock: Arc<Virtual>,
    /// No interrupt stops it.
    deaf: bool,
}

impl Clock for Shared {
    fn now(&self) -> jiff::Timestamp {
        *self.clock.now.lock().unwrap()
    }

    fn sleep(&self, time: Duration) -> Result<()> {
        *self.clock.now.lock().unwrap() += time;
        self.clock.slept.lock().unwrap().push(time);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if !self.deaf && self.clock.stopped.load(Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }

    fn for_cleanup(&self) -> Arc<dyn Clock> {
        Arc::new(Shared { clock: self.clock.clone(), deaf: true })
    }
}
