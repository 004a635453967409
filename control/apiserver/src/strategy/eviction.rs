//! Eviction: a deletion that asks the pod's disruption budget first.

use std::sync::Arc;

use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use crate::authz::rbac::selector_matches;
use crate::error::{ApiError, Result};
use crate::registry::Change;
use crate::state::AppState;

/// More pods than this on their way out of one budget are a sign of something broken.
const MAX_DISRUPTED: usize = 2000;

/// Counts the pod's disruption in its budget, or refuses. After Ok the caller deletes the pod
/// with the Eviction's deleteOptions.
pub async fn admit(state: &Arc<AppState>, pod: &Value, dry_run: bool) -> Result<()> {
    let finished = matches!(str_at(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending");
    if finished || !str_at(pod, "/metadata/deletionTimestamp").is_empty() {
        return Ok(());
    }
    let namespace = fields::namespace(pod);
    let budgets: Vec<Value> = state
        .registry
        .list("policy", "poddisruptionbudgets", Some(namespace))
        .iter()
        .map(|o| o.value())
        .filter(|b| selects(b, pod))
        .collect();
    match budgets.as_slice() {
        [] => {}
        [budget] => spend(state, namespace, fields::name(budget), pod, dry_run).await?,
        _ => {
            let message =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(ApiError::new(500, "InternalError", message));
        }
    }
    if dry_run {
        return Ok(());
    }
    mark(state, namespace, fields::name(pod)).await
}

fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object() && selector_matches(selector, pod)
}

async fn spend(state: &Arc<AppState>, namespace: &str, budget: &str, pod: &Value, dry_run: bool) -> Result<()> {
    let change = |current: Value| {
        Ok(match spent(current, pod)? {
            Some(new) if !dry_run => Change::Write(new),
            _ => Change::Keep,
        })
    };
    state.registry.guaranteed_update("policy", "poddisruptionbudgets", namespace, budget, change).await.map(drop)
}

fn is_ready(pod: &Value) -> bool {
    items_at(pod, "/status/conditions").iter().any(|c| str_at(c, "/type") == "Ready" && str_at(c, "/status") == "True")
}

/// The budget with this disruption counted; None when the pod does not count.
fn spent(mut budget: Value, pod: &Value) -> Result<Option<Value>> {
    let name = fields::name(&budget).to_string();
    let number = |b: &Value, key: &str| b["status"][key].as_i64().unwrap_or(0);
    if !is_ready(pod) {
        let always = str_at(&budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow";
        let healthy = number(&budget, "currentHealthy") >= number(&budget, "desiredHealthy")
            && number(&budget, "desiredHealthy") > 0;
        if always || healthy {
            return Ok(None);
        }
    }
    let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
    if number(&budget, "observedGeneration") < generation {
        return Err(refused(format!("The disruption budget {name} is still being processed by the server."), Some(10)));
    }
    let disrupted = budget["status"]["disruptedPods"].as_object().map_or(0, |m| m.len());
    if disrupted > MAX_DISRUPTED {
        let detail = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(ApiError::forbidden("policy", "poddisruptionbudgets", &name, detail));
    }
    let allowed = number(&budget, "disruptionsAllowed");
    if allowed < 0 {
        return Err(ApiError::forbidden(
            "policy",
            "poddisruptionbudgets",
            &name,
            "pdb disruptions allowed is negative",
        ));
    }
    let failed = items_at(&budget, "/status/conditions")
        .iter()
        .find(|c| str_at(c, "/type") == "DisruptionAllowed" && str_at(c, "/reason") == "SyncFailed");
    if let (0, Some(condition)) = (allowed, failed) {
        let why = str_at(condition, "/message");
        let detail = format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}"
        );
        return Err(refused(detail, None));
    }
    if allowed == 0 {
        let detail = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number(&budget, "desiredHealthy"),
            number(&budget, "currentHealthy")
        );
        return Err(refused(detail, None));
    }
    budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
    let status = &mut budget["status"];
    if let Some(map) = fields::map_mut(status, "disruptedPods") {
        map.insert(fields::name(pod).to_string(), json!(fields::now()));
    }
    Ok(Some(budget))
}

fn refused(detail: String, retry_after: Option<u32>) -> ApiError {
    let mut error =
        ApiError::new(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.");
    error.retry_after = retry_after;
    error.with_cause("DisruptionBudget", detail, "")
}

async fn mark(state: &Arc<AppState>, namespace: &str, name: &str) -> Result<()> {
    let change = |mut pod: Value| {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"});
        super::binding::set_condition(&mut pod, condition);
        Ok(Change::Write(pod))
    };
    state.registry.guaranteed_update("", "pods", namespace, name, change).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_spent() {
        let ready = json!({"metadata": {"name": "p"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let unready = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}});
        let budget = |allowed: i64, current: i64, observed: i64| {
            json!({"metadata": {"name": "b", "generation": 1},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": current, "desiredHealthy": 2, "observedGeneration": observed}})
        };
        let out = spent(budget(1, 3, 1), &ready).expect("allowed").expect("counted");
        assert_eq!(out["status"]["disruptionsAllowed"], 0);
        assert!(out["status"]["disruptedPods"]["p"].is_string());
        let error = spent(out, &ready).expect_err("used up");
        assert_eq!((error.code, error.causes[0].reason.as_str()), (429, "DisruptionBudget"));
        assert!(spent(budget(1, 3, 0), &ready).is_err(), "not yet observed");
        assert_eq!(spent(budget(-1, 3, 1), &ready).expect_err("negative").code, 403);
        let mut broken = budget(0, 3, 1);
        broken["status"]["conditions"] =
            json!([{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no scale"}]);
        let error = spent(broken, &ready).expect_err("the controller could not count");
        assert!(error.causes[0].message.ends_with("because it failed sync: no scale"), "{:?}", error.causes);
        assert!(spent(budget(0, 2, 1), &unready).expect("unhealthy pods may go").is_none());
        assert!(spent(budget(0, 1, 1), &unready).is_err());
    }
}
