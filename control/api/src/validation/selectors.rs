//! Labels and selectors inside specs.

use super::at::{At, Errors};
use crate::names;
use serde_json::Value;

/// A map of labels.
pub(crate) fn labels(e: &mut Errors, at: &At) {
    for (key, value) in at.entries() {
        for text in names::qualified_name(key) {
            e.invalid_as(at, key, text);
        }
        for text in names::label_value(value.text()) {
            e.invalid_as(at, value.text(), text);
        }
    }
}

/// A map of annotations.
pub(crate) fn annotations(e: &mut Errors, at: &At) {
    if let Some(m) = at.value.as_object() {
        e.0.extend(names::annotations(m, &at.path()));
    }
}

/// The key of a label.
pub(crate) fn label_name(e: &mut Errors, at: &At) {
    e.qualified_name(at);
}

/// A label selector, where there is one.
pub(crate) fn label_selector(e: &mut Errors, at: &At) {
    labels(e, &at.get("matchLabels"));
    for term in at.get("matchExpressions").items() {
        let values = term.get("values");
        match term.get("operator").text() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    e.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    e.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
            }
            other => e.invalid_as(&term.get("operator"), other, "not a valid selector operator"),
        }
        label_name(e, &term.get("key"));
        for value in values.items() {
            e.all(&value, names::label_value(value.text()));
        }
    }
}

/// Whether a label selector says nothing.
pub(crate) fn is_empty(selector: &At) -> bool {
    selector.get("matchLabels").is_empty() && selector.get("matchExpressions").is_empty()
}

/// Whether a label selector chooses an object with these labels.
pub(crate) fn matches(selector: &At, labels: &At) -> bool {
    let has = |key: &str| labels.value.get(key).and_then(Value::as_str);
    let exact = selector.get("matchLabels").entries().all(|(k, v)| has(k) == Some(v.text()));
    exact
        && selector.get("matchExpressions").items().all(|term| {
            let mine = has(term.get("key").text());
            let listed = || term.get("values").items().any(|v| mine == Some(v.text()));
            match term.get("operator").text() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => mine.is_some(),
                _ => mine.is_none(),
            }
        })
}

/// A node selector. Values of preferred terms may be anything.
pub(crate) fn node_selector(e: &mut Errors, at: &At) {
    let terms = at.get("nodeSelectorTerms");
    if terms.is_empty() {
        e.required(&terms, "must have at least one node selector term");
    }
    for term in terms.items() {
        node_term(e, &term, true);
    }
}

/// One term of a node selector.
pub(crate) fn node_term(e: &mut Errors, at: &At, strict_values: bool) {
    for r in at.get("matchExpressions").items() {
        let values = r.get("values");
        match r.get("operator").text() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    e.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    e.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    e.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
                }
            }
            other => e.invalid_as(&r.get("operator"), other, "not a valid selector operator"),
        }
        label_name(e, &r.get("key"));
        for value in values.items().filter(|_| strict_values) {
            e.all(&value, names::label_value(value.text()));
        }
    }
    for r in at.get("matchFields").items() {
        let values = r.get("values");
        match r.get("operator").text() {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    e.required(
                        &values,
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    );
                }
            }
            other => e.invalid_as(&r.get("operator"), other, "not a valid selector operator"),
        }
        match r.get("key").text() {
            "metadata.name" => values.items().for_each(|v| e.dns_subdomain(&v)),
            other => e.invalid_as(&r.get("key"), other, "not a valid field selector key"),
        }
    }
}
