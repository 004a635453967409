//! Authentication: client certificates, service-account and bootstrap tokens, front proxy,
//! anonymous; and impersonation.
//!
//! Order: front proxy, client certificate, bearer token, anonymous.  A credential that was
//! shown and is bad ends in 401 even where anonymous requests are let in.

pub mod bootstrap;
pub mod front_proxy;
pub mod impersonation;
pub mod jwt;
pub mod reviews;
pub mod revoked;
pub mod service_account;
pub mod user;
pub mod view;
pub mod x509;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use base64::Engine as _;
use http::HeaderMap;
use http::request::Parts;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::error::{ApiError, Result};
use crate::pipeline::Connection;
use crate::request::UserInfo;
use crate::state::AppState;

pub use reviews::{review, token_request};
use revoked::Revoked;
use service_account::Tokens;
use view::ClusterView;
use x509::{Peer, PeerVerifier};

/// Chains whose verdict is remembered.
const PEER_CACHE: usize = 1024;

/// Why a credential was refused; the client learns only that it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct AuthnError {
    why: String,
    /// Happens in a healthy cluster too.
    usual: bool,
}

impl AuthnError {
    /// A refusal with its reason, for the log and for TokenReview.
    pub fn refused(why: impl Into<String>) -> Self {
        Self { why: why.into(), usual: false }
    }

    /// A refusal that a healthy cluster sees: a node may ask before the Secret of its token is there.
    pub fn not_known_yet(why: impl Into<String>) -> Self {
        Self { why: why.into(), usual: true }
    }
}

/// The authenticators.
pub struct Authn {
    peers: PeerVerifier,
    proxy_names: Vec<String>,
    tokens: Option<Tokens>,
    audiences: Vec<String>,
    anonymous: bool,
    seen: Mutex<HashMap<[u8; 32], Arc<Peer>>>,
    revoked: Revoked,
}

impl std::fmt::Debug for Authn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authn").field("anonymous", &self.anonymous).finish_non_exhaustive()
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

impl Authn {
    /// Reads CA bundles and token keys.
    pub fn new(config: &Config) -> anyhow::Result<Authn> {
        let client = certificates(config.client_ca_file.as_deref(), "--client-ca-file")?;
        let proxy = certificates(config.requestheader_client_ca_file.as_deref(), "--requestheader-client-ca-file")?;
        let issuer = config.service_account_issuer.first().cloned().unwrap_or_default();
        let audiences = if config.api_audiences.is_empty() {
            config.service_account_issuer.clone()
        } else {
            config.api_audiences.clone()
        };
        Ok(Authn {
            peers: PeerVerifier::new(&client, &proxy).map_err(anyhow::Error::msg)?,
            proxy_names: config.requestheader_allowed_names.clone(),
            tokens: load_tokens(config, issuer, audiences.clone())?,
            audiences,
            anonymous: config.anonymous_auth,
            seen: Mutex::default(),
            revoked: Revoked::default(),
        })
    }

    /// Who asks?  `connection.peer_certificates` is what the client showed, its possession
    /// of the key proved, but checked against no CA yet.  Called once for each request, before
    /// [`Authn::acting`].
    pub fn authenticate(&self, state: &AppState, connection: &Connection, parts: &Parts) -> Result<UserInfo> {
        self.identify(&state.registry, &connection.peer_certificates, &parts.headers, now()).map_err(|e| {
            let (remote, path) = (&connection.remote, parts.uri.path());
            if e.usual {
                tracing::debug!(%remote, path, "request refused: {e}");
            } else {
                tracing::info!(%remote, path, "request refused: {e}");
            }
            ApiError::unauthorized()
        })
    }

    /// Whom the user acts as, if the headers name somebody and the user may.
    pub fn acting(&self, state: &AppState, user: &UserInfo, headers: &HeaderMap) -> Result<Option<UserInfo>> {
        let Some(wish) = impersonation::wish(headers)? else { return Ok(None) };
        for query in wish.queries(user) {
            state.authz.require(&state.registry, &query)?;
        }
        Ok(Some(wish.into_user()))
    }

    fn identify(
        &self,
        view: &dyn ClusterView,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
        now: i64,
    ) -> Result<UserInfo, AuthnError> {
        let peer = self.peer(chain);
        self.revoked.check(view, &peer)?;
        match &*peer {
            Peer::FrontProxy { common_name, not_after } => {
                x509::check_not_after(*not_after, now)?;
                if !self.proxy_names.is_empty() && !self.proxy_names.contains(common_name) {
                    return Err(AuthnError::refused(format!(
                        "front proxy {common_name:?} is not in --requestheader-allowed-names"
                    )));
                }
                let user = front_proxy::user(headers).map_err(|error| AuthnError::refused(error.message.as_str()))?;
                if let Some(user) = user {
                    return Ok(user);
                }
            }
            Peer::Client { user, not_after, .. } => {
                x509::check_not_after(*not_after, now)?;
                return Ok(user.clone());
            }
            Peer::Rejected(why) if bearer_token(headers).is_none() => return Err(AuthnError::refused(why.clone())),
            Peer::Rejected(_) | Peer::None => {}
        }
        if let Some(token) = bearer_token(headers) {
            return self.bearer(view, &token, &[], now).map(|(user, _)| user);
        }
        if headers.contains_key(http::header::AUTHORIZATION) {
            return Err(AuthnError::refused("the Authorization header is not a bearer token"));
        }
        if self.anonymous { Ok(UserInfo::anonymous()) } else { Err(AuthnError::refused("no credentials were shown")) }
    }

    /// Whether this chain's certificate was taken back.
    pub(crate) fn is_taken_back(&self, view: &dyn ClusterView, chain: &[CertificateDer<'_>]) -> bool {
        self.revoked.check(view, &self.peer(chain)).is_err()
    }

    fn peer(&self, chain: &[CertificateDer<'_>]) -> Arc<Peer> {
        if chain.is_empty() {
            return Arc::new(Peer::None);
        }
        let mut hash = Sha256::new();
        for cert in chain {
            hash.update((cert.len() as u64).to_be_bytes());
            hash.update(cert);
        }
        let key: [u8; 32] = hash.finalize().into();
        let lock = || self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(peer) = lock().get(&key) {
            return peer.clone();
        }
        let peer = Arc::new(self.peers.classify(chain));
        if !matches!(*peer, Peer::Rejected(_)) {
            let mut seen = lock();
            if seen.len() >= PEER_CACHE {
                seen.clear();
            }
            seen.insert(key, peer.clone());
        }
        peer
    }

    /// The user of a bearer token and the audiences it is good for; `wanted` empty means this server's own.
    pub fn bearer(
        &self,
        view: &dyn ClusterView,
        token: &str,
        wanted: &[String],
        now: i64,
    ) -> Result<(UserInfo, Vec<String>), AuthnError> {
        if let Some((id, secret)) = bootstrap::parse(token) {
            let audiences = if wanted.is_empty() { self.audiences.clone() } else { wanted.to_vec() };
            return Ok((bootstrap::authenticate(view, id, secret, now)?, audiences));
        }
        let tokens =
            self.tokens.as_ref().ok_or_else(|| AuthnError::refused("this server has no service-account key"))?;
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        tokens.authenticate(view, token, wanted, now)
    }

    /// Issuer of service-account tokens; None without a signing key.
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// The JSON web key set of the service-account issuer.
    pub fn jwks(&self) -> Value {
        self.tokens.as_ref().map(|t| t.keys().jwks()).unwrap_or_else(|| json!({"keys": []}))
    }

    /// The discovery document of `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> Value {
        let (issuer, algorithms) = match &self.tokens {
            Some(t) => (t.issuer(), t.keys().algorithms()),
            None => ("", Vec::new()),
        };
        json!({
            "issuer": issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", issuer.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }
}

/// Browsers cannot set headers on a WebSocket: they send their token as a subprotocol.
pub(crate) const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of an `Authorization: Bearer` header, or of a browser's WebSocket subprotocol.
fn bearer_token(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(Cow::Borrowed(token));
    }
    let offered = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let encoded = offered.flat_map(|v| v.split(',')).find_map(|p| p.trim().strip_prefix(WEBSOCKET_TOKEN))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn certificates(path: Option<&Path>, flag: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let read = || -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let certs: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
        anyhow::ensure!(!certs.is_empty(), "it holds no certificate");
        Ok(certs)
    };
    read().with_context(|| format!("{flag} {}: cannot read CA certificates", path.display()))
}

fn load_tokens(config: &Config, issuer: String, audiences: Vec<String>) -> anyhow::Result<Option<Tokens>> {
    let Some(path) = &config.service_account_signing_key_file else {
        anyhow::ensure!(
            config.service_account_key_file.is_empty(),
            "--service-account-key-file is given without --service-account-signing-key-file, and no token would be \
             taken; give both"
        );
        return Ok(None);
    };
    let of = |flag: &str, path: &Path| format!("{flag} {}", path.display());
    let signing = || of("--service-account-signing-key-file", path);
    let mut keys = jwt::Keys::from_pem(&std::fs::read(path).with_context(signing)?).with_context(signing)?;
    for path in &config.service_account_key_file {
        let checking = || of("--service-account-key-file", path);
        keys.accept(&std::fs::read(path).with_context(checking)?).with_context(checking)?;
    }
    Ok(Some(Tokens::new(keys, issuer, audiences)))
}

#[cfg(test)]
mod tests {
    use super::view::fake::FakeView;
    use super::*;

    fn authn(anonymous: bool) -> Authn {
        Authn {
            peers: PeerVerifier::new(&[], &[]).expect("verifier"),
            proxy_names: vec![],
            tokens: Some(service_account::tests::tokens()),
            audiences: vec!["https://kubernetes.default.svc".into()],
            anonymous,
            seen: Mutex::default(),
            revoked: Revoked::default(),
        }
    }

    #[test]
    fn the_file_of_a_bad_key_is_named() {
        use clap::Parser as _;
        let dir = tempfile::tempdir().expect("dir");
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("sign.key"), rcgen::KeyPair::generate().expect("key").serialize_pem()).expect("written");
        let certificate = rcgen::generate_simple_self_signed(["a".to_string()]).expect("certificate");
        std::fs::write(path("check.crt"), certificate.cert.pem()).expect("written");
        let refusal = |flags: &[String]| {
            let args = ["kube-apiserver", "--tls-cert-file=c", "--tls-private-key-file=k"].map(String::from);
            let config = Config::parse_from(args.iter().chain(flags));
            let Err(error) = load_tokens(&config, String::new(), vec![]) else { panic!("{flags:?} were taken") };
            format!("{error:#}")
        };
        let signing = format!("--service-account-signing-key-file={}", path("sign.key"));
        let checking = format!("--service-account-key-file={}", path("check.crt"));
        let why = refusal(&[signing, checking.clone()]);
        assert!(why.contains("check.crt") && !why.contains("sign.key"), "{why}");
        let why = refusal(&[checking]);
        assert!(why.contains("without --service-account-signing-key-file"), "{why}");
    }

    #[test]
    fn tokens_of_browsers() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "sec-websocket-protocol",
            format!("v4.channel.k8s.io, {WEBSOCKET_TOKEN}YS5iLmM").parse().expect("value"),
        );
        assert_eq!(bearer_token(&headers).as_deref(), Some("a.b.c"));
    }

    #[test]
    fn bad_credentials_are_not_anonymous() {
        let view = FakeView::default();
        let ask = |anonymous: bool, auth: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(auth) = auth {
                headers.insert("authorization", auth.parse().expect("value"));
            }
            authn(anonymous).identify(&view, &[], &headers, 0)
        };
        assert_eq!(ask(true, None).expect("anonymous").name, "system:anonymous");
        assert!(ask(false, None).is_err());
        for bad in ["Bearer x", "Bearer a.b.c", "Bearer abcdef.0123456789abcdef", "Basic eDp5"] {
            assert!(ask(true, Some(bad)).is_err(), "{bad}");
        }
    }
}
