//! Deployments, replica sets, daemon sets, stateful sets and their revisions.

use super::at::{At, Errors, IMMUTABLE, same};
use super::{core, pod, selectors};
use crate::names;

const MISMATCH: &str = "`selector` does not match template `labels`";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
const OVER: &str = "must not be greater than 100%";

/// A number that is not negative, or a percentage.
pub(crate) fn int_or_percent(e: &mut Errors, at: &At) {
    if at.value.is_string() {
        if !names::is_percent(at.text()) {
            e.invalid(at, PERCENT);
        }
    } else {
        e.non_negative(at);
    }
}

/// That a percentage is at most 100.
pub(crate) fn at_most_100_percent(e: &mut Errors, at: &At) {
    let percent = at.text().strip_suffix('%').filter(|_| names::is_percent(at.text()));
    if percent.is_some_and(|p| p.parse::<u64>().map_or(true, |n| n > 100)) {
        e.invalid(at, OVER);
    }
}

fn amount(at: &At) -> i64 {
    let text = at.text();
    text.strip_suffix('%').unwrap_or(text).parse().ok().or(at.int()).unwrap_or(0)
}

/// The selector that a workload's kind must have; `word` is what the kind calls itself.
fn selector(e: &mut Errors, at: &At, word: &str) {
    if !at.is_set() {
        return e.required(at, "");
    }
    selectors::label_selector(e, at);
    if selectors::is_empty(at) {
        e.invalid(at, format!("empty selector is invalid for {word}"));
    }
}

fn template_matches(e: &mut Errors, spec: &At) {
    let at = spec.get("selector");
    let labels = spec.get("template.metadata.labels");
    if at.is_set() && !selectors::is_empty(&at) && !selectors::matches(&at, &labels) {
        e.invalid(&labels, MISMATCH);
    }
}

/// A deployment.
pub(crate) fn deployment(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    e.non_negative(&spec.get("replicas"));
    selector(e, &spec.get("selector"), "deployment");
    template_matches(e, &spec);
    pod::restarting_template(e, &spec.get("template"), &[], "ReplicaSet");
    strategy(e, &spec.get("strategy"));
    e.non_negative(&spec.get("minReadySeconds"));
    e.non_negative(&spec.get("revisionHistoryLimit"));
    let deadline = spec.get("progressDeadlineSeconds");
    e.non_negative(&deadline);
    if deadline.int().is_some_and(|d| d <= spec.get("minReadySeconds").int().unwrap_or(0)) {
        e.invalid(&deadline, "must be greater than minReadySeconds");
    }
}

fn strategy(e: &mut Errors, at: &At) {
    let rolling = at.get("rollingUpdate");
    match at.get("type").text() {
        "Recreate" => {
            if rolling.is_set() {
                e.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            if !rolling.is_set() {
                return e.required(&rolling, "this should be defaulted and never be nil");
            }
            let (less, more) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            int_or_percent(e, &less);
            int_or_percent(e, &more);
            if amount(&less) == 0 && amount(&more) == 0 {
                e.invalid(&less, "may not be 0 when `maxSurge` is 0");
            }
            at_most_100_percent(e, &less);
        }
        _ => e.not_supported(at, &["Recreate", "RollingUpdate"]),
    }
}

/// A changed deployment, replica set or daemon set.
pub(crate) fn keeps_selector(e: &mut Errors, new: &At, old: &At) {
    e.fixed(&new.get("spec.selector"), old.get("spec.selector").value);
}

fn decremented(e: &mut Errors, new: &At, old: &At) {
    let (is, was) = (new.get("status.collisionCount"), old.get("status.collisionCount"));
    if was.int().is_some_and(|w| is.int().is_none_or(|i| i < w)) {
        e.invalid_as(&is, is.int().unwrap_or(0), "cannot be decremented");
    }
}

/// A deployment's changed status.
pub(crate) fn deployment_status(e: &mut Errors, new: &At, old: &At) {
    let s = new.get("status");
    let counters = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ];
    counters.iter().for_each(|f| e.non_negative(&s.get(f)));
    at_most_replicas(e, &s, &["updatedReplicas", "readyReplicas", "availableReplicas"], "readyReplicas");
    decremented(e, new, old);
}

fn at_most_replicas(e: &mut Errors, s: &At, fields: &[&str], ready: &str) {
    let n = |f: &str| s.get(f).int().unwrap_or(0);
    for f in fields {
        if n(f) > n("replicas") {
            e.invalid(&s.get(f), "cannot be greater than status.replicas");
        }
    }
    if n("availableReplicas") > n("readyReplicas") {
        e.invalid(&s.get("availableReplicas"), format!("cannot be greater than {ready}"));
    }
}

/// A replica set.
pub(crate) fn replica_set(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    e.non_negative(&spec.get("replicas"));
    e.non_negative(&spec.get("minReadySeconds"));
    // Upstream's text names the deployment here too.
    selector(e, &spec.get("selector"), "deployment");
    template_matches(e, &spec);
    pod::restarting_template(e, &spec.get("template"), &[], "ReplicaSet");
}

/// A replica set's changed status.
pub(crate) fn replica_set_status(e: &mut Errors, new: &At) {
    core::replica_status(e, new);
}

/// A daemon set.
pub(crate) fn daemon_set(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let chosen = spec.get("selector");
    selectors::label_selector(e, &chosen);
    template_matches(e, &spec);
    if chosen.is_set() && selectors::is_empty(&chosen) {
        e.invalid(&chosen, "empty selector is invalid for daemonset");
    } else if !chosen.is_set() {
        let labels = spec.get("template.metadata.labels");
        e.invalid(&labels, MISMATCH);
    }
    pod::restarting_template(e, &spec.get("template"), &[], "DaemonSet");
    e.non_negative(&spec.get("minReadySeconds"));
    daemon_strategy(e, &spec.get("updateStrategy"));
    e.non_negative(&spec.get("revisionHistoryLimit"));
}

fn daemon_strategy(e: &mut Errors, at: &At) {
    let rolling = at.get("rollingUpdate");
    match at.get("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            if !rolling.is_set() {
                return e.required(&rolling, "");
            }
            let (less, more) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            int_or_percent(e, &less);
            int_or_percent(e, &more);
            at_most_100_percent(e, &less);
            at_most_100_percent(e, &more);
            match (amount(&less) != 0, amount(&more) != 0) {
                (true, true) => e.invalid(&more, "may not be set when maxUnavailable is non-zero"),
                (false, false) => e.required(&less, "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        _ => e.not_supported(at, &["RollingUpdate", "OnDelete"]),
    }
}

/// A daemon set's changed status.
pub(crate) fn daemon_set_status(e: &mut Errors, new: &At, old: &At) {
    let counters = [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ];
    let s = new.get("status");
    counters.iter().for_each(|f| e.non_negative(&s.get(f)));
    decremented(e, new, old);
}

/// A stateful set; `old` is what is there, whose faults in the template are let through.
pub(crate) fn stateful_set(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let management = spec.get("podManagementPolicy");
    if e.need(&management) && !["OrderedReady", "Parallel"].contains(&management.text()) {
        e.invalid(&management, "must be 'OrderedReady' or 'Parallel'");
    }
    stateful_strategy(e, &spec.get("updateStrategy"));
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    if retention.is_set() {
        for field in ["whenDeleted", "whenScaled"] {
            if !["Retain", "Delete"].contains(&retention.get(field).text()) {
                e.not_supported(&retention.get(field), &["Retain", "Delete"]);
            }
        }
    }
    e.non_negative(&spec.get("replicas"));
    e.non_negative(&spec.get("minReadySeconds"));
    e.non_negative(&spec.get("ordinals.start"));
    selector(e, &spec.get("selector"), "statefulset");
    template_matches(e, &spec);
    let service = spec.get("serviceName");
    let was = old.map_or("", |o| o.get("spec.serviceName").text());
    if !service.is_empty() && (old.is_none() || names::dns1123_label(was).is_empty()) {
        e.dns_label(&service);
    }
    if old.is_none_or(|o| template_errors(o).0.is_empty()) {
        e.0.append(&mut template_errors(o).0);
    }
    let template = spec.get("template.spec");
    if template.get("restartPolicy").text() != "Always" {
        e.not_supported(&template.get("restartPolicy"), &["Always"]);
    }
    if template.get("activeDeadlineSeconds").is_set() {
        let detail = "activeDeadlineSeconds in StatefulSet is not Supported";
        e.forbidden(&template.get("activeDeadlineSeconds"), detail);
    }
}

fn template_errors(o: &At) -> Errors {
    let mut e = Errors::default();
    let spec = o.get("spec");
    let list = spec.get("volumeClaimTemplates");
    let claims: Vec<&str> = list.items().map(|t| t.get("metadata.name").text()).filter(|n| !n.is_empty()).collect();
    pod::template(&mut e, &spec.get("template"), &claims);
    e
}

fn stateful_strategy(e: &mut Errors, at: &At) {
    let rolling = at.get("rollingUpdate");
    match at.get("type").text() {
        "" => e.required(at, ""),
        "OnDelete" => {
            if rolling.is_set() {
                e.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            e.non_negative(&rolling.get("partition"));
            let less = rolling.get("maxUnavailable");
            if less.is_set() {
                int_or_percent(e, &less);
                if amount(&less) == 0 {
                    e.invalid(&less, "cannot be 0");
                }
                at_most_100_percent(e, &less);
            }
        }
        _ => e.invalid(at, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// A changed stateful set.
pub(crate) fn stateful_set_update(e: &mut Errors, new: &At, old: &At) {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    stateful_set(e, new, Some(old));
    let frozen = |o: &At| {
        let mut spec = o.get("spec").value.as_object().cloned().unwrap_or_default();
        spec.retain(|k, _| !MUTABLE.contains(&k.as_str()));
        // The templates' statuses are the server's own.
        for claim in spec.get_mut("volumeClaimTemplates").and_then(|v| v.as_array_mut()).into_iter().flatten() {
            if let Some(claim) = claim.as_object_mut() {
                claim.remove("status");
            }
        }
        serde_json::Value::Object(spec)
    };
    if !same(&frozen(new), &frozen(old)) {
        e.forbidden(&new.get("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
    }
}

/// A stateful set's changed status.
pub(crate) fn stateful_set_status(e: &mut Errors, new: &At, old: &At) {
    let s = new.get("status");
    let counters = [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    counters.iter().for_each(|f| e.non_negative(&s.get(f)));
    let fields = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    at_most_replicas(e, &s, &fields, "status.readyReplicas");
    decremented(e, new, old);
}

/// A controller revision.
pub(crate) fn revision(e: &mut Errors, o: &At) {
    if !o.get("data").is_set() {
        e.required(&o.get("data"), "data is mandatory");
    }
    e.non_negative(&o.get("revision"));
}

/// A changed controller revision.
pub(crate) fn revision_update(e: &mut Errors, new: &At, old: &At) {
    revision(e, new);
    if new.get("data").value != old.get("data").value {
        e.invalid(&new.get("data"), IMMUTABLE);
    }
}
