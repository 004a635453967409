//! Authorisation: Node, then RBAC; `system:masters` may all.

pub mod bootstrap;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod rules;

use std::sync::Arc;

use crate::authn::user::GROUP_MASTERS;
use crate::authn::view::ClusterView;
use crate::config::Config;
use crate::error::{ApiError, Result};
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

use api::selector::Fields;
use node::NodeAuthorizer;
use rbac::Rbac;
pub use reviews::review;

/// Answer of an authoriser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// The message's part after `is forbidden: `.
    Deny {
        reason: String,
    },
}

/// One question: may `user` do this?
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub namespace: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    /// For requests outside the resources.
    pub path: &'a str,
    pub is_resource: bool,
    /// The request's field selector.
    pub fields: &'a Fields,
}

impl<'a> Query<'a> {
    /// A question that asks nothing yet.
    pub fn empty(user: &'a UserInfo) -> Query<'a> {
        Query {
            user,
            verb: "",
            namespace: "",
            group: "",
            version: "",
            resource: "",
            subresource: "",
            name: "",
            path: "",
            is_resource: false,
            fields: const { &Fields(Vec::new()) },
        }
    }

    /// The question that a request asks.
    pub fn of(user: &'a UserInfo, info: &'a RequestInfo) -> Query<'a> {
        Query {
            user,
            verb: info.verb.as_str(),
            namespace: &info.namespace,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            name: info.named(),
            path: &info.path,
            is_resource: info.is_resource,
            fields: &info.fields,
        }
    }

    /// What was refused, in upstream's words.
    fn refusal(&self) -> String {
        let user = &self.user.name;
        if !self.is_resource {
            return format!("User {user:?} cannot {} path {:?}", self.verb, self.path);
        }
        let resource = match self.subresource {
            "" => self.resource.to_string(),
            sub => format!("{}/{sub}", self.resource),
        };
        let place = match self.namespace {
            "" => "at the cluster scope".to_string(),
            ns => format!("in the namespace {ns:?}"),
        };
        format!("User {user:?} cannot {} resource {resource:?} in API group {:?} {place}", self.verb, self.group)
    }
}

/// The authorisers.
pub struct Authz {
    node: NodeAuthorizer,
    rbac: Rbac,
}

impl std::fmt::Debug for Authz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authz").finish_non_exhaustive()
    }
}

impl Authz {
    /// Reads settings.
    pub fn new(_config: &Config) -> anyhow::Result<Authz> {
        Ok(Authz { node: NodeAuthorizer::new(bootstrap::node_rules()?), rbac: Rbac::default() })
    }

    /// May `user` do what `info` says?  Called once for each request.
    pub async fn authorize(&self, state: &Arc<AppState>, user: &UserInfo, info: &RequestInfo) -> Decision {
        let query = Query::of(user, info);
        let decision = self.decide(&state.registry, &query);
        match decision {
            // What it opens is a creation.
            Decision::Allow { .. } if info.opens_pod() => {
                self.decide(&state.registry, &Query { verb: "create", ..query })
            }
            other => other,
        }
    }

    /// Answers a question.
    pub fn decide(&self, view: &dyn ClusterView, query: &Query<'_>) -> Decision {
        match self.verdict(view, query) {
            Ok(reason) => Decision::Allow { reason },
            Err(reason) if reason.is_empty() => Decision::Deny { reason: query.refusal() },
            Err(reason) => Decision::Deny { reason: format!("{}: {reason}", query.refusal()) },
        }
    }

    /// Ok: why it is allowed. Err: why not, empty when nobody had an opinion.
    fn verdict(&self, view: &dyn ClusterView, query: &Query<'_>) -> Result<String, String> {
        if query.user.in_group(GROUP_MASTERS) {
            return Ok(String::new());
        }
        let by_node = match self.node.allows(view, query) {
            Ok(()) => return Ok("Node: allowed by the node authorizer".into()),
            Err(reason) => reason,
        };
        self.rbac.allows(view, query).ok_or(by_node)
    }

    /// Whether the question's answer is yes.
    pub fn allowed(&self, view: &dyn ClusterView, query: &Query<'_>) -> bool {
        self.verdict(view, query).is_ok()
    }

    /// Fails with upstream's 403 when the answer is no.
    pub fn require(&self, view: &dyn ClusterView, query: &Query<'_>) -> Result<()> {
        match self.decide(view, query) {
            Decision::Allow { .. } => Ok(()),
            Decision::Deny { reason } => Err(ApiError::forbidden(query.group, query.resource, query.name, &reason)),
        }
    }

    /// Every RBAC rule that holds for the user in a namespace.
    pub fn rules_for(&self, view: &dyn ClusterView, user: &UserInfo, namespace: &str) -> Vec<rules::Rule> {
        self.rbac.rules_for(view, user, namespace)
    }

    /// What a binding to a ClusterRole gives; None: there is no such role.
    pub fn rules_of(&self, view: &dyn ClusterView, cluster_role: &str) -> Option<Vec<rules::Rule>> {
        self.rbac.rules_of(view, cluster_role).map(|rules| rules.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_like_upstreams() {
        let joe = UserInfo { name: "joe".into(), ..UserInfo::default() };
        let base = Query { verb: "list", resource: "pods", is_resource: true, ..Query::empty(&joe) };
        let table = [
            (
                Query { namespace: "a", ..base },
                r#"User "joe" cannot list resource "pods" in API group "" in the namespace "a""#,
            ),
            (
                Query { group: "apps", ..base },
                r#"User "joe" cannot list resource "pods" in API group "apps" at the cluster scope"#,
            ),
            (
                Query { subresource: "log", ..base },
                r#"User "joe" cannot list resource "pods/log" in API group "" at the cluster scope"#,
            ),
            (Query { verb: "get", path: "/metrics", ..Query::empty(&joe) }, r#"User "joe" cannot get path "/metrics""#),
        ];
        for (query, want) in table {
            assert_eq!(query.refusal(), want);
        }
    }
}
