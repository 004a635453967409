//! Service-account tokens: their claims, issuing them, and telling whether one still counts.
//!
//! A token is bound to its service account and, if it says so, to a pod, a
//! secret or a node. When the bound object is gone, so is the token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::AuthnError;
use super::jwt::Keys;
use super::view::{ClusterView, NODES, PODS, SECRETS, SERVICE_ACCOUNTS, str_at};
use crate::request::UserInfo;

const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Shortest life that a TokenRequest may ask for.
pub const MIN_EXPIRATION: i64 = 600;
const DEFAULT_EXPIRATION: i64 = 3600;
const MAX_EXPIRATION: i64 = 1 << 32;
/// Pods that ask for exactly this get a token that outlives it, so that clients which never re-read survive.
const WARN_AFTER_POD: i64 = 3607;
const EXTENDED_EXPIRATION: i64 = 365 * 24 * 3600;
/// A deleted object's tokens stay good for this long.
const DELETION_LEEWAY: i64 = 60;
const CACHE_SIZE: usize = 2048;

/// Issues and checks tokens.
pub struct Tokens {
    keys: Keys,
    issuer: String,
    audiences: Vec<String>,
    verified: Mutex<HashMap<[u8; 32], Arc<Value>>>,
}

/// The object a token is bound to.
#[derive(Debug, Clone)]
pub struct BoundObject {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    pub name: String,
    pub uid: String,
}

/// What a TokenRequest asks for, after its spec was read.
#[derive(Debug, Clone)]
pub struct TokenSpec {
    pub audiences: Vec<String>,
    pub expiration: i64,
    pub bound: Option<BoundObject>,
}

/// A token and what the answer says about it.
#[derive(Debug)]
pub struct Issued {
    pub token: String,
    pub expires: i64,
    pub jti: String,
}

impl Tokens {
    /// `audiences` are those of this API server; the first is the default for new tokens.
    pub fn new(keys: Keys, issuer: String, audiences: Vec<String>) -> Self {
        Self { keys, issuer, audiences, verified: Mutex::default() }
    }

    /// The signing keys, for the discovery documents.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The `iss` of new tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences this server answers to.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Whether a bearer token is meant for this authenticator (it may still be refused).
    pub fn is_candidate(&self, token: &str) -> bool {
        token.bytes().filter(|b| *b == b'.').count() == 2
    }

    /// The user a token stands for, and which of `wanted` audiences it has.
    pub fn authenticate(
        &self,
        view: &dyn ClusterView,
        token: &str,
        wanted: &[String],
        now: i64,
    ) -> Result<(UserInfo, Vec<String>), AuthnError> {
        let claims = self.verified_claims(token)?;
        if claims["iss"] == LEGACY_ISSUER {
            return Ok((legacy_user(view, &claims, token, now)?, wanted.to_vec()));
        }
        if claims["iss"].as_str() != Some(&self.issuer) {
            return Err(AuthnError::refused("token is from another issuer"));
        }
        let audiences = matching_audiences(&claims["aud"], wanted);
        if audiences.is_empty() {
            return Err(AuthnError::refused("token is for another audience"));
        }
        check_dates(&claims, now)?;
        Ok((bound_user(view, &claims, now)?, audiences))
    }

    fn verified_claims(&self, token: &str) -> Result<Arc<Value>, AuthnError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let lock = || self.verified.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(claims) = lock().get(&digest) {
            return Ok(claims.clone());
        }
        let claims = Arc::new(self.keys.verify(token).map_err(|e| AuthnError::refused(e.to_string()))?);
        let mut cache = lock();
        if cache.len() >= CACHE_SIZE {
            cache.clear();
        }
        cache.insert(digest, claims.clone());
        Ok(claims)
    }

    /// Signs a token for a service account. `bound_node` is the node of a bound pod, if known.
    pub fn issue(
        &self,
        account: &Value,
        spec: &TokenSpec,
        bound_node: Option<(&str, &str)>,
        now: i64,
    ) -> Result<Issued, super::jwt::JwtError> {
        let namespace = str_at(account, "/metadata/namespace");
        let name = str_at(account, "/metadata/name");
        let for_pod = spec.bound.as_ref().is_some_and(|b| b.kind == "Pod");
        let own_audience = spec.audiences.iter().all(|a| self.audiences.contains(a));
        let extended = for_pod && own_audience && spec.expiration == WARN_AFTER_POD;
        let lifetime = if extended { EXTENDED_EXPIRATION } else { spec.expiration };
        let mut private = Map::new();
        private.insert("namespace".into(), json!(namespace));
        if let Some((node, uid)) = bound_node {
            private.insert("node".into(), object_claim(node, uid));
        }
        if let Some(bound) = &spec.bound {
            private.insert(bound.kind.to_ascii_lowercase(), object_claim(&bound.name, &bound.uid));
        }
        private.insert("serviceaccount".into(), json!({"name": name, "uid": str_at(account, "/metadata/uid")}));
        if extended {
            private.insert("warnafter".into(), json!(now + WARN_AFTER_POD));
        }
        let jti = uuid::Uuid::new_v4().to_string();
        let claims = json!({
            "aud": spec.audiences, "exp": now + lifetime, "iat": now, "iss": self.issuer, "jti": jti,
            "kubernetes.io": private, "nbf": now, "sub": format!("system:serviceaccount:{namespace}:{name}"),
        });
        // The answer tells the shorter time, so that kubelets renew in time.
        Ok(Issued { token: self.keys.sign(&claims)?, expires: now + spec.expiration, jti })
    }

    /// Reads and completes a TokenRequest's spec; the error is a sentence for a 422.
    pub fn parse_spec(&self, request: &Value) -> Result<TokenSpec, (String, String)> {
        let mut audiences: Vec<String> = request
            .pointer("/spec/audiences")
            .and_then(Value::as_array)
            .map(|a| a.iter().filter_map(|v| v.as_str().map(str::to_string)).collect())
            .unwrap_or_default();
        if audiences.is_empty() {
            audiences.extend(self.audiences.first().cloned());
        }
        let expiration =
            request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_EXPIRATION);
        if expiration < MIN_EXPIRATION {
            return Err(("spec.expirationSeconds".into(), "may not specify a duration less than 10 minutes".into()));
        }
        if expiration > MAX_EXPIRATION {
            return Err((
                "spec.expirationSeconds".into(),
                "may not specify a duration larger than 2^32 seconds".into(),
            ));
        }
        let bound = match request.pointer("/spec/boundObjectRef") {
            None | Some(Value::Null) => None,
            Some(r) => {
                let kind = str_at(r, "/kind");
                if !matches!(kind, "Pod" | "Secret" | "Node") {
                    return Err((
                        "spec.boundObjectRef".into(),
                        format!("cannot bind token for serviceaccount to object of type {:?}", kind),
                    ));
                }
                Some(BoundObject { kind: kind.into(), name: str_at(r, "/name").into(), uid: str_at(r, "/uid").into() })
            }
        };
        Ok(TokenSpec { audiences, expiration, bound })
    }
}

fn object_claim(name: &str, uid: &str) -> Value {
    json!({"name": name, "uid": uid})
}

fn matching_audiences(claim: &Value, wanted: &[String]) -> Vec<String> {
    let has = |w: &String| match claim {
        Value::String(s) => s == w,
        Value::Array(list) => list.iter().any(|v| v.as_str() == Some(w)),
        _ => false,
    };
    wanted.iter().filter(|w| has(w)).cloned().collect()
}

fn check_dates(claims: &Value, now: i64) -> Result<(), AuthnError> {
    match claims["exp"].as_i64() {
        Some(exp) if now < exp => {}
        _ => return Err(AuthnError::refused("token has expired")),
    }
    // A minute for clocks that differ.
    if claims["nbf"].as_i64().is_some_and(|nbf| now + 60 < nbf) {
        return Err(AuthnError::refused("token is not valid yet"));
    }
    Ok(())
}

/// Whether something deleted at `deleted` (empty: not deleted) is gone for tokens.
fn gone(deleted: &str, now: i64) -> bool {
    !deleted.is_empty()
        && deleted.parse::<jiff::Timestamp>().map(|t| t.as_second() + DELETION_LEEWAY < now).unwrap_or(true)
}

/// Checks that a bound object is still the one that the token names.
fn check_bound(life: Option<(String, String)>, claim: &Value, what: &str, now: i64) -> Result<(), AuthnError> {
    match life {
        Some((uid, deleted)) if uid == str_at(claim, "/uid") && !gone(&deleted, now) => Ok(()),
        _ => Err(AuthnError::refused(format!("token's {what} {:?} is gone", str_at(claim, "/name")))),
    }
}

fn bound_user(view: &dyn ClusterView, claims: &Value, now: i64) -> Result<UserInfo, AuthnError> {
    let private = &claims["kubernetes.io"];
    let namespace = str_at(private, "/namespace");
    let account = &private["serviceaccount"];
    let name = str_at(account, "/name");
    if claims["sub"].as_str() != Some(&format!("system:serviceaccount:{namespace}:{name}")) {
        return Err(AuthnError::refused("token's subject is not its service account"));
    }
    check_bound(view.life(SERVICE_ACCOUNTS, namespace, name), account, "service account", now)?;
    let mut user = account_user(namespace, name, str_at(account, "/uid"));
    if let Some(pod) = private.get("pod") {
        check_bound(view.life(PODS, namespace, str_at(pod, "/name")), pod, "pod", now)?;
        add_extra(&mut user, "pod-name", str_at(pod, "/name"));
        add_extra(&mut user, "pod-uid", str_at(pod, "/uid"));
    }
    if let Some(secret) = private.get("secret") {
        check_bound(view.life(SECRETS, namespace, str_at(secret, "/name")), secret, "secret", now)?;
    }
    if let Some(node) = private.get("node") {
        // A pod's token outlives its Node object; a token bound to the node itself does not.
        if private.get("pod").is_none() {
            check_bound(view.life(NODES, "", str_at(node, "/name")), node, "node", now)?;
        }
        add_extra(&mut user, "node-name", str_at(node, "/name"));
        add_extra(&mut user, "node-uid", str_at(node, "/uid"));
    }
    if let Some(jti) = claims["jti"].as_str() {
        add_extra(&mut user, "credential-id", &format!("JTI={jti}"));
    }
    Ok(user)
}

fn add_extra(user: &mut UserInfo, key: &str, value: &str) {
    if !value.is_empty() {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_string()]);
    }
}

fn account_user(namespace: &str, name: &str, uid: &str) -> UserInfo {
    let mut user = UserInfo::authenticated(
        format!("system:serviceaccount:{namespace}:{name}"),
        ["system:serviceaccounts".to_string(), format!("system:serviceaccounts:{namespace}")],
    );
    user.uid = uid.to_string();
    user
}

/// Tokens of Secrets of type `kubernetes.io/service-account-token`: good while the Secret holds them.
fn legacy_user(view: &dyn ClusterView, claims: &Value, token: &str, now: i64) -> Result<UserInfo, AuthnError> {
    use base64::Engine as _;
    let claim = |name: &str| claims[format!("kubernetes.io/serviceaccount/{name}")].as_str().unwrap_or_default();
    let namespace = claim("namespace");
    let name = claim("service-account.name");
    let uid = claim("service-account.uid");
    let account = json!({"name": name, "uid": uid});
    check_bound(view.life(SERVICE_ACCOUNTS, namespace, name), &account, "service account", now)?;
    let secret = view
        .get(SECRETS, namespace, claim("secret.name"))
        .filter(|s| !gone(str_at(s, "/metadata/deletionTimestamp"), now))
        .ok_or_else(|| AuthnError::refused("token's secret is gone"))?;
    let held = base64::engine::general_purpose::STANDARD.decode(str_at(&secret, "/data/token")).unwrap_or_default();
    if held != token.as_bytes() {
        return Err(AuthnError::refused("token's secret holds another token"));
    }
    Ok(account_user(namespace, name, uid))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::jwt::tests::test_keys;
    use super::super::view::fake::FakeView;
    use super::*;

    pub(crate) fn tokens() -> Tokens {
        Tokens::new(test_keys(), "https://kubernetes.default.svc".into(), vec!["https://kubernetes.default.svc".into()])
    }

    fn fixture() -> (FakeView, Tokens, Value) {
        let view = FakeView::default();
        let account = json!({"metadata": {"namespace": "ns", "name": "sa", "uid": "u1"}});
        view.put(SERVICE_ACCOUNTS, account.clone());
        view.put(PODS, json!({"metadata": {"namespace": "ns", "name": "p", "uid": "u2"}, "spec": {"nodeName": "n1"}}));
        (view, tokens(), account)
    }

    #[test]
    fn a_bound_token_dies_with_its_pod_account_and_time() {
        let (view, tokens, account) = fixture();
        let request =
            json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "name": "p", "uid": "u2"}}});
        let spec = tokens.parse_spec(&request).expect("spec");
        let issued = tokens.issue(&account, &spec, Some(("n1", "u3")), 1000).expect("issue");
        assert_eq!(issued.expires, 4607);
        let check = |now| tokens.authenticate(&view, &issued.token, tokens.audiences(), now);
        let (user, _) = check(1001).expect("good");
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert!(user.in_group("system:serviceaccounts:ns") && user.in_group("system:authenticated"));
        assert_eq!(user.extra_first("authentication.kubernetes.io/node-name"), Some("n1"));
        assert!(check(5000).is_ok(), "extended");
        assert!(check(1000 + EXTENDED_EXPIRATION).is_err(), "expired");
        assert!(tokens.authenticate(&view, &issued.token, &["vault".into()], 1001).is_err(), "audience");
        view.put(PODS, json!({"metadata": {"namespace": "ns", "name": "p", "uid": "other"}}));
        assert!(check(1001).is_err(), "pod replaced");
        view.remove(SERVICE_ACCOUNTS, "ns", "sa");
        assert!(check(1001).is_err(), "account gone");
    }

    #[test]
    fn requests_are_checked() {
        let tokens = tokens();
        for (spec, ok) in [
            (json!({}), true),
            (json!({"expirationSeconds": 599}), false),
            (json!({"expirationSeconds": 600}), true),
            (json!({"boundObjectRef": {"kind": "Deployment", "name": "x"}}), false),
        ] {
            assert_eq!(tokens.parse_spec(&json!({"spec": spec})).is_ok(), ok, "{spec}");
        }
    }
}
