//! PodDisruptionBudgets: how many pods may be disturbed now, as evictions ask.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_client::{Key, Queue, Store, owner, pods, selector};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

/// An eviction that was allowed and did not happen is forgotten after this long.
const EVICTION_SECS: i64 = 120;
const ALLOWED: &str = "DisruptionAllowed";

fn percent(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            (of * percent + 99).div_euclid(100)
        }
    }
}

/// How many pods there should be, by their controllers.
fn expected(context: &Context, all: &[Arc<Pod>]) -> i32 {
    let mut sizes = HashMap::new();
    let mut alone = 0;
    for pod in all {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(of) = owner::controller_of(&pod.metadata) else {
            alone += 1;
            continue;
        };
        let caches = &context.caches;
        let size = match of.kind.as_str() {
            "ReplicaSet" => {
                let set = caches.replica_sets.named(namespace, &of.name);
                let parent = set.as_ref().and_then(|s| owner::controller_of(&s.metadata)).cloned();
                let deployment = parent.and_then(|p| caches.deployments.named(namespace, &p.name));
                match deployment {
                    Some(d) => {
                        let uid = d.metadata.uid.clone().unwrap_or_default();
                        Some((uid, d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)))
                    }
                    None => set.map(|s| (of.uid.clone(), s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))),
                }
            }
            "StatefulSet" => caches
                .stateful_sets
                .named(namespace, &of.name)
                .map(|s| (of.uid.clone(), s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))),
            "ReplicationController" => caches
                .replication_controllers
                .named(namespace, &of.name)
                .map(|s| (of.uid.clone(), s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))),
            _ => None,
        };
        match size {
            Some((uid, size)) => drop(sizes.insert(uid, size)),
            None => alone += 1,
        }
    }
    alone + sizes.values().sum::<i32>()
}

fn status(
    budget: &PodDisruptionBudget,
    all: &[Arc<Pod>],
    expected_by_controllers: i32,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.clone().unwrap_or_default();
    let before = budget.status.clone().unwrap_or_default();
    let live: Vec<_> = all.iter().filter(|p| !pods::is_terminal(p)).collect();
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            (expected_by_controllers, (expected_by_controllers - percent(most, expected_by_controllers)).max(0))
        }
        (None, Some(IntOrString::Int(least))) => (live.len() as i32, *least),
        (None, Some(least)) => (expected_by_controllers, percent(least, expected_by_controllers)),
        (None, None) => (live.len() as i32, 0),
    };
    let mut evicted = before.disrupted_pods.unwrap_or_default();
    evicted.retain(|name, since| {
        let there = live.iter().any(|p| p.metadata.name.as_ref() == Some(name) && !pods::is_terminating(p));
        there && now.as_second() - since.0.as_second() < EVICTION_SECS
    });
    let healthy = live
        .iter()
        .filter(|p| pods::is_ready(p) && !pods::is_terminating(p))
        .filter(|p| !evicted.contains_key(p.metadata.name.as_deref().unwrap_or_default()))
        .count() as i32;
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let (word, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut conditions = before.conditions.unwrap_or_default();
    let since =
        conditions.iter().find(|c| c.type_ == ALLOWED && c.status == word).map(|c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != ALLOWED);
    conditions.push(Condition {
        type_: ALLOWED.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or(Time(now)),
    });
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
        disrupted_pods: Some(evicted).filter(|e| !e.is_empty()),
    }
}

/// For each budget the selector that it had, and the pods that this selects, with maybe some that it did: no budget
/// has to look at all pods of its namespace.
#[derive(Default)]
struct Members(Mutex<HashMap<Key, (LabelSelector, HashSet<Key>)>>);

impl Members {
    fn all(&self) -> MutexGuard<'_, HashMap<Key, (LabelSelector, HashSet<Key>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod that the budget selects, as the cache holds it already.
    fn note(&self, budget: &Key, pod: Key) {
        if let Some((_, members)) = self.all().get_mut(budget) {
            members.insert(pod);
        }
    }

    /// The pods that the budget selects now.
    fn of(&self, budget: &Key, wanted: &LabelSelector, pods: &Store<Pod>) -> Vec<Arc<Pod>> {
        // Held while the cache is read, so that a pod that comes meanwhile is noted after what is gone is left out.
        let mut all = self.all();
        let selects = |pod: &Arc<Pod>| selector::matches(wanted, pod.metadata.labels.as_ref());
        let found: Vec<Arc<Pod>> = match all.get(budget) {
            Some((known, members)) if known == wanted => {
                members.iter().filter_map(|key| pods.get(key)).filter(selects).collect()
            }
            _ => pods.in_namespace(&budget.namespace).into_iter().filter(selects).collect(),
        };
        let keys = found.iter().map(|pod| Key::of(&**pod)).collect();
        all.insert(budget.clone(), (wanted.clone(), keys));
        found
    }
}

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    let members = Arc::new(Members::default());
    context.caches.budgets.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    context.caches.pods.subscribe({
        let (queue, members, budgets) = (queue.clone(), members.clone(), context.caches.budgets.clone());
        move |change| {
            let meta = &change.object().metadata;
            for budget in budgets.in_namespace(meta.namespace.as_deref().unwrap_or_default()) {
                let selects = |labels| selector_of(&budget).is_some_and(|s| selector::matches(s, labels));
                let before = change.old().is_some_and(|old| selects(old.metadata.labels.as_ref()));
                if before || selects(meta.labels.as_ref()) {
                    let key = Key::of(&*budget);
                    members.note(&key, Key::of(&**change.object()));
                    queue.add(key);
                }
            }
        }
    });
    let context = context.clone();
    runner::run("disruption", &queue, 1, move |key| {
        let (context, members) = (context.clone(), members.clone());
        async move { work(&context, &members, &key).await }
    });
}

fn selector_of(budget: &PodDisruptionBudget) -> Option<&LabelSelector> {
    budget.spec.as_ref().and_then(|spec| spec.selector.as_ref())
}

async fn work(context: &Context, members: &Members, key: &Key) -> Worked {
    let Some(budget) = context.caches.budgets.get(key) else {
        members.all().remove(key);
        return Ok(Outcome::Done);
    };
    let Some(wanted) = selector_of(&budget) else { return Ok(Outcome::Done) };
    let all = members.of(key, wanted, &context.caches.pods);
    let now = Timestamp::now();
    let status = status(&budget, &all, expected(context, &all), now);
    let waits = status.disrupted_pods.as_ref().is_some_and(|d| !d.is_empty());
    if budget.status.as_ref() != Some(&status) {
        let mut updated = (*budget).clone();
        updated.status = Some(status);
        match context.caches.budgets.replace_status(&updated).await {
            Err(failure) if failure.is_not_found() => return Ok(Outcome::Done),
            other => drop(other?),
        }
    }
    Ok(Outcome::after_secs(waits.then_some(EVICTION_SECS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;

    #[test]
    fn budgets_count_healthy_pods() {
        let pod = |name: &str, ready: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.status = Some(PodStatus {
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: ready.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            });
            Arc::new(pod)
        };
        let all = [pod("a", "True"), pod("b", "True"), pod("c", "False")];
        let int = |n| Some(IntOrString::Int(n));
        let text = |t: &str| Some(IntOrString::String(t.into()));
        let cases =
            [(int(1), None, 1), (int(2), None, 0), (text("50%"), None, 0), (None, int(1), 0), (None, text("50%"), 1)];
        for (min_available, max_unavailable, allowed) in cases {
            let budget = PodDisruptionBudget {
                spec: Some(PodDisruptionBudgetSpec { min_available, max_unavailable, ..Default::default() }),
                ..PodDisruptionBudget::default()
            };
            let got = status(&budget, &all, 3, Timestamp::UNIX_EPOCH);
            assert_eq!(got.disruptions_allowed, Some(allowed), "{:?}", budget.spec);
        }
    }

    #[tokio::test]
    async fn a_budget_keeps_the_pods_that_it_selects() {
        let nowhere = kube::Client::try_from(kube::Config::new(http::Uri::from_static("http://127.0.0.1:9"))).unwrap();
        let pods = Store::new(control_client::Client::new(nowhere, "test"), pods::trim);
        let put = |name: &str, app: &str, version: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.metadata.namespace = Some("n".into());
            pod.metadata.resource_version = Some(version.into());
            pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
            Key::of(&*pods.absorb(pod))
        };
        let wanted = |app: &str| LabelSelector {
            match_labels: Some([("app".to_owned(), app.to_owned())].into()),
            ..LabelSelector::default()
        };
        let (members, budget) = (Members::default(), Key::new("n", "b"));
        let found = |app: &str| {
            let found = members.of(&budget, &wanted(app), &pods);
            found.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<std::collections::BTreeSet<_>>()
        };
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        members.note(&budget, put("a", "web", "1"));
        put("x", "other", "2");
        assert_eq!(found("web"), names(&["a"]), "the first look is at all");
        members.note(&budget, put("b", "web", "3"));
        assert_eq!(found("web"), names(&["a", "b"]));
        put("a", "other", "4");
        assert_eq!(found("web"), names(&["b"]), "it is no longer selected");
        members.note(&budget, put("a", "web", "5"));
        assert_eq!(found("web"), names(&["a", "b"]));
        assert_eq!(found("other"), names(&["x"]), "another selector looks at all anew");
        assert_eq!(found("web"), names(&["a", "b"]));
    }
}
