use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::{DirDisk, Embedded, FaultDisk, Options, conformance};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn engine(disk: &FaultDisk) -> Arc<dyn Store> {
    Arc::new(Embedded::open(Arc::new(disk.clone()), Options::default()).unwrap())
}

fn key(name: &str, byte: u8) -> Arc<Key> {
    Arc::new(Key::aesgcm(name, &[byte; 32]).unwrap())
}

/// Secrets sealed by the first of `keys`, or plain where there is none; plain values are read.
fn ring(keys: &[&Arc<Key>]) -> Keyring {
    let write = keys.first().map(|k| (*k).clone());
    let rule = Rule { prefixes: vec!["/core/secrets/".into()], write, plain: true };
    Keyring::new(vec![rule], keys.iter().map(|k| (*k).clone()).collect())
}

fn no_encoding(entry: &Entry) -> Result<Stamped> {
    Ok(Stamped::plain(entry.value.to_vec()))
}

fn has(disk: &FaultDisk, text: &str) -> bool {
    let mut found = false;
    for name in disk.names() {
        disk.change(&name, |data| found |= data.windows(text.len()).any(|w| w == text.as_bytes()));
    }
    found
}

#[test]
fn the_layer_passes_the_suite_of_the_engines() {
    let keys = [Key::from_file(&[1; 32]).unwrap(), Key::secretbox("s", &[1; 32]).unwrap()];
    for key in keys {
        let key = Arc::new(key);
        run(conformance::run(async || {
            let rule = Rule { prefixes: vec!["/".into()], write: Some(key.clone()), plain: false };
            let ring = Keyring::new(vec![rule], vec![key.clone()]);
            Arc::new(Sealed::open(engine(&FaultDisk::new()), ring).await.unwrap()) as Arc<dyn Store>
        }));
    }
}

#[test]
fn what_is_sealed_is_nowhere_plain() {
    let disk = FaultDisk::new();
    let single = || Keyring::single(Key::from_file(&[9; 32]).unwrap(), "/core/secrets/");
    run(async {
        let store = Sealed::open(engine(&disk), single()).await.unwrap();
        let hole = Stamped { bytes: b"hush-hush at ;".to_vec(), stamp_at: 13 };
        let revision = store.put("/core/secrets/a/b", hole, Expect::Any, None).await.unwrap();
        store.put("/core/pods/a/b", Stamped::plain("no secret"), Expect::Any, None).await.unwrap();
        let found = store.get("/core/secrets/a/b").await.unwrap().unwrap();
        assert_eq!(found.value, format!("hush-hush at {revision};"));
        store.snapshot("/elsewhere/snapshot".into()).await.unwrap();
        store.close();
        assert_eq!(disk.names(), ["/elsewhere/snapshot", "store.log"]);
        assert!(!has(&disk, "hush-hush") && has(&disk, "no secret") && has(&disk, "k8s:enc:xchacha20poly1305:v1:"));
    });
    run(async {
        let store = Sealed::open(engine(&disk), single()).await.unwrap();
        assert!(store.get("/core/secrets/a/b").await.unwrap().unwrap().value.starts_with(b"hush-hush"));
        assert_eq!(store.usage().into_values().collect::<Vec<_>>(), [1]);
        store.close();
        for wrong in [Keyring::default(), Keyring::single(Key::from_file(&[8; 32]).unwrap(), "/core/secrets/")] {
            let error = Sealed::open(engine(&disk), wrong).await.unwrap_err().to_string();
            assert!(error.contains("/core/secrets/a/b") && error.contains("is not given"), "{error}");
        }
    });
}

#[test]
fn a_store_without_identity_refuses_plain_values() {
    run(async {
        let inner = engine(&FaultDisk::new());
        inner.put("/core/secrets/a/b", Stamped::plain("planted"), Expect::Any, None).await.unwrap();
        let key = key("one", 1);
        let rule = Rule { prefixes: vec!["/core/secrets/".into()], write: Some(key.clone()), plain: false };
        let error = Sealed::open(inner, Keyring::new(vec![rule], vec![key])).await.unwrap_err().to_string();
        assert!(error.contains("/core/secrets/a/b") && error.contains("identity"), "{error}");
    });
}

#[test]
fn keys_are_rotated_under_load() {
    let disk = FaultDisk::new();
    let (one, two) = (key("one", 1), key("two", 2));
    run(async {
        let inner = engine(&disk);
        inner.put("/core/secrets/a/plain", Stamped::plain("from before"), Expect::Any, None).await.unwrap();
        let store = Sealed::open(inner.clone(), ring(&[&one])).await.unwrap();
        for i in 0..40 {
            let key = format!("/core/secrets/a/{i:02}");
            store.put(&key, Stamped::plain(format!("secret {i}")), Expect::Any, None).await.unwrap();
        }
        assert_eq!(store.usage(), Usage::from([("identity".into(), 1)]), "as at the start");
        let refused = store.reload(ring(&[&two])).await.unwrap_err().to_string();
        assert!(refused.contains("aesgcm:v1:one is not given"), "{refused}");

        store.reload(ring(&[&two, &one])).await.unwrap();
        assert_eq!(store.usage(), Usage::from([("identity".into(), 1), ("aesgcm:v1:one".into(), 40)]));
        let load = async {
            for i in 0..200 {
                let key = format!("/core/secrets/a/{:02}", i % 40);
                let now = store.get(&key).await.unwrap().unwrap();
                assert!(now.value.starts_with(b"secret"), "{:?}", now.value);
                // The rewriting may come between; a client reads again then.
                let written = store.put(&key, Stamped::plain(format!("secret {i}")), Expect::At(now.revision), None);
                assert!(matches!(written.await, Ok(_) | Err(StoreError::Mismatch)));
            }
        };
        let (rewritten, ()) = futures::join!(store.rewrite(no_encoding), load);
        assert!(rewritten.unwrap() > 0);
        assert_eq!(store.usage(), Usage::from([("aesgcm:v1:two".into(), 41)]));
        assert_eq!(store.rewrite(no_encoding).await.unwrap(), 0, "nothing is left to do");
        store.reload(ring(&[&two])).await.unwrap();
        store.close();
    });
    assert!(!has(&disk, "aesgcm:v1:one") && !has(&disk, "from before"), "the log is clear of the old key");
    run(async {
        let store = Sealed::open(engine(&disk), ring(&[&two])).await.unwrap();
        assert_eq!(store.range("/core/secrets/", "", 0).await.unwrap().0.len(), 41);
    });
}

#[test]
fn two_that_seal_by_different_keys_open_each_other_s_and_come_to_an_end() {
    let (one, two) = (key("one", 1), key("two", 2));
    run(async {
        let inner = engine(&FaultDisk::new());
        let before = Sealed::open(inner.clone(), ring(&[&one, &two])).await.unwrap();
        let after = Sealed::open(inner.clone(), ring(&[&two, &one])).await.unwrap();
        assert_eq!((before.keys()[0].as_str(), after.keys()[0].as_str()), ("aesgcm:v1:one", "aesgcm:v1:two"));
        for i in 0..40 {
            let (key, by) = (format!("/core/secrets/a/{i:02}"), if i % 2 == 0 { &before } else { &after });
            by.put(&key, Stamped::plain(format!("secret {i}")), Expect::Absent, None).await.unwrap();
        }
        let (here, there) = futures::join!(before.rewrite(no_encoding), after.rewrite(no_encoding));
        assert!(here.unwrap() + there.unwrap() > 0);
        for store in [&before, &after] {
            let (entries, _) = store.range("/core/secrets/", "", 0).await.unwrap();
            let whole = |(i, entry): (usize, &Entry)| entry.value == format!("secret {i}");
            assert_eq!((entries.len(), entries.iter().enumerate().all(whole)), (40, true));
        }

        after.rewrite(no_encoding).await.unwrap();
        assert!(!after.has_others());
        before.put("/core/secrets/a/00", Stamped::plain("again"), Expect::Any, None).await.unwrap();
        after.count().await.unwrap();
        assert!(after.has_others());
        assert_eq!(after.usage(), Usage::from([("aesgcm:v1:one".into(), 1), ("aesgcm:v1:two".into(), 39)]));
        before.reload(ring(&[&two, &one])).await.unwrap();
        before.rewrite(no_encoding).await.unwrap();
        after.count().await.unwrap();
        assert!(!after.has_others() && !before.has_others());
    });
}

#[test]
fn a_value_moved_to_another_key_is_not_served() {
    run(async {
        let inner = engine(&FaultDisk::new());
        let store = Sealed::open(inner.clone(), ring(&[&key("one", 1)])).await.unwrap();
        store.put("/core/secrets/a/b", Stamped::plain("b's own"), Expect::Any, None).await.unwrap();
        let stolen = inner.get("/core/secrets/a/b").await.unwrap().unwrap().value.to_vec();
        inner.put("/core/secrets/x/y", Stamped::plain(stolen), Expect::Any, None).await.unwrap();
        let error = store.get("/core/secrets/x/y").await.unwrap_err().to_string();
        assert!(error.contains("/core/secrets/x/y"), "{error}");
    });
}

#[test]
fn a_change_that_cannot_be_opened_ends_the_serving() {
    struct Nobody;
    impl Observer for Nobody {
        fn load(&self, _: Vec<Entry>, _: u64) {}
        fn apply(&self, _: &[Change], _: u64) {}
    }
    run(async {
        let inner = engine(&FaultDisk::new());
        let store = Sealed::open(inner.clone(), ring(&[&key("one", 1)])).await.unwrap();
        store.attach("/core/secrets/", Arc::new(Nobody));
        assert_eq!(store.failure(), None);
        let other = Sealed::open(inner, ring(&[&key("two", 2)])).await.unwrap();
        other.put("/core/secrets/a/b", Stamped::plain("x"), Expect::Any, None).await.unwrap();
        assert!(store.failure().unwrap().contains("aesgcm:v1:two"));
    });
    run(async {
        let inner = engine(&FaultDisk::new());
        let key = key("one", 1);
        let rule = Rule { prefixes: vec!["/core/secrets/".into()], write: Some(key.clone()), plain: false };
        let store = Sealed::open(inner.clone(), Keyring::new(vec![rule], vec![key])).await.unwrap();
        store.attach("/", Arc::new(Nobody));
        inner.put("/core/pods/a/b", Stamped::plain("fine"), Expect::Any, None).await.unwrap();
        assert_eq!(store.failure(), None);
        inner.put("/core/secrets/a/b", Stamped::plain("planted"), Expect::Any, None).await.unwrap();
        assert!(store.failure().unwrap().contains("stored plain"));
    });
}

#[test]
fn the_real_files_have_nothing_plain() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("store");
    run(async {
        let inner = Arc::new(Embedded::open(Arc::new(DirDisk::open(&home).unwrap()), Options::default()).unwrap());
        let store = Sealed::open(inner, ring(&[&key("one", 1)])).await.unwrap();
        store.put("/core/secrets/a/b", Stamped::plain("hush-hush"), Expect::Any, None).await.unwrap();
        store.snapshot(dir.path().join("snapshot")).await.unwrap();
        store.close();
    });
    let plain = |file: &Path| std::fs::read(file).unwrap().windows(9).any(|w| w == b"hush-hush");
    assert!(!plain(&home.join("store.log")) && !plain(&dir.path().join("snapshot")));
}
