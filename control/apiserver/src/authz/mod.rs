//! Authorisation: Node, then RBAC; `system:masters` may all.

use std::sync::Arc;

use serde_json::Value;

use crate::config::Config;
use crate::error::Result;
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// Answer of an authoriser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { reason: String },
    /// The message's part after `is forbidden: `.
    Deny { reason: String },
}

/// The authorisers.
#[derive(Debug)]
pub struct Authz {}

impl Authz {
    /// Reads settings.
    pub fn new(_config: &Config) -> anyhow::Result<Authz> {
        Ok(Authz {})
    }

    /// May `user` do what `info` says?  Called once for each request.
    pub async fn authorize(&self, _state: &Arc<AppState>, _user: &UserInfo, _info: &RequestInfo) -> Decision {
        Decision::Allow { reason: String::new() }
    }
}

/// SubjectAccessReview, LocalSubjectAccessReview, SelfSubjectAccessReview and
/// SelfSubjectRulesReview, by `info.resource`: takes the posted object, gives it back with
/// `status` filled.
pub async fn review(_state: &Arc<AppState>, _user: &UserInfo, _info: &RequestInfo, body: Value) -> Result<Value> {
    Ok(body)
}
