//! RBAC policy rules, compiled for matching, and the algebra of "covers" for escalation checks.

use serde_json::{Map, Value, json};

use super::Query;

/// A list of names in which `*` means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    all: bool,
    list: Box<[Box<str>]>,
}

impl Names {
    fn read(rule: &Value, key: &str) -> Names {
        let list: Box<[Box<str>]> = rule[key]
            .as_array()
            .map(|a| a.iter().filter_map(Value::as_str).map(Into::into).collect())
            .unwrap_or_default();
        Names { all: list.iter().any(|n| &**n == "*"), list }
    }

    fn has(&self, name: &str) -> bool {
        self.all || self.list.iter().any(|n| &**n == name)
    }

    fn to_json(&self) -> Value {
        json!(self.list)
    }
}

/// One PolicyRule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    verbs: Names,
    groups: Names,
    resources: Names,
    names: Box<[Box<str>]>,
    urls: Box<[Box<str>]>,
}

impl Rule {
    /// Reads a PolicyRule object.
    pub fn read(rule: &Value) -> Rule {
        Rule {
            verbs: Names::read(rule, "verbs"),
            groups: Names::read(rule, "apiGroups"),
            resources: Names::read(rule, "resources"),
            names: Names::read(rule, "resourceNames").list,
            urls: Names::read(rule, "nonResourceURLs").list,
        }
    }

    /// Reads a role's rules.
    pub fn read_all(role: &Value) -> Vec<Rule> {
        role["rules"].as_array().map(|a| a.iter().map(Rule::read).collect()).unwrap_or_default()
    }

    /// Whether this rule allows what is asked.
    pub fn allows(&self, query: &Query<'_>) -> bool {
        if !self.verbs.has(query.verb) {
            return false;
        }
        if !query.is_resource {
            return self.urls.iter().any(|url| url_matches(url, query.path));
        }
        self.groups.has(query.group)
            && self.covers_resource(query.resource, query.subresource)
            && (self.names.is_empty() || self.names.iter().any(|n| &**n == query.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.all
            || self.resources.list.iter().any(|r| match r.split_once('/') {
                None => subresource.is_empty() && &**r == resource,
                Some((r, s)) => s == subresource && (r == "*" || r == resource),
            })
    }

    /// Splits into rules of one verb, group, resource and name (or URL) each.
    fn atoms(&self) -> Vec<Rule> {
        let one = |n: &str| Names { all: n == "*", list: Box::new([n.into()]) };
        let mut out = Vec::new();
        for verb in &self.verbs.list {
            for url in &self.urls {
                out.push(Rule { verbs: one(verb), urls: Box::new([url.clone()]), ..Rule::default() });
            }
            for group in &self.groups.list {
                for resource in &self.resources.list {
                    let base =
                        Rule { verbs: one(verb), groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.names.is_empty() {
                        out.push(base);
                        continue;
                    }
                    out.extend(self.names.iter().map(|n| Rule { names: Box::new([n.clone()]), ..base.clone() }));
                }
            }
        }
        out
    }

    /// Whether this rule allows all that the atom allows.
    fn covers_atom(&self, atom: &Rule) -> bool {
        let Some(verb) = atom.verbs.list.first() else { return true };
        if !self.verbs.has(verb) {
            return false;
        }
        if let Some(url) = atom.urls.first() {
            return self.urls.iter().any(|own| url_covers(own, url));
        }
        let (Some(group), Some(resource)) = (atom.groups.list.first(), atom.resources.list.first()) else {
            return true;
        };
        let resource_ok = self.resources.has(resource)
            || resource.split_once('/').is_some_and(|(_, sub)| self.resources.has(&format!("*/{sub}")));
        let names_ok = self.names.is_empty() || atom.names.first().is_some_and(|n| self.names.contains(n));
        self.groups.has(group) && resource_ok && names_ok
    }

    /// The PolicyRule object.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("verbs".into(), self.verbs.to_json());
        for (key, list) in [
            ("apiGroups", &self.groups.list),
            ("resources", &self.resources.list),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ] {
            if !list.is_empty() {
                map.insert(key.into(), json!(list));
            }
        }
        Value::Object(map)
    }

    /// Whether the rule is about URLs outside the resources.
    pub fn is_url_rule(&self) -> bool {
        !self.urls.is_empty()
    }

    /// As upstream prints rules in messages.
    fn describe(&self) -> String {
        let quoted = |list: &[Box<str>]| list.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(" ");
        let mut parts = Vec::new();
        for (key, list) in [
            ("APIGroups", &*self.groups.list),
            ("Resources", &*self.resources.list),
            ("NonResourceURLs", &*self.urls),
            ("ResourceNames", &*self.names),
            ("Verbs", &*self.verbs.list),
        ] {
            if !list.is_empty() {
                parts.push(format!("{key}:[{}]", quoted(list)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

fn url_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

fn url_covers(own: &str, other: &str) -> bool {
    own == other || own.strip_suffix('*').is_some_and(|prefix| other.starts_with(prefix))
}

/// What of `wanted` is not covered by `held`, one line each; empty when all is.
pub fn not_covered<'a>(held: impl Iterator<Item = &'a Rule> + Clone, wanted: &[Rule]) -> Vec<String> {
    let missing = |rule: &Rule| rule.atoms().iter().any(|atom| !held.clone().any(|h| h.covers_atom(atom)));
    wanted.iter().filter(|rule| missing(rule)).map(Rule::describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::UserInfo;

    #[test]
    fn matching() {
        let user = UserInfo::anonymous();
        let ask =
            |verb: &'static str, group: &'static str, resource: &'static str, sub: &'static str, name: &'static str| {
                Query { verb, group, resource, subresource: sub, name, is_resource: true, ..Query::empty(&user) }
            };
        let table = [
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}),
                ask("get", "", "pods", "", "x"),
                true,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}),
                ask("get", "", "pods", "log", "x"),
                false,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"]}),
                ask("get", "", "pods", "log", "x"),
                true,
            ),
            (
                json!({"verbs": ["update"], "apiGroups": ["apps"], "resources": ["*/scale"]}),
                ask("update", "apps", "deployments", "scale", "x"),
                true,
            ),
            (json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}), ask("watch", "a.b", "c", "d", ""), true),
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["y"]}),
                ask("get", "", "pods", "", "x"),
                false,
            ),
            (
                json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["y"]}),
                ask("list", "", "pods", "", ""),
                false,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["pods"]}),
                ask("get", "", "pods", "", "x"),
                false,
            ),
        ];
        for (rule, query, want) in table {
            assert_eq!(Rule::read(&rule).allows(&query), want, "{rule} {query:?}");
        }
        for (url, path, want) in [
            ("/healthz", "/healthz", true),
            ("/healthz/*", "/healthz/ping", true),
            ("/healthz", "/healthz/ping", false),
            ("*", "/x", true),
        ] {
            let rule = Rule::read(&json!({"verbs": ["get"], "nonResourceURLs": [url]}));
            assert_eq!(rule.allows(&Query { verb: "get", path, ..Query::empty(&user) }), want, "{url} {path}");
        }
    }

    #[test]
    fn covering() {
        let rule = |v: Value| Rule::read(&v);
        let held = [
            rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]})),
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]})),
        ];
        let table = [
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["rc/scale"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}), false),
            (json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}), false),
            (json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}), false),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/x"]}), false),
        ];
        for (wanted, ok) in table {
            assert_eq!(not_covered(held.iter(), &[rule(wanted.clone())]).is_empty(), ok, "{wanted}");
        }
    }
}
