//! The example application: a web server that says which pod on which node answered.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the greeting (`GREETING`), and who answers |
//! | `/status/` | one line of JSON: `ok`, pod, node; the same for every request to one pod |
//! | `/client/` | the address that the request came from |
//!
//! It listens on `PORT` (8080) and takes its names from `POD_NAME` (else `HOSTNAME`) and `NODE_NAME`.
//! `example-web fetch URL [COUNT]` asks another one instead and prints its answers: what the example's Job does.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// A request's head is small; more is not read.
const HEAD_LIMIT: usize = 8192;
/// A client that says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);

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
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, client)) = accepted else { continue };
                let names = names.clone();
                tokio::spawn(async move {
                    // A client that goes away in the middle is its own affair.
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, client, &names)).await;
                });
            }
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    eprintln!("example-web: ends");
    Ok(())
}

async fn answer(mut stream: TcpStream, client: SocketAddr, names: &Names) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (status, kind, body) = respond(&head, client, names);
    let with_body = !head.starts_with("HEAD ");
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
        body.len(),
        if with_body { body.as_str() } else { "" }
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut buffer = [0u8; 1024];
    while head.len() < HEAD_LIMIT && !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            break;
        }
        head.extend_from_slice(&buffer[..got]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
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
}
