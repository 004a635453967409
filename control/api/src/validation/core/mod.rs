//! The core group, but for pods.

mod data;
mod endpoints;
mod limits;
mod nodes;
mod services;
mod volumes;

pub(crate) use data::{config_map, config_map_update, secret, secret_update};
pub(crate) use endpoints::{endpoints, event, event_update};
pub(crate) use limits::{limit_range, quota, quota_status, quota_update};
pub(crate) use nodes::{node, node_update};
pub(crate) use services::{balancer_status, ordinary_address, service, service_update};
pub(crate) use volumes::{claim, claim_spec, claim_status, claim_update, inline_volume_spec, volume, volume_update};

use super::at::{At, Errors};
use super::metadata::{NOT_A_FINALIZER, PLAIN_FINALIZERS};
use super::pod;

/// A finalizer without a domain must be one that is known.
pub(crate) fn plain_finalizer(e: &mut Errors, at: &At) {
    if !at.text().contains('/') && !PLAIN_FINALIZERS.contains(&at.text()) {
        e.invalid(at, NOT_A_FINALIZER);
    }
}

/// A namespace.
pub(crate) fn namespace(e: &mut Errors, o: &At) {
    let list = o.get("spec.finalizers");
    for f in list.items() {
        let shown = o.named("spec.finalizers", f.value);
        e.qualified_name(&shown);
        plain_finalizer(e, &shown);
    }
}

/// A namespace through `finalize`.
pub(crate) fn namespace_finalize(e: &mut Errors, o: &At) {
    for f in o.get("spec.finalizers").items() {
        e.qualified_name(&f);
        plain_finalizer(e, &f);
    }
}

/// A namespace's changed status.
pub(crate) fn namespace_status(e: &mut Errors, o: &At) {
    let phase = o.named("status.Phase", o.get("status.phase").value);
    let ending = o.get("metadata.deletionTimestamp").is_set();
    if !ending && phase.text() != "Active" {
        e.invalid_as(&phase, phase.text(), "may only be 'Active' if `deletionTimestamp` is empty");
    } else if ending && phase.text() != "Terminating" {
        e.invalid_as(&phase, phase.text(), "may only be 'Terminating' if `deletionTimestamp` is not empty");
    }
}

/// A replication controller.
pub(crate) fn replication_controller(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    e.non_negative(&spec.get("minReadySeconds"));
    let selector = spec.get("selector");
    e.need(&selector);
    e.non_negative(&spec.get("replicas"));
    let template = spec.get("template");
    if !template.is_set() {
        return e.required(&template, "");
    }
    let labels = template.get("metadata.labels");
    let misses = selector.entries().any(|(k, v)| labels.value.get(k) != Some(v.value));
    if misses {
        e.invalid(&labels, "`selector` does not match template `labels`");
    }
    pod::restarting_template(e, &template, &[], "ReplicationController");
}

/// Counters of a replication controller's or a replica set's status.
pub(crate) fn replica_status(e: &mut Errors, o: &At) {
    let s = o.get("status");
    let counters = ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    counters.iter().for_each(|f| e.non_negative(&s.get(f)));
    let n = |f: &str| s.get(f).int().unwrap_or(0);
    for f in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if n(f) > n("replicas") {
            e.invalid(&s.get(f), "cannot be greater than status.replicas");
        }
    }
    if n("availableReplicas") > n("readyReplicas") {
        e.invalid(&s.get("availableReplicas"), "cannot be greater than readyReplicas");
    }
}

/// A pod template object.
pub(crate) fn pod_template(e: &mut Errors, o: &At) {
    pod::template(e, &o.get("template"), &[]);
}

/// A binding of a pod to its node.
pub(crate) fn binding(e: &mut Errors, o: &At) {
    let kind = o.get("target.kind");
    if !kind.is_empty() && kind.text() != "Node" {
        e.not_supported(&kind, &["Node", "<empty>"]);
    }
    e.need(&o.get("target.name"));
}
