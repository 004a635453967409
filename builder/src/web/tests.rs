use super::fake::{Fault, Reply, Server, Virtual};
use super::retry::Verdict;
use super::{Body, Client, Clock, Interrupted, Lost, Refused, Request, SystemClock, Unresolved, escape};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::ProgressBar;
use serde_json::json;
use std::io::{Read, Write};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn echo() -> Server {
    Server::start(|call| Reply::json(200, &json!({"method": call.method, "length": call.body.len()})))
}

#[test]
fn what_may_be_repeated_is_repeated_with_growing_pauses() {
    let server = echo();
    server.fail(0, Fault::CutAnswer(0));
    server.fail(1, Fault::Instead(Reply::new(502)));
    server.fail(2, Fault::CutAnswer(30));
    let clock = Virtual::new();
    let answer = clock.client().send(&Request::get(server.url())).unwrap();
    assert_eq!(answer.json().unwrap()["method"], "GET");
    assert_eq!(server.log().len(), 4);
    let slept = clock.slept_secs();
    assert!(slept.len() == 3 && slept[0] < slept[1] && slept[1] < slept[2], "{slept:?}");
}

#[test]
fn a_post_whose_answer_is_lost_is_not_sent_again() {
    let server = echo();
    server.fail(0, Fault::CutAnswer(10));
    let error = Virtual::new().client().send(&Request::post(server.url()).json(&json!({}))).unwrap_err();
    assert!(error.chain().any(|e| e.is::<Lost>()), "{error:#}");
    assert_eq!(server.log().len(), 1);
    // But a server that did nothing is asked again.
    server.fail(1, Fault::Instead(Reply::new(429)));
    Virtual::new().client().send(&Request::post(server.url()).json(&json!({}))).unwrap();
    assert_eq!(server.log().len(), 3);
}

#[test]
fn a_host_that_nobody_knows_is_not_asked_for_again() {
    let why = |text: &str| Unresolved::of("nosuch.example", &std::io::Error::other(text));
    let lookup = "failed to lookup address information";
    let request = Request::post("https://nosuch.example");
    let unknown = Verdict::of_failed(&why(&format!("{lookup}: Name or service not known")), &request);
    assert!(matches!(&unknown, Verdict::Final(_)), "{unknown:?}");
    let said = "no address of nosuch.example is known (Name or service not known); correct the name, or check this \
                machine's network and DNS";
    assert_eq!(unknown.why(), said);
    for text in ["Temporary failure in name resolution", "Try again"] {
        // Nothing was sent, so that a POST is not lost.
        let verdict = Verdict::of_failed(&why(&format!("{lookup}: {text}")), &request);
        assert!(matches!(&verdict, Verdict::Again(_)), "{verdict:?}");
        assert!(verdict.why().ends_with("; check this machine's network and DNS"), "{verdict:?}");
    }
    // RFC 6761: there is none, and no server to ask.
    let clock = Virtual::new();
    let error = clock.client().send(&Request::get("http://nosuch.invalid")).unwrap_err().to_string();
    assert!(error.contains("no address of nosuch.invalid is known"), "{error}");
}

/// A clock by which the user interrupts the command when it has been looked at so often.
struct Looked(AtomicUsize);

impl Clock for Looked {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn sleep(&self, _: Duration) -> anyhow::Result<()> {
        self.check()
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.0.fetch_add(1, Relaxed) < 25 { Ok(()) } else { Err(Interrupted.into()) }
    }

    fn for_cleanup(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock::default())
    }
}

#[test]
fn an_interrupt_ends_the_waiting_for_a_silent_server() {
    // It says nothing, or stops in the middle of what it says.
    for said in [0, 100] {
        let server = echo();
        (0..9).for_each(|n| server.fail(n, Fault::Stall(said)));
        let client = Virtual::new().client().with_stall(Duration::from_secs(5));
        let client = client.with_clock(Arc::new(Looked(AtomicUsize::new(0))));
        // Without it, six tries would have come to their end by then, and looked at the clock three times each.
        let error = client.send(&Request::get(server.url())).unwrap_err();
        assert!(error.is::<Interrupted>(), "{said}: {error:#}");
    }
}

#[test]
fn who_shows_what_he_was_asked_shows_no_secret() {
    let server = Server::start(|call| Reply::new(403).body(format!("no {}", call.header("authorization")).as_bytes()));
    for (secret, keys) in [
        ("Bearer SEKRET", &["SEKRET"][..]),
        ("PVEAPIToken=kimg@pve!up=SEKRET", &["SEKRET"]),
        ("Basic dTpTRUtSRVQ=", &["dTpTRUtSRVQ"]),
        ("SEKRET", &["SEKRET"]),
    ] {
        let plain = Request::get(server.url()).secret("authorization", secret);
        let signed =
            Request::get(server.url()).signed_by(move |request, _| Ok(request.secret("authorization", secret)));
        for request in [plain, signed] {
            let error = Virtual::new().client().send(&request).unwrap().expect(&[200]).unwrap_err().to_string();
            assert!(error.contains("HTTP 403: no") && !keys.iter().any(|key| error.contains(key)), "{error}");
        }
    }
    // A part of it is as good.
    let server =
        Server::start(|call| Reply::new(403).body(call.header("authorization").replace("Bearer ", "").as_bytes()));
    let request = Request::get(server.url()).secret("authorization", "Bearer SEKRET");
    let error = Virtual::new().client().send(&request).unwrap().expect(&[200]).unwrap_err().to_string();
    assert!(error.contains("(secret)") && !error.contains("SEKRET"), "{error}");
}

#[test]
fn who_shows_the_body_that_he_was_sent_shows_no_secret() {
    let user_data = "#cloud-config\nkimg:\n  seal-key: \"SEKRET+SEKRET/SEKRET==\"\n";
    let packed = STANDARD.encode(user_data);
    let keystone = json!({"auth": {"identity": {"password": {"user": {"name": "demo", "password": "SEKRET \"x\""}}}}});
    let machine = json!({"name": "m", "region": "nbg1", "user_data": user_data});
    let nested = json!({"name": "m", "metadata": {"user_data": packed}, "root_pass": "SEKRET"});
    let form = |field: &str| format!("grant_type=x&{field}={}", escape("SEKRET/SEKRET", true));
    let json = |body: &serde_json::Value| Request::post("").json(body);
    let url = |body: &str| Request::post("").bytes("application/x-www-form-urlencoded", body);
    for request in
        [json(&keystone), json(&machine), json(&nested), url(&form("refresh_token")), url(&form("assertion"))]
    {
        let Body::Bytes(sent) = request.body().clone() else { panic!("{request:?}") };
        let sent = String::from_utf8(sent).unwrap();
        // As it came, as a field of another body, without its signs, and unpacked.
        let field = json!({"message": sent.clone()}).to_string();
        let plain = sent.replace("\\n", "\n").replace("\\\"", "\"").replace("%2F", "/").replace(&packed, user_data);
        for echo in [sent, field, plain] {
            let server = Server::start(move |_| Reply::new(400).body(echo.as_bytes()));
            let request = Request::post(format!("{}/?key=SEKRET%2FSEKRET", server.url()))
                .bytes(
                    "x",
                    match request.body() {
                        Body::Bytes(bytes) => bytes.clone(),
                        _ => unreachable!(),
                    },
                )
                .hiding(true, true);
            let error = Virtual::new().client().send(&request).unwrap().expect(&[200]).unwrap_err().to_string();
            assert!(error.contains("HTTP 400") && error.contains("(secret)") && !error.contains("SEKRET"), "{error}");
            // What is no secret is still told.
            assert!(["demo", "nbg1", "\"m", "grant_type"].iter().any(|word| error.contains(word)), "{error}");
        }
    }
    // Of an address that is a key, and of a password that was packed.
    let server = Server::start(|call| Reply::new(403).body(format!("no {}; p=SEKRET", call.query).as_bytes()));
    let request = Request::put(format!("{}/?key=SEKRET%2FSEKRETSEKRET", server.url())).hiding(true, false);
    let request = request.secret("authorization", format!("Basic {}", STANDARD.encode("u:SEKRET")));
    let error = Virtual::new().client().send(&request).unwrap().expect(&[200]).unwrap_err().to_string();
    assert!(error.contains("no (secret); p=(secret)"), "{error}");
}

#[test]
fn a_server_says_how_long_to_wait() {
    let server = echo();
    server.fail(0, Fault::Instead(Reply::new(429).header("retry-after", "40")));
    server.fail(1, Fault::Instead(Reply::new(429).header("ratelimit-reset", "1800000300")));
    server.fail(2, Fault::Instead(Reply::new(503).header("retry-after", "Fri, 15 Jan 2027 08:15:00 GMT")));
    let clock = Virtual::new();
    clock.client().send(&Request::post(server.url())).unwrap();
    let slept = clock.slept_secs();
    assert!((40..=50).contains(&slept[0]), "{slept:?}");
    assert!((250..=330).contains(&slept[1]), "{slept:?}");
    assert_eq!(server.log().len(), 4);
    // An hour is too long.
    server.fail(4, Fault::Instead(Reply::new(429).header("retry-after", "3600")));
    assert_eq!(clock.client().send(&Request::post(server.url())).unwrap().status, 429);
}

#[test]
fn only_so_much_is_waited_in_all() {
    let server = Server::start(|_| Reply::new(429).header("retry-after", "600"));
    let clock = Virtual::new();
    assert_eq!(clock.client().send(&Request::get(server.url())).unwrap().status, 429);
    assert!(clock.slept_secs().iter().sum::<u64>() <= 2250, "{:?}", clock.slept_secs());
    // A reset of the rate says nothing of a server that stumbles.
    let server = echo();
    server.fail(0, Fault::Instead(Reply::new(503).header("ratelimit-reset", "1800000600")));
    let clock = Virtual::new();
    assert_eq!(clock.client().send(&Request::post(server.url())).unwrap().status, 503);
    assert!(clock.slept_secs().is_empty());
}

#[test]
fn patience_ends_with_the_last_answer() {
    let server = Server::start(|_| Reply::new(500).body(b"no\n way"));
    let answer = Virtual::new().client().send(&Request::get(server.url())).unwrap();
    let error = answer.expect(&[200]).unwrap_err();
    assert_eq!(error.downcast_ref::<Refused>().unwrap().said, "no way");
    assert_eq!(server.log().len(), 6);
}

#[test]
fn a_part_of_a_file_is_sent_whole_at_each_try() {
    let server = echo();
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    std::fs::write(file.path(), &content).unwrap();
    server.fail(0, Fault::CutRequest(20_000));
    let bar = ProgressBar::hidden();
    let request = Request::put(server.url()).file("application/octet-stream", file.path(), 1000, 90_000, &bar);
    Virtual::new().client().send(&request).unwrap();
    let calls = server.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls[1].body == content[1000..91_000]);
    assert_eq!(calls[1].header("content-length"), "90000");
    assert_eq!(bar.position(), 91_000);
}

#[test]
fn a_dry_run_sends_nothing_and_shows_no_secret() {
    let server = echo();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let client = Client::new(None).unwrap().dry(move |line| sink.lock().unwrap().push(line.to_string()));
    let request = Request::post(format!("{}/x?signature=s3cr3t", server.url()))
        .secret("authorization", "Bearer s3cr3t")
        .json(&json!({"name": "a"}))
        .hiding(true, false);
    let error = client.send(&request).unwrap_err().to_string();
    assert!(error.contains("its answer decides"), "{error}");
    let answer = client.send(&request.would(202, &json!({"id": 7})).would_header("x", "y")).unwrap();
    assert_eq!((answer.status, answer.header("x")), (202, Some("y")));
    assert_eq!(answer.json().unwrap()["id"], 7);
    let zeros = Request::put(format!("{}/disk", server.url())).bytes("application/octet-stream", vec![0; 64]);
    client.send(&zeros.would(200, &json!({}))).unwrap();
    let text = lines.lock().unwrap().join("\n");
    assert!(text.contains("(64 bytes)") && !text.contains('\0'), "{text:?}");
    assert!(text.contains("POST http://") && text.contains(r#"{"name":"a"}"#) && !text.contains("s3cr3t"), "{text}");
    assert!(server.log().is_empty());
}

#[test]
fn waiting_has_an_end() {
    let clock = Virtual::new();
    let mut asked = 0;
    let error = clock
        .client()
        .poll::<()>("the image", Duration::from_secs(10), Duration::from_secs(60), || {
            asked += 1;
            Ok(None)
        })
        .unwrap_err()
        .to_string();
    assert_eq!(asked, 7);
    assert!(error.contains("not done after 1 minutes"), "{error}");
}

#[test]
fn a_packed_answer_is_counted_unpacked() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&vec![b' '; 33 << 20]).unwrap();
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    let server = Server::start(move |_| Reply::new(200).header("content-encoding", "gzip").body(&packed));
    let error = Virtual::new().client().send(&Request::get(server.url())).unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
    // And the next would be no shorter.
    assert_eq!(server.log().len(), 1);
    let error = Virtual::new().client().send(&Request::post(server.url())).unwrap_err();
    assert!(error.chain().any(|e| e.is::<Lost>()), "{error:#}");
}

#[test]
fn a_connection_that_stands_still_is_given_up() {
    let server = echo();
    server.fail(0, Fault::Stall(0));
    // In the middle of the body.
    server.fail(1, Fault::Stall(100));
    let client = Virtual::new().client().with_stall(Duration::from_millis(200));
    client.send(&Request::get(server.url())).unwrap();
    assert_eq!(server.log().len(), 3);
    server.fail(3, Fault::Stall(100));
    let (answer, mut body) = client.open(&Request::get(server.url())).unwrap();
    assert_eq!(answer.status, 200);
    assert!(body.read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn an_interrupt_ends_the_reading() {
    let server = Server::start(|_| Reply::new(200).body(&[b'x'; 1000]));
    let clock = Virtual::new();
    let (_, mut body) = clock.client().open(&Request::get(server.url())).unwrap();
    body.read_exact(&mut [0; 10]).unwrap();
    clock.stopped.store(true, Relaxed);
    let error = body.read(&mut [0; 10]).unwrap_err();
    assert!(error.get_ref().is_some_and(|inner| inner.is::<Interrupted>()), "{error:?}");
    assert!(clock.client().send(&Request::get(server.url())).unwrap_err().is::<Interrupted>());
}

#[test]
fn where_a_server_points_no_secret_goes() {
    let other = echo();
    let place = format!("{}/there", other.url());
    let server = Server::start(move |_| Reply::new(307).header("location", &place).body(b"a page"));
    let client = Virtual::new().client();
    let secrets = |request: Request| {
        let names = ["authorization", "x-auth-token", "x-amz-security-token"];
        names.iter().fold(request.header("range", "bytes=1-"), |request, name| request.secret(name, "s3cr3t"))
    };
    assert_eq!(client.send(&secrets(Request::get(server.url()))).unwrap().status, 200);
    client.open(&secrets(Request::get(server.url()))).unwrap();
    for call in other.calls() {
        assert_eq!((call.path.as_str(), call.header("range")), ("/there", "bytes=1-"));
        assert!(!call.headers.values().any(|value| value.contains("s3cr3t")), "{call:?}");
    }
    // What changes something goes to where it was sent.
    assert_eq!(client.send(&secrets(Request::put(server.url()))).unwrap().status, 307);
    assert_eq!(other.calls().len(), 2);
    let circle = Server::start(|_| Reply::new(302).header("location", "/"));
    let error = client.send(&Request::get(circle.url())).unwrap_err().to_string();
    assert!(error.contains("from place to place"), "{error}");
    assert_eq!(circle.log().len(), 11);
    let plain = http::HeaderMap::from_iter([(http::header::LOCATION, "http://127.0.0.1/".parse().unwrap())]);
    let error = Request::get("https://a.example/").led_on(http::StatusCode::FOUND, &plain).unwrap_err().to_string();
    assert!(error.contains("without TLS"), "{error}");
}
