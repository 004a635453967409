//! The review APIs of authorization.k8s.io.

use std::sync::Arc;

use api::selector::{FieldTerm, Fields};
use serde_json::{Value, json};

use super::{Decision, Query};
use crate::authn::view::{items_at, str_at};
use crate::error::{ApiError, Cause, Result};
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

const GROUP: &str = "authorization.k8s.io";

/// SubjectAccessReview, LocalSubjectAccessReview, SelfSubjectAccessReview and
/// SelfSubjectRulesReview, by `info.resource`: takes the posted object, gives it back with
/// `status` filled.
pub async fn review(state: &Arc<AppState>, user: &UserInfo, info: &RequestInfo, mut body: Value) -> Result<Value> {
    if !body.is_object() {
        return Err(ApiError::bad_request("the body must be an object"));
    }
    let status = match info.resource.as_str() {
        "selfsubjectaccessreviews" => access(state, user, &body["spec"], "SelfSubjectAccessReview")?,
        "subjectaccessreviews" => {
            let subject = subject_of(&body["spec"])?;
            access(state, &subject, &body["spec"], "SubjectAccessReview")?
        }
        "localsubjectaccessreviews" => {
            let named = str_at(&body, "/spec/resourceAttributes/namespace");
            if named != info.namespace {
                let detail = "must match metadata.namespace";
                let cause = Cause::invalid("spec.resourceAttributes.namespace", &json!(named), detail);
                return Err(ApiError::invalid(GROUP, "LocalSubjectAccessReview", "", vec![cause]));
            }
            let subject = subject_of(&body["spec"])?;
            access(state, &subject, &body["spec"], "LocalSubjectAccessReview")?
        }
        "selfsubjectrulesreviews" => rules(state, user, &body["spec"])?,
        _ => return Err(ApiError::no_such_path()),
    };
    body["status"] = status;
    Ok(body)
}

fn subject_of(spec: &Value) -> Result<UserInfo> {
    let strings = |v: &Value| -> Vec<String> {
        v.as_array().map(|a| a.iter().filter_map(|s| s.as_str().map(str::to_string)).collect()).unwrap_or_default()
    };
    let user = UserInfo {
        name: str_at(spec, "/user").to_string(),
        uid: str_at(spec, "/uid").to_string(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .map(|m| m.iter().map(|(k, v)| (k.to_ascii_lowercase(), strings(v))).collect())
            .unwrap_or_default(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let cause = Cause::invalid("spec.user", &json!(""), "at least one of user or group must be specified");
        return Err(ApiError::invalid(GROUP, "SubjectAccessReview", "", vec![cause]));
    }
    Ok(user)
}

fn access(state: &Arc<AppState>, user: &UserInfo, spec: &Value, kind: &str) -> Result<Value> {
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |key: &str| resource[key].as_str().unwrap_or_default();
    let selector = field_selector(resource);
    let query = match (resource.is_object(), other.is_object()) {
        (true, false) => Query {
            verb: text("verb"),
            namespace: text("namespace"),
            group: text("group"),
            version: text("version"),
            resource: text("resource"),
            subresource: text("subresource"),
            name: text("name"),
            is_resource: true,
            fields: &selector,
            ..Query::empty(user)
        },
        (false, true) => Query { verb: str_at(other, "/verb"), path: str_at(other, "/path"), ..Query::empty(user) },
        _ => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let cause = Cause::invalid("spec.resourceAttributes", resource, detail);
            return Err(ApiError::invalid(GROUP, kind, "", vec![cause]));
        }
    };
    Ok(match state.authz.decide(&state.registry, &query) {
        Decision::Allow { reason } if reason.is_empty() => json!({"allowed": true}),
        Decision::Allow { reason } => json!({"allowed": true, "reason": reason}),
        Decision::Deny { reason } => {
            // The sentence's head repeats the question; what follows it is the reason.
            let reason = reason.strip_prefix(&query.refusal()).unwrap_or_default().trim_start_matches(": ");
            if reason.is_empty() { json!({"allowed": false}) } else { json!({"allowed": false, "reason": reason}) }
        }
    })
}

/// What the question's selector demands; a selector that cannot be read demands nothing.
fn field_selector(resource: &Value) -> Fields {
    let raw = str_at(resource, "/fieldSelector/rawSelector");
    if !raw.is_empty() {
        return Fields::parse(raw).unwrap_or_default();
    }
    let terms = items_at(resource, "/fieldSelector/requirements").iter().filter_map(|r| {
        let [value] = items_at(r, "/values") else { return None };
        let value = value.as_str()?.to_owned();
        (str_at(r, "/operator") == "In").then(|| FieldTerm { field: str_at(r, "/key").into(), value, equal: true })
    });
    Fields(terms.collect())
}

fn rules(state: &Arc<AppState>, user: &UserInfo, spec: &Value) -> Result<Value> {
    let namespace = str_at(spec, "/namespace");
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let all = state.authz.rules_for(&state.registry, user, namespace);
    let masters = user.in_group(crate::authn::user::GROUP_MASTERS);
    let mut resource_rules: Vec<Value> = all.iter().filter(|r| !r.is_url_rule()).map(|r| r.to_json()).collect();
    let mut url_rules: Vec<Value> = all.iter().filter(|r| r.is_url_rule()).map(|r| r.to_json()).collect();
    if masters {
        resource_rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        url_rules.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    Ok(
        json!({"resourceRules": resource_rules, "nonResourceRules": url_rules, "incomplete": user.node_name().is_some()}),
    )
}
