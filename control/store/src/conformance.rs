//! What every engine must do.  Panics name what an engine got wrong.

use std::sync::{Arc, Mutex};

use crate::{Change, Entry, Expect, Observer, Stamped, Store, StoreError};

/// Runs the whole suite; `make` gives an empty store each time.
pub async fn run(make: impl AsyncFn() -> Arc<dyn Store>) {
    compare_and_swap(make().await).await;
    stamps(make().await).await;
    ranges(make().await).await;
    watches(make().await).await;
    compaction(make().await).await;
    observers(make().await).await;
    concurrent_writers(make().await).await;
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
