//! The Node authoriser: what a kubelet may do, by the pods that are bound to its node.
//!
//! Which secret, config map, claim, volume or service account belongs to which
//! node is read from that node's pods at each question, until one of them says yes.

use std::collections::HashSet;

use serde_json::Value;

use super::Query;
use super::rules::Rule;
use crate::authn::view::{
    ClusterView, PODS, PVCS, PVS, SECRETS, VOLUME_ATTACHMENTS, items_at, name_of, namespace_of, str_at,
};

/// `(kind, namespace, name)`.
type Item = (&'static str, String, String);

/// The Node authoriser.
pub struct NodeAuthorizer {
    /// What every node may do: the rules of the role `system:node`.
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    /// Takes the rules of the role `system:node`.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// Ok: allowed. Err: the reason, empty when this authoriser has no opinion.
    pub fn allows(&self, view: &dyn ClusterView, query: &Query<'_>) -> Result<(), String> {
        let Some(node) = query.user.node_name() else { return Err(String::new()) };
        if !query.is_resource {
            return Err(String::new());
        }
        match (query.group, query.resource) {
            ("", "secrets" | "configmaps") => self.read_related(view, query, node, &["get", "list", "watch"]),
            ("", "persistentvolumeclaims") if query.subresource == "status" => {
                self.related(view, query, node, &["get", "update", "patch"])
            }
            ("", "persistentvolumeclaims" | "persistentvolumes") => self.read_related(view, query, node, &["get"]),
            ("resource.k8s.io", "resourceclaims") => self.read_related(view, query, node, &["get"]),
            ("storage.k8s.io", "volumeattachments") => volume_attachment(view, query, node),
            ("", "serviceaccounts") if query.subresource == "token" => self.related(view, query, node, &["create"]),
            ("", "serviceaccounts") => self.read_related(view, query, node, &["get"]),
            ("coordination.k8s.io", "leases") => lease(query, node),
            ("storage.k8s.io", "csinodes") => csi_node(query, node),
            ("resource.k8s.io", "resourceslices") => resource_slice(query),
            ("", "nodes") => self.node(query, node),
            ("", "pods") => self.pod(view, query, node),
            _ => self.by_rules(query),
        }
    }

    fn by_rules(&self, query: &Query<'_>) -> Result<(), String> {
        if self.rules.iter().any(|r| r.allows(query)) { Ok(()) } else { Err(String::new()) }
    }

    fn read_related(
        &self,
        view: &dyn ClusterView,
        query: &Query<'_>,
        node: &str,
        verbs: &[&str],
    ) -> Result<(), String> {
        if !query.subresource.is_empty() {
            return Err("cannot read or update subresources of this kind".into());
        }
        self.related(view, query, node, verbs)
    }

    fn related(&self, view: &dyn ClusterView, query: &Query<'_>, node: &str, verbs: &[&str]) -> Result<(), String> {
        if !verbs.contains(&query.verb) {
            return Err(match verbs {
                ["get"] => "can only get individual resources of this type".into(),
                ["create"] => "can only create tokens of this type".into(),
                _ => "can only read resources of this type".into(),
            });
        }
        if query.name.is_empty() {
            return Err("No Object name found".into());
        }
        if self.is_related(view, node, query.resource, query.namespace, query.name) {
            return Ok(());
        }
        Err(format!("no relationship found between node '{node}' and this object"))
    }

    fn is_related(&self, view: &dyn ClusterView, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        view.any_on_node(node, &mut |pod| {
            let mut items = HashSet::new();
            related_items(view, pod, &mut items);
            items.iter().any(|(r, ns, n)| *r == resource && ns == namespace && n == name)
        })
    }

    fn node(&self, query: &Query<'_>, node: &str) -> Result<(), String> {
        let own = query.name == node;
        match (query.verb, query.subresource) {
            ("get" | "list" | "watch", "") if own => Ok(()),
            ("get" | "list" | "watch", "") => self.by_rules(query),
            ("create", "") => Ok(()),
            ("update" | "patch", "" | "status") if own => Ok(()),
            ("update" | "patch", "" | "status") => Err(format!("node '{node}' cannot modify another node")),
            _ => self.by_rules(query),
        }
    }

    fn pod(&self, view: &dyn ClusterView, query: &Query<'_>, node: &str) -> Result<(), String> {
        match (query.verb, query.subresource) {
            ("get", "") => {
                let pod = view.get(PODS, query.namespace, query.name);
                match pod {
                    // A pod that is gone is a 404, not a 403.
                    None => Ok(()),
                    Some(pod) if str_at(&pod, "/spec/nodeName") == node => Ok(()),
                    Some(_) => Err(format!("no relationship found between node '{node}' and this object")),
                }
            }
            ("list" | "watch", "") => {
                if query.fields.exact("spec.nodeName") == Some(node) {
                    return Ok(());
                }
                Err("can only list/watch pods with spec.nodeName field selector".into())
            }
            _ => self.by_rules(query),
        }
    }
}

fn lease(query: &Query<'_>, node: &str) -> Result<(), String> {
    match query.verb {
        "get" | "create" | "update" | "patch" | "delete" => {}
        _ => return Err("can only get, create, update, patch, or delete a node lease".into()),
    }
    if query.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    if query.verb != "create" && query.name != node {
        return Err("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn csi_node(query: &Query<'_>, node: &str) -> Result<(), String> {
    if !query.subresource.is_empty() {
        return Err("cannot authorize CSINode subresources".into());
    }
    match query.verb {
        "get" | "create" | "update" | "patch" | "delete" => {}
        _ => return Err("can only get, create, update, patch, or delete a CSINode".into()),
    }
    if query.verb != "create" && query.name != node {
        return Err("can only access CSINode with the same name as the requesting node".into());
    }
    Ok(())
}

/// NodeRestriction admission checks the node that a slice names.
fn resource_slice(query: &Query<'_>) -> Result<(), String> {
    match query.verb {
        "get" | "list" | "watch" | "create" | "update" | "patch" | "delete" | "deletecollection" => Ok(()),
        _ => Err(
            "only the following verbs are allowed: get, watch, list, create, update, patch, delete, deletecollection"
                .into(),
        ),
    }
}

fn volume_attachment(view: &dyn ClusterView, query: &Query<'_>, node: &str) -> Result<(), String> {
    let own = |a: &Value| str_at(a, "/spec/nodeName") == node;
    if query.verb == "get" && view.get(VOLUME_ATTACHMENTS, "", query.name).is_some_and(|a| own(&a)) {
        return Ok(());
    }
    Err(format!("no relationship found between node '{node}' and this object"))
}

/// Everything a pod's kubelet must read.
fn related_items(view: &dyn ClusterView, pod: &Value, items: &mut HashSet<Item>) {
    let namespace = namespace_of(pod).to_string();
    let mut add = |resource: &'static str, name: &str| {
        if !name.is_empty() {
            items.insert((resource, namespace.clone(), name.to_string()));
        }
    };
    // A mirror pod was made by the kubelet itself: it may not widen what that may read.
    if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return;
    }
    add("serviceaccounts", str_at(pod, "/spec/serviceAccountName"));
    for reference in items_at(pod, "/spec/imagePullSecrets") {
        add("secrets", str_at(reference, "/name"));
    }
    for list in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"] {
        for container in items_at(pod, list) {
            environment(container, &mut add);
        }
    }
    let mut volumes = Vec::new();
    for volume in items_at(pod, "/spec/volumes") {
        volume_references(volume, &mut add);
        let claim = str_at(volume, "/persistentVolumeClaim/claimName");
        if !claim.is_empty() {
            volumes.push(claim.to_string());
        } else if volume.get("ephemeral").is_some() {
            volumes.push(format!("{}-{}", name_of(pod), str_at(volume, "/name")));
        }
    }
    for status in items_at(pod, "/status/resourceClaimStatuses") {
        add("resourceclaims", str_at(status, "/resourceClaimName"));
    }
    for claim in volumes {
        add("persistentvolumeclaims", &claim);
        if let Some(object) = view.get(PVCS, &namespace, &claim) {
            add("persistentvolumes", str_at(&object, "/spec/volumeName"));
        }
    }
    // Volumes are cluster-scoped, and their secrets may lie in other namespaces.
    let extra: Vec<Item> = items
        .iter()
        .filter(|(r, ..)| *r == "persistentvolumes")
        .flat_map(|(_, _, name)| volume_secrets(view, name))
        .collect();
    // The volume itself is asked for without a namespace.
    let cluster: Vec<Item> = items
        .iter()
        .filter(|(r, ns, _)| *r == "persistentvolumes" && !ns.is_empty())
        .map(|(r, _, n)| (*r, String::new(), n.clone()))
        .collect();
    items.extend(extra);
    items.extend(cluster);
}

fn volume_secrets(view: &dyn ClusterView, volume: &str) -> Vec<Item> {
    let Some(pv) = view.get(PVS, "", volume) else { return Vec::new() };
    let claim_namespace = str_at(&pv, "/spec/claimRef/namespace");
    let mut out = Vec::new();
    let Some(spec) = pv["spec"].as_object() else { return out };
    for source in spec.values().filter_map(Value::as_object) {
        for (key, reference) in source {
            if !key.to_ascii_lowercase().ends_with("secretref") {
                continue;
            }
            let namespace = str_at(reference, "/namespace");
            let namespace = if namespace.is_empty() { claim_namespace } else { namespace };
            out.push((SECRETS.1, namespace.to_string(), str_at(reference, "/name").to_string()));
        }
    }
    out
}

fn environment(container: &Value, add: &mut dyn FnMut(&'static str, &str)) {
    for env in items_at(container, "/env") {
        add("secrets", str_at(env, "/valueFrom/secretKeyRef/name"));
        add("configmaps", str_at(env, "/valueFrom/configMapKeyRef/name"));
    }
    for from in items_at(container, "/envFrom") {
        add("secrets", str_at(from, "/secretRef/name"));
        add("configmaps", str_at(from, "/configMapRef/name"));
    }
}

fn volume_references(volume: &Value, add: &mut dyn FnMut(&'static str, &str)) {
    add("secrets", str_at(volume, "/secret/secretName"));
    add("configmaps", str_at(volume, "/configMap/name"));
    for source in items_at(volume, "/projected/sources") {
        add("secrets", str_at(source, "/secret/name"));
        add("configmaps", str_at(source, "/configMap/name"));
    }
    // csi.nodePublishSecretRef, cephfs.secretRef and their like.
    for source in volume.as_object().into_iter().flat_map(|m| m.values()).filter_map(Value::as_object) {
        for (key, reference) in source {
            if key.to_ascii_lowercase().ends_with("secretref") {
                add("secrets", str_at(reference, "/name"));
            }
        }
        if let Some(name) = source.get("secretName").and_then(Value::as_str) {
            add("secrets", name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::view::fake::FakeView;
    use crate::request::{RequestInfo, UserInfo};
    use serde_json::json;

    #[test]
    fn only_what_its_pods_need() {
        let view = FakeView::default();
        view.put(PODS, json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"nodeName": "n1", "serviceAccountName": "sa",
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s1"}}}], "envFrom": [{"configMapRef": {"name": "c1"}}]}],
            "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "c2"}}]}}, {"name": "d", "persistentVolumeClaim": {"claimName": "pvc"}}]}}));
        view.put(PVCS, json!({"metadata": {"namespace": "a", "name": "pvc"}, "spec": {"volumeName": "pv1"}}));
        view.put(PVS, json!({"metadata": {"name": "pv1"}, "spec": {"claimRef": {"namespace": "a"}, "csi": {"nodeStageSecretRef": {"name": "s9", "namespace": "z"}}}}));
        let node = NodeAuthorizer::new(vec![Rule::read(
            &json!({"verbs": ["create"], "apiGroups": [""], "resources": ["events"]}),
        )]);
        let user = |n: &str| UserInfo::authenticated(format!("system:node:{n}"), ["system:nodes".to_string()]);
        let table = [
            ("n1", "get", "", "secrets", "", "a", "s1", true),
            ("n1", "get", "", "secrets", "", "z", "s9", true),
            ("n1", "get", "", "secrets", "", "b", "s1", false),
            ("n2", "get", "", "secrets", "", "a", "s1", false),
            ("n1", "update", "", "secrets", "", "a", "s1", false),
            ("n1", "watch", "", "configmaps", "", "a", "c1", true),
            ("n1", "get", "", "configmaps", "", "a", "c2", true),
            ("n1", "list", "", "configmaps", "", "a", "", false),
            ("n1", "get", "", "persistentvolumeclaims", "", "a", "pvc", true),
            ("n1", "get", "", "persistentvolumes", "", "", "pv1", true),
            ("n2", "get", "", "persistentvolumes", "", "", "pv1", false),
            ("n1", "create", "", "serviceaccounts", "token", "a", "sa", true),
            ("n1", "create", "", "serviceaccounts", "token", "a", "other", false),
            ("n1", "patch", "", "nodes", "status", "", "n1", true),
            ("n1", "patch", "", "nodes", "status", "", "n2", false),
            ("n1", "get", "", "pods", "", "a", "p", true),
            ("n2", "get", "", "pods", "", "a", "p", false),
            ("n1", "update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n1", true),
            ("n1", "update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n2", false),
            ("n1", "create", "", "events", "", "a", "", true),
            ("n1", "create", "", "services", "", "a", "", false),
        ];
        for (who, verb, group, resource, subresource, namespace, name, want) in table {
            let user = user(who);
            let query =
                Query { verb, group, resource, subresource, namespace, name, is_resource: true, ..Query::empty(&user) };
            assert_eq!(node.allows(&view, &query).is_ok(), want, "{query:?}");
        }
        let get = http::Method::GET;
        for (path, selector, want) in [
            ("/api/v1/namespaces/a/secrets", "metadata.name=s1", true),
            ("/api/v1/namespaces/a/secrets", "metadata.name=s2", false),
            ("/api/v1/namespaces/a/secrets", "metadata.name!=s1", false),
            // One term, which lets every Secret through.
            ("/api/v1/namespaces/a/secrets", r"type!=x\,metadata.name=s1", false),
            ("/api/v1/pods", "spec.nodeName=n1", true),
            ("/api/v1/pods", "spec.nodeName=n2", false),
            ("/api/v1/pods", r"metadata.name!=x\,spec.nodeName=n1", false),
            ("/api/v1/namespaces/a/pods", "metadata.name=p", false),
            ("/api/v1/nodes", "metadata.name=n1", true),
        ] {
            let user = user("n1");
            let info = RequestInfo::parse(&get, path, &format!("fieldSelector={selector}"));
            assert_eq!(node.allows(&view, &Query::of(&user, &info)).is_ok(), want, "{path} {selector}");
        }
        let user = UserInfo::authenticated("system:node:n1", []);
        let query = Query { verb: "get", resource: "nodes", name: "n1", is_resource: true, ..Query::empty(&user) };
        assert!(node.allows(&view, &query).is_err(), "not in the group of nodes");
    }
}
