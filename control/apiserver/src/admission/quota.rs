//! ResourceQuota: charges what is created to its namespace's quotas, last of all plugins.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use api::quantity::{Quantity, Suffix};
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::authn::view::{RESOURCE_QUOTAS, items_at, name_of, str_at};
use crate::error::{ApiError, Result};
use crate::registry::Change;
use crate::strategy::fields;

type Usage = BTreeMap<String, Quantity>;

/// Requests of one namespace charge its quotas one after the other: all at once they would only make each other's writes
/// fail, and those that lose too often would be refused. Other servers' are what is left to lose against.
#[derive(Debug, Default)]
pub struct Turns([tokio::sync::Mutex<()>; 32]);

impl Turns {
    async fn of(&self, namespace: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = std::hash::DefaultHasher::new();
        namespace.hash(&mut hasher);
        // Two namespaces may have one place: they wait for each other.
        self.0[hasher.finish() as usize % self.0.len()].lock().await
    }
}

/// Refuses what exceeds a quota; charges the quotas otherwise (not on a dry run).
pub async fn charge(at: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    if at.namespace.is_empty() || !at.info.subresource.is_empty() || at.operation == Operation::Delete {
        return Ok(());
    }
    let quotas = at.view().list(RESOURCE_QUOTAS, at.namespace);
    if quotas.is_empty() {
        return Ok(());
    }
    let delta = increase(&usage(at, new), &old.map(|o| usage(at, o)).unwrap_or_default());
    if delta.is_empty() {
        return Ok(());
    }
    let _turn = at.state.admission.turns.of(at.namespace).await;
    for quota in quotas.iter().filter(|q| in_scope(q, at, new)) {
        let name = name_of(quota).to_string();
        let change = |current: Value| {
            Ok(match charged(at, current, &delta, new)? {
                Some(object) if !at.dry_run => Change::Write(object),
                _ => Change::Keep,
            })
        };
        let done = at.state.registry.guaranteed_update("", "resourcequotas", at.namespace, &name, change).await;
        match done {
            Err(e) if e.reason == "NotFound" => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// The quota with the increase counted; None when it does not limit any of it.
fn charged(at: &Attributes<'_>, mut quota: Value, delta: &Usage, object: &Value) -> Result<Option<Value>> {
    let name = name_of(&quota).to_string();
    let hard = amounts(&quota["spec"]["hard"]);
    if at.info.resource == "pods" {
        missing(at, &name, &hard, object)?;
    }
    let relevant: Usage = delta.iter().filter(|(k, _)| hard.contains_key(*k)).map(|(k, q)| (k.clone(), *q)).collect();
    if relevant.is_empty() {
        return Ok(None);
    }
    let mut used = amounts(&quota["status"]["used"]);
    let zero = Quantity::from_units(0, Suffix::Decimal);
    let of = |map: &Usage, key: &str| map.get(key).copied().unwrap_or(zero);
    let exceeded: Vec<&String> = relevant.keys().filter(|k| of(&used, k).plus(&relevant[*k]) > of(&hard, k)).collect();
    if !exceeded.is_empty() {
        let list = |map: &Usage| exceeded.iter().map(|k| format!("{k}={}", of(map, k))).collect::<Vec<_>>().join(",");
        let detail = format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            list(&relevant),
            list(&used),
            list(&hard)
        );
        return Err(at.forbidden(&detail));
    }
    for (key, more) in &relevant {
        let sum = of(&used, key).plus(more);
        used.insert(key.clone(), sum);
    }
    if quota["status"]["hard"].is_null() {
        quota["status"]["hard"] = quota["spec"]["hard"].clone();
    }
    quota["status"]["used"] =
        used.iter().map(|(k, q)| (k.clone(), json!(q.to_string()))).collect::<serde_json::Map<_, _>>().into();
    Ok(Some(quota))
}

/// A quota on a compute resource demands that every container names it.
fn missing(at: &Attributes<'_>, quota: &str, hard: &Usage, pod: &Value) -> Result<(), ApiError> {
    if at.operation != Operation::Create {
        return Ok(());
    }
    let mut lacking = Vec::new();
    for key in hard.keys() {
        let (kind, resource) = match key.as_str() {
            "cpu" | "memory" => ("requests", key.as_str()),
            other => match other.split_once('.') {
                Some((kind @ ("requests" | "limits"), resource @ ("cpu" | "memory"))) => (kind, resource),
                _ => continue,
            },
        };
        let without: Vec<&str> = items_at(pod, "/spec/containers")
            .iter()
            .filter(|c| c["resources"][kind].get(resource).is_none())
            .map(|c| str_at(c, "/name"))
            .collect();
        if !without.is_empty() {
            lacking.push(format!("{key} for: {}", without.join(",")));
        }
    }
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(at.forbidden(&format!("failed quota: {quota}: must specify {}", lacking.join("; "))))
    }
}

fn amounts(map: &Value) -> Usage {
    map.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), fields::quantity(v)?))).collect()
}

fn increase(new: &Usage, old: &Usage) -> Usage {
    let zero = Quantity::from_units(0, Suffix::Decimal);
    let more = new.iter().map(|(k, q)| (k.clone(), q.minus(old.get(k).unwrap_or(&zero))));
    more.filter(|(_, q)| q.sign() > 0).collect()
}

fn usage(at: &Attributes<'_>, object: &Value) -> Usage {
    let one = Quantity::from_units(1, Suffix::Decimal);
    let mut out = Usage::new();
    let counted = match at.info.group.as_str() {
        "" => format!("count/{}", at.info.resource),
        group => format!("count/{}.{group}", at.info.resource),
    };
    out.insert(counted, one);
    if !at.info.group.is_empty() {
        return out;
    }
    match at.info.resource.as_str() {
        "pods" => pod_usage(object, &mut out),
        "services" => service_usage(object, &mut out),
        "persistentvolumeclaims" => claim_usage(object, &mut out),
        resource @ ("configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            out.insert(resource.into(), one);
        }
        _ => {}
    }
    out
}

fn pod_usage(pod: &Value, out: &mut Usage) {
    if matches!(str_at(pod, "/status/phase"), "Succeeded" | "Failed") {
        return;
    }
    out.insert("pods".into(), Quantity::from_units(1, Suffix::Decimal));
    for kind in ["requests", "limits"] {
        for (name, q) in amounts(&super::limits::total(pod, kind)) {
            let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if kind == "requests" && plain {
                out.insert(name.clone(), q);
            }
            if plain || kind == "requests" {
                out.insert(format!("{kind}.{name}"), q);
            }
        }
    }
}

fn service_usage(service: &Value, out: &mut Usage) {
    let units = |n: i64| Quantity::from_units(n, Suffix::Decimal);
    out.insert("services".into(), units(1));
    let ports = items_at(service, "/spec/ports").len() as i64;
    match str_at(service, "/spec/type") {
        "NodePort" => {
            out.insert("services.nodeports".into(), units(ports));
        }
        "LoadBalancer" => {
            out.insert("services.loadbalancers".into(), units(1));
            if service["spec"]["allocateLoadBalancerNodePorts"] != json!(false) {
                out.insert("services.nodeports".into(), units(ports));
            }
        }
        _ => {}
    }
}

fn claim_usage(claim: &Value, out: &mut Usage) {
    let one = Quantity::from_units(1, Suffix::Decimal);
    let class = str_at(claim, "/spec/storageClassName");
    out.insert("persistentvolumeclaims".into(), one);
    let size = fields::quantity(&claim["spec"]["resources"]["requests"]["storage"]);
    if !class.is_empty() {
        out.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one);
    }
    if let Some(size) = size {
        out.insert("requests.storage".into(), size);
        if !class.is_empty() {
            out.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), size);
        }
    }
}

/// Whether the quota's scopes hold for the object.
fn in_scope(quota: &Value, at: &Attributes<'_>, object: &Value) -> bool {
    let mut scopes: Vec<(String, String, Vec<String>)> = items_at(quota, "/spec/scopes")
        .iter()
        .filter_map(|s| Some((s.as_str()?.to_string(), "Exists".to_string(), Vec::new())))
        .collect();
    for e in items_at(quota, "/spec/scopeSelector/matchExpressions") {
        let values = items_at(e, "/values").iter().filter_map(|v| v.as_str().map(str::to_string)).collect();
        scopes.push((str_at(e, "/scopeName").into(), str_at(e, "/operator").into(), values));
    }
    let is_pod = at.info.group.is_empty() && at.info.resource == "pods";
    scopes.is_empty()
        || is_pod && scopes.iter().all(|(scope, operator, values)| scope_holds(scope, operator, values, object))
}

fn scope_holds(scope: &str, operator: &str, values: &[String], pod: &Value) -> bool {
    let best_effort = api::qos::class(pod) == "BestEffort";
    let terminating = pod["spec"]["activeDeadlineSeconds"].is_i64();
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = str_at(pod, "/spec/priorityClassName");
            match operator {
                "In" => values.iter().any(|v| v == class),
                "NotIn" => !values.iter().any(|v| v == class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|k| {
            let text = pod["spec"]["affinity"][k].to_string();
            text.contains("\"namespaces\"") || text.contains("\"namespaceSelector\"")
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_pods_and_increase() {
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}]}});
        let mut now = Usage::new();
        pod_usage(&pod, &mut now);
        let keys: Vec<&str> = now.keys().map(String::as_str).collect();
        assert_eq!(keys, ["cpu", "limits.cpu", "pods", "requests.cpu"]);
        assert!(increase(&now, &now).is_empty());
        assert_eq!(increase(&now, &Usage::new()).len(), 4);
        let mut done = Usage::new();
        pod_usage(&json!({"status": {"phase": "Failed"}}), &mut done);
        assert!(done.is_empty());
    }

    #[test]
    fn scopes() {
        let pod = json!({"spec": {"containers": [{}], "priorityClassName": "high"}});
        assert!(scope_holds("BestEffort", "Exists", &[], &pod));
        assert!(scope_holds("PriorityClass", "In", &["high".into()], &pod));
        assert!(!scope_holds("Terminating", "Exists", &[], &pod));
    }
}
