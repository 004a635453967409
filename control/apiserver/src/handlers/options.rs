//! What a write's query may say: dry run, field validation, field manager, force.

use api::patch::APPLY_PATCH;

use super::Scope;
use crate::error::{ApiError, Cause, Result};
use crate::request::Verb;

/// Refuses options that mean nothing.
pub(super) fn check(scope: &Scope<'_>, content_type: &str) -> Result<()> {
    let kind = match scope.info.verb {
        Verb::Create => "CreateOptions",
        Verb::Update => "UpdateOptions",
        Verb::Patch => "PatchOptions",
        Verb::Delete | Verb::DeleteCollection => "DeleteOptions",
        _ => return Ok(()),
    };
    let query = &scope.info.query;
    let mut causes = Vec::new();
    if scope.info.verb == Verb::Patch {
        let apply = content_type.starts_with(APPLY_PATCH);
        if apply && query.get("fieldManager").is_none_or(str::is_empty) {
            causes.push(Cause::required("fieldManager", "is required for apply patch"));
        }
        if !apply && query.get("force").is_some_and(|v| !v.is_empty()) {
            causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
        }
    }
    let manager = query.get("fieldManager").unwrap_or("");
    causes.extend(api::validation::manager("fieldManager", manager).into_iter().map(Cause::from));
    let dry_run: Vec<&str> = query.all("dryRun").collect();
    if dry_run.iter().any(|v| *v != "All") {
        causes.push(Cause::not_supported("dryRun", &dry_run.clone().into(), &["All"]));
    }
    let validation = query.get("fieldValidation").unwrap_or("");
    if !matches!(validation, "" | "Ignore" | "Strict" | "Warn") {
        causes.push(Cause::not_supported("fieldValidation", &validation.into(), &["", "Ignore", "Strict", "Warn"]));
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", kind, "", causes)) }
}
