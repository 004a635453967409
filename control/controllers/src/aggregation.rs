//! ClusterRoles that are the sum of others: admin, edit, view, and what people add.

use std::sync::Arc;

use control_client::{Key, Queue, selector};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

/// The rules of all roles that the selectors find, each once, by order of the roles' names.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let selectors = role.aggregation_rule.iter().flat_map(|a| a.cluster_role_selectors.iter().flatten());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for wanted in selectors {
        for other in all {
            let itself = other.metadata.name == role.metadata.name;
            if itself || !selector::matches(wanted, other.metadata.labels.as_ref()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.caches.cluster_roles.subscribe({
        let (queue, roles) = (queue.clone(), context.caches.cluster_roles.clone());
        move |_| {
            for role in roles.list() {
                if role.aggregation_rule.is_some() {
                    queue.add(Key::of(&*role));
                }
            }
        }
    });
    let context = context.clone();
    runner::run("clusterrole-aggregation", &queue, 1, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

async fn work(context: &Context, key: &Key) -> Worked {
    let roles = &context.caches.cluster_roles;
    let Some(role) = roles.get(key).filter(|r| r.aggregation_rule.is_some()) else { return Ok(Outcome::Done) };
    let rules = plan(&role, &roles.list());
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(Outcome::Done);
    }
    let patch = serde_json::json!({
        "metadata": {"resourceVersion": role.metadata.resource_version},
        "rules": rules,
    });
    roles.merge(None, &role, &patch).await?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_selected_roles_are_added_up() {
        let role = |name: &str, label: Option<&str>, verb: &str| {
            let mut role = ClusterRole::default();
            role.metadata.name = Some(name.into());
            role.metadata.labels = label.map(|l| [(l.to_owned(), "true".to_owned())].into());
            role.rules = Some(vec![PolicyRule { verbs: vec![verb.into()], ..PolicyRule::default() }]);
            role
        };
        let sum: ClusterRole = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "sum"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to-sum": "true"}}]},
        }))
        .unwrap();
        let all = [role("a", Some("to-sum"), "get"), role("b", None, "list"), role("c", Some("to-sum"), "get")];
        let rules = plan(&sum, &all.map(Arc::new));
        assert_eq!(rules.iter().map(|r| r.verbs[0].as_str()).collect::<Vec<_>>(), ["get"]);
    }
}
