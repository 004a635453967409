//! Fills the graph: from the caches of this process, and from a metadata watch of every other kind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use control_client::watch::{Scope, Sink, Versioned, follow};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Collector;
use super::graph::{Lean, LeanMeta};
use crate::discovery::{self, Resource};

const DEFINITIONS: &str = "customresourcedefinitions";
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A burst of new definitions is looked at once.
const SETTLE: Duration = Duration::from_millis(500);

impl Versioned for Lean {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// All kinds that are watched for the graph.
pub struct Monitors {
    collector: Arc<Collector>,
    running: HashMap<Resource, JoinHandle<()>>,
    cached: HashSet<(String, String)>,
    waiting: Arc<Waiting>,
    definitions: Arc<Notify>,
}

/// Counts the kinds whose first list has not come.
#[derive(Default)]
struct Waiting {
    open: AtomicUsize,
    changed: Notify,
}

struct Monitor {
    collector: Arc<Collector>,
    resource: Arc<Resource>,
    waiting: Arc<Waiting>,
    synced: std::sync::atomic::AtomicBool,
    definitions: Arc<Notify>,
}

impl Monitors {
    pub fn new(collector: Arc<Collector>) -> Self {
        Self {
            collector,
            running: HashMap::new(),
            cached: HashSet::new(),
            waiting: Arc::default(),
            definitions: Arc::default(),
        }
    }

    /// Starts what is new, ends what is gone.
    pub async fn refresh(&mut self) {
        let mut pause = FIRST_PAUSE;
        let (resources, stale) = loop {
            match discovery::resources(&self.collector.context.client).await {
                Ok(found) => break found,
                Err(error) => tracing::warn!("garbage collector: {error:#}; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        };
        let wanted: HashSet<Resource> = resources.into_iter().filter(is_collected).collect();
        if self.cached.is_empty() {
            self.use_caches(&wanted);
        }
        for resource in &wanted {
            let of_cache = self.cached.contains(&(resource.group.clone(), resource.plural.clone()));
            if !of_cache && !self.running.contains_key(resource) {
                self.watch(resource.clone());
            }
        }
        // A group whose server is silent for a moment is not gone.
        let is_gone =
            |r: &Resource| !wanted.contains(r) && !stale.iter().any(|s| s.starts_with(&format!("{}/", r.group)));
        let gone: Vec<Resource> = self.running.keys().filter(|r| is_gone(r)).cloned().collect();
        for resource in gone {
            if let Some(task) = self.running.remove(&resource) {
                task.abort();
            }
            let uids = self.collector.graph().of_resource(&resource);
            for uid in uids {
                let look = self.collector.graph().remove(&uid);
                self.collector.wake(look);
            }
        }
    }

    fn use_caches(&mut self, wanted: &HashSet<Resource>) {
        let find = |group: &str, plural: &str| {
            wanted.iter().find(|r| r.group == group && r.plural == plural).cloned().map(Arc::new)
        };
        let collector = self.collector.clone();
        let cached = &mut self.cached;
        self.collector.context.caches.each_whole(|group, plural| {
            let resource = find(group, plural)?;
            cached.insert((group.to_owned(), plural.to_owned()));
            let collector = collector.clone();
            Some(Box::new(move |meta, deleted| {
                let look = if deleted {
                    collector.graph().remove(meta.uid.as_deref().unwrap_or_default())
                } else {
                    collector.graph().upsert(&resource, &LeanMeta::of(meta))
                };
                collector.wake(look);
            }))
        });
    }

    fn watch(&mut self, resource: Resource) {
        self.waiting.open.fetch_add(1, Ordering::Relaxed);
        let monitor = Arc::new(Monitor {
            collector: self.collector.clone(),
            resource: Arc::new(resource.clone()),
            waiting: self.waiting.clone(),
            synced: false.into(),
            definitions: self.definitions.clone(),
        });
        let scope = Scope { path: resource.path(None), metadata_only: true, ..Scope::default() };
        let client = self.collector.context.client.raw().clone();
        let task = tokio::spawn(follow::<Lean>(client, scope, monitor as Arc<dyn Sink<Lean>>));
        self.running.insert(resource, task);
    }

    /// Waits for the first list of each kind.
    pub async fn synced(&self) {
        while self.waiting.open.load(Ordering::Relaxed) > 0 {
            self.waiting.changed.notified().await;
        }
    }

    /// Until definitions of kinds change, or the time is over.
    pub async fn pause(&self, longest: Duration) {
        tokio::select! {
            () = self.definitions.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(longest) => {}
        }
    }
}

fn is_collected(resource: &Resource) -> bool {
    // Events expire by themselves, and are many.
    resource.plural != "events"
        && resource.can("list")
        && resource.can("watch")
        && resource.can("delete")
        && !resource.kind.is_empty()
}

impl Monitor {
    fn changed(&self) {
        if self.resource.plural == DEFINITIONS {
            self.definitions.notify_one();
        }
    }
}

impl Sink<Lean> for Monitor {
    fn reset(&self, items: Vec<Lean>, _: u64) {
        let present: HashSet<&String> = items.iter().map(|i| &i.metadata.uid).collect();
        let before = self.collector.graph().of_resource(&self.resource);
        for uid in before.iter().filter(|uid| !present.contains(uid)) {
            let look = self.collector.graph().remove(uid);
            self.collector.wake(look);
        }
        for item in &items {
            let look = self.collector.graph().upsert(&self.resource, &item.metadata);
            self.collector.wake(look);
        }
        if !self.synced.swap(true, Ordering::Relaxed) {
            self.waiting.open.fetch_sub(1, Ordering::Relaxed);
            self.waiting.changed.notify_one();
        }
    }

    fn apply(&self, item: Lean) {
        let look = self.collector.graph().upsert(&self.resource, &item.metadata);
        self.collector.wake(look);
        self.changed();
    }

    fn delete(&self, item: Lean) {
        let look = self.collector.graph().remove(&item.metadata.uid);
        self.collector.wake(look);
        self.changed();
    }
}
