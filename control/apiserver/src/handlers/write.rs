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

use super::{Scope, respond};
use crate::admission::{Attributes, Operation};
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::shape;

/// Suffixes of generated names are made of these, so that no words come out.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A generated name's prefix is cut to this.
const PREFIX_MAX: usize = 58;
/// Tries of a write that somebody else was faster than.
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
        "Strict" if !strict.is_empty() => Err(ApiError::bad_request(format!("strict decoding error: {}", strict.join(", ")))),
        "" | "Warn" | "Strict" => {
            for text in strict.iter().take(10) {
                scope.warn(text.clone());
            }
            Ok(())
        }
        other => Err(ApiError::invalid(
            "meta.k8s.io",
            "CreateOptions",
            "",
            vec![Cause::not_supported("fieldValidation", &other.into(), &["Ignore", "Strict", "Warn"])],
        )),
    }
}

/// The kind and namespace that a body names must be those of the request.
pub(super) fn check_body(scope: &Scope<'_>, object: &mut Value) -> Result<()> {
    let (wanted_version, wanted_kind) = (scope.kind.api_version(), &scope.kind.kind);
    let (version, kind) = (meta::api_version(object), meta::kind(object));
    if !version.is_empty() && version != wanted_version {
        return Err(ApiError::bad_request(format!("the API version in the data ({version}) does not match the expected API version ({wanted_version})")));
    }
    if !kind.is_empty() && kind != wanted_kind {
        return Err(ApiError::bad_request(format!("the kind in the data ({kind}) does not match the expected kind ({wanted_kind})")));
    }
    meta::set_type(object, &wanted_version, wanted_kind);
    meta::metadata_mut(object);
    let namespace = scope.namespace();
    if !scope.kind.namespaced {
        meta::remove(object, "namespace");
    } else if meta::namespace(object).is_empty() {
        meta::set(object, "namespace", namespace);
    } else if meta::namespace(object) != namespace {
        return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
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
    finish(scope, 201, created)
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
    let generated = name(scope, &mut object)?;
    new_metadata(scope, &mut object);
    if scope.stored.has_status() && keeps_no_status(scope) {
        meta::object_mut(&mut object).remove("status");
    }
    for attempt in 0.. {
        if let Some(prefix) = &generated {
            meta::set(&mut object, "name", &format!("{prefix}{}", suffix()));
        }
        let done = admit_and_store(scope, object.clone(), manager, track).await;
        match done {
            Err(error) if error.reason == "AlreadyExists" && generated.is_some() && attempt < TRIES => continue,
            Err(mut error) if error.reason == "AlreadyExists" && generated.is_some() => {
                error.retry_after = Some(1);
                return Err(error);
            }
            done => return done,
        }
    }
    Err(ApiError::internal("no name was found"))
}

/// Kinds whose creator says what state they are in.
fn keeps_no_status(scope: &Scope<'_>) -> bool {
    !matches!((scope.stored.group.as_ref(), scope.stored.plural.as_ref()), ("", "nodes" | "persistentvolumes" | "pods" | "namespaces" | "services"))
}

async fn admit_and_store(scope: &Scope<'_>, mut object: Value, manager: &str, track: bool) -> Result<Written> {
    shape::defaults(&scope.stored, &mut object);
    let context = scope.context();
    scope.strategy.prepare_for_create(context, &mut object)?;
    let outcome = async {
        let name = meta::name(&object).to_string();
        let at = attributes(scope, Operation::Create, &name);
        mutate(scope, at, &mut object, None).await?;
        shape::defaults(&scope.stored, &mut object);
        let mut causes = shape::validate(&scope.stored, &object, None);
        causes.extend(scope.strategy.validate(context, &object));
        refuse(scope, &name, causes)?;
        if track {
            shape::track_update(scope, &mut object, None, manager);
        }
        validate(scope, at, Some(&object), None).await?;
        if scope.store().get(meta::namespace(&object), &name).is_some() {
            return Err(ApiError::already_exists(&scope.kind.group, &scope.kind.plural, &name));
        }
        if scope.dry_run {
            return Ok(None);
        }
        scope.store().create(&object, ttl(scope)).await.map(Some)
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
fn counts_generations(scope: &Scope<'_>) -> bool {
    let kind = &scope.stored;
    match kind.group.as_ref() {
        "" => matches!(kind.plural.as_ref(), "pods" | "replicationcontrollers"),
        "networking.k8s.io" => kind.plural != "ipaddresses" && kind.plural != "servicecidrs",
        "resource.k8s.io" => kind.plural == "resourceslices",
        "rbac.authorization.k8s.io" | "coordination.k8s.io" | "storage.k8s.io" | "events.k8s.io" | "certificates.k8s.io" | "autoscaling" => false,
        "node.k8s.io" | "apiregistration.k8s.io" => false,
        _ => true,
    }
}

pub(super) fn ttl(scope: &Scope<'_>) -> Option<u64> {
    (scope.stored.group.is_empty() && scope.stored.plural == "events").then_some(scope.state.config.event_ttl_seconds)
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
    done
}

/// The one place where validating admission is called.
pub(super) async fn validate(scope: &Scope<'_>, at: Attributes<'_>, new: Option<&Value>, old: Option<&Value>) -> Result<()> {
    let mut warnings = Vec::new();
    let done = scope.state.admission.validate(at, new, old, &mut warnings).await;
    warnings.into_iter().for_each(|w| scope.warn(w));
    done
}

pub(super) fn refuse(scope: &Scope<'_>, name: &str, causes: Vec<Cause>) -> Result<()> {
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(&scope.kind.group, &scope.kind.kind, name, causes)) }
}

/// PUT.
pub(super) async fn update(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let mut object = decode(scope, content_type, &body, scope.kind.schema())?;
    drop(body);
    check_body(scope, &mut object)?;
    check_name(scope, &mut object)?;
    to_storage(scope, &mut object);
    let manager = scope.manager()?;
    let name = scope.info.name.clone();
    if scope.store().get(scope.namespace(), &name).is_none() && !scope.on_status() && allows_create(scope) {
        if !meta::resource_version(&object).is_empty() {
            return Err(ApiError::stale(&scope.kind.group, &scope.kind.plural, &name));
        }
        let created = create_object(scope, object, &manager, true).await?;
        return finish(scope, 201, created);
    }
    let unconditional = meta::resource_version(&object).is_empty();
    if unconditional && !(scope.kind.allows_unconditional_update() && scope.strategy.allow_unconditional_update()) {
        let cause = Cause::invalid("metadata.resourceVersion", &0.into(), "must be specified for an update");
        return Err(ApiError::invalid(&scope.kind.group, &scope.kind.kind, &name, vec![cause]));
    }
    let written = change(scope, &name, &manager, Track::Update, |_| Ok(object.clone())).await?;
    finish(scope, 200, written)
}

fn allows_create(scope: &Scope<'_>) -> bool {
    scope.kind.allows_create_on_update() || scope.strategy.allow_create_on_update()
}

fn check_name(scope: &Scope<'_>, object: &mut Value) -> Result<()> {
    let name = meta::name(object).to_string();
    if name.is_empty() {
        meta::set(object, "name", &scope.info.name);
    } else if name != scope.info.name {
        return Err(ApiError::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", scope.info.name)));
    }
    Ok(())
}

/// How field managers are recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Track {
    /// The fields that differ belong to the manager now.
    Update,
    /// The new object carries its managedFields already.
    Done,
}

/// Changes an object: `make` turns the stored one into the new one (both in the storage
/// version) and may be called again when somebody else was faster.
pub(super) async fn change(
    scope: &Scope<'_>,
    name: &str,
    manager: &str,
    track: Track,
    make: impl FnMut(&Value) -> Result<Value>,
) -> Result<Written> {
    change_as(scope, name, manager, track, Half::of(scope), make).await
}

/// [`change`] for subresources: what `make` does not touch stays, so that neither half of
/// the object is put back.
pub(super) async fn change_part(scope: &Scope<'_>, name: &str, manager: &str, make: impl FnMut(&Value) -> Result<Value>) -> Result<Written> {
    change_as(scope, name, manager, Track::Update, Half::Both, make).await
}

/// Which half of an object a request is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Main,
    Status,
    Both,
}

impl Half {
    fn of(scope: &Scope<'_>) -> Half {
        match (scope.on_status(), scope.stored.has_status()) {
            (true, _) => Half::Status,
            (false, true) => Half::Main,
            (false, false) => Half::Both,
        }
    }
}

async fn change_as(
    scope: &Scope<'_>,
    name: &str,
    manager: &str,
    track: Track,
    half: Half,
    mut make: impl FnMut(&Value) -> Result<Value>,
) -> Result<Written> {
    for attempt in 1.. {
        let current = scope.store().get(scope.namespace(), name).ok_or_else(|| scope.not_found())?;
        let old = current.value();
        let new = make(&old)?;
        let wanted = meta::resource_version(&new);
        let pinned = !wanted.is_empty() && wanted != "0";
        if pinned && wanted != current.revision.to_string() {
            // A patch starts from the object itself, and has its version by that.
            return Err(ApiError::stale(&scope.kind.group, &scope.kind.plural, name));
        }
        let turn = Turn { scope, name, manager, track, half, current: &current, old: &old };
        match turn.change(new).await {
            Err(error) if error.reason == "Conflict" && attempt < TRIES && scope.store().get(scope.namespace(), name).is_none_or(|o| o.revision != current.revision) => continue,
            done => return done,
        }
    }
    Err(ApiError::stale(&scope.kind.group, &scope.kind.plural, name))
}

/// One try of a change.
struct Turn<'a> {
    scope: &'a Scope<'a>,
    name: &'a str,
    manager: &'a str,
    track: Track,
    half: Half,
    current: &'a Arc<Object>,
    old: &'a Value,
}

impl Turn<'_> {
    async fn change(&self, mut new: Value) -> Result<Written> {
        let (scope, old, context) = (self.scope, self.old, self.scope.context());
        carry_over(scope, self.name, self.half, old, &mut new)?;
        shape::defaults(&scope.stored, &mut new);
        match self.half {
            Half::Status => scope.strategy.prepare_for_status_update(context, &mut new, old)?,
            _ if scope.info.subresource.is_empty() => scope.strategy.prepare_for_update(context, &mut new, old)?,
            // Other subresources change the few fields that are theirs.
            _ => {}
        }
        match self.admit(&mut new).await {
            Ok(Some(written)) => Ok(written),
            Ok(None) => {
                scope.strategy.abandoned(context, &new, Some(old));
                meta::set_resource_version(&mut new, self.current.revision);
                Ok(Written::WouldBe(new))
            }
            Err(error) => {
                scope.strategy.abandoned(context, &new, Some(old));
                Err(error)
            }
        }
    }

    /// From admission to the store; None: a dry run ends before it.
    async fn admit(&self, new: &mut Value) -> Result<Option<Written>> {
        let (scope, old, context) = (self.scope, self.old, self.scope.context());
        let at = attributes(scope, Operation::Update, self.name);
        mutate(scope, at, new, Some(old)).await?;
        shape::defaults(&scope.stored, new);
        let mut causes = shape::validate(&scope.stored, new, Some(old));
        match self.half {
            Half::Status => causes.extend(scope.strategy.validate_status_update(context, new, old)),
            _ => {
                causes.extend(scope.strategy.validate(context, new));
                causes.extend(scope.strategy.validate_update(context, new, old));
            }
        }
        refuse(scope, self.name, causes)?;
        generation(scope, new, old);
        if self.track == Track::Update {
            shape::track_update(scope, new, Some(old), self.manager);
        }
        validate(scope, at, Some(new), Some(old)).await?;
        if scope.dry_run {
            return Ok(None);
        }
        store_change(scope, self.current, old, new).await.map(Some)
    }
}

/// Metadata that a client cannot change, and the half of the object that this request is
/// not about.
fn carry_over(scope: &Scope<'_>, name: &str, half: Half, old: &Value, new: &mut Value) -> Result<()> {
    let uid = meta::uid(new);
    if !uid.is_empty() && uid != meta::uid(old) {
        let detail = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(old));
        return Err(ApiError::conflict(&scope.kind.group, &scope.kind.plural, name, &detail));
    }
    match half {
        Half::Both => {}
        Half::Main => put_status(new, old.get("status").cloned()),
        Half::Status => {
            let status = new.get("status").cloned();
            let fields = new["metadata"].get("managedFields").cloned();
            *new = old.clone();
            put_status(new, status);
            // Of the metadata only the managers can change with a status.
            if let Some(fields) = fields {
                meta::set_value(new, "managedFields", fields);
            }
        }
    }
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation", "namespace", "name", "generateName"] {
        match old["metadata"].get(field) {
            Some(value) => meta::set_value(new, field, value.clone()),
            None => drop(meta::remove(new, field)),
        }
    }
    meta::remove(new, "selfLink");
    finalizers(scope, name, old, new)
}

fn put_status(object: &mut Value, status: Option<Value>) {
    let map = meta::object_mut(object);
    match status {
        Some(status) => drop(map.insert("status".into(), status)),
        None => drop(map.remove("status")),
    }
}

/// What is being deleted takes no new finalizers.
fn finalizers(scope: &Scope<'_>, name: &str, old: &Value, new: &Value) -> Result<()> {
    if meta::deletion_timestamp(old).is_none() {
        return Ok(());
    }
    let had = meta::finalizers(old);
    let added: Vec<&str> = meta::finalizers(new).into_iter().filter(|f| !had.contains(f)).collect();
    if added.is_empty() {
        return Ok(());
    }
    let detail = format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}");
    Err(ApiError::invalid(&scope.kind.group, &scope.kind.kind, name, vec![Cause::forbidden("metadata.finalizers", &detail)]))
}

fn generation(scope: &Scope<'_>, new: &mut Value, old: &Value) {
    if scope.on_status() {
        return;
    }
    let differs = || !meta::spec_equal(new, old, scope.stored.has_status());
    if scope.strategy.bumps_generation(new, old).unwrap_or_else(|| counts_generations(scope) && differs()) {
        meta::set_value(new, "generation", (meta::generation(old) + 1).into());
    }
}

/// Writes the change, or removes the object when that was all it was waiting for.
async fn store_change(scope: &Scope<'_>, current: &Arc<Object>, old: &Value, new: &Value) -> Result<Written> {
    if shape::same(new, old) {
        return Ok(Written::Stored(current.clone()));
    }
    let terminating = meta::deletion_timestamp(new).is_some();
    let no_grace = meta::deletion_grace(new).unwrap_or(0) == 0;
    if terminating && no_grace && !super::delete::is_held(scope, new) && super::delete::is_held(scope, old) {
        let revision = scope.store().delete(&current.namespace, &current.name, current.revision).await?;
        scope.strategy.after_delete(scope.context(), new);
        let mut last = new.clone();
        meta::set_resource_version(&mut last, revision);
        return Ok(Written::Removed(last));
    }
    scope.store().update(new, current.revision, ttl(scope)).await.map(Written::Stored)
}
