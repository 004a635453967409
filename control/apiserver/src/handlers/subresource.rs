//! Subresources that are not just `status`: scale, binding, eviction, token, finalize,
//! approval, ephemeralcontainers, resize.

use api::codec::Transform;
use api::meta;
use api::patch::APPLY_PATCH;
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::change::Track;
use super::write::{self, Written};
use super::{Scope, apply, change, delete, patch, read, respond};
use crate::admission::Operation;
use crate::authn;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::Verb;
use crate::strategy::scale::{self, Paths};
use crate::strategy::{self, DeleteOptions};

/// Turns the stored object and what was sent into the object to store.
type Part = fn(&Value, &Value) -> Result<Value>;

/// Answers a request on a subresource.
pub(super) async fn handle(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let at = (scope.info.group.as_str(), scope.info.resource.as_str(), scope.info.subresource.as_str());
    if at != ("", "namespaces", "finalize") {
        scope.check_verb()?;
    }
    match at {
        (_, _, "scale") => scale_of(scope, content_type, body).await,
        ("", "pods", "binding") => binding(scope, &scope.info.name, content_type, &body).await,
        ("", "pods", "eviction") => evict(scope, content_type, &body).await,
        ("", "serviceaccounts", "token") => token(scope, content_type, &body).await,
        ("", "namespaces", "finalize") => {
            part(scope, content_type, body, |new, old| Ok(strategy::core::with_finalizers(new, old))).await
        }
        ("", "pods", "ephemeralcontainers") => {
            part(scope, content_type, body, strategy::pod::with_ephemeral_containers).await
        }
        ("", "pods", "resize") => part(scope, content_type, body, strategy::pod::with_resources).await,
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => {
            part(scope, content_type, body, strategy::cluster::with_approval).await
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// GET, PUT or PATCH where only some fields may change.
async fn part(scope: &Scope<'_>, content_type: &str, body: Bytes, take: Part) -> Result<Response<Body>> {
    let manager = scope.manager()?;
    let written = match scope.info.verb {
        Verb::Get => return read::get(scope).await,
        Verb::Update => {
            let mut object = write::decode(scope, content_type, &body, scope.kind.schema())?;
            write::check_body(scope, &mut object)?;
            change::change_part(scope, &scope.info.name, &manager, Track::Update, |old| taken(take, &object, old))
                .await?
        }
        Verb::Patch if !content_type.starts_with(APPLY_PATCH) => {
            change::change_part(scope, &scope.info.name, &manager, Track::Update, |old| {
                let patched = api::patch::apply(content_type, old, &body, Some(scope.kind.schema()))?;
                taken(take, &patch::checked(scope, patched, api::patch::duplicates(&body))?, old)
            })
            .await?
        }
        Verb::Patch => {
            let config = apply::config(scope, content_type, &body)?;
            let force = scope.info.query.flag("force");
            change::change_part(scope, &scope.info.name, &manager, Track::Done, |old| {
                let sent = apply::applied(scope, Some(old), &config, &manager, force)?;
                let mut new = taken(take, &sent, old)?;
                meta::set_value(&mut new, "managedFields", sent["metadata"]["managedFields"].clone());
                Ok(new)
            })
            .await?
        }
        _ => {
            return Err(ApiError::method_not_allowed(
                &scope.info.group,
                &scope.info.resource,
                scope.info.verb.as_str(),
            ));
        }
    };
    write::finish(scope, 200, written)
}

fn taken(take: Part, sent: &Value, old: &Value) -> Result<Value> {
    let mut new = take(sent, old)?;
    // What was sent may demand a version.
    meta::set(&mut new, "resourceVersion", meta::resource_version(sent));
    Ok(new)
}

async fn scale_of(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let paths = match &scope.stored.custom {
        Some(custom) => Paths::custom(custom.scale.as_ref().ok_or_else(ApiError::no_such_path)?),
        None => Paths::builtin(),
    };
    let to_scale = |object: &Value| scale::read(object, &paths);
    let name = &scope.info.name;
    if scope.info.verb == Verb::Get {
        let object = scope.store().get(scope.namespace(), name).ok_or_else(|| scope.not_found())?;
        return plain(scope, 200, &to_scale(&object.value()));
    }
    let schema = api::kinds::type_schema("autoscaling", "v1", "Scale")
        .ok_or_else(|| ApiError::internal("no schema of Scale"))?;
    let manager = scope.manager()?;
    let put = match scope.info.verb {
        Verb::Update => {
            let scale = write::decode_any(scope, content_type, &body, schema)?;
            its_own(scope, &scale)?;
            Some(scale)
        }
        _ => None,
    };
    let applied = match scope.info.verb {
        Verb::Patch if content_type.starts_with(APPLY_PATCH) => {
            Some(api::codec::decode(&body, content_type, schema, false)?.object)
        }
        _ => None,
    };
    let track = if applied.is_some() { Track::Done } else { Track::Update };
    let written = change::change_part(scope, name, &manager, track, |old| {
        if let Some(given) = &applied {
            return apply_scale(scope, old, given, &paths, &manager);
        }
        let scale = match &put {
            Some(scale) => scale.clone(),
            None => {
                let patched = api::patch::apply(content_type, &to_scale(old), &body, Some(schema))?;
                let text = serde_json::to_vec(&patched).map_err(ApiError::internal)?;
                write::decode_any(scope, "application/json", &text, schema)?
            }
        };
        let mut new = scale::write(old, &scale, &paths)?;
        meta::set(&mut new, "resourceVersion", meta::resource_version(&scale));
        Ok(new)
    })
    .await?;
    let object = match written {
        Written::Stored(object) => object.value(),
        Written::WouldBe(object) | Written::Removed(object) => object,
    };
    plain(scope, 200, &to_scale(&object))
}

/// An applied Scale is an applied object that has nothing but its replica count: so the count's owners are asked
/// wherever they wrote it, and lose it where that is forced.
fn apply_scale(scope: &Scope<'_>, old: &Value, given: &Value, paths: &Paths, manager: &str) -> Result<Value> {
    let mut scale = scale::read(old, paths);
    api::patch::merge::apply(&mut scale, given);
    let scaled = scale::write(old, &scale, paths)?;
    let mut config = json!({"metadata": {"name": scope.info.name, "namespace": scope.namespace()}});
    meta::set_type(&mut config, &scope.stored.api_version(), &scope.stored.kind);
    meta::set(&mut config, "resourceVersion", meta::resource_version(given));
    if given.pointer("/spec/replicas").is_some_and(|v| !v.is_null()) {
        strategy::fields::copy(&mut config, &scaled, &paths.keys());
    }
    apply::applied(scope, Some(old), &config, manager, scope.info.query.flag("force"))
}

/// Answers with an object of another kind than the resource's.
fn plain(scope: &Scope<'_>, code: u16, value: &Value) -> Result<Response<Body>> {
    let value = match &scope.accept.transform {
        Transform::Table(version) => crate::table::of_scale(scope, value, version)?,
        Transform::Partial(version) => respond::partial(value, version),
        _ => value.clone(),
    };
    let bytes = respond::encode(scope, &value)?;
    Ok(respond::answer(code, &scope.accept.content_type(), crate::pipeline::full(bytes)))
}

fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

/// POST to `bindings`: the pod's name is the binding's.
pub(super) async fn bindings(scope: &Scope<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>> {
    let object = write::decode(scope, content_type, &body, scope.kind.schema())?;
    let info = crate::RequestInfo {
        resource: "pods".into(),
        name: meta::name(&object).to_string(),
        subresource: "binding".into(),
        ..scope.info.clone()
    };
    let pods = Scope::new(scope.state, &info, scope.user, &http::HeaderMap::new())?;
    binding(&pods, &info.name, content_type, &body).await
}

/// Puts a pod on a node, once.
async fn binding(scope: &Scope<'_>, pod: &str, content_type: &str, body: &[u8]) -> Result<Response<Body>> {
    let schema =
        api::kinds::type_schema("", "v1", "Binding").ok_or_else(|| ApiError::internal("no schema of Binding"))?;
    let binding = write::decode_any(scope, content_type, body, schema)?;
    its_own(scope, &binding)?;
    strategy::binding::bind(scope.state, &scope.info.namespace, pod, &binding, scope.dry_run).await?;
    plain(scope, 201, &success(201))
}

async fn token(scope: &Scope<'_>, content_type: &str, body: &[u8]) -> Result<Response<Body>> {
    let schema = api::kinds::type_schema("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| ApiError::internal("no schema of TokenRequest"))?;
    let mut request = write::decode_any(scope, content_type, body, schema)?;
    its_own(scope, &request)?;
    meta::set_type(&mut request, "authentication.k8s.io/v1", "TokenRequest");
    let mut done = authn::token_request(scope.state, scope.user, scope.info, request).await?;
    meta::set(&mut done, "name", &scope.info.name);
    meta::set(&mut done, "namespace", &scope.info.namespace);
    meta::set(&mut done, "creationTimestamp", &write::now());
    plain(scope, 201, &done)
}

/// Refuses a body that speaks of another object than the path.
fn its_own(scope: &Scope<'_>, body: &Value) -> Result<()> {
    for (field, ours) in [("name", &scope.info.name), ("namespace", &scope.info.namespace)] {
        let said = body["metadata"][field].as_str().unwrap_or_default();
        if !said.is_empty() && said != ours {
            return Err(ApiError::bad_request(format!(
                "the {field} in the body ({said}) is not the one in the path ({ours})"
            )));
        }
    }
    Ok(())
}

/// Deletes a pod if the disruption budgets allow it.
async fn evict(scope: &Scope<'_>, content_type: &str, body: &[u8]) -> Result<Response<Body>> {
    let schema = api::kinds::type_schema("policy", "v1", "Eviction")
        .ok_or_else(|| ApiError::internal("no schema of Eviction"))?;
    // Old clients say policy/v1beta1; the fields are the same.
    let eviction = write::decode_any(scope, content_type, body, schema)?;
    its_own(scope, &eviction)?;
    let name = scope.info.name.clone();
    let pod = scope.store().get(scope.namespace(), &name).ok_or_else(|| scope.not_found())?;
    let given = &eviction["deleteOptions"];
    let options = DeleteOptions {
        grace_period_seconds: given["gracePeriodSeconds"].as_i64(),
        uid: given["preconditions"]["uid"].as_str().map(str::to_string),
        resource_version: given["preconditions"]["resourceVersion"].as_str().map(str::to_string),
        propagation_policy: given["propagationPolicy"].as_str().map(str::to_string),
        dry_run: scope.dry_run || given["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All")),
    };
    let at = write::attributes(scope, Operation::Create, &name);
    write::validate(scope, at, Some(&eviction), None).await?;
    strategy::eviction::admit(scope.state, &pod.value(), options.dry_run).await?;
    delete::remove(scope, &name, &options).await?;
    plain(scope, 201, &success(201))
}
