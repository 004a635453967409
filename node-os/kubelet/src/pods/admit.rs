//! Whether this node takes a pod that is bound to it, and node selectors. Pure.

use super::status::Verdict;
use super::{qos, spec};
use crate::quantity;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What the decision depends on besides the pod.
pub struct Node<'a> {
    /// Name.
    pub name: &'a str,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
    /// What it offers.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Pods that run here already.
    pub others: &'a [std::sync::Arc<Pod>],
    /// There is a container runtime.
    pub has_runtime: bool,
}

/// Refuses a pod that does not fit this node, with upstream's reasons.
pub fn admit(pod: &Pod, node: &Node) -> Result<(), Verdict> {
    let verdict = |reason: &str, message: String| Verdict { reason: reason.into(), message };
    if !node.has_runtime {
        return Err(verdict(
            "NodeHasNoRuntime",
            format!(
                "Node {} is a control-plane node without a container runtime and runs no pods; let the scheduler choose a worker (leave out spec.nodeName)",
                node.name
            ),
        ));
    }
    if spec::of(pod).os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(verdict("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".into()));
    }
    if !node_affinity_matches(pod, node.labels, node.name) {
        let message =
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Err(verdict("NodeAffinity", message.into()));
    }
    let pods = node.allocatable.get("pods").map_or(110, quantity::value);
    if node.others.len() as i64 >= pods {
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {pods}",
            node.others.len()
        );
        return Err(verdict("OutOfpods", message));
    }
    for resource in ["cpu", "memory"] {
        let Some(offered) = node.allocatable.get(resource).map(quantity::milli) else { continue };
        let wanted = qos::pod_total(pod, resource, false).unwrap_or(0);
        let used: i64 = node.others.iter().map(|p| qos::pod_total(p, resource, false).unwrap_or(0)).sum();
        if wanted > 0 && used + wanted > offered {
            let scale = if resource == "cpu" { 1 } else { 1000 };
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {resource}, requested: {}, used: {}, capacity: {}",
                wanted / scale,
                used / scale,
                offered / scale
            );
            return Err(verdict(&format!("OutOf{resource}"), message));
        }
    }
    Ok(())
}

/// nodeSelector and required node affinity.
pub fn node_affinity_matches(pod: &Pod, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let spec = spec::of(pod);
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| selector_matches(r, labels, name))
}

/// Whether any term of the selector holds.
pub fn selector_matches(selector: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement_holds(r, (r.key == "metadata.name").then_some(name)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let compare = |test: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        value.and_then(|v| v.parse().ok()).zip(bound).is_some_and(|(a, b)| test(a, b))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(spec: &str, has_runtime: bool) -> Option<String> {
        let pod: Pod = serde_yaml_ng::from_str(&format!("{{metadata: {{}}, spec: {spec}}}")).unwrap();
        let labels = BTreeMap::from([("disk".to_string(), "ssd".to_string()), ("n".to_string(), "5".to_string())]);
        let allocatable = BTreeMap::from([
            ("cpu".to_string(), Quantity("1".into())),
            ("memory".to_string(), Quantity("1Gi".into())),
            ("pods".to_string(), Quantity("2".into())),
        ]);
        let other: Pod = serde_yaml_ng::from_str(
            "{metadata: {}, spec: {containers: [{name: a, resources: {requests: {cpu: 600m}}}]}}",
        )
        .unwrap();
        let others = [std::sync::Arc::new(other)];
        let node = Node { name: "w1", labels: &labels, allocatable: &allocatable, others: &others, has_runtime };
        admit(&pod, &node).err().map(|v| v.reason)
    }

    #[test]
    fn pods_that_do_not_fit_are_refused() {
        let term = |text: &str| {
            format!(
                "{{containers: [], affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{text}]}}}}}}}}"
            )
        };
        for (spec, expected) in [
            ("{containers: []}".to_string(), None),
            ("{nodeSelector: {disk: ssd}, containers: []}".into(), None),
            ("{nodeSelector: {disk: hdd}, containers: []}".into(), Some("NodeAffinity")),
            (term("{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}"), None),
            (term("{matchExpressions: [{key: n, operator: Gt, values: ['7']}]}"), Some("NodeAffinity")),
            (term("{matchFields: [{key: metadata.name, operator: In, values: [w1]}]}"), None),
            (term("{}"), Some("NodeAffinity")),
            ("{containers: [{name: a, resources: {requests: {cpu: 500m}}}]}".into(), Some("OutOfcpu")),
            ("{containers: [{name: a, resources: {requests: {cpu: 400m}}}]}".into(), None),
            ("{os: {name: windows}, containers: []}".into(), Some("PodOSNotSupported")),
        ] {
            assert_eq!(reason(&spec, true).as_deref(), expected, "{spec}");
        }
        assert_eq!(reason("{containers: []}", false).as_deref(), Some("NodeHasNoRuntime"));
    }
}
