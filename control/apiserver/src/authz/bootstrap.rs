//! The default roles and bindings: upstream's, and those of this cluster's own components.
//!
//! At start each is created if it is missing; one that carries the annotation
//! `autoupdate: "true"` gets back what was taken away from it.  Nothing is
//! written when nothing is missing, so that a start costs no writes.

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::rules::{Rule, not_covered};
use crate::authn::view::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Gr, ROLE_BINDINGS, ROLES, items_at, name_of, namespace_of,
};
use crate::error::Result;
use crate::registry::{Change, Registry};

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// One object a line; subjects as `[kind, namespace, name]`, role references as `[kind, name]`.
const UPSTREAM: &str = include_str!("rbac-defaults.json");
const OWN: &str = include_str!("rbac-own.json");

/// Rules of the role `system:node`, for the Node authoriser.
pub fn node_rules() -> anyhow::Result<Vec<Rule>> {
    let all = objects()?;
    let role = all.iter().find(|(gr, o)| *gr == CLUSTER_ROLES && name_of(o) == "system:node");
    Ok(role.map(|(_, o)| Rule::read_all(o)).unwrap_or_default())
}

/// All default objects.
fn objects() -> anyhow::Result<Vec<(Gr, Value)>> {
    let mut out = Vec::new();
    for (name, text) in [("rbac-defaults", UPSTREAM), ("rbac-own", OWN)] {
        let list: Vec<Value> =
            serde_json::from_str(text).with_context(|| format!("the built-in table {name} is damaged"))?;
        out.extend(list.iter().filter_map(object));
    }
    Ok(out)
}

/// The full object of one line.
fn object(short: &Value) -> Option<(Gr, Value)> {
    let kind = short["kind"].as_str()?;
    let gr = match kind {
        "ClusterRole" => CLUSTER_ROLES,
        "Role" => ROLES,
        "ClusterRoleBinding" => CLUSTER_ROLE_BINDINGS,
        _ => ROLE_BINDINGS,
    };
    let mut labels = short["labels"].as_object().cloned().unwrap_or_default();
    labels.insert("kubernetes.io/bootstrapping".into(), json!("rbac-defaults"));
    let mut metadata = Map::new();
    metadata.insert("name".into(), short["name"].clone());
    if let Some(ns) = short.get("namespace") {
        metadata.insert("namespace".into(), ns.clone());
    }
    metadata.insert("labels".into(), Value::Object(labels));
    metadata.insert("annotations".into(), json!({AUTOUPDATE: "true"}));
    let mut out = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    match short.get("roleRef") {
        Some(role) => {
            out["roleRef"] = json!({"apiGroup": GROUP, "kind": role[0], "name": role[1]});
            if let Some(subjects) = short["subjects"].as_array() {
                out["subjects"] = subjects.iter().map(subject).collect();
            }
        }
        None => {
            out["rules"] = short.get("rules").cloned().unwrap_or(Value::Null);
            if let Some(rule) = short.get("aggregationRule") {
                out["aggregationRule"] = rule.clone();
            }
        }
    }
    Some((gr, out))
}

fn subject(short: &Value) -> Value {
    match short[0].as_str() {
        Some("ServiceAccount") => json!({"kind": "ServiceAccount", "name": short[2], "namespace": short[1]}),
        _ => json!({"apiGroup": GROUP, "kind": short[0], "name": short[2]}),
    }
}

/// Creates and repairs the default roles and bindings.  The namespaces must exist.
pub async fn reconcile(registry: &Registry) -> anyhow::Result<()> {
    // All at once, so that the store makes them durable together: one by one, the first start
    // would wait for the disk as often as there are roles.
    let all = objects()?.into_iter().map(|(gr, want)| async move {
        let name = name_of(&want).to_string();
        one(registry, gr, want).await.with_context(|| format!("default {} {name:?}", gr.1))
    });
    futures::future::try_join_all(all).await.map(drop)
}

async fn one(registry: &Registry, gr: Gr, mut want: Value) -> Result<()> {
    let (namespace, name) = (namespace_of(&want).to_string(), name_of(&want).to_string());
    let Some(existing) = registry.get(gr.0, gr.1, &namespace, &name) else {
        want["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
        want["metadata"]["creationTimestamp"] = json!(now());
        return match registry.create(gr.0, gr.1, &want, None).await {
            Err(e) if e.reason == "AlreadyExists" => Ok(()),
            other => other.map(drop),
        };
    };
    if repaired(&existing.value(), &want).is_none() {
        return Ok(());
    }
    let change = |current: Value| Ok(repaired(&current, &want).map_or(Change::Keep, Change::Write));
    registry.guaranteed_update(gr.0, gr.1, &namespace, &name, change).await.map(drop)
}

fn now() -> String {
    jiff::Timestamp::from_second(crate::authn::now()).map(|t| t.to_string()).unwrap_or_default()
}

/// The object with what it lacks; None when it lacks nothing or is not ours to change.
fn repaired(current: &Value, want: &Value) -> Option<Value> {
    let auto = current.pointer("/metadata/annotations").and_then(|a| a.get(AUTOUPDATE));
    if auto.and_then(Value::as_str) != Some("true") {
        return None;
    }
    let mut out = current.clone();
    let mut changed = add_labels(&mut out, want);
    if want.get("aggregationRule").is_none() {
        changed |= add_rules(&mut out, want);
    }
    for subject in items_at(want, "/subjects") {
        if !items_at(current, "/subjects").contains(subject) {
            match out["subjects"].as_array_mut() {
                Some(list) => list.push(subject.clone()),
                None => out["subjects"] = json!([subject]),
            }
            changed = true;
        }
    }
    changed.then_some(out)
}

fn add_labels(out: &mut Value, want: &Value) -> bool {
    let mut changed = false;
    for (key, value) in want["metadata"]["labels"].as_object().into_iter().flatten() {
        if out.pointer("/metadata/labels").and_then(|l| l.get(key)) != Some(value) {
            out["metadata"]["labels"][key] = value.clone();
            changed = true;
        }
    }
    changed
}

fn add_rules(out: &mut Value, want: &Value) -> bool {
    let held = Rule::read_all(out);
    let mut changed = false;
    for rule in items_at(want, "/rules") {
        if not_covered(held.iter(), &[Rule::read(rule)]).is_empty() {
            continue;
        }
        match out["rules"].as_array_mut() {
            Some(list) => list.push(rule.clone()),
            None => out["rules"] = json!([rule]),
        }
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_whole() {
        let all = objects().expect("tables");
        assert!(all.len() > 120);
        let roles: Vec<&str> = all.iter().filter(|(gr, _)| *gr == CLUSTER_ROLES).map(|(_, o)| name_of(o)).collect();
        for (_, binding) in all.iter().filter(|(gr, _)| *gr == CLUSTER_ROLE_BINDINGS) {
            let role = binding["roleRef"]["name"].as_str().expect("roleRef");
            assert!(roles.contains(&role), "{role} is bound but does not exist");
        }
        assert!(!node_rules().expect("rules").is_empty());
    }

    #[test]
    fn repairs_only_what_it_owns() {
        let (_, want) = object(&json!({"kind": "ClusterRole", "name": "x", "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})).expect("object");
        assert!(repaired(&want, &want).is_none());
        let mut cut = want.clone();
        cut["rules"] = json!([]);
        assert_eq!(repaired(&cut, &want).expect("repair")["rules"], want["rules"]);
        cut["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert!(repaired(&cut, &want).is_none());
    }
}
