//! RBAC: roles and bindings compiled into one table by subject.
//!
//! The table is made anew when any of the four kinds has changed since; between
//! changes a request costs one hash look-up for its user and one for each group.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use serde_json::Value;

use super::Query;
use super::rules::Rule;
use crate::authn::view::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ClusterView, ROLE_BINDINGS, ROLES, items_at, name_of, namespace_of, str_at,
};
use crate::request::UserInfo;

type Rules = Arc<[Rule]>;

/// One binding as a subject sees it.
struct Grant {
    /// None: everywhere.
    namespace: Option<Box<str>>,
    rules: Rules,
    /// For example `ClusterRoleBinding "x" of ClusterRole "y"`.
    source: Arc<str>,
}

#[derive(Default)]
struct Table {
    version: [u64; 4],
    by_user: HashMap<Box<str>, Vec<Grant>>,
    by_group: HashMap<Box<str>, Vec<Grant>>,
}

/// The RBAC authoriser.
#[derive(Default)]
pub struct Rbac {
    table: RwLock<Arc<Table>>,
}

fn version(view: &dyn ClusterView) -> [u64; 4] {
    [ROLES, ROLE_BINDINGS, CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS].map(|gr| view.revision(gr))
}

impl Rbac {
    /// The reason why it is allowed; None when no rule allows it.
    pub fn allows(&self, view: &dyn ClusterView, query: &Query<'_>) -> Option<String> {
        let table = self.table(view);
        let namespace = if query.is_resource { query.namespace } else { "" };
        table.grants(query.user, namespace).find_map(|(grant, kind, subject)| {
            let allowed = grant.rules.iter().any(|rule| rule.allows(query));
            allowed.then(|| format!("RBAC: allowed by {} to {kind} {subject:?}", grant.source))
        })
    }

    /// Every rule that holds for the user in a namespace (and everywhere).
    pub fn rules_for(&self, view: &dyn ClusterView, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let table = self.table(view);
        table.grants(user, namespace).flat_map(|(grant, ..)| grant.rules.iter().cloned()).collect()
    }

    /// What a ClusterRole gives, as the authoriser sees it: with what it gathers, also before its stored rules say so.
    pub fn rules_of(&self, view: &dyn ClusterView, cluster_role: &str) -> Option<Rules> {
        ClusterRoles::new(view).rules(cluster_role)
    }

    fn table(&self, view: &dyn ClusterView) -> Arc<Table> {
        let now = version(view);
        let current = self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if current.version == now && now != [0; 4] {
            return current;
        }
        let fresh = Arc::new(Table::compile(view, now));
        *self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh.clone();
        fresh
    }
}

impl Table {
    fn compile(view: &dyn ClusterView, version: [u64; 4]) -> Table {
        let mut table = Table { version, ..Table::default() };
        let cluster_roles = ClusterRoles::new(view);
        let roles: HashMap<(String, String), Rules> = view
            .list(ROLES, "")
            .iter()
            .map(|r| ((namespace_of(r).to_string(), name_of(r).to_string()), Rule::read_all(r).into()))
            .collect();
        for binding in view.list(CLUSTER_ROLE_BINDINGS, "") {
            if let Some(rules) = cluster_roles.rules(str_at(&binding, "/roleRef/name")) {
                table.add(&binding, None, rules);
            }
        }
        for binding in view.list(ROLE_BINDINGS, "") {
            let namespace = namespace_of(&binding);
            let role = str_at(&binding, "/roleRef/name");
            let rules = match str_at(&binding, "/roleRef/kind") {
                "Role" => roles.get(&(namespace.to_string(), role.to_string())).cloned(),
                _ => cluster_roles.rules(role),
            };
            if let Some(rules) = rules {
                table.add(&binding, Some(namespace), rules);
            }
        }
        table
    }

    fn add(&mut self, binding: &Value, namespace: Option<&str>, rules: Rules) {
        let name = name_of(binding);
        let (role_kind, role) = (str_at(binding, "/roleRef/kind"), str_at(binding, "/roleRef/name"));
        let source: Arc<str> = match namespace {
            None => format!("ClusterRoleBinding {name:?} of {role_kind} {role:?}").into(),
            Some(ns) => format!("RoleBinding {:?} of {role_kind} {role:?}", format!("{name}/{ns}")).into(),
        };
        for subject in items_at(binding, "/subjects") {
            let grant = Grant { namespace: namespace.map(Into::into), rules: rules.clone(), source: source.clone() };
            let subject_name = str_at(subject, "/name");
            match str_at(subject, "/kind") {
                "Group" => self.by_group.entry(subject_name.into()).or_default().push(grant),
                "User" => self.by_user.entry(subject_name.into()).or_default().push(grant),
                "ServiceAccount" => {
                    let of = str_at(subject, "/namespace");
                    let of = if of.is_empty() { namespace.unwrap_or_default() } else { of };
                    let user = format!("system:serviceaccount:{of}:{subject_name}");
                    self.by_user.entry(user.into()).or_default().push(grant);
                }
                _ => {}
            }
        }
    }

    /// The grants that hold in `namespace`, each with the subject it came by.
    fn grants<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Grant, &'static str, &'a str)> {
        let own = self.by_user.get(user.name.as_str()).into_iter().flatten().map(|g| (g, "User", user.name.as_str()));
        let by_groups = user.groups.iter().flat_map(|name| {
            self.by_group.get(name.as_str()).into_iter().flatten().map(move |g| (g, "Group", name.as_str()))
        });
        own.chain(by_groups)
            .filter(move |(g, ..)| g.namespace.as_deref().is_none_or(|ns| ns == namespace && !ns.is_empty()))
    }
}

/// ClusterRoles with their aggregation resolved, so that fresh aggregated roles work at once.
struct ClusterRoles {
    objects: Vec<Arc<Value>>,
    by_name: HashMap<String, usize>,
    compiled: std::cell::RefCell<HashMap<String, Rules>>,
}

impl ClusterRoles {
    fn new(view: &dyn ClusterView) -> Self {
        let objects = view.list(CLUSTER_ROLES, "");
        let by_name = objects.iter().enumerate().map(|(i, o)| (name_of(o).to_string(), i)).collect();
        Self { objects, by_name, compiled: Default::default() }
    }

    fn rules(&self, name: &str) -> Option<Rules> {
        if let Some(rules) = self.compiled.borrow().get(name) {
            return Some(rules.clone());
        }
        let index = *self.by_name.get(name)?;
        let mut all = Vec::new();
        self.collect(index, &mut HashSet::new(), &mut all);
        let rules: Rules = all.into();
        self.compiled.borrow_mut().insert(name.to_string(), rules.clone());
        Some(rules)
    }

    fn collect(&self, index: usize, seen: &mut HashSet<usize>, out: &mut Vec<Rule>) {
        if !seen.insert(index) {
            return;
        }
        let Some(role) = self.objects.get(index) else { return };
        let selectors = items_at(role, "/aggregationRule/clusterRoleSelectors");
        if selectors.is_empty() {
            out.extend(Rule::read_all(role));
            return;
        }
        for (i, other) in self.objects.iter().enumerate() {
            if selectors.iter().any(|s| selector_matches(s, other)) {
                self.collect(i, seen, out);
            }
        }
    }
}

/// Evaluates a LabelSelector object on an object's labels.
pub fn selector_matches(selector: &Value, object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    let equal = selector["matchLabels"]
        .as_object()
        .is_none_or(|m| m.iter().all(|(k, v)| label(k) == v.as_str() && v.is_string()));
    equal && items_at(selector, "/matchExpressions").iter().all(|e| expression_matches(e, label(str_at(e, "/key"))))
}

fn expression_matches(expression: &Value, label: Option<&str>) -> bool {
    let listed = || label.is_some_and(|l| items_at(expression, "/values").iter().any(|v| v.as_str() == Some(l)));
    match str_at(expression, "/operator") {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::view::fake::FakeView;
    use serde_json::json;

    fn ask<'a>(user: &'a UserInfo, verb: &'a str, resource: &'a str, namespace: &'a str) -> Query<'a> {
        Query { verb, resource, namespace, is_resource: true, ..Query::empty(user) }
    }

    #[test]
    fn bindings_give_and_take() {
        let view = FakeView::default();
        let rbac = Rbac::default();
        let joe = UserInfo::authenticated("joe", ["dev".to_string()]);
        let sa = UserInfo::authenticated("system:serviceaccount:a:s", []);
        view.put(CLUSTER_ROLES, json!({"metadata": {"name": "top"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "top"}}]}}));
        view.put(CLUSTER_ROLES, json!({"metadata": {"name": "part", "labels": {"to": "top"}}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]}));
        assert!(rbac.allows(&view, &ask(&joe, "list", "pods", "a")).is_none());
        view.put(
            ROLE_BINDINGS,
            json!({"metadata": {"name": "b", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "top"},
            "subjects": [{"kind": "Group", "name": "dev"}, {"kind": "ServiceAccount", "name": "s"}]}),
        );
        assert!(rbac.allows(&view, &ask(&joe, "list", "pods", "a")).is_some(), "change is seen");
        assert!(rbac.allows(&view, &ask(&sa, "list", "pods", "a")).is_some(), "own namespace is the default");
        assert!(rbac.allows(&view, &ask(&joe, "list", "pods", "b")).is_none());
        assert!(rbac.allows(&view, &ask(&joe, "list", "pods", "")).is_none());
        view.remove(ROLE_BINDINGS, "a", "b");
        assert!(rbac.allows(&view, &ask(&joe, "list", "pods", "a")).is_none());
    }
}
