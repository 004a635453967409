//! Webhook configurations and admission policies. Of expressions the syntax is looked
//! at; what they speak of is the evaluator's to judge.

use super::at::{At, Errors, text_at};
use super::selectors::label_selector;
use crate::names;
use std::collections::HashSet;

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

fn fully_qualified(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "");
    }
    let texts = names::dns1123_subdomain(at.text());
    if !texts.is_empty() {
        return e.all(at, texts);
    }
    if at.text().split('.').count() < 3 {
        e.invalid(at, "should be a domain with at least three segments separated by dots");
    }
}

fn lone_wildcard(e: &mut Errors, at: &At, what: &str) {
    if at.len() > 1 && at.items().any(|v| v.text() == "*") {
        e.invalid(at, format!("if '*' is present, must not specify other {what}"));
    }
}

/// A webhook configuration.
pub(crate) fn webhooks(e: &mut Errors, o: &At, mutating: bool) {
    let mut seen = HashSet::new();
    for w in o.get("webhooks").items() {
        let name = w.get("name");
        fully_qualified(e, &name);
        w.get("rules").items().for_each(|r| rule(e, &r));
        e.one_of(&w.get("failurePolicy"), &["Fail", "Ignore"]);
        e.one_of(&w.get("matchPolicy"), &["Equivalent", "Exact"]);
        let effects = w.get("sideEffects");
        if !effects.is_set() {
            e.required(&effects, "must specify one of None, NoneOnDryRun");
        } else if !["None", "NoneOnDryRun"].contains(&effects.text()) {
            e.not_supported(&effects, &["None", "NoneOnDryRun"]);
        }
        let seconds = w.get("timeoutSeconds");
        if seconds.int().is_some_and(|n| !(1..=30).contains(&n)) {
            e.invalid(&seconds, "the timeout value must be between 1 and 30 seconds");
        }
        label_selector(e, &w.get("namespaceSelector"));
        label_selector(e, &w.get("objectSelector"));
        if mutating {
            e.one_of(&w.get("reinvocationPolicy"), &["IfNeeded", "Never"]);
        }
        client_config(e, &w.get("clientConfig"));
        match_conditions(e, &w.get("matchConditions"));
        review_versions(e, &w.get("admissionReviewVersions"));
        if !seen.insert(name.text()) && !name.is_empty() {
            e.duplicate(&name);
        }
    }
}

fn review_versions(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "must specify one of v1, v1beta1");
    }
    let (mut seen, mut known) = (HashSet::new(), false);
    for v in at.items() {
        if !seen.insert(v.text()) {
            e.invalid(&v, "duplicate version");
            continue;
        }
        e.all(&v, names::dns1035_label(v.text()));
        known |= ["v1", "v1beta1"].contains(&v.text());
    }
    if !known {
        e.invalid(at, "must include at least one of v1, v1beta1");
    }
}

/// How a webhook is reached; conversions of CRDs use it too.
pub(crate) fn client_config(e: &mut Errors, at: &At) {
    let (url, service) = (at.get("url"), at.get("service"));
    if url.is_set() == service.is_set() {
        return e.required(at, "exactly one of url or service is required");
    }
    if url.is_set() {
        return webhook_url(e, &url);
    }
    e.need(&service.get("name"));
    e.need(&service.get("namespace"));
    let port = service.get("port");
    if port.is_set() && !port.int().is_some_and(|p| (1..=65_535).contains(&p)) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        e.invalid(&port, detail);
    }
    let path = service.get("path");
    if !path.is_set() {
        return;
    }
    let text = path.text();
    if text == "/" {
        return;
    }
    if text == "//" {
        return e.invalid(&path, "segment[0] may not be empty");
    }
    if !text.starts_with('/') {
        e.invalid(&path, "must start with a '/'");
    }
    let trimmed = text.strip_prefix('/').unwrap_or(text);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    for (i, step) in trimmed.split('/').enumerate() {
        if step.is_empty() {
            e.invalid(&path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for text in names::dns1123_subdomain(step) {
            e.invalid(&path, format!("segment[{i}]: {text}"));
        }
    }
}

fn webhook_url(e: &mut Errors, at: &At) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = at.text().split_once("://") else {
        return e.required(at, &format!("url must be a valid URL{FORM}"));
    };
    if scheme != "https" {
        e.invalid_as(at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..end];
    if authority.rsplit('@').next().unwrap_or("").is_empty() {
        e.invalid_as(at, authority, format!("host must be specified{FORM}"));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        e.invalid_as(at, user, "user information is not permitted in the URL");
    }
    let tail = &rest[end..];
    if let Some((_, fragment)) = tail.split_once('#') {
        e.invalid_as(at, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = tail.split('#').next().unwrap_or("").split_once('?') {
        e.invalid_as(at, query, "query parameters are not permitted in the URL");
    }
}

fn match_conditions(e: &mut Errors, at: &At) {
    if at.len() > 64 {
        e.too_many(at, 64);
    }
    let mut seen = HashSet::new();
    for c in at.items() {
        let (name, expression) = (c.get("name"), c.get("expression"));
        if expression.text().trim().is_empty() {
            e.required(&expression, "");
        } else {
            syntax(e, &expression);
        }
        if name.is_empty() {
            e.required(&name, "");
            continue;
        }
        e.qualified_name(&name);
        if !seen.insert(name.text()) {
            e.duplicate(&name);
        }
    }
}

fn syntax(e: &mut Errors, at: &At) {
    if let Some(fault) = crate::crd::syntax_fault(at.text()) {
        e.invalid(at, fault);
    }
}

fn rule(e: &mut Errors, r: &At) {
    let operations = r.get("operations");
    e.need(&operations);
    lone_wildcard(e, &operations, "operations");
    for o in operations.items().filter(|o| !OPERATIONS.contains(&o.text())) {
        e.not_supported(&o, OPERATIONS);
    }
    let (groups, versions) = (r.get("apiGroups"), r.get("apiVersions"));
    e.need(&groups);
    lone_wildcard(e, &groups, "API groups");
    e.need(&versions);
    lone_wildcard(e, &versions, "API versions");
    for v in versions.items() {
        e.need(&v);
    }
    rule_resources(e, &r.get("resources"));
    e.one_of(&r.get("scope"), &["*", "Cluster", "Namespaced"]);
}

fn rule_resources(e: &mut Errors, at: &At) {
    e.need(at);
    let (mut whole, mut subs): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let (mut double, mut single, mut bare) = (false, false, false);
    for r in at.items() {
        let text = r.text();
        if text.is_empty() {
            e.required(&r, "");
            continue;
        }
        double |= text == "*/*";
        single |= text == "*";
        let Some((resource, sub)) = text.split_once('/') else {
            bare = text != "*";
            continue;
        };
        if whole.contains(&resource) {
            e.invalid(&r, format!("if '{resource}/*' is present, must not specify {text}"));
        }
        if subs.contains(&sub) {
            e.invalid(&r, format!("if '*/{sub}' is present, must not specify {text}"));
        }
        if sub == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            subs.push(sub);
        }
    }
    if at.len() > 1 && double {
        e.invalid(at, "if '*/*' is present, must not specify other resources");
    }
    if single && bare {
        e.invalid(at, "if '*' is present, must not specify other resources without subresources");
    }
}

fn named_rules(e: &mut Errors, at: &At) {
    for r in at.items() {
        let list = r.get("resourceNames");
        let mut seen = HashSet::new();
        for name in list.items() {
            e.all(&name, names::path_segment(name.text()));
            if !seen.insert(name.text()) {
                e.duplicate(&name);
            }
        }
        rule(e, &r);
    }
}

fn match_resources(e: &mut Errors, at: &At) {
    e.need_one_of(&at.get("matchPolicy"), &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        if at.get(field).is_set() {
            label_selector(e, &at.get(field));
        } else {
            e.required(&at.get(field), "");
        }
    }
    named_rules(e, &at.get("resourceRules"));
    named_rules(e, &at.get("excludeResourceRules"));
}

/// A validating (or mutating) admission policy.
pub(crate) fn policy(e: &mut Errors, o: &At, mutating: bool) {
    let spec = o.get("spec");
    e.need_one_of(&spec.get("failurePolicy"), &["Fail", "Ignore"]);
    if spec.get("paramKind").is_set() {
        param_kind(e, &spec.get("paramKind"));
    }
    let constraints = spec.get("matchConstraints");
    if constraints.is_set() {
        match_resources(e, &constraints);
        e.need(&constraints.get("resourceRules"));
        if mutating {
            created_or_changed(e, &constraints.get("resourceRules"));
        }
    } else {
        e.required(&constraints, "");
    }
    match_conditions(e, &spec.get("matchConditions"));
    for v in spec.get("variables").items() {
        variable(e, &v);
    }
    if mutating {
        mutations(e, &spec);
    } else {
        validations(e, &spec, text_at(o.value, "/metadata/name"));
    }
}

/// What is deleted cannot be mutated.
fn created_or_changed(e: &mut Errors, rules: &At) {
    const MUTATING: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
    for r in rules.items() {
        for o in r.get("operations").items().filter(|o| !MUTATING.contains(&o.text())) {
            // The path names no rule: so clients know it.
            e.not_supported(&rules.named("operations", o.value), MUTATING);
        }
    }
}

fn variable(e: &mut Errors, v: &At) {
    let (name, expression) = (v.get("name"), v.get("expression"));
    let text = name.text();
    let identifier = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let word = !text.is_empty() && !text.as_bytes()[0].is_ascii_digit() && text.bytes().all(identifier);
    if text.trim().is_empty() {
        e.required(&name, "name is not specified");
    } else if !word || crate::crd::RESERVED.contains(&text) {
        e.invalid(&name, "must be a valid CEL identifier");
    }
    if expression.text().trim().is_empty() {
        e.required(&expression, "expression is not specified");
    } else {
        syntax(e, &expression);
    }
}

fn mutations(e: &mut Errors, spec: &At) {
    let list = spec.get("mutations");
    if list.is_empty() {
        e.required(&list, "mutations must contain at least one item");
    }
    for m in list.items() {
        let kind = m.get("patchType");
        e.need_one_of(&kind, &["ApplyConfiguration", "JSONPatch"]);
        let (field, other) = match kind.text() {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            _ => continue,
        };
        if !m.get(field).is_set() {
            e.required(&m.get(field), &format!("must be specified when patchType is {}", kind.text()));
        } else {
            let expression = m.get(field);
            let expression = expression.get("expression");
            if expression.text().trim().is_empty() {
                e.required(&expression, "");
            }
        }
        if m.get(other).is_set() {
            let detail = format!("must not be specified when patchType is {}", kind.text());
            e.invalid_as(&m.get(other), format!("{{{other}}}"), detail);
        }
    }
    let policy = spec.get("reinvocationPolicy");
    e.need_one_of(&policy, &["IfNeeded", "Never"]);
}

fn validations(e: &mut Errors, spec: &At, policy: &str) {
    let (list, annotations) = (spec.get("validations"), spec.get("auditAnnotations"));
    if list.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        e.required(&list, detail);
        return e.required(&annotations, detail);
    }
    for v in list.items() {
        if v.get("expression").text().trim().is_empty() {
            e.required(&v.get("expression"), "expression is not specified");
        } else {
            syntax(e, &v.get("expression"));
        }
        let (text, message) = (v.get("messageExpression"), v.get("message"));
        if !text.text().is_empty() && text.text().trim().is_empty() {
            e.invalid(&text, "must be non-empty if specified");
        } else if !text.text().is_empty() {
            syntax(e, &text);
        }
        if !message.text().is_empty() && message.text().trim().is_empty() {
            e.invalid(&message, "must be non-empty if specified");
        } else if message.text().trim().contains(['\n', '\r']) {
            e.invalid(&message, "must not contain line breaks");
        }
        e.one_of(&v.get("reason"), &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
    if annotations.len() > 20 {
        e.invalid(&annotations, "must not have more than 20 auditAnnotations");
    }
    let mut seen = HashSet::new();
    for a in annotations.items() {
        let (key, value) = (a.get("key"), a.get("valueExpression"));
        // The annotation is called after the policy too.
        let full = format!("{policy}/{}", key.text());
        names::qualified_name(&full).into_iter().for_each(|t| e.invalid_as(&key, full.as_str(), t));
        if value.text().trim().is_empty() {
            e.required(&value, "valueExpression is not specified");
        } else if value.text().trim().len() > 5 * 1024 {
            e.required(&value, "must not exceed 5120 bytes in length");
        } else {
            syntax(e, &value);
        }
        if !seen.insert(key.text()) {
            e.duplicate(&key);
        }
    }
}

fn param_kind(e: &mut Errors, at: &At) {
    let (version, kind) = (at.get("apiVersion"), at.get("kind"));
    if version.text().matches('/').count() > 1 {
        e.invalid(&version, format!("unexpected GroupVersion string: {}", version.text()));
    } else if e.need(&version) {
        let (group, v) = version.text().split_once('/').unwrap_or(("", version.text()));
        let texts = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        if !texts.is_empty() {
            e.invalid_as(&version, group, texts.join(","));
        }
        let texts = names::dns1035_label(v);
        if v.is_empty() {
            e.invalid(&version, "version must be specified");
        } else if !texts.is_empty() {
            e.invalid_as(&version, v, texts.join(","));
        }
    }
    if e.need(&kind) {
        let texts = names::dns1035_label(&kind.text().to_lowercase());
        if !texts.is_empty() {
            e.invalid(&kind, format!("may have mixed case, but should otherwise match: {}", texts.join(",")));
        }
    }
}

/// A binding of a policy.
pub(crate) fn binding(e: &mut Errors, o: &At, mutating: bool) {
    let spec = o.get("spec");
    let name = spec.get("policyName");
    if e.need(&name) {
        e.dns_subdomain(&name);
    }
    if spec.get("paramRef").is_set() {
        param_ref(e, &spec.get("paramRef"));
    }
    if spec.get("matchResources").is_set() {
        match_resources(e, &spec.get("matchResources"));
    }
    if !mutating {
        actions(e, &spec.get("validationActions"));
    }
}

fn actions(e: &mut Errors, at: &At) {
    let mut seen = HashSet::new();
    for a in at.items() {
        if !["Audit", "Deny", "Warn"].contains(&a.text()) {
            e.not_supported(&a, &["Audit", "Deny", "Warn"]);
        }
        if !seen.insert(a.text()) {
            e.duplicate(&a);
        }
    }
    let has = |name: &str| at.items().any(|a| a.text() == name);
    if has("Deny") && has("Warn") {
        e.invalid(at, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
    if at.is_empty() {
        e.required(at, "at least one validation action is required");
    }
}

fn param_ref(e: &mut Errors, at: &At) {
    let (name, selector) = (at.get("name"), at.get("selector"));
    if !name.is_empty() {
        e.all(&name, names::path_segment(name.text()));
        if selector.is_set() {
            e.forbidden(&name, "name and selector are mutually exclusive");
        }
    }
    if selector.is_set() {
        label_selector(e, &selector);
        if !name.is_empty() {
            e.forbidden(&selector, "name and selector are mutually exclusive");
        }
    } else if name.is_empty() {
        e.required(at, "one of name or selector must be specified");
    }
    let action = at.get("parameterNotFoundAction");
    if action.is_empty() {
        e.required(&action, "");
    } else {
        e.one_of(&action, &["Deny", "Allow"]);
    }
}
