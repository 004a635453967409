//! Nobody can grant what he does not have: checks on writes of roles and bindings.

use serde_json::Value;

use super::Query;
use super::rules::{Rule, not_covered};
use crate::authn::user::GROUP_MASTERS;
use crate::authn::view::{CLUSTER_ROLES, ROLES, items_at, name_of, namespace_of, str_at};
use crate::error::{ApiError, Result};
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a role or binding that is about to be written. `old` is None on create.
pub fn check(state: &AppState, user: &UserInfo, info: &RequestInfo, new: &Value, old: Option<&Value>) -> Result<()> {
    if user.in_group(GROUP_MASTERS) {
        return Ok(());
    }
    match info.resource.as_str() {
        "roles" | "clusterroles" => role(state, user, info, new, old),
        "rolebindings" | "clusterrolebindings" => binding(state, user, info, new, old),
        _ => Ok(()),
    }
}

fn may(state: &AppState, user: &UserInfo, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let query =
        Query { verb, group: GROUP, version: "v1", resource, namespace, name, is_resource: true, ..Query::empty(user) };
    state.authz.allowed(&state.registry, &query)
}

/// Whether only what garbage collection looks at changes. All else may give something away: a label makes aggregated
/// roles gather the rules, which then must be the writer's own.
fn same_but_for_owners(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            api::meta::remove(&mut object, field);
        }
        object
    };
    rest(new) == rest(old)
}

/// Whether the role's rules are those of others.
fn aggregates(role: &Value) -> bool {
    !items_at(role, "/aggregationRule/clusterRoleSelectors").is_empty()
}

fn role(state: &AppState, user: &UserInfo, info: &RequestInfo, new: &Value, old: Option<&Value>) -> Result<()> {
    let (namespace, name) = (namespace_of(new), name_of(new));
    if old.is_some_and(|old| same_but_for_owners(new, old))
        || may(state, user, "escalate", &info.resource, namespace, name)
    {
        return Ok(());
    }
    let mut wanted = Rule::read_all(new);
    if aggregates(new) || old.is_some_and(aggregates) {
        // What it gathers, or gathered and holds still, is not known, so its author must have all.
        wanted.push(Rule::read(&serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})));
        wanted.push(Rule::read(&serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]})));
    }
    demand(state, user, info, namespace, name, &wanted)
}

fn binding(state: &AppState, user: &UserInfo, info: &RequestInfo, new: &Value, old: Option<&Value>) -> Result<()> {
    let unchanged = old.is_some_and(|o| o["roleRef"] == new["roleRef"] && o["subjects"] == new["subjects"]);
    let (namespace, name) = (namespace_of(new), name_of(new));
    let (kind, role) = (str_at(new, "/roleRef/kind"), str_at(new, "/roleRef/name"));
    let gr = if kind == "Role" { ROLES } else { CLUSTER_ROLES };
    if unchanged || may(state, user, "bind", gr.1, namespace, role) {
        return Ok(());
    }
    let rules = match kind {
        "Role" => state.registry.get(gr.0, gr.1, namespace, role).map(|object| Rule::read_all(&object.value())),
        _ => state.authz.rules_of(&state.registry, role),
    };
    demand(state, user, info, namespace, name, &rules.ok_or_else(|| ApiError::not_found(gr.0, gr.1, role))?)
}

fn demand(
    state: &AppState,
    user: &UserInfo,
    info: &RequestInfo,
    namespace: &str,
    name: &str,
    wanted: &[Rule],
) -> Result<()> {
    let held = state.authz.rules_for(&state.registry, user, namespace);
    let missing = not_covered(held.iter(), wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let groups = user.groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(" ");
    let detail = format!(
        "user {:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        missing.join("\n")
    );
    Err(ApiError::forbidden(GROUP, &info.resource, name, &detail))
}
