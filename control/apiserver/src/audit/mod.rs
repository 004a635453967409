//! Audit records: one at the end of each request (and at the start of long ones).

use std::sync::Arc;

use crate::config::Config;
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// Writes audit records.
#[derive(Debug)]
pub struct Audit {}

/// One request's record in the making.
#[derive(Debug)]
pub struct Record {
    /// Goes out as the `Audit-ID` header.
    pub id: String,
}

impl Audit {
    /// Opens the log, if one is set.
    pub fn new(_config: &Config) -> anyhow::Result<Audit> {
        Ok(Audit {})
    }

    /// Called once the user is known.
    pub fn begin(&self, _state: &Arc<AppState>, _info: &RequestInfo, _user: &UserInfo, _remote: std::net::SocketAddr) -> Record {
        Record { id: uuid::Uuid::new_v4().to_string() }
    }

    /// Called with the answer's code.
    pub fn finish(&self, _record: Record, _code: u16) {}
}
