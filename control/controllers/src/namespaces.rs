//! Empties and then removes namespaces that are being deleted: pods first, then everything else.
//!
//! ```text
//! deletionTimestamp set ─► pods deleted ─► all other kinds deleted ─► nothing left ─► finalizer `kubernetes` removed
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_client::Queue;
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::context::Context;
use crate::discovery::{self, Resource};
use crate::runner::{self, Outcome, Worked};

const FINALIZER: &str = "kubernetes";
const JSON: &str = "application/json";
/// Pods end within their grace; how often to look whether they have.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What emptying found.
#[derive(Debug, Default, PartialEq)]
struct Remains {
    discovery_failed: Option<String>,
    delete_failed: Vec<String>,
    /// How many objects of each resource are left.
    left: BTreeMap<String, usize>,
    /// How many objects hold each finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Remains {
    fn is_empty(&self) -> bool {
        self.discovery_failed.is_none() && self.delete_failed.is_empty() && self.left.is_empty()
    }
}

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<String>::default());
    context.caches.namespaces.subscribe({
        let queue = queue.clone();
        move |change| {
            let meta = &change.object().metadata;
            if meta.deletion_timestamp.is_some() {
                queue.add(meta.name.clone().unwrap_or_default());
            }
        }
    });
    let context = context.clone();
    runner::run("namespace", &queue, 2, move |name| {
        let context = context.clone();
        async move { work(&context, &name).await }
    });
}

async fn work(context: &Context, name: &str) -> Worked {
    let Some(namespace) = context.caches.namespaces.named("", name) else {
        return Ok(Outcome::Done);
    };
    let held = |n: &Namespace| {
        n.spec.as_ref().and_then(|s| s.finalizers.as_ref()).is_some_and(|f| f.iter().any(|f| f == FINALIZER))
    };
    if namespace.metadata.deletion_timestamp.is_none() || !held(&namespace) {
        return Ok(Outcome::Done);
    }
    let remains = empty(context, name).await?;
    let namespace = write_status(context, &namespace, &remains).await?;
    if !remains.is_empty() {
        return Ok(Outcome::After(LOOK_AGAIN));
    }
    let mut last = (*namespace).clone();
    if let Some(finalizers) = last.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    match context.client.replace_part("finalize", &last).await {
        Ok(_) => Ok(Outcome::Done),
        Err(failure) if failure.is_not_found() => Ok(Outcome::Done),
        Err(failure) => Err(failure.into()),
    }
}

async fn empty(context: &Context, namespace: &str) -> anyhow::Result<Remains> {
    let mut remains = Remains::default();
    let (resources, stale) = discovery::resources(&context.client).await?;
    if !stale.is_empty() {
        remains.discovery_failed =
            Some(format!("Discovery failed for some groups, {} failing: {}", stale.len(), stale.join(", ")));
    }
    let deletable = |r: &&Resource| r.namespaced && r.can("list") && r.can("delete");
    let is_pods = |r: &&Resource| r.group.is_empty() && r.plural == "pods";
    for pods in resources.iter().filter(deletable).filter(is_pods) {
        empty_resource(context, namespace, pods, &mut remains).await;
    }
    if !remains.left.is_empty() || !remains.delete_failed.is_empty() {
        return Ok(remains);
    }
    for resource in resources.iter().filter(deletable).filter(|r| !is_pods(r)) {
        // Events about what is deleted here come in until the end, and expire by themselves.
        empty_resource(context, namespace, resource, &mut remains).await;
    }
    Ok(remains)
}

/// Deletes all objects of one kind, and counts what stays for its finalizers.
async fn empty_resource(context: &Context, namespace: &str, resource: &Resource, remains: &mut Remains) {
    let path = resource.path(Some(namespace));
    let label = format!("{}.{}", resource.plural, resource.group).trim_end_matches('.').to_owned();
    let list = match names(context, &path).await {
        Ok(list) => list,
        Err(error) => return remains.delete_failed.push(format!("{label}: {error:#}")),
    };
    if list.is_empty() {
        return;
    }
    let options = br#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}"#;
    let result = if resource.can("deletecollection") {
        context.client.json(Method::DELETE, &path, JSON, options.to_vec()).await.map(drop)
    } else {
        delete_each(context, &path, &list, options).await
    };
    if let Err(failure) = result {
        remains.delete_failed.push(format!("{label}: {failure}"));
    }
    match names(context, &path).await {
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            for finalizer in left.iter().flat_map(|(_, finalizers)| finalizers) {
                *remains.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
            }
            remains.left.insert(label, left.len());
        }
        Err(error) => remains.delete_failed.push(format!("{label}: {error:#}")),
    }
}

async fn delete_each(
    context: &Context,
    path: &str,
    list: &[(String, Vec<String>)],
    options: &[u8],
) -> Result<(), control_client::Failure> {
    for (name, _) in list {
        let result = context.client.json(Method::DELETE, &format!("{path}/{name}"), JSON, options.to_vec()).await;
        match result {
            Err(failure) if !failure.is_not_found() => return Err(failure),
            _ => {}
        }
    }
    Ok(())
}

/// Names and finalizers of all objects under the path.
async fn names(context: &Context, path: &str) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    #[derive(serde::Deserialize)]
    struct Item {
        metadata: Meta,
    }
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Meta {
        name: String,
        finalizers: Vec<String>,
    }
    let params = kube::core::params::ListParams::default();
    let request = kube::core::Request::new(path).list_metadata(&params)?;
    let page: control_client::watch::Page<Item> = match context.client.raw().request(request).await {
        // The kind went away meanwhile, and its objects with it; or it cannot be listed.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => return Ok(Vec::new()),
        other => other?,
    };
    Ok(page.items.into_iter().map(|i| (i.metadata.name, i.metadata.finalizers)).collect())
}

async fn write_status(context: &Context, namespace: &Namespace, remains: &Remains) -> anyhow::Result<Arc<Namespace>> {
    let status = NamespaceStatus {
        phase: Some("Terminating".to_owned()),
        conditions: Some(conditions(namespace, remains, Timestamp::now())),
    };
    if namespace.status.as_ref() == Some(&status) {
        return Ok(Arc::new(namespace.clone()));
    }
    let patch = serde_json::json!({ "status": status });
    Ok(context.caches.namespaces.merge(Some("status"), namespace, &patch).await?)
}

fn conditions(namespace: &Namespace, remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let count = |map: &BTreeMap<String, usize>, verb: &str| {
        map.iter().map(|(name, n)| format!("{name} {verb} {n} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let rows: [(&str, Option<String>, &str, &str, &str); 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            remains.discovery_failed.clone(),
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            (!remains.delete_failed.is_empty()).then(|| {
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    remains.delete_failed.len(),
                    remains.delete_failed.join(", ")
                )
            }),
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            (!remains.left.is_empty())
                .then(|| format!("Some resources are remaining: {}", count(&remains.left, "has"))),
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            (!remains.finalizers.is_empty()).then(|| {
                format!("Some content in the namespace has finalizers remaining: {}", count(&remains.finalizers, "in"))
            }),
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    rows.into_iter()
        .map(|(kind, trouble, bad, good, fine)| {
            let status = if trouble.is_some() { "True" } else { "False" };
            let before = namespace
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .find(|c| c.type_ == kind && c.status == status);
            NamespaceCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(if trouble.is_some() { bad } else { good }.to_owned()),
                message: Some(trouble.unwrap_or_else(|| fine.to_owned())),
                last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let mut remains = Remains::default();
        remains.left.insert("pods".into(), 2);
        remains.finalizers.insert("x/y".into(), 1);
        let all = conditions(&Namespace::default(), &remains, Timestamp::UNIX_EPOCH);
        let of = |kind: &str| all.iter().find(|c| c.type_ == kind).unwrap();
        assert_eq!(of("NamespaceContentRemaining").status, "True");
        assert_eq!(
            of("NamespaceContentRemaining").message.as_deref(),
            Some("Some resources are remaining: pods has 2 resource instances")
        );
        assert_eq!(
            of("NamespaceFinalizersRemaining").message.as_deref(),
            Some("Some content in the namespace has finalizers remaining: x/y in 1 resource instances")
        );
        assert_eq!(of("NamespaceDeletionContentFailure").status, "False");
    }
}
