use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{FaultDisk, conformance};

fn small() -> Options {
    Options { min_log_bytes: 4096, ..Options::default() }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

#[test]
fn passes_the_suite() {
    run(conformance::run(|| Arc::new(Embedded::open(Arc::new(FaultDisk::new()), small()).unwrap()) as Arc<dyn Store>));
}

#[test]
fn passes_the_suite_on_a_real_directory() {
    let dir = tempfile::tempdir().unwrap();
    let n = AtomicU64::new(0);
    run(conformance::run(|| {
        let path = dir.path().join(n.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(Embedded::open(Arc::new(crate::DirDisk::open(&path).unwrap()), Options::default()).unwrap())
            as Arc<dyn Store>
    }));
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
        disk.fail_after(calls);
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

#[test]
fn damage_before_the_tail_is_named_and_refused() {
    let disk = FaultDisk::new();
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
        for i in 0..10 {
            store.put(&format!("/k/{i}"), Stamped::plain("some value"), Expect::Any, None).await.unwrap();
        }
    });
    disk.change(LOG, |data| data[100] ^= 1);
    let error = Embedded::open(Arc::new(disk), Options::default()).unwrap_err().to_string();
    assert!(error.contains("store.log") && error.contains("damaged"), "{error}");
}

#[test]
fn a_torn_tail_is_cut() {
    let disk = FaultDisk::new();
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap();
        store.put("/k/1", Stamped::plain("one"), Expect::Any, None).await.unwrap();
    });
    disk.change(LOG, |data| data.extend_from_slice(b"KFRM\x40\0\0\0half a frame"));
    let store = Embedded::open(Arc::new(disk), Options::default()).unwrap();
    assert!(run(store.get("/k/1")).unwrap().is_some());
    assert!(run(store.put("/k/2", Stamped::plain("two"), Expect::Absent, None)).is_ok());
}

#[test]
fn sealed_values_are_not_in_the_file() {
    let disk = FaultDisk::new();
    let cipher = Arc::new(crate::Cipher::new(&[9; 32], vec!["/core/secrets/".into()]).unwrap());
    let options = Options { cipher: Some(cipher), ..Options::default() };
    run(async {
        let store = Embedded::open(Arc::new(disk.clone()), options.clone()).unwrap();
        store.put("/core/secrets/a/b", Stamped::plain("hush-hush"), Expect::Any, None).await.unwrap();
    });
    disk.change(LOG, |data| assert!(!data.windows(9).any(|w| w == b"hush-hush")));
    let store = Embedded::open(Arc::new(disk.clone()), options).unwrap();
    assert_eq!(run(store.get("/core/secrets/a/b")).unwrap().unwrap().value, "hush-hush");
    drop(store);
    let error = Embedded::open(Arc::new(disk), Options::default()).unwrap_err().to_string();
    assert!(error.contains("/core/secrets/a/b"), "{error}");
}

#[test]
fn snapshot_and_restore_raise_the_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (snapshot, home) = (dir.path().join("snap"), dir.path().join("store"));
    let revision = run(async {
        let store = Embedded::open(Arc::new(crate::DirDisk::open(&home).unwrap()), Options::default()).unwrap();
        store.put("/k/1", Stamped::plain("one"), Expect::Any, None).await.unwrap();
        store.snapshot(snapshot.clone()).await.unwrap();
        store.put("/k/2", Stamped::plain("two"), Expect::Any, None).await.unwrap()
    });
    assert_eq!(verify(&snapshot, None).unwrap().keys, 1);
    assert!(restore(&snapshot, &home, None).unwrap() > revision);
    let store = Embedded::open(Arc::new(crate::DirDisk::open(&home).unwrap()), Options::default()).unwrap();
    assert!(store.revision() > revision);
    assert!(matches!(store.watch("/", revision), Err(StoreError::Compacted { .. })));
    assert_eq!(run(store.range("/k/", "", 0)).unwrap().0.len(), 1);
    assert!(matches!(crate::DirDisk::open(&home), Err(StoreError::Locked(_))));
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
