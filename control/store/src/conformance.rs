//! What every engine must do.  Panics name what an engine got wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Change, Entry, Expect, Observer, Stamped, Store, StoreError};

/// Runs the whole suite; `make` gives an empty store each time.
pub async fn run(make: impl AsyncFn() -> Arc<dyn Store>) {
    compare_and_swap(make().await).await;
    other_revisions_do_not_match(make().await).await;
    stamps(make().await).await;
    ranges(make().await).await;
    large_values(make().await).await;
    watches(make().await).await;
    watches_are_ordered_whole_and_resumable(make().await).await;
    compaction(make().await).await;
    observers(make().await).await;
    observers_miss_nothing(make().await).await;
    concurrent_writers(make().await).await;
    keys_expire(make().await).await;
    closing(make().await).await;
}

fn value(text: &str) -> Stamped {
    Stamped::plain(text)
}

async fn compare_and_swap(store: Arc<dyn Store>) {
    let start = store.revision();
    let first = store.put("/a/1", value("x"), Expect::Absent, None).await.expect("create");
    assert!(first > start, "revisions grow");
    assert!(
        matches!(store.put("/a/1", value("y"), Expect::Absent, None).await, Err(StoreError::Mismatch)),
        "create twice"
    );
    let second = store.put("/a/1", value("y"), Expect::At(first), None).await.expect("update");
    assert!(
        matches!(store.put("/a/1", value("z"), Expect::At(first), None).await, Err(StoreError::Mismatch)),
        "stale update"
    );
    assert!(matches!(store.delete("/a/1", Expect::At(first)).await, Err(StoreError::Mismatch)), "stale delete");
    let entry = store.get("/a/1").await.expect("get").expect("there");
    assert_eq!((entry.revision, entry.created, &entry.value[..]), (second, first, &b"y"[..]));
    let gone = store.delete("/a/1", Expect::At(second)).await.expect("delete");
    assert!(gone > second && store.get("/a/1").await.expect("get").is_none());
    assert!(matches!(store.delete("/a/1", Expect::Any).await, Err(StoreError::Mismatch)), "delete twice");
    assert_eq!(store.revision(), gone);
    let huge = Stamped::plain(vec![0; crate::MAX_VALUE + 1]);
    assert!(matches!(store.put("/a/2", huge, Expect::Any, None).await, Err(StoreError::TooLarge { .. })));
}

async fn stamps(store: Arc<dyn Store>) {
    let stamped = Stamped { bytes: b"<>".to_vec(), stamp_at: 1 };
    let revision = store.put("/s", stamped, Expect::Any, None).await.expect("put");
    let entry = store.get("/s").await.expect("get").expect("there");
    assert_eq!(entry.value, format!("<{revision}>"));
}

async fn ranges(store: Arc<dyn Store>) {
    for key in ["/a/1", "/a/2", "/a/3", "/ab", "/b/1"] {
        store.put(key, value(key), Expect::Absent, None).await.expect("put");
    }
    let keys = |entries: &[Entry]| entries.iter().map(|e| e.key.to_string()).collect::<Vec<_>>();
    let (all, revision) = store.range("/a/", "", 0).await.expect("range");
    assert_eq!((keys(&all), revision), (vec!["/a/1".into(), "/a/2".into(), "/a/3".into()], store.revision()));
    let (page, _) = store.range("/a/", "/a/1", 1).await.expect("range");
    assert_eq!(keys(&page), ["/a/2"]);
    assert!(store.range("/c/", "", 0).await.expect("range").0.is_empty());
}

async fn watches(store: Arc<dyn Store>) {
    let first = store.put("/w/1", value("a"), Expect::Any, None).await.expect("put");
    let second = store.put("/w/1", value("b"), Expect::Any, None).await.expect("put");
    let mut changes = store.watch("/w/", first).expect("watch");
    store.put("/x/1", value("other"), Expect::Any, None).await.expect("put");
    let third = store.delete("/w/1", Expect::Any).await.expect("delete");
    let next = changes.recv().await.expect("change");
    assert_eq!((next.revision, next.value.as_deref()), (second, Some(&b"b"[..])), "history first");
    let next = changes.recv().await.expect("change");
    assert_eq!((next.revision, next.value), (third, None), "then what is new, of this prefix only");
}

async fn compaction(store: Arc<dyn Store>) {
    let first = store.put("/c/1", value("a"), Expect::Any, None).await.expect("put");
    let second = store.put("/c/1", value("b"), Expect::Any, None).await.expect("put");
    store.compact(second).await.expect("compact");
    assert!(matches!(store.watch("/c/", first), Err(StoreError::Compacted { .. })), "compacted changes are refused");
    assert!(store.watch("/c/", second).is_ok());
    assert_eq!(store.get("/c/1").await.expect("get").expect("there").revision, second, "live keys stay");
}

#[derive(Default)]
struct Picture(Mutex<(usize, Vec<Change>, u64)>);

impl Observer for Picture {
    fn load(&self, entries: Vec<Entry>, revision: u64) {
        let mut seen = self.0.lock().expect("no panic while held");
        seen.0 = entries.len();
        seen.2 = revision;
    }
    fn apply(&self, changes: &[Change], revision: u64) {
        let mut seen = self.0.lock().expect("no panic while held");
        seen.1.extend_from_slice(changes);
        seen.2 = revision;
    }
}

async fn observers(store: Arc<dyn Store>) {
    store.put("/o/1", value("a"), Expect::Any, None).await.expect("put");
    let picture = Arc::new(Picture::default());
    store.attach("/o/", picture.clone());
    assert!(store.fresh().await.expect("fresh") >= store.revision());
    store.put("/o/2", value("b"), Expect::Any, None).await.expect("put");
    let last = store.put("/p/1", value("c"), Expect::Any, None).await.expect("put");
    let seen = picture.0.lock().expect("no panic while held");
    assert_eq!((seen.0, seen.1.len(), seen.2), (1, 1, last), "an answered write has been observed");
}

async fn concurrent_writers(store: Arc<dyn Store>) {
    store.put("/n", value("0"), Expect::Any, None).await.expect("put");
    let count = |store: Arc<dyn Store>| async move {
        for _ in 0..25 {
            loop {
                let now = store.get("/n").await.expect("get").expect("there");
                let number: u64 = std::str::from_utf8(&now.value).expect("text").parse().expect("number");
                match store.put("/n", value(&(number + 1).to_string()), Expect::At(now.revision), None).await {
                    Ok(_) => break,
                    Err(StoreError::Mismatch) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    futures::future::join_all((0..4).map(|_| count(store.clone()))).await;
    assert_eq!(store.get("/n").await.expect("get").expect("there").value, "100");
}

async fn other_revisions_do_not_match(store: Arc<dyn Store>) {
    let first = store.put("/a/1", value("x"), Expect::Absent, None).await.expect("create");
    for wrong in [0, first - 1, first + 1, u64::MAX] {
        let put = store.put("/a/1", value("y"), Expect::At(wrong), None).await;
        assert!(matches!(put, Err(StoreError::Mismatch)), "update at {wrong}: {put:?}");
        assert!(
            matches!(store.delete("/a/1", Expect::At(wrong)).await, Err(StoreError::Mismatch)),
            "delete at {wrong}"
        );
        let absent = store.put("/a/2", value("y"), Expect::At(wrong), None).await;
        assert!(matches!(absent, Err(StoreError::Mismatch)), "update of no key at {wrong}: {absent:?}");
    }
    store.delete("/a/1", Expect::Any).await.expect("delete");
    let again = store.put("/a/1", value("z"), Expect::Absent, None).await.expect("create again");
    let entry = store.get("/a/1").await.expect("get").expect("there");
    assert_eq!((entry.revision, entry.created), (again, again), "a new key of an old name");
}

async fn large_values(store: Arc<dyn Store>) {
    let large = vec![b'x'; 1 << 20];
    store.put("/l/1", Stamped::plain(large.clone()), Expect::Any, None).await.expect("1 MiB");
    assert_eq!(store.get("/l/1").await.expect("get").expect("there").value, large);
    store.put("/l/2", value(""), Expect::Any, None).await.expect("nothing");
    assert_eq!(store.get("/l/2").await.expect("get").expect("there").value, "");
}

/// Writes to a few keys from several tasks; gives the revisions, in order.
async fn write_some(store: &Arc<dyn Store>, prefix: &str, writers: usize, each: usize) -> Vec<u64> {
    let write = |writer: usize| {
        let store = store.clone();
        let prefix = prefix.to_string();
        async move {
            let mut done = Vec::new();
            for i in 0..each {
                let key = format!("{prefix}{}", (writer + i) % 5);
                let bytes = format!("{writer}.{i}@").into_bytes();
                let stamped = Stamped { stamp_at: bytes.len(), bytes };
                done.push(store.put(&key, stamped, Expect::Any, None).await.expect("put"));
                if i % 7 == 6 {
                    match store.delete(&key, Expect::Any).await {
                        Ok(revision) => done.push(revision),
                        // Another task was faster.
                        Err(StoreError::Mismatch) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            done
        }
    };
    let mut all = futures::future::join_all((0..writers).map(write)).await.concat();
    all.sort_unstable();
    all
}

async fn revisions(changes: &mut crate::Changes, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let change = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("a change in time");
        let change = change.expect("the watch goes on");
        if let Some(value) = &change.value {
            let text = std::str::from_utf8(value).expect("text");
            assert!(text.ends_with(&format!("@{}", change.revision)), "{text} at {}", change.revision);
        }
        seen.push(change.revision);
    }
    seen
}

async fn watches_are_ordered_whole_and_resumable(store: Arc<dyn Store>) {
    let start = store.revision();
    let mut early = store.watch("/w/", start).expect("watch");
    let written = write_some(&store, "/w/", 4, 20).await;
    assert!(written.windows(2).all(|w| w[0] < w[1]), "each write has a revision of its own");
    assert_eq!(revisions(&mut early, written.len()).await, written, "a watch from before");
    // Resumed from any place, a watch gives what comes after it, no more and no less.
    for place in [0, 1, written.len() / 2, written.len() - 1] {
        let mut resumed = store.watch("/w/", written[place]).expect("resume");
        assert_eq!(revisions(&mut resumed, written.len() - place - 1).await, written[place + 1..]);
        assert!(resumed.try_recv().is_none(), "nothing twice");
    }
    let mut late = store.watch("/w/", store.fresh().await.expect("fresh")).expect("watch");
    let more = write_some(&store, "/w/", 2, 5).await;
    assert_eq!(revisions(&mut late, more.len()).await, more);
}

async fn observers_miss_nothing(store: Arc<dyn Store>) {
    let picture = Arc::new(Picture::default());
    let attach = async {
        // In the middle of the writing.
        while store.revision() < 20 {
            tokio::task::yield_now().await;
        }
        store.attach("/o/", picture.clone());
    };
    let (written, ()) = tokio::join!(write_some(&store, "/o/", 3, 20), attach);
    let seen = picture.0.lock().expect("no panic while held").1.iter().map(|c| c.revision).collect::<Vec<_>>();
    let from = written.len() - seen.len();
    assert_eq!(seen, written[from..], "from its load on, each change once and in order");
}

async fn keys_expire(store: Arc<dyn Store>) {
    store.put("/e/1", value("x"), Expect::Any, Some(2)).await.expect("put");
    let stays = store.put("/e/2", value("x"), Expect::Any, Some(1)).await.expect("put");
    store.put("/e/2", value("y"), Expect::At(stays), None).await.expect("a write without a time");
    let entry = |found: Option<Entry>| found.expect("there");
    assert!(entry(store.get("/e/1").await.expect("get")).expires > 0, "it is known when a key goes");
    assert_eq!(entry(store.get("/e/2").await.expect("get")).expires, 0);
    let mut changes = store.watch("/e/", store.revision()).expect("watch");
    let gone = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("in time").expect("a change");
    assert_eq!((&*gone.key, gone.value.is_none()), ("/e/1", true), "a key goes by itself");
    assert!(store.get("/e/1").await.expect("get").is_none());
    assert!(store.get("/e/2").await.expect("get").is_some(), "a write without a time takes the time away");
}

/// For engines that write their snapshots into the real file system.
pub async fn snapshots(store: Arc<dyn Store>) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("snapshot");
    write_some(&store, "/s/", 2, 10).await;
    store.put("/s/timed", value("x"), Expect::Any, Some(3600)).await.expect("put");
    let (before, _) = store.range("/", "", 0).await.expect("range");
    // A snapshot is taken while writes go on.
    let (taken, _) = tokio::join!(store.snapshot(file.clone()), write_some(&store, "/later/", 2, 10));
    let revision = taken.expect("snapshot");
    let (entries, at) = crate::read_picture(&file).expect("a whole snapshot");
    assert_eq!(at, revision);
    let same =
        |a: &Entry, b: &Entry| (&a.key, &a.value, a.revision, a.created) == (&b.key, &b.value, b.revision, b.created);
    let early: Vec<&Entry> = entries.iter().filter(|e| e.key.starts_with("/s/")).collect();
    assert!(early.len() == before.len() && early.iter().zip(&before).all(|(a, b)| same(a, b)), "as it was read");
    assert!(entries.iter().all(|e| e.revision <= revision), "one revision");
    assert!(entries.iter().all(|e| (e.expires > 0) == (&*e.key == "/s/timed")), "times are kept");
    assert!(store.snapshot(file).await.is_err(), "a file that exists is not overwritten");
}

async fn closing(store: Arc<dyn Store>) {
    store.put("/z/1", value("x"), Expect::Any, None).await.expect("put");
    let closed = store.clone();
    tokio::task::spawn_blocking(move || closed.close()).await.expect("no panic");
    assert!(matches!(store.put("/z/2", value("y"), Expect::Any, None).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.delete("/z/1", Expect::Any).await, Err(StoreError::Failed(_))));
    assert!(store.get("/z/1").await.expect("reads go on").is_some());
}
