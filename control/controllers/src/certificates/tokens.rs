//! Bootstrap tokens: used once, and gone when they have expired.

use std::sync::Arc;
use std::time::Duration;

use control_client::{Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;

use super::policy::{self, Observed, Token};
use super::request::Request;
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const NODE_NAME: &str = "kimg-node-name";
const REPLACE: &str = "kimg-replace";
/// The request that used the token: set before the approval, so that no second one gets it.
const USED_BY: &str = "kimg.dev/used-by";
/// A Lease that was renewed within this time belongs to a live node.
const FRESH_SECS: i64 = 40;

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok().map(|t| t.trim().to_owned())
}

fn expiration(secret: &Secret) -> Option<Timestamp> {
    // An unreadable date counts as past: such a token must not live for ever.
    text(secret, "expiration").map(|t| t.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// What the cluster knows about the requester.
pub fn observe(context: &Context, csr: &CertificateSigningRequest, request: &Request) -> Observed {
    let caches = &context.caches;
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    let token = policy::token_id(&csr.spec).and_then(|id| {
        let secret = caches.bootstrap_tokens.named(NAMESPACE, &format!("{PREFIX}{id}"))?;
        let used_by = secret.metadata.annotations.as_ref().and_then(|a| a.get(USED_BY)).cloned();
        Some(Token {
            id: id.to_owned(),
            node_name: text(&secret, NODE_NAME).unwrap_or_default(),
            may_replace: text(&secret, REPLACE).is_some_and(|t| t == "true"),
            expires: expiration(&secret),
            used_by_this: used_by.as_deref() == Some(name),
            used_by,
        })
    });
    let node = policy::requested_node(request).unwrap_or_default();
    let renewed = caches
        .node_leases
        .named("kube-node-lease", node)
        .and_then(|lease| lease.spec.as_ref().and_then(|s| s.renew_time.as_ref().map(|t| t.0)));
    let node_names = caches
        .nodes
        .named("", node)
        .map(|n| n.status.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.address.clone()).collect());
    Observed {
        token,
        node_is_alive: renewed.is_some_and(|t| Timestamp::now().as_second() - t.as_second() < FRESH_SECS),
        node_names,
    }
}

pub async fn mark_used(context: &Context, token: &Token, csr: &CertificateSigningRequest) -> anyhow::Result<()> {
    if token.used_by_this {
        return Ok(());
    }
    let Some(secret) = context.caches.bootstrap_tokens.named(NAMESPACE, &format!("{PREFIX}{}", token.id)) else {
        anyhow::bail!("bootstrap token {} went away while its request was decided", token.id);
    };
    let patch = serde_json::json!({"metadata": {
        "resourceVersion": secret.metadata.resource_version,
        "annotations": {USED_BY: csr.metadata.name},
    }});
    context.caches.bootstrap_tokens.merge(None, &secret, &patch).await?;
    Ok(())
}

/// Deletes the tokens that a node joined with, once the node asks for something with the certificate that it got.
///
/// Not when that is signed: a node that misses the answer would have no credential to fetch it with. Until then a
/// marked token lets its bearer read the certificate, which is public, and nothing else.
pub async fn delete_used(context: &Context, csr: &CertificateSigningRequest) -> anyhow::Result<()> {
    let Some(node) = policy::requesting_node(&csr.spec) else { return Ok(()) };
    for secret in context.caches.bootstrap_tokens.list() {
        let used_by = secret.metadata.annotations.as_ref().and_then(|a| a.get(USED_BY));
        let joined = used_by.and_then(|name| context.caches.requests.named("", name));
        // A request from before the join came from an earlier node of that name.
        let since = joined.as_ref().and_then(|joined| joined.metadata.creation_timestamp.as_ref());
        let is_later = since.is_none() || csr.metadata.creation_timestamp.as_ref() >= since;
        if used_by.is_none() || !is_later || text(&secret, NODE_NAME).as_deref() != Some(node) {
            continue;
        }
        context.caches.bootstrap_tokens.delete(&secret).await?;
        tracing::info!("bootstrap token {} is used up", text(&secret, "token-id").unwrap_or_default());
    }
    Ok(())
}

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.caches.bootstrap_tokens.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    let context = context.clone();
    runner::run("tokencleaner", &queue, 1, move |key| {
        let context = context.clone();
        async move { clean(&context, &key).await }
    });
}

async fn clean(context: &Context, key: &Key) -> Worked {
    let Some(secret) = context.caches.bootstrap_tokens.get(key) else { return Ok(Outcome::Done) };
    let Some(end) = expiration(&secret) else { return Ok(Outcome::Done) };
    let left = end.as_second() - Timestamp::now().as_second();
    if left > 0 {
        return Ok(Outcome::After(Duration::from_secs(left as u64 + 1)));
    }
    context.caches.bootstrap_tokens.delete(&secret).await?;
    tracing::info!("bootstrap token {} has expired and is deleted", key.name);
    Ok(Outcome::Done)
}
