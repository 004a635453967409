//! Who asks, and whether he may: TokenReview and SubjectAccessReview, remembered for a while.

use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use node_client::revoked::{Refused, Revoked, Shown};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long answers are remembered.
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
const TOKENS: Duration = Duration::from_secs(120);
/// Answers remembered at most.
const REMEMBERED: usize = 256;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// User.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// A verified client certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Who is named in it.
    pub identity: Identity,
    /// By what it may have been taken back.
    pub shown: Shown,
}

impl Certificate {
    /// Read from DER.
    pub fn read(der: &[u8]) -> Option<Certificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_string();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(String::from).collect();
        Some(Certificate { identity: Identity { user, groups }, shown: Shown::of(der)? })
    }
}

/// Why somebody is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who asks.
    Unauthorized,
    /// His certificate counts no more.
    TakenBack(String),
    /// He may not.
    Forbidden(String),
    /// The API server could not be asked.
    Unavailable(String),
}

/// Who would do what with which part of the node.
type Question = (Identity, String, String);

/// Asks the API server.
pub struct Access {
    api: kube::Client,
    node: String,
    /// Certificates that count no more.
    pub revoked: Arc<Revoked>,
    decisions: Mutex<HashMap<Question, (bool, Instant)>>,
    tokens: Mutex<HashMap<[u8; 32], (Identity, Instant)>>,
}

impl Access {
    /// Access to this node.
    pub fn new(api: kube::Client, node: String, revoked: Arc<Revoked>) -> Access {
        Access { api, node, revoked, decisions: Mutex::default(), tokens: Mutex::default() }
    }

    /// Whether the request may go on.
    pub async fn check(
        &self,
        certificate: Option<Certificate>,
        token: Option<&str>,
        method: &Method,
        path: &str,
    ) -> Result<(), Refusal> {
        let identity = match (certificate, token) {
            (Some(certificate), _) => {
                // Answers are remembered for longer than it takes to take a certificate back.
                self.revoked.check(&certificate.shown).map_err(|refused| match refused {
                    Refused::TakenBack(why) => Refusal::TakenBack(why),
                    Refused::Unread(why) => Refusal::Unavailable(why),
                })?;
                certificate.identity
            }
            (None, Some(token)) => self.review_token(token).await?,
            (None, None) => return Err(Refusal::Unauthorized),
        };
        let (verb, subresource) = (verb_of(method), subresource_of(path));
        if self.may(&identity, verb, subresource).await? {
            return Ok(());
        }
        // The fine-grained names stand beside the broad one that older roles have.
        if subresource != "proxy"
            && !matches!(subresource, "stats" | "metrics" | "log")
            && self.may(&identity, verb, "proxy").await?
        {
            return Ok(());
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n",
            identity.user
        )))
    }

    async fn review_token(&self, token: &str) -> Result<Identity, Refusal> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some((identity, at)) = crate::lock(&self.tokens).get(&digest)
            && at.elapsed() < TOKENS
        {
            return Ok(identity.clone());
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_string(), ..Default::default() },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.api.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(unavailable)?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).ok_or(Refusal::Unauthorized)?;
        let identity = Identity { user: user.username.unwrap_or_default(), groups: user.groups.unwrap_or_default() };
        let mut tokens = crate::lock(&self.tokens);
        if tokens.len() >= REMEMBERED {
            tokens.clear();
        }
        tokens.insert(digest, (identity.clone(), Instant::now()));
        Ok(identity)
    }

    async fn may(&self, identity: &Identity, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let key = (identity.clone(), verb.to_string(), subresource.to_string());
        if let Some((allowed, at)) = crate::lock(&self.decisions).get(&key)
            && at.elapsed() < if *allowed { ALLOWED } else { DENIED }
        {
            return Ok(*allowed);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.user.clone()),
                groups: Some(identity.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.api.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(unavailable)?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let mut decisions = crate::lock(&self.decisions);
        if decisions.len() >= REMEMBERED {
            decisions.clear();
        }
        decisions.insert(key, (allowed, Instant::now()));
        Ok(allowed)
    }
}

fn unavailable(error: kube::Error) -> Refusal {
    Refusal::Unavailable(format!("the API server could not be asked: {}", crate::client::explain(&error)))
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

fn subresource_of(path: &str) -> &'static str {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        "healthz" => "healthz",
        "pods" | "runningpods" => "pods",
        "configz" => "configz",
        _ => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources_of_the_node() {
        for (path, expected) in [
            ("/metrics/resource", "metrics"),
            ("/stats/summary", "stats"),
            ("/pods", "pods"),
            ("/exec/a/b/c", "proxy"),
            ("/containerLogs/a/b/c", "proxy"),
        ] {
            assert_eq!(subresource_of(path), expected, "{path}");
        }
        assert_eq!(verb_of(&Method::POST), "create");
    }

    fn certificate() -> Certificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "kimg:kubelet-api-clients");
        Certificate::read(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn identities_are_read_from_certificates() {
        let found = certificate().identity;
        assert_eq!(found.user, "kube-apiserver-kubelet-client");
        assert_eq!(found.groups, ["kimg:kubelet-api-clients"]);
    }

    #[tokio::test]
    async fn what_was_taken_back_is_refused_also_where_its_user_was_allowed_before() {
        // Everybody may everything.
        let allows = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            let review = serde_json::json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "metadata": {}, "spec": {}, "status": {"allowed": true}});
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                review.to_string().into_bytes(),
            )))
        });
        let revoked = Arc::new(Revoked::default());
        let access = Access::new(kube::Client::new(allows, "default"), "w".into(), revoked.clone());
        let (leaked, renewed) = (certificate(), certificate());
        let ask = |certificate: &Certificate| access.check(Some(certificate.clone()), None, &Method::GET, "/pods");
        assert!(matches!(ask(&leaked).await, Err(Refusal::Unavailable(_))), "the list was not read yet");
        revoked.set(Default::default());
        assert_eq!((ask(&leaked).await, ask(&renewed).await), (Ok(()), Ok(())));
        let der_digest = leaked.shown.fingerprint();
        revoked.set([(format!("certificate.{der_digest}"), "somebody".into())].into());
        assert!(matches!(ask(&leaked).await, Err(Refusal::TakenBack(_))));
        assert_eq!(ask(&renewed).await, Ok(()));
    }
}
