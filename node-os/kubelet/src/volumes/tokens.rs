//! Service account tokens of pods: asked for when first needed, and again before they run out.

use crate::client::explain;
use crate::kubelet::Kubelet;
use crate::pods::spec;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};
use std::collections::HashMap;
use std::sync::Mutex;

/// Lifetime where the volume does not say.
const DEFAULT_SECONDS: i64 = 3600;
/// However long a token lives, it is renewed once a day.
const OLDEST: i64 = 24 * 3600;

struct Held {
    token: String,
    renew_at: Timestamp,
    expires: Timestamp,
}

/// Tokens by pod and projection.
#[derive(Default)]
pub struct Tokens {
    held: Mutex<HashMap<(String, String), Held>>,
}

impl Tokens {
    /// The token for a projection, fresh enough. While the API cannot be reached, one that is
    /// still valid goes on being used.
    pub async fn get(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<String, String> {
        let audience = source.audience.as_deref().unwrap_or_default();
        let key = (spec::uid(pod).to_string(), format!("{audience}\n{:?}", source.expiration_seconds));
        let now = Timestamp::now();
        let valid = {
            let held = crate::lock(&self.held);
            match held.get(&key) {
                Some(held) if now < held.renew_at => return Ok(held.token.clone()),
                Some(held) if now < held.expires => Some(held.token.clone()),
                _ => None,
            }
        };
        match self.request(kubelet, pod, source).await {
            Ok(fresh) => {
                let token = fresh.token.clone();
                crate::lock(&self.held).insert(key, fresh);
                Ok(token)
            }
            Err(error) => valid.ok_or(error),
        }
    }

    async fn request(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<Held, String> {
        let account = spec::of(pod).service_account_name.as_deref().unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(kubelet.api.clone(), spec::namespace(pod));
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: source.audience.clone().filter(|a| !a.is_empty()).map(|a| vec![a]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(source.expiration_seconds.unwrap_or(DEFAULT_SECONDS)),
            }),
            ..Default::default()
        };
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|e| format!("failed to fetch token: {}", explain(&e)))?;
        let status = answer.status.ok_or("failed to fetch token: the API server sent none")?;
        let now = Timestamp::now();
        let expires = status.expiration_timestamp.map_or(now, |t| t.0);
        let token = status.token.ok_or("failed to fetch token: the API server sent none")?;
        Ok(Held { token, renew_at: renewal(now, expires), expires })
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        crate::lock(&self.held).retain(|(pod, _), _| pod != uid);
    }
}

/// When four fifths of a token's life are over, but within a day.
fn renewal(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.as_second() - now.as_second();
    let wait = (life * 4 / 5).clamp(1, OLDEST);
    Timestamp::from_second(now.as_second() + wait).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_in_time() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (life, wait) in [(3600, 2880), (600, 480), (30 * 86400, 86400), (0, 1)] {
            assert_eq!(renewal(at(1000), at(1000 + life)), at(1000 + wait));
        }
    }
}
