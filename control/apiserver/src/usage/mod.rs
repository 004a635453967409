//! `metrics.k8s.io`: what nodes and pods use, as metrics-server answers it, for `kubectl top` and autoscalers.
//!
//! Nothing is read before somebody asks. Then the kubelets in question are asked for their counters, and what was used
//! is the difference to the last time; where that is long ago they are asked twice, a second apart. An answer is good
//! for a while, so that many who ask cost as much as one.

mod scrape;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::usage::{GROUP, VERSION};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authn::now;
use crate::authn::view::items_at;
use crate::error::{ApiError, Result};
use crate::handlers::Scope;
use crate::object::Object;
use crate::request::Verb;
use crate::selector::Filter;
use crate::state::AppState;
use crate::streaming::backend;
use scrape::{NodeUsage, Scrape, Usage};

/// As long as this an answer of a kubelet, or that it gave none, is good: less than autoscalers wait between two looks.
const FRESH: Duration = Duration::from_secs(10);
/// Counters older than this say nothing of now.
const OLD: Duration = Duration::from_secs(120);
/// Between two questions where there is nothing to compare with.
const PAUSE: Duration = Duration::from_secs(1);
/// A kubelet that takes longer is left out.
const PATIENCE: Duration = Duration::from_secs(5);
/// Kubelets asked at one time, and the most that each may say.
const AT_ONCE: usize = 8;
const LARGEST: usize = 2 << 20;

/// What is known of the nodes' usage.
#[derive(Default)]
pub struct Usages(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Known>>>>);

/// What is known of one node.
#[derive(Default)]
struct Known {
    counters: Option<(Instant, Scrape)>,
    usage: Option<Arc<NodeUsage>>,
    /// When the kubelet was asked last.
    asked: Option<Instant>,
}

impl Usages {
    /// What a node and its pods use, if its kubelet says so.
    async fn of(&self, state: &AppState, node: &str) -> Option<Arc<NodeUsage>> {
        let known = self.known(state, node);
        // Whoever comes meanwhile gets the same answer.
        let mut known = known.lock().await;
        if known.asked.is_some_and(|at| at.elapsed() < FRESH) {
            return known.usage.clone();
        }
        let before = known.counters.take().filter(|(at, _)| at.elapsed() < OLD).map(|(_, scrape)| scrape);
        let measured = tokio::time::timeout(PATIENCE, measure(state, node, before)).await;
        let measured = measured.unwrap_or_else(|_| Err(ApiError::unavailable("it took too long to answer")));
        known.asked = Some(Instant::now());
        known.usage = match measured {
            Ok((counters, usage)) => {
                known.counters = Some((Instant::now(), counters));
                Some(Arc::new(usage))
            }
            Err(error) => {
                tracing::warn!("the kubelet of {node} does not say what it uses: {}", error.message);
                None
            }
        };
        known.usage.clone()
    }

    fn known(&self, state: &AppState, node: &str) -> Arc<tokio::sync::Mutex<Known>> {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if !all.contains_key(node) {
            all.retain(|name, _| state.registry.get("", "nodes", "", name).is_some());
        }
        all.entry(node.to_string()).or_default().clone()
    }
}

/// Asks a kubelet, twice where there is nothing to compare with.
async fn measure(state: &AppState, node: &str, before: Option<Scrape>) -> Result<(Scrape, NodeUsage)> {
    let before = match before {
        Some(before) => before,
        None => {
            let first = ask(state, node).await?;
            tokio::time::sleep(PAUSE).await;
            first
        }
    };
    let now = ask(state, node).await?;
    if now.failed {
        tracing::warn!("the kubelet of {node} could not read what its containers use");
    }
    let usage = now.since(&before);
    Ok((now, usage))
}

async fn ask(state: &AppState, node: &str) -> Result<Scrape> {
    let target = backend::kubelet(state, node)?;
    let request = Request::get("/metrics/resource").body(Empty::<Bytes>::new()).map_err(ApiError::internal)?;
    let response = backend::send(&target, request).await?;
    if !response.status().is_success() {
        return Err(backend::refusal(response).await);
    }
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| ApiError::unavailable(format!("its answer was not read: {error}")))?.to_bytes();
    Ok(Scrape::parse(&String::from_utf8_lossy(&body), Timestamp::now().as_millisecond()))
}

/// The items of a request: all that its selectors want, or the one that it names.
pub(crate) async fn items(scope: &Scope<'_>, filter: &Filter) -> Result<Vec<Value>> {
    let pods = scope.kind.plural == "pods";
    let objects: Vec<Arc<Object>> = if scope.info.verb == Verb::Get {
        let found = scope.state.registry.get("", &scope.kind.plural, scope.namespace(), &scope.info.name);
        vec![found.ok_or_else(|| ApiError::not_found("", &scope.kind.plural, &scope.info.name))?]
    } else {
        let mut all = scope.state.registry.list("", &scope.kind.plural, scope.collection());
        all.retain(|object| filter.matches(object));
        all
    };
    let wanted: Vec<(&Object, &str)> = objects
        .iter()
        .filter_map(|object| Some((&**object, if pods { running_on(object)? } else { &*object.name })))
        .collect();
    let usages = of_nodes(scope.state, wanted.iter().map(|(_, node)| node.to_string()).collect()).await;
    let item = |(object, node): &(&Object, &str)| {
        let usage = usages.get(*node)?;
        if pods { of_pod(object, usage) } else { of_node(object, usage) }
    };
    Ok(wanted.iter().filter_map(item).collect())
}

/// The node on which a pod runs, if it does; none of a cluster's many pods is parsed for it.
fn running_on(pod: &Object) -> Option<&str> {
    let shape = api::selector::offered("", "pods");
    pod.field(shape, "status.phase").filter(|phase| *phase == "Running")?;
    pod.field(shape, "spec.nodeName").filter(|node| !node.is_empty())
}

/// A kubelet that is not there would only be waited for.
fn is_ready(node: &Value) -> bool {
    items_at(node, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

async fn of_nodes(state: &AppState, mut names: Vec<String>) -> HashMap<String, Arc<NodeUsage>> {
    names.sort_unstable();
    names.dedup();
    names.retain(|name| state.registry.get("", "nodes", "", name).is_some_and(|node| is_ready(&node.value())));
    let each: Vec<_> = names.iter().map(|name| state.usages.of(state, name).boxed()).collect();
    // In the order of the names, however long each takes.
    let answers: Vec<_> = futures::stream::iter(each).buffered(AT_ONCE).collect().await;
    names.into_iter().zip(answers).filter_map(|(name, usage)| Some((name, usage?))).collect()
}

fn of_node(node: &Object, usage: &NodeUsage) -> Option<Value> {
    let usage = usage.node.as_ref()?;
    let mut item = head("NodeMetrics", node, usage);
    item["usage"] = amounts(usage);
    Some(item)
}

fn of_pod(pod: &Object, usage: &NodeUsage) -> Option<Value> {
    let containers = usage.pods.get(&(pod.namespace.to_string(), pod.name.to_string()))?;
    // The window of the whole is the shortest: that of a container which was started meanwhile.
    let mut item = head("PodMetrics", pod, containers.values().min_by_key(|usage| usage.window)?);
    item["containers"] =
        containers.iter().map(|(name, usage)| json!({"name": name, "usage": amounts(usage)})).collect();
    Some(item)
}

fn head(kind: &str, object: &Object, usage: &Usage) -> Value {
    let mut metadata = json!({"name": object.name, "creationTimestamp": api::time::format(now())});
    if !object.namespace.is_empty() {
        metadata["namespace"] = json!(object.namespace);
    }
    if !object.labels.is_empty() {
        metadata["labels"] = object.labels.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
    }
    json!({
        "kind": kind,
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": metadata,
        "timestamp": api::time::format(usage.at.div_euclid(1000)),
        "window": api::time::format_duration(i64::try_from(usage.window.as_nanos()).unwrap_or(i64::MAX)),
    })
}

fn amounts(usage: &Usage) -> Value {
    let memory = usage.memory_bytes;
    let memory = if memory.is_multiple_of(1024) { format!("{}Ki", memory / 1024) } else { memory.to_string() };
    json!({"cpu": format!("{}n", usage.nanocores), "memory": memory})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_have_upstreams_form() {
        let usage = |nanocores, memory_bytes, window| Usage {
            at: 1_700_000_000_999,
            window: Duration::from_secs(window),
            nanocores,
            memory_bytes,
        };
        let mut all = NodeUsage { node: Some(usage(2_000_000_000, 4097, 15)), pods: HashMap::new() };
        let containers = [("a".to_string(), usage(5, 8192, 15)), ("b".to_string(), usage(0, 0, 2))];
        all.pods.insert(("d".into(), "p".into()), containers.into());
        let object =
            |value: Value, shape: crate::object::Shape| Object::decode(value.to_string().into(), 1, shape).unwrap();
        let node = object(json!({"metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}}}), &[]);
        let mut item = of_node(&node, &all).unwrap();
        assert!(item["metadata"]["creationTimestamp"].is_string());
        api::meta::object_mut(&mut item["metadata"]).remove("creationTimestamp");
        let expected = json!({
            "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {"name": "n", "labels": {"a": "b"}},
            "timestamp": "2023-11-14T22:13:20Z", "window": "15s", "usage": {"cpu": "2000000000n", "memory": "4097"},
        });
        assert_eq!(item, expected);
        let pod = |name: &str, phase: &str, node: &str| {
            let metadata = json!({"name": name, "namespace": "d"});
            let value = json!({"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase}});
            object(value, api::selector::offered("", "pods"))
        };
        let item = of_pod(&pod("p", "Running", "n"), &all).unwrap();
        assert_eq!(item["metadata"]["namespace"], "d");
        assert_eq!((&item["kind"], &item["window"]), (&json!("PodMetrics"), &json!("2s")));
        assert_eq!(item["containers"][0], json!({"name": "a", "usage": {"cpu": "5n", "memory": "8Ki"}}));
        assert_eq!(of_pod(&pod("other", "Running", "n"), &all), None);
        assert_eq!(running_on(&pod("p", "Running", "n")), Some("n"));
        for (phase, node) in [("Succeeded", "n"), ("Pending", "n"), ("Running", "")] {
            assert_eq!(running_on(&pod("p", phase, node)), None, "{phase} {node}");
        }
    }
}
