//! Which logs are asked for, and nodes that come and go.

use super::*;
use crate::client::block_on;
use crate::client::tests::{Server, answer, secrets};
use crate::pki::Secrets;
use show::Prefix;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn logs_are_chosen_by_name() {
    let known: Vec<String> = ["init", "kernel", "audit", "kubelet"].map(String::from).into();
    let mut wanted = Wanted::default();
    assert_eq!(wanted.of(&known), ["init", "kernel", "kubelet"]);
    assert_eq!(Wanted { audit: true, ..Wanted::default() }.of(&known), known[..]);
    wanted.services = vec!["audit".into(), "etcd".into()];
    assert_eq!(wanted.of(&known), ["audit"]);
    let (known, printer) = (known.into_iter().collect(), printer().0);
    let error = wanted.check(&known, true, &printer).unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("`etcd`"), "{error}");
    assert!(wanted.check(&known, false, &printer).is_ok(), "a node that is away may have it");
    assert!(wanted.check(&BTreeSet::new(), false, &printer).is_ok(), "nobody said what there is");
}

#[test]
fn paths_hold_no_path() {
    assert_eq!(log_path("kernel", 5, false).unwrap(), "/v1/dmesg?follow=0&tail=5");
    assert_eq!(log_path("kubelet", 5, true).unwrap(), "/v1/logs/kubelet?follow=1&tail=5");
    for bad in ["", "../services", "a?b", "a b"] {
        assert!(log_path(bad, 1, false).unwrap_err().is::<BadInput>(), "{bad}");
    }
}

#[test]
fn what_pid_1_says_is_shown_once() {
    let both = ["init".to_string(), "kernel".to_string()];
    let line = "2025-11-27T00:00:00Z kimg: the node has joined";
    assert!(stands_elsewhere("kernel", line, &both) && !stands_elsewhere("init", line, &both));
    assert!(!stands_elsewhere("kernel", line, &both[1..]));
    assert!(!stands_elsewhere("kernel", "2025-11-27T00:00:00Z EXT4-fs: mounted", &both));
}

#[test]
fn what_is_said_of_a_node_is_said_again_when_it_changes() {
    let node: Arc<str> = "a".into();
    let mut reached = Reached([(node.clone(), None)].into());
    assert!(!reached.tried() && !reached.whole());
    assert!(reached.lost(&node, "refused".into()) && !reached.lost(&node, "refused".into()));
    assert!(reached.tried() && !reached.whole());
    assert!(reached.lost(&node, "no route".into()) && reached.lost(&node, "refused".into()));
    assert!(reached.answers(&node) && !reached.answers(&node));
    assert!(reached.whole());
    assert!(reached.lost(&node, "refused".into()), "it had answered");
}

/// A node with a kubelet, whose log is longer each time that it is asked for.
pub(super) async fn node(secrets: &Secrets, name: &str) -> Server {
    node_with(secrets, name, &["kubelet"]).await
}

async fn node_with(secrets: &Secrets, name: &str, services: &'static [&'static str]) -> Server {
    let asked = AtomicUsize::new(0);
    let own = name.to_string();
    answer(secrets, name, false, move |request| {
        let body = match request.split(' ').nth(1).unwrap_or_default() {
            path::STATUS => serde_json::to_string(&NodeStatus {
                role: "worker".into(),
                now_unix_ms: 1_764_201_700_000,
                uptime_ms: 100_000,
                ..NodeStatus::default()
            })
            .expect("status"),
            path::SERVICES => {
                let service = |name: &&str| {
                    serde_json::json!({"name": name, "state": "ready", "since_ms": 0, "restarts": 0, "status": "",
                        "last_exit": "", "needs": [], "memory": 0})
                };
                serde_json::Value::from_iter(services.iter().map(service)).to_string()
            }
            path if path.starts_with("/v1/logs/refused") => {
                return "HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\n{\"error\": \"no disk\"}".into();
            }
            path if path.starts_with("/v1/logs/timeless") => "first\nsecond\n".into(),
            path if path.starts_with("/v1/logs/kubelet") => {
                let lines = asked.fetch_add(1, Ordering::Relaxed) + 2;
                let line =
                    |n: usize| format!("2025-11-27T00:00:0{n}Z {own} {n}\n{}", if n == 1 { "  more\n" } else { "" });
                (0..lines.min(10)).map(line).collect()
            }
            path if path.starts_with("/v1/dmesg") => "[    0.500000] kimg: hello\n[    0.700000] Linux\n".into(),
            // PID 1 has said nothing yet.
            _ => return "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n{\"error\": \"no log\"}".into(),
        };
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}")
    })
    .await
}

/// A printer, and what it has printed.
pub(super) fn printer() -> (Printer, Arc<Mutex<String>>) {
    let out = Arc::new(Mutex::new(String::new()));
    let to = out.clone();
    let write = move |bytes: &[u8]| {
        to.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        Ok(())
    };
    (Printer::new(Prefix::Both, write), out)
}

fn lines_of(all: &[&str], service: &str) -> Vec<String> {
    all.iter().filter(|line| line.split(' ').nth(1) == Some(service)).map(ToString::to_string).collect()
}

pub(super) fn source(secrets: &Secrets, name: &str, target: &str) -> Source {
    Source { node: name.into(), client: NodeClient::new(secrets, name, target.into(), None) }
}

#[test]
fn a_node_that_does_not_answer_leaves_the_others() {
    let (_dir, secrets) = secrets();
    let shown_by = |gone: bool, wanted: Wanted| {
        block_on(async {
            let services: &'static [&'static str] =
                if gone { &["kubelet"] } else { &["kubelet", "refused", "timeless"] };
            let (a, b) = (node_with(&secrets, "a", services).await, node_with(&secrets, "b", services).await);
            let mut sources = vec![source(&secrets, "a", &a.target), source(&secrets, "b", &b.target)];
            if gone {
                sources.insert(1, source(&secrets, "gone", "127.0.0.1:1"));
            }
            let (mut printer, out) = printer();
            let whole = show(sources, &wanted, &mut printer).await?;
            let out = out.lock().unwrap().clone();
            Ok((whole, out.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()))
        })
    };
    let shown = |wanted| shown_by(true, wanted);
    let (whole, lines) = shown(Wanted::default()).unwrap();
    assert!(!whole, "one is gone");
    let expected = [
        "a kubelet 2025-11-27T00:00:00Z a 0",
        "b kubelet 2025-11-27T00:00:00Z b 0",
        "a kernel 2025-11-27T00:00:00.700000Z Linux",
        "b kernel 2025-11-27T00:00:00.700000Z Linux",
        "a kubelet 2025-11-27T00:00:01Z a 1",
        "a kubelet more",
        "b kubelet 2025-11-27T00:00:01Z b 1",
        "b kubelet more",
    ];
    assert_eq!(lines, expected);
    // By the node's clock: it is 00:01:40 there.
    let since =
        Wanted { since: Some(Duration::from_millis(99_200)), services: vec!["kubelet".into()], ..Wanted::default() };
    assert_eq!(shown(since).unwrap().1, expected[4..]);
    assert_eq!(shown(Wanted { tail: Some(3), ..Wanted::default() }).unwrap().1, expected[5..]);
    // The node that is away may have it.
    let named = |name: &str| Wanted { services: vec![name.into(), "kubelet".into()], ..Wanted::default() };
    assert_eq!(shown(named("etcd")).unwrap(), (false, lines_of(&expected, "kubelet")));
    let error = shown_by(false, named("etcd")).unwrap_err();
    assert!(error.is::<BadInput>(), "{error}");
    // It refuses this log, and gives the others.
    assert_eq!(shown_by(false, named("refused")).unwrap(), (false, lines_of(&expected, "kubelet")));
    // Nothing in it says a time.
    let services = vec!["timeless".into()];
    let timeless = Wanted { since: Some(Duration::from_secs(1)), services, tail: Some(1), audit: false };
    assert_eq!(shown_by(false, timeless).unwrap(), (true, vec!["b timeless second".to_string()]));
}

#[test]
fn a_lost_connection_is_made_anew_and_shows_nothing_twice() {
    let (_dir, secrets) = secrets();
    block_on(async {
        let server = node(&secrets, "a").await;
        let sources = vec![source(&secrets, "a", &server.target), source(&secrets, "gone", "127.0.0.1:1")];
        let (mut printer, out) = printer();
        let wanted = Wanted { services: vec!["kubelet".into()], tail: Some(2), ..Wanted::default() };
        let enough = async {
            while !out.lock().unwrap().contains("a 3") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            ended = follow(sources, &wanted, &mut printer) => panic!("it has ended: {ended:?}"),
            () = enough => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("{}", out.lock().unwrap()),
        }
        let shown = out.lock().unwrap().clone();
        let texts: Vec<&str> = shown.lines().map(|line| line.split("kubelet").nth(1).unwrap_or("").trim()).collect();
        let expected = ["2025-11-27T00:00:01Z a 1", "more", "2025-11-27T00:00:02Z a 2", "2025-11-27T00:00:03Z a 3"];
        assert_eq!(texts, expected, "the last two, and then what is new");
        Ok(())
    })
    .unwrap();
}

#[tokio::test]
async fn a_node_that_sends_without_end_is_not_listened_to() {
    let (_dir, secrets) = secrets();
    let server = node(&secrets, "a").await;
    let wanted = Wanted::default();
    let asked = |most: usize| whole(source(&secrets, "a", &server.target), &wanted, most);
    assert!(!asked(MOST).await.expect("all").entries.is_empty());
    let error = asked(20).await.err().expect("too much").to_string();
    assert!(error.contains("is it ours?"), "{error}");
}
