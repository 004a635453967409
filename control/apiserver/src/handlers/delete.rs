//! Deleting: preconditions, grace, finalizers, propagation.

use std::sync::Arc;

use api::meta;
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::{Scope, list, respond, write};
use crate::admission::Operation;
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::strategy::DeleteOptions;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Whether something keeps a terminating object in the store.
pub(super) fn is_held(scope: &Scope<'_>, object: &Value) -> bool {
    scope.strategy.holds(object)
        || !meta::finalizers(object).is_empty()
        || meta::deletion_grace(object).unwrap_or(0) > 0
}

/// Options of a delete, from body or query.
pub(super) fn options(scope: &Scope<'_>, content_type: &str, body: &[u8]) -> Result<DeleteOptions> {
    let query = &scope.info.query;
    let mut given = Value::Null;
    if !body.is_empty() {
        let schema = api::kinds::type_schema("", "v1", "DeleteOptions")
            .ok_or_else(|| ApiError::internal("no schema of DeleteOptions"))?;
        given = api::codec::decode(body, content_type, schema, true)?.object;
        let kind = meta::kind(&given);
        if !matches!(kind, "" | "DeleteOptions") {
            return Err(ApiError::bad_request(format!("the body of a delete is a DeleteOptions, not a {kind}")));
        }
    }
    let text =
        |field: &str| given[field].as_str().or_else(|| query.get(field)).filter(|t| !t.is_empty()).map(str::to_string);
    let seconds =
        match (given["gracePeriodSeconds"].as_i64(), query.get("gracePeriodSeconds").filter(|t| !t.is_empty())) {
            (Some(seconds), _) => Some(seconds),
            (None, Some(text)) => Some(text.parse().map_err(|_| {
                ApiError::bad_request(format!("gracePeriodSeconds: Invalid value: {text:?}: must be a number"))
            })?),
            (None, None) => None,
        };
    let refuse = |cause| ApiError::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]);
    let mut policy = text("propagationPolicy");
    let orphan = given["orphanDependents"]
        .as_bool()
        .or_else(|| query.get("orphanDependents").map(|_| query.flag("orphanDependents")));
    if let (Some(policy), Some(_)) = (&policy, orphan) {
        let detail = "orphanDependents and deletionPropagation cannot be both set";
        return Err(refuse(Cause::invalid("propagationPolicy", &policy.as_str().into(), detail)));
    }
    if let (None, Some(orphan)) = (&policy, orphan) {
        policy = Some(if orphan { "Orphan" } else { "Background" }.to_string());
    }
    if let Some(policy) = policy.as_deref().filter(|p| !matches!(*p, "Orphan" | "Background" | "Foreground")) {
        let known = ["Foreground", "Background", "Orphan", "nil"];
        return Err(refuse(Cause::not_supported("propagationPolicy", &policy.into(), &known)));
    }
    if given["dryRun"].as_array().is_some_and(|all| all.iter().any(|v| v != "All")) {
        return Err(refuse(Cause::not_supported("dryRun", &given["dryRun"], &["All"])));
    }
    let dry_run = scope.dry_run || given["dryRun"].as_array().is_some_and(|all| all.iter().any(|v| v == "All"));
    let condition = |field: &str| given["preconditions"][field].as_str().map(str::to_string);
    Ok(DeleteOptions {
        grace_period_seconds: seconds,
        uid: condition("uid"),
        resource_version: condition("resourceVersion"),
        propagation_policy: policy,
        dry_run,
    })
}

/// DELETE of a named object.
pub(super) async fn delete(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let options = options(scope, content_type, &body)?;
    match remove(scope, &scope.info.name, &options).await? {
        Outcome::Gone(last) if scope.kind.is_shown_when_deleted() => {
            write::finish(scope, 200, write::Written::Stored(last))
        }
        Outcome::Gone(last) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": status_details(scope, &last.uid),
            });
            let bytes = api::codec::encode(&status, scope.accept.format, None)?;
            Ok(respond::answer(200, scope.accept.format.media_type(), crate::pipeline::full(bytes)))
        }
        Outcome::Held(object) => write::finish(scope, 200, object),
    }
}

fn status_details(scope: &Scope<'_>, uid: &str) -> Value {
    let mut details = json!({"name": scope.info.name, "kind": scope.kind.plural, "uid": uid});
    if !scope.kind.group.is_empty() {
        details["group"] = scope.kind.group.as_ref().into();
    }
    details
}

/// What a delete came to.
pub(super) enum Outcome {
    /// Its last state, with the revision of the deletion.
    Gone(Arc<Object>),
    /// It goes on living for a while.
    Held(write::Written),
}

/// Deletes an object, or marks it as terminating.
pub(super) async fn remove(scope: &Scope<'_>, name: &str, options: &DeleteOptions) -> Result<Outcome> {
    for attempt in 1.. {
        let current = scope
            .store()
            .get(scope.namespace(), name)
            .ok_or_else(|| ApiError::not_found(&scope.kind.group, &scope.kind.plural, name))?;
        match remove_once(scope, name, options, &current).await {
            Err(error) if error.reason == "Conflict" && attempt < 8 && overtaken(scope, name, &current) => {
                continue;
            }
            done => return done,
        }
    }
    Err(ApiError::stale(&scope.kind.group, &scope.kind.plural, name))
}

fn overtaken(scope: &Scope<'_>, name: &str, current: &Object) -> bool {
    scope.store().get(scope.namespace(), name).is_none_or(|o| o.revision != current.revision)
}

async fn remove_once(scope: &Scope<'_>, name: &str, options: &DeleteOptions, current: &Arc<Object>) -> Result<Outcome> {
    let old = current.value();
    preconditions(scope, name, options, current)?;
    let at = write::attributes(scope, Operation::Delete, name);
    write::validate(scope, at, None, Some(&old)).await?;
    scope.strategy.check_delete(scope.context(), &old)?;
    let new = terminating(scope, &old, options);
    if is_held(scope, &new) {
        if new == old {
            return Ok(Outcome::Held(write::Written::Stored(current.clone())));
        }
        if options.dry_run {
            return Ok(Outcome::Held(write::Written::WouldBe(new)));
        }
        let stored = scope.store().update(&new, current.revision, write::ttl(scope)).await?;
        return Ok(Outcome::Held(write::Written::Stored(stored)));
    }
    if options.dry_run {
        return Ok(Outcome::Gone(current.clone()));
    }
    let revision = scope.store().delete(&current.namespace, &current.name, current.revision).await?;
    scope.strategy.after_delete(scope.context(), &old).await;
    Ok(Outcome::Gone(current.restamped(revision)))
}

fn preconditions(scope: &Scope<'_>, name: &str, options: &DeleteOptions, current: &Object) -> Result<()> {
    let check = |what: &str, wanted: &Option<String>, is: &str| match wanted {
        Some(wanted) if wanted != is => {
            let detail = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}");
            Err(ApiError::conflict(&scope.kind.group, &scope.kind.plural, name, &detail))
        }
        _ => Ok(()),
    };
    check("UID", &options.uid, &current.uid)?;
    check("ResourceVersion", &options.resource_version, &current.revision.to_string())
}

/// The object as the deletion leaves it: with a time, a grace, and the finalizers that the
/// propagation policy asks for.
fn terminating(scope: &Scope<'_>, old: &Value, options: &DeleteOptions) -> Value {
    let mut new = old.clone();
    let already = meta::deletion_timestamp(old).is_some();
    let grace = scope.strategy.grace_period(old, options).unwrap_or(0).max(0);
    // A kind that has a grace period goes on as it began.
    if !already || scope.strategy.grace_period(old, options).is_none() {
        propagation(scope, &mut new, options);
    }
    if !already && meta::generation(old) > 0 {
        meta::set_value(&mut new, "generation", (meta::generation(old) + 1).into());
    }
    // Grace only shrinks.
    let shorter = already && options.grace_period_seconds.is_some() && grace < meta::deletion_grace(old).unwrap_or(0);
    if !already || shorter {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
        meta::set(&mut new, "deletionTimestamp", &at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        meta::set_value(&mut new, "deletionGracePeriodSeconds", grace.into());
    }
    if !already {
        scope.strategy.begin_delete(&mut new);
    }
    new
}

fn propagation(scope: &Scope<'_>, new: &mut Value, options: &DeleteOptions) {
    let has = |f: &str, object: &Value| meta::finalizers(object).contains(&f);
    let policy = match options.propagation_policy.as_deref() {
        Some(policy) => policy,
        None if has(ORPHAN, new) => "Orphan",
        None if has(FOREGROUND, new) => "Foreground",
        None => scope.strategy.default_propagation(),
    };
    let mut finalizers: Vec<Value> =
        meta::finalizers(new).into_iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).map(Value::from).collect();
    match policy {
        "Orphan" => finalizers.push(ORPHAN.into()),
        "Foreground" => finalizers.push(FOREGROUND.into()),
        _ => {}
    }
    if finalizers.is_empty() {
        meta::remove(new, "finalizers");
    } else {
        meta::set_value(new, "finalizers", finalizers.into());
    }
}

/// DELETE of a collection: each object on its own; the answer is the list.
pub(super) async fn delete_collection(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let options = options(scope, content_type, &body)?;
    let filter = list::filter(scope)?;
    let page = list::page(scope, &filter).await?;
    for object in &page.objects {
        // Objects of all namespaces have their own.
        let info = crate::RequestInfo { namespace: object.namespace.to_string(), ..scope.info.clone() };
        let own = Scope::for_item(scope, &info);
        match remove(&own, &object.name, &options).await {
            Err(error) if error.reason == "NotFound" => {}
            done => drop(done?),
        }
    }
    list::answer(scope, page).await
}
