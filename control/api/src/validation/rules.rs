//! Which rules run for which kind.

use super::at::{At, Errors, IMMUTABLE};
use super::{
    Write, admission, apps, autoscaling, batch, certificates, cluster, coordination, core, customs, devices, discovery,
    flow, networking, pod, policy, rbac, storage,
};
use crate::kinds::Kind;
use crate::status::FieldError;
use std::collections::HashSet;

/// A new object.
pub(super) fn create(e: &mut Errors, kind: &Kind, asked: &str, o: &At) {
    match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("", "Pod") => pod::create(e, o),
        ("apps", "StatefulSet") => apps::stateful_set(e, o, None),
        ("networking.k8s.io", "Ingress") => networking::ingress(e, o, None),
        ("autoscaling", _) => autoscaling::autoscaler(e, o, None),
        ("storage.k8s.io", "VolumeAttachment") => storage::new_attachment(e, o),
        ("certificates.k8s.io", "CertificateSigningRequest") => certificates::request(e, o, None),
        ("", "Event") => core::event(e, o, asked == "events.k8s.io"),
        _ => state(e, kind, o),
    }
}

/// What holds for an object at all times, where that is all.
fn state(e: &mut Errors, kind: &Kind, o: &At) {
    match kind.group.as_ref() {
        "" => core_state(e, &kind.kind, o),
        "apps" => match kind.kind.as_ref() {
            "Deployment" => apps::deployment(e, o),
            "ReplicaSet" => apps::replica_set(e, o),
            "DaemonSet" => apps::daemon_set(e, o),
            "ControllerRevision" => apps::revision(e, o),
            _ => {}
        },
        "batch" => match kind.kind.as_ref() {
            "Job" => batch::job(e, o),
            _ => batch::cron_job(e, o),
        },
        "networking.k8s.io" => match kind.kind.as_ref() {
            "NetworkPolicy" => networking::policy(e, o, None),
            "IngressClass" => networking::class(e, o),
            "IPAddress" => networking::address(e, o),
            "ServiceCIDR" => networking::service_cidr(e, o),
            _ => {}
        },
        "storage.k8s.io" => match kind.kind.as_ref() {
            "StorageClass" => storage::class(e, o),
            "CSIDriver" => storage::csi_driver(e, o),
            "CSINode" => storage::csi_node(e, o),
            "CSIStorageCapacity" => storage::capacity(e, o),
            "VolumeAttributesClass" => storage::attributes_class(e, o),
            _ => {}
        },
        "admissionregistration.k8s.io" => match kind.kind.as_ref() {
            "MutatingWebhookConfiguration" => admission::webhooks(e, o, true),
            "ValidatingWebhookConfiguration" => admission::webhooks(e, o, false),
            "MutatingAdmissionPolicy" => admission::policy(e, o, true),
            "ValidatingAdmissionPolicy" => admission::policy(e, o, false),
            "MutatingAdmissionPolicyBinding" => admission::binding(e, o, true),
            "ValidatingAdmissionPolicyBinding" => admission::binding(e, o, false),
            _ => {}
        },
        "rbac.authorization.k8s.io" => match kind.kind.as_ref() {
            "Role" | "ClusterRole" => rbac::role(e, o, kind.namespaced),
            _ => rbac::binding(e, o, kind.namespaced),
        },
        "flowcontrol.apiserver.k8s.io" => match kind.kind.as_ref() {
            "FlowSchema" => flow::schema(e, o),
            _ => flow::level(e, o),
        },
        "coordination.k8s.io" => match kind.kind.as_ref() {
            "Lease" => coordination::lease(e, o),
            _ => coordination::candidate(e, o),
        },
        "resource.k8s.io" => match kind.kind.as_ref() {
            "DeviceClass" => devices::class(e, o, None),
            "ResourceClaim" => devices::claim(e, o),
            "ResourceClaimTemplate" => devices::template(e, o),
            "ResourceSlice" => devices::slice(e, o, None),
            _ => customs::required_texts(e, kind, o),
        },
        "policy" => policy::budget(e, o),
        "discovery.k8s.io" => discovery::slice(e, o),
        "node.k8s.io" => cluster::runtime_class(e, o),
        "apiregistration.k8s.io" => cluster::api_service(e, o),
        "apiextensions.k8s.io" => {
            let (errors, unenforced) = crate::crd::check(o.value);
            e.0.extend(errors);
            e.1.extend(unenforced);
        }
        "scheduling.k8s.io" if kind.kind == "PriorityClass" => cluster::priority_class(e, o),
        _ => customs::required_texts(e, kind, o),
    }
}

fn core_state(e: &mut Errors, kind: &str, o: &At) {
    match kind {
        "Namespace" => core::namespace(e, o),
        "ConfigMap" => core::config_map(e, o),
        "Secret" => core::secret(e, o),
        "Service" => core::service(e, o),
        "Endpoints" => core::endpoints(e, o),
        "Node" => core::node(e, o),
        "LimitRange" => core::limit_range(e, o),
        "ResourceQuota" => core::quota(e, o),
        "PersistentVolume" => core::volume(e, o),
        "PersistentVolumeClaim" => core::claim(e, o),
        "ReplicationController" => core::replication_controller(e, o),
        "PodTemplate" => core::pod_template(e, o),
        _ => {}
    }
}

/// A changed object, or a part of it.
pub(super) fn update(e: &mut Errors, w: &Write, new: &At, old: &At) {
    match w.part {
        "status" => status(e, w.kind, new, old),
        "" => {
            main(e, w, new, old);
            fixed(e, w.kind, new, old);
        }
        part => part_of(e, w.kind, part, new, old),
    }
    if w.kind.kind == "CustomResourceDefinition" {
        stored_versions(e, new);
    }
}

fn main(e: &mut Errors, w: &Write, new: &At, old: &At) {
    match (w.kind.group.as_ref(), w.kind.kind.as_ref()) {
        ("", "Pod") => pod::update(e, new, old),
        ("", "ConfigMap") => core::config_map_update(e, new, old),
        ("", "Secret") => core::secret_update(e, new, old),
        ("", "Event") => core::event_update(e, new, old, w.group == "events.k8s.io"),
        ("", "Service") => core::service_update(e, new, old),
        ("", "ResourceQuota") => core::quota_update(e, new, old),
        ("", "PersistentVolume") => core::volume_update(e, new, old),
        ("", "PersistentVolumeClaim") => core::claim_update(e, new, old),
        ("", "Node") => {
            core::node(e, new);
            core::node_update(e, new, old);
        }
        ("apps", "StatefulSet") => apps::stateful_set_update(e, new, old),
        ("apps", "ControllerRevision") => apps::revision_update(e, new, old),
        ("apps", _) => {
            state(e, w.kind, new);
            apps::keeps_selector(e, new, old);
        }
        ("batch", "Job") => batch::job_update(e, new, old),
        ("batch", _) => batch::cron_job_update(e, new, old),
        ("networking.k8s.io", "Ingress") => networking::ingress(e, new, Some(old)),
        ("networking.k8s.io", "NetworkPolicy") => networking::policy(e, new, Some(old)),
        ("autoscaling", _) => autoscaling::autoscaler(e, new, Some(old)),
        ("storage.k8s.io", "StorageClass") => {
            storage::class(e, new);
            storage::class_update(e, new, old);
        }
        ("storage.k8s.io", "VolumeAttachment") => storage::attachment_update(e, new, old),
        ("storage.k8s.io", "CSINode") => storage::csi_node_update(e, new, old),
        ("storage.k8s.io", "CSIDriver") => storage::csi_driver_update(e, new, old),
        ("storage.k8s.io", "CSIStorageCapacity") => {
            storage::capacity(e, new);
            storage::capacity_update(e, new, old);
        }
        ("storage.k8s.io", "VolumeAttributesClass") => storage::attributes_class_update(e, new, old),
        ("certificates.k8s.io", "CertificateSigningRequest") => certificates::request_update(e, new, old, ""),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            rbac::binding_update(e, new, old, w.kind.namespaced);
        }
        // The specs of claims and templates stay, so they are not looked at again.
        ("resource.k8s.io", "ResourceClaim" | "ResourceClaimTemplate") => {}
        ("resource.k8s.io", "DeviceClass") => devices::class(e, new, Some(old)),
        ("resource.k8s.io", "ResourceSlice") => devices::slice(e, new, Some(old)),
        ("coordination.k8s.io", "LeaseCandidate") => coordination::candidate_update(e, new, old),
        ("scheduling.k8s.io", "PriorityClass") => cluster::priority_class_update(e, new, old),
        ("node.k8s.io", _) => {
            cluster::runtime_class(e, new);
            cluster::runtime_class_update(e, new, old);
        }
        ("apiextensions.k8s.io", _) => {
            let first = e.0.len();
            state(e, w.kind, new);
            // Versions that came in under looser rules and do not change are let through.
            if new.get("spec.versions").value == old.get("spec.versions").value {
                let faults = e.0.split_off(first);
                e.0.extend(faults.into_iter().filter(|f| !f.field.starts_with("spec.versions")));
            }
        }
        _ => state(e, w.kind, new),
    }
}

fn status(e: &mut Errors, kind: &Kind, new: &At, old: &At) {
    match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("", "Pod") => pod::status_update(e, new, old),
        ("", "Namespace") => core::namespace_status(e, new),
        ("", "Node") => core::node_update(e, new, old),
        ("", "Service") => core::balancer_status(e, new, true),
        ("", "ResourceQuota") => core::quota_status(e, new),
        ("", "ReplicationController") => core::replica_status(e, new),
        ("", "PersistentVolumeClaim") => core::claim_status(e, new),
        ("apps", "Deployment") => apps::deployment_status(e, new, old),
        ("apps", "ReplicaSet") => apps::replica_set_status(e, new),
        ("apps", "DaemonSet") => apps::daemon_set_status(e, new, old),
        ("apps", "StatefulSet") => apps::stateful_set_status(e, new, old),
        ("batch", "Job") => batch::job_status(e, new, old),
        ("networking.k8s.io", "Ingress") => core::balancer_status(e, new, false),
        ("autoscaling", _) => autoscaling::autoscaler_status(e, new),
        ("policy", _) => policy::budget_status(e, new),
        ("storage.k8s.io", "VolumeAttachment") => storage::attachment_update(e, new, old),
        ("certificates.k8s.io", "CertificateSigningRequest") => certificates::request_update(e, new, old, "status"),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => flow::conditions(e, new),
        ("flowcontrol.apiserver.k8s.io", _) => flow::conditions(e, new),
        ("apiregistration.k8s.io", _) => cluster::api_service_status(e, new),
        ("resource.k8s.io", "ResourceClaim") => devices::claim_status(e, new, old),
        _ => {}
    }
}

fn part_of(e: &mut Errors, kind: &Kind, part: &str, new: &At, old: &At) {
    match (kind.kind.as_ref(), part) {
        ("Pod", "ephemeralcontainers") => pod::ephemeral_containers(e, new, old),
        ("Pod", "resize") => pod::resize(e, new, old),
        ("Namespace", "finalize") => core::namespace_finalize(e, new),
        ("CertificateSigningRequest", part) => certificates::request_update(e, new, old, part),
        _ => {}
    }
}

/// Fields that stay as they were made, of kinds that have no other rule of change.
fn fixed(e: &mut Errors, kind: &Kind, new: &At, old: &At) {
    let paths: &[&str] = match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("networking.k8s.io", "IngressClass") => &["spec.controller"],
        ("networking.k8s.io", "IPAddress") => &["spec.parentRef"],
        ("discovery.k8s.io", _) => &["addressType"],
        ("resource.k8s.io", "ResourceClaim" | "ResourceClaimTemplate") => &["spec"],
        ("apiextensions.k8s.io", _) => &["spec.group", "spec.scope", "spec.names.plural", "spec.names.kind"],
        _ => &[],
    };
    for path in paths {
        let (is, was) = (new.get(path), old.get(path));
        if is.value != was.value {
            e.invalid(&is, IMMUTABLE);
        }
    }
    if kind.kind == "ServiceCIDR" {
        // One range may join; what is there stays.
        let (is, was) = (new.get("spec.cidrs"), old.get("spec.cidrs"));
        let grows = was.len() == 1 && is.len() == 2;
        if is.value != was.value && !grows {
            e.invalid(&is, IMMUTABLE);
        } else if grows && is.index(0).value != was.index(0).value {
            e.invalid(&is.index(0), IMMUTABLE);
        }
    }
}

/// A version that objects may still be stored in cannot leave the CRD.
fn stored_versions(e: &mut Errors, new: &At) {
    let versions = new.get("spec.versions");
    let known: HashSet<&str> = versions.items().map(|have| have.get("name").text()).collect();
    for v in new.get("status.storedVersions").items() {
        if !known.contains(v.text()) {
            let detail = "missing from spec.versions; status.storedVersions must remain in spec.versions";
            e.0.push(FieldError::invalid(v.path(), v.text(), detail));
        }
    }
}
