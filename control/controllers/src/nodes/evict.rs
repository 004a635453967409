//! Deletes pods from nodes with NoExecute taints, when their tolerations end.

use std::sync::Arc;
use std::time::Duration;

use control_client::{Key, Queue, pods, taints};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

#[derive(Debug, PartialEq)]
enum Plan {
    Stay,
    EvictIn(i64),
    EvictNow,
}

fn plan(pod: &Pod, node: &Node, now: Timestamp) -> Plan {
    let all = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let spec = pods::spec(pod);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut first: Option<i64> = None;
    for taint in all.iter().filter(|t| t.effect == "NoExecute") {
        match stays_until(taint, tolerations, now) {
            Until::Never => return Plan::EvictNow,
            Until::Ever => {}
            Until::Second(second) => first = Some(first.map_or(second, |f| f.min(second))),
        }
    }
    match first {
        None => Plan::Stay,
        Some(second) if second <= now.as_second() => Plan::EvictNow,
        Some(second) => Plan::EvictIn(second - now.as_second()),
    }
}

enum Until {
    Never,
    Second(i64),
    Ever,
}

/// The shortest of the tolerations that match decides.
fn stays_until(taint: &Taint, tolerations: &[k8s_openapi::api::core::v1::Toleration], now: Timestamp) -> Until {
    let added = taint.time_added.as_ref().map_or(now, |t| t.0).as_second();
    let mut matching = tolerations.iter().filter(|t| taints::tolerates(t, taint)).peekable();
    if matching.peek().is_none() {
        return Until::Never;
    }
    match matching.filter_map(|t| t.toleration_seconds).min() {
        None => Until::Ever,
        Some(secs) if secs <= 0 => Until::Never,
        Some(secs) => Until::Second(added.saturating_add(secs)),
    }
}

fn has_no_execute(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.effect == "NoExecute")
}

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.caches.nodes.subscribe({
        let (queue, context) = (queue.clone(), context.clone());
        move |change| {
            let before = change.old().is_some_and(|n| has_no_execute(n));
            if !has_no_execute(change.object()) && !before {
                return;
            }
            let name = change.object().metadata.name.as_deref().unwrap_or_default();
            for pod in context.caches.pods.list() {
                if pods::node_name(&pod) == name {
                    queue.add(Key::of(&*pod));
                }
            }
        }
    });
    context.caches.pods.subscribe({
        let (queue, context) = (queue.clone(), context.clone());
        move |change| {
            let pod = change.object();
            let bound_now = change.old().is_none_or(|old| pods::node_name(old) != pods::node_name(pod));
            if bound_now && context.caches.nodes.named("", pods::node_name(pod)).is_some_and(|n| has_no_execute(&n)) {
                queue.add(Key::of(&**pod));
            }
        }
    });
    let context = context.clone();
    runner::run("taint-eviction", &queue, 2, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(pod) = context.caches.pods.get(key) else { return Ok(Outcome::Done) };
    let Some(node) = context.caches.nodes.named("", pods::node_name(&pod)) else { return Ok(Outcome::Done) };
    if pods::is_terminating(&pod) {
        return Ok(Outcome::Done);
    }
    match plan(&pod, &node, Timestamp::now()) {
        Plan::Stay => Ok(Outcome::Done),
        Plan::EvictIn(secs) => Ok(Outcome::After(Duration::from_secs(secs.max(1) as u64))),
        Plan::EvictNow => {
            evict(context, &pod).await?;
            Ok(Outcome::Done)
        }
    }
}

async fn evict(context: &Context, pod: &Pod) -> anyhow::Result<()> {
    let key = Key::of(pod);
    context.events.normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
    if !pods::is_terminal(pod) {
        let patch = serde_json::json!({"status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(Timestamp::now()),
        }]}});
        match context.caches.pods.strategic(Some("status"), pod, &patch).await {
            Err(failure) if !failure.is_not_found() => return Err(failure.into()),
            _ => {}
        }
    }
    context.caches.pods.delete(pod).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeSpec, PodSpec, Toleration};

    #[test]
    fn pods_go_when_their_toleration_ends() {
        let now = Timestamp::from_second(1000).unwrap();
        let taint = Taint {
            key: "k".into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(Timestamp::from_second(900).unwrap())),
            value: None,
        };
        let node =
            Node { spec: Some(NodeSpec { taints: Some(vec![taint]), ..NodeSpec::default() }), ..Node::default() };
        let cases: [(&[Option<i64>], Plan); 5] = [
            (&[], Plan::EvictNow),
            (&[None], Plan::Stay),
            (&[Some(300)], Plan::EvictIn(200)),
            (&[Some(300), Some(120)], Plan::EvictIn(20)),
            (&[Some(60)], Plan::EvictNow),
        ];
        for (seconds, wanted) in cases {
            let tolerations = seconds
                .iter()
                .map(|s| Toleration {
                    key: Some("k".into()),
                    operator: Some("Exists".into()),
                    toleration_seconds: *s,
                    ..Toleration::default()
                })
                .collect();
            let pod =
                Pod { spec: Some(PodSpec { tolerations: Some(tolerations), ..PodSpec::default() }), ..Pod::default() };
            assert_eq!(plan(&pod, &node, now), wanted, "{seconds:?}");
        }
    }
}
