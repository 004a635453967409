//! NamespaceLifecycle: nothing new in a namespace that is missing or on its way out.

use super::{Attributes, Operation};
use crate::authn::view::{NAMESPACES, str_at};
use crate::error::{ApiError, Result};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Checks the namespace of something new.
pub fn check(at: &Attributes<'_>) -> Result<()> {
    let review = matches!(at.info.group.as_str(), "authorization.k8s.io" | "authentication.k8s.io");
    if at.operation != Operation::Create || at.namespace.is_empty() || at.info.resource == "namespaces" || review {
        return Ok(());
    }
    let Some(namespace) = at.view().get(NAMESPACES, "", at.namespace) else {
        return Err(ApiError::not_found("", "namespaces", at.namespace));
    };
    let terminating = str_at(&namespace, "/status/phase") == "Terminating"
        || !str_at(&namespace, "/metadata/deletionTimestamp").is_empty();
    // Sub-resources of what is still there (evictions, bindings) go on working.
    if !terminating || !at.info.subresource.is_empty() {
        return Ok(());
    }
    let detail = format!("unable to create new content in namespace {} because it is being terminated", at.namespace);
    let cause = format!("namespace {} is being terminated", at.namespace);
    Err(at.forbidden(&detail).with_cause("NamespaceTerminating", cause, "metadata.namespace"))
}

/// Checks a deletion.
pub fn check_delete(at: &Attributes<'_>) -> Result<()> {
    if at.is("", "namespaces") && IMMORTAL.contains(&at.name) {
        return Err(at.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}
