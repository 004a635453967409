//! Secrets of type `kubernetes.io/service-account-token`: filled with a token of the ServiceAccount that
//! their annotation names, and deleted with it (upstream: `pkg/controller/serviceaccount/tokens_controller.go`).
//!
//! The token is asked for by TokenRequest, bound to the Secret and as long-lived as the API server gives,
//! so that this process needs no signing key: it ends with the Secret or the account, not by time.

use std::sync::Arc;

use anyhow::Context as _;
use control_client::{Key, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// Longest life that a TokenRequest may ask for, seconds: 136 years.
const LIFE: i64 = 1 << 32;

#[derive(Debug, PartialEq)]
enum Action {
    Nothing,
    /// Its account is gone, or another one has its name now.
    Delete,
    Fill,
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, root_ca: Option<&[u8]>) -> Action {
    if secret.metadata.deletion_timestamp.is_some() {
        return Action::Nothing;
    }
    let annotation = |key: &str| secret.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let Some(account) = account else { return Action::Delete };
    let uid = account.metadata.uid.as_deref();
    if annotation(UID).is_some_and(|u| !u.is_empty() && Some(u) != uid) {
        return Action::Delete;
    }
    let held = |key: &str| secret.data.as_ref()?.get(key).map(|value| value.0.as_slice()).filter(|v| !v.is_empty());
    let complete = annotation(UID) == uid
        && held("token").is_some()
        && held("namespace") == secret.metadata.namespace.as_deref().map(str::as_bytes)
        && root_ca.is_none_or(|ca| held("ca.crt") == Some(ca));
    if complete { Action::Nothing } else { Action::Fill }
}

pub fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    let root_ca = match &context.settings.root_ca_file {
        Some(path) => Some(Arc::<[u8]>::from(
            std::fs::read(path).with_context(|| format!("reading --root-ca-file {}", path.display()))?,
        )),
        None => None,
    };
    let queue = Arc::new(Queue::<Key>::default());
    let caches = &context.caches;
    caches.account_tokens.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    caches.service_accounts.subscribe({
        let (queue, secrets) = (queue.clone(), caches.account_tokens.clone());
        move |change| {
            let account = &change.object().metadata;
            for secret in secrets.in_namespace(account.namespace.as_deref().unwrap_or_default()) {
                if Some(account_name(&secret)) == account.name.as_deref() {
                    queue.add(Key::of(&*secret));
                }
            }
        }
    });
    let context = context.clone();
    runner::run("serviceaccount-token", &queue, 1, move |key| {
        let (context, root_ca) = (context.clone(), root_ca.clone());
        async move { work(&context, root_ca.as_deref(), &key).await }
    });
    Ok(())
}

fn account_name(secret: &Secret) -> &str {
    secret.metadata.annotations.as_ref().and_then(|a| a.get(NAME)).map(String::as_str).unwrap_or_default()
}

async fn work(context: &Context, root_ca: Option<&[u8]>, key: &Key) -> Worked {
    let secrets = &context.caches.account_tokens;
    let Some(secret) = secrets.get(key) else { return Ok(Outcome::Done) };
    let name = account_name(&secret);
    let known = context.caches.service_accounts.named(&key.namespace, name);
    match plan(&secret, known.as_deref(), root_ca) {
        Action::Nothing => {}
        Action::Delete => {
            // The cache may be a moment old; only the server's word costs a token its life.
            let live = match context.client.get::<ServiceAccount>(Some(&key.namespace), name).await {
                Ok(account) => Some(account),
                Err(failure) if failure.is_not_found() => None,
                Err(failure) => return Err(failure.into()),
            };
            if plan(&secret, live.as_ref(), root_ca) == Action::Delete {
                secrets.delete(&secret).await?;
            }
        }
        Action::Fill => fill(context, root_ca, &secret, name).await?,
    }
    Ok(Outcome::Done)
}

async fn fill(context: &Context, root_ca: Option<&[u8]>, secret: &Secret, account: &str) -> anyhow::Result<()> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(LIFE),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Secret".into()),
                name: secret.metadata.name.clone(),
                uid: secret.metadata.uid.clone(),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer: TokenRequest =
        context.client.create_part::<ServiceAccount, _, _>("token", namespace, account, &request).await?;
    let token = answer.status.and_then(|status| status.token);
    let token = token.context("the API server answered a TokenRequest without a token")?;
    let live = context.client.get::<ServiceAccount>(Some(namespace), account).await?;
    // With the resource version that was seen: a Secret that someone else filled meanwhile is looked at again first.
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    data.insert("namespace".into(), ByteString(namespace.into()));
    data.insert("token".into(), ByteString(token.into()));
    if let Some(ca) = root_ca {
        data.insert("ca.crt".into(), ByteString(ca.into()));
    }
    filled.metadata.annotations.get_or_insert_default().insert(UID.into(), live.metadata.uid.unwrap_or_default());
    context.caches.account_tokens.replace(&filled).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let account: ServiceAccount =
            serde_json::from_value(serde_json::json!({"metadata": {"namespace": "n", "name": "a", "uid": "1"}}))
                .unwrap();
        let mut secret: Secret = serde_json::from_value(
            serde_json::json!({"metadata": {"namespace": "n", "name": "s", "annotations": {NAME: "a"}}}),
        )
        .unwrap();
        assert_eq!(account_name(&secret), "a");
        assert_eq!(plan(&secret, Some(&account), Some(b"CA")), Action::Fill);
        assert_eq!(plan(&secret, None, Some(b"CA")), Action::Delete);
        let filled = [("token", "t"), ("namespace", "n"), ("ca.crt", "CA")];
        secret.data = Some(filled.map(|(k, v)| (k.to_owned(), ByteString(v.into()))).into());
        assert_eq!(plan(&secret, Some(&account), Some(b"CA")), Action::Fill, "no uid yet");
        secret.metadata.annotations.as_mut().unwrap().insert(UID.into(), "1".into());
        assert_eq!(plan(&secret, Some(&account), Some(b"CA")), Action::Nothing);
        assert_eq!(plan(&secret, Some(&account), Some(b"new CA")), Action::Fill);
        secret.metadata.annotations.as_mut().unwrap().insert(UID.into(), "another account of that name".into());
        assert_eq!(plan(&secret, Some(&account), Some(b"CA")), Action::Delete);
    }
}
