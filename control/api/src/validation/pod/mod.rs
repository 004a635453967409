//! Pods and pod templates.

mod containers;
mod environment;
mod handlers;
mod mounts;
mod projected;
mod scheduling;
mod security;
mod status;
mod update;
mod volumes;

pub(crate) use scheduling::{taints, tolerations};
pub(crate) use status::status_update;
pub(crate) use update::{ephemeral_containers, resize, update};
pub(crate) use volumes::{driver_name, persistent_source};

use super::at::{At, Errors, text_at};
use super::{resources, selectors};
use crate::quantity::Quantity;
use crate::status::FieldError;
use serde_json::Value;
use std::collections::HashMap;

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What a spec's parts must know of the whole.
pub(crate) struct Whole<'v> {
    /// Volumes without fault, with their sources.
    volumes: HashMap<&'v str, &'v Value>,
    /// Names of resource claims.
    claims: Vec<&'v str>,
    grace: Option<i64>,
    restart: &'v str,
    host_users: bool,
    os: Option<&'v str>,
}

/// A new pod.
pub(crate) fn create(e: &mut Errors, o: &At) {
    pod(e, o);
    let spec = o.get("spec");
    if !spec.get("ephemeralContainers").is_empty() {
        e.forbidden(&spec.get("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.get("nodeName").is_empty() && !spec.get("schedulingGates").is_empty() {
        e.forbidden(&spec.get("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    security::annotations_match(e, &o.get("metadata.annotations"), &spec);
}

/// What holds for a pod at all times.
fn pod(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    pod_annotations(e, &o.get("metadata.annotations"), &spec);
    let name = text_at(o.value, "/metadata/name");
    let name = Some(name).filter(|n| !n.is_empty());
    if o.get("metadata.annotations").key(MIRROR).is_set() && !spec.get("resourceClaims").is_empty() {
        // The name of no field is what clients know.
        e.forbidden(&o.get("[]"), "static pods do not support resource claims");
    }
    self::spec(e, &spec, name, &[], true);
    if spec.get("serviceAccountName").is_empty() {
        for token in projected::tokens(&spec) {
            e.0.push(FieldError::forbidden(token, "must not be specified when serviceAccountName is not set"));
        }
    }
    for list in ["containers", "initContainers"] {
        spec.get(list).items().for_each(|c| containers::image_of_pod(e, &c));
    }
}

/// A pod template; `claims` are volumes that come from claim templates.
pub(crate) fn template(e: &mut Errors, at: &At, claims: &[&str]) {
    selectors::labels(e, &at.named("labels", at.get("metadata.labels").value));
    let annotations = at.get("metadata.annotations");
    let annotations = at.named("annotations", annotations.value);
    selectors::annotations(e, &annotations);
    let spec = at.get("spec");
    pod_annotations(e, &annotations, &spec);
    self::spec(e, &spec, None, claims, false);
    security::annotations_match(e, &annotations, &spec);
    if !spec.get("ephemeralContainers").is_empty() {
        e.forbidden(&spec.get("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// A template whose pods must restart always.
pub(crate) fn restarting_template(e: &mut Errors, at: &At, claims: &[&str], kind: &str) {
    template(e, at, claims);
    restarts_always(e, at, kind);
}

fn restarts_always(e: &mut Errors, at: &At, kind: &str) {
    let spec = at.get("spec");
    if spec.get("restartPolicy").text() != "Always" {
        e.not_supported(&spec.get("restartPolicy"), &["Always"]);
    }
    if spec.get("activeDeadlineSeconds").is_set() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        e.forbidden(&spec.get("activeDeadlineSeconds"), detail);
    }
}

fn pod_annotations(e: &mut Errors, annotations: &At, spec: &At) {
    if annotations.key(MIRROR).is_set() && spec.get("nodeName").is_empty() {
        e.invalid(&annotations.key(MIRROR), "must set spec.nodeName if mirror pod annotation is set");
    }
    let cost = annotations.key(DELETION_COST);
    let plain = |s: &str| s.parse::<i32>().is_ok_and(|n| n.to_string() == s);
    if cost.is_set() && !plain(cost.text()) {
        e.invalid(&cost, "must be a 32bit integer");
    }
    security::annotations(e, annotations, spec);
}

/// A pod's spec.
fn spec(e: &mut Errors, s: &At, pod_name: Option<&str>, claims: &[&str], is_pod: bool) {
    if !s.get("terminationGracePeriodSeconds").is_set() {
        e.required(&s.get("terminationGracePeriodSeconds"), "");
    }
    static FROM_CLAIM: std::sync::LazyLock<Value> =
        std::sync::LazyLock::new(|| serde_json::json!({"persistentVolumeClaim": {}}));
    let listed = s.get("volumes");
    let mut known = volumes::volumes(e, &listed, pod_name, is_pod);
    let mut whole = Whole {
        volumes: HashMap::new(),
        claims: s
            .value
            .get("resourceClaims")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .filter(|name| !name.is_empty())
            .collect(),
        grace: s.get("terminationGracePeriodSeconds").int(),
        restart: s.get("restartPolicy").text(),
        host_users: s.get("hostUsers").value != &Value::Bool(false),
        os: s.value.get("os").filter(|os| os.is_object()).map(|os| os["name"].as_str().unwrap_or("")),
    };
    known.extend(claims.iter().map(|c| (*c, &*FROM_CLAIM)));
    let whole = {
        whole.volumes = known;
        whole
    };
    scheduling::resource_claims(e, &s.get("resourceClaims"));
    containers::all(e, s, &whole);
    pod_resources(e, s, &whole);
    if s.get("hostNetwork").is_true() {
        host_network_ports(e, &s.get("containers"), is_pod);
    }
    e.need_one_of(&s.get("restartPolicy"), &["Always", "OnFailure", "Never"]);
    e.need_one_of(&s.get("dnsPolicy"), &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    selectors::labels(e, &s.get("nodeSelector"));
    security::pod_context(e, s);
    scheduling::affinity(e, &s.get("affinity"));
    dns_config(e, s);
    for gate in s.get("readinessGates").items() {
        e.qualified_name(&gate.get("conditionType"));
    }
    scheduling::gates(e, &s.get("schedulingGates"));
    scheduling::spread(e, &s.get("topologySpreadConstraints"));
    security::host_process(e, s);
    security::user_namespace(e, s);
    names_and_numbers(e, s);
    if s.get("overhead").is_set() {
        let overhead = s.get("overhead");
        resources::limits(e, &overhead.named("limits", overhead.value));
    }
    security::operating_system(e, s);
    environment::file_volumes(e, s);
}

fn names_and_numbers(e: &mut Errors, s: &At) {
    hostname_override(e, s);
    let name = |e: &mut Errors, field: &str| {
        if !s.get(field).is_empty() {
            e.dns_subdomain(&s.get(field));
        }
    };
    name(e, "serviceAccountName");
    name(e, "nodeName");
    e.between(&s.get("activeDeadlineSeconds"), 1, i64::from(i32::MAX));
    for field in ["hostname", "subdomain"] {
        let at = s.get(field);
        if !at.is_empty() {
            e.dns_label(&at);
        }
    }
    tolerations(e, &s.get("tolerations"));
    for alias in s.get("hostAliases").items() {
        e.ip(&alias.get("ip"));
        alias.get("hostnames").items().for_each(|h| e.dns_subdomain(&h));
    }
    name(e, "priorityClassName");
    // An empty runtime class is one that was named, and has no name.
    if s.get("runtimeClassName").is_set() {
        e.dns_subdomain(&s.get("runtimeClassName"));
    }
    if s.get("preemptionPolicy").is_set() {
        e.need_one_of(&s.get("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
    }
}

fn hostname_override(e: &mut Errors, s: &At) {
    let at = s.get("hostnameOverride");
    if !at.is_set() {
        return;
    }
    for (field, detail) in [
        ("setHostnameAsFQDN", "may not be specified when setHostnameAsFQDN is true"),
        ("hostNetwork", "may not be specified when hostNetwork is true"),
    ] {
        if s.get(field).is_true() {
            e.forbidden(&at, detail);
        }
    }
    if at.text().len() > 64 {
        e.too_long(&at, 64);
    }
    e.dns_subdomain(&at);
}

fn host_network_ports(e: &mut Errors, containers: &At, is_pod: bool) {
    for c in containers.items() {
        for p in c.get("ports").items() {
            let (host, own) = (p.get("hostPort").int().unwrap_or(0), p.get("containerPort").int().unwrap_or(0));
            if (is_pod || host != 0) && host != own {
                e.invalid_as(&p.get("hostPort"), host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn dns_config(e: &mut Errors, s: &At) {
    let at = s.get("dnsConfig");
    let servers = at.get("nameservers");
    if s.get("dnsPolicy").text() == "None" {
        if !at.is_set() {
            return e.required(&at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            return e.required(&servers, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.len() > 3 {
        e.invalid(&servers, "must not have more than 3 nameservers");
    }
    servers.items().for_each(|n| e.ip(&n));
    let searches = at.get("searches");
    if searches.len() > 32 {
        e.invalid(&searches, "must not have more than 32 search paths");
    }
    let length: usize = searches.items().map(|s| s.text().len() + 1).sum();
    if length > 2049 {
        e.invalid(&searches, "must not have more than 2048 characters (including spaces) in the search list");
    }
    for search in searches.items().filter(|s| s.text() != ".") {
        let name = search.text().strip_suffix('.').unwrap_or(search.text());
        for text in crate::names::dns1123_subdomain_with_underscore(name) {
            e.invalid_as(&search, name, text);
        }
    }
    for option in at.get("options").items().filter(|o| o.get("name").is_empty()) {
        e.required(&option, "must not be empty");
    }
}

/// Resources of the pod as a whole.
fn pod_resources(e: &mut Errors, s: &At, whole: &Whole) {
    let at = s.get("resources");
    if !at.is_set() {
        return;
    }
    if whole.os == Some("windows") {
        return e.forbidden(&at, "may not be set for a windows pod");
    }
    if at.get("claims").is_set() {
        e.forbidden(&at.get("claims"), "claims may not be set for Resources at pod-level");
    }
    resources::requirements(e, &at, &whole.claims, true);
    for (resource, own) in at.get("requests").entries() {
        if let (Some(sum), Some(q)) = (aggregate(s, "requests", resource), own.quantity())
            && sum > q
        {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            e.invalid_as(&own, q.to_string(), detail);
        }
    }
    for (resource, own) in at.get("limits").entries().filter(|(r, _)| resources::is_huge_page(r)) {
        if let (Some(sum), Some(q)) = (aggregate(s, "limits", resource), own.quantity())
            && sum > q
        {
            let detail = format!("must be greater than or equal to aggregate container limits of {sum}");
            e.invalid_as(&own, q.to_string(), detail);
        }
    }
    let containers = at.named("containers", s.get("containers").value);
    for c in containers.items() {
        for (resource, limit) in c.get("resources.limits").entries() {
            let (Some(q), Some(max)) = (limit.quantity(), at.get("limits").key(resource).quantity()) else { continue };
            if q > max {
                let place = c.key(resource);
                let detail = format!("must be less than or equal to pod limits of {max}");
                e.invalid_as(&place.get("limits"), q.to_string(), detail);
            }
        }
    }
}

/// What the containers need of a resource when they need most: all that run together,
/// or an init container beside the sidecars that were started before it.
fn aggregate(s: &At, side: &str, resource: &str) -> Option<Quantity> {
    let amount = |c: &At| c.get("resources").get(side).key(resource).quantity();
    let plus = |a: Option<Quantity>, b: Option<Quantity>| match (a, b) {
        (Some(a), Some(b)) => Some(a.plus(&b)),
        (a, b) => a.or(b),
    };
    let mut together = s.get("containers").items().fold(None, |sum, c| plus(sum, amount(&c)));
    let (mut sidecars, mut most) = (None, None);
    for c in s.get("initContainers").items() {
        let own = amount(&c);
        if c.get("restartPolicy").text() == "Always" {
            together = plus(together, own);
            sidecars = plus(sidecars, own);
            most = most.max(sidecars);
        } else {
            most = most.max(plus(sidecars, own));
        }
    }
    together.max(most)
}
