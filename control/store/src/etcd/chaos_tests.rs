//! Histories of several servers on one etcd, while its members are killed, stopped and cut off.

use std::sync::atomic::AtomicU64;

use super::tests::{Wire, options};
use super::*;
use crate::torture::{Load, Memory, Resume, check, run_load};

/// Each member may be away for this long, and is back for as long before the next one goes.
const MOMENT: Duration = Duration::from_millis(1500);

/// A server that reaches each member by a wire of its own.
async fn server(etcd: &test_etcd::Etcd) -> (Arc<dyn Store>, Vec<Wire>) {
    let mut wires = Vec::new();
    for endpoint in etcd.endpoints() {
        wires.push(Wire::to(&endpoint).await);
    }
    let mut settings = options(etcd, "/r");
    settings.members.endpoints = wires.iter().map(|w| w.address.clone()).collect();
    (Arc::new(Etcd::open(settings).await.unwrap()), wires)
}

fn load(operations: usize) -> Load {
    let resume = |watcher| Resume { watcher, prefix: "/t/".into(), after: 1 };
    Load {
        seed: 7,
        first_op: 1,
        clients: 6,
        operations,
        keys: 5,
        watches: (0..4).map(resume).collect(),
        snapshots: None,
        patience: usize::MAX,
    }
}

fn cut(wires: &[Wire], cut: bool) {
    for wire in wires {
        wire.cut.send_replace(cut);
    }
}

/// One fault after the other, with three members a majority always up, until told to end;
/// counts them.
async fn faults(
    mut etcd: test_etcd::Etcd,
    members: usize,
    wires: Vec<Vec<Wire>>,
    ended: &AtomicBool,
    count: &AtomicU64,
) {
    let pause = || tokio::time::sleep(MOMENT);
    while !ended.load(Ordering::Acquire) {
        let round = count.fetch_add(1, Ordering::AcqRel) as usize;
        let place = round / 3 % members;
        match round % 3 {
            0 => {
                etcd.kill(place);
                pause().await;
                etcd.restart(place);
            }
            1 => {
                etcd.pause(place);
                pause().await;
                etcd.resume(place);
            }
            _ => {
                let server = &wires[round % wires.len()];
                cut(server, true);
                pause().await;
                cut(server, false);
            }
        }
        pause().await;
    }
}

/// Two servers under load on a cluster that is disturbed; gives what their history had in it.
async fn history(members: usize, operations: usize) -> crate::torture::Tally {
    let etcd = test_etcd::Etcd::start(members);
    let (first, near) = server(&etcd).await;
    let (second, far) = server(&etcd).await;
    let (ended, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let memory = Arc::new(Memory::new(|| false));
    let work = async {
        let done = run_load(&[first, second], &load(operations), memory.clone()).await;
        ended.store(true, Ordering::Release);
        done
    };
    let (done, ()) = tokio::join!(work, faults(etcd, members, vec![near, far], &ended, &count));
    done.unwrap_or_else(|what| panic!("{what}"));
    let tally = check(&memory.take()).unwrap_or_else(|what| panic!("{what}"));
    eprintln!("{tally:?}, {} faults", count.load(Ordering::Relaxed));
    assert!(count.load(Ordering::Relaxed) >= 3, "each kind of fault was met");
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable_while_members_are_killed_stopped_and_cut_off() {
    let tally = history(3, 1200).await;
    assert!(tally.acknowledged > 500 && tally.seen > 2000 && tally.unknown > 0, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable_while_the_only_member_is_killed_stopped_and_cut_off() {
    let tally = history(1, 600).await;
    assert!(tally.acknowledged > 200 && tally.unknown > 0, "{tally:?}");
}
