//! Follows all objects of a kind, whatever happens to the connection.

use futures::{Stream, StreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// One step of following a kind.
#[derive(Debug)]
pub enum Change<K> {
    /// Everything there is, after a (re)start of the watch.
    All(Vec<K>),
    /// An object was created or changed.
    Apply(K),
    /// An object is gone.
    Delete(K),
}

/// The objects of a kind as a stream that never ends: it reconnects with back-off and starts over with [`Change::All`].
/// `what` names the kind in logs.
pub fn follow<K>(api: Api<K>, config: watcher::Config, what: &'static str) -> impl Stream<Item = Change<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut gathered = Vec::new();
    watcher(api, config).default_backoff().filter_map(move |event| {
        let change = match event {
            Ok(watcher::Event::Init) => {
                gathered = Vec::new();
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                gathered.push(object);
                None
            }
            Ok(watcher::Event::InitDone) => Some(Change::All(std::mem::take(&mut gathered))),
            Ok(watcher::Event::Apply(object)) => Some(Change::Apply(object)),
            Ok(watcher::Event::Delete(object)) => Some(Change::Delete(object)),
            Err(error) => {
                tracing::warn!("watching {what}: {error}; trying again");
                None
            }
        };
        futures::future::ready(change)
    })
}
