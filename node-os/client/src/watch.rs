//! Follows all objects of a kind, whatever happens to the connection.

use crate::News;
use futures::{Stream, StreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a watch that failed is left alone: longer each time, and as much again by chance. Not long at most: an API
/// server that was away comes back with a 410, which is one failure more, and until the list that follows a node works
/// by what was true before.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(2)];

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
    let (mut gathered, mut news) = (Vec::new(), News::default());
    watcher(api, config).backoff(pauses()).filter_map(move |event| {
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
                let why = error.to_string();
                if news.is(&why, Instant::now()) {
                    tracing::warn!("watching {what}: {why}; trying again");
                }
                None
            }
        };
        futures::future::ready(change)
    })
}

fn pauses() -> watcher::ExponentialBackoff {
    let [first, most] = PAUSES;
    let pauses = backon::ExponentialBuilder::default().with_min_delay(first).with_max_delay(most);
    pauses.with_jitter().without_max_times().into()
}

/// Notes a change in a map keyed by `namespace/name`; true if the map now holds everything of the kind.
/// `managedFields`, often half of an object, are not kept.
pub fn apply<K: Resource>(objects: &mut BTreeMap<String, K>, change: Change<K>) -> bool {
    let slim = |mut object: K| {
        let meta = object.meta_mut();
        meta.managed_fields = None;
        let key = format!("{}/{}", meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        (key, object)
    };
    match change {
        Change::All(all) => {
            *objects = all.into_iter().map(slim).collect();
            return true;
        }
        Change::Apply(object) => {
            let (key, object) = slim(object);
            objects.insert(key, object);
        }
        Change::Delete(object) => {
            objects.remove(&slim(object).0);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_long_absence_the_pause_is_short() {
        let pauses: Vec<Duration> = pauses().take(100).collect();
        assert_eq!(pauses.len(), 100, "it never gives up");
        assert!(pauses.iter().all(|pause| *pause <= 2 * PAUSES[1]) && pauses[0] < pauses[99], "{pauses:?}");
    }
}
