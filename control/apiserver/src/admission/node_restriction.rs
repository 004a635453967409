//! NodeRestriction: a kubelet writes about its own node and the pods on it, and gives itself no labels of power.

use serde_json::Value;

use super::{Attributes, Operation};
use crate::authn::view::{CSI_DRIVERS, ClusterView, PODS, PVCS, PVS, items_at, name_of, namespace_of, str_at};
use crate::error::Result;
use crate::strategy::fields;

/// The role that every node may give itself.
const WORKER: &str = "node-role.kubernetes.io/worker";
/// The role of the machines that run an API server: only the kubelet beside this one may claim it.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Labels under kubernetes.io and k8s.io that a kubelet may set.
const ALLOWED: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "node.kubernetes.io/exclude-disruption",
];
const ALLOWED_SUFFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Checks a write by a kubelet.
pub fn check(at: &Attributes<'_>, new: Option<&Value>, old: Option<&Value>) -> Result<()> {
    let Some(node) = at.user.node_name() else { return Ok(()) };
    match (at.info.group.as_str(), at.info.resource.as_str()) {
        ("", "pods") => pod(at, node, new, old),
        ("", "nodes") => own_node(at, node, new, old),
        ("coordination.k8s.io", "leases") if at.name != node || at.namespace != "kube-node-lease" => {
            Err(at.forbidden("can only access node lease with the same name as the requesting node"))
        }
        ("storage.k8s.io", "csinodes") if at.name != node => {
            Err(at.forbidden("can only access CSINode with the same name as the requesting node"))
        }
        ("resource.k8s.io", "resourceslices") => {
            let of = |o: &Value| str_at(o, "/spec/nodeName") == node;
            if new.is_some_and(of) || new.is_none() && old.is_some_and(of) {
                return Ok(());
            }
            Err(at.forbidden("can only access ResourceSlices of the requesting node"))
        }
        _ => Ok(()),
    }
}

fn pod(at: &Attributes<'_>, node: &str, new: Option<&Value>, old: Option<&Value>) -> Result<()> {
    let refuse = |why: String| Err(at.forbidden(&why));
    let on_node = |pod: &Value| str_at(pod, "/spec/nodeName") == node;
    match (at.operation, at.info.subresource.as_str()) {
        (Operation::Create, "") => {
            let Some(pod) = new else { return Ok(()) };
            if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_none() {
                return refuse(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                ));
            }
            if !on_node(pod) {
                return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
            }
            let owned = items_at(pod, "/metadata/ownerReferences")
                .iter()
                .all(|o| str_at(o, "/kind") == "Node" && str_at(o, "/name") == node);
            if !owned {
                return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
            }
            Ok(())
        }
        (Operation::Delete, _) if old.is_none_or(on_node) => Ok(()),
        (Operation::Delete, _) => {
            refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        (Operation::Update, "status") => {
            if !old.is_some_and(on_node) {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            let labels = |o: Option<&Value>| o.map(|o| o["metadata"]["labels"].clone());
            if labels(new) != labels(old) {
                return refuse(format!("node {node:?} cannot update labels through pod status"));
            }
            Ok(())
        }
        (Operation::Create, "eviction") => {
            let pod = at.view().get(PODS, at.namespace, at.name);
            if pod.is_none_or(|p| on_node(&p)) {
                return Ok(());
            }
            refuse(format!("node {node:?} can only evict pods with spec.nodeName set to itself"))
        }
        (Operation::Connect, _) => Ok(()),
        (_, sub) => refuse(format!("unexpected operation {} on pods/{sub} by node {node:?}", at.operation.as_str())),
    }
}

fn own_node(at: &Attributes<'_>, node: &str, new: Option<&Value>, old: Option<&Value>) -> Result<()> {
    let name = if at.name.is_empty() { new.map(name_of).unwrap_or_default() } else { at.name };
    if name != node {
        return Err(at.forbidden(&format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let Some(new) = new else { return Ok(()) };
    let beside_us = node == at.state.admission.own_node;
    let refused: Vec<String> =
        forbidden_labels(new, old).into_iter().filter(|k| k != WORKER && !(k == CONTROL_PLANE && beside_us)).collect();
    if !refused.is_empty() {
        return Err(at.forbidden(&format!("is not allowed to modify labels: {}", refused.join(", "))));
    }
    let Some(old) = old else { return Ok(()) };
    if !fields::same(new, old, "/spec/taints") {
        return Err(at.forbidden(&format!("node {node:?} is not allowed to modify taints")));
    }
    if !fields::same(new, old, "/metadata/ownerReferences") {
        return Err(at.forbidden(&format!("node {node:?} is not allowed to modify ownerReferences")));
    }
    Ok(())
}

/// Whether a kubelet may have a token for a pod with these audiences: only with one that the pod has for its volumes, so
/// that who takes over a node gets no tokens for services that its pods have nothing to do with. `granted` says what roles
/// give the node besides. None asks for the API server's own audience, as a volume that names none does.
pub fn audience(
    view: &dyn ClusterView,
    pod: &Value,
    audiences: &[&str],
    node: &str,
    granted: impl Fn(&str) -> bool,
) -> std::result::Result<(), String> {
    let audience = match audiences {
        [] => "",
        [one] => one,
        _ => return Err("node may only request 0 or 1 audiences".into()),
    };
    if items_at(pod, "/spec/volumes").iter().any(|v| uses_audience(view, pod, v, audience)) || granted(audience) {
        return Ok(());
    }
    Err(format!(
        "audience {audience:?} not found in pod spec volume, {node} is not authorized to request tokens for this audience"
    ))
}

/// Whether a volume is given tokens for an audience: itself, or its CSI driver.
fn uses_audience(view: &dyn ClusterView, pod: &Value, volume: &Value, audience: &str) -> bool {
    let projected = items_at(volume, "/projected/sources").iter().filter_map(|s| s.get("serviceAccountToken"));
    if projected.filter(|t| t.is_object()).any(|t| str_at(t, "/audience") == audience) {
        return true;
    }
    let claim = match str_at(volume, "/persistentVolumeClaim/claimName") {
        "" if volume["ephemeral"].is_object() => format!("{}-{}", name_of(pod), str_at(volume, "/name")),
        named => named.to_string(),
    };
    let driver = match claim.as_str() {
        "" => str_at(volume, "/csi/driver").to_string(),
        claim => view
            .get(PVCS, namespace_of(pod), claim)
            .and_then(|claim| view.get(PVS, "", str_at(&claim, "/spec/volumeName")))
            .map(|volume| str_at(&volume, "/spec/csi/driver").to_string())
            .unwrap_or_default(),
    };
    let driver = view.get(CSI_DRIVERS, "", &driver);
    driver.is_some_and(|d| items_at(&d, "/spec/tokenRequests").iter().any(|t| str_at(t, "/audience") == audience))
}

/// Labels that differ and that a kubelet may not touch.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let empty = serde_json::Map::new();
    let labels = |o: &Value| o.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
    let (is, was) = (labels(new), old.map(labels).unwrap_or(empty));
    let mut changed: Vec<&String> = is.keys().chain(was.keys()).filter(|k| is.get(*k) != was.get(*k)).collect();
    changed.sort();
    changed.dedup();
    changed.into_iter().filter(|k| !may_set(k)).cloned().collect()
}

fn may_set(key: &str) -> bool {
    let domain = key.split_once('/').map(|(d, _)| d).unwrap_or_default();
    let under = |zone: &str| domain == zone || domain.ends_with(&format!(".{zone}"));
    if under("node-restriction.kubernetes.io") {
        return false;
    }
    if !under("kubernetes.io") && !under("k8s.io") {
        return true;
    }
    // node-role.kubernetes.io/… is not under node.kubernetes.io, and stays forbidden.
    ALLOWED.contains(&key) || ALLOWED_SUFFIXES.iter().any(|s| under(s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::view::fake::FakeView;
    use serde_json::json;

    #[test]
    fn tokens_are_for_the_audiences_of_volumes() {
        let view = FakeView::default();
        let claim = |name: &str| json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"volumeName": "pv"}});
        for name in ["claim", "p-made"] {
            view.put(PVCS, claim(name));
        }
        view.put(PVS, json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "of-claims"}}}));
        for (driver, requests) in [
            ("of-claims", json!([{"audience": "x"}, {"audience": "disks"}])),
            ("inline", json!([{"audience": ""}])),
            ("other", json!([{"audience": "vault"}])),
        ] {
            view.put(CSI_DRIVERS, json!({"metadata": {"name": driver}, "spec": {"tokenRequests": requests}}));
        }
        let token =
            |t: Value| json!({"name": "t", "projected": {"sources": [{"configMap": {}}, {"serviceAccountToken": t}]}});
        let granted = |audience: &str| audience == "granted";
        let cases: [(Value, &[&str], bool); 15] = [
            (token(json!({"audience": "vault"})), &["vault"], true),
            (token(json!({"audience": "vault"})), &["Vault"], false),
            (token(json!({"audience": "vault"})), &[], false),
            (token(json!({"audience": "vault"})), &["granted"], true),
            (token(json!({})), &[], true),
            (token(json!({})), &["vault"], false),
            (token(json!({"audience": "vault"})), &["vault", "vault"], false),
            (json!({"name": "s", "projected": {"sources": [{"secret": {}}]}}), &[], false),
            (json!({"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}), &["disks"], true),
            (json!({"name": "v", "persistentVolumeClaim": {"claimName": "none"}}), &["disks"], false),
            (json!({"name": "made", "ephemeral": {}}), &["disks"], true),
            (json!({"name": "made", "ephemeral": {}}), &["vault"], false),
            (json!({"name": "i", "csi": {"driver": "inline"}}), &[], true),
            (json!({"name": "i", "csi": {"driver": "inline"}}), &["disks"], false),
            (json!({"name": "e", "emptyDir": {}}), &[], false),
        ];
        for (volume, audiences, ok) in cases {
            let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"volumes": [volume]}});
            let answer = audience(&view, &pod, audiences, "system:node:a", granted);
            assert_eq!(answer.is_ok(), ok, "{pod} {audiences:?}: {answer:?}");
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}});
        assert_eq!(
            audience(&view, &pod, &["vault"], "system:node:a", granted).unwrap_err(),
            "audience \"vault\" not found in pod spec volume, system:node:a is not authorized to request tokens for this audience"
        );
    }

    #[test]
    fn labels_of_power() {
        for (key, ok) in [
            ("disk", true),
            ("example.org/x", true),
            ("kubernetes.io/hostname", true),
            ("kubelet.kubernetes.io/x", true),
            ("node.kubernetes.io/x", true),
            ("topology.kubernetes.io/zone", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/x", false),
            ("kubernetes.io/other", false),
            ("foo.k8s.io/x", false),
        ] {
            assert_eq!(may_set(key), ok, "{key}");
        }
        let old = json!({"metadata": {"labels": {"node-role.kubernetes.io/a": "", "x": "y"}}});
        let new = json!({"metadata": {"labels": {"node-role.kubernetes.io/a": ""}}});
        assert!(forbidden_labels(&new, Some(&old)).is_empty());
        assert_eq!(forbidden_labels(&json!({}), Some(&old)), ["node-role.kubernetes.io/a"]);
    }
}
