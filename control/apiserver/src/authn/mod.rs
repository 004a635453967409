//! Authentication: client certificates, service-account and bootstrap tokens, front proxy,
//! anonymous; and impersonation.

use std::sync::Arc;

use http::request::Parts;
use serde_json::Value;

use crate::config::Config;
use crate::error::Result;
use crate::pipeline::Connection;
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// The authenticators.
#[derive(Debug)]
pub struct Authn {}

impl Authn {
    /// Reads CA bundles and token keys.
    pub fn new(_config: &Config) -> anyhow::Result<Authn> {
        Ok(Authn {})
    }

    /// Who asks?  `connection.peer_certificates` is what the client showed, its possession
    /// of the key proved, but checked against no CA yet.  Called once for each request;
    /// impersonation is part of it.
    pub async fn authenticate(&self, _state: &Arc<AppState>, _connection: &Connection, _parts: &Parts) -> Result<UserInfo> {
        Ok(UserInfo::system())
    }

    /// The JSON web key set of the service-account issuer.
    pub fn jwks(&self) -> Value {
        serde_json::json!({"keys": []})
    }
}

/// TokenReview and SelfSubjectReview, by `info.resource`: takes the posted object, gives it
/// back with `status` filled.
pub async fn review(_state: &Arc<AppState>, _user: &UserInfo, _info: &RequestInfo, body: Value) -> Result<Value> {
    Ok(body)
}

/// `serviceaccounts/{name}/token`: takes a TokenRequest, gives it back with `status` filled.
/// (`info.namespace`, `info.name` name the account.)
pub async fn token_request(_state: &Arc<AppState>, _user: &UserInfo, _info: &RequestInfo, body: Value) -> Result<Value> {
    Ok(body)
}
