//! TokenReview, SelfSubjectReview, and the `token` subresource of service accounts.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{Expect, Stamped, Store, StoreError};

use super::service_account::{BoundObject, TokenSpec};
use super::view::{ClusterView, NODES, PODS, SECRETS, SERVICE_ACCOUNTS, str_at};
use crate::admission::node_restriction;
use crate::authz::Query;
use crate::error::{ApiError, Cause, Result};
use crate::registry::store_error;
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// TokenReview and SelfSubjectReview, by `info.resource`: takes the posted object, gives it
/// back with `status` filled.
pub async fn review(state: &Arc<AppState>, user: &UserInfo, info: &RequestInfo, mut body: Value) -> Result<Value> {
    let status = match info.resource.as_str() {
        "selfsubjectreviews" => json!({"userInfo": user.to_json()}),
        "tokenreviews" => token_status(state, &body).await?,
        _ => return Err(ApiError::no_such_path()),
    };
    match body.as_object_mut() {
        Some(map) => map.insert("status".into(), status),
        None => return Err(ApiError::bad_request("the body must be an object")),
    };
    Ok(body)
}

/// The audience of the status page's links, each of which is good once.
const LINKS: &str = "kimg-status";
/// Links that were looked at are kept below this, for longer than any lives.
const USED: &str = "/kimg/claims/links/";
const USED_SECONDS: u64 = 900;

/// Whether a link is looked at for the first time. Each page remembers those that it has seen, and where several masters
/// have one, none of them knows the others'.
async fn first_time(state: &AppState, token: &str) -> Result<bool> {
    if state.config.etcd.etcd_servers.is_empty() {
        return Ok(true);
    }
    // Without its signature, of which there is more than one that fits.
    let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
    let key = format!("{USED}{}", hex::encode(Sha256::digest(signed)));
    claim(state.registry.store().as_ref(), &key).await.map_err(store_error)
}

/// Takes a key for good; says whether nobody had it.
async fn claim(store: &dyn Store, key: &str) -> store::Result<bool> {
    let own = uuid::Uuid::new_v4().to_string();
    match store.put(key, Stamped::plain(own.clone()), Expect::Absent, Some(USED_SECONDS)).await {
        Ok(_) => Ok(true),
        Err(StoreError::Mismatch) => Ok(false),
        // It may have been taken all the same; then nobody could use the link any more.
        Err(unanswered @ StoreError::Unavailable(_)) => match store.get(key).await? {
            Some(there) => Ok(there.value == own),
            None => Err(unanswered),
        },
        Err(error) => Err(error),
    }
}

async fn token_status(state: &Arc<AppState>, body: &Value) -> Result<Value> {
    let token = str_at(body, "/spec/token");
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted: Vec<String> =
        super::view::items_at(body, "/spec/audiences").iter().filter_map(|a| a.as_str().map(str::to_string)).collect();
    Ok(match state.authn.bearer(&state.registry, token, &wanted, super::now()) {
        Ok((_, audiences)) if audiences == [LINKS] && !first_time(state, token).await? => {
            json!({"user": {}, "error": "the link was used already"})
        }
        Ok((user, audiences)) => json!({"authenticated": true, "user": user.to_json(), "audiences": audiences}),
        Err(e) => json!({"user": {}, "error": e.to_string()}),
    })
}

/// `serviceaccounts/{name}/token`: takes a TokenRequest, gives it back with `status` filled.
/// (`info.namespace`, `info.name` name the account.)
pub async fn token_request(
    state: &Arc<AppState>,
    user: &UserInfo,
    info: &RequestInfo,
    mut body: Value,
) -> Result<Value> {
    let tokens =
        state.authn.tokens().ok_or_else(|| ApiError::unavailable("this server has no key to sign tokens with"))?;
    let view: &dyn ClusterView = &state.registry;
    let account = view
        .get(SERVICE_ACCOUNTS, &info.namespace, &info.name)
        .ok_or_else(|| ApiError::not_found("", "serviceaccounts", &info.name))?;
    if !body.is_object() {
        return Err(ApiError::bad_request("the body must be a TokenRequest"));
    }
    let mut spec = tokens.parse_spec(&body).map_err(|(field, detail)| {
        let value = body.pointer(&format!("/{}", field.replace('.', "/"))).cloned().unwrap_or_default();
        ApiError::invalid("authentication.k8s.io", "TokenRequest", "", vec![Cause::invalid(&field, &value, &detail)])
    })?;
    let node = bind(view, &info.namespace, &info.name, &mut spec)?;
    if let Some(kubelet) = user.node_name() {
        // A kubelet gets tokens for the pods on its node and for nothing else.
        let own =
            spec.bound.as_ref().is_some_and(|b| b.kind == "Pod") && node.as_ref().is_some_and(|(n, _)| n == kubelet);
        if !own {
            let detail = format!("node {kubelet:?} can only request tokens bound to pods on it");
            return Err(ApiError::forbidden("", "serviceaccounts", &info.name, &detail));
        }
        let pod = spec.bound.as_ref().and_then(|b| view.get(PODS, &info.namespace, &b.name)).unwrap_or_default();
        let asked: Vec<&str> =
            super::view::items_at(&body, "/spec/audiences").iter().filter_map(Value::as_str).collect();
        let granted = |audience: &str| {
            let query = Query {
                verb: "request-serviceaccounts-token-audience",
                namespace: &info.namespace,
                version: "v1",
                resource: audience,
                name: &info.name,
                is_resource: true,
                ..Query::empty(user)
            };
            state.authz.allowed(view, &query)
        };
        node_restriction::audience(view, &pod, &asked, &user.name, granted)
            .map_err(|detail| ApiError::forbidden("", "serviceaccounts", &info.name, &detail))?;
    }
    let now = super::now();
    let node = node.as_ref().map(|(name, uid)| (name.as_str(), uid.as_str()));
    let issued = tokens.issue(&account, &spec, node, now).map_err(ApiError::internal)?;
    let expires = jiff::Timestamp::from_second(issued.expires).map(|t| t.to_string()).unwrap_or_default();
    let created = jiff::Timestamp::from_second(now).map(|t| t.to_string()).unwrap_or_default();
    body["metadata"] = json!({"name": info.name, "namespace": info.namespace, "creationTimestamp": created});
    if !body["spec"].is_object() {
        body["spec"] = json!({});
    }
    body["spec"]["audiences"] = json!(spec.audiences);
    body["spec"]["expirationSeconds"] = json!(spec.expiration);
    if body["spec"].get("boundObjectRef").is_none() {
        body["spec"]["boundObjectRef"] = Value::Null;
    }
    body["status"] = json!({"token": issued.token, "expirationTimestamp": expires});
    Ok(body)
}

/// Checks the bound object and completes its uid; gives the node of a pod.
fn bind(
    view: &dyn ClusterView,
    namespace: &str,
    account: &str,
    spec: &mut TokenSpec,
) -> Result<Option<(String, String)>> {
    let Some(bound) = &mut spec.bound else { return Ok(None) };
    let (gr, ns) = match bound.kind.as_str() {
        "Pod" => (PODS, namespace),
        "Secret" => (SECRETS, namespace),
        _ => (NODES, ""),
    };
    let object = view.get(gr, ns, &bound.name).ok_or_else(|| ApiError::not_found("", gr.1, &bound.name))?;
    complete_uid(bound, &object)?;
    if bound.kind != "Pod" {
        return Ok(None);
    }
    let of_pod = str_at(&object, "/spec/serviceAccountName");
    if of_pod != account {
        let detail = format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        );
        return Err(ApiError::bad_request(detail));
    }
    let node = str_at(&object, "/spec/nodeName");
    if node.is_empty() {
        return Ok(None);
    }
    let uid = view.get(NODES, "", node).map(|n| str_at(&n, "/metadata/uid").to_string()).unwrap_or_default();
    Ok(Some((node.to_string(), uid)))
}

fn complete_uid(bound: &mut BoundObject, object: &Value) -> Result<()> {
    let uid = str_at(object, "/metadata/uid");
    if !bound.uid.is_empty() && bound.uid != uid {
        let detail = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            bound.uid
        );
        return Err(ApiError::conflict("", &format!("{}s", bound.kind.to_ascii_lowercase()), &bound.name, &detail));
    }
    bound.uid = uid.to_string();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::flaky::Flaky;

    #[tokio::test]
    async fn a_link_is_not_burnt_by_an_answer_that_is_lost() {
        let store = Flaky::new();
        store.lose(1, true);
        assert!(claim(&store, "/a").await.unwrap());
        assert!(!claim(&store, "/a").await.unwrap());
        store.lose(1, false);
        assert!(matches!(claim(&store, "/b").await, Err(StoreError::Unavailable(_))));
        assert!(claim(&store, "/b").await.unwrap());
    }
}
