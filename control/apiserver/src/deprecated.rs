//! APIs that are on their way out: what clients of them are told, and who they were.
//!
//! Upstream's gauge says that one was asked for; who asked, and when last, is remembered here besides, of the most recent
//! ones, since this server started.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use api::kinds::Kind;

use crate::request::RequestInfo;

/// Callers that are remembered. Anybody who may ask can name himself as he likes.
const MOST_CALLERS: usize = 256;
/// As many characters of a user agent, and of a user's name.
const MOST_AGENT: usize = 64;
const MOST_NAME: usize = 256;

/// What is deprecated of what is built in: group, version, resource, the text, and the level of the API that has it no
/// more, where that is known.
const BUILT_IN: [(&str, &str, &str, &str, &str); 2] = [
    ("", "v1", "endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice", ""),
    ("", "v1", "componentstatuses", "v1 ComponentStatus is deprecated in v1.19+", ""),
];

/// What clients of a deprecated kind are told, and the level that has it no more.
pub(crate) fn of(kind: &Kind) -> Option<(String, &'static str)> {
    let is = |one: &&(&str, &str, &str, &str, &str)| {
        (one.0, one.1, one.2) == (kind.group.as_ref(), kind.version.as_ref(), kind.plural.as_ref())
    };
    match BUILT_IN.iter().find(is) {
        Some((.., text, removed)) => Some((text.to_string(), removed)),
        // When it goes, its definition's author decides.
        None => Some((kind.custom.as_ref()?.deprecated.clone()?, "")),
    }
}

/// An API: group, version, resource, subresource, and the level that has it no more.
type Asked = (String, String, String, String, &'static str);

/// Who asked for what.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<BTreeMap<(Asked, String, String), i64>>);

impl Callers {
    /// Remembers a request; `now`: seconds since 1970.
    pub(crate) fn note(&self, info: &RequestInfo, removed: &'static str, user: &str, agent: &str, now: i64) {
        let asked =
            (info.group.clone(), info.version.clone(), info.resource.clone(), info.subresource.clone(), removed);
        let agent: String = agent.chars().take(MOST_AGENT).collect();
        let user: String = user.chars().take(MOST_NAME).collect();
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        known.insert((asked, user, agent), now);
        if known.len() > MOST_CALLERS {
            // Those of APIs that go are what a roll asks for; others do not push them out.
            let least = known.iter().min_by_key(|((asked, ..), last)| (!asked.4.is_empty(), **last));
            if let Some(least) = least.map(|(caller, _)| caller.clone()) {
                known.remove(&least);
            }
        }
    }

    /// In Prometheus' text format.
    pub(crate) fn render(&self, out: &mut String) {
        let known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut apis: Vec<&Asked> = known.keys().map(|(asked, ..)| asked).collect();
        apis.dedup();
        // Writing to a String cannot fail.
        let name = "apiserver_requested_deprecated_apis";
        let _ = writeln!(out, "# HELP {name} Deprecated APIs that were requested.\n# TYPE {name} gauge");
        for asked in apis {
            let _ = writeln!(out, "{name}{{{}}} 1", labels(asked));
        }
        let name = "kimg_deprecated_api_last_request_seconds";
        let _ = writeln!(out, "# HELP {name} Who requested them, and when last, since 1970.\n# TYPE {name} gauge");
        for ((asked, user, agent), last) in known.iter() {
            let (user, agent) = (quoted(user), quoted(agent));
            let _ = writeln!(out, "{name}{{{},user={user},user_agent={agent}}} {last}", labels(asked));
        }
        let name = "kimg_removed_apis";
        let _ = writeln!(out, "# HELP {name} Served APIs that a later level has no more.\n# TYPE {name} gauge");
        for (group, version, resource, _, removed) in BUILT_IN.iter().filter(|(.., removed)| !removed.is_empty()) {
            let gone = (group.to_string(), version.to_string(), resource.to_string(), String::new(), *removed);
            let _ = writeln!(out, "{name}{{{}}} 1", labels(&gone));
        }
    }
}

fn labels((group, version, resource, subresource, removed): &Asked) -> String {
    format!(
        "group=\"{group}\",version=\"{version}\",resource=\"{resource}\",subresource=\"{subresource}\",\
         removed_release=\"{removed}\""
    )
}

/// A label's value. Control characters have no place in a line.
fn quoted(text: &str) -> String {
    let harmless: String = text.chars().filter(|c| !c.is_control()).collect();
    format!("\"{}\"", harmless.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> RequestInfo {
        RequestInfo::parse(&http::Method::GET, path, "")
    }

    #[test]
    fn callers_are_told_by_name_and_last_time() {
        let callers = Callers::default();
        let widgets = asked("/apis/e.org/v1beta1/namespaces/a/widgets/w/status");
        callers.note(&widgets, "1.99", "system:serviceaccount:a:b", "old/1 (\"x\\\n)", 5);
        callers.note(&widgets, "1.99", "system:serviceaccount:a:b", "old/1 (\"x\\\n)", 7);
        callers.note(&widgets, "1.99", "admin", "kubectl", 6);
        let mut text = String::new();
        callers.render(&mut text);
        let labels = "group=\"e.org\",version=\"v1beta1\",resource=\"widgets\",subresource=\"status\",\
                      removed_release=\"1.99\"";
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                format!("apiserver_requested_deprecated_apis{{{labels}}} 1"),
                format!("kimg_deprecated_api_last_request_seconds{{{labels},user=\"admin\",user_agent=\"kubectl\"}} 6"),
                format!(
                    "kimg_deprecated_api_last_request_seconds{{{labels},user=\"system:serviceaccount:a:b\",\
                     user_agent=\"old/1 (\\\"x\\\\)\"}} 7"
                ),
            ]
        );
    }

    #[test]
    fn nobody_fills_memory_with_names() {
        let callers = Callers::default();
        let services = asked("/api/v1/namespaces/a/endpoints");
        for n in 0..2 * MOST_CALLERS {
            callers.note(&services, "", &format!("{n}{}", "u".repeat(n)), &"a".repeat(10 * n), n as i64);
        }
        let known = callers.0.lock().unwrap();
        assert_eq!(known.len(), MOST_CALLERS);
        assert!(known.iter().all(|((.., agent), last)| agent.len() <= MOST_AGENT && *last >= MOST_CALLERS as i64));
        assert!(known.keys().all(|(_, user, _)| user.len() <= MOST_NAME));
        drop(known);
        callers.note(&services, "1.99", "keeper", "old", 0);
        for n in 0..MOST_CALLERS {
            callers.note(&services, "", "u", &n.to_string(), i64::MAX);
        }
        assert!(callers.0.lock().unwrap().keys().any(|(_, user, _)| user == "keeper"));
    }
}
