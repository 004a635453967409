//! ResourceQuotas: what a namespace uses, counted anew. Admission charges what is created;
//! this finds what is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_client::{Key, Queue, pods, quantity};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::context::Context;
use crate::discovery;
use crate::runner::{self, Outcome, Worked};

/// Kinds that are not watched here are counted this often.
const PERIOD: Duration = Duration::from_secs(60);
/// Changes within this time are counted once.
const SETTLE: Duration = Duration::from_millis(500);

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.caches.quotas.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    let wake = |queue: &Arc<Queue<Key>>| {
        let (queue, quotas) = (queue.clone(), context.caches.quotas.clone());
        move |namespace: Option<&String>| {
            for quota in quotas.in_namespace(namespace.map(String::as_str).unwrap_or_default()) {
                queue.add_after(Key::of(&*quota), SETTLE);
            }
        }
    };
    let woken = wake(&queue);
    context.caches.pods.subscribe(move |change| {
        let ended = |p: &Pod| pods::is_terminal(p);
        let same = change.old().is_some_and(|old| ended(old) == ended(change.object()))
            && matches!(change, control_client::Change::Updated(..));
        if !same {
            woken(change.object().metadata.namespace.as_ref());
        }
    });
    let woken = wake(&queue);
    context.caches.services.subscribe(move |change| woken(change.object().metadata.namespace.as_ref()));
    let woken = wake(&queue);
    context.caches.claims.subscribe(move |change| woken(change.object().metadata.namespace.as_ref()));
    let context = context.clone();
    runner::run("resourcequota", &queue, 1, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

/// Amounts of a pod by the names that quotas use, in thousandths.
fn pod_usage(pod: &Pod) -> BTreeMap<String, i64> {
    let mut used = BTreeMap::from([("pods".to_owned(), 1000)]);
    let spec = pods::spec(pod);
    for (prefix, of_init) in [("requests", true), ("limits", false)] {
        let list = |c: &k8s_openapi::api::core::v1::Container| {
            let resources = c.resources.clone().unwrap_or_default();
            (if of_init { resources.requests } else { resources.limits }).unwrap_or_default()
        };
        let mut sum: BTreeMap<String, i64> = BTreeMap::new();
        for container in &spec.containers {
            for (name, amount) in list(container) {
                *sum.entry(name).or_insert(0) += quantity::milli(&amount).unwrap_or(0);
            }
        }
        for container in spec.init_containers.iter().flatten() {
            let stays = container.restart_policy.as_deref() == Some("Always");
            for (name, amount) in list(container) {
                let amount = quantity::milli(&amount).unwrap_or(0);
                let entry = sum.entry(name).or_insert(0);
                *entry = if stays { *entry + amount } else { (*entry).max(amount) };
            }
        }
        for (name, amount) in sum {
            if prefix == "requests" {
                used.insert(name.clone(), amount);
            }
            used.insert(format!("{prefix}.{name}"), amount);
        }
    }
    used
}

fn in_scope(quota: &ResourceQuota, pod: &Pod) -> bool {
    let spec = quota.spec.clone().unwrap_or_default();
    let pod_spec = pods::spec(pod);
    let ends = pod_spec.active_deadline_seconds.is_some();
    let best_effort = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) == Some("BestEffort");
    let by_scope = |scope: &str| match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        _ => true,
    };
    let class = pod_spec.priority_class_name.clone().unwrap_or_default();
    let by_selector = spec.scope_selector.iter().flat_map(|s| s.match_expressions.iter().flatten()).all(|r| {
        let values = r.values.as_deref().unwrap_or_default();
        match (r.scope_name.as_str(), r.operator.as_str()) {
            ("PriorityClass", "In") => values.contains(&class),
            ("PriorityClass", "NotIn") => !values.contains(&class),
            ("PriorityClass", "Exists") => !class.is_empty(),
            ("PriorityClass", "DoesNotExist") => class.is_empty(),
            (scope, _) => by_scope(scope),
        }
    });
    spec.scopes.iter().flatten().all(|s| by_scope(s)) && by_selector
}

fn add(used: &mut BTreeMap<String, i64>, name: &str, amount: i64) {
    *used.entry(name.to_owned()).or_insert(0) += amount;
}

async fn usage(
    context: &Context,
    quota: &ResourceQuota,
    hard: &BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, i64>> {
    let namespace = quota.metadata.namespace.as_deref().unwrap_or_default();
    let caches = &context.caches;
    let mut used = BTreeMap::new();
    for pod in caches.pods.in_namespace(namespace) {
        if !pods::is_terminal(&pod) && in_scope(quota, &pod) {
            pod_usage(&pod).iter().for_each(|(name, amount)| add(&mut used, name, *amount));
        }
    }
    for service in caches.services.in_namespace(namespace) {
        add(&mut used, "services", 1000);
        let spec = service.spec.clone().unwrap_or_default();
        let kind = spec.type_.as_deref().unwrap_or_default();
        let ports = spec.ports.iter().flatten().filter(|p| p.node_port.is_some_and(|n| n > 0)).count() as i64;
        add(&mut used, "services.nodeports", ports * 1000);
        add(&mut used, "services.loadbalancers", i64::from(kind == "LoadBalancer") * 1000);
    }
    for claim in caches.claims.in_namespace(namespace) {
        let spec = claim.spec.clone().unwrap_or_default();
        let wanted = spec.resources.and_then(|r| r.requests).and_then(|r| r.get("storage").and_then(quantity::milli));
        let class = spec.storage_class_name.unwrap_or_default();
        for prefix in [String::new(), format!("{class}.storageclass.storage.k8s.io/")] {
            add(&mut used, &format!("{prefix}persistentvolumeclaims"), 1000);
            add(&mut used, &format!("{prefix}requests.storage"), wanted.unwrap_or(0));
        }
    }
    let to_count = |n: &&String| {
        matches!(n.as_str(), "secrets" | "configmaps" | "replicationcontrollers" | "resourcequotas")
            || n.starts_with("count/")
    };
    if hard.iter().any(|n| to_count(&n)) {
        let (resources, _) = discovery::resources(&context.client).await?;
        for name in hard.iter().filter(to_count) {
            let plain = name.trim_start_matches("count/");
            let (plural, group) = plain.split_once('.').unwrap_or((plain, ""));
            let Some(resource) = resources.iter().find(|r| r.plural == plural && r.group == group && r.namespaced)
            else {
                continue;
            };
            add(&mut used, name, count(context, &resource.path(Some(namespace))).await? * 1000);
        }
    }
    Ok(used)
}

async fn count(context: &Context, path: &str) -> anyhow::Result<i64> {
    let request = kube::core::Request::new(path).list_metadata(&kube::core::params::ListParams::default())?;
    let page: control_client::watch::Page<serde::de::IgnoredAny> = context.client.raw().request(request).await?;
    Ok(page.items.len() as i64)
}

/// Bytes are shown as bytes, all else in thousandths.
fn show(name: &str, milli: i64) -> Quantity {
    let bytes = name.ends_with("memory") || name.ends_with("storage");
    if bytes && milli % 1000 == 0 { quantity::from_bytes(milli / 1000) } else { quantity::from_milli(milli) }
}

async fn work(context: &Context, key: &Key) -> Worked {
    let Some(quota) = context.caches.quotas.get(key) else { return Ok(Outcome::Done) };
    let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
    let names: BTreeSet<String> = hard.keys().cloned().collect();
    let all = usage(context, &quota, &names).await?;
    let used: BTreeMap<String, Quantity> =
        names.iter().map(|n| (n.clone(), show(n, all.get(n).copied().unwrap_or(0)))).collect();
    let before = quota.status.clone().unwrap_or_default();
    let amounts =
        |m: &BTreeMap<String, Quantity>| m.iter().map(|(k, v)| (k.clone(), quantity::milli(v))).collect::<Vec<_>>();
    let same = before.hard.as_ref().is_some_and(|h| amounts(h) == amounts(&hard))
        && before.used.as_ref().is_some_and(|u| amounts(u) == amounts(&used));
    if !same {
        let mut updated = (*quota).clone();
        updated.status = Some(ResourceQuotaStatus { hard: Some(hard), used: Some(used) });
        match context.caches.quotas.replace_status(&updated).await {
            Err(failure) if failure.is_not_found() => return Ok(Outcome::Done),
            other => drop(other?),
        }
    }
    Ok(Outcome::After(PERIOD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

    #[test]
    fn pods_are_charged_by_requests_and_limits() {
        let container = Container {
            resources: Some(ResourceRequirements {
                requests: Some([("cpu".to_owned(), Quantity("100m".into()))].into()),
                limits: Some([("memory".to_owned(), Quantity("1Mi".into()))].into()),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        };
        let pod = Pod {
            spec: Some(PodSpec { containers: vec![container.clone(), container], ..PodSpec::default() }),
            ..Pod::default()
        };
        let used = pod_usage(&pod);
        assert_eq!((used["cpu"], used["requests.cpu"], used["limits.memory"]), (200, 200, (2 * 1000) << 20));
        assert_eq!(show("limits.memory", used["limits.memory"]).0, "2Mi");
    }
}
