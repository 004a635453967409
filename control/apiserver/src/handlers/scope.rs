//! What a handler knows of the request it answers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use api::codec::{Accept, Offer};
use api::kinds::Kind;
use http::{HeaderMap, HeaderValue, Response};

use crate::deprecated;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::registry::Store;
use crate::request::{RequestInfo, UserInfo, Verb};
use crate::state::AppState;
use crate::strategy::{self, Strategy};

/// Characters that all warnings of an answer may have, and what each is cut to when they have more; upstream's limits
/// (`apiserver/pkg/endpoints/filters/warning.go`).
const ALL_WARNINGS: usize = 4 << 10;
const CUT_WARNING: usize = 256;
/// Warnings of an answer: hyper's and Python's clients refuse answers with more than 100 header fields.
const MOST_WARNINGS: usize = 64;

/// Warnings of an answer, each once.
#[derive(Default)]
struct Warnings {
    all: Vec<String>,
    known: HashSet<String>,
    /// Characters of them all, each cut.
    cut: usize,
}

impl Warnings {
    fn add(&mut self, text: String) {
        let full = self.cut > ALL_WARNINGS || self.all.len() == MOST_WARNINGS;
        if text.is_empty() || full || !self.known.insert(text.clone()) {
            return;
        }
        self.cut += text.chars().take(CUT_WARNING).count();
        self.all.push(text);
    }

    /// What is sent.
    fn shown(&self) -> Vec<&str> {
        let whole: usize = self.all.iter().map(|text| text.chars().count()).sum();
        if whole <= ALL_WARNINGS {
            return self.all.iter().map(String::as_str).collect();
        }
        let end = |text: &str| text.char_indices().nth(CUT_WARNING).map_or(text.len(), |(end, _)| end);
        self.all.iter().map(|text| &text[..end(text)]).collect()
    }
}

/// A request on a resource.
pub(crate) struct Scope<'a> {
    pub(crate) state: &'a Arc<AppState>,
    pub(crate) info: &'a RequestInfo,
    pub(crate) user: &'a UserInfo,
    /// The kind in the version that the request names.
    pub(crate) kind: Arc<Kind>,
    /// `group/version` of the request.
    pub(crate) api_version: String,
    /// The kind in the version that objects are stored in.
    pub(crate) stored: Arc<Kind>,
    pub(crate) strategy: &'static dyn Strategy,
    pub(crate) accept: Accept,
    pub(crate) dry_run: bool,
    user_agent: String,
    warnings: Mutex<Warnings>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(
        state: &'a Arc<AppState>,
        info: &'a RequestInfo,
        user: &'a UserInfo,
        headers: &HeaderMap,
    ) -> Result<Scope<'a>> {
        let kinds = state.kinds();
        let kind =
            kinds.resource(&info.group, &info.version, &info.resource).cloned().ok_or_else(ApiError::no_such_path)?;
        // Authorisation was asked in that namespace, so that nothing outside it may be answered.
        if !kind.namespaced && !info.namespace.is_empty() && !info.of_namespace {
            return Err(ApiError::no_such_path());
        }
        if kind.namespaced && info.namespace.is_empty() && !info.name.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let stored = state.stored_kind(&kinds, &kind);
        let accept = accept(info, headers, &kind)?;
        let strategy = strategy::for_kind(&stored.group, &stored.plural);
        let mut warnings = Warnings::default();
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("");
        if let Some((told, removed)) = deprecated::of(&kind) {
            warnings.add(told);
            // A subresource that nobody serves may be called anything.
            if info.subresource.is_empty() || kind.subresource(&info.subresource).is_some() {
                let now = jiff::Timestamp::now().as_second();
                state.metrics.deprecated.note(info, removed, &user.name, text(http::header::USER_AGENT), now);
            }
        }
        Ok(Scope {
            state,
            info,
            user,
            stored,
            strategy,
            accept,
            api_version: kind.api_version(),
            dry_run: info.dry_run(),
            user_agent: text(http::header::USER_AGENT).to_string(),
            warnings: Mutex::new(warnings),
            kind,
        })
    }

    /// The same request, about one object of the collection that it is about.
    pub(crate) fn for_item<'b>(scope: &Scope<'b>, info: &'b RequestInfo) -> Scope<'b> {
        Scope {
            state: scope.state,
            info,
            user: scope.user,
            kind: scope.kind.clone(),
            api_version: scope.api_version.clone(),
            stored: scope.stored.clone(),
            strategy: scope.strategy,
            accept: scope.accept.clone(),
            dry_run: scope.dry_run,
            user_agent: scope.user_agent.clone(),
            warnings: Mutex::default(),
        }
    }

    /// Where objects of this resource are.
    pub(crate) fn store(&self) -> Store<'_> {
        self.state.registry.of(&self.stored.group, &self.stored.plural)
    }

    /// The namespace part of keys: empty for cluster-scoped kinds.
    pub(crate) fn namespace(&self) -> &str {
        if self.kind.namespaced { &self.info.namespace } else { "" }
    }

    /// The namespace that a collection is limited to.
    pub(crate) fn collection(&self) -> Option<&str> {
        Some(self.namespace()).filter(|n| !n.is_empty())
    }

    pub(crate) fn check_verb(&self) -> Result<()> {
        let verb = self.info.verb.as_str();
        let known = match self.info.subresource.as_str() {
            "" => self.kind.has_verb(verb),
            sub => self.kind.subresource(sub).ok_or_else(ApiError::no_such_path)?.verbs.iter().any(|v| v == verb),
        };
        // Of all namespaces at once things are only read.
        let all_namespaces = self.kind.namespaced && self.info.namespace.is_empty();
        if all_namespaces && !matches!(self.info.verb, Verb::List | Verb::Watch) {
            return Err(ApiError::method_not_served());
        }
        // A new object has no name in its path; what is changed has one.
        let named = match self.info.verb {
            Verb::Update | Verb::Patch => !self.info.name.is_empty(),
            Verb::Create => self.info.name.is_empty() || !self.info.subresource.is_empty(),
            _ => true,
        };
        if known && named { Ok(()) } else { Err(ApiError::method_not_served()) }
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.kind.group, &self.kind.plural, &self.info.name)
    }

    /// Whether `status` is written, not the rest.
    pub(crate) fn on_status(&self) -> bool {
        self.info.subresource == "status"
    }

    /// What hooks of the kind may look at.
    pub(crate) fn context(&self) -> strategy::Context<'_> {
        strategy::Context { state: self.state, info: self.info, user: self.user, dry_run: self.dry_run }
    }

    /// Who is recorded as the manager of fields.
    pub(crate) fn manager(&self) -> Result<String> {
        match self.info.query.get("fieldManager") {
            Some(name) if name.len() > 128 => {
                Err(ApiError::bad_request("fieldManager: Too long: may not be more than 128 bytes"))
            }
            Some(name) if !name.is_empty() => Ok(name.to_string()),
            _ => {
                let product = self.user_agent.split('/').next().unwrap_or("");
                let name: String = product.chars().filter(|c| !c.is_control()).take(128).collect();
                Ok(if name.is_empty() { "unknown".into() } else { name })
            }
        }
    }

    /// Sends a warning with the answer.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().unwrap_or_else(|e| e.into_inner()).add(text.into());
    }

    pub(crate) fn add_warnings(&self, response: &mut Response<Body>) {
        for text in self.warnings.lock().unwrap_or_else(|e| e.into_inner()).shown() {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                response.headers_mut().append(http::header::WARNING, value);
            }
        }
    }
}

fn accept(info: &RequestInfo, headers: &HeaderMap, kind: &Kind) -> Result<Accept> {
    // Several headers are one list.
    let given: Vec<&str> = headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let header = given.join(",");
    let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let plain = matches!(info.subresource.as_str(), "" | "status" | "scale");
    let shown = plain && (kind.has_verb("get") || kind.has_verb("list"));
    let offer = Offer { protobuf: kind.has_protobuf(), tables: shown, partial: shown, discovery: false };
    let chosen = if info.verb == Verb::Watch {
        api::codec::negotiate_watch(&header, &offer)
    } else {
        api::codec::negotiate(&header, &offer)
    };
    let mut accept = chosen.ok_or_else(|| {
        let protobuf = if offer.protobuf { ", application/vnd.kubernetes.protobuf" } else { "" };
        ApiError::not_acceptable(format!(
            "only the following media types are accepted: application/json, application/yaml{protobuf}"
        ))
    })?;
    accept.pretty = match info.query.get("pretty") {
        Some(_) => info.query.flag("pretty"),
        // Who looks with their own eyes.
        None => accept.pretty || ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| agent.starts_with(a)),
    };
    Ok(accept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_few_and_short() {
        let mut some = Warnings::default();
        let long = "ü".repeat(1000);
        ["a", "b", "a", "", &long].into_iter().for_each(|text| some.add(text.into()));
        assert_eq!(some.shown(), ["a", "b", &long], "each once, and whole while there is room");
        (0..100_000).for_each(|i| some.add(format!("{i} {long}")));
        let shown = some.shown();
        assert!(shown.iter().all(|text| text.chars().count() <= CUT_WARNING));
        let all: usize = shown.iter().map(|text| text.chars().count()).sum();
        assert!((ALL_WARNINGS..=ALL_WARNINGS + CUT_WARNING).contains(&all), "{all}");
    }
}
