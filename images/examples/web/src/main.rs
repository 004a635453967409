//! The example application: a web server that says which pod on which node answered.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the greeting (`GREETING`), and who answers |
//! | `/status/` | one line of JSON: `ok`, pod, node; the same for every request to one pod |
//! | `/client/` | the address that the request came from |
//!
//! It listens on `PORT` (8080) and takes its names from `POD_NAME` (else `HOSTNAME`) and `NODE_NAME`.
//! Connections are kept open. Told to end, it says `Connection: close` in its answers, and ends once nobody comes any
//! more: who asks on a connection that is open loses no request.
//! `example-web fetch URL [COUNT]` asks another one instead and prints its answers: what the example's Job does.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A request's head is small; more is not read.
const HEAD_LIMIT: usize = 8192;
/// A client that takes nothing is not waited for longer, nor are clients when it was told to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection on which nothing is asked is kept for so long; clients give up idle ones before.
const IDLE: Duration = Duration::from_secs(60);
/// Told to end, it does so once nobody has been connected for this long: nodes learn one after the other that it ends.
const QUIET: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// Who answers.
struct Names {
    pod: String,
    node: String,
    greeting: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => serve().await,
        ["fetch", url] => fetch_many(url, 1).await,
        ["fetch", url, count] => match count.parse() {
            Ok(count) => fetch_many(url, count).await,
            Err(_) => Err(io::Error::other(format!("{count} is no number of requests"))),
        },
        _ => {
            eprintln!("usage: example-web [fetch http://HOST[:PORT]/PATH [COUNT]]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("example-web: {error}");
            ExitCode::FAILURE
        }
    }
}

fn env_or(name: &str, other: &str) -> String {
    std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| other.to_string())
}

async fn serve() -> io::Result<()> {
    let port: u16 = env_or("PORT", "8080").parse().map_err(|_| io::Error::other("PORT is no port number"))?;
    let names = Arc::new(Names {
        pod: env_or("POD_NAME", &env_or("HOSTNAME", "unknown")),
        node: env_or("NODE_NAME", "unknown"),
        greeting: env_or("GREETING", "Hello"),
    });
    let listener = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await?;
    eprintln!("example-web: pod {} on node {} listens on port {port}", names.pod, names.node);
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Whether it was told to end; each connection has a receiver.
    let (ending, _) = watch::channel(false);
    let (mut told, mut last) = (None, Instant::now());
    loop {
        // Until it was told to end there is nothing to look at.
        let look = tokio::time::sleep(if told.is_some() { LOOK } else { PATIENCE });
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, client)) = accepted else { continue };
                let (names, ending) = (names.clone(), ending.subscribe());
                // A client that goes away in the middle is its own affair.
                tokio::spawn(async move { converse(stream, client, &names, ending).await.unwrap_or_default() });
                last = Instant::now();
            }
            _ = term.recv() => { told.get_or_insert_with(Instant::now); }
            _ = interrupt.recv() => break,
            () = look => {}
        }
        let Some(told) = told else { continue };
        ending.send_replace(true);
        if ending.receiver_count() > 0 {
            last = Instant::now();
        }
        if last.max(told).elapsed() > QUIET || told.elapsed() > PATIENCE {
            break;
        }
    }
    eprintln!("example-web: ends");
    Ok(())
}

/// Answers all requests of a connection.
async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    names: &Names,
    ending: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut unread = Vec::new();
    while let Some(head) = tokio::time::timeout(IDLE, read_head(&mut stream, &mut unread)).await?? {
        let (status, kind, body) = respond(&head, client, names);
        let last = *ending.borrow() || !keeps(&head);
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n{}",
            body.len(),
            if last { "close" } else { "keep-alive" },
            if head.starts_with("HEAD ") { "" } else { &body }
        );
        tokio::time::timeout(PATIENCE, stream.write_all(response.as_bytes())).await??;
        if last {
            break;
        }
    }
    stream.shutdown().await
}

/// Whether the connection outlives the answer: only what has no body is read to its end.
fn keeps(head: &str) -> bool {
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let readable = first.starts_with("GET ") || first.starts_with("HEAD ");
    let says = |name: &str| {
        let line = head.lines().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name));
        line.map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    let bare = says("content-length").is_none_or(|length| length == "0") && says("transfer-encoding").is_none();
    let close = says("connection").is_some_and(|value| value.split(',').any(|word| word.trim() == "close"));
    readable && bare && !close && first.ends_with("HTTP/1.1")
}

/// The next request's head; None when the client has ended.
async fn read_head(stream: &mut TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<String>> {
    let mut buffer = [0u8; 1024];
    loop {
        if let Some(end) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if unread.len() >= HEAD_LIMIT {
            return Err(io::Error::other("a request without an end"));
        }
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            return Ok(None);
        }
        unread.extend_from_slice(&buffer[..got]);
    }
}

/// Status line, content type and body for a request.
fn respond(head: &str, client: SocketAddr, names: &Names) -> (&'static str, &'static str, String) {
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method != "GET" && method != "HEAD" {
        return ("405 Method Not Allowed", "text/plain", "only GET and HEAD\n".to_string());
    }
    let path = target.split('?').next().unwrap_or_default().trim_end_matches('/');
    match path {
        "" => ("200 OK", "text/plain", format!("{} from pod {} on node {}\n", names.greeting, names.pod, names.node)),
        "/status" => {
            let body = format!(
                "{{\"status\":\"ok\",\"pod\":\"{}\",\"node\":\"{}\"}}\n",
                escape(&names.pod),
                escape(&names.node)
            );
            ("200 OK", "application/json", body)
        }
        "/client" => ("200 OK", "text/plain", format!("{}\n", client.ip())),
        _ => ("404 Not Found", "text/plain", "nothing here; ask for /, /status/ or /client/\n".to_string()),
    }
}

fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => vec![' '],
            c => vec![c],
        })
        .collect()
}

async fn fetch_many(url: &str, count: u32) -> io::Result<()> {
    for _ in 0..count {
        let body = tokio::time::timeout(PATIENCE, fetch(url))
            .await
            .map_err(|_| io::Error::other(format!("{url} did not answer within {} s", PATIENCE.as_secs())))??;
        print!("{body}");
    }
    Ok(())
}

async fn fetch(url: &str) -> io::Result<String> {
    let rest =
        url.strip_prefix("http://").ok_or_else(|| io::Error::other(format!("{url} does not begin with http://")))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let target = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(&target)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("connecting to {target}: {error}")))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("{url} gave no answer")))?;
    if head.split_whitespace().nth(1) != Some("200") {
        return Err(io::Error::other(format!("{url} said {}", head.lines().next().unwrap_or_default())));
    }
    Ok(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let names = Names { pod: "web-\"1".into(), node: "worker-1".into(), greeting: "Hello".into() };
        let client: SocketAddr = "10.200.1.5:4000".parse().expect("address");
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n", "200 OK", "Hello from pod web-\"1 on node worker-1\n"),
            (
                "GET /status/ HTTP/1.1\r\n\r\n",
                "200 OK",
                "{\"status\":\"ok\",\"pod\":\"web-\\\"1\",\"node\":\"worker-1\"}\n",
            ),
            (
                "GET /status?x=1 HTTP/1.1\r\n\r\n",
                "200 OK",
                "{\"status\":\"ok\",\"pod\":\"web-\\\"1\",\"node\":\"worker-1\"}\n",
            ),
            ("GET /client/ HTTP/1.1\r\n\r\n", "200 OK", "10.200.1.5\n"),
            ("GET /x HTTP/1.1\r\n\r\n", "404 Not Found", "nothing here; ask for /, /status/ or /client/\n"),
            ("POST / HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "only GET and HEAD\n"),
            ("", "405 Method Not Allowed", "only GET and HEAD\n"),
        ];
        for (head, status, body) in cases {
            let (got_status, _, got_body) = respond(head, client, &names);
            assert_eq!((got_status, got_body.as_str()), (status, body), "{head}");
        }
    }

    #[test]
    fn who_may_ask_again() {
        for (head, wanted) in [
            ("GET / HTTP/1.1\r\nHost: web\r\n\r\n", true),
            ("HEAD / HTTP/1.1\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: te, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.1\r\ncontent-length: 3\r\n\r\n", false),
            ("POST / HTTP/1.1\r\n\r\n", false),
        ] {
            assert_eq!(keeps(head), wanted, "{head}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_kept_until_the_server_ends() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut client = TcpStream::connect(listener.local_addr()?).await?;
        let (stream, from) = listener.accept().await?;
        let (ending, receiver) = watch::channel(false);
        let names = Names { pod: "p".into(), node: "n".into(), greeting: "Hello".into() };
        let served = tokio::spawn(async move { converse(stream, from, &names, receiver).await });
        // Two at once, and one after the word to end.
        client.write_all(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").await?;
        let mut seen = String::new();
        while seen.matches("Hello").count() < 2 {
            let mut buffer = [0; 1024];
            let got = client.read(&mut buffer).await?;
            assert!(got > 0, "{seen}");
            seen += &String::from_utf8_lossy(&buffer[..got]);
        }
        assert_eq!(seen.matches("Connection: keep-alive").count(), 2, "{seen}");
        ending.send_replace(true);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let mut last = String::new();
        client.read_to_string(&mut last).await?;
        assert!(last.contains("Connection: close") && last.contains("Hello"), "{last}");
        served.await?
    }
}
