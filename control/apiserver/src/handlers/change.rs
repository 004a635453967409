//! Changing an object: update, and what patches, apply and subresources have in common.

use std::sync::Arc;

use api::meta;
use bytes::Bytes;
use http::Response;
use rand::Rng;
use serde_json::Value;

use super::write::{
    Written, attributes, check_body, counts_generations, create_object, decode, finish, mutate, refuse, to_storage,
    ttl, validate, write_reserved,
};
use super::{Scope, delete};
use crate::admission::Operation;
use crate::error::{ApiError, Cause, Result};
use crate::object::Object;
use crate::pipeline::Body;
use crate::{shape, strategy};

/// Tries of a write that somebody else was faster than: as upstream's, it is to end well whatever the crowd.
const TRIES: usize = 500;
/// From this try on there is a pause before the next, in milliseconds at most as many as tries so far.
const PAUSE_FROM: usize = 4;
const LONGEST_PAUSE: usize = 25;
/// Tries of a Service whose numbers another server gave out: each try learns one number, and most may be taken.
pub(super) const TAKEN_TRIES: usize = 64;
/// How long another server gets to store what it has taken.
pub(super) const AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

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
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            scope.info.name
        )));
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
pub(super) async fn change_part(
    scope: &Scope<'_>,
    name: &str,
    manager: &str,
    track: Track,
    make: impl FnMut(&Value) -> Result<Value>,
) -> Result<Written> {
    change_as(scope, name, manager, track, Half::Both, make).await
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
            Err(error)
                if error.reason == "Conflict"
                    && attempt < TRIES
                    && scope.store().get(scope.namespace(), name).is_none_or(|o| o.revision != current.revision) =>
            {
                if attempt >= PAUSE_FROM {
                    let pause = rand::rng().random_range(0..=attempt.min(LONGEST_PAUSE));
                    tokio::time::sleep(std::time::Duration::from_millis(pause as u64)).await;
                }
            }
            Err(error) if strategy::is_taken(&error) && attempt < TAKEN_TRIES => tokio::time::sleep(AGAIN).await,
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
        let (scope, old) = (self.scope, self.old);
        let at = attributes(scope, Operation::Update, self.name);
        mutate(scope, at, new, Some(old)).await?;
        shape::defaults(&scope.stored, new);
        let causes = shape::validate(scope, new, Some(old));
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
            let metadata = new["metadata"].take();
            *new = old.clone();
            put_status(new, status);
            for field in metadata_of_status(&scope.stored) {
                match metadata.get(*field).filter(|v| !v.is_null()) {
                    Some(value) => meta::set_value(new, field, value.clone()),
                    None => drop(meta::remove(new, field)),
                }
            }
        }
    }
    for field in ["uid", "resourceVersion", "generation", "namespace", "name"] {
        match old["metadata"].get(field) {
            Some(value) => meta::set_value(new, field, value.clone()),
            None => drop(meta::remove(new, field)),
        }
    }
    // What a client may leave out or spell in its own way, but not change: the rules of metadata say so.
    let second = |o: &Value| api::time::parse(meta::field(o, "creationTimestamp")).map(|time| time.seconds);
    if new["metadata"]["creationTimestamp"].is_null() || second(new) == second(old) {
        meta::set_value(new, "creationTimestamp", old["metadata"]["creationTimestamp"].clone());
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old["metadata"].get(field) {
            Some(value) => meta::set_value(new, field, value.clone()),
            None if new["metadata"][field].is_null() => drop(meta::remove(new, field)),
            None => {}
        }
    }
    meta::remove(new, "selfLink");
    Ok(())
}

/// The metadata that a write of the status may change.
fn metadata_of_status(kind: &api::kinds::Kind) -> &'static [&'static str] {
    match (kind.group.as_ref(), kind.plural.as_ref()) {
        _ if kind.is_custom() => &["managedFields"],
        ("apiextensions.k8s.io" | "flowcontrol.apiserver.k8s.io" | "apiregistration.k8s.io" | "resource.k8s.io", _)
        | (_, "volumeattachments") => &["managedFields"],
        ("", "pods") => &["managedFields", "labels", "annotations", "finalizers"],
        ("apps", "deployments") => &["managedFields", "annotations", "finalizers", "ownerReferences"],
        _ => &["managedFields", "labels", "annotations", "finalizers", "ownerReferences"],
    }
}

fn put_status(object: &mut Value, status: Option<Value>) {
    let map = meta::object_mut(object);
    match status {
        Some(status) => drop(map.insert("status".into(), status)),
        None => drop(map.remove("status")),
    }
}

fn generation(scope: &Scope<'_>, new: &mut Value, old: &Value) {
    if scope.on_status() {
        return;
    }
    let at = (scope.stored.group.as_ref(), scope.stored.plural.as_ref());
    let differs = match at {
        // Nothing of it that may change counts.
        ("scheduling.k8s.io", "priorityclasses") => false,
        ("apps", "deployments") if new["metadata"]["annotations"] != old["metadata"]["annotations"] => true,
        ("discovery.k8s.io", _) if new["metadata"]["labels"] != old["metadata"]["labels"] => true,
        _ => !meta::spec_equal(new, old, scope.stored.has_status()),
    };
    if scope.strategy.bumps_generation(new, old).unwrap_or_else(|| counts_generations(scope) && differs) {
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
    if terminating && no_grace && !delete::is_held(scope, new) && delete::is_held(scope, old) {
        let revision = scope.store().delete(&current.namespace, &current.name, current.revision).await?;
        scope.strategy.after_delete(scope.context(), new).await;
        let mut last = new.clone();
        meta::set_resource_version(&mut last, revision);
        return Ok(Written::Removed(last));
    }
    let store = scope.store();
    let update = store.update(new, current.revision, ttl(scope));
    let stored = write_reserved(scope, new, Some(old), update).await?;
    scope.strategy.after_update(scope.context(), new, old).await;
    Ok(Written::Stored(stored))
}
