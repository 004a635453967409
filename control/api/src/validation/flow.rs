//! Flow schemas and priority levels.

use super::at::{At, Errors};
use crate::names;
use std::collections::HashSet;

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// A flow schema.
pub(crate) fn schema(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let precedence = spec.get("matchingPrecedence");
    let n = precedence.int().unwrap_or(0);
    if n <= 0 {
        e.invalid_as(&precedence, n, "must be a positive value");
    }
    if n > 10_000 {
        e.invalid(&precedence, "must not be greater than 10000");
    }
    if n == 1 && o.get("metadata.name").text() != "exempt" {
        e.invalid(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.get("distinguisherMethod");
    if method.is_set() && !["ByNamespace", "ByUser"].contains(&method.get("type").text()) {
        e.not_supported(&method.get("type"), &["ByNamespace", "ByUser"]);
    }
    let level = spec.get("priorityLevelConfiguration.name");
    if level.is_empty() {
        e.required(&level, "must reference a priority level");
    } else {
        e.dns_subdomain(&level);
    }
    spec.get("rules").items().for_each(|r| rule(e, &r));
    conditions(e, o);
}

fn rule(e: &mut Errors, r: &At) {
    let subjects = r.get("subjects");
    if subjects.is_empty() {
        e.required(&subjects, "subjects must contain at least one value");
    }
    subjects.items().for_each(|s| subject(e, &s));
    let (resources, others) = (r.get("resourceRules"), r.get("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        e.required(r, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for x in resources.items() {
        verbs(e, &x.get("verbs"));
        for (field, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
            let at = x.get(field);
            if at.is_empty() {
                e.required(&at, &format!("resource rules must supply at least one {one}"));
            }
            alone(e, &at, many);
        }
        namespaces(e, &x);
    }
    for x in others.items() {
        verbs(e, &x.get("verbs"));
        let urls = x.get("nonResourceURLs");
        if urls.is_empty() {
            e.required(&urls, "nonResourceURLs must contain at least one value");
        } else if urls.items().any(|u| u.text() == "*") {
            alone(e, &urls, "non-resource URLs");
        } else {
            urls.items().for_each(|u| url(e, &u));
        }
    }
}

fn alone(e: &mut Errors, at: &At, what: &str) {
    if at.len() > 1 && at.items().any(|v| v.text() == "*") {
        e.invalid(at, format!("if '*' is present, must not specify other {what}"));
    }
}

fn verbs(e: &mut Errors, at: &At) {
    if at.is_empty() {
        e.required(at, "verbs must contain at least one value");
    } else if at.items().any(|v| v.text() == "*") {
        alone(e, at, "verbs");
    } else if !at.items().all(|v| VERBS.contains(&v.text())) {
        e.not_supported(at, VERBS);
    }
}

fn namespaces(e: &mut Errors, x: &At) {
    let at = x.get("namespaces");
    if at.is_empty() {
        if !x.get("clusterScope").is_true() {
            let detail = "resource rules that are not cluster scoped must supply at least one namespace";
            e.required(&at, detail);
        }
    } else if at.items().any(|n| n.text() == "*") {
        alone(e, &at, "namespaces");
    } else {
        for n in at.items() {
            for text in names::dns1123_label(n.text()) {
                e.invalid(&n, format!("each member of this list must be '*' or a DNS-1123 label; {text}"));
            }
        }
    }
}

fn url(e: &mut Errors, at: &At) {
    let path = at.text();
    let stars = path.matches('*').count();
    let refusal = match path {
        "" => "must not be empty",
        "/" => return,
        p if !p.starts_with('/') => "must start with slash",
        p if p.contains(' ') => "must not contain white-space",
        p if p.contains("//") => "must not contain double slash",
        p if stars > 1 || (stars == 1 && !p.ends_with("/*")) => "wildcard can only do suffix matching",
        _ => return,
    };
    e.invalid(at, refusal);
}

fn subject(e: &mut Errors, s: &At) {
    let kinds = [("user", "User"), ("group", "Group"), ("serviceAccount", "ServiceAccount")];
    let kind = s.get("kind");
    let Some((field, name)) = kinds.iter().find(|k| k.1 == kind.text()) else {
        return e.not_supported(&kind, &["Group", "ServiceAccount", "User"]);
    };
    let at = s.get(field);
    if !at.is_set() {
        e.required(&at, &format!("{field} is required when subject kind is '{name}'"));
    } else {
        let who = at.get("name");
        if e.need(&who) && *field == "serviceAccount" && who.text() != "*" {
            e.dns_subdomain(&who);
        }
        if *field == "serviceAccount" {
            let namespace = at.get("namespace");
            if namespace.is_empty() {
                e.required(&namespace, "must specify namespace for service account");
            } else {
                e.dns_label(&namespace);
            }
        }
    }
    for (other, kind) in kinds.iter().filter(|k| k.0 != *field) {
        if s.get(other).is_set() {
            e.forbidden(&s.get(other), format!("{other} is forbidden when subject kind is not '{kind}'"));
        }
    }
}

/// Conditions of either kind's status.
pub(crate) fn conditions(e: &mut Errors, o: &At) {
    let mut seen = HashSet::new();
    for c in o.get("status.conditions").items() {
        let kind = c.get("type");
        if !seen.insert(kind.text()) {
            e.duplicate(&kind);
        }
        if kind.is_empty() {
            e.required(&kind, "must not be empty");
        }
    }
}

/// A priority level.
pub(crate) fn level(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let (kind, limited, exempt) = (spec.get("type"), spec.get("limited"), spec.get("exempt"));
    if (o.get("metadata.name").text() == "exempt") != (kind.text() == "Exempt") {
        e.invalid(&kind, "type must be 'Exempt' if and only if name is 'exempt'");
    }
    match kind.text() {
        "Exempt" => {
            if limited.is_set() {
                e.forbidden(&limited, "must be nil if the type is not Limited");
            }
            e.non_negative(&exempt.get("nominalConcurrencyShares"));
            e.between(&exempt.get("lendablePercent"), 0, 100);
        }
        "Limited" => {
            if exempt.is_set() {
                e.forbidden(&exempt, "must be nil if the type is Limited");
            }
            if limited.is_set() {
                limits(e, &limited);
            } else {
                e.required(&limited, "must not be empty when type is Limited");
            }
        }
        _ => e.not_supported(&kind, &["Exempt", "Limited"]),
    }
    conditions(e, o);
}

fn limits(e: &mut Errors, l: &At) {
    let shares = l.get("nominalConcurrencyShares");
    if shares.int().is_some_and(|n| n < 0) {
        e.invalid(&shares, "must be a non-negative integer");
    }
    e.between(&l.get("lendablePercent"), 0, 100);
    let borrow = l.get("borrowingLimitPercent");
    if borrow.int().is_some_and(|n| n < 0) {
        e.invalid(&borrow, "if specified, must be a non-negative integer");
    }
    let response = l.get("limitResponse");
    let queuing = response.get("queuing");
    match response.get("type").text() {
        "Reject" => {
            if queuing.is_set() {
                e.forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited");
            }
        }
        "Queue" => {
            if queuing.is_set() {
                self::queuing(e, &queuing);
            } else {
                e.required(&queuing, "must not be empty if limited.limitResponse.type is Limited");
            }
        }
        _ => e.not_supported(&response.get("type"), &["Queue", "Reject"]),
    }
}

fn queuing(e: &mut Errors, q: &At) {
    let n = |f: &str| q.get(f).int().unwrap_or(0);
    for field in ["queueLengthLimit", "queues"] {
        if n(field) <= 0 {
            e.invalid_as(&q.get(field), n(field), "must be positive");
        }
    }
    if n("queues") > 10_000_000 {
        e.invalid(&q.get("queues"), "must not be greater than 10000000");
    }
    let (hand, queues) = (n("handSize"), n("queues"));
    let bits = |deck: i64, hand: i64| (0..hand).map(|i| ((deck - i) as f64).log2()).sum::<f64>().ceil();
    if hand <= 0 {
        e.invalid_as(&q.get("handSize"), hand, "must be positive");
    } else if hand > queues {
        e.invalid(&q.get("handSize"), format!("should not be greater than queues ({queues})"));
    } else if bits(queues, hand) > 60.0 {
        e.invalid(
            &q.get("handSize"),
            format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60"),
        );
    }
}
