use super::fake::{Fault, Reply, Server, Virtual};
use super::{Client, Lost, Refused, Request};
use indicatif::ProgressBar;
use serde_json::json;
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
    let text = lines.lock().unwrap().join("\n");
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
