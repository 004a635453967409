use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::{FaultDisk, Pull, conformance};

fn small() -> Options {
    Options { min_log_bytes: 4096, ..Options::default() }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

#[test]
fn passes_the_suite() {
    run(conformance::run(async || {
        Arc::new(Embedded::open(Arc::new(FaultDisk::new()), small()).unwrap()) as Arc<dyn Store>
    }));
}

#[test]
fn passes_the_suite_on_a_real_directory() {
    let dir = tempfile::tempdir().unwrap();
    let n = AtomicU64::new(0);
    let make = async || {
        let path = dir.path().join(n.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(Embedded::open(Arc::new(crate::DirDisk::open(&path).unwrap()), Options::default()).unwrap())
            as Arc<dyn Store>
    };
    run(conformance::run(&make));
    run(async { conformance::snapshots(make().await).await });
}

#[test]
fn keeps_everything_over_a_restart_and_many_rewrites() {
    let disk = FaultDisk::new();
    let revision = run(async {
        let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
        for i in 0..400 {
            store.put(&format!("/a/{}", i % 10), Stamped::plain(vec![b'x'; 100]), Expect::Any, None).await.unwrap();
        }
        store.delete("/a/3", Expect::Any).await.unwrap()
    });
    let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
    assert_eq!(store.revision(), revision);
    let (entries, _) = run(store.range("/a/", "", 0)).unwrap();
    assert_eq!(entries.len(), 9);
    drop(store);
    let mut size = 0;
    disk.change(LOG, |data| size = data.len());
    assert!(size < 40_000, "the log was rewritten: {size}");
}

/// Format 3 is there for tests only.
#[test]
fn a_log_goes_on_in_its_format_until_that_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |key: &str| Entry { key: key.into(), value: "x".into(), revision: 5, created: 5, expires: 0 };
    write_store(dir.path(), 2, &[entry("/a")], 5).unwrap();
    let open = || Embedded::open(Arc::new(crate::DirDisk::open(dir.path()).unwrap()), small()).unwrap();
    let of = |name: &str| format_of(&dir.path().join(name)).unwrap();
    run(async {
        let store = open();
        assert_eq!(store.format(), Format { has: 2, newest: 3 });
        store.scrub().await.unwrap();
        store.snapshot(dir.path().join("before")).await.unwrap();
        assert_eq!((of(LOG), of("before")), (2, 2));
        let last = store.put("/b", Stamped::plain("x"), Expect::Absent, None).await.unwrap();
        store.raise().await.unwrap();
        store.raise().await.unwrap();
        assert_eq!((of(LOG), store.format().has, store.revision()), (3, 3, last));
        store.put("/c", Stamped::plain("x"), Expect::Absent, None).await.unwrap();
        store.snapshot(dir.path().join("after")).await.unwrap();
    });
    let store = open();
    assert_eq!((store.format().has, of("after"), store.shared.read().live.len()), (3, 3, 3));
    drop(store);
    // A copy of before is as it was.
    restore(&dir.path().join("before"), dir.path()).unwrap();
    assert_eq!((of(LOG), open().format()), (2, Format { has: 2, newest: 3 }));
}

#[test]
fn a_pulled_plug_leaves_a_log_of_one_format() {
    let mut seen = std::collections::BTreeSet::new();
    for calls in 0..30 {
        let disk = FaultDisk::new();
        let entries: Vec<Entry> = ["/a", "/b"]
            .map(|key| Entry { key: key.into(), value: "x".into(), revision: 5, created: 5, expires: 0 })
            .into();
        open::write_picture(&disk, LOG, 2, entries.iter(), 5, open::Stage::Checkpoint).unwrap();
        disk.sync_dir().unwrap();
        let raised = run(async {
            let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
            disk.pull_at(Pull::Calls(calls));
            store.raise().await
        });
        let store = Embedded::open(Arc::new(disk.plug(calls)), small()).unwrap_or_else(|e| panic!("{calls}: {e}"));
        assert_eq!(store.shared.read().live.len(), 2, "{calls}");
        assert!(raised.is_err() || store.format().has == 3, "{calls}");
        seen.insert(store.format().has);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn one_sync_a_batch() {
    let disk = FaultDisk::new();
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
        let before = disk.syncs();
        let keys: Vec<String> = (0..500).map(|i| format!("/k/{i}")).collect();
        let writes = keys.iter().map(|key| store.put(key, Stamped::plain("v"), Expect::Absent, None));
        for done in futures::future::join_all(writes).await {
            done.unwrap();
        }
        assert!(disk.syncs() - before < 250, "{}", disk.syncs() - before);
    });
}

#[test]
fn acknowledged_writes_survive_a_pulled_plug() {
    for seed in 0..60 {
        let disk = FaultDisk::new();
        let acknowledged = write_until_it_fails(&disk, 20 + seed * 7);
        let after = disk.plug(seed);
        let store = Embedded::open(Arc::new(after), small()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for (key, revision) in acknowledged {
            let found = run(store.get(&key)).unwrap();
            assert!(found.is_some_and(|e| e.revision >= revision), "seed {seed}: {key} at {revision} is lost");
        }
    }
}

/// Writes from several tasks until the disk fails; gives what was acknowledged.
fn write_until_it_fails(disk: &FaultDisk, calls: u64) -> Vec<(String, u64)> {
    run(async {
        let Ok(store) = Embedded::open(Arc::new(disk.clone()), small()) else {
            return Vec::new();
        };
        disk.pull_at(Pull::Calls(calls));
        let store = &store;
        let writers = (0..4).map(|w| async move {
            let mut done = Vec::new();
            for i in 0..2000 {
                let key = format!("/w{w}/{}", i % 20);
                match store.put(&key, Stamped::plain(vec![b'y'; 60 + i % 700]), Expect::Any, None).await {
                    Ok(revision) => done.push((key, revision)),
                    Err(_) => break,
                }
            }
            done
        });
        futures::future::join_all(writers).await.concat()
    })
}

#[test]
fn what_a_killed_process_left_is_durable_once_it_is_served() {
    // The next process finds writes, or a name of the log, that were never synced.  What it then
    // shows and answers must not go with the plug.
    for (point, nth) in [(crate::Point::CommitSync, 30), (crate::Point::CompactionName, 1)] {
        let disk = FaultDisk::new();
        {
            let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
            disk.pull_at(Pull::At(point, nth));
            let value = || Stamped::plain(vec![b'x'; 200]);
            while run(store.put("/k/1", value(), Expect::Any, None)).is_ok() {}
        }
        let disk = disk.kill();
        let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
        let seen = run(store.get("/k/1")).unwrap().unwrap().revision;
        let written = run(store.put("/k/2", Stamped::plain("x"), Expect::Any, None)).unwrap();
        for seed in 0..30 {
            let store = Embedded::open(Arc::new(disk.plug(seed)), Options::default()).unwrap();
            let at = |key| run(store.get(key)).unwrap().map(|e| e.revision);
            assert_eq!((at("/k/1"), at("/k/2")), (Some(seen), Some(written)), "{point:?}, seed {seed}");
        }
    }
}

#[test]
fn a_disk_that_lies_about_syncs_loses_writes() {
    let lost = (0..40).any(|seed| {
        let disk = FaultDisk::new();
        let acknowledged = run(async {
            let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
            disk.ignore_sync();
            for i in 0..20 {
                store.put(&format!("/k/{i}"), Stamped::plain("v"), Expect::Any, None).await.unwrap();
            }
            20
        });
        match Embedded::open(Arc::new(disk.plug(seed)), small()) {
            Ok(store) => run(store.range("/k/", "", 0)).unwrap().0.len() < acknowledged,
            Err(_) => true,
        }
    });
    assert!(lost, "the crash test would not notice a missing fsync");
}

/// A closed store with ten keys.
fn ten_keys() -> FaultDisk {
    let disk = FaultDisk::new();
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
        for i in 0..10 {
            store.put(&format!("/k/{i}"), Stamped::plain("some value"), Expect::Any, None).await.unwrap();
        }
    });
    disk
}

fn content(disk: &FaultDisk) -> Vec<u8> {
    let mut copy = Vec::new();
    disk.change(LOG, |data| copy = data.clone());
    copy
}

#[test]
fn damage_is_named_and_refused_wherever_it_is() {
    let whole = content(&ten_keys());
    for at in 0..whole.len() {
        let disk = ten_keys();
        disk.change(LOG, |data| data[at] ^= 0x10);
        match Embedded::open(Arc::new(disk), Options::default()) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("store.log") && text.contains("damaged"), "byte {at}: {text}");
            }
            // The mark at the end says nothing but that all before it is durable.
            Ok(store) => assert!(at > whole.len() - 14 && run(store.range("/k/", "", 0)).unwrap().0.len() == 10),
        }
    }
}

#[test]
fn damage_in_a_snapshot_is_named_to_a_few_kilobytes() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("snap");
    let entry = |i: u64| Entry {
        key: format!("/k/{i:04}").into(),
        value: vec![b'v'; 500].into(),
        revision: i + 1,
        created: i + 1,
        expires: 0,
    };
    let entries: Vec<Entry> = (0..4000).map(entry).collect();
    crate::write_picture_file(&snapshot, &entries, 4001).unwrap();
    let whole = std::fs::read(&snapshot).unwrap();
    assert_eq!(crate::read_picture(&snapshot).unwrap().0.len(), entries.len());
    for at in [20, 100_000, 1_500_000, whole.len() - 100] {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        std::fs::write(&snapshot, bad).unwrap();
        let error = verify(&snapshot).unwrap_err();
        let StoreError::Damaged { offset, what, .. } = &error else { panic!("{error}") };
        let from = *offset as usize;
        assert!(from <= at && at < from + 5000, "byte {at}: {error}");
        let to: usize = what.split("up to byte ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(at < to && to - from < 5000, "byte {at}: {error}");
    }
}

#[test]
fn missing_and_doubled_records_are_damage() {
    let whole = content(&ten_keys());
    let starts: Vec<usize> = (0..whole.len()).filter(|&i| whole[i..].starts_with(b"KFRM")).collect();
    assert_eq!(starts.len(), 12, "a picture, ten writes, a mark");
    for pair in starts[..11].windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let without = [&whole[..from], &whole[to..]].concat();
        let twice = [&whole[..to], &whole[from..]].concat();
        for bad in [without, twice] {
            let disk = ten_keys();
            disk.change(LOG, |data| *data = bad);
            let error = Embedded::open(Arc::new(disk), Options::default()).unwrap_err().to_string();
            assert!(error.contains("store.log is damaged"), "record at {from}: {error}");
        }
    }
}

#[test]
fn a_pipe_in_the_place_of_the_log_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join(LOG);
    assert!(std::process::Command::new("mkfifo").arg(&log).status().unwrap().success());
    let (said, heard) = std::sync::mpsc::channel();
    let folder = dir.path().to_path_buf();
    std::thread::spawn(move || {
        said.send(crate::read_picture(&log).unwrap_err().to_string()).unwrap();
        said.send(crate::verify(&log).unwrap_err().to_string()).unwrap();
        let disk = crate::DirDisk::open(&folder).unwrap();
        said.send(Embedded::open(Arc::new(disk), Options::default()).unwrap_err().to_string()).unwrap();
    });
    for _ in 0..3 {
        let error = heard.recv_timeout(Duration::from_secs(20)).expect("an answer");
        assert!(error.contains("store.log: it is no regular file"), "{error}");
    }
}

/// Some damage, as disks and people do it.
fn damage(data: &mut Vec<u8>, rng: &mut StdRng) {
    let at = rng.random_range(0..data.len());
    let to = (at + rng.random_range(1..1500)).min(data.len());
    match rng.random_range(0..6) {
        0 => data[at] ^= 1 << rng.random_range(0..8),
        1 => data.truncate(at),
        2 => data[at..to].fill(0),
        3 => rng.fill(&mut data[at..to]),
        4 => drop(data.drain(at..to)),
        _ => {
            let copy = data[at..to].to_vec();
            data.splice(at..at, copy);
        }
    }
}

#[test]
fn whatever_happens_to_a_log_only_what_was_once_true_is_served() {
    let disk = FaultDisk::new();
    let mut truths = std::collections::HashMap::new();
    let picture = |store: &Embedded| {
        let (entries, revision) = run(store.range("", "", 0)).unwrap();
        (revision, entries.into_iter().map(|e| (e.key.to_string(), e.value, e.revision)).collect::<Vec<_>>())
    };
    {
        let options = Options { min_log_bytes: 8 << 10, ..Options::default() };
        let store = Embedded::open(Arc::new(disk.clone()), options).unwrap();
        for i in 0..150u32 {
            truths.extend([picture(&store)]);
            let key = format!("/k/{}", i % 7);
            let gone = i % 13 == 12 && run(store.delete(&key, Expect::Any)).is_ok();
            if !gone {
                let value = vec![b'a' + (i % 26) as u8; 40 + i as usize];
                run(store.put(&key, Stamped::plain(value), Expect::Any, None)).unwrap();
            }
        }
        truths.extend([picture(&store)]);
    }
    let whole = content(&disk);
    let mut rng = StdRng::seed_from_u64(1);
    let (mut refused, mut served) = (0, 0);
    for round in 0..1500 {
        let mut data = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            damage(&mut data, &mut rng);
            if data.is_empty() {
                break;
            }
        }
        let copy = disk.plug(0);
        copy.change(LOG, |d| *d = data);
        match Embedded::open(Arc::new(copy), Options::default()) {
            Err(StoreError::Damaged { file, .. }) => {
                assert_eq!(file, LOG);
                refused += 1;
            }
            Err(error) => panic!("round {round}: {error}"),
            Ok(store) => {
                let (revision, entries) = picture(&store);
                assert_eq!(truths.get(&revision), Some(&entries), "round {round}: revision {revision}");
                served += 1;
            }
        }
    }
    assert!(refused > 500 && served > 50, "{refused} refused, {served} served");
}

#[test]
fn a_torn_tail_is_cut() {
    let whole = content(&ten_keys());
    let mut frame = crate::frame::FrameWriter::new();
    frame.delete(&"/long".repeat(300), 12);
    let frame = frame.finish();
    let zeroed = |from: usize, to: usize| {
        let mut data = [&whole[..], &frame[..]].concat();
        data[from..to].fill(0);
        data
    };
    let short = [&whole[..], &frame[..700]].concat();
    let sector = whole.len().next_multiple_of(512);
    for torn in [short, zeroed(sector, sector + 512), zeroed(whole.len(), sector), [&whole[..], &[0; 300]].concat()] {
        let disk = ten_keys();
        disk.change(LOG, |data| *data = torn);
        let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
        assert_eq!(run(store.range("/k/", "", 0)).unwrap().0.len(), 10);
        assert!(run(store.put("/k/new", Stamped::plain("two"), Expect::Absent, None)).is_ok());
        drop(store);
        assert!(Embedded::open(Arc::new(disk), Options::default()).is_ok());
    }
}

#[test]
fn a_log_cut_within_its_picture_is_damaged() {
    let disk = ten_keys();
    disk.change(LOG, |data| data.truncate(30));
    let error = Embedded::open(Arc::new(disk), Options::default()).unwrap_err().to_string();
    assert!(error.contains("ends before"), "{error}");
}

#[test]
fn a_removed_live_set_leaves_a_small_log() {
    let disk = FaultDisk::new();
    let options = Options { min_log_bytes: 64 << 10, ..Options::default() };
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), options).unwrap();
        for i in 0..300 {
            store.put(&format!("/k/{i}"), Stamped::plain(vec![b'v'; 1000]), Expect::Any, None).await.unwrap();
        }
        for i in 0..300 {
            store.delete(&format!("/k/{i}"), Expect::Any).await.unwrap();
        }
        // The next batch waits for the rewriting that the last one made due.
        store.put("/k/last", Stamped::plain("x"), Expect::Any, None).await.unwrap();
    });
    assert!(content(&disk).len() <= 64 << 10, "{}", content(&disk).len());
}

#[test]
fn changes_are_forgotten_after_a_time() {
    let options = Options { history_age: std::time::Duration::from_millis(50), ..Options::default() };
    let store = Embedded::open(Arc::new(FaultDisk::new()), options).unwrap();
    let first = run(store.put("/k/1", Stamped::plain("x"), Expect::Any, None)).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while store.compacted() < first {
        assert!(std::time::Instant::now() < deadline, "nothing was forgotten");
        run(store.put("/k/2", Stamped::plain("x"), Expect::Any, None)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(matches!(store.watch("/", first - 1), Err(StoreError::Compacted { .. })));
    assert!(run(store.get("/k/1")).unwrap().is_some());
}

#[test]
fn scrubbing_leaves_nothing_of_old_values() {
    let disk = FaultDisk::new();
    let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
    run(async {
        store.put("/k/1", Stamped::plain("an old value"), Expect::Any, None).await.unwrap();
        let last = store.put("/k/1", Stamped::plain("a new value"), Expect::Any, None).await.unwrap();
        store.scrub().await.unwrap();
        assert_eq!(store.compacted(), last);
    });
    let text = String::from_utf8_lossy(&content(&disk)).into_owned();
    assert!(text.contains("a new value") && !text.contains("an old value"));
}

#[test]
fn a_refusal_waits_for_what_it_rests_on() {
    // The second write is refused because of the first one, which is lost with the plug: so the
    // refusal must not have been told either.
    let disk = FaultDisk::new();
    let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
    disk.pull_at(Pull::At(crate::Point::CommitSync, 1));
    run(async {
        let writes = (0..8).map(|_| store.put("/k/1", Stamped::plain("x"), Expect::Absent, None));
        for done in futures::future::join_all(writes).await {
            assert!(matches!(done, Err(StoreError::Failed(_))), "{done:?}");
        }
    });
}

#[test]
fn snapshot_and_restore_raise_the_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (snapshot, home) = (dir.path().join("snap"), dir.path().join("store"));
    let revision = run(async {
        let store = Embedded::open(Arc::new(crate::DirDisk::open(&home).unwrap()), Options::default()).unwrap();
        store.put("/k/1", Stamped::plain("one"), Expect::Any, None).await.unwrap();
        store.snapshot(snapshot.clone()).await.unwrap();
        assert!(store.snapshot(snapshot.clone()).await.is_err(), "a snapshot is never written over");
        store.put("/k/2", Stamped::plain("two"), Expect::Any, None).await.unwrap()
    });
    assert_eq!(verify(&snapshot).unwrap().keys, 1);
    let restored = restore(&snapshot, &home).unwrap();
    assert!(restored > revision);
    let store = Embedded::open(Arc::new(crate::DirDisk::open(&home).unwrap()), Options::default()).unwrap();
    assert_eq!(store.revision(), restored);
    assert!(matches!(store.watch("/", revision), Err(StoreError::Compacted { .. })));
    assert_eq!(run(store.range("/k/", "", 0)).unwrap().0.len(), 1);
    assert!(matches!(crate::DirDisk::open(&home), Err(StoreError::Locked(_))));
    run(store.put("/k/3", Stamped::plain("three"), Expect::Any, None)).unwrap();
    drop(store);
    let (log, cut) = (home.join(crate::embedded::LOG), dir.path().join("cut"));
    assert_eq!(verify(&log).unwrap().tail(), None);
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 3]).unwrap();
    assert!(verify(&cut).unwrap().tail().expect("a tail").contains("bytes are no whole record"));
    // The same snapshot in an empty place: the clock keeps the revisions apart.
    assert!(restore(&snapshot, &dir.path().join("elsewhere")).unwrap() >= restored);
}

#[test]
fn a_snapshot_is_whole_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(Arc::new(FaultDisk::new()), small()).unwrap();
    let real = Embedded::open(Arc::new(crate::DirDisk::open(&dir.path().join("store")).unwrap()), small()).unwrap();
    for store in [&store, &real] {
        let on_disk = std::ptr::eq(store, &real);
        run(async {
            let writes = async {
                for i in 0..500u32 {
                    // Both keys are written one after the other: a picture has them equal, or one apart.
                    for key in ["/k/a", "/k/b"] {
                        store.put(key, Stamped::plain(i.to_string()), Expect::Any, None).await.unwrap();
                    }
                }
            };
            let snapshots = async {
                for n in 0..10 {
                    let path = dir.path().join(format!("snap-{n}"));
                    let revision = store.snapshot(path.clone()).await.unwrap();
                    if on_disk {
                        let (entries, at) = read_picture(&path).unwrap();
                        let number = |i: usize| std::str::from_utf8(&entries[i].value).unwrap().parse::<u32>().unwrap();
                        assert_eq!(at, revision);
                        assert!(entries.len() < 2 || number(0) - number(1) <= 1);
                        let mut short = std::fs::read(&path).unwrap();
                        short.pop();
                        std::fs::write(dir.path().join("short"), short).unwrap();
                        assert!(read_picture(&dir.path().join("short")).is_err(), "a snapshot cut short is refused");
                    }
                    tokio::task::yield_now().await;
                }
            };
            futures::join!(writes, snapshots);
        });
    }
}

#[test]
fn keys_expire() {
    static NOW: AtomicU64 = AtomicU64::new(1000);
    let disk = FaultDisk::new();
    let options = Options { clock: || NOW.load(Ordering::Relaxed), ..Options::default() };
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), options.clone()).unwrap();
        store.put("/e/1", Stamped::plain("x"), Expect::Any, Some(10)).await.unwrap();
        store.put("/e/2", Stamped::plain("x"), Expect::Any, Some(10)).await.unwrap();
        store.put("/e/2", Stamped::plain("x"), Expect::Any, Some(100)).await.unwrap();
        let mut changes = store.watch("/e/", store.revision()).unwrap();
        NOW.store(1011, Ordering::Relaxed);
        let gone = changes.recv().await.unwrap();
        assert_eq!((&*gone.key, gone.value.is_none()), ("/e/1", true));
    });
    let store = Embedded::open(Arc::new(disk), options).unwrap();
    assert_eq!(run(store.range("/e/", "", 0)).unwrap().0.len(), 1);
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let disk = FaultDisk::new();
    let mut expected = Vec::new();
    run(async {
        let clock: fn() -> u64 = || NOW.load(Ordering::Relaxed);
        static NOW: AtomicU64 = AtomicU64::new(1000);
        let store = Embedded::open(Arc::new(disk.clone()), Options { clock, ..small() }).unwrap();
        store.put("/lease", Stamped::plain("x"), Expect::Any, Some(10)).await.unwrap();
        disk.set_room(Some(3000));
        let mut refused = 0;
        for i in 0..100 {
            let key = format!("/a/{i:02}");
            match store.put(&key, Stamped::plain(vec![b'x'; 100]), Expect::Absent, None).await {
                Ok(revision) => expected.push((key, revision)),
                Err(StoreError::Full(what)) => {
                    assert!(what.contains(LOG), "{what}");
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(refused > 50 && expected.len() > 10, "{refused} refused");
        assert_eq!(store.failure(), None);
        assert_eq!(store.range("/a/", "", 0).await.unwrap().0.len(), expected.len());
        // What is due goes once there is room, and not before.
        NOW.store(2000, Ordering::Relaxed);
        assert!(store.put("/a/full", Stamped::plain(vec![0; 3000]), Expect::Any, None).await.is_err());
        assert!(store.get("/lease").await.unwrap().is_some());
        disk.set_room(None);
        let before = store.revision();
        let revision = store.put("/a/room", Stamped::plain("x"), Expect::Absent, None).await.unwrap();
        assert!(revision == before + 1 || revision == before + 2, "{before}, then {revision}");
        expected.push(("/a/room".into(), revision));
        store.put("/b", Stamped::plain("x"), Expect::Any, None).await.unwrap();
        assert!(store.get("/lease").await.unwrap().is_none());
    });
    let store = Embedded::open(Arc::new(disk.plug(1)), small()).unwrap();
    let (entries, _) = run(store.range("/a/", "", 0)).unwrap();
    let found: Vec<(String, u64)> = entries.iter().map(|e| (e.key.to_string(), e.revision)).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_disk_with_room_for_the_log_and_the_next_one_is_enough() {
    // The log at its largest, and the next one with all that comes in while it is written.
    for room in (5300..6000).step_by(100) {
        let disk = FaultDisk::new();
        let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
        disk.set_room(Some(room));
        let put =
            |i: usize| run(store.put(&format!("/a/{}", i % 5), Stamped::plain(vec![b'x'; 50]), Expect::Any, None));
        for i in 0..300 {
            put(i).unwrap_or_else(|error| panic!("{room} bytes, write {i}: {error}"));
        }
        assert!(store.counters().unwrap().rewrites > 3);
    }
}

#[test]
fn a_rewriting_that_finds_no_room_leaves_none_of_it() {
    let disk = FaultDisk::new();
    let store = Embedded::open(Arc::new(disk.clone()), small()).unwrap();
    for i in 0..20 {
        run(store.put(&format!("/a/{i}"), Stamped::plain(vec![b'x'; 100]), Expect::Any, None)).unwrap();
    }
    disk.set_room(Some(500));
    run(store.scrub()).unwrap_err();
    assert_eq!(disk.names(), [LOG]);
    disk.set_room(None);
    run(store.scrub()).unwrap();
}

#[test]
fn what_is_cut_off_a_file_leaves_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = crate::DirDisk::open(dir.path()).unwrap();
    let mut file = disk.create("f").unwrap();
    file.append(b"kept, torn").unwrap();
    file.cut(4).unwrap();
    file.append(b" and more").unwrap();
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"kept and more");
}
