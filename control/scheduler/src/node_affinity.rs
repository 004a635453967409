//! Which nodes a pod may or would rather be on by their labels.

use control_client::selector;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm, PodSpec};

use crate::snapshot::NodeInfo;

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let by_name = |r: &k8s_openapi::api::core::v1::NodeSelectorRequirement| {
        let values = r.values.as_deref().unwrap_or_default();
        match (r.key.as_str(), r.operator.as_str()) {
            ("metadata.name", "In") => values.contains(&node.name),
            ("metadata.name", "NotIn") => !values.contains(&node.name),
            _ => false,
        }
    };
    expressions
        .iter()
        .all(|r| selector::requirement(&r.key, &r.operator, r.values.as_deref().unwrap_or_default(), node.labels()))
        && fields.iter().all(by_name)
}

pub fn selects(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector.node_selector_terms.iter().any(|t| term_matches(t, node))
}

/// Whether nodeSelector and the required node affinity let the pod onto the node.
pub fn allows(spec: &PodSpec, node: &NodeInfo) -> bool {
    let by_labels = spec.node_selector.as_ref().is_none_or(|s| selector::contains(s, node.labels()));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    by_labels && required.is_none_or(|s| selects(s, node))
}

/// Sum of the weights of the preferences that the node meets.
pub fn preference(spec: &PodSpec, node: &NodeInfo) -> i64 {
    let terms = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    let met = |t: &&k8s_openapi::api::core::v1::PreferredSchedulingTerm| {
        let empty = t.preference.match_expressions.as_ref().is_none_or(Vec::is_empty)
            && t.preference.match_fields.as_ref().is_none_or(Vec::is_empty);
        // An empty preference, other than an empty requirement, is met by all.
        empty || term_matches(&t.preference, node)
    };
    terms.iter().filter(met).map(|t| i64::from(t.weight)).sum()
}
