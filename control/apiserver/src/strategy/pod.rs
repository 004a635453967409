//! Pods: status at birth, quality of service, what may change later, how long they take to go.

use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use super::{Context, DeleteOptions, Strategy};
use crate::error::{ApiError, Cause, Result};

/// Strategy of pods.
#[derive(Debug)]
pub struct Pod;

const UPDATE_MESSAGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

impl Strategy for Pod {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        complete_resources(new);
        complete_host_ports(new);
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(new)});
        if !items_at(new, "/spec/schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": fields::now(),
            }]);
        }
        new["status"] = status;
        Ok(())
    }

    fn prepare_for_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        // Ephemeral containers have a subresource of their own.
        fields::copy(new, old, &["spec", "ephemeralContainers"]);
        fields::copy(new, old, &["status"]);
        Ok(())
    }

    fn prepare_for_status_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        let class = str_at(old, "/status/qosClass");
        if !class.is_empty() && new["status"].is_object() {
            new["status"]["qosClass"] = json!(class);
        }
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        super::pod_spec::validate(&new["spec"], "spec", &super::pod_spec::Known::default())
    }

    fn validate_update(&self, ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        // These two have built the new pod from the old one and the part they may change.
        if matches!(ctx.info.subresource.as_str(), "ephemeralcontainers" | "resize") {
            return Vec::new();
        }
        let mut causes = Vec::new();
        if !tolerations_only_grow(new, old) {
            causes.push(Cause::forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            ));
        }
        if let (Some(was), now) =
            (old.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64), &new["spec"]["activeDeadlineSeconds"])
        {
            match now.as_i64() {
                Some(now) if now <= was => {}
                _ => causes.push(Cause::invalid(
                    "spec.activeDeadlineSeconds",
                    now,
                    "must be less than or equal to previous value",
                )),
            }
        }
        if masked(new, old) != masked(old, old) {
            causes.push(Cause::forbidden("spec", UPDATE_MESSAGE));
        }
        causes
    }

    fn grace_period(&self, old: &Value, options: &DeleteOptions) -> Option<i64> {
        let unscheduled = str_at(old, "/spec/nodeName").is_empty();
        let finished = matches!(str_at(old, "/status/phase"), "Succeeded" | "Failed");
        if unscheduled || finished {
            return Some(0);
        }
        let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
        let grace = options.grace_period_seconds.unwrap_or(own);
        Some(if grace < 0 { 1 } else { grace })
    }
}

/// Requests that were not given are the limits.
pub fn complete_resources(pod: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in fields::items_mut(pod, &["spec", list]) {
            let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
                continue;
            };
            let resources = &mut container["resources"];
            for (name, quantity) in limits {
                if resources.pointer("/requests").and_then(|r| r.get(&name)).is_none() {
                    resources["requests"][name] = quantity;
                }
            }
        }
    }
}

fn complete_host_ports(pod: &mut Value) {
    if pod.pointer("/spec/hostNetwork") != Some(&json!(true)) {
        return;
    }
    for list in ["containers", "initContainers"] {
        for container in fields::items_mut(pod, &["spec", list]) {
            for port in fields::items_mut(container, &["ports"]) {
                if port["hostPort"].as_i64().unwrap_or(0) == 0 {
                    port["hostPort"] = port["containerPort"].clone();
                }
            }
        }
    }
}

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let containers = items_at(pod, "/spec/containers").iter().chain(items_at(pod, "/spec/initContainers"));
    for container in containers {
        for resource in ["cpu", "memory"] {
            let amount = |kind: &str| {
                let text = container.pointer("/resources").and_then(|r| r.get(kind)?.get(resource));
                text.and_then(fields::quantity).filter(|q| !q.is_zero())
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The new pod's spec with everything that may change put as in `old`.
fn masked(new: &Value, old: &Value) -> Value {
    let mut spec = new["spec"].clone();
    for list in ["containers", "initContainers"] {
        let before = items_at(old, &format!("/spec/{list}")).to_vec();
        for (container, was) in fields::items_mut(&mut spec, &[list]).iter_mut().zip(&before) {
            container["image"] = was["image"].clone();
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations"] {
        fields::copy(&mut spec, &old["spec"], &[field]);
    }
    let grace = |v: &Value| v.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(&old["spec"]).is_some_and(|g| g < 0) && grace(&spec) == Some(1) {
        fields::copy(&mut spec, &old["spec"], &["terminationGracePeriodSeconds"]);
    }
    let (gates, were) = (items_at(new, "/spec/schedulingGates"), items_at(old, "/spec/schedulingGates"));
    if gates.iter().all(|g| were.contains(g)) {
        fields::copy(&mut spec, &old["spec"], &["schedulingGates"]);
    }
    if !were.is_empty() {
        // While gated, the choice of nodes may still be narrowed.
        fields::copy(&mut spec, &old["spec"], &["nodeSelector"]);
        fields::copy(&mut spec, &old["spec"], &["affinity"]);
    }
    spec
}

fn tolerations_only_grow(new: &Value, old: &Value) -> bool {
    let strip = |t: &Value| {
        let mut t = t.clone();
        if let Some(map) = t.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        t
    };
    let now: Vec<Value> = items_at(new, "/spec/tolerations").iter().map(strip).collect();
    items_at(old, "/spec/tolerations").iter().all(|t| now.contains(&strip(t)))
}

/// `pods/ephemeralcontainers`: the old pod with the new one's ephemeral containers.
pub fn with_ephemeral_containers(new: &Value, old: &Value) -> Result<Value> {
    let name = fields::name(old);
    if old.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return Err(ApiError::invalid(
            "",
            "Pod",
            name,
            vec![Cause::forbidden("spec.ephemeralContainers", "static pods do not support ephemeral containers")],
        ));
    }
    let before = items_at(old, "/spec/ephemeralContainers");
    let after = items_at(new, "/spec/ephemeralContainers");
    for was in before {
        match after.iter().find(|c| c["name"] == was["name"]) {
            Some(is) if is == was => {}
            Some(_) => {
                return Err(ephemeral_error(
                    name,
                    format!("existing ephemeral containers {:?} may not be changed\n", str_at(was, "/name")),
                ));
            }
            None => {
                return Err(ephemeral_error(
                    name,
                    format!("existing ephemeral containers {:?} may not be removed\n", str_at(was, "/name")),
                ));
            }
        }
    }
    let mut out = old.clone();
    fields::copy(&mut out, new, &["spec", "ephemeralContainers"]);
    let causes = super::pod_spec::validate(&out["spec"], "spec", &super::pod_spec::Known::default());
    if causes.is_empty() { Ok(out) } else { Err(ApiError::invalid("", "Pod", name, causes)) }
}

fn ephemeral_error(pod: &str, detail: String) -> ApiError {
    ApiError::invalid("", "Pod", pod, vec![Cause::forbidden("spec.ephemeralContainers", &detail)])
}

/// `pods/resize`: the old pod with the new one's container resources.
pub fn with_resources(new: &Value, old: &Value) -> Result<Value> {
    let mut out = old.clone();
    for list in ["containers", "initContainers"] {
        let after = items_at(new, &format!("/spec/{list}")).to_vec();
        for container in fields::items_mut(&mut out, &["spec", list]) {
            if let Some(is) = after.iter().find(|c| c["name"] == container["name"]) {
                container["resources"] = is["resources"].clone();
                container["resizePolicy"] = is["resizePolicy"].clone();
            }
        }
    }
    fields::drop_nulls_in_containers(&mut out);
    if qos_class(&out) != qos_class(old) {
        let cause = Cause::invalid(
            "metadata",
            &json!(fields::name(old)),
            "Pod QOS Class may not change as a result of resizing",
        );
        return Err(ApiError::invalid("", "Pod", fields::name(old), vec![cause]));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i", "resources": resources}]}})
    }

    #[test]
    fn classes() {
        let table = [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                "Guaranteed",
            ),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
        ];
        for (resources, want) in table {
            let mut p = pod(resources.clone());
            complete_resources(&mut p);
            assert_eq!(qos_class(&p), want, "{resources}");
        }
    }

    #[test]
    fn only_some_fields_change() {
        let old = pod(json!({}));
        let changed = |f: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            f(&mut new);
            masked(&new, &old) == masked(&old, &old)
        };
        assert!(changed(&|p| p["spec"]["containers"][0]["image"] = json!("j")));
        assert!(changed(&|p| p["spec"]["tolerations"] = json!([{"key": "x"}])));
        assert!(!changed(&|p| p["spec"]["nodeName"] = json!("n")));
        assert!(!changed(&|p| p["spec"]["containers"][0]["command"] = json!(["x"])));
        assert!(!changed(&|p| p["spec"]["containers"] = json!([])));
    }

    #[test]
    fn grace() {
        let running =
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 10}, "status": {"phase": "Running"}});
        let with = |g| DeleteOptions { grace_period_seconds: g, ..DeleteOptions::default() };
        assert_eq!(Pod.grace_period(&running, &with(None)), Some(10));
        assert_eq!(Pod.grace_period(&running, &with(Some(0))), Some(0));
        assert_eq!(Pod.grace_period(&running, &with(Some(-1))), Some(1));
        assert_eq!(Pod.grace_period(&json!({"spec": {}}), &with(None)), Some(0));
        assert_eq!(
            Pod.grace_period(&json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), &with(Some(30))),
            Some(0)
        );
    }

    #[test]
    fn ephemeral_containers_only_grow() {
        let old = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i"}], "ephemeralContainers": [{"name": "e", "image": "x"}]}});
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "x"}, {"name": "f", "image": "y"}]);
        new["spec"]["containers"][0]["image"] = json!("changed");
        let out = with_ephemeral_containers(&new, &old).expect("ok");
        assert_eq!(out["spec"]["containers"][0]["image"], "i");
        assert_eq!(out["spec"]["ephemeralContainers"][1]["name"], "f");
        new["spec"]["ephemeralContainers"] = json!([{"name": "f", "image": "y"}]);
        assert!(with_ephemeral_containers(&new, &old).is_err());
    }
}
