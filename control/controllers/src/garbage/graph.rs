//! Who owns whom. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize;

use crate::discovery::Resource;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// The part of an object's metadata that matters here, as it comes from the server.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Lean {
    pub metadata: LeanMeta,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeanMeta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deletion_timestamp: Option<String>,
}

impl LeanMeta {
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            owner_references: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deletion_timestamp: meta.deletion_timestamp.as_ref().map(|t| t.0.to_string()),
        }
    }

    fn holds(&self, finalizer: &str) -> bool {
        self.deletion_timestamp.is_some() && self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Node {
    pub resource: Arc<Resource>,
    pub name: String,
    pub namespace: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    pub waits_for_dependents: bool,
    pub orphans: bool,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    /// By owner's uid, whether or not the owner is known.
    dependents: HashMap<String, HashSet<String>>,
    /// Owners that the server said it does not have.
    absent: HashSet<String>,
}

/// Beyond this the memory of absent owners starts anew.
const MOST_ABSENT: usize = 2000;

impl Graph {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).map(|d| d.iter().cloned().collect()).unwrap_or_default()
    }

    pub fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.get(uid).is_some_and(|d| !d.is_empty())
    }

    /// Dependents that hold up the owner's foreground deletion.
    pub fn blocking(&self, uid: &str) -> Vec<String> {
        let blocks = |d: &String| {
            self.nodes
                .get(d)
                .is_some_and(|n| n.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)))
        };
        self.dependents(uid).into_iter().filter(blocks).collect()
    }

    pub fn note_absent(&mut self, uid: &str) {
        if self.absent.len() >= MOST_ABSENT {
            self.absent.clear();
        }
        self.absent.insert(uid.to_owned());
    }

    pub fn is_absent(&self, uid: &str) -> bool {
        self.absent.contains(uid)
    }

    /// Takes in an object; says which objects are to be looked at.
    pub fn upsert(&mut self, resource: &Arc<Resource>, meta: &LeanMeta) -> Vec<String> {
        let uid = &meta.uid;
        let node = Node {
            resource: resource.clone(),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            owners: meta.owner_references.clone(),
            deleting: meta.deletion_timestamp.is_some(),
            waits_for_dependents: meta.holds(FOREGROUND),
            orphans: meta.holds(ORPHAN),
        };
        self.absent.remove(uid);
        let before = self.nodes.insert(uid.clone(), node.clone());
        let old_owners = before.as_ref().map(|n| n.owners.clone()).unwrap_or_default();
        for owner in old_owners.iter().filter(|o| !node.owners.iter().any(|n| n.uid == o.uid)) {
            self.unlink(&owner.uid, uid);
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let mut look = Vec::new();
        let owners_changed = old_owners != node.owners;
        let doubtful = node.owners.iter().any(|o| {
            self.nodes.get(&o.uid).is_none_or(|n| n.waits_for_dependents) || !self.same_object(o, &node.namespace)
        });
        if owners_changed && doubtful {
            look.push(uid.clone());
        }
        let began = |now: bool, before: Option<bool>| now && before != Some(true);
        if began(node.waits_for_dependents, before.as_ref().map(|n| n.waits_for_dependents)) {
            look.push(uid.clone());
            look.extend(self.dependents(uid));
        }
        if began(node.orphans, before.as_ref().map(|n| n.orphans)) {
            look.push(uid.clone());
        }
        if owners_changed || began(node.deleting, before.as_ref().map(|n| n.deleting)) {
            // An owner that waits for this one may have to wait no more.
            let waiting = old_owners.iter().chain(&node.owners).map(|o| &o.uid);
            look.extend(waiting.filter(|o| self.nodes.get(*o).is_some_and(|n| n.waits_for_dependents)).cloned());
        }
        look
    }

    /// Whether the reference names the object that has its uid: a wrong kind, name or namespace does not count.
    pub fn same_object(&self, owner: &OwnerReference, namespace: &str) -> bool {
        let Some(node) = self.nodes.get(&owner.uid) else { return false };
        let group = |version: &str| version.split_once('/').map_or(String::new(), |(g, _)| g.to_owned());
        node.name == owner.name
            && node.resource.kind == owner.kind
            && node.resource.group == group(&owner.api_version)
            && (!node.resource.namespaced || node.namespace == namespace)
    }

    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut look = self.dependents(uid);
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(|n| n.waits_for_dependents) {
                look.push(owner.uid.clone());
            }
        }
        if !look.is_empty() {
            self.note_absent(uid);
        }
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(all) = self.dependents.get_mut(owner) {
            all.remove(dependent);
            if all.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Uids of all objects of the kind.
    pub fn of_resource(&self, resource: &Resource) -> Vec<String> {
        self.nodes.iter().filter(|(_, n)| *n.resource == *resource).map(|(uid, _)| uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> Arc<Resource> {
        Arc::new(Resource {
            group: String::new(),
            version: "v1".into(),
            plural: "things".into(),
            kind: "Thing".into(),
            namespaced: true,
            verbs: Vec::new(),
        })
    }

    fn meta(uid: &str, owners: &[&str]) -> LeanMeta {
        LeanMeta {
            name: uid.into(),
            uid: uid.into(),
            namespace: "n".into(),
            owner_references: owners
                .iter()
                .map(|o| OwnerReference {
                    uid: (*o).into(),
                    name: (*o).into(),
                    kind: "Thing".into(),
                    api_version: "v1".into(),
                    block_owner_deletion: Some(true),
                    ..OwnerReference::default()
                })
                .collect(),
            ..LeanMeta::default()
        }
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let (mut graph, kind) = (Graph::default(), resource());
        assert!(graph.upsert(&kind, &meta("owner", &[])).is_empty());
        assert!(graph.upsert(&kind, &meta("child", &["owner"])).is_empty());
        assert_eq!(graph.upsert(&kind, &meta("lost", &["nobody"])), ["lost"]);
        assert_eq!(graph.remove("owner"), ["child"]);
        assert!(graph.is_absent("owner"));
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let (mut graph, kind) = (Graph::default(), resource());
        graph.upsert(&kind, &meta("owner", &[]));
        graph.upsert(&kind, &meta("child", &["owner"]));
        let mut deleted = meta("owner", &[]);
        deleted.deletion_timestamp = Some("now".into());
        deleted.finalizers = vec![FOREGROUND.into()];
        assert_eq!(graph.upsert(&kind, &deleted), ["owner", "child"]);
        assert_eq!(graph.blocking("owner"), ["child"]);
        assert_eq!(graph.remove("child"), ["owner"]);
        assert!(graph.blocking("owner").is_empty());
    }

    #[test]
    fn references_with_a_wrong_name_name_nobody() {
        let (mut graph, kind) = (Graph::default(), resource());
        graph.upsert(&kind, &meta("owner", &[]));
        let mut child = meta("child", &["owner"]);
        child.owner_references[0].name = "other".into();
        assert_eq!(graph.upsert(&kind, &child), ["child"]);
    }
}
