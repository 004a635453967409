//! The engine on a real etcd.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{Options, conformance};

pub(super) fn options(etcd: &test_etcd::Etcd, prefix: &str) -> EtcdOptions {
    let members = Members {
        endpoints: etcd.endpoints(),
        ca_file: Some(etcd.file("ca.crt")),
        cert_file: Some(etcd.file("client.crt")),
        key_file: Some(etcd.file("client.key")),
    };
    EtcdOptions { members, prefix: prefix.into(), ..EtcdOptions::default() }
}

async fn open(etcd: &test_etcd::Etcd, prefix: &str) -> Arc<dyn Store> {
    Arc::new(Etcd::open(options(etcd, prefix)).await.unwrap())
}

async fn suite(members: usize) {
    let etcd = test_etcd::Etcd::start(members);
    let n = AtomicUsize::new(0);
    let make = async || open(&etcd, &format!("/t{}", n.fetch_add(1, Ordering::Relaxed))).await;
    conformance::run(&make).await;
    conformance::snapshots(make().await).await;
}

#[tokio::test]
async fn passes_the_suite_with_one_member() {
    suite(1).await;
}

#[tokio::test]
async fn passes_the_suite_with_three_members() {
    suite(3).await;
}

#[tokio::test]
async fn scrubbed_values_are_gone_from_the_database() {
    let etcd = test_etcd::Etcd::start(1);
    let store = open(&etcd, "/r").await;
    store.put("/k", Stamped::plain("an old value"), Expect::Any, None).await.unwrap();
    store.put("/k", Stamped::plain("new"), Expect::Any, None).await.unwrap();
    assert!(etcd.data_holds(0, b"an old value"));
    store.scrub().await.unwrap();
    // etcd's own log keeps it until etcd makes a snapshot: only the database can be scrubbed.
    assert!(!etcd.database_holds(0, b"an old value"));
    assert_eq!(store.get("/k").await.unwrap().unwrap().value, "new");
}

/// etcd's default limit is a MiB and a half; its gRPC server lets half a MiB more in.
#[tokio::test]
async fn what_etcd_finds_too_large_is_said_and_nothing_else_suffers() {
    let etcd = test_etcd::Etcd::start(1);
    let store = open(&etcd, "/r").await;
    for size in [1_600_000, crate::MAX_VALUE] {
        let refused = store.put("/k", Stamped::plain(vec![0; size]), Expect::Any, None).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooLargeForEtcd { .. }), "{size}: {refused}");
        assert!(refused.to_string().contains("--max-request-bytes"), "{refused}");
        let entry = |key: &str, size| Entry {
            key: key.into(),
            value: vec![0; size].into(),
            revision: 1,
            created: 1,
            expires: 0,
        };
        let entries = [entry("/a", 1), entry("/b", size)];
        let refused = write_etcd(&options(&etcd, "/restored"), &entries, 1).await.unwrap_err().to_string();
        assert!(refused.contains("/b has") && refused.contains("--max-request-bytes"), "{refused}");
    }
    put(&store, "/k").await;
    let roomy = test_etcd::Etcd::start_with(1, &["--max-request-bytes=4194304"]);
    let store = open(&roomy, "/r").await;
    store.put("/k", Stamped::plain(vec![0; crate::MAX_VALUE]), Expect::Any, None).await.unwrap();
}

/// Versions of one object fill it: no write is taken any more, not even the compactor's own.
#[tokio::test]
async fn a_full_etcd_is_relieved() {
    const QUOTA: usize = 16 << 20;
    let etcd = test_etcd::Etcd::start_with(1, &[&format!("--quota-backend-bytes={QUOTA}")]);
    let options = |interval| EtcdOptions { compaction_interval: interval, ..options(&etcd, "/r") };
    let passive = Etcd::open(options(Duration::ZERO)).await.unwrap();
    let large = async |store: &Etcd| store.put("/k", Stamped::plain(vec![b'x'; 1 << 20]), Expect::Any, None).await;
    let fill = async |store: &Etcd| {
        for _ in 0..100 {
            match large(store).await {
                Ok(_) => {}
                Err(StoreError::Unavailable(why)) if why.contains("full") => return,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("etcd has no quota");
    };
    fill(&passive).await;
    for ttl in [None, Some(1000)] {
        let small = passive.put("/small", Stamped::plain("x"), Expect::Any, ttl).await.unwrap_err();
        assert!(matches!(&small, StoreError::Unavailable(why) if why.contains("full")), "{ttl:?}: {small}");
    }
    assert!(passive.get("/k").await.unwrap().is_some() && passive.failure().is_none());

    // A server that starts, one that runs, and what replaces or retires the store.
    let running = Etcd::open(options(Duration::from_millis(500))).await.unwrap();
    large(&running).await.unwrap();
    for _ in 0..2 {
        fill(&passive).await;
        let begun = Instant::now();
        while let Err(error) = large(&passive).await {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    drop(running);
    fill(&passive).await;
    let (entries, revision) = read_etcd(&options(Duration::ZERO)).await.unwrap();
    write_etcd(&options(Duration::ZERO), &entries, revision).await.unwrap();
    let restored = Etcd::open(options(Duration::ZERO)).await.unwrap();
    assert_eq!(restored.get("/k").await.unwrap().unwrap().value.len(), 1 << 20);
    fill(&restored).await;
    retire_etcd(&options(Duration::ZERO), Some("elsewhere")).await.unwrap();
    assert_eq!(etcd_holds(&options(Duration::ZERO)).await.unwrap(), EtcdHolds::Moved("elsewhere".into()));
}

/// Each master's server sees that etcd is full; were they to make room at the same time, no member would answer.
#[tokio::test]
async fn one_of_several_servers_makes_room() {
    let etcd = test_etcd::Etcd::start_with(3, &["--quota-backend-bytes=16777216"]);
    let passive = open_at(&etcd, 0, Duration::ZERO).await;
    let large = async || passive.put("/k", Stamped::plain(vec![b'x'; 1 << 20]), Expect::Any, None).await;
    let fill = async || while large().await.is_ok() {};
    fill().await;
    let mut beside_leader = None;
    for place in 0..3 {
        let client = Client::new(&at(&etcd, place).members).unwrap();
        let status: wire::StatusResponse = client.call(wire::STATUS, wire::StatusRequest {}, Again::Yes).await.unwrap();
        if status.header().is_some_and(|header| header.member_id == status.leader) {
            beside_leader = Some(place);
            continue;
        }
        // It begins when another one has made room.
        let begun = open_at(&etcd, place, Duration::from_secs(3600));
        let early = tokio::time::timeout(Duration::from_millis(500), begun).await;
        assert!(early.is_err() && large().await.is_err(), "{place} made room");
    }
    let leaders = beside_leader.expect("one member leads");
    drop(open_at(&etcd, leaders, Duration::from_secs(3600)).await);
    large().await.unwrap();

    // Where there is no server beside the leader, another one does it in the end.
    fill().await;
    drop(open_at(&etcd, (leaders + 1) % 3, Duration::from_millis(300)).await);
    large().await.unwrap();
}

fn at(etcd: &test_etcd::Etcd, place: usize) -> EtcdOptions {
    let mut options = options(etcd, "/r");
    options.members.endpoints = vec![etcd.endpoints().swap_remove(place)];
    options
}

/// A server that is given one member only, as on a master.
async fn open_at(etcd: &test_etcd::Etcd, place: usize, compaction_interval: Duration) -> Etcd {
    Etcd::open(EtcdOptions { compaction_interval, ..at(etcd, place) }).await.unwrap()
}

/// What does not fit beside the store is taken away again.
#[tokio::test]
async fn a_restore_that_does_not_fit_leaves_room() {
    let etcd = test_etcd::Etcd::start_with(1, &["--quota-backend-bytes=16777216"]);
    let settings = options(&etcd, "/r");
    let store = open(&etcd, "/r").await;
    put(&store, "/kept").await;
    let entry = |i: usize| Entry {
        key: format!("/k/{i:03}").as_str().into(),
        value: vec![b'x'; 1 << 20].into(),
        revision: 1,
        created: 1,
        expires: 0,
    };
    let refused = write_etcd(&settings, &(0..40).map(entry).collect::<Vec<_>>(), 1).await.unwrap_err().to_string();
    assert!(refused.contains("space exceeded"), "{refused}");
    // Also for a server that runs on.
    put(&store, "/new").await;
    drop(store);
    let store = open(&etcd, "/r").await;
    assert_eq!(store.range("", "", 0).await.unwrap().0.len(), 2);
}

/// Who waits for a backup goes on waiting where a restore came no further than the root.
#[tokio::test]
async fn a_store_without_anything_in_it_is_none() {
    let etcd = test_etcd::Etcd::start(1);
    let settings = options(&etcd, "/r");
    assert_eq!(etcd_holds(&settings).await.unwrap(), EtcdHolds::Nothing);
    let store = open(&etcd, "/r").await;
    put(&open(&etcd, "/other").await, "/k").await;
    assert_eq!(etcd_holds(&settings).await.unwrap(), EtcdHolds::Nothing);
    put(&store, "/k").await;
    assert_eq!(etcd_holds(&settings).await.unwrap(), EtcdHolds::Store);
}

async fn put(store: &Arc<dyn Store>, key: &str) -> u64 {
    let value = Stamped { bytes: b"<>".to_vec(), stamp_at: 1 };
    store.put(key, value, Expect::Any, None).await.unwrap()
}

async fn next(changes: &mut Changes) -> u64 {
    tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("in time").expect("a change").revision
}

#[tokio::test]
async fn two_servers_see_each_others_writes_at_once() {
    let etcd = test_etcd::Etcd::start(1);
    let (a, b) = (open(&etcd, "/r").await, open(&etcd, "/r").await);
    let other = open(&etcd, "/other").await;
    for i in 0..50 {
        let key = format!("/k/{i}");
        let revision = put(&a, &key).await;
        // What others write into the same etcd must not hold up a read.
        put(&other, &key).await;
        let entry = b.get(&key).await.unwrap().expect("an answered write is read everywhere");
        assert_eq!((entry.revision, &entry.value[..]), (revision, format!("<{revision}>").as_bytes()));
        let stale = b.put(&key, Stamped::plain("x"), Expect::Absent, None).await;
        assert!(matches!(stale, Err(StoreError::Mismatch)));
        b.delete(&key, Expect::At(revision)).await.unwrap();
        assert!(a.get(&key).await.unwrap().is_none());
        // After a mismatch the winner's write has been seen.
        let lost = a.put(&key, Stamped::plain("x"), Expect::At(revision), None).await;
        assert!(matches!(lost, Err(StoreError::Mismatch)));
        assert!(a.range("/k/", "", 0).await.unwrap().0.is_empty());
    }
}

#[tokio::test]
async fn a_server_that_starts_again_has_the_history() {
    let etcd = test_etcd::Etcd::start(1);
    let store = open(&etcd, "/r").await;
    let mut written = Vec::new();
    for i in 0..600 {
        written.push(put(&store, &format!("/k/{i}")).await);
    }
    drop(store);
    let store = open(&etcd, "/r").await;
    assert_eq!(store.range("/k/", "", 0).await.unwrap().0.len(), 600, "more than a page");
    let mut changes = store.watch("/k/", written[9]).unwrap();
    for revision in &written[10..] {
        assert_eq!(next(&mut changes).await, *revision);
    }
    store.compact(written[300]).await.unwrap();
    drop(store);
    let store = open(&etcd, "/r").await;
    assert!(matches!(store.watch("/k/", written[299]), Err(StoreError::Compacted { .. })));
    let mut changes = store.watch("/k/", written[300]).unwrap();
    assert_eq!(next(&mut changes).await, written[301]);
}

/// Stands between a client and a member, and can be cut.
pub(super) struct Wire {
    pub(super) address: String,
    pub(super) cut: tokio::sync::watch::Sender<bool>,
}

impl Wire {
    pub(super) async fn to(endpoint: &str) -> Wire {
        let target = endpoint.trim_start_matches("https://").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let (cut, is_cut) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut is_cut) = (target.clone(), is_cut.clone());
                tokio::spawn(async move {
                    if *is_cut.borrow() {
                        return;
                    }
                    // The member may be down.
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Wire { address, cut }
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_a_cut_without_gap_or_repeat() {
    let etcd = test_etcd::Etcd::start(1);
    let wire = Wire::to(&etcd.endpoints()[0]).await;
    let near: Arc<dyn Store> = open(&etcd, "/r").await;
    let mut cut_off = options(&etcd, "/r");
    cut_off.members.endpoints = vec![wire.address.clone()];
    let far = Etcd::open(cut_off).await.unwrap();
    let mut changes = far.watch("/k/", far.revision()).unwrap();
    for round in 0..3 {
        let mut written = Vec::new();
        for i in 0..10 {
            wire.cut.send_replace(i % 5 > 2);
            written.push(put(&near, &format!("/k/{round}.{i}")).await);
        }
        wire.cut.send_replace(false);
        for revision in written {
            assert_eq!(next(&mut changes).await, revision);
        }
    }
}

#[derive(Default)]
struct Loads(std::sync::Mutex<Vec<(usize, u64)>>);

impl Observer for Loads {
    fn load(&self, entries: Vec<Entry>, revision: u64) {
        self.0.lock().unwrap().push((entries.len(), revision));
    }
    fn apply(&self, _: &[crate::Change], _: u64) {}
}

#[tokio::test]
async fn changes_compacted_during_a_cut_make_watches_begin_anew() {
    let etcd = test_etcd::Etcd::start(1);
    let wire = Wire::to(&etcd.endpoints()[0]).await;
    let near: Arc<dyn Store> = open(&etcd, "/r").await;
    put(&near, "/k/gone").await;
    let mut cut_off = options(&etcd, "/r");
    cut_off.members.endpoints = vec![wire.address.clone()];
    let far = Etcd::open(cut_off).await.unwrap();
    let loads = Arc::new(Loads::default());
    far.attach("/k/", loads.clone());
    let before = far.revision();
    let mut changes = far.watch("/k/", before).unwrap();
    wire.cut.send_replace(true);
    near.delete("/k/gone", Expect::Any).await.unwrap();
    put(&near, "/k/1").await;
    let last = put(&near, "/k/2").await;
    near.compact(last).await.unwrap();
    wire.cut.send_replace(false);
    let ended = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("in time");
    assert!(ended.is_none(), "a watch with a gap ends: {ended:?}");
    let keys: Vec<_> = far.range("/k/", "", 0).await.unwrap().0.iter().map(|e| e.key.to_string()).collect();
    assert_eq!(keys, ["/k/1", "/k/2"]);
    assert!(matches!(far.watch("/k/", before), Err(StoreError::Compacted { .. })));
    let seen = loads.0.lock().unwrap().clone();
    assert_eq!((seen[0], seen[1].0), ((1, before), 2), "observers get a new picture");
}

/// Three members, and one after the other is killed, comes back, and is stopped in its tracks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_with_two_of_three_members() {
    let mut etcd = test_etcd::Etcd::start(3);
    let store = open(&etcd, "/r").await;
    let mut changes = store.watch("/k/", store.revision()).unwrap();
    let mut answered = Vec::new();
    for round in 0..4 {
        let place = round % 3;
        match round {
            0..3 => etcd.kill(place),
            _ => etcd.pause(place),
        }
        let begun = Instant::now();
        let mut done = 0;
        while done < 5 {
            // Unanswered writes may have been done or not: that is what the error says.
            let value = Stamped::plain(format!("{round}"));
            match store.put(&format!("/k/{round}.{done}"), value, Expect::Any, None).await {
                Ok(revision) => {
                    answered.push(revision);
                    done += 1;
                }
                Err(StoreError::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(40), "two of three members serve");
        }
        match round {
            0..3 => etcd.restart(place),
            _ => etcd.resume(place),
        }
    }
    let all = store.range("/k/", "", 0).await.unwrap().0;
    assert_eq!(all.len(), 20);
    let mut seen = Vec::new();
    while seen.last() != answered.last() {
        seen.push(next(&mut changes).await);
    }
    assert!(seen.windows(2).all(|w| w[0] < w[1]), "in order, each once");
    assert!(answered.iter().all(|r| seen.contains(r)), "no gap");
}

#[tokio::test]
async fn without_a_majority_nothing_is_promised() {
    let mut etcd = test_etcd::Etcd::start(3);
    let store = open(&etcd, "/r").await;
    put(&store, "/k/1").await;
    etcd.kill(0);
    etcd.kill(1);
    let write = store.put("/k/2", Stamped::plain("x"), Expect::Any, None).await;
    assert!(matches!(&write, Err(StoreError::Unavailable(why)) if why.contains("may have been done")), "{write:?}");
    let read = store.get("/k/1").await;
    let said = match &read {
        Err(error @ StoreError::Unavailable(_)) => error.to_string(),
        read => panic!("a read that may be old is no answer: {read:?}"),
    };
    assert_eq!(said.matches("the store does not answer").count(), 1, "{said}");
    assert!(store.trouble().is_some() && store.failure().is_none());
    etcd.restart(0);
    assert!(store.get("/k/1").await.unwrap().is_some());
    put(&store, "/k/3").await;
}

#[tokio::test]
async fn leases_are_shared() {
    let etcd = test_etcd::Etcd::start(1);
    let store = Etcd::open(options(&etcd, "/r")).await.unwrap();
    let mut leases = std::collections::HashSet::new();
    for i in 0..20 {
        store.put(&format!("/k/{i}"), Stamped::plain("x"), Expect::Any, Some(3600)).await.unwrap();
    }
    let mirror = &store.inner.mirror;
    mirror::pages(&mirror.client, "/r/g1/", |kv| {
        leases.insert(kv.lease);
        Ok(())
    })
    .await
    .unwrap();
    assert!(leases.len() == 1 && !leases.contains(&0), "{leases:?}");
}

#[tokio::test]
async fn one_of_several_servers_compacts() {
    let etcd = test_etcd::Etcd::start(1);
    let store = open(&etcd, "/r").await;
    let client = Client::new(&options(&etcd, "/r").members).unwrap();
    let mut racers: Vec<compactor::Compactor> = (0..3).map(|_| compactor::Compactor::default()).collect();
    let mut last = 0;
    for round in 0..4 {
        put(&store, "/k/1").await;
        let mut compacted = Vec::new();
        for racer in &mut racers {
            compacted.extend(racer.round(&client).await.unwrap());
        }
        assert!(compacted.len() <= 1, "round {round}: {compacted:?}");
        if let Some(revision) = compacted.first() {
            assert!(*revision > last, "it goes on");
            last = *revision;
        }
    }
    assert!(last > 0, "somebody compacts");
}

#[tokio::test]
async fn what_others_wrote_is_named() {
    let etcd = test_etcd::Etcd::start(1);
    let settings = options(&etcd, "/r");
    drop(Etcd::open(settings.clone()).await.unwrap());
    let client = Client::new(&settings.members).unwrap();
    let foreign = PutRequest { key: "/r/g1/core/pods/a/b".into(), value: "k8s\0".into(), lease: 0 };
    client.call::<_, wire::PutResponse>(wire::PUT, foreign, Again::No).await.unwrap();
    let error = Etcd::open(settings).await.unwrap_err().to_string();
    assert!(error.contains("/core/pods/a/b") && error.contains("--etcd-prefix"), "{error}");
}

#[tokio::test]
async fn no_member_is_a_sentence() {
    let mut etcd = test_etcd::Etcd::start(1);
    etcd.kill(0);
    let error = Etcd::open(options(&etcd, "/r")).await.unwrap_err().to_string();
    assert!(error.contains(&etcd.endpoints()[0]) && error.contains("refused"), "{error}");
}

fn assert_same(a: &[Entry], b: &[Entry]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!(picture::same(a, b), "{a:?} {b:?}");
    }
}

#[tokio::test]
async fn moves_from_embedded_to_etcd_and_back() {
    let etcd = test_etcd::Etcd::start(1);
    let settings = options(&etcd, "/r");
    let dir = tempfile::tempdir().unwrap();
    let embedded = |dir: &std::path::Path| -> Arc<dyn Store> {
        Arc::new(crate::Embedded::open(Arc::new(crate::DirDisk::open(dir).unwrap()), Options::default()).unwrap())
    };
    let store = embedded(dir.path());
    for i in 0..700 {
        put(&store, &format!("/k/{:03}", i % 650)).await;
    }
    store.put("/k/timed", Stamped::plain("x"), Expect::Any, Some(1000)).await.unwrap();
    let (before, given_out) = store.range("", "", 0).await.unwrap();
    drop(store);

    // There.
    let (entries, revision) = crate::read_picture(&dir.path().join("store.log")).unwrap();
    assert_same(&before, &entries);
    let raised = write_etcd(&settings, &entries, revision).await.unwrap();
    assert!(raised > given_out);
    let (read, _) = read_etcd(&settings).await.unwrap();
    assert_same(&entries, &read);
    assert!(read.iter().any(|e| e.expires > 0), "times are kept");
    let store = open(&etcd, "/r").await;
    assert_same(&before, &store.range("", "", 0).await.unwrap().0);
    assert!(store.revision() > given_out);
    assert!(matches!(store.watch("/k/", given_out), Err(StoreError::Compacted { .. })), "clients list anew");
    // Objects are known by the revision that they had.
    let known = &before[3];
    let wrong = store.put(&known.key, Stamped::plain("x"), Expect::At(known.revision - 1), None).await;
    assert!(matches!(wrong, Err(StoreError::Mismatch)));
    let mut changes = store.watch("/k/", store.revision()).unwrap();
    let new = store.put(&known.key, Stamped::plain("x"), Expect::At(known.revision), None).await.unwrap();
    assert!(new > raised - 1 && next(&mut changes).await == new);
    let again = store.put(&known.key, Stamped::plain("x"), Expect::At(known.revision), None).await;
    assert!(matches!(again, Err(StoreError::Mismatch)));
    store.delete(&before[4].key, Expect::At(before[4].revision)).await.unwrap();

    // And back: from the moment that etcd's store is retired, nobody writes to it.
    retire_etcd(&settings, Some("the embedded store")).await.unwrap();
    let late = store.put("/k/late", Stamped::plain("x"), Expect::Any, None).await;
    assert!(matches!(late, Err(StoreError::Failed(_))), "{late:?}");
    assert!(store.failure().is_some());
    let error = Etcd::open(settings.clone()).await.unwrap_err().to_string();
    assert!(error.contains("embedded"), "{error}");
    let (entries, revision) = read_etcd(&settings).await.unwrap();
    let back = crate::write_store(dir.path(), crate::oldest_format(), &entries, revision).unwrap();
    assert!(back > new);
    let store = embedded(dir.path());
    assert_same(&entries, &store.range("", "", 0).await.unwrap().0);
}

/// Format 2 is there for tests only.
#[tokio::test]
async fn a_store_goes_on_in_its_format_until_that_is_raised() {
    let etcd = test_etcd::Etcd::start(1);
    let settings = options(&etcd, "/r");
    let (client, layout) = (Client::new(&settings.members).unwrap(), Layout::new("/r").unwrap());
    let first = Root { format: 1, generation: 1, base: 0, moved: None };
    root::replace(&client, &layout, 0, &first).await.unwrap();
    let store = Etcd::open(settings.clone()).await.unwrap();
    assert_eq!(store.format(), Format { has: 1, newest: 2 });
    let written = store.put("/k", Stamped::plain("x"), Expect::Any, None).await.unwrap();
    store.raise().await.unwrap();
    // Whoever runs on it writes nothing any more.
    let late = store.put("/k", Stamped::plain("y"), Expect::Any, None).await;
    assert!(matches!(late, Err(StoreError::Failed(_))), "{late:?}");
    let store = Etcd::open(settings.clone()).await.unwrap();
    assert_eq!(store.format(), Format { has: 2, newest: 2 });
    let kept = store.get("/k").await.unwrap().unwrap();
    assert_eq!((kept.value.as_ref(), kept.revision), (&b"x"[..], written));
    store.raise().await.unwrap();
    store.put("/k", Stamped::plain("y"), Expect::Any, None).await.unwrap();
    // A copy that is restored, or a store that is moved here, is written anew in what all releases read.
    let (entries, revision) = read_etcd(&settings).await.unwrap();
    for prefix in ["/r", "/moved"] {
        write_etcd(&options(&etcd, prefix), &entries, revision).await.unwrap();
        assert_eq!(Etcd::open(options(&etcd, prefix)).await.unwrap().format().has, 1, "{prefix}");
    }
}

#[tokio::test]
async fn a_restore_ends_the_servers_that_run() {
    let etcd = test_etcd::Etcd::start(1);
    let settings = options(&etcd, "/r");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    let store = open(&etcd, "/r").await;
    put(&store, "/k/1").await;
    store.snapshot(file.clone()).await.unwrap();
    let newest = put(&store, "/k/2").await;
    let (entries, revision) = crate::read_picture(&file).unwrap();
    let raised = write_etcd(&settings, &entries, revision).await.unwrap();
    assert!(raised > newest);
    let late = store.put("/k/3", Stamped::plain("x"), Expect::Any, None).await;
    assert!(matches!(late, Err(StoreError::Failed(_))), "{late:?}");
    let store = open(&etcd, "/r").await;
    let keys: Vec<_> = store.range("", "", 0).await.unwrap().0.iter().map(|e| e.key.to_string()).collect();
    assert_eq!(keys, ["/k/1"]);
    // Once more, from another state, on the same etcd.
    assert!(write_etcd(&settings, &[], revision).await.unwrap() > raised);
    assert!(open(&etcd, "/r").await.range("", "", 0).await.unwrap().0.is_empty());
}

#[tokio::test]
async fn the_check_reads_everything_and_compares_members() {
    let etcd = test_etcd::Etcd::start(3);
    let settings = options(&etcd, "/r");
    let store = open(&etcd, "/r").await;
    for i in 0..20 {
        put(&store, &format!("/k/{i}")).await;
    }
    let report = check_etcd(&settings).await.unwrap();
    assert_eq!((report.keys, report.members.len()), (20, 3));
    assert_eq!(report.members.iter().filter(|m| m.contains("leader")).count(), 1, "{:?}", report.members);
    let client = Client::new(&settings.members).unwrap();
    let damaged = PutRequest { key: "/r/g1/k/3".into(), value: "\u{1}".into(), lease: 0 };
    client.call::<_, wire::PutResponse>(wire::PUT, damaged, Again::No).await.unwrap();
    assert!(matches!(check_etcd(&settings).await, Err(StoreError::Foreign { key }) if key == "/k/3"));
}
