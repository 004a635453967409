//! The garbage collector: objects go when their owners are gone, in the order that was asked for.
//!
//! The graph of all objects is filled from metadata alone: from the caches that are there
//! anyway, and from metadata watches of all other kinds, custom resources included.
//!
//! | deletion | what the server does | what happens here |
//! |---|---|---|
//! | background | removes the owner | dependents are deleted afterwards |
//! | foreground | finalizer `foregroundDeletion` | dependents first; then the finalizer goes |
//! | orphan | finalizer `orphan` | references to the owner go; then the finalizer |

mod act;
mod graph;
mod monitor;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use control_client::Queue;

use crate::context::Context;
use crate::runner;
use graph::Graph;

/// How often to look for new kinds, besides changes of definitions.
const REDISCOVER: Duration = Duration::from_secs(120);

/// The graph, and what is to be looked at.
pub struct Collector {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    queue: Arc<Queue<String>>,
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wake(&self, uids: Vec<String>) {
        for uid in uids {
            self.queue.add(uid);
        }
    }
}

pub fn start(context: &Arc<Context>) {
    let collector = Arc::new(Collector {
        context: context.clone(),
        graph: Mutex::new(Graph::default()),
        queue: Arc::new(Queue::default()),
    });
    tokio::spawn(async move {
        let mut monitors = monitor::Monitors::new(collector.clone());
        // Nothing is judged before all owners can be seen.
        monitors.refresh().await;
        monitors.synced().await;
        tracing::info!("garbage collector sees {} objects", collector.graph().len());
        let worker = collector.clone();
        runner::run("garbagecollector", &collector.queue, 4, move |uid| {
            let collector = worker.clone();
            async move { act::work(&collector, &uid).await }
        });
        loop {
            monitors.pause(REDISCOVER).await;
            monitors.refresh().await;
        }
    });
}
