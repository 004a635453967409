//! Looks at one object and does what its owners and finalizers demand.

use std::sync::Arc;

use anyhow::Context as _;
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::Collector;
use super::graph::{FOREGROUND, Lean, LeanMeta, Node, ORPHAN};
use crate::discovery::{self, Resource};
use crate::runner::{Outcome, Worked};

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

/// How an owner stands.
#[derive(Debug, PartialEq)]
enum Standing {
    Solid,
    /// Gone.
    Dangling,
    /// There, but only until its dependents are gone.
    Waiting,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Keep,
    /// Keep the object without these owners, by uid.
    Drop(Vec<String>),
    Delete {
        foreground: bool,
    },
}

fn judge(standings: &[(String, Standing)], has_dependents: bool) -> Verdict {
    let lost: Vec<String> =
        standings.iter().filter(|(_, s)| *s != Standing::Solid).map(|(uid, _)| uid.clone()).collect();
    if lost.is_empty() {
        return Verdict::Keep;
    }
    if lost.len() < standings.len() {
        return Verdict::Drop(lost);
    }
    let waited_for = standings.iter().any(|(_, s)| *s == Standing::Waiting);
    Verdict::Delete { foreground: waited_for && has_dependents }
}

fn path(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}/{name}", resource.path(resource.namespaced.then_some(namespace)))
}

pub async fn work(collector: &Collector, uid: &str) -> Worked {
    let Some(node) = collector.graph().get(uid).cloned() else { return Ok(Outcome::Done) };
    if node.orphans {
        orphan(collector, uid, &node).await?;
        return Ok(Outcome::Done);
    }
    if node.waits_for_dependents {
        let blocking = collector.graph().blocking(uid);
        if blocking.is_empty() {
            drop_finalizer(collector, uid, &node, FOREGROUND).await?;
        } else {
            collector.wake(blocking);
        }
        return Ok(Outcome::Done);
    }
    if node.deleting || node.owners.is_empty() {
        return Ok(Outcome::Done);
    }
    if is_settled(collector, &node) {
        return Ok(Outcome::Done);
    }
    // What the cache says may be a moment old: nothing is deleted by it alone.
    let Some(live) = live(collector, &node, uid).await? else { return Ok(Outcome::Done) };
    if live.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let mut standings = Vec::new();
    for owner in &live.owner_references {
        standings.push((owner.uid.clone(), standing(collector, &node, owner).await?));
    }
    let has_dependents = collector.graph().has_dependents(uid);
    match judge(&standings, has_dependents) {
        Verdict::Keep => {}
        Verdict::Drop(lost) => {
            let left: Vec<_> = live.owner_references.iter().filter(|o| !lost.contains(&o.uid)).collect();
            let patch = serde_json::json!({"metadata": {
                "uid": uid,
                "resourceVersion": live.resource_version,
                "ownerReferences": left,
            }});
            send(collector, Method::PATCH, &node, MERGE, &patch).await?;
        }
        Verdict::Delete { foreground } => {
            let policy = match () {
                () if live.finalizers.iter().any(|f| f == ORPHAN) => "Orphan",
                () if foreground || live.finalizers.iter().any(|f| f == FOREGROUND) => "Foreground",
                () => "Background",
            };
            tracing::debug!("deleting {} {}/{}: its owners are gone", node.resource.kind, node.namespace, node.name);
            let options = serde_json::json!({
                "kind": "DeleteOptions",
                "apiVersion": "v1",
                "propagationPolicy": policy,
                "preconditions": {"uid": uid, "resourceVersion": live.resource_version},
            });
            send(collector, Method::DELETE, &node, JSON, &options).await?;
        }
    }
    Ok(Outcome::Done)
}

/// All owners are there and stay; nothing need be asked.
fn is_settled(collector: &Collector, node: &Node) -> bool {
    let graph = collector.graph();
    node.owners.iter().all(|owner| {
        graph.same_object(owner, &node.namespace) && graph.get(&owner.uid).is_some_and(|n| !n.waits_for_dependents)
    })
}

/// Sends a change; an object that is gone already needs none.
async fn send(
    collector: &Collector,
    method: Method,
    node: &Node,
    content_type: &str,
    body: &serde_json::Value,
) -> anyhow::Result<()> {
    let path = path(&node.resource, &node.namespace, &node.name);
    match collector.context.client.json(method, &path, content_type, serde_json::to_vec(body)?).await {
        Err(failure) if !failure.is_not_found() => Err(failure.into()),
        _ => Ok(()),
    }
}

/// The object's metadata on the server now; none where it is gone or another one.
async fn live(collector: &Collector, node: &Node, uid: &str) -> anyhow::Result<Option<LeanMeta>> {
    let path = path(&node.resource, &node.namespace, &node.name);
    let found = get(collector, &path).await?.filter(|meta| meta.uid == uid);
    if found.is_none() {
        let look = collector.graph().remove(uid);
        collector.wake(look);
    }
    Ok(found)
}

async fn get(collector: &Collector, path: &str) -> anyhow::Result<Option<LeanMeta>> {
    let request = http::Request::get(path)
        .header(http::header::ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
        .body(Vec::new())
        .context("building a request for metadata")?;
    match collector.context.client.raw().request::<Lean>(request).await {
        Ok(found) => Ok(Some(found.metadata)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error).with_context(|| format!("getting {path}")),
    }
}

async fn standing(collector: &Collector, node: &Node, owner: &OwnerReference) -> anyhow::Result<Standing> {
    {
        let graph = collector.graph();
        if graph.same_object(owner, &node.namespace) {
            let waits = graph.get(&owner.uid).is_some_and(|n| n.waits_for_dependents);
            let blocks = owner.block_owner_deletion == Some(true);
            return Ok(if waits && blocks { Standing::Waiting } else { Standing::Solid });
        }
        if graph.is_absent(&owner.uid) {
            return Ok(Standing::Dangling);
        }
    }
    let (resources, _) = discovery::resources(&collector.context.client).await?;
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    let resource = resources
        .iter()
        .find(|r| r.group == group && r.kind == owner.kind)
        .map(|r| Arc::new(r.clone()))
        .with_context(|| format!("owner {} {} is of a kind that is not served", owner.kind, owner.name))?;
    // An object without namespace cannot be owned by one that has one.
    if resource.namespaced && node.namespace.is_empty() {
        return Ok(Standing::Dangling);
    }
    let found = get(collector, &path(&resource, &node.namespace, &owner.name)).await?;
    if found.is_some_and(|meta| meta.uid == owner.uid) {
        return Ok(Standing::Solid);
    }
    collector.graph().note_absent(&owner.uid);
    Ok(Standing::Dangling)
}

/// Lets all dependents go their own way, then the object itself.
async fn orphan(collector: &Collector, uid: &str, node: &Node) -> anyhow::Result<()> {
    let dependents = collector.graph().dependents(uid);
    for dependent in dependents {
        let Some(child) = collector.graph().get(&dependent).cloned() else { continue };
        let Some(meta) = live(collector, &child, &dependent).await? else { continue };
        let left: Vec<_> = meta.owner_references.iter().filter(|o| o.uid != uid).collect();
        if left.len() == meta.owner_references.len() {
            continue;
        }
        let patch = serde_json::json!({"metadata": {
            "uid": dependent,
            "resourceVersion": meta.resource_version,
            "ownerReferences": left,
        }});
        send(collector, Method::PATCH, &child, MERGE, &patch).await?;
    }
    drop_finalizer(collector, uid, node, ORPHAN).await
}

async fn drop_finalizer(collector: &Collector, uid: &str, node: &Node, finalizer: &str) -> anyhow::Result<()> {
    let Some(meta) = live(collector, node, uid).await? else { return Ok(()) };
    let left: Vec<_> = meta.finalizers.iter().filter(|f| *f != finalizer).collect();
    if left.len() == meta.finalizers.len() {
        return Ok(());
    }
    let patch = serde_json::json!({"metadata": {
        "uid": uid,
        "resourceVersion": meta.resource_version,
        "finalizers": left,
    }});
    send(collector, Method::PATCH, node, MERGE, &patch).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::*;

    #[test]
    fn verdicts_by_owners() {
        let cases: [(&[Standing], bool, Verdict); 6] = [
            (&[Solid], false, Verdict::Keep),
            (&[Dangling], false, Verdict::Delete { foreground: false }),
            (&[Solid, Dangling], false, Verdict::Drop(vec!["1".into()])),
            (&[Waiting], false, Verdict::Delete { foreground: false }),
            (&[Waiting], true, Verdict::Delete { foreground: true }),
            (&[Waiting, Solid], true, Verdict::Drop(vec!["0".into()])),
        ];
        for (standings, has_dependents, wanted) in cases {
            let listed: Vec<_> = standings
                .iter()
                .enumerate()
                .map(|(at, s)| {
                    (
                        at.to_string(),
                        match s {
                            Solid => Solid,
                            Dangling => Dangling,
                            Waiting => Waiting,
                        },
                    )
                })
                .collect();
            assert_eq!(judge(&listed, has_dependents), wanted, "{standings:?}");
        }
    }
}
