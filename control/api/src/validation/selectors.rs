//! Labels and selectors inside specs.

use super::at::{At, Errors};
use crate::names;
use serde_json::Value;
use std::collections::HashSet;

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

/// Conditions of the kind that all newer statuses have.
pub(crate) fn conditions(e: &mut Errors, list: &At) {
    const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_reason = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.ends_with(word)
            && s.chars().all(|c| word(c) || c == ',' || c == ':')
    };
    let mut seen = HashSet::new();
    for c in list.items() {
        let (kind, status, reason) = (c.get("type"), c.get("status"), c.get("reason"));
        if !seen.insert(kind.text()) {
            e.duplicate_as(&kind, kind.text());
        }
        label_name(e, &kind);
        if !["False", "True", "Unknown"].contains(&status.text()) {
            e.not_supported(&status, &["False", "True", "Unknown"]);
        }
        if c.get("observedGeneration").int().is_some_and(|n| n < 0) {
            e.invalid(&c.get("observedGeneration"), "must be greater than or equal to zero");
        }
        for at in [&c.get("lastTransitionTime"), &reason] {
            if at.is_empty() {
                e.required(at, "must be set");
            }
        }
        if !reason.is_empty() && !is_reason(reason.text()) {
            e.invalid(&reason, REASON);
        }
        for (at, most) in [(&reason, 1024), (&c.get("message"), 32 * 1024)] {
            if at.text().len() > most {
                e.too_long(at, most);
            }
        }
    }
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
