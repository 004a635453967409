//! The client against a real server on the loopback that behaves as metadata servers do on their bad days; sources of
//! `node-metadata` ask it by their own addresses.

use super::http::{Client, Patience};
use node_metadata::ReadAt;
use node_metadata::sources::{self, Answer, Found, Method, Platform, Request, Source, SourceError};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the server does with a connection, given the request's head.
type Behaviour = Box<dyn Fn(&Asked, &mut TcpStream) + Send>;

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
struct Asked {
    line: String,
    headers: Vec<String>,
    body: String,
    from_port: u16,
    /// How many came before it.
    before: usize,
}

impl Asked {
    fn has(&self, header: &str) -> bool {
        self.headers.iter().any(|own| own.eq_ignore_ascii_case(header))
    }
}

struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(behaviour: Behaviour) -> Server {
        Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), behaviour)
    }

    /// The thread ends with the test's process.
    fn on(listener: TcpListener, behaviour: Behaviour) -> Server {
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = read_request(&mut stream);
                request.before = seen.lock().unwrap().len();
                seen.lock().unwrap().push(request.clone());
                behaviour(&request, &mut stream);
            }
        });
        Server { address, asked }
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn read_request(stream: &mut TcpStream) -> Asked {
    let from_port = stream.peer_addr().unwrap().port();
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let length = lines.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let line = if lines.is_empty() { String::new() } else { lines.remove(0) };
    Asked { line, headers: lines, body: String::from_utf8(body).unwrap(), from_port, before: 0 }
}

fn answer(stream: &mut TcpStream, status: u16, headers: &str, body: &str) {
    let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len());
}

fn client(server: SocketAddr) -> Client {
    let patience = Patience {
        connect: Duration::from_millis(500),
        answer: Duration::from_millis(500),
        attempts: 3,
        busy: Duration::from_secs(3),
    };
    Client { patience, connect_to: Some(server) }
}

fn get(url: &str) -> Request {
    Request { method: Method::Get, url: url.to_owned(), headers: Vec::new(), body: Vec::new(), low_port: false }
}

/// A machine of one provider whose metadata server is the test's.
struct Vm {
    dmi: (&'static str, &'static str),
    client: Client,
}

impl Platform for Vm {
    fn dmi(&self, name: &str) -> Option<String> {
        (name == self.dmi.0).then(|| self.dmi.1.to_owned())
    }
    fn kernel_line(&self) -> String {
        String::new()
    }
    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
        Vec::new()
    }
    fn firmware_file(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn guest_info(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn send(&self, request: &Request) -> Result<Answer, SourceError> {
        self.client.send(request)
    }
}

/// A machine on which this source is found, and the source. `docs/platforms.md` says L of those that are named here.
fn on(name: &str, dmi: (&'static str, &'static str), server: &Server) -> (Box<dyn Source>, Vm) {
    let vm = Vm { dmi, client: client(server.address) };
    let source = sources::all().into_iter().find(|source| source.name() == name && source.detect(&vm)).unwrap();
    (source, vm)
}

fn read(name: &str, vendor: &'static str, server: &Server) -> Result<Option<Found>, SourceError> {
    let (source, vm) = on(name, ("sys_vendor", vendor), server);
    source.read(&vm)
}

#[test]
fn a_body_comes_whole_in_every_form() {
    let server = Server::start(Box::new(|asked, stream| match asked.line.split(' ').nth(1) {
        Some("/chunks") => {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        }
        Some("/old") => {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nabcde");
        }
        Some("/none") => answer(stream, 204, "", ""),
        Some("/gone?x=1&y") => answer(stream, 404, "", "<html>"),
        _ => answer(stream, 200, "", "abcde"),
    }));
    let client = client(server.address);
    for (path, wanted) in [("chunks", 200), ("old", 200), ("length", 200), ("none", 204), ("gone?x=1&y", 404)] {
        let found = client.send(&get(&format!("http://169.254.169.254/{path}"))).unwrap();
        assert_eq!(found.status, wanted, "{path}");
        assert!(wanted != 200 || found.body == b"abcde", "{path}");
    }
    let first = server.asked.lock().unwrap()[0].clone();
    assert!(first.has("Host: 169.254.169.254"), "{first:?}");
}

#[test]
fn a_busy_server_is_asked_again_and_its_wish_is_heard() {
    let server = Server::start(Box::new(|asked, stream| match asked.before {
        0 => answer(stream, 429, "Retry-After: 1\r\n", ""),
        1 => answer(stream, 503, "", ""),
        _ => answer(stream, 200, "", "ok"),
    }));
    let begin = Instant::now();
    assert_eq!(client(server.address).send(&get("http://x/")).unwrap().body, b"ok");
    assert!(begin.elapsed() >= Duration::from_millis(1500), "{:?}", begin.elapsed());
    assert_eq!(server.count(), 3);
}

/// What a server does in a machine's first seconds, one thing after the other: none makes the next one final.
#[test]
fn first_seconds_of_every_kind_are_waited_for() {
    let moods: [&[&str]; 7] = [
        &["closed", "closed"],
        &["silent"],
        &["429", "429", "429", "429"],
        &["503", "closed", "503", "closed"],
        &["429", "503", "silent"],
        &["cut", "408", "425", "cut"],
        &["410", "500", "502", "504"],
    ];
    for moods in moods {
        let server = Server::start(Box::new(|asked, stream| match moods.get(asked.before).copied() {
            None => answer(stream, 200, "", "ok"),
            Some("closed") => {}
            Some("silent") => std::thread::sleep(Duration::from_millis(700)),
            Some("cut") => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ncut")),
            Some(status) => answer(stream, status.parse().unwrap(), "Retry-After: 0\r\n", ""),
        }));
        let outcome = client(server.address).send(&get("http://x/")).map(|answer| answer.body);
        assert_eq!(outcome, Ok(b"ok".to_vec()), "{moods:?}");
        assert_eq!(server.count(), moods.len() + 1, "{moods:?}");
    }
}

/// A date (RFC 9110, 10.2.3), a wish that nobody grants, and nonsense.
#[test]
fn a_wish_that_is_no_number_is_as_good_as_none() {
    for wish in ["Fri, 31 Dec 1999 23:59:59 GMT", "-1", "soon", "99999999999999999999"] {
        let server = Server::start(Box::new(move |asked, stream| match asked.before {
            0 => answer(stream, 429, &format!("Retry-After: {wish}\r\n"), ""),
            _ => answer(stream, 200, "", "ok"),
        }));
        assert_eq!(client(server.address).send(&get("http://x/")).map(|answer| answer.status), Ok(200), "{wish}");
    }
}

/// Every document but the first may be missing.
#[test]
fn optional_documents_may_be_missing() {
    let servers: [(&str, &str, &str); 5] = [
        ("DigitalOcean", "/metadata/v1.json", r#"{"droplet_id": 7, "interfaces": {}}"#),
        ("Hetzner", "/hetzner/v1/metadata", "instance-id: 7\n"),
        ("Vultr", "/v1.json", r#"{"instance-v2-id": "7"}"#),
        ("Scaleway", "/conf?format=json", r#"{"id": "7", "zone": "fr-par-1"}"#),
        ("UpCloud", "/metadata/v1.json", r#"{"instance_id": "7"}"#),
    ];
    for (vendor, path, document) in servers {
        let server = Server::start(Box::new(move |asked, stream| {
            if asked.line == format!("GET {path} HTTP/1.1") {
                answer(stream, 200, "", document);
            } else {
                answer(stream, 404, "", "<html>not found</html>");
            }
        }));
        match read(&vendor.to_lowercase(), vendor, &server) {
            Ok(Some(found)) => {
                assert_eq!((found.instance_id.as_deref(), found.user_data), (Some("7"), None), "{vendor}")
            }
            // Scaleway's user-data are asked for from a low port.
            Err(SourceError::Absent(why)) if why.contains("ermission") => {
                test_spoil::skipped(&format!("{vendor}: {why}"));
            }
            other => panic!("{vendor}: {other:?}"),
        }
    }
}

/// What DMI rules out is not asked, and without a provider's DMI nothing is.
#[test]
fn a_machine_of_nobody_s_asks_no_server() {
    let vm = |dmi| Vm { dmi, client: client("127.0.0.1:9".parse().unwrap()) };
    let promised = |dmi| {
        let vm = vm(dmi);
        let here = sources::all().into_iter().filter(|source| source.detect(&vm) && !source.reach(&vm).is_empty());
        here.map(|source| source.name()).collect::<Vec<_>>()
    };
    assert_eq!(promised(("sys_vendor", "QEMU")), Vec::<&str>::new());
    assert_eq!(promised(("sys_vendor", "Hetzner")), ["hetzner"]);
}

#[test]
fn a_server_that_stays_busy_is_given_up_on_with_its_status() {
    let server = Server::start(Box::new(|_, stream| answer(stream, 503, "Retry-After: 60\r\n", "")));
    let outcome = client(server.address).send(&get("http://x/y"));
    assert_eq!(outcome, Err(SourceError::Refused { url: "http://x/y".into(), status: 503 }));
}

#[test]
fn a_client_error_is_final() {
    let server = Server::start(Box::new(|_, stream| answer(stream, 403, "", "")));
    assert_eq!(client(server.address).send(&get("http://x/")).unwrap().status, 403);
    assert_eq!(server.count(), 1);
}

#[test]
fn an_absent_server_costs_a_moment() {
    // The port was free a moment ago, and the kernel refuses at once.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begin = Instant::now();
    assert!(matches!(client(free).send(&get("http://x/")), Err(SourceError::Absent(_))));
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    // Without a way there is nothing to try again; `0.0.0.0/8` other than 0.0.0.0 is never routed.
    let begin = Instant::now();
    let nowhere = Client { connect_to: None, ..client(free) };
    let outcome = nowhere.send(&get("http://[fe80::a9fe:a9fe%25nic]:9/"));
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

#[test]
fn a_server_that_starts_late_is_waited_for() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        Server::on(TcpListener::bind(address).unwrap(), Box::new(|_, stream| answer(stream, 200, "", "late")))
    });
    assert_eq!(client(address).send(&get("http://x/")).unwrap().body, b"late");
    late.join().unwrap();
}

#[test]
fn what_is_no_answer_has_a_sentence() {
    type Case = (&'static str, fn(&mut TcpStream));
    let cases: [Case; 5] = [
        ("no HTTP", |stream| drop(stream.write_all(b"SSH-2.0-OpenSSH\r\n"))),
        ("no HTTP", |_| {}),
        ("no HTTP", |stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ncut"))),
        ("no answer within", |_| std::thread::sleep(Duration::from_millis(700))),
        ("no HTTP", |stream| {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
            // Far more than a document has.
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        }),
    ];
    for (wanted, behaviour) in cases {
        let server = Server::start(Box::new(move |_, stream| behaviour(stream)));
        let error = client(server.address).send(&get("http://x/")).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("http://x/"), "{error:?} should contain {wanted:?}");
    }
    let https = client("127.0.0.1:1".parse().unwrap()).send(&get("https://x/")).unwrap_err().to_string();
    assert!(https.contains("only http://"), "{https}");
}

#[test]
fn ec2_gets_its_token_first_and_again_when_it_has_run_out() {
    let server = Server::start(Box::new(|asked, stream| {
        let token = if asked.before < 2 { "first" } else { "second" };
        if asked.line.starts_with("PUT /latest/api/token ") && asked.has("X-aws-ec2-metadata-token-ttl-seconds: 21600")
        {
            answer(stream, 200, "", token)
        } else if !asked.has("X-aws-ec2-metadata-token: second") {
            answer(stream, 401, "", "")
        } else if asked.line.contains("/meta-data/instance-id ") {
            answer(stream, 200, "", "i-1")
        } else if asked.line.contains("/latest/user-data ") {
            answer(stream, 200, "", "#cloud-config\n")
        } else {
            answer(stream, 404, "", "")
        }
    }));
    let found = read("ec2", "Amazon EC2", &server).unwrap().unwrap();
    assert_eq!(found.instance_id.as_deref(), Some("i-1"));
    assert_eq!(found.user_data.as_deref(), Some(&b"#cloud-config\n"[..]));
}

#[test]
fn scaleway_is_asked_from_a_low_port() {
    let server = Server::start(Box::new(|asked, stream| match asked.line.as_str() {
        "GET /conf?format=json HTTP/1.1" => answer(stream, 200, "", r#"{"id": "i", "zone": "fr-par-1"}"#),
        _ if asked.from_port < 1024 => answer(stream, 200, "", "secret"),
        _ => answer(stream, 403, "", ""),
    }));
    match read("scaleway", "Scaleway", &server) {
        Ok(Some(found)) => assert_eq!(found.user_data.as_deref(), Some(&b"secret"[..])),
        Err(SourceError::Absent(why)) if why.contains("ermission") => {
            test_spoil::skipped(&format!("low ports are for administrators, and this is none: {why}"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn hetzner_says_what_it_knows_after_a_slow_second() {
    let server = Server::start(Box::new(|asked, stream| match asked.line.split(' ').nth(1) {
        _ if asked.before == 0 => std::thread::sleep(Duration::from_millis(600)),
        Some("/hetzner/v1/metadata") => answer(stream, 200, "", "instance-id: 9\nhostname: w\n"),
        Some("/hetzner/v1/userdata") => answer(stream, 204, "", ""),
        _ => answer(stream, 404, "", ""),
    }));
    let found = read("hetzner", "Hetzner", &server).unwrap().unwrap();
    assert_eq!((found.provider_id.as_deref(), found.user_data), (Some("hcloud://9"), None));
}

#[test]
fn azure_hears_that_the_machine_has_come_up() {
    let server = Server::start(Box::new(|asked, stream| match asked.line.as_str() {
        // The wire server is not always ready when the machine is.
        _ if asked.before == 0 => answer(stream, 410, "", ""),
        "GET /machine/?comp=goalstate HTTP/1.1" => {
            answer(
                stream,
                200,
                "",
                "<G><Incarnation>3</Incarnation><ContainerId>c</ContainerId><InstanceId>i</InstanceId></G>",
            );
        }
        "POST /machine?comp=health HTTP/1.1" if asked.body.contains("<State>Ready</State>") => {
            answer(stream, 200, "", "")
        }
        _ => answer(stream, 400, "", ""),
    }));
    let (source, vm) = on("azure", ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"), &server);
    source.report_ready(&vm).unwrap();
    let last = server.asked.lock().unwrap().last().cloned().unwrap();
    assert!(last.has("x-ms-version: 2012-11-30") && last.body.contains("<GoalStateIncarnation>3<"), "{last:?}");
}

#[test]
fn a_server_of_another_kind_is_no_metadata() {
    let server = Server::start(Box::new(|_, stream| answer(stream, 404, "", "")));
    assert!(matches!(read("digitalocean", "DigitalOcean", &server), Err(SourceError::Absent(_))));
    let server = Server::start(Box::new(|_, stream| answer(stream, 200, "", "<html>sign in</html>")));
    assert!(matches!(read("digitalocean", "DigitalOcean", &server), Err(SourceError::Unusable(_))));
}
