//! Controllers of pods: deployments, replica sets, daemon sets, stateful sets, jobs, cron jobs.

use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use super::pod_spec::{self, Known};
use super::{Context, Strategy};
use crate::authz::rbac::selector_matches;
use crate::error::{Cause, Result};

/// Strategy of the kinds that hold pods up: what differs is data.
#[derive(Debug)]
pub struct Workload {
    /// What the status begins as.
    pub status: &'static str,
    /// Fields of a stateful set's spec that may change; empty: all but the selector.
    pub mutable: &'static [&'static str],
}

/// The initial statuses and update rules.
pub const DEPLOYMENT: Workload = Workload { status: "{}", mutable: &[] };
pub const REPLICA_SET: Workload = Workload { status: r#"{"replicas":0}"#, mutable: &[] };
pub const DAEMON_SET: Workload = Workload {
    status: r#"{"currentNumberScheduled":0,"numberMisscheduled":0,"desiredNumberScheduled":0,"numberReady":0}"#,
    mutable: &[],
};
pub const STATEFUL_SET: Workload = Workload {
    status: r#"{"replicas":0,"availableReplicas":0}"#,
    mutable: &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ],
};

const STATEFUL_SET_MESSAGE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

impl Strategy for Workload {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = serde_json::from_str(self.status).unwrap_or_else(|_| json!({}));
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = selector_causes(new, str_at(new, "/kind") == "ReplicationController");
        if new["spec"]["replicas"].as_i64().is_some_and(|n| n < 0) {
            causes.push(Cause::invalid(
                "spec.replicas",
                &new["spec"]["replicas"],
                "must be greater than or equal to 0",
            ));
        }
        let templates = new["spec"]["volumeClaimTemplates"].as_array().map(Vec::as_slice).unwrap_or_default();
        let claims = templates.iter().map(|t| str_at(t, "/metadata/name")).filter(|n| !n.is_empty()).collect();
        let known = Known { claims, restart_policies: &["Always"] };
        causes.extend(pod_spec::validate(&new["spec"]["template"]["spec"], "spec.template.spec", &known));
        causes
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        if !self.mutable.is_empty() {
            let frozen = |o: &Value| {
                let mut spec = o["spec"].as_object().cloned().unwrap_or_default();
                spec.retain(|k, v| !self.mutable.contains(&k.as_str()) && !v.is_null());
                spec
            };
            let equal = frozen(new) == frozen(old);
            return if equal { Vec::new() } else { vec![Cause::forbidden("spec", STATEFUL_SET_MESSAGE)] };
        }
        if str_at(new, "/kind") != "ReplicationController" && !fields::same(new, old, "/spec/selector") {
            return vec![Cause::invalid("spec.selector", &new["spec"]["selector"], "field is immutable")];
        }
        Vec::new()
    }
}

fn selector_causes(new: &Value, plain: bool) -> Vec<Cause> {
    let selector =
        if plain { json!({"matchLabels": new["spec"]["selector"]}) } else { new["spec"]["selector"].clone() };
    let empty = selector["matchLabels"].as_object().is_none_or(|m| m.is_empty())
        && items_at(&selector, "/matchExpressions").is_empty();
    if empty {
        return match (plain, new["spec"]["selector"].is_null()) {
            (true, _) | (_, true) => vec![Cause::required("spec.selector", "")],
            _ => vec![Cause::invalid(
                "spec.selector",
                &new["spec"]["selector"],
                "empty selector is invalid for deployment",
            )],
        };
    }
    let template = &new["spec"]["template"];
    if selector_matches(&selector, template) {
        return Vec::new();
    }
    let detail = "`selector` does not match template `labels`";
    vec![Cause::invalid("spec.template.metadata.labels", &template["metadata"]["labels"], detail)]
}

/// Strategy of replication controllers: an empty selector is the template's labels.
#[derive(Debug)]
pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn prepare_for_create(&self, ctx: Context<'_>, new: &mut Value) -> Result<()> {
        let labels = new["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object() {
            if new["spec"]["selector"].as_object().is_none_or(|m| m.is_empty()) {
                new["spec"]["selector"] = labels.clone();
            }
            if new["metadata"]["labels"].as_object().is_none_or(|m| m.is_empty()) {
                new["metadata"]["labels"] = labels;
            }
        }
        REPLICA_SET.prepare_for_create(ctx, new)
    }

    fn validate(&self, ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        REPLICA_SET.validate(ctx, new)
    }

    fn default_propagation(&self) -> &'static str {
        "Background"
    }
}

/// Strategy of jobs.
#[derive(Debug)]
pub struct Job;

const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

impl Strategy for Job {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({});
        generate_selector(new);
        Ok(())
    }

    fn prepare_for_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        fields::copy(new, old, &["status"]);
        if new["spec"].get("selector").is_none_or(Value::is_null) {
            fields::copy(new, old, &["spec", "selector"]);
        }
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        for field in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
        {
            if new["spec"][field].as_i64().is_some_and(|n| n < 0) {
                causes.push(Cause::invalid(
                    &format!("spec.{field}"),
                    &new["spec"][field],
                    "must be greater than or equal to 0",
                ));
            }
        }
        let template = &new["spec"]["template"]["spec"];
        let policy = str_at(template, "/restartPolicy");
        if !matches!(policy, "OnFailure" | "Never") {
            let detail = json!(policy);
            causes.push(match policy {
                "" => Cause::required("spec.template.spec.restartPolicy", "valid values: \"OnFailure\", \"Never\""),
                _ => Cause::not_supported("spec.template.spec.restartPolicy", &detail, &["OnFailure", "Never"]),
            });
        } else {
            causes.extend(pod_spec::validate(template, "spec.template.spec", &Known::default()));
        }
        if str_at(new, "/spec/completionMode") == "Indexed" && new["spec"]["completions"].is_null() {
            causes.push(Cause::required("spec.completions", "when completion mode is Indexed"));
        }
        causes
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut fixed = |field: &str| {
            if !fields::same(new, old, &format!("/spec/{field}")) {
                causes.push(Cause::invalid(&format!("spec.{field}"), &new["spec"][field], "field is immutable"));
            }
        };
        fixed("selector");
        fixed("completionMode");
        fixed("podFailurePolicy");
        fixed("backoffLimitPerIndex");
        if str_at(old, "/spec/completionMode") != "Indexed" {
            fixed("completions");
        }
        // A job that has not started yet may still choose its nodes.
        let unstarted = old["spec"]["suspend"] == json!(true) && str_at(old, "/status/startTime").is_empty();
        if !unstarted {
            fixed("template");
        }
        causes
    }

    fn default_propagation(&self) -> &'static str {
        // Deliberate: clients that name no policy leave no pods behind with the batch/v1 API.
        "Background"
    }
}

/// Labels and selector by the job's uid, unless its author keeps them himself.
fn generate_selector(new: &mut Value) {
    if new["spec"]["manualSelector"] == json!(true) {
        return;
    }
    if str_at(new, "/metadata/uid").is_empty() {
        new["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
    }
    let uid = str_at(new, "/metadata/uid").to_string();
    let name = fields::name(new).to_string();
    if !new["spec"]["template"].is_object() {
        return;
    }
    let template = &mut new["spec"]["template"];
    if template["metadata"].is_null() {
        template["metadata"] = json!({});
    }
    for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
        for key in keys {
            fields::set_meta(template, "labels", key, value);
        }
    }
    if new["spec"]["selector"].is_null() || new["spec"]["selector"] == json!({}) {
        new["spec"]["selector"] = json!({"matchLabels": {UID_LABELS[0]: uid}});
    }
}

/// Strategy of cron jobs.
#[derive(Debug)]
pub struct CronJob;

impl Strategy for CronJob {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({});
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        let schedule = str_at(new, "/spec/schedule");
        let parts = schedule.split_whitespace().count();
        if schedule.is_empty() {
            causes.push(Cause::required("spec.schedule", ""));
        } else if !(schedule.starts_with('@') || parts == 5) {
            let detail = format!("expected exactly 5 fields, found {parts}: [{schedule}]");
            causes.push(Cause::invalid("spec.schedule", &json!(schedule), &detail));
        }
        let template = &new["spec"]["jobTemplate"]["spec"]["template"]["spec"];
        let policy = str_at(template, "/restartPolicy");
        let at = "spec.jobTemplate.spec.template.spec";
        if !matches!(policy, "OnFailure" | "Never") {
            causes.push(Cause::not_supported(&format!("{at}.restartPolicy"), &json!(policy), &["OnFailure", "Never"]));
        }
        causes.extend(pod_spec::validate(template, at, &Known::default()));
        causes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_get_their_selector() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        generate_selector(&mut job);
        assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        let labels = &job["spec"]["template"]["metadata"]["labels"];
        assert_eq!((&labels["job-name"], &labels["controller-uid"]), (&json!("j"), &json!("u")));
        let manual = json!({"metadata": {"name": "j"}, "spec": {"manualSelector": true, "template": {}}});
        let mut same = manual.clone();
        generate_selector(&mut same);
        assert_eq!(same, manual);
    }

    #[test]
    fn selectors_match_their_template() {
        let table = [
            (
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}}}}),
                "",
            ),
            (
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "c"}}}}}),
                "spec.template.metadata.labels",
            ),
            (json!({"spec": {"template": {}}}), "spec.selector"),
        ];
        for (object, field) in table {
            assert_eq!(
                selector_causes(&object, false).first().map(|c| c.field.as_str()).unwrap_or_default(),
                field,
                "{object}"
            );
        }
    }
}
