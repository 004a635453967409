//! Creating and updating: the one way of every object into the store.
//!
//! body → field validation → storage version → metadata → defaults → strategy → mutating
//! admission → validation → managed fields → validating admission → store.

use std::sync::Arc;

use api::meta;
use api::schema::Schema;
use bytes::Bytes;
use http::Response;
use rand::Rng;
use serde_json::Value;

use super::change::{AGAIN, TAKEN_TRIES};
use super::{Scope, respond};
use crate::admission::{Attributes, Operation, lifecycle};
use crate::audit::Made;
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::{shape, strategy};

/// Suffixes of generated names are made of these, so that no words come out.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A generated name's prefix is cut to this.
const PREFIX_MAX: usize = 58;
/// Tries of a name that is taken.
const TRIES: usize = 8;

/// Reads a body by schema, and deals with what does not belong there.
pub(super) fn decode(scope: &Scope<'_>, content_type: &str, body: &[u8], schema: &Schema) -> Result<Value> {
    let decoded = api::codec::decode(body, content_type, schema, scope.kind.has_protobuf())?;
    field_validation(scope, &decoded.strict)?;
    Ok(decoded.object)
}

/// The same for a body of another kind than the resource's.
pub(super) fn decode_any(scope: &Scope<'_>, content_type: &str, body: &[u8], schema: &Schema) -> Result<Value> {
    let decoded = api::codec::decode(body, content_type, schema, true)?;
    field_validation(scope, &decoded.strict)?;
    Ok(decoded.object)
}

/// Acts on unknown and duplicate fields as `fieldValidation` wants it.
pub(super) fn field_validation(scope: &Scope<'_>, strict: &[String]) -> Result<()> {
    match scope.info.query.get("fieldValidation").unwrap_or("") {
        "Ignore" => Ok(()),
        "Strict" if !strict.is_empty() => {
            let shown = &strict[..strict.len().min(api::codec::MAX_STRICT)];
            Err(ApiError::bad_request(format!("strict decoding error: {}", shown.join(", "))))
        }
        _ => {
            strict.iter().for_each(|text| scope.warn(text.clone()));
            Ok(())
        }
    }
}

/// The kind and namespace that a body names must be those of the request.
pub(super) fn check_body(scope: &Scope<'_>, object: &mut Value) -> Result<()> {
    let (wanted_version, wanted_kind) = (scope.kind.api_version(), &scope.kind.kind);
    let (version, kind) = (meta::api_version(object), meta::kind(object));
    if !version.is_empty() && version != wanted_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted_version})"
        )));
    }
    if !kind.is_empty() && kind != wanted_kind {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({kind}) does not match the expected kind ({wanted_kind})"
        )));
    }
    meta::set_type(object, &wanted_version, wanted_kind);
    meta::metadata_mut(object);
    let namespace = scope.namespace();
    if !scope.kind.namespaced {
        meta::remove(object, "namespace");
    } else if meta::namespace(object).is_empty() {
        meta::set(object, "namespace", namespace);
    } else if meta::namespace(object) != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// From the request's version into the storage version.
pub(super) fn to_storage(scope: &Scope<'_>, object: &mut Value) {
    if !respond::same_version(scope) {
        // Defaults of a version belong to it, so that they come before the conversion.
        shape::defaults(&scope.kind, object);
        crate::versions::convert(object, &scope.stored);
    }
}

/// POST of a new object.
pub(super) async fn create(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let mut object = decode(scope, content_type, &body, scope.kind.schema())?;
    drop(body);
    check_body(scope, &mut object)?;
    to_storage(scope, &mut object);
    let created = create_object(scope, object, &scope.manager()?, true).await?;
    let made = Made(match &created {
        Written::Stored(object) => object.name.to_string(),
        Written::WouldBe(value) | Written::Removed(value) => meta::name(value).to_string(),
    });
    let mut response = finish(scope, 201, created)?;
    response.extensions_mut().insert(made);
    Ok(response)
}

/// What a write came to.
pub(super) enum Written {
    Stored(Arc<Object>),
    /// A dry run's would-be object, in the storage version.
    WouldBe(Value),
    /// The write took the last finalizer away, and the object is gone; its last state.
    Removed(Value),
}

pub(super) fn finish(scope: &Scope<'_>, code: u16, written: Written) -> Result<Response<Body>> {
    match written {
        Written::Stored(object) => respond::object(scope, code, &object),
        Written::WouldBe(mut value) | Written::Removed(mut value) => {
            if !respond::served_as_stored(scope) {
                crate::versions::serve(&mut value, &scope.kind);
            }
            respond::value(scope, code, value)
        }
    }
}

/// Creates an object that is in the storage version; `track` says whether the fields'
/// manager is still to be recorded.
pub(super) async fn create_object(scope: &Scope<'_>, mut object: Value, manager: &str, track: bool) -> Result<Written> {
    if !meta::resource_version(&object).is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    not_terminating(scope)?;
    let generated = name(scope, &mut object)?;
    new_metadata(scope, &mut object);
    if scope.stored.has_status() && keeps_no_status(scope) {
        meta::object_mut(&mut object).remove("status");
    }
    if generated.is_none() && !scope.strategy.reserves() {
        return admit_and_store(scope, object, manager, track).await;
    }
    for attempt in 0.. {
        if let Some(prefix) = &generated {
            meta::set(&mut object, "name", &format!("{prefix}{}", suffix()));
        }
        let done = admit_and_store(scope, object.clone(), manager, track).await;
        match done {
            Err(mut error) if generated.is_some() && error.reason == "AlreadyExists" => {
                if !another_name(&mut error, attempt) {
                    return Err(error);
                }
            }
            Err(error) if strategy::is_taken(&error) && attempt < TAKEN_TRIES => tokio::time::sleep(AGAIN).await,
            done => return done,
        }
    }
    Err(ApiError::internal("no name was found"))
}

/// Nothing new of a kind whose definition is on its way out.
fn not_terminating(scope: &Scope<'_>) -> Result<()> {
    let Some(custom) = &scope.stored.custom else { return Ok(()) };
    let registry = &scope.state.registry;
    let definition = registry.get("apiextensions.k8s.io", "customresourcedefinitions", "", &custom.crd);
    if definition.is_some_and(|crd| meta::deletion_timestamp(&crd.value()).is_none()) {
        return Ok(());
    }
    let mut error = ApiError::method_not_allowed(&scope.kind.group, &scope.kind.plural, "create");
    error.message = "create not allowed while custom resource definition is terminating".into();
    Err(error)
}

/// Whether a taken name that was generated is followed by another; the last one asks the client to come again.
fn another_name(error: &mut ApiError, attempt: usize) -> bool {
    let again = attempt < TRIES;
    if !again {
        error.retry_after = Some(1);
    }
    again
}

/// Kinds whose creator says what state they are in.
fn keeps_no_status(scope: &Scope<'_>) -> bool {
    !matches!(
        (scope.stored.group.as_ref(), scope.stored.plural.as_ref()),
        ("", "nodes" | "persistentvolumes" | "pods" | "namespaces" | "services")
    )
}

async fn admit_and_store(scope: &Scope<'_>, mut object: Value, manager: &str, track: bool) -> Result<Written> {
    shape::defaults(&scope.stored, &mut object);
    let sent = track.then(|| object.clone());
    let context = scope.context();
    scope.strategy.prepare_for_create(context, &mut object)?;
    let outcome = async {
        let name = meta::name(&object).to_string();
        let at = attributes(scope, Operation::Create, &name);
        mutate(scope, at, &mut object, None).await?;
        shape::defaults(&scope.stored, &mut object);
        let mut causes = shape::validate(scope, &object, None);
        causes.extend(scope.strategy.validate(context, &object));
        refuse(scope, &name, causes)?;
        if let Some(sent) = sent {
            shape::track_create(scope, &mut object, sent, manager);
        }
        validate(scope, at, Some(&object), None).await?;
        if scope.store().get(meta::namespace(&object), &name).is_some() {
            return Err(ApiError::already_exists(&scope.kind.group, &scope.kind.plural, &name));
        }
        if scope.dry_run {
            return Ok(None);
        }
        let stored = write_reserved(scope, &object, None, scope.store().create(&object, ttl(scope))).await?;
        // Memory is as far as the write by now. What was on its way out before it, to another server or another task, was
        // looked through before it too, and nobody would take the object away.
        if let Err(error) = lifecycle::check(&at).and_then(|()| not_terminating(scope)) {
            take_back(scope, stored).await?;
            return Err(error);
        }
        Ok(Some(stored))
    }
    .await;
    match outcome {
        Ok(Some(stored)) => Ok(Written::Stored(stored)),
        Ok(None) => {
            scope.strategy.abandoned(context, &object, None);
            Ok(Written::WouldBe(object))
        }
        Err(error) => {
            scope.strategy.abandoned(context, &object, None);
            Err(error)
        }
    }
}

/// Removes what was just created, also where its client goes before the store answers.
async fn take_back(scope: &Scope<'_>, stored: Arc<Object>) -> Result<()> {
    let (state, kind) = (scope.state.clone(), scope.stored.clone());
    let removal = tokio::spawn(async move {
        let mut stopping = state.stopping();
        tokio::select! {
            biased;
            () = state.registry.take_back(&kind.group, &kind.plural, &stored) => Ok(()),
            _ = stopping.wait_for(|s| *s) => {
                Err(ApiError::internal(format!("the server ends before {} {:?} is taken back", kind.plural, stored.name)))
            }
        }
    });
    removal.await.unwrap_or_else(|error| Err(ApiError::internal(error)))
}

/// Does a write to the store with what the kind's strategy reserves for it.
pub(super) async fn write_reserved<T>(
    scope: &Scope<'_>,
    new: &Value,
    old: Option<&Value>,
    write: impl Future<Output = Result<T>>,
) -> Result<T> {
    let reserved = scope.strategy.reserve(scope.context(), new, old).await?;
    let done = write.await;
    // After an error of the server the write may have been done.
    if done.as_ref().is_err_and(|error| error.code < 500) {
        strategy::give_back(scope.state.registry.store().as_ref(), reserved).await;
    }
    done
}

/// Sets or checks the name; gives the prefix when one must be generated.
fn name(scope: &Scope<'_>, object: &mut Value) -> Result<Option<String>> {
    if meta::name(object).is_empty() {
        let prefix = meta::field(object, "generateName");
        if prefix.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(ApiError::invalid(&scope.kind.group, &scope.kind.kind, "", vec![cause]));
        }
        return Ok(Some(prefix.chars().take(PREFIX_MAX).collect()));
    }
    Ok(None)
}

/// Five characters that make a name its own.
pub(super) fn suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| SUFFIX[rng.random_range(0..SUFFIX.len())] as char).collect()
}

/// Now, as objects carry it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn new_metadata(scope: &Scope<'_>, object: &mut Value) {
    for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        meta::remove(object, field);
    }
    meta::set(object, "uid", &uuid::Uuid::new_v4().to_string());
    meta::set(object, "creationTimestamp", &now());
    if counts_generations(scope) {
        meta::set_value(object, "generation", 1.into());
    }
}

/// Whether objects of the kind have a generation.
pub(super) fn counts_generations(scope: &Scope<'_>) -> bool {
    let kind = &scope.stored;
    let plural = kind.plural.as_ref();
    match kind.group.as_ref() {
        "" => matches!(plural, "pods" | "replicationcontrollers" | "podtemplates"),
        "apps" => plural != "controllerrevisions",
        "networking.k8s.io" => !matches!(plural, "ipaddresses" | "servicecidrs"),
        "resource.k8s.io" => plural == "resourceslices",
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "batch"
        | "discovery.k8s.io"
        | "flowcontrol.apiserver.k8s.io"
        | "policy"
        | "scheduling.k8s.io" => true,
        _ => kind.is_custom(),
    }
}

pub(super) fn ttl(scope: &Scope<'_>) -> Option<u64> {
    (scope.stored.group.is_empty() && scope.stored.plural == "events").then_some(scope.state.config.event_ttl.as_secs())
}

pub(super) fn attributes<'a>(scope: &'a Scope<'_>, operation: Operation, name: &'a str) -> Attributes<'a> {
    Attributes {
        state: scope.state,
        info: scope.info,
        user: scope.user,
        operation,
        group: &scope.stored.group,
        version: &scope.stored.version,
        kind: &scope.stored.kind,
        namespace: if scope.kind.namespaced { &scope.info.namespace } else { "" },
        name,
        dry_run: scope.dry_run,
    }
}

/// The one place where mutating admission is called.
pub(super) async fn mutate(scope: &Scope<'_>, at: Attributes<'_>, new: &mut Value, old: Option<&Value>) -> Result<()> {
    let mut warnings = Vec::new();
    let done = scope.state.admission.mutate(at, new, old, &mut warnings).await;
    warnings.into_iter().for_each(|w| scope.warn(w));
    let twice = without_repeated_owners(new);
    if !twice.is_empty() {
        scope.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and \
             may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: [{}]",
            twice.join(" ")
        ));
    }
    done
}

/// Takes out the owners that stand there once more; gives their UIDs (upstream's `dedupOwnerReferencesAndAddWarning`).
fn without_repeated_owners(object: &mut Value) -> Vec<String> {
    if meta::owners(object).len() < 2 {
        return Vec::new();
    }
    let mut seen = std::collections::BTreeSet::new();
    let (once, twice): (Vec<_>, Vec<_>) =
        meta::owners(object).iter().cloned().partition(|owner| seen.insert(owner.to_string()));
    let twice: Vec<String> = twice.iter().map(|owner| owner["uid"].as_str().unwrap_or_default().to_owned()).collect();
    if !twice.is_empty() {
        meta::metadata_mut(object).insert("ownerReferences".into(), once.into());
    }
    twice
}

/// The one place where validating admission is called.
pub(super) async fn validate(
    scope: &Scope<'_>,
    at: Attributes<'_>,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    let mut warnings = Vec::new();
    let done = scope.state.admission.validate(at, new, old, &mut warnings).await;
    warnings.into_iter().for_each(|w| scope.warn(w));
    done
}

pub(super) fn refuse(scope: &Scope<'_>, name: &str, causes: Vec<Cause>) -> Result<()> {
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(&scope.kind.group, &scope.kind.kind, name, causes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_last_generated_name_the_client_is_asked_to_come_again() {
        let mut error = ApiError::already_exists("", "configmaps", "c-abcde");
        assert!((0..TRIES).all(|attempt| another_name(&mut error, attempt)));
        assert_eq!((error.code, error.retry_after), (409, None));
        assert!(!another_name(&mut error, TRIES));
        assert_eq!((error.code, error.retry_after), (409, Some(1)));
    }
}
