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
            || self.resources.list.iter().any(|r| match subresource {
                // What is no resource may have slashes: audiences of tokens are URLs.
                "" => &**r == resource,
                sub => r.split_once('/').is_some_and(|(r, s)| s == sub && (r == "*" || r == resource)),
            })
    }

    /// How many rules of one verb, group, resource and name (or URL) each this one stands for.
    fn atoms(&self) -> usize {
        let resources = self.groups.list.len().saturating_mul(self.resources.list.len());
        let named = resources.saturating_mul(self.names.len().max(1));
        self.verbs.list.len().saturating_mul(named.saturating_add(self.urls.len()))
    }

    /// Whether each of these rules is allowed by one of `held`, which are asked one by one.
    fn is_covered<'a>(&self, held: impl Iterator<Item = &'a Rule> + Clone) -> bool {
        let names: Vec<Option<&str>> = match &*self.names {
            [] => vec![None],
            names => names.iter().map(|name| Some(&**name)).collect(),
        };
        self.verbs.list.iter().all(|verb| {
            let held = held.clone().filter(|h| h.verbs.has(verb));
            self.urls.iter().all(|url| held.clone().any(|h| h.covers_url(url)))
                && self.groups.list.iter().all(|group| {
                    let held = held.clone().filter(|h| h.groups.has(group));
                    self.resources.list.iter().all(|resource| {
                        let held = held.clone().filter(|h| h.covers_named(resource));
                        names.iter().all(|name| held.clone().any(|h| h.covers_name(*name)))
                    })
                })
        })
    }

    /// Whether this rule alone allows all that the other allows.
    fn covers(&self, other: &Rule) -> bool {
        let resources = other.groups.list.is_empty()
            || other.resources.list.is_empty()
            || other.groups.list.iter().all(|group| self.groups.has(group))
                && other.resources.list.iter().all(|resource| self.covers_named(resource))
                && match &*other.names {
                    [] => self.covers_name(None),
                    names => names.iter().all(|name| self.covers_name(Some(name))),
                };
        other.verbs.list.iter().all(|verb| self.verbs.has(verb))
            && other.urls.iter().all(|url| self.covers_url(url))
            && resources
    }

    fn covers_url(&self, url: &str) -> bool {
        self.urls.iter().any(|own| url_covers(own, url))
    }

    /// Whether the resource, as rules name it, is in this rule.
    fn covers_named(&self, resource: &str) -> bool {
        self.resources.has(resource)
            || resource.split_once('/').is_some_and(|(_, sub)| self.resources.has(&format!("*/{sub}")))
    }

    /// Whether objects of the name, or of all names, are in this rule.
    fn covers_name(&self, name: Option<&str>) -> bool {
        self.names.is_empty() || name.is_some_and(|name| self.names.iter().any(|own| **own == *name))
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

/// More combinations of one rule than anybody writes: they are not gone through one by one, and count as not covered
/// unless one held rule covers them all. A few thousand bytes can stand for milliards.
const MOST_ATOMS: usize = 1 << 20;

/// What of `wanted` is not covered by `held`, one line each; empty when all is.
pub fn not_covered<'a>(held: impl Iterator<Item = &'a Rule> + Clone, wanted: &[Rule]) -> Vec<String> {
    let covered = |rule: &Rule| {
        held.clone().any(|h| h.covers(rule)) || (rule.atoms() <= MOST_ATOMS && rule.is_covered(held.clone()))
    };
    wanted.iter().filter(|rule| !covered(rule)).map(Rule::describe).collect()
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
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["https://vault"]}),
                ask("get", "", "https://vault", "", "x"),
                true,
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
        // What one rule holds only in parts, and what nobody could go through one by one.
        let both = rule(json!({"verbs": ["list", "get"], "apiGroups": [""], "resources": ["rc/scale", "pods"]}));
        assert!(not_covered(held.iter(), std::slice::from_ref(&both)).is_empty());
        let parts = [("get", "a"), ("get", "b"), ("list", "a"), ("list", "b")]
            .map(|(verb, name)| rule(json!({"verbs": [verb], "apiGroups": [""], "resources": [name]})));
        let wanted = [rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["a", "b"]}))];
        assert!(not_covered(parts.iter(), &wanted).is_empty() && !not_covered(parts[1..].iter(), &wanted).is_empty());
        let many = |letter: &str| (0..10_000).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
        let huge = rule(json!({"verbs": many("v"), "apiGroups": many("g"), "resources": many("r")}));
        assert!(!not_covered(held.iter(), std::slice::from_ref(&huge)).is_empty());
        let all = [rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}))];
        assert!(not_covered(all.iter(), &[huge]).is_empty());
    }
}
