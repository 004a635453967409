//! Connections that outlive a request: exec, attach, port-forward, logs, proxy.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::config::Config;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// Clients for kubelets and for addresses in the cluster.
#[derive(Debug)]
pub struct Streaming {}

impl Streaming {
    /// Reads the certificates shown to kubelets.
    pub fn new(_config: &Config) -> anyhow::Result<Streaming> {
        Ok(Streaming {})
    }
}

/// Whether the subresource is served here: `pods/{exec,attach,portforward,log,proxy}`,
/// `services/proxy`, `nodes/proxy`.
pub fn serves(info: &RequestInfo) -> bool {
    info.is_resource
        && info.group.is_empty()
        && matches!(
            (info.resource.as_str(), info.subresource.as_str()),
            ("pods", "exec" | "attach" | "portforward" | "log" | "proxy") | ("services" | "nodes", "proxy")
        )
}

/// Answers a request that [`serves`] takes; authorisation has been done.
pub async fn handle(_state: &Arc<AppState>, _info: &RequestInfo, _user: &UserInfo, _request: Request<Incoming>) -> Result<Response<Body>> {
    Err(ApiError::unavailable("streaming is not available"))
}
