//! What a request asks for, read from its method, path and query; and who asks.

use api::selector::Fields;
use std::collections::BTreeMap;

use http::Method;

/// A Kubernetes request verb (for resources) or the HTTP method in lower case (for the rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// Non-resource requests only.
    Post,
    Put,
    Head,
    Options,
}

impl Verb {
    /// The verb as RBAC rules and audit records spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Post => "post",
            Verb::Put => "put",
            Verb::Head => "head",
            Verb::Options => "options",
        }
    }

    /// Whether the verb changes nothing.
    pub fn is_read(self) -> bool {
        matches!(self, Verb::Get | Verb::List | Verb::Watch | Verb::Head | Verb::Options)
    }
}

/// Who asks, as authentication found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// The server's own identity, for writes that no client asked for.
    pub fn system() -> UserInfo {
        UserInfo {
            name: "system:apiserver".into(),
            uid: String::new(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            extra: BTreeMap::new(),
        }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Query parameters, decoded, in order; a name may repeat.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the part of a URL after `?`.
    pub fn parse(raw: &str) -> Query {
        let pairs = raw.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(k, true), decode(v, true))
        });
        Query(pairs.collect())
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// All values of `name`, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// A boolean parameter, as upstream's conversion reads it: false when it is absent, `0` or
    /// `false`, else true.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// All pairs.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// The path as sent, percent-encoding kept.
    pub path: String,
    pub verb: Verb,
    /// Whether the path names an API resource (`/api/v1/...`, `/apis/g/v/...`).
    pub is_resource: bool,
    /// `""` for the core group.
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped requests and requests over all namespaces.
    pub namespace: String,
    /// Whether the path is a Namespace's own (`/namespaces/x`, also its `status` and `finalize`): `namespace` is then
    /// its name, so that a role in it may be about it.
    pub of_namespace: bool,
    /// The plural, lower case.
    pub resource: String,
    pub subresource: String,
    /// Empty for collections. On `create` it stays empty: the name is in the body.
    pub name: String,
    /// What follows the subresource (`/proxy/{path}`), without the leading slash.
    pub rest: String,
    pub query: Query,
    /// The field selector of a list or a watch; one that cannot be read demands nothing
    /// here, and is refused by its handler.
    pub fields: Fields,
}

impl RequestInfo {
    /// Reads a request's method, path and query.
    pub fn parse(method: &Method, path: &str, query: &str) -> RequestInfo {
        let query = Query::parse(query);
        let mut info = RequestInfo {
            path: path.to_string(),
            verb: plain_verb(method),
            is_resource: false,
            group: String::new(),
            version: String::new(),
            namespace: String::new(),
            of_namespace: false,
            resource: String::new(),
            subresource: String::new(),
            name: String::new(),
            rest: String::new(),
            query,
            fields: Fields::default(),
        };
        let raw: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let mut parts: &[&str] = match raw.as_slice() {
            ["api", version, rest @ ..] if !version.is_empty() => {
                info.version = decode(version, false);
                rest
            }
            ["apis", group, version, rest @ ..] if !group.is_empty() && !version.is_empty() => {
                info.group = decode(group, false);
                info.version = decode(version, false);
                rest
            }
            _ => return info,
        };
        // The long deprecated prefix form; kept because it costs one line.
        let mut prefix_watch = false;
        if parts.first() == Some(&"watch") && parts.len() > 1 {
            prefix_watch = true;
            parts = &parts[1..];
        }
        // Slashes alone name nothing; a resource without a name, before something else, is one that nobody has.
        if parts.iter().all(|p| p.is_empty()) {
            return info;
        }
        info.read_resource(parts);
        info.is_resource = true;
        info.verb = info.resource_verb(method, prefix_watch);
        if matches!(info.verb, Verb::List | Verb::Watch) {
            info.fields = Fields::parse(info.query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
        }
        info
    }

    fn read_resource(&mut self, parts: &[&str]) {
        let mut rest = parts;
        if let ["namespaces", ns, tail @ ..] = parts
            && !ns.is_empty()
        {
            // `/namespaces/x`, `/namespaces/x/status` and `/finalize` are the Namespace itself.
            let own =
                tail.is_empty() || tail == [""] || (self.group.is_empty() && matches!(tail, ["status" | "finalize"]));
            let ns = decode(ns, false);
            if own {
                self.resource = "namespaces".into();
                // In other groups it is some object of that name, which has nothing to do with the namespace.
                if self.group.is_empty() {
                    self.namespace = ns.clone();
                    self.of_namespace = true;
                }
                self.name = ns;
                self.subresource = tail.first().copied().unwrap_or("").to_string();
                return;
            }
            self.namespace = ns;
            rest = tail;
        }
        self.resource = decode(rest.first().copied().unwrap_or(""), false);
        self.name = decode(rest.get(1).copied().unwrap_or(""), false);
        self.subresource = decode(rest.get(2).copied().unwrap_or(""), false);
        if rest.len() > 3 {
            self.rest = rest[3..].join("/");
        }
    }

    fn resource_verb(&self, method: &Method, prefix_watch: bool) -> Verb {
        let collection = self.name.is_empty();
        match *method {
            Method::GET | Method::HEAD => {
                if prefix_watch || (self.query.flag("watch") && self.subresource.is_empty()) {
                    Verb::Watch
                } else if collection {
                    Verb::List
                } else {
                    Verb::Get
                }
            }
            Method::POST => Verb::Create,
            Method::PUT => Verb::Update,
            Method::PATCH => Verb::Patch,
            Method::DELETE if collection => Verb::DeleteCollection,
            Method::DELETE => Verb::Delete,
            _ => plain_verb(method),
        }
    }

    /// The name of the object that the request is about: that in the path, or the only one that the field
    /// selector lets through, so that a role for this object allows it (apiserver/pkg/endpoints/request/requestinfo.go).
    pub fn named(&self) -> &str {
        if !self.name.is_empty() {
            return &self.name;
        }
        let name = self.fields.exact("metadata.name").unwrap_or_default();
        let segment = !matches!(name, "." | "..") && !name.contains(['/', '%']);
        if segment { name } else { "" }
    }

    /// `group/version`, or the version alone for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `resource` or `resource/subresource`, as RBAC rules name it.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Whether the request opens a way into a pod by a WebSocket, that is with GET.
    pub fn opens_pod(&self) -> bool {
        self.is_resource
            && self.group.is_empty()
            && self.resource == "pods"
            && self.verb == Verb::Get
            && matches!(self.subresource.as_str(), "exec" | "attach" | "portforward")
    }

    /// Whether the request may stay open for long: no request timeout, no in-flight count.
    pub fn is_long_running(&self) -> bool {
        self.is_resource && (self.verb == Verb::Watch || crate::streaming::serves(self))
            || self.path == crate::backup::PATH
    }

    /// Whether the request is a dry run.
    pub fn dry_run(&self) -> bool {
        self.query.all("dryRun").any(|v| v == "All")
    }
}

fn plain_verb(method: &Method) -> Verb {
    match *method {
        Method::POST => Verb::Post,
        Method::PUT => Verb::Put,
        Method::PATCH => Verb::Patch,
        Method::DELETE => Verb::Delete,
        Method::HEAD => Verb::Head,
        Method::OPTIONS => Verb::Options,
        _ => Verb::Get,
    }
}

/// Percent-decoding; what is not a valid escape stays as it is.
pub fn decode(text: &str, plus_is_space: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (escaped, bytes[at]) {
            (Some(byte), _) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (None, b'+') if plus_is_space => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths() {
        // method, path, query → verb, group, version, namespace, resource, name, subresource
        let table = [
            ("GET", "/api/v1/pods", "", "list", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/namespaces/a/pods", "watch=1", "watch", "", "v1", "a", "pods", "", ""),
            ("GET", "/api/v1/namespaces/a", "", "get", "", "v1", "a", "namespaces", "a", ""),
            ("GET", "/apis/x.io/v1/namespaces/a", "", "get", "x.io", "v1", "", "namespaces", "a", ""),
            ("GET", "/api/v1/namespaces/a/namespaces/b", "", "get", "", "v1", "a", "namespaces", "b", ""),
            ("PUT", "/api/v1/namespaces/a/finalize", "", "update", "", "v1", "a", "namespaces", "a", "finalize"),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "", "create", "apps", "v1", "a", "deployments", "", ""),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "",
                "patch",
                "apps",
                "v1",
                "a",
                "deployments",
                "d",
                "scale",
            ),
            ("DELETE", "/api/v1/nodes", "", "deletecollection", "", "v1", "", "nodes", "", ""),
            ("DELETE", "/api/v1/nodes/n%2E1", "", "delete", "", "v1", "", "nodes", "n.1", ""),
            ("POST", "/api/v1/namespaces/a/pods/p/exec", "command=ls", "create", "", "v1", "a", "pods", "p", "exec"),
        ];
        for (method, path, query, verb, group, version, ns, resource, name, sub) in table {
            let info = RequestInfo::parse(&method.parse().unwrap(), path, query);
            assert!(info.is_resource, "{path}");
            assert_eq!(
                (info.verb.as_str(), info.group.as_str(), info.version.as_str(), info.namespace.as_str()),
                (verb, group, version, ns),
                "{path}"
            );
            assert_eq!(
                (info.resource.as_str(), info.name.as_str(), info.subresource.as_str()),
                (resource, name, sub),
                "{path}"
            );
        }
        for path in [
            "/",
            "/version",
            "/api",
            "/apis",
            "/apis/apps",
            "/api/v1",
            "/apis/apps/v1/",
            "/apis/apps/v1//",
            "/readyz/ping",
        ] {
            assert!(!RequestInfo::parse(&Method::GET, path, "").is_resource, "{path}");
        }
        for path in ["/apis/apps/v1//deployments", "/api/v1//pods", "/api/v1/watch//pods"] {
            let info = RequestInfo::parse(&Method::GET, path, "");
            assert!(info.is_resource && info.resource.is_empty(), "{path}");
        }
    }

    #[test]
    fn only_what_streams_is_long_running() {
        let table = [
            ("GET", "/api/v1/pods?watch=1", true),
            ("GET", "/api/v1/watch/pods", true),
            ("POST", "/api/v1/namespaces/a/pods/p/exec", true),
            ("GET", "/api/v1/namespaces/a/pods/p/log", true),
            ("POST", "/api/v1/namespaces/a/services/s/proxy/x", true),
            ("GET", "/api/v1/nodes/n/proxy/metrics", true),
            ("GET", "/apis/metrics.k8s.io/v1beta1/pods?watch=1", true),
            ("GET", "/kimg/backup", true),
            ("GET", "/apis/metrics.k8s.io/v1beta1", false),
            // A name alone does not free a request of its limits.
            ("POST", "/api/v1/namespaces/a/configmaps/x/log", false),
            ("PUT", "/apis/apps/v1/namespaces/a/deployments/d/proxy", false),
            ("POST", "/apis/x.io/v1/namespaces/a/pods/p/exec", false),
            ("POST", "/api/v1/nodes/n/attach", false),
            ("POST", "/api/v1/pods?watch=1", false),
        ];
        for (method, path, long) in table {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let info = RequestInfo::parse(&method.parse().unwrap(), path, query);
            assert_eq!(info.is_long_running(), long, "{method} {path}");
        }
    }

    #[test]
    fn keeps_what_follows_proxy() {
        let info = RequestInfo::parse(&Method::GET, "/api/v1/namespaces/a/services/https:s:1/proxy/x/y", "");
        assert_eq!((info.name.as_str(), info.subresource.as_str(), info.rest.as_str()), ("https:s:1", "proxy", "x/y"));
    }
}
