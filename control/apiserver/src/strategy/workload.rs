//! Controllers of pods: deployments, replica sets, daemon sets, stateful sets, jobs, cron jobs.

use serde_json::{Value, json};

use super::fields::{self, str_at};
use super::{Context, Strategy};
use crate::error::Result;

/// Strategy of the kinds that hold pods up: what their status begins as.
#[derive(Debug)]
pub struct Workload(&'static str);

/// The initial statuses.
pub const DEPLOYMENT: Workload = Workload("{}");
pub const REPLICA_SET: Workload = Workload(r#"{"replicas":0}"#);
pub const DAEMON_SET: Workload =
    Workload(r#"{"currentNumberScheduled":0,"numberMisscheduled":0,"desiredNumberScheduled":0,"numberReady":0}"#);
pub const STATEFUL_SET: Workload = Workload(r#"{"replicas":0,"availableReplicas":0}"#);

impl Strategy for Workload {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = serde_json::from_str(self.0).unwrap_or_else(|_| json!({}));
        Ok(())
    }
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

    fn default_propagation(&self) -> &'static str {
        // Deliberate: clients that name no policy leave no pods behind with the batch/v1 API.
        "Background"
    }
}

/// Labels and selector by the job's uid, unless its author keeps them himself. What he wrote
/// there stays; the rules refuse it where it is another job's.
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
            if template["metadata"]["labels"].get(key).is_none() {
                fields::set_meta(template, "labels", key, value);
            }
        }
    }
    fields::map_mut(&mut new["spec"], "selector");
    if let Some(chosen) = fields::map_mut(&mut new["spec"]["selector"], "matchLabels") {
        chosen.entry(UID_LABELS[0]).or_insert_with(|| json!(uid));
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
        // A job made from the text of another keeps that one's labels, and is refused for them.
        let mut copied = job.clone();
        copied["metadata"] = json!({"name": "k", "uid": "v"});
        generate_selector(&mut copied);
        assert_eq!(copied["spec"], job["spec"]);
        let manual = json!({"metadata": {"name": "j"}, "spec": {"manualSelector": true, "template": {}}});
        let mut same = manual.clone();
        generate_selector(&mut same);
        assert_eq!(same, manual);
    }
}
