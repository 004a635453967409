//! Connections that outlive a request: exec, attach, port-forward, logs, proxy.
//!
//! # Clients
//!
//! Clients speak SPDY/3.1, WebSocket channels (v5, v4 and older, plain or base64), SPDY inside
//! WebSocket (port-forward), or plain HTTP (log, proxy). All of that ends here.
//!
//! # The contract with the kubelet
//!
//! One protocol is spoken with the kubelet, over mutual TLS on port 10250 (this server shows
//! `--kubelet-client-certificate`, and checks the kubelet's certificate, whose SANs hold the
//! node's addresses, with `--kubelet-certificate-authority`), HTTP/1.1, upstream's paths:
//!
//! | request | answer |
//! |---|---|
//! | `GET /containerLogs/{ns}/{pod}/{container}?follow=true&previous=true&tailLines=&limitBytes=&sinceSeconds=&sinceTime=&timestamps=true&stream=` | 200 `text/plain`, chunked while following; 404 unknown pod or container; 400 container not started yet (body: the sentence) |
//! | `GET /exec/{ns}/{pod}/{container}?command=a&command=b&input=1&output=1&error=1&tty=1` + upgrade | 101 WebSocket |
//! | `GET /attach/{ns}/{pod}/{container}?input=1&output=1&error=1&tty=1` + upgrade | 101 WebSocket |
//! | `GET /portForward/{ns}/{pod}?port=N` + upgrade | 101 WebSocket, one for each forwarded connection |
//! | anything else (`/metrics`, `/stats/summary`, `/pods`, ...) | proxied as it is for `nodes/proxy` |
//!
//! Failures before the upgrade are an ordinary status code with the sentence as the body.
//!
//! **exec and attach**: subprotocol `v5.channel.k8s.io`. Every message is binary: one byte of
//! channel, then data. Channels: 0 standard input (to the kubelet), 1 output, 2 error output
//! (never with tty), 3 the final `v1 Status` as JSON (`{"metadata":{},"status":"Success"}`;
//! a non-zero exit is `status: Failure, reason: NonZeroExitCode, details.causes:
//! [{"reason":"ExitCode","message":"3"}]`, any other failure `reason: InternalError` with a
//! message), 4 terminal size (to the kubelet) as `{"Width":80,"Height":24}`, 255 (to the
//! kubelet) `[255, channel]`: that channel is at its end (end of input). The kubelet sends
//! channel 3 exactly once, last, and then a close frame. When this server goes away (close
//! frame or broken connection) the kubelet closes the process's input and stops streaming.
//!
//! **port-forward**: subprotocol `v4.channel.k8s.io`. Channel 0 is data in both directions,
//! channel 1 (from the kubelet) an error's sentence as text. Each channel's first message from
//! the kubelet is the port as two little-endian bytes. An empty message on channel 0, from
//! either side, is that side's end of data (half close). Close ends the connection.
//!
//! Pings are answered by both sides; messages are at most 64 KiB (fragments are allowed).

pub mod aggregated;
pub mod backend;
#[cfg(test)]
mod e2e;
mod handshake;
mod logs;
mod portforward;
mod proxy;
mod remote;
mod spdy;
mod target;
pub mod tls;
mod websocket;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use http::{Request, Response};
use hyper::body::Incoming;
use rustls::ClientConfig;

use crate::config::Config;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::{RequestInfo, UserInfo};
use crate::state::AppState;

/// Clients for kubelets and for addresses in the cluster.
pub struct Streaming {
    /// None where no client certificate for kubelets is set; and the time of the file that it was read from.
    kubelet_tls: Mutex<(Option<SystemTime>, Option<Arc<ClientConfig>>)>,
    /// Trusts whoever answers.
    any_tls: Arc<ClientConfig>,
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming").finish_non_exhaustive()
    }
}

impl Streaming {
    /// Reads the certificates shown to kubelets.
    pub fn new(config: &Config) -> anyhow::Result<Streaming> {
        let kubelet_tls = Mutex::new((tls::changed(config), tls::kubelet(config)?));
        Ok(Streaming { kubelet_tls, any_tls: tls::unverified()? })
    }

    /// The client towards kubelets, with the certificate that is there now.
    fn kubelet_tls(&self, config: &Config) -> Option<Arc<ClientConfig>> {
        let mut known = self.kubelet_tls.lock().unwrap_or_else(PoisonError::into_inner);
        let now = tls::changed(config);
        if now.is_some() && now != known.0 {
            match tls::kubelet(config) {
                Ok(tls) => *known = (now, tls),
                Err(error) => tracing::warn!("kubelets see the certificate of before: {error:#}"),
            }
        }
        known.1.clone()
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
pub async fn handle(
    state: &Arc<AppState>,
    info: &RequestInfo,
    _user: &UserInfo,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    match info.subresource.as_str() {
        "log" => logs::handle(state, info).await,
        "exec" | "attach" => remote::handle(state, info, request).await,
        "portforward" => portforward::handle(state, info, request).await,
        "proxy" => proxy::handle(state, info, request).await,
        _ => Err(ApiError::no_such_path()),
    }
}
