//! Defaults of the kinds that make pods.

use super::{each_at, pod_template, set, set_text, with};
use crate::kinds::Kind;
use serde_json::{Value, json};

pub(super) fn apply(kind: &Kind, o: &mut Value) {
    match kind.kind.as_ref() {
        "Deployment" => deployment(o),
        "ReplicaSet" => with(o, "spec", |s| {
            set(s, "replicas", 1.into());
            template(s);
        }),
        "StatefulSet" => stateful_set(o),
        "DaemonSet" => daemon_set(o),
        "Job" => job(o),
        "CronJob" => cron_job(o),
        _ => {}
    }
}

fn template(spec: &mut Value) {
    with(spec, "template", pod_template);
}

fn deployment(o: &mut Value) {
    with(o, "spec", |s| {
        set(s, "replicas", 1.into());
        with(s, "strategy", |t| {
            set_text(t, "type", "RollingUpdate");
            if t["type"] == "RollingUpdate" {
                with(t, "rollingUpdate", |r| {
                    set(r, "maxUnavailable", "25%".into());
                    set(r, "maxSurge", "25%".into());
                });
            }
        });
        set(s, "revisionHistoryLimit", 10.into());
        set(s, "progressDeadlineSeconds", 600.into());
        template(s);
    });
}

fn stateful_set(o: &mut Value) {
    with(o, "spec", |s| {
        set_text(s, "podManagementPolicy", "OrderedReady");
        with(s, "updateStrategy", |u| {
            set_text(u, "type", "RollingUpdate");
            if u["type"] == "RollingUpdate" {
                with(u, "rollingUpdate", |r| set(r, "partition", 0.into()));
            }
        });
        with(s, "persistentVolumeClaimRetentionPolicy", |p| {
            set_text(p, "whenDeleted", "Retain");
            set_text(p, "whenScaled", "Retain");
        });
        set(s, "replicas", 1.into());
        set(s, "revisionHistoryLimit", 10.into());
        each_at(s, &["volumeClaimTemplates"], |c| {
            set_text(c, "apiVersion", "v1");
            set_text(c, "kind", "PersistentVolumeClaim");
            super::claim(c);
        });
        template(s);
    });
}

fn daemon_set(o: &mut Value) {
    with(o, "spec", |s| {
        with(s, "updateStrategy", |u| {
            set_text(u, "type", "RollingUpdate");
            if u["type"] == "RollingUpdate" {
                with(u, "rollingUpdate", |r| {
                    set(r, "maxUnavailable", 1.into());
                    set(r, "maxSurge", 0.into());
                });
            }
        });
        set(s, "revisionHistoryLimit", 10.into());
        template(s);
    });
}

/// Labels of the template for an object that has none of its own.
fn labels_of_template(o: &mut Value) {
    let labels = o["spec"]["template"]["metadata"]["labels"].clone();
    let none = o["metadata"]["labels"].as_object().is_none_or(|m| m.is_empty());
    if none && labels.as_object().is_some_and(|m| !m.is_empty()) {
        crate::meta::set_value(o, "labels", labels);
    }
}

fn job(o: &mut Value) {
    labels_of_template(o);
    with(o, "spec", |s| {
        if s["completions"].is_null() && s["parallelism"].is_null() {
            s["completions"] = 1.into();
        }
        set(s, "parallelism", 1.into());
        let per_index = !s["backoffLimitPerIndex"].is_null();
        set(s, "backoffLimit", if per_index { i32::MAX.into() } else { 6.into() });
        set(s, "completionMode", "NonIndexed".into());
        set(s, "suspend", false.into());
        set(s, "manualSelector", false.into());
        let policy = if s["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
        set(s, "podReplacementPolicy", policy.into());
        each_at(s, &["podFailurePolicy", "rules"], |r| {
            each_at(r, &["onPodConditions"], |c| set_text(c, "status", "True"))
        });
        template(s);
    });
}

fn cron_job(o: &mut Value) {
    with(o, "spec", |s| {
        set_text(s, "concurrencyPolicy", "Allow");
        set(s, "suspend", false.into());
        set(s, "successfulJobsHistoryLimit", 3.into());
        set(s, "failedJobsHistoryLimit", 1.into());
        with(s, "jobTemplate", |j| {
            with(j, "metadata", |_| {});
            with(j, "spec", template);
        });
    });
}

pub(super) fn replication_controller(o: &mut Value) {
    labels_of_template(o);
    with(o, "spec", |s| {
        set(s, "replicas", 1.into());
        let labels = s["template"]["metadata"]["labels"].clone();
        if s["selector"].as_object().is_none_or(|m| m.is_empty()) && labels.is_object() {
            s["selector"] = labels;
        }
        template(s);
    });
    with(o, "status", |s| set(s, "replicas", json!(0)));
}
