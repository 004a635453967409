//! List, then watch, for ever: the one loop that fills every cache.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::core::Request;
use kube::core::WatchEvent;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde::de::DeserializeOwned;

const PAGE: u32 = 500;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A kind that the server does not know is asked for again after this long.
const UNKNOWN_KIND_PAUSE: Duration = Duration::from_secs(30);

/// Which objects to follow.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub path: String,
    pub fields: Option<String>,
    pub labels: Option<String>,
    /// Ask for metadata alone.
    pub metadata_only: bool,
}

/// What a followed object must tell.
pub trait Versioned {
    fn version(&self) -> &str;
}

impl<K: crate::Object> Versioned for K {
    fn version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }
}

/// Where the events go.
pub trait Sink<T>: Send + Sync {
    fn reset(&self, items: Vec<T>, version: u64);
    fn apply(&self, item: T);
    fn delete(&self, item: T);
}

/// One page of a list.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub struct Page<T> {
    #[serde(default)]
    pub metadata: PageMeta,
    // Empty lists of some servers are null.
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty")]
    pub items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMeta {
    #[serde(default)]
    pub resource_version: String,
    #[serde(default, rename = "continue")]
    pub next: String,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Follows the objects of the scope; returns only by being dropped.
pub async fn follow<T>(client: kube::Client, scope: Scope, sink: Arc<dyn Sink<T>>)
where
    T: Versioned + DeserializeOwned + Clone + Send + 'static,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match list::<T>(&client, &scope).await {
            Ok((items, version)) => {
                pause = FIRST_PAUSE;
                sink.reset(items, version.parse().unwrap_or(0));
                watch_from(&client, &scope, version, &*sink).await;
            }
            Err(error) if code(&error) == 404 => {
                tracing::warn!("{} is not served; asking again in {} s", scope.path, UNKNOWN_KIND_PAUSE.as_secs());
                sink.reset(Vec::new(), 0);
                tokio::time::sleep(UNKNOWN_KIND_PAUSE).await;
            }
            Err(error) => {
                report(&scope, "listing", &error, pause);
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// A first failure is usual while the server starts; only lasting trouble is worth a line.
fn report(scope: &Scope, doing: &str, error: &kube::Error, pause: Duration) {
    if pause > Duration::from_secs(1) {
        tracing::warn!("{doing} {} failed: {error}; trying again", scope.path);
    } else {
        tracing::debug!("{doing} {} failed: {error}; trying again", scope.path);
    }
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.8..1.2))
}

async fn list<T: DeserializeOwned>(client: &kube::Client, scope: &Scope) -> Result<(Vec<T>, String), kube::Error> {
    let request = Request::new(scope.path.clone());
    let mut params = ListParams {
        field_selector: scope.fields.clone(),
        label_selector: scope.labels.clone(),
        limit: Some(PAGE),
        ..ListParams::default()
    };
    let mut all = Vec::new();
    loop {
        let built = if scope.metadata_only { request.list_metadata(&params) } else { request.list(&params) };
        let page: Page<T> = client.request(built.map_err(kube::Error::BuildRequest)?).await?;
        all.extend(page.items);
        if page.metadata.next.is_empty() {
            return Ok((all, page.metadata.resource_version));
        }
        params.continue_token = Some(page.metadata.next);
    }
}

/// Watches until the version is too old to go on from.
async fn watch_from<T>(client: &kube::Client, scope: &Scope, mut version: String, sink: &dyn Sink<T>)
where
    T: Versioned + DeserializeOwned + Clone + Send + 'static,
{
    let params = WatchParams {
        field_selector: scope.fields.clone(),
        label_selector: scope.labels.clone(),
        ..WatchParams::default()
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let request = Request::new(scope.path.clone());
        let built = if scope.metadata_only {
            request.watch_metadata(&params, &version)
        } else {
            request.watch(&params, &version)
        };
        let built = match built {
            Ok(built) => built,
            Err(error) => {
                tracing::error!("building the watch of {} failed: {error}", scope.path);
                return;
            }
        };
        let result = match client.request_events::<T>(built).await {
            Ok(stream) => {
                let mut stream = std::pin::pin!(stream);
                loop {
                    match stream.try_next().await {
                        Ok(Some(event)) => match take(event, sink) {
                            Taken::At(at) => {
                                version = at;
                                pause = FIRST_PAUSE;
                            }
                            Taken::TooOld => return,
                            Taken::Failed(error) => break Err(error),
                        },
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                }
            }
            Err(error) => Err(error),
        };
        match result {
            // The server ends each watch after some minutes; that is no failure.
            Ok(()) => tokio::time::sleep(jitter(FIRST_PAUSE)).await,
            Err(error) if matches!(code(&error), 404 | 410) => return,
            Err(error) => {
                report(scope, "watching", &error, pause);
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

enum Taken {
    At(String),
    TooOld,
    Failed(kube::Error),
}

fn take<T: Versioned>(event: WatchEvent<T>, sink: &dyn Sink<T>) -> Taken {
    match event {
        WatchEvent::Added(new) | WatchEvent::Modified(new) => {
            let version = new.version().to_owned();
            sink.apply(new);
            Taken::At(version)
        }
        WatchEvent::Deleted(old) => {
            let version = old.version().to_owned();
            sink.delete(old);
            Taken::At(version)
        }
        WatchEvent::Bookmark(mark) => Taken::At(mark.metadata.resource_version),
        WatchEvent::Error(status) if status.code == 410 => Taken::TooOld,
        WatchEvent::Error(status) => Taken::Failed(kube::Error::Api(status)),
    }
}
